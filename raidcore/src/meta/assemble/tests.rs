//! The decision table of assembly: each case builds the superblocks that a history of starts, losses and crashes
//! leaves behind, and names what must come of it.

use super::super::create::{Candidate, CreateParams, plan_create};
use super::super::store::CopyState;
use super::*;
use crate::dev::{BlockSize, Geometry};
use crate::layout::LayoutSpec;
use uuid::Uuid;

const SIZE: u64 = 64 << 20;

fn id(n: u128) -> IncarnationUuid {
    IncarnationUuid(Uuid::from_u128(0xffff_0000 + n))
}

/// A freshly created array, its first resync done, one device per member.
fn created_as(name: &str, seed: u128, level: Level, members: usize, spares: usize) -> Vec<Found> {
    let device = |i: usize| Candidate {
        name: format!("/dev/{name}{i}"),
        geometry: Geometry::plain(SIZE, BlockSize::B512),
    };
    let params = CreateParams {
        name: name.to_owned(),
        layout: LayoutSpec::new(level, members, 64 << 10),
        members: (0..members).map(device).collect(),
        spares: (members..members + spares).map(device).collect(),
        assume_clean: true,
        now_ns: 7,
    };
    let mut next = seed;
    let superblocks = plan_create(&params, || {
        next += 1;
        Uuid::from_u128(next)
    });
    let found = |(i, superblock)| Found {
        device: format!("/dev/{name}{i}"),
        loaded: Loaded { superblock, copies: [CopyState::Valid, CopyState::Stale] },
        device_bytes: SIZE,
    };
    superblocks.unwrap().into_iter().enumerate().map(found).collect()
}

fn created(level: Level, members: usize, spares: usize) -> Vec<Found> {
    created_as("d", 0, level, members, spares)
}

/// Writes `array` to the devices `targets`.
fn put(found: &mut [Found], array: &ArrayMeta, targets: &[usize]) {
    for &i in targets {
        found[i].loaded.superblock.array = array.clone();
    }
}

fn pick(found: &[Found], which: &[usize]) -> Vec<Found> {
    which.iter().map(|&i| found[i].clone()).collect()
}

fn one(found: &[Found]) -> Result<Assembly, AssembleError> {
    let mut all = assemble(found, false);
    assert_eq!(all.len(), 1);
    all.remove(0)
}

/// Starts the array with the devices `which` only, works for a while, and stops cleanly.
fn live_alone(found: &mut [Found], which: &[usize], incarnation: u128) {
    let assembly = one(&pick(found, which)).unwrap();
    let mut array = assembly.begin(id(incarnation), 8);
    (0..10).for_each(|_| array.touch(9));
    let used: Vec<usize> = assembly.slots.iter().flatten().map(|&i| which[i]).collect();
    put(found, &array, &used);
}

fn slot_of(assembly: &Assembly) -> Vec<Option<usize>> {
    assembly.slots.clone()
}

#[test]
fn a_complete_array_starts_whole_whatever_order_its_devices_come_in() {
    let mut found = created(Level::Raid5, 3, 1);
    found.reverse();
    let assembly = one(&found).unwrap();
    assert_eq!(slot_of(&assembly), [Some(3), Some(2), Some(1)]);
    assert_eq!(
        (assembly.spares.as_slice(), assembly.resync, assembly.is_degraded()),
        (&[0][..], None, false)
    );
    let begun = assembly.begin(id(1), 8);
    assert_eq!(begun.history, assembly.array.history, "no member left, so no new incarnation");
    assert_eq!(begun.events, assembly.array.events + 1);
}

#[test]
fn devices_of_two_arrays_make_two_arrays() {
    let mut found = created_as("a", 0, Level::Raid1, 2, 0);
    found.append(&mut created_as("b", 1000, Level::Raid1, 2, 0));
    found.swap(1, 2);
    let names: Vec<String> =
        assemble(&found, false).into_iter().map(|one| one.unwrap().array.name.to_string()).collect();
    assert_eq!(names, ["a", "b"]);
    assert!(assemble(&[], false).is_empty());
}

#[test]
fn an_array_without_one_member_starts_degraded_and_writes_down_who_is_missing() {
    let found = created(Level::Raid5, 4, 0);
    let assembly = one(&pick(&found, &[0, 1, 3])).unwrap();
    assert_eq!(slot_of(&assembly), [Some(0), Some(1), None, Some(2)]);
    assert_eq!(assembly.lost[0].slot, Slot(2));
    let begun = assembly.begin(id(1), 8);
    assert_eq!(begun.in_slot(Slot(2)).unwrap().state, MemberState::Missing);
    assert_eq!((begun.history.last().uuid, begun.history.last().start_events), (id(1), begun.events));
}

#[test]
fn too_few_members_are_refused_and_each_lost_one_is_named() {
    let mut found = created(Level::Raid5, 4, 0);
    live_alone(&mut found, &[0, 1, 2], 1);
    let error = one(&pick(&found, &[0, 2, 3])).unwrap_err();
    let AssembleError::TooFewMembers { lost, .. } = &error else { panic!("{error}") };
    assert_eq!(lost.iter().map(|lost| lost.slot).collect::<Vec<_>>(), [Slot(1), Slot(3)]);
    let text = error.to_string();
    assert!(
        text.starts_with("array d: 2 of 4 slots have no usable member, more than raid5 survives"),
        "{text}"
    );
    assert!(text.contains("was not found; slot 3: /dev/d3 is stale: the array calls it missing"), "{text}");
    assert!(text.contains("(event count 1, the array's is 12)"), "{text}");
    for (level, members, here) in [(Level::Raid0, 2, 1), (Level::Raid10, 4, 1)] {
        let found = created(level, members, 0);
        assert!(matches!(one(&found[..here]), Err(AssembleError::TooFewMembers { .. })), "{level}");
    }
}

#[test]
fn raid10_survives_losses_of_different_pairs_only() {
    let found = created(Level::Raid10, 4, 0);
    assert!(one(&pick(&found, &[0, 2])).unwrap().is_degraded());
    assert!(one(&pick(&found, &[2, 3])).is_err());
    assert_eq!(one(&pick(&created(Level::Raid1, 3, 0), &[2])).unwrap().lost.len(), 2);
}

#[test]
fn a_member_that_slept_through_writes_is_left_out_with_both_event_counts() {
    let mut found = created(Level::Raid1, 2, 0);
    live_alone(&mut found, &[0], 1);
    let assembly = one(&found).unwrap();
    assert_eq!(slot_of(&assembly), [Some(0), None]);
    let left_out = &assembly.left_out[0];
    assert_eq!((left_out.index, left_out.events, left_out.newest_events), (1, 1, 12));
    assert_eq!(left_out.reason, LeftOutReason::Out(MemberState::Missing));
    let begun = assembly.begin(id(2), 8);
    assert_eq!(begun.history, assembly.array.history, "it was degraded before: the set in sync is the same");
}

#[test]
fn an_old_copy_of_a_member_is_left_out_though_the_table_calls_it_in_sync() {
    let mut found = created(Level::Raid5, 3, 0);
    let mut array = found[0].loaded.superblock.array.clone();
    array.touch(8);
    array.touch(8);
    put(&mut found, &array, &[0, 1]);
    let assembly = one(&found).unwrap();
    assert_eq!(assembly.left_out[0].reason, LeftOutReason::Stale);
    assert!(assembly.left_out[0].to_string().contains("(event count 1, the array's is 3)"));
    let begun = assembly.begin(id(1), 8);
    assert_eq!(begun.in_slot(Slot(2)).unwrap().state, MemberState::Missing);
}

#[test]
fn a_crash_in_the_middle_of_a_metadata_update_costs_no_member() {
    let mut found = created(Level::Raid5, 4, 0);
    let mut array = found[0].loaded.superblock.array.clone();
    array.touch(8);
    array.clean = false;
    put(&mut found, &array, &[2]);
    let assembly = one(&found).unwrap();
    assert!(!assembly.is_degraded() && assembly.left_out.is_empty());
    assert_eq!(assembly.resync, Some(0), "the newest superblock announces writes");
    assert_eq!(assembly.lagging, [0, 1, 3]);
}

/// Found on paper: assembly raised the event count while some members still lagged by one, so that a second
/// crash, in the middle of that, left those two behind, and the array without most of its members.
#[test]
fn crash_after_crash_while_starting_costs_no_member() {
    let mut found = created(Level::Raid5, 4, 0);
    let mut array = found[0].loaded.superblock.array.clone();
    array.touch(8);
    put(&mut found, &array, &[2]);
    for round in 0..4 {
        // A crash after each number of the writes that starting makes: the catching up, then the beginning.
        let assembly = one(&found).unwrap();
        assert!(!assembly.is_degraded(), "round {round}");
        let begun = assembly.begin(id(round), 9);
        for crash_after in 0..assembly.lagging.len() {
            let mut crashed = found.clone();
            put(&mut crashed, &assembly.array, &assembly.lagging[..crash_after]);
            assert!(!one(&crashed).unwrap().is_degraded());
        }
        put(&mut found, &assembly.array, &assembly.lagging);
        for crash_after in 0..4 {
            let mut crashed = found.clone();
            put(&mut crashed, &begun, &[3, 1, 0, 2][..crash_after]);
            assert!(!one(&crashed).unwrap().is_degraded());
        }
        put(&mut found, &begun, &[3]);
    }
}

#[test]
fn a_crash_while_the_survivors_are_told_of_a_loss_costs_no_further_member() {
    let mut found = created(Level::Raid5, 4, 0);
    let mut array = found[0].loaded.superblock.array.clone();
    array.change_members(id(1), 8, |members| members[3].state = MemberState::Faulty);
    put(&mut found, &array, &[0]);
    let assembly = one(&found).unwrap();
    assert_eq!(slot_of(&assembly), [Some(0), Some(1), Some(2), None]);
    assert_eq!(assembly.left_out[0].reason, LeftOutReason::Out(MemberState::Faulty));
}

#[test]
fn a_failed_member_that_still_calls_itself_in_sync_is_left_out() {
    let mut found = created(Level::Raid1, 2, 0);
    let mut array = found[0].loaded.superblock.array.clone();
    array.change_members(id(1), 8, |members| members[1].state = MemberState::Faulty);
    put(&mut found, &array, &[0]);
    let assembly = one(&found).unwrap();
    assert_eq!(assembly.left_out[0].reason, LeftOutReason::Out(MemberState::Faulty));
    assert!(one(&pick(&found, &[1])).is_ok(), "alone it knows nothing of that");
}

#[test]
fn halves_that_were_each_written_alone_are_refused_with_both_histories() {
    let mut found = created(Level::Raid1, 2, 0);
    live_alone(&mut found, &[0], 1);
    live_alone(&mut found, &[1], 2);
    let error = one(&found).unwrap_err();
    let AssembleError::SplitBrain { halves, .. } = &error else { panic!("{error}") };
    assert_eq!(halves[0].events, halves[1].events, "the event counts alone tell nothing");
    assert_eq!(halves[0].history.last().uuid, id(1));
    let text = error.to_string();
    assert!(text.contains("/dev/d0 [events 12, history ") && text.contains("/dev/d1 [events 12, "), "{text}");
    live_alone(&mut found, &[0], 3);
    assert!(matches!(one(&found), Err(AssembleError::SplitBrain { .. })), "more events do not win");
}

#[test]
fn a_half_failed_at_run_time_and_then_started_alone_is_a_split_brain() {
    let mut found = created(Level::Raid10, 4, 0);
    let mut array = found[0].loaded.superblock.array.clone();
    array.change_members(id(1), 8, |members| members[1].state = MemberState::Faulty);
    array.change_members(id(2), 8, |members| members[3].state = MemberState::Faulty);
    put(&mut found, &array, &[0, 2]);
    live_alone(&mut found, &[1, 3], 3);
    let error = one(&found).unwrap_err();
    let AssembleError::SplitBrain { halves, .. } = &error else { panic!("{error}") };
    assert_eq!(halves.iter().map(|half| half.devices.len()).collect::<Vec<_>>(), [2, 2]);
    assert!(one(&pick(&found, &[0, 2])).is_ok() && one(&pick(&found, &[1, 3])).is_ok());
}

#[test]
fn a_metadata_update_that_reached_one_member_before_that_one_was_lost_is_no_split_brain() {
    let mut found = created(Level::Raid5, 4, 0);
    let mut abandoned = found[0].loaded.superblock.array.clone();
    abandoned.change_members(id(1), 8, |members| members[3].state = MemberState::Faulty);
    (0..100).for_each(|_| abandoned.touch(8));
    put(&mut found, &abandoned, &[0]);
    live_alone(&mut found, &[1, 2, 3], 2);
    let assembly = one(&found).unwrap();
    assert_eq!(slot_of(&assembly), [None, Some(1), Some(2), Some(3)]);
    assert_eq!(assembly.left_out[0].reason, LeftOutReason::Abandoned);
}

#[test]
fn two_devices_that_are_the_same_member_are_refused_and_named() {
    let mut found = created(Level::Raid1, 2, 0);
    found.push(Found { device: "/dev/copy".to_owned(), ..found[1].clone() });
    let error = one(&found).unwrap_err();
    assert!(error.to_string().contains("/dev/d1 and /dev/copy both are member"), "{error}");
}

#[test]
fn a_device_that_has_shrunk_is_left_out_and_named() {
    let mut found = created(Level::Raid1, 2, 0);
    found[0].device_bytes -= 1 << 20;
    let assembly = one(&found).unwrap();
    assert_eq!(slot_of(&assembly), [None, Some(1)]);
    assert_eq!(
        assembly.left_out[0].to_string(),
        "/dev/d0 has shrunk: it has 66060288 bytes and its data needs 67108864"
    );
    let raid0 = {
        let mut found = created(Level::Raid0, 2, 0);
        found[0].device_bytes = 0;
        one(&found).unwrap_err().to_string()
    };
    assert!(raid0.contains("slot 0: /dev/d0 has shrunk"), "{raid0}");
}

#[test]
fn a_device_removed_from_the_table_is_left_out() {
    let mut found = created(Level::Raid1, 2, 0);
    let stranger = MemberUuid(Uuid::from_u128(0xabc));
    let mut array = found[0].loaded.superblock.array.clone();
    array.change_members(id(1), 8, |members| {
        members[1].uuid = stranger;
        members[1].state = MemberState::Missing;
    });
    put(&mut found, &array, &[0]);
    assert_eq!(one(&found).unwrap().left_out[0].reason, LeftOutReason::Removed);
}

#[test]
fn after_an_unclean_stop_redundancy_is_completed_where_there_is_any() {
    for (level, members, here, expected) in [
        (Level::Raid0, 2, &[0, 1][..], None),
        (Level::Raid1, 2, &[0, 1], Some(0)),
        (Level::Raid1, 3, &[0, 1], Some(0)),
        (Level::Raid1, 2, &[1], None),
        (Level::Raid5, 3, &[0, 1, 2], Some(0)),
        (Level::Raid6, 4, &[0, 1, 2, 3], Some(0)),
        (Level::Raid10, 4, &[0, 1, 2], Some(0)),
    ] {
        let mut found = created(level, members, 0);
        let mut array = found[0].loaded.superblock.array.clone();
        array.touch(8);
        array.clean = false;
        put(&mut found, &array, &(0..members).collect::<Vec<_>>());
        let assembly = one(&pick(&found, here)).unwrap();
        assert_eq!(assembly.resync, expected, "{level} with {here:?}");
        let begun = assembly.begin(id(1), 9);
        assert_eq!((begun.clean, begun.resync), (true, expected));
    }
}

#[test]
fn a_resync_goes_on_from_its_checkpoint_after_a_clean_stop() {
    let mut found = created(Level::Raid5, 3, 0);
    found.iter_mut().for_each(|item| item.loaded.superblock.array.resync = Some(1 << 20));
    assert_eq!(one(&found).unwrap().resync, Some(1 << 20));
}

#[test]
fn a_raid5_both_dirty_and_degraded_starts_only_when_forced() {
    for resync in [None, Some(4096)] {
        let mut found = created(Level::Raid5, 3, 0);
        for item in &mut found {
            item.loaded.superblock.array.clean = resync.is_some();
            item.loaded.superblock.array.resync = resync;
        }
        let here = pick(&found, &[0, 2]);
        let error = one(&here).unwrap_err();
        assert!(matches!(error, AssembleError::DirtyDegraded { .. }));
        assert!(error.to_string().contains("slot 1: member") && error.to_string().contains("--force"));
        let forced = assemble(&here, true).remove(0).unwrap();
        assert_eq!((forced.resync, forced.lost.len()), (None, 1));
        assert!(one(&found).is_ok());
    }
}

/// A cleanly stopped array was said to be "not stopped cleanly", and who had attached a stale device was told to
/// attach the missing one.
#[test]
fn why_parity_is_in_doubt_and_what_can_be_done_is_said_as_it_is() {
    let mut found = created(Level::Raid5, 3, 0);
    for (clean, resync, why, what) in [
        (false, Some(4096), "was not stopped cleanly", "blocks written last may"),
        (true, Some(4096), "was stopped before its resync had finished", "from byte 4096 of the data on may"),
        (true, Some(0), "was stopped before its resync had finished", "what was on it may"),
    ] {
        for item in &mut found {
            (item.loaded.superblock.array.clean, item.loaded.superblock.array.resync) = (clean, resync);
        }
        let said = one(&pick(&found, &[0, 2])).unwrap_err().to_string();
        for part in [why, what, "Attach the missing device, or accept that with --force"] {
            assert!(said.contains(part), "{part:?} is not in: {said}");
        }
    }
    let mut newer = found[0].loaded.superblock.array.clone();
    newer.change_members(id(1), 8, |members| members[1].state = MemberState::Faulty);
    newer.clean = false;
    put(&mut found, &newer, &[0, 2]);
    let said = one(&found).unwrap_err().to_string();
    assert!(said.contains("/dev/d1 is stale") && said.contains("--force"), "{said}");
    assert!(!said.to_lowercase().contains("attach"), "{said}");
}

#[test]
fn a_rebuild_goes_on_from_its_checkpoint_and_begins_anew_after_an_unclean_stop() {
    let mut found = created(Level::Raid1, 2, 0);
    let mut array = found[0].loaded.superblock.array.clone();
    array.change_members(id(1), 8, |members| {
        members[1].state = MemberState::Rebuilding;
        members[1].rebuilt_bytes = 1 << 20;
    });
    for (clean, expected) in [(true, 1 << 20), (false, 0)] {
        array.clean = clean;
        put(&mut found, &array, &[0, 1]);
        let assembly = one(&found).unwrap();
        assert_eq!(slot_of(&assembly), [Some(0), Some(1)]);
        assert_eq!(assembly.lost[0].state, MemberState::Rebuilding);
        assert_eq!(assembly.begin(id(2), 9).in_slot(Slot(1)).unwrap().rebuilt_bytes, expected);
    }
    assert!(matches!(one(&pick(&found, &[1])), Err(AssembleError::TooFewMembers { .. })));
}

#[test]
fn features_this_version_must_not_write_with_make_the_array_read_only() {
    let mut found = created(Level::Raid1, 2, 0);
    found.iter_mut().for_each(|item| item.loaded.superblock.array.ro_compat = 8);
    assert!(one(&found).unwrap().read_only);
}

#[test]
fn a_spare_that_lags_behind_is_still_a_spare() {
    let mut found = created(Level::Raid5, 3, 1);
    live_alone(&mut found, &[0, 1, 2], 1);
    assert_eq!(one(&found).unwrap().spares, [3]);
}
