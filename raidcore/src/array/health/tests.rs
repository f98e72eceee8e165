//! The map against a look at each block by itself.

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
    let algorithm = (0u32..4).prop_map(|n| ParityAlgorithm::from_number(n).unwrap());
    // Chunks of one unit, of parts of one, and of two and four.
    (level, 4usize..=9, 14u32..=18, algorithm, 2usize..=3).prop_map(
        |(level, slots, shift, algorithm, copies)| {
            Layout::new(LayoutSpec { level, slots, chunk_bytes: 1 << shift, algorithm, copies }).unwrap()
        },
    )
}

/// The members that can be read in units before which; mostly all, or none.
fn states() -> impl Strategy<Value = (Vec<u64>, Option<u64>)> {
    let one = prop_oneof![4 => Just(u64::MAX), 1 => Just(0), 1 => 0u64..80];
    (prop::collection::vec(one, 9), prop_oneof![2 => Just(None), 1 => (0u64..80).prop_map(Some)])
}

/// One byte by itself: what can be read now, and what could be read with any one more member lost.
fn oracle(layout: &Layout, at: u64, readable_before: &[u64], doubt_from: Option<u64>) -> Health {
    let place = layout.place(at);
    let lost = |slot: Slot| place.unit.0 >= readable_before[slot.index()];
    let in_doubt = doubt_from.is_some_and(|from| place.unit.0 >= from);
    let reads = |lost: &dyn Fn(Slot) -> bool| match layout.unit_map(place.unit) {
        UnitMap::Copies(homes) => homes.iter().any(|home| !lost(home.slot)),
        map @ UnitMap::Parity { .. } => {
            let UnitMap::Parity { data, q, .. } = &map else { unreachable!() };
            let spare = 1 + usize::from(q.is_some());
            !lost(data[place.column].slot)
                || map.homes().iter().filter(|home| lost(home.slot)).count() <= spare
        }
    };
    if !reads(&lost) {
        return Health::Unreadable;
    }
    let survives = layout.all_slots().all(|next| reads(&|slot| slot == next || lost(slot)));
    if survives && !in_doubt { Health::Redundant } else { Health::Degraded }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn runs_lie_end_to_end_and_say_of_each_block_what_it_says_by_itself(
        layout in layouts(),
        (before, doubt) in states(),
        rows in 1u64..=20,
        (from, len) in (any::<u64>(), any::<u64>()),
    ) {
        let size = layout.capacity(rows * u64::from(layout.chunk_bytes()));
        prop_assume!(size > 0);
        let from = from % size / 4096 * 4096;
        let end = from + (len % (size - from) / 4096 + 1) * 4096;
        let map = HealthMap::new(layout, size, |slot| UnitId(before[slot.index()]), doubt.map(UnitId));
        let (mut at, mut last) = (from, None);
        for (len, health) in map.runs(from..end) {
            prop_assert!(len > 0 && last != Some(health), "two runs of {:?} meet at {}", health, at);
            for block in (at..at + len).step_by(4096) {
                let own = oracle(&layout, block, &before, doubt);
                prop_assert_eq!(health, own, "block at {}", block);
            }
            (at, last) = (at + len, Some(health));
        }
        prop_assert_eq!(at, end.min(size));
    }
}

fn map_of(level: Level, slots: usize, chunk: u32, before: &[u64], doubt: Option<u64>) -> HealthMap {
    let layout = Layout::new(LayoutSpec::new(level, slots, chunk)).unwrap();
    let size = layout.capacity(100 << 40);
    HealthMap::new(layout, size, |slot| UnitId(before[slot.index()]), doubt.map(UnitId))
}

#[test]
fn a_large_array_costs_what_its_runs_cost() {
    const IN: u64 = u64::MAX;
    let whole = map_of(Level::Raid5, 5, 1 << 16, &[IN; 5], None);
    let runs: Vec<_> = whole.runs(0..u64::MAX).collect();
    assert_eq!(runs, [(400 << 40, Health::Redundant)]);
    // A rebuild that has come past a million stripes.
    let rebuilding = map_of(Level::Raid5, 5, 1 << 16, &[IN, IN, 1 << 20, IN, IN], None);
    let runs: Vec<_> = rebuilding.runs(0..u64::MAX).collect();
    let done = 4 << 36;
    assert_eq!(runs, [(done, Health::Redundant), ((400 << 40) - done, Health::Degraded)]);
    // A RAID10 without a member: two chunks of four, for ever; who asks for three gets three.
    let holed = map_of(Level::Raid10, 4, 1 << 16, &[IN, 0, IN, IN], None);
    let runs: Vec<_> = holed.runs(0..u64::MAX).take(3).collect();
    let chunk = 1 << 16;
    assert_eq!(runs, [(chunk, Health::Degraded), (chunk, Health::Redundant), (chunk, Health::Degraded)]);
    let striped = map_of(Level::Raid0, 4, 1 << 16, &[IN; 4], None);
    assert_eq!(striped.runs(0..u64::MAX).collect::<Vec<_>>(), [(400 << 40, Health::Degraded)]);
}

/// A RAID5 with two members gone is a patchwork for ever, of which an answer tells a part.
#[test]
fn an_answer_looks_at_so_many_places_and_the_next_goes_on_behind_it() {
    const IN: u64 = u64::MAX;
    let torn = map_of(Level::Raid5, 5, 1 << 16, &[IN, 0, 0, IN, IN], None);
    let most = (MAX_HEALTH_LOOKS as u64) << 16;
    for from in [0, 4096, most] {
        let runs: Vec<_> = torn.runs(from..u64::MAX).collect();
        let told: u64 = runs.iter().map(|(len, _)| len).sum();
        assert!(told <= most && told > most / 2, "{told} from {from}");
        assert!(runs.windows(2).all(|pair| pair[0].1 != pair[1].1));
        assert_eq!(torn.runs(from + told..u64::MAX).next().unwrap().1, torn.at(from + told));
    }
}
