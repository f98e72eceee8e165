//! Bringing a unit into sync, and rebuilding one member's part of it.

use super::{Access, Mem, Plan, Unreadable, WriteStep, at_row};
use crate::layout::{Home, Slot, UnitMap};
use smallvec::SmallVec;

/// Makes the redundancy of rows `row..row + len` match their data: copies follow the first readable one, parity
/// follows the columns. What is right already is not written. Where a column cannot be read, there is no plan:
/// parity that is in doubt is no source for data.
pub fn plan_resync(map: &UnitMap, row: u32, len: u32, access: Access) -> Result<Plan, Unreadable> {
    let mut plan = Plan::default();
    let readable = |home: &Home| !access.unreadable.contains(home.slot);
    let writable = |home: &Home| !access.unwritable.contains(home.slot);
    match map {
        UnitMap::Copies(homes) => {
            let source = *homes.iter().find(|home| readable(home)).ok_or(Unreadable)?;
            let from = Mem::Scratch(plan.read(at_row(source, row), len));
            for &home in homes.iter().filter(|home| **home != source && writable(home)) {
                let unless_equal = readable(&home).then(|| plan.read(at_row(home, row), len));
                plan.writes.push(WriteStep { home: at_row(home, row), from, unless_equal });
            }
        }
        UnitMap::Parity { data, parity } => {
            if !data.iter().all(readable) {
                return Err(Unreadable);
            }
            if !writable(parity) {
                return Ok(plan);
            }
            let present = readable(parity).then(|| plan.read(at_row(*parity, row), len));
            let sources: SmallVec<[Mem; 8]> =
                data.iter().map(|&home| Mem::Scratch(plan.read(at_row(home, row), len))).collect();
            let from = Mem::Scratch(plan.new_scratch(len));
            plan.xor(from, sources);
            plan.writes.push(WriteStep { home: at_row(*parity, row), from, unless_equal: present });
        }
    }
    Ok(plan)
}

/// Rebuilds rows `row..row + len` of what the unit keeps on `target` from its other members. An empty plan if it
/// keeps nothing there.
pub fn plan_rebuild(
    map: &UnitMap,
    row: u32,
    len: u32,
    target: Slot,
    access: Access,
) -> Result<Plan, Unreadable> {
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
        sources.iter().map(|&home| Mem::Scratch(plan.read(at_row(home, row), len))).collect();
    let result = plan.new_scratch(len);
    plan.xor(Mem::Scratch(result), read);
    plan.write(at_row(own, row), Mem::Scratch(result));
    Ok(plan)
}
