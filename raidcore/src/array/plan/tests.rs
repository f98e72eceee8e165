//! Plans run against a model of one unit: members as byte vectors.

use super::*;
use crate::layout::{Layout, LayoutSpec, Level, UnitId, UnitMap};
use proptest::prelude::*;
use reed_solomon_erasure::Field as _;
use reed_solomon_erasure::galois_8::Field;

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
        for (home, content) in model.parities() {
            model.members[home.slot.index()] = content;
        }
        model
    }

    fn homes(&self) -> Vec<Home> {
        self.map.homes().to_vec()
    }

    fn data_homes(&self) -> Vec<Home> {
        match &self.map {
            UnitMap::Copies(homes) => homes.to_vec(),
            UnitMap::Parity { data, .. } => data.to_vec(),
        }
    }

    fn parity_home(&self) -> Option<Home> {
        self.parities().first().map(|(home, _)| *home)
    }

    /// What P and Q have to be, where the unit has them, by a field of somebody else.
    fn parities(&self) -> Vec<(Home, Vec<u8>)> {
        let UnitMap::Parity { data, parity, q } = &self.map else { return Vec::new() };
        let columns: Vec<&Vec<u8>> = data.iter().map(|home| &self.members[home.slot.index()]).collect();
        let sum = |factor: &dyn Fn(usize) -> u8| -> Vec<u8> {
            let byte = |row: usize| {
                let terms = columns.iter().enumerate().map(|(c, column)| Field::mul(factor(c), column[row]));
                terms.fold(0, |sum, term| sum ^ term)
            };
            (0..ROWS as usize).map(byte).collect()
        };
        let mut parities = vec![(*parity, sum(&|_| 1))];
        if let Some(q) = q {
            let power = |column| (column + columns.len() - q.first_column) % columns.len();
            parities.push((q.home, sum(&|column| Field::exp(2, power(column)))));
        }
        parities
    }

    /// True if copies are equal, or parity is what it has to be.
    fn is_redundant(&self) -> bool {
        match &self.map {
            UnitMap::Copies(homes) => homes
                .iter()
                .all(|home| self.members[home.slot.index()] == self.members[homes[0].slot.index()]),
            UnitMap::Parity { .. } => {
                self.parities().iter().all(|(home, content)| &self.members[home.slot.index()] == content)
            }
        }
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
        for step in &plan.sums {
            match step {
                Compute::Sum { dst, terms } => {
                    let mut result = vec![0; fetch(&terms[0].source, &scratch, spans).len()];
                    for Term { factor, source } in terms {
                        let source = fetch(source, &scratch, spans);
                        assert_eq!(source.len(), result.len());
                        result.iter_mut().zip(source).for_each(|(a, b)| *a ^= Field::mul(*factor, b));
                    }
                    match *dst {
                        Mem::Scratch(index) => scratch[index] = result,
                        Mem::Span { span, from, .. } => {
                            spans[span][from as usize..from as usize + result.len()].copy_from_slice(&result);
                        }
                    }
                }
                Compute::Parities { p, q, columns } => {
                    let columns: Vec<Vec<u8>> =
                        columns.iter().map(|mem| fetch(mem, &scratch, spans)).collect();
                    let (mut new_p, mut new_q) = (vec![0; columns[0].len()], vec![0; columns[0].len()]);
                    for (power, column) in columns.iter().enumerate() {
                        new_p.iter_mut().zip(column).for_each(|(a, b)| *a ^= b);
                        let factor = Field::exp(2, power);
                        new_q.iter_mut().zip(column).for_each(|(a, b)| *a ^= Field::mul(factor, *b));
                    }
                    (scratch[*p], scratch[*q]) = (new_p, new_q);
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

    /// Puts back what the `lost` members hold, from the others.
    fn restored(&self, lost: &[Slot]) -> Model {
        let mut model =
            Model { map: self.map.clone(), base: self.base.clone(), members: self.members.clone() };
        lost.iter().for_each(|slot| model.members[slot.index()].fill(0xa5));
        for (done, &slot) in lost.iter().enumerate() {
            let access = access_without(&lost[done..], true);
            let plan = plan_rebuild(&model.map, 0, ROWS, slot, access).unwrap();
            model.run(&plan, &mut [], access);
        }
        model
    }

    fn column(&self, column: usize) -> &Vec<u8> {
        &self.members[self.data_homes()[column].slot.index()]
    }
}

fn access_without(lost: &[Slot], rebuilding: bool) -> Access {
    let lost: SlotSet = lost.iter().copied().collect();
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

/// Members that may be lost: as many as the level survives.
fn survivable(level: Level, slots: usize) -> usize {
    match level {
        Level::Raid1 => slots - 1,
        _ => level.parities(),
    }
}

#[derive(Clone, Debug)]
struct Case {
    level: Level,
    slots: usize,
    unit: u64,
    spans: Vec<Span>,
    lost: Vec<Slot>,
    rebuilding: bool,
    unsynced: bool,
}

fn cases() -> impl Strategy<Value = Case> {
    let shape = prop_oneof![
        (Just(Level::Raid5), 3usize..=7),
        (Just(Level::Raid6), 4usize..=9),
        (Just(Level::Raid1), 2usize..=4)
    ];
    (shape, 0u64..16, any::<bool>(), any::<bool>()).prop_flat_map(
        |((level, slots), unit, rebuilding, unsynced)| {
            let columns = if level == Level::Raid1 { 1 } else { slots - level.parities() };
            let all: Vec<Slot> = (0..slots).map(Slot::from_index).collect();
            let lost = prop::sample::subsequence(all, 0..=survivable(level, slots)).prop_shuffle();
            (spans_strategy(columns), lost).prop_map(move |(spans, lost)| Case {
                level,
                slots,
                unit,
                spans,
                lost,
                rebuilding,
                unsynced,
            })
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
    fn after_a_write_everything_follows_from_any_members_that_the_level_can_do_with(case in cases()) {
        let Case { level, slots, unit, spans, lost, rebuilding, unsynced } = case;
        let mut model = Model::new(level, slots, unit);
        let mut expected = Model::new(level, slots, unit);
        // What the lost members hold is garbage from here on.
        lost.iter().for_each(|slot| model.members[slot.index()].fill(0xa5));
        let access = Access { unsynced, ..access_without(&lost, rebuilding) };
        let mut data = memory(&spans);
        let plan = plan_write(&model.map, &spans, access).unwrap();
        model.run(&plan, &mut data, access);
        for (span, data) in spans.iter().zip(&data) {
            let rows = span.row as usize..span.end() as usize;
            let copies = if level == Level::Raid1 { slots } else { 1 };
            for home in &expected.data_homes()[span.column..span.column + copies] {
                expected.members[home.slot.index()][rows.clone()].copy_from_slice(data);
            }
        }
        for (home, content) in expected.parities() {
            expected.members[home.slot.index()] = content;
        }
        prop_assert_eq!(&model.restored(&lost).members, &expected.members);
        // What was written to members that are being rebuilt is right, too.
        for span in spans.iter().filter(|_| rebuilding) {
            let rows = span.row as usize..span.end() as usize;
            prop_assert_eq!(&model.column(span.column)[rows.clone()], &expected.column(span.column)[rows]);
        }
        // And any further members may go.
        for slot in (0..slots).map(Slot::from_index).filter(|slot| !lost.contains(slot)) {
            let more: Vec<Slot> = lost.iter().copied().chain([slot]).collect();
            if more.len() <= survivable(level, slots) {
                prop_assert_eq!(&model.restored(&more).members, &expected.members);
            }
        }
    }

    #[test]
    fn a_read_without_its_home_gives_the_data_and_heals_what_it_is_told_to(case in cases(), heal: bool) {
        let Case { level, slots, unit, spans, lost, .. } = case;
        let mut model = Model::new(level, slots, unit);
        let before = model.members.clone();
        let column = |model: &Model, span: &Span| model.column(span.column)[span.row as usize..span.end() as usize].to_vec();
        let expected: Vec<Vec<u8>> = spans.iter().map(|span| column(&model, span)).collect();
        lost.iter().for_each(|slot| model.members[slot.index()].fill(0xa5));
        let access = access_without(&lost, heal);
        let plan = plan_read(&model.map, &spans, access, if heal { access.unreadable } else { SlotSet::default() }).unwrap();
        let mut data = memory(&spans);
        model.run(&plan, &mut data, access);
        prop_assert_eq!(&data, &expected);
        for slot in lost.into_iter().filter(|_| heal) {
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
    fn a_rebuild_restores_the_lost_members_and_a_resync_the_redundancy(case in cases()) {
        let Case { level, slots, unit, lost, .. } = case;
        let mut model = Model::new(level, slots, unit);
        let before = model.members.clone();
        prop_assert_eq!(&model.restored(&lost).members, &before);

        // Redundancy that does not match: parity, or every copy but the first, is garbage.
        let redundant = match &model.map {
            UnitMap::Copies(homes) => homes[1..].to_vec(),
            UnitMap::Parity { .. } => model.parities().iter().map(|(home, _)| *home).collect(),
        };
        redundant.iter().for_each(|home| model.members[home.slot.index()].fill(0x5a));
        let access = Access { unsynced: true, ..Access::default() };
        let plan = plan_resync(&model.map, 0, ROWS, access, SlotSet::default()).unwrap();
        model.run(&plan, &mut [], access);
        prop_assert_eq!(&model.members, &before);
        prop_assert!(model.is_redundant());
    }

    /// A new RAID6 on disks full of anything loses a member. What is written, and what a resync has been to, must
    /// survive the loss of any second one, whatever the rows were before.
    #[test]
    fn where_p_and_q_contradict_each_other_what_is_written_or_resynced_agrees_with_itself(
        (slots, unit, lost) in (4usize..=9, 0u64..16, 0usize..4), spans in spans_strategy(2), resync: bool,
    ) {
        let lost = Slot::from_index(lost);
        let mut model = Model::new(Level::Raid6, slots, unit);
        for (index, home) in model.homes().into_iter().enumerate() {
            let fill = |row: usize| (row * (2 * index + 3)).wrapping_mul(0x9e37) as u8;
            model.members[home.slot.index()] = (0..ROWS as usize).map(fill).collect();
        }
        let access = Access { unsynced: true, ..access_without(&[lost], false) };
        let mut data = memory(&spans);
        let (plan, rows) = if resync {
            (plan_resync(&model.map, 0, ROWS, access, SlotSet::default()).unwrap(), vec![true; ROWS as usize])
        } else {
            let written = |row: u32| spans.iter().any(|span| span.row <= row && row < span.end());
            (plan_write(&model.map, &spans, access).unwrap(), (0..ROWS).map(written).collect())
        };
        model.run(&plan, &mut data, access);
        let one = model.restored(&[lost]);
        for second in (0..slots).map(Slot::from_index).filter(|&slot| slot != lost) {
            let two = model.restored(&[lost, second]);
            for row in (0..ROWS as usize).filter(|&row| rows[row]) {
                for slot in 0..slots {
                    prop_assert_eq!(one.members[slot][row], two.members[slot][row], "row {} of {}", row, slot);
                }
            }
        }
    }
}

fn read_count(level: Level, slots: usize, columns_written: usize) -> usize {
    let model = Model::new(level, slots, 0);
    let spans: Vec<Span> = (0..columns_written).map(|column| Span { column, row: 0, len: ROWS }).collect();
    plan_write(&model.map, &spans, Access::default()).unwrap().reads.len()
}

#[test]
fn a_full_stripe_reads_nothing_and_a_partial_one_takes_the_way_with_fewer_reads() {
    assert_eq!(read_count(Level::Raid5, 5, 4), 0);
    assert_eq!(read_count(Level::Raid5, 9, 1), 2, "read-modify-write: old data and old parity");
    assert_eq!(read_count(Level::Raid5, 9, 7), 1, "reconstruct-write: the one column left");
    assert_eq!(read_count(Level::Raid5, 4, 1), 2, "a tie");
    assert_eq!(read_count(Level::Raid6, 10, 8), 0);
    assert_eq!(read_count(Level::Raid6, 10, 1), 3, "read-modify-write: old data, P and Q");
    assert_eq!(read_count(Level::Raid6, 10, 6), 2, "reconstruct-write: the two columns left");
    assert_eq!(read_count(Level::Raid6, 6, 1), 3, "a tie");
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
fn a_full_stripe_of_raid6_computes_both_parities_in_one_pass() {
    let model = Model::new(Level::Raid6, 6, 0);
    let spans: Vec<Span> = (0..4).map(|column| Span { column, row: 0, len: ROWS }).collect();
    let plan = plan_write(&model.map, &spans, Access::default()).unwrap();
    assert!(matches!(&plan.sums[..], [Compute::Parities { columns, .. }] if columns.len() == 4));
}

#[test]
fn with_three_members_of_raid6_unreadable_nothing_is_guessed() {
    let model = Model::new(Level::Raid6, 6, 0);
    let homes = model.data_homes();
    let lost: Vec<Slot> = homes[..3].iter().map(|home| home.slot).collect();
    let access = access_without(&lost, false);
    let span = |column| [Span { column, row: 0, len: 512 }];
    assert_eq!(plan_read(&model.map, &span(0), access, SlotSet::default()), Err(Unreadable));
    assert!(plan_read(&model.map, &span(3), access, SlotSet::default()).is_ok());
    assert_eq!(plan_write(&model.map, &span(0), access), Err(Unreadable));
    assert!(plan_write(&model.map, &span(3), access).is_ok(), "by read-modify-write");
    assert_eq!(plan_rebuild(&model.map, 0, ROWS, homes[0].slot, access), Err(Unreadable));
}

#[test]
fn zeroing_a_unit_zeroes_the_parity_too() {
    let mut model = Model::new(Level::Raid5, 4, 3);
    let plan = plan_zero(&model.map, ROWS, Access::default()).unwrap();
    model.run(&plan, &mut [], Access::default());
    assert!(model.members.iter().flatten().all(|&byte| byte == 0));
    assert_eq!(plan.zeroes.len(), 4);
}
