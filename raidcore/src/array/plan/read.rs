//! Reads that cannot come straight from the block's home: it is missing, or has a bad block.

use super::{Access, Mem, Plan, SlotSet, Span, Unreadable, at_row};
use crate::layout::{Home, UnitMap};
use smallvec::SmallVec;

/// Rebuilds each span from the other members. Where the span's own home is in `heal` and can be written, the
/// data is written back there, so that a disk may remap its bad sector.
pub fn plan_read(map: &UnitMap, spans: &[Span], access: Access, heal: SlotSet) -> Result<Plan, Unreadable> {
    let mut plan = Plan::default();
    for (index, span) in spans.iter().enumerate() {
        let whole = Mem::Span { span: index, from: 0, len: span.len };
        let (own_homes, sources) = sources(map, span, access, heal)?;
        let read: SmallVec<[Mem; 8]> =
            sources.iter().map(|&home| Mem::Scratch(plan.read(at_row(home, span.row), span.len))).collect();
        let healed: SmallVec<[Home; 4]> = own_homes
            .into_iter()
            .filter(|home| heal.contains(home.slot) && !access.unwritable.contains(home.slot))
            .collect();
        if healed.is_empty() {
            plan.xor(whole, read);
            continue;
        }
        let rebuilt = Mem::Scratch(plan.new_scratch(span.len));
        plan.xor(rebuilt, read);
        plan.xor(whole, [rebuilt]);
        healed.iter().for_each(|&home| plan.write(at_row(home, span.row), rebuilt));
    }
    Ok(plan)
}

/// The homes that hold a span itself, and the homes whose XOR is its data.
type Sources = (SmallVec<[Home; 4]>, SmallVec<[Home; 8]>);

fn sources(map: &UnitMap, span: &Span, access: Access, heal: SlotSet) -> Result<Sources, Unreadable> {
    let readable = |home: &Home| !access.unreadable.contains(home.slot);
    match map {
        UnitMap::Copies(homes) => {
            let source = homes.iter().copied().find(readable).ok_or(Unreadable)?;
            Ok((homes.iter().copied().collect(), SmallVec::from_slice(&[source])))
        }
        UnitMap::Parity { data, parity } => {
            let own = data[span.column];
            if access.in_doubt && heal.contains(own.slot) && !readable(&own) {
                // The member is here and this block of it is bad. What parity in doubt makes of it is a guess.
                return Err(Unreadable);
            }
            let own_list = SmallVec::from_slice(&[own]);
            // It became readable while the request waited: a rebuild went past, or nothing was wrong.
            if readable(&own) {
                return Ok((own_list, SmallVec::from_slice(&[own])));
            }
            let others = data.iter().enumerate().filter(|&(column, _)| column != span.column);
            let sources: SmallVec<[Home; 8]> = others.map(|(_, &home)| home).chain([*parity]).collect();
            if sources.iter().all(readable) { Ok((own_list, sources)) } else { Err(Unreadable) }
        }
    }
}
