//! Bringing a unit into sync, and rebuilding one member's part of it.

use super::{Access, Mem, Plan, Unreadable, WriteStep};
use crate::layout::{Home, Slot, UnitMap};
use smallvec::SmallVec;

/// Makes the unit's redundancy match its data: copies follow the first readable one, parity follows the
/// columns. What is right already is not written. A column that cannot be read is rebuilt from the others and
/// written back.
pub fn plan_resync(map: &UnitMap, unit_rows: u32, access: Access) -> Result<Plan, Unreadable> {
    let mut plan = Plan::default();
    let readable = |home: &Home| !access.unreadable.contains(home.slot);
    let writable = |home: &Home| !access.unwritable.contains(home.slot);
    match map {
        UnitMap::Copies(homes) => {
            let source = *homes.iter().find(|home| readable(home)).ok_or(Unreadable)?;
            let from = Mem::Scratch(plan.read(source, unit_rows));
            for &home in homes.iter().filter(|home| **home != source && writable(home)) {
                let unless_equal = readable(&home).then(|| plan.read(home, unit_rows));
                plan.writes.push(WriteStep { home, from, unless_equal });
            }
        }
        UnitMap::Parity { data, parity } => {
            let all = || data.iter().chain([parity]);
            match all().find(|home| !readable(home)) {
                // Nothing to compare with: what is missing follows from the rest.
                Some(home) if writable(home) => return plan_rebuild(map, unit_rows, home.slot, access),
                Some(_) => return Ok(plan),
                None => {}
            }
            let present = plan.read(*parity, unit_rows);
            let sources: SmallVec<[Mem; 8]> =
                data.iter().map(|&home| Mem::Scratch(plan.read(home, unit_rows))).collect();
            let right = plan.new_scratch(unit_rows);
            plan.xor(Mem::Scratch(right), sources);
            let from = Mem::Scratch(right);
            plan.writes.push(WriteStep { home: *parity, from, unless_equal: Some(present) });
        }
    }
    Ok(plan)
}

/// Rebuilds what the unit keeps on `target` from its other members. An empty plan if it keeps nothing there.
pub fn plan_rebuild(map: &UnitMap, unit_rows: u32, target: Slot, access: Access) -> Result<Plan, Unreadable> {
    let mut plan = Plan::default();
    let homes: SmallVec<[Home; 8]> = match map {
        UnitMap::Copies(homes) => homes.iter().copied().collect(),
        UnitMap::Parity { data, parity } => data.iter().chain([parity]).copied().collect(),
    };
    let Some(&own) = homes.iter().find(|home| home.slot == target) else {
        return Ok(plan);
    };
    let readable = |home: &&Home| home.slot != target && !access.unreadable.contains(home.slot);
    let wanted = match map {
        UnitMap::Copies(_) => 1,
        UnitMap::Parity { .. } => homes.len() - 1,
    };
    let sources: SmallVec<[Home; 8]> = homes.iter().filter(readable).take(wanted).copied().collect();
    if sources.len() < wanted {
        return Err(Unreadable);
    }
    let read: SmallVec<[Mem; 8]> =
        sources.iter().map(|&home| Mem::Scratch(plan.read(home, unit_rows))).collect();
    let result = plan.new_scratch(unit_rows);
    plan.xor(Mem::Scratch(result), read);
    plan.write(own, Mem::Scratch(result));
    Ok(plan)
}
