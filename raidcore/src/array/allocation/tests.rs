//! Stretches taken as a whole against each granule looked at by itself.

use super::*;
use crate::layout::{LayoutSpec, Level, ParityAlgorithm};
use proptest::prelude::*;

fn layouts() -> impl Strategy<Value = Layout> {
    let level = prop_oneof![
        Just(Level::Raid0),
        Just(Level::Raid1),
        Just(Level::Raid5),
        Just(Level::Raid6),
        Just(Level::Raid10)
    ];
    (level, 4usize..=6, 12u32..=18, 2usize..=3).prop_map(|(level, slots, shift, copies)| {
        let algorithm = ParityAlgorithm::LeftSymmetric;
        Layout::new(LayoutSpec { level, slots, chunk_bytes: 1 << shift, algorithm, copies }).unwrap()
    })
}

/// Runs of data and holes in turn, in blocks.
fn holes() -> impl Strategy<Value = Holes> {
    prop::collection::vec(prop_oneof![1u64..20, 1u64..400], 0..30).prop_map(|lens| {
        let (mut holes, mut at) = (Holes::none(), 0);
        for (index, len) in lens.into_iter().enumerate() {
            if index % 2 == 0 {
                holes.push(at * 4096..(at + len) * 4096);
            }
            at += len;
        }
        holes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_is_taken_as_a_whole_is_what_each_granule_is(
        layout in layouts(),
        holes in prop::collection::vec(holes(), 6),
        missing in prop_oneof![Just(usize::MAX), 0usize..12],
        unsynced_from in prop_oneof![Just(None), (0u64..200).prop_map(Some)],
        rows in 1u64..60,
    ) {
        let member_bytes = rows * u64::from(layout.chunk_bytes());
        let size_bytes = layout.capacity(member_bytes);
        prop_assume!(size_bytes > 0 && layout.survives(|slot| slot.index() == missing));
        let of_slot = |slot: Slot| {
            (slot.index() != missing).then(|| holes[slot.index()].part(0..member_bytes))
        };
        let survey = Survey {
            layout,
            size_bytes,
            holes: layout.all_slots().map(of_slot).collect(),
            unsynced_from: unsynced_from.map(UnitId),
        };
        let mut map = ZeroMap::unknown(size_bytes, None);
        survey.fill(&mut map, u64::MAX);
        for at in (0..size_bytes).step_by(GRANULE_BYTES as usize) {
            let granule = at..(at + GRANULE_BYTES).min(size_bytes);
            let said = map.runs(granule.clone()).next();
            prop_assert_eq!(said, Some((granule.end - at, survey.is_zero(granule))));
        }
    }
}

#[test]
fn what_is_looked_at_one_by_one_is_bounded_and_the_rest_is_data() {
    let layout = Layout::new(LayoutSpec::new(Level::Raid10, 4, 1 << 16)).unwrap();
    let member_bytes = 64 << 40;
    let size_bytes = layout.capacity(member_bytes);
    let hole: Holes = std::iter::once(0..member_bytes).collect();
    let survey = |holes: [&Holes; 4], budget| {
        let holes = holes.map(|holes| Some(holes.clone())).to_vec();
        let mut map = ZeroMap::unknown(size_bytes, None);
        Survey { layout, size_bytes, holes, unsynced_from: None }.fill(&mut map, budget);
        map
    };
    // All of it a hole: taken as a whole.
    let map = survey([&hole; 4], 0);
    assert_eq!(map.runs(0..1 << 30).collect::<Vec<_>>(), [(1 << 30, true)]);
    // Half the members: chunk by chunk, as far as the budget goes.
    let none = Holes::none();
    let map = survey([&hole, &hole, &none, &none], 100);
    let zeroes = map.runs(0..1 << 30).filter(|(_, zero)| *zero).map(|(len, _)| len).sum::<u64>();
    assert_eq!(zeroes, 50 * GRANULE_BYTES);
}
