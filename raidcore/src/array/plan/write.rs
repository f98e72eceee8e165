//! Writes: data to its homes, parity brought along.
//!
//! A band whose columns are all new needs no reads. Otherwise there are two ways to the new parity, and the one
//! with fewer reads is taken:
//! - *read-modify-write* reads the old data and the old parity of what is written: P' = P ^ old ^ new;
//! - *reconstruct-write* reads the columns that are not written: P' = new ^ rest.
//!
//! With a member missing, at most one of the two is possible. Where a resync has not come yet, the old parity
//! may be wrong, and read-modify-write would carry the error on: there, reconstruct-write is taken if it can be.
//!
//! [`pq`](super::pq) does the same for two parities.

use super::bands::{Band, bands};
use super::pq::Stripe;
use super::{Access, Mem, Plan, Span, Unreadable, ZeroStep, at_row};
use crate::layout::{Home, Homes, UnitMap};
use smallvec::SmallVec;

/// Writes the spans, which do not overlap.
pub fn plan_write(map: &UnitMap, spans: &[Span], access: Access) -> Result<Plan, Unreadable> {
    let mut plan = Plan::default();
    let writable = |home: &Home| !access.unwritable.contains(home.slot);
    for (index, span) in spans.iter().enumerate() {
        let whole = Mem::Span { span: index, from: 0, len: span.len };
        let homes: &[Home] = match map {
            UnitMap::Copies(homes) => homes,
            UnitMap::Parity { data, .. } => std::slice::from_ref(&data[span.column]),
        };
        homes
            .iter()
            .filter(|home| writable(home))
            .for_each(|&home| plan.write(at_row(home, span.row), whole));
    }
    match map {
        UnitMap::Parity { data, parity, q: Some(q) } => {
            let stripe = Stripe::new(data, *parity, *q);
            bands(spans).iter().try_for_each(|band| stripe.plan_band(&mut plan, band, access))?;
        }
        UnitMap::Parity { data, parity, q: None } if writable(parity) => {
            bands(spans).iter().try_for_each(|band| plan_parity(&mut plan, data, *parity, band, access))?;
        }
        UnitMap::Parity { .. } | UnitMap::Copies(_) => {}
    }
    if plan.writes.is_empty() { Err(Unreadable) } else { Ok(plan) }
}

/// Zeroes the whole unit; the parity of zeroes is zero, so it is zeroed like the rest.
pub fn plan_zero(map: &UnitMap, unit_rows: u32, access: Access) -> Result<Plan, Unreadable> {
    let mut plan = Plan::default();
    let writable = map.homes().into_iter().filter(|home| !access.unwritable.contains(home.slot));
    plan.zeroes.extend(writable.map(|home| ZeroStep { home, len: unit_rows }));
    if plan.zeroes.is_empty() { Err(Unreadable) } else { Ok(plan) }
}

fn plan_parity(
    plan: &mut Plan,
    data: &Homes,
    parity: Home,
    band: &Band,
    access: Access,
) -> Result<(), Unreadable> {
    let readable = |home: &Home| !access.unreadable.contains(home.slot);
    let is_new = |column: usize| band.parts.iter().any(|part| part.column == column);
    let new = band.parts.iter().map(|part| Mem::Span { span: part.span, from: part.from, len: band.len });

    let rest: SmallVec<[Home; 8]> =
        (0..data.len()).filter(|&column| !is_new(column)).map(|column| data[column]).collect();
    let old: SmallVec<[Home; 8]> = band.parts.iter().map(|part| data[part.column]).chain([parity]).collect();
    let can_reconstruct = rest.iter().all(readable);
    let can_modify = old.iter().all(readable);
    let reconstruct = can_reconstruct && (!can_modify || access.unsynced || rest.len() <= old.len());
    let read_from = match (reconstruct, can_modify) {
        (true, _) => rest,
        (false, true) => old,
        (false, false) => return Err(Unreadable),
    };

    let mut sources: SmallVec<[Mem; 8]> = new.collect();
    for home in read_from {
        sources.push(Mem::Scratch(plan.read(at_row(home, band.row), band.len)));
    }
    let result = Mem::Scratch(plan.new_scratch(band.len));
    plan.xor(result, sources);
    plan.write(at_row(parity, band.row), result);
    Ok(())
}
