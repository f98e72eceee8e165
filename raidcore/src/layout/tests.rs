//! The maps' properties, over every level and many shapes.

use super::*;
use proptest::prelude::*;
use std::collections::{HashMap, HashSet};

fn layouts() -> impl Strategy<Value = Layout> {
    let level = prop_oneof![
        Just(Level::Raid0),
        Just(Level::Raid1),
        Just(Level::Raid5),
        Just(Level::Raid6),
        Just(Level::Raid10)
    ];
    let algorithm = (0u32..4).prop_map(|n| ParityAlgorithm::from_number(n).unwrap());
    (level, 4usize..=12, 12u32..=18, algorithm, 2usize..=3).prop_map(
        |(level, slots, shift, algorithm, copies)| {
            Layout::new(LayoutSpec { level, slots, chunk_bytes: 1 << shift, algorithm, copies }).unwrap()
        },
    )
}

/// All homes of the array's 4 KiB blocks: (home, what is there).
fn fill(layout: &Layout, member_bytes: u64) -> HashMap<Home, String> {
    let mut homes = HashMap::new();
    let mut claim = |home: Home, what: String| {
        assert!(home.offset < member_bytes, "{home:?} is past the member's end");
        let before = homes.insert(home, what.clone());
        assert!(before.is_none(), "{home:?} holds {what} and {before:?}");
    };
    for unit in 0..layout.units(member_bytes) {
        let unit = UnitId(unit);
        for row in (0..layout.unit_rows()).step_by(4096) {
            let at = |home: &Home| Home { slot: home.slot, offset: home.offset + u64::from(row) };
            match layout.unit_map(unit) {
                UnitMap::Copies(homes) => {
                    let address = layout.address(Place { unit, column: 0, row });
                    homes.iter().for_each(|home| claim(at(home), format!("data {address}")));
                    let slots: HashSet<_> = homes.iter().map(|h| h.slot).collect();
                    assert_eq!(slots.len(), homes.len(), "two copies on one member");
                }
                UnitMap::Parity { data, parity, q } => {
                    claim(at(&parity), format!("parity of {unit:?}"));
                    assert_eq!(q.is_some(), layout.level() == Level::Raid6);
                    q.iter().for_each(|q| claim(at(&q.home), format!("Q of {unit:?}")));
                    for (column, home) in data.iter().enumerate() {
                        claim(at(home), format!("data {}", layout.address(Place { unit, column, row })));
                    }
                }
            }
        }
    }
    homes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn members_for_a_size_hold_it_and_not_a_chunk_more_than_needed(layout in layouts(), rows in 1u64..=999, less in 0u64..4096) {
        let chunk = u64::from(layout.chunk_bytes());
        prop_assert_eq!(layout.member_bytes_for(layout.capacity(rows * chunk)), rows * chunk);
        let size = layout.capacity(rows * chunk) - less;
        let members = layout.member_bytes_for(size);
        prop_assert!(layout.capacity(members) >= size && layout.capacity(members - chunk) < size);
        prop_assert!(layout.member_bytes_for(u64::MAX) > 1 << 56);
    }

    #[test]
    fn every_block_has_exactly_one_home_per_copy(layout in layouts(), rows in 1u64..=24) {
        let member_bytes = rows * u64::from(layout.chunk_bytes());
        let capacity = layout.capacity(member_bytes);
        let homes = fill(&layout, member_bytes);
        let mut copies: HashMap<&str, usize> = HashMap::new();
        for what in homes.values().filter(|what| what.starts_with("data")) {
            *copies.entry(what).or_default() += 1;
        }
        for address in (0..capacity).step_by(4096) {
            prop_assert_eq!(copies.get(format!("data {address}").as_str()), Some(&layout.copies()));
        }
        prop_assert_eq!(copies.len() as u64, capacity / 4096);
    }

    #[test]
    fn place_and_address_are_inverse_and_the_first_home_agrees(layout in layouts(), rows in 1u64..=24, at in any::<u64>()) {
        let capacity = layout.capacity(rows * u64::from(layout.chunk_bytes()));
        prop_assume!(capacity > 0);
        let offset = at % capacity;
        let place = layout.place(offset);
        prop_assert!(place.row < layout.unit_rows() && place.column < layout.columns());
        prop_assert_eq!(layout.address(place), offset);
        let first = match layout.unit_map(place.unit) {
            UnitMap::Copies(homes) => homes[0],
            UnitMap::Parity { data, .. } => data[place.column],
        };
        prop_assert_eq!(layout.column_home(place.unit, place.column), first);
    }

    #[test]
    fn a_checkpoint_in_member_bytes_never_claims_a_unit_that_was_not_done(layout in layouts(), at in 0u64..4096) {
        let bytes = layout.member_bytes_before(UnitId(at));
        prop_assert!(layout.unit_after(bytes) <= UnitId(at));
        // Every home of a unit at or after the checkpoint lies at or after these bytes.
        let homes = match layout.unit_map(UnitId(at)) {
            UnitMap::Copies(homes) => homes,
            UnitMap::Parity { data, .. } => data,
        };
        prop_assert!(homes.iter().all(|home| home.offset + u64::from(layout.chunk_bytes()) > bytes));
        prop_assert!(bytes + 2 * u64::from(layout.chunk_bytes()) > homes[0].offset);
    }

    #[test]
    fn parity_falls_on_each_member_equally_often(
        slots in 4usize..=64, parities in 1usize..=2, number in 0u32..4, first in 0u64..1 << 40,
    ) {
        let algorithm = ParityAlgorithm::from_number(number).unwrap();
        let stripes = first..first + slots as u64;
        let seen: HashSet<_> = stripes.clone().map(|stripe| algorithm.parity_slot(slots, stripe)).collect();
        prop_assert_eq!(seen.len(), slots);
        let seen: HashSet<_> = stripes.clone().map(|stripe| algorithm.q_slot(slots, stripe)).collect();
        prop_assert_eq!(seen.len(), slots);
        for stripe in stripes {
            let columns = 0..slots - parities;
            let mut used: HashSet<_> = columns.map(|c| algorithm.data_slot(slots, parities, stripe, c)).collect();
            used.insert(algorithm.parity_slot(slots, stripe));
            if parities == 2 {
                used.insert(algorithm.q_slot(slots, stripe));
            }
            prop_assert_eq!(used.len(), slots);
        }
    }

    #[test]
    fn an_array_survives_exactly_the_losses_that_leave_every_block_a_source(layout in layouts(), lost in any::<u16>()) {
        let missing = |slot: Slot| lost >> slot.0 & 1 == 1;
        let member_bytes = 12 * u64::from(layout.chunk_bytes());
        let readable = (0..layout.units(member_bytes)).all(|unit| match layout.unit_map(UnitId(unit)) {
            UnitMap::Copies(homes) => homes.iter().any(|home| !missing(home.slot)),
            map @ UnitMap::Parity { q, .. } => {
                map.homes().iter().filter(|home| missing(home.slot)).count() <= 1 + usize::from(q.is_some())
            }
        });
        prop_assert_eq!(layout.survives(missing), readable);
    }
}

fn capacity_of(level: Level, slots: usize, copies: usize) -> u64 {
    let spec = LayoutSpec { copies, ..LayoutSpec::new(level, slots, 65536) };
    Layout::new(spec).unwrap().capacity(10 * 65536 + 4096) / 65536
}

#[test]
fn the_capacity_is_what_the_level_promises() {
    assert_eq!(capacity_of(Level::Raid0, 4, 2), 40);
    assert_eq!(capacity_of(Level::Raid1, 3, 2), 10);
    assert_eq!(capacity_of(Level::Raid5, 4, 2), 30);
    assert_eq!(capacity_of(Level::Raid6, 4, 2), 20);
    assert_eq!(capacity_of(Level::Raid6, 10, 2), 80);
    assert_eq!(capacity_of(Level::Raid10, 4, 2), 20);
    assert_eq!(capacity_of(Level::Raid10, 3, 2), 15);
    assert_eq!(capacity_of(Level::Raid10, 5, 3), 16);
}

/// The first stripes of four members, as the md manual describes each rotation; `P` is the parity.
#[test]
fn the_rotations_are_those_of_md() {
    let draw = |algorithm: ParityAlgorithm| -> Vec<String> {
        let draw_stripe = |stripe: u64| {
            let mut cells = vec!["P".to_string(); 4];
            (0..3).for_each(|c| cells[algorithm.data_slot(4, 1, stripe, c).index()] = c.to_string());
            assert_eq!(cells[algorithm.parity_slot(4, stripe).index()], "P");
            cells.concat()
        };
        (0..4).map(draw_stripe).collect()
    };
    assert_eq!(draw(ParityAlgorithm::LeftSymmetric), ["012P", "12P0", "2P01", "P012"]);
    assert_eq!(draw(ParityAlgorithm::LeftAsymmetric), ["012P", "01P2", "0P12", "P012"]);
    assert_eq!(draw(ParityAlgorithm::RightSymmetric), ["P012", "2P01", "12P0", "012P"]);
    assert_eq!(draw(ParityAlgorithm::RightAsymmetric), ["P012", "0P12", "01P2", "012P"]);
}

/// The stripes of five members as md's definitions of the rotations have them, worked out by hand; small letters are
/// the data columns in the order of the address, and the digits below are the powers of Q's generator: md counts them
/// from the member after Q on, around the end, leaving P out.
#[test]
fn the_rotations_of_raid6_are_those_of_md() {
    let draw = |algorithm: ParityAlgorithm| -> [String; 2] {
        let spec = LayoutSpec { algorithm, ..LayoutSpec::new(Level::Raid6, 5, 4096) };
        let layout = Layout::new(spec).unwrap();
        let mut lines: [Vec<String>; 2] = Default::default();
        for stripe in 0..5 {
            let UnitMap::Parity { data, parity, q: Some(q) } = layout.unit_map(UnitId(stripe)) else {
                panic!()
            };
            let mut cells = [["?"; 5]; 2];
            for line in &mut cells {
                (line[parity.slot.index()], line[q.home.slot.index()]) = ("P", "Q");
            }
            for (column, home) in data.iter().enumerate() {
                cells[0][home.slot.index()] = ["a", "b", "c"][column];
                let power = (column + 3 - q.first_column) % 3;
                cells[1][home.slot.index()] = ["0", "1", "2"][power];
            }
            lines.iter_mut().zip(cells).for_each(|(line, cells)| line.push(cells.concat()));
        }
        lines.map(|line| line.join(" "))
    };
    assert_eq!(
        draw(ParityAlgorithm::LeftSymmetric),
        ["QabcP abcPQ bcPQa cPQab PQabc", "Q012P 012PQ 12PQ0 2PQ01 PQ012"]
    );
    assert_eq!(
        draw(ParityAlgorithm::RightSymmetric),
        ["PQabc cPQab bcPQa abcPQ QabcP", "PQ012 2PQ01 12PQ0 012PQ Q012P"]
    );
    assert_eq!(
        draw(ParityAlgorithm::LeftAsymmetric),
        ["QabcP abcPQ abPQc aPQbc PQabc", "Q012P 012PQ 12PQ0 2PQ01 PQ012"]
    );
    assert_eq!(
        draw(ParityAlgorithm::RightAsymmetric),
        ["PQabc aPQbc abPQc abcPQ QabcP", "PQ012 2PQ01 12PQ0 012PQ Q012P"]
    );
}

#[test]
fn three_members_with_two_near_copies_alternate_as_in_md() {
    let spec = LayoutSpec::new(Level::Raid10, 3, 4096);
    let layout = Layout::new(spec).unwrap();
    let homes = |unit| match layout.unit_map(UnitId(unit)) {
        UnitMap::Copies(homes) => homes.iter().map(|h| (h.slot.0, h.offset / 4096)).collect::<Vec<_>>(),
        UnitMap::Parity { .. } => unreachable!(),
    };
    assert_eq!(homes(0), [(0, 0), (1, 0)]);
    assert_eq!(homes(1), [(2, 0), (0, 1)]);
    assert_eq!(homes(2), [(1, 1), (2, 1)]);
}

#[test]
fn layouts_that_make_no_sense_are_refused_with_the_remedy() {
    let text = |spec| Layout::new(spec).unwrap_err().to_string();
    assert_eq!(text(LayoutSpec::new(Level::Raid5, 2, 65536)), "raid5 needs at least 3 members, 2 given");
    assert_eq!(text(LayoutSpec::new(Level::Raid6, 3, 65536)), "raid6 needs at least 4 members, 3 given");
    assert_eq!(text(LayoutSpec::new(Level::Raid0, 65, 65536)), "65 members given: an array takes at most 64");
    for chunk in [0, 2048, 65537, 32 << 20] {
        let said = text(LayoutSpec::new(Level::Raid5, 3, chunk));
        assert_eq!(said, format!("chunk of {chunk} bytes: use a power of two from 4K to 16M"));
    }
    for copies in [0, 1, 5] {
        let said = text(LayoutSpec { copies, ..LayoutSpec::new(Level::Raid10, 4, 65536) });
        assert_eq!(said, format!("{copies} copies over 4 members: use 2 to 4"));
    }
    assert_eq!("7".parse::<Level>().unwrap_err().to_string(), "unknown level `7`: use 0, 1, 5, 6 or 10");
    assert_eq!("raid10".parse::<Level>(), Ok(Level::Raid10));
    assert_eq!("left-symmetric".parse(), Ok(ParityAlgorithm::LeftSymmetric));
    assert!("middle".parse::<ParityAlgorithm>().is_err());
}
