//! Reads that cannot come straight from the block's home: it is missing, or has a bad block.

use super::pq::Stripe;
use super::{Access, Compute, Mem, Plan, SlotSet, Span, Term, Unreadable, at_row};
use crate::layout::{Home, UnitMap};
use smallvec::SmallVec;

/// Rebuilds each span from the other members. Where the span's own home is in `heal` and can be written, the
/// data is written back there, so that a disk may remap its bad sector.
pub fn plan_read(map: &UnitMap, spans: &[Span], access: Access, heal: SlotSet) -> Result<Plan, Unreadable> {
    let mut plan = Plan::default();
    for (index, span) in spans.iter().enumerate() {
        let whole = Mem::Span { span: index, from: 0, len: span.len };
        let (own_homes, terms) = sources(&mut plan, map, span, access, heal)?;
        let healed: SmallVec<[Home; 4]> = own_homes
            .into_iter()
            .filter(|home| heal.contains(home.slot) && !access.unwritable.contains(home.slot))
            .collect();
        if healed.is_empty() {
            plan.sums.push(Compute::Sum { dst: whole, terms });
            continue;
        }
        let rebuilt = Mem::Scratch(plan.new_scratch(span.len));
        plan.sums.push(Compute::Sum { dst: rebuilt, terms });
        plan.xor(whole, [rebuilt]);
        healed.iter().for_each(|&home| plan.write(at_row(home, span.row), rebuilt));
    }
    Ok(plan)
}

/// The homes that hold a span itself, and the sum that is its data.
type Sources = (SmallVec<[Home; 4]>, SmallVec<[Term; 8]>);

fn sources(
    plan: &mut Plan,
    map: &UnitMap,
    span: &Span,
    access: Access,
    heal: SlotSet,
) -> Result<Sources, Unreadable> {
    let readable = |home: &Home| !access.unreadable.contains(home.slot);
    let read = |plan: &mut Plan, home: Home| Term {
        factor: 1,
        source: Mem::Scratch(plan.read(at_row(home, span.row), span.len)),
    };
    let (data, parity, q) = match map {
        UnitMap::Copies(homes) => {
            let source = homes.iter().copied().find(readable).ok_or(Unreadable)?;
            return Ok((homes.iter().copied().collect(), [read(plan, source)].into_iter().collect()));
        }
        UnitMap::Parity { data, parity, q } => (data, *parity, *q),
    };
    let own = data[span.column];
    let own_list = SmallVec::from_slice(&[own]);
    // It became readable while the request waited: a rebuild went past, or nothing was wrong.
    if readable(&own) {
        return Ok((own_list, [read(plan, own)].into_iter().collect()));
    }
    if access.in_doubt && heal.contains(own.slot) {
        // The member is here and this block of it is bad. What parity in doubt makes of it is a guess.
        return Err(Unreadable);
    }
    if let Some(q) = q {
        let stripe = Stripe::new(data, parity, q);
        let factors = stripe.recover(stripe.part_of(span.column), &stripe.lost(access))?;
        return Ok((own_list, stripe.read(plan, &factors, span.row, span.len).into()));
    }
    let others = data.iter().enumerate().filter(|&(column, _)| column != span.column);
    let sources: SmallVec<[Home; 8]> = others.map(|(_, &home)| home).chain([parity]).collect();
    if !sources.iter().all(readable) {
        return Err(Unreadable);
    }
    Ok((own_list, sources.into_iter().map(|home| read(plan, home)).collect()))
}
