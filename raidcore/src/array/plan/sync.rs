//! Bringing a unit into sync, and rebuilding one member's part of it.

use super::pq::Stripe;
use super::{Access, Compute, Mem, Plan, SlotSet, Unreadable, WriteStep, at_row};
use crate::layout::{Home, Slot, UnitMap};
use smallvec::SmallVec;

/// Makes the redundancy of rows `row..row + len` match their data: copies follow the first readable one, parity
/// follows the columns. What is right already is not written. Where a column cannot be read, there is no plan:
/// parity that is in doubt is no source for data. But where there are two, one whole member may be missing: what P
/// makes of it is what is read of it, and Q has to agree with that. `bad` are members with a bad block.
pub fn plan_resync(
    map: &UnitMap,
    row: u32,
    len: u32,
    access: Access,
    bad: SlotSet,
) -> Result<Plan, Unreadable> {
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
        UnitMap::Parity { data, parity, q: Some(q) } => {
            if data.iter().any(|home| bad.contains(home.slot)) {
                return Err(Unreadable);
            }
            Stripe::new(data, *parity, *q).plan_resync(&mut plan, row, len, access)?;
        }
        UnitMap::Parity { data, parity, q: None } => {
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
    if let UnitMap::Parity { data, parity, q: Some(q) } = map {
        let stripe = Stripe::new(data, *parity, *q);
        return rebuild_part(&stripe, row, len, target, access);
    }
    let homes = map.homes();
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

fn rebuild_part(
    stripe: &Stripe<'_>,
    row: u32,
    len: u32,
    target: Slot,
    access: Access,
) -> Result<Plan, Unreadable> {
    let mut plan = Plan::default();
    let Some(part) = stripe.part_on(target) else {
        return Ok(plan);
    };
    let factors = stripe.recover(part, &stripe.lost(access))?;
    let terms = stripe.read(&mut plan, &factors, row, len).into();
    let result = Mem::Scratch(plan.new_scratch(len));
    plan.sums.push(Compute::Sum { dst: result, terms });
    plan.write(at_row(stripe.home(part), row), result);
    Ok(plan)
}
