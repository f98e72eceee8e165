//! Plans run against a model of one unit: members as byte vectors.

use super::*;
use crate::layout::{Layout, LayoutSpec, Level, UnitId, UnitMap};
use proptest::prelude::*;
use smallvec::SmallVec;

const ROWS: u32 = 4096;

/// One unit on its members, each a vector of `ROWS` bytes.
struct Model {
    map: UnitMap,
    base: Vec<u64>,
    members: Vec<Vec<u8>>,
}

impl Model {
    /// A unit filled with pseudo-random data, in sync.
    fn new(level: Level, slots: usize, unit: u64) -> Model {
        let layout = Layout::new(LayoutSpec::new(level, slots, ROWS)).unwrap();
        let map = layout.unit_map(UnitId(unit));
        let mut model = Model { map, base: vec![0; slots], members: vec![vec![0; ROWS as usize]; slots] };
        for home in model.homes() {
            model.base[home.slot.index()] = home.offset;
        }
        for (column, home) in model.data_homes().into_iter().enumerate() {
            let fill = |row| (row as u64 * 31 + column as u64 * 7 + unit).wrapping_mul(0x9e37) as u8;
            model.members[home.slot.index()] = (0..ROWS as usize).map(fill).collect();
        }
        if let UnitMap::Copies(homes) = &model.map {
            let first = model.members[homes[0].slot.index()].clone();
            homes.iter().for_each(|home| model.members[home.slot.index()] = first.clone());
        }
        if let Some(parity) = model.parity_home() {
            model.members[parity.slot.index()] = model.xor_of_columns();
        }
        model
    }

    fn homes(&self) -> Vec<Home> {
        self.data_homes().into_iter().chain(self.parity_home()).collect()
    }

    fn data_homes(&self) -> Vec<Home> {
        match &self.map {
            UnitMap::Copies(homes) => homes.to_vec(),
            UnitMap::Parity { data, .. } => data.to_vec(),
        }
    }

    fn parity_home(&self) -> Option<Home> {
        match &self.map {
            UnitMap::Copies(_) => None,
            UnitMap::Parity { parity, .. } => Some(*parity),
        }
    }

    fn xor_of_columns(&self) -> Vec<u8> {
        let mut xor = vec![0; ROWS as usize];
        for home in self.data_homes() {
            xor.iter_mut().zip(&self.members[home.slot.index()]).for_each(|(a, b)| *a ^= b);
        }
        xor
    }

    /// Runs a plan; `spans` is the memory of the spans. Asserts that only permitted members are touched.
    fn run(&mut self, plan: &Plan, spans: &mut [Vec<u8>], access: Access) {
        let mut scratch: Vec<Vec<u8>> = plan.scratch.iter().map(|&len| vec![0xee; len as usize]).collect();
        for step in &plan.reads {
            assert!(!access.unreadable.contains(step.home.slot), "reads {:?}", step.home);
            let range = self.range(step.home, scratch[step.into].len());
            scratch[step.into].copy_from_slice(&self.members[step.home.slot.index()][range]);
        }
        let fetch = |mem: &Mem, scratch: &[Vec<u8>], spans: &[Vec<u8>]| match *mem {
            Mem::Scratch(index) => scratch[index].clone(),
            Mem::Span { span, from, len } => spans[span][from as usize..(from + len) as usize].to_vec(),
        };
        for step in &plan.xors {
            let mut result = fetch(&step.sources[0], &scratch, spans);
            for source in &step.sources[1..] {
                let source = fetch(source, &scratch, spans);
                assert_eq!(source.len(), result.len());
                result.iter_mut().zip(source).for_each(|(a, b)| *a ^= b);
            }
            match step.dst {
                Mem::Scratch(index) => scratch[index] = result,
                Mem::Span { span, from, .. } => {
                    spans[span][from as usize..from as usize + result.len()].copy_from_slice(&result);
                }
            }
        }
        for step in &plan.writes {
            let data = fetch(&step.from, &scratch, spans);
            if step.unless_equal.is_some_and(|present| scratch[present] == data) {
                continue;
            }
            self.write(step.home, &data, access);
        }
        for step in &plan.zeroes {
            self.write(step.home, &vec![0; step.len as usize], access);
        }
    }

    fn write(&mut self, home: Home, data: &[u8], access: Access) {
        assert!(!access.unwritable.contains(home.slot), "writes {home:?}");
        let range = self.range(home, data.len());
        self.members[home.slot.index()][range].copy_from_slice(data);
    }

    fn range(&self, home: Home, len: usize) -> std::ops::Range<usize> {
        let from = (home.offset - self.base[home.slot.index()]) as usize;
        from..from + len
    }

    /// What a column reads as, without the member `missing`.
    fn read_without(&self, column: usize, missing: Option<Slot>) -> Vec<u8> {
        let homes = self.data_homes();
        match &self.map {
            UnitMap::Copies(_) => {
                let home = homes.iter().find(|home| Some(home.slot) != missing).unwrap();
                self.members[home.slot.index()].clone()
            }
            UnitMap::Parity { parity, .. } if Some(homes[column].slot) == missing => {
                let mut xor = self.members[parity.slot.index()].clone();
                for home in homes.iter().filter(|home| Some(home.slot) != missing) {
                    xor.iter_mut().zip(&self.members[home.slot.index()]).for_each(|(a, b)| *a ^= b);
                }
                xor
            }
            UnitMap::Parity { .. } => self.members[homes[column].slot.index()].clone(),
        }
    }
}

fn access_without(lost: Option<Slot>, rebuilding: bool) -> Access {
    let lost: SlotSet = lost.into_iter().collect();
    Access {
        unreadable: lost,
        unwritable: if rebuilding { SlotSet::default() } else { lost },
        ..Access::default()
    }
}

fn spans_strategy(columns: usize) -> impl Strategy<Value = Vec<Span>> {
    prop::collection::vec((0..columns, 0..ROWS, 1..ROWS), 1..6).prop_map(|raw| {
        let mut spans: Vec<Span> = Vec::new();
        for (column, row, len) in raw {
            let span = Span { column, row, len: len.min(ROWS - row) };
            if !spans.iter().any(|other| other.overlaps(&span)) {
                spans.push(span);
            }
        }
        spans
    })
}

fn cases() -> impl Strategy<Value = (Level, usize, u64, Vec<Span>, Option<Slot>, bool, bool)> {
    let shape = prop_oneof![(Just(Level::Raid5), 3usize..=7), (Just(Level::Raid1), 2usize..=4)];
    (shape, 0u64..16, any::<bool>(), any::<bool>()).prop_flat_map(
        |((level, slots), unit, rebuilding, unsynced)| {
            let columns = if level == Level::Raid5 { slots - 1 } else { 1 };
            let lost = prop::option::of((0..slots).prop_map(Slot::from_index));
            (
                Just(level),
                Just(slots),
                Just(unit),
                spans_strategy(columns),
                lost,
                Just(rebuilding),
                Just(unsynced),
            )
        },
    )
}

fn memory(spans: &[Span]) -> Vec<Vec<u8>> {
    let fill =
        |index: usize, span: &Span| (0..span.len).map(|i| (i * 13 + index as u32 * 101 + 5) as u8).collect();
    spans.iter().enumerate().map(|(index, span)| fill(index, span)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn after_a_write_every_column_reads_right_with_any_further_member_missing(
        (level, slots, unit, spans, lost, rebuilding, unsynced) in cases()
    ) {
        let mut model = Model::new(level, slots, unit);
        let columns = if level == Level::Raid5 { slots - 1 } else { 1 };
        let mut expected: Vec<Vec<u8>> = (0..columns).map(|column| model.read_without(column, None)).collect();
        // What the lost member holds is garbage from here on.
        if let Some(slot) = lost {
            model.members[slot.index()].fill(0xa5);
        }
        let access = Access { unsynced, ..access_without(lost, rebuilding) };
        let mut data = memory(&spans);
        let plan = plan_write(&model.map, &spans, access).unwrap();
        model.run(&plan, &mut data, access);
        for (span, data) in spans.iter().zip(&data) {
            expected[span.column][span.row as usize..span.end() as usize].copy_from_slice(data);
        }
        for (column, expected) in expected.iter().enumerate() {
            prop_assert!(&model.read_without(column, lost) == expected, "column {} is wrong", column);
            if lost.is_none() {
                for slot in (0..slots).map(Slot::from_index) {
                    prop_assert!(&model.read_without(column, Some(slot)) == expected, "column {column} without {slot}");
                }
            }
        }
    }

    #[test]
    fn a_read_without_its_home_gives_the_data_and_heals_what_it_is_told_to(
        (level, slots, unit, spans, lost, heal, _) in cases()
    ) {
        let mut model = Model::new(level, slots, unit);
        let before = model.members.clone();
        if let Some(slot) = lost {
            model.members[slot.index()].fill(0xa5);
        }
        let expected: Vec<Vec<u8>> = spans.iter().map(|s| model.read_without(s.column, lost)[s.row as usize..s.end() as usize].to_vec()).collect();
        let access = access_without(lost, heal);
        let plan = plan_read(&model.map, &spans, access, if heal { access.unreadable } else { SlotSet::default() }).unwrap();
        let mut data = memory(&spans);
        model.run(&plan, &mut data, access);
        prop_assert_eq!(&data, &expected);
        if let (Some(slot), true) = (lost, heal) {
            for span in &spans {
                let is_home = model.data_homes().iter().enumerate().any(|(c, h)| h.slot == slot && (c == span.column || level == Level::Raid1));
                let rows = span.row as usize..span.end() as usize;
                if is_home {
                    prop_assert_eq!(&model.members[slot.index()][rows.clone()], &before[slot.index()][rows]);
                }
            }
        }
    }

    #[test]
    fn a_rebuild_restores_the_lost_member_and_a_resync_the_redundancy(
        (level, slots, unit, _spans, lost, _, _) in cases()
    ) {
        let mut model = Model::new(level, slots, unit);
        let before = model.members.clone();
        let target = lost.unwrap_or(Slot(0));
        model.members[target.index()].fill(0xa5);
        let plan = plan_rebuild(&model.map, 0, ROWS, target, access_without(Some(target), true)).unwrap();
        model.run(&plan, &mut [], access_without(Some(target), true));
        prop_assert_eq!(&model.members, &before);

        // Redundancy that does not match: parity, or every copy but the first, is garbage.
        let redundant = match &model.map {
            UnitMap::Copies(homes) => homes[1..].to_vec(),
            UnitMap::Parity { parity, .. } => vec![*parity],
        };
        redundant.iter().for_each(|home| model.members[home.slot.index()].fill(0x5a));
        let access = Access { unsynced: true, ..Access::default() };
        let plan = plan_resync(&model.map, 0, ROWS, access).unwrap();
        model.run(&plan, &mut [], access);
        prop_assert_eq!(&model.members, &before);
    }
}

fn read_count(slots: usize, columns_written: usize) -> usize {
    let model = Model::new(Level::Raid5, slots, 0);
    let spans: Vec<Span> = (0..columns_written).map(|column| Span { column, row: 0, len: ROWS }).collect();
    plan_write(&model.map, &spans, Access::default()).unwrap().reads.len()
}

#[test]
fn a_full_stripe_reads_nothing_and_a_partial_one_takes_the_way_with_fewer_reads() {
    assert_eq!(read_count(5, 4), 0);
    assert_eq!(read_count(9, 1), 2, "read-modify-write: old data and old parity");
    assert_eq!(read_count(9, 7), 1, "reconstruct-write: the one column left");
    assert_eq!(read_count(4, 1), 2, "a tie");
}

#[test]
fn in_a_unit_that_is_not_in_sync_the_old_parity_is_not_trusted() {
    let model = Model::new(Level::Raid5, 9, 0);
    let spans = [Span { column: 3, row: 0, len: 512 }];
    let access = Access { unsynced: true, ..Access::default() };
    let plan = plan_write(&model.map, &spans, access).unwrap();
    let parity = model.parity_home().unwrap();
    assert_eq!(plan.reads.len(), 7);
    assert!(plan.reads.iter().all(|step| step.home.slot != parity.slot));
}

#[test]
fn with_two_members_unreadable_nothing_is_guessed() {
    let model = Model::new(Level::Raid5, 4, 0);
    let homes = model.data_homes();
    let lost: SlotSet = [homes[0].slot, homes[1].slot].into_iter().collect();
    let access = Access { unreadable: lost, ..Access::default() };
    let span = |column| [Span { column, row: 0, len: 512 }];
    assert_eq!(plan_read(&model.map, &span(0), access, SlotSet::default()), Err(Unreadable));
    assert_eq!(plan_write(&model.map, &span(0), access), Err(Unreadable));
    assert_eq!(plan_rebuild(&model.map, 0, ROWS, homes[0].slot, access), Err(Unreadable));
    assert!(
        plan_write(&model.map, &span(2), access).is_ok() || homes.len() == 3,
        "the third column can be modified"
    );
}

#[test]
fn zeroing_a_unit_zeroes_the_parity_too() {
    let mut model = Model::new(Level::Raid5, 4, 3);
    let plan = plan_zero(&model.map, ROWS, Access::default()).unwrap();
    model.run(&plan, &mut [], Access::default());
    assert!(model.members.iter().flatten().all(|&byte| byte == 0));
    let sources: SmallVec<[Home; 4]> = plan.zeroes.iter().map(|step| step.home).collect();
    assert_eq!(sources.len(), 4);
}
