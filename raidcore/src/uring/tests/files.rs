//! Files on a disk and in memory behave as a `Vec<u8>`, and every failure has its name.

use super::*;
use crate::dev::{BlockSize, Checked, OpKind};
use proptest::prelude::*;

const SIZE: u64 = 1 << 20;

#[derive(Clone, Debug)]
enum Action {
    Read { block: u64, blocks: u64 },
    Write { block: u64, blocks: u64, seed: u8, fua: bool },
    Zero { block: u64, blocks: u64, unmap: bool, fua: bool },
    Flush,
}

fn action() -> impl Strategy<Value = Action> {
    let range = || (0..SIZE / 512, 1..300u64).prop_map(|(at, n)| (at, n.min(SIZE / 512 - at)));
    prop_oneof![
        range().prop_map(|(block, blocks)| Action::Read { block, blocks }),
        (range(), any::<u8>(), any::<bool>()).prop_map(|((block, blocks), seed, fua)| Action::Write {
            block,
            blocks,
            seed,
            fua
        }),
        (range(), any::<bool>(), any::<bool>()).prop_map(|((block, blocks), unmap, fua)| Action::Zero {
            block,
            blocks,
            unmap,
            fua
        }),
        Just(Action::Flush),
    ]
}

fn follow(ring: &Ring, path: &std::path::Path, how: OpenHow, actions: &[Action]) {
    let mut file = File::open(path, ring, how).unwrap();
    let mut model = vec![0u8; SIZE as usize];
    for action in actions {
        match *action {
            Action::Read { block, blocks } => {
                let (at, len) = ((block * 512) as usize, (blocks * 512) as usize);
                assert_eq!(read(ring, &mut file, at as u64, len).unwrap(), model[at..at + len]);
            }
            Action::Write { block, blocks, seed, fua } => {
                let bytes: Vec<u8> = (0..blocks * 512).map(|i| (i / 97) as u8 ^ seed).collect();
                write(ring, &mut file, block * 512, &bytes, fua).unwrap();
                model[(block * 512) as usize..][..bytes.len()].copy_from_slice(&bytes);
            }
            Action::Zero { block, blocks, unmap, fua } => {
                let (offset, len) = (block * 512, blocks * 512);
                run(ring, &mut file, Op::WriteZeroes { offset, len, fua, unmap }).result.unwrap();
                model[offset as usize..][..len as usize].fill(0);
            }
            Action::Flush => run(ring, &mut file, Op::Flush).result.unwrap(),
        }
    }
    drop(file);
    assert!(std::fs::read(path).unwrap() == model, "the file itself holds what was written");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_file_on_a_disk_behaves_as_a_vector(
        actions in prop::collection::vec(action(), 1..25),
        direct in any::<bool>(),
        fixed in any::<bool>(),
    ) {
        let registered_files = if fixed { 8 } else { 0 };
        let ring =
            ring_with(&RingConfig { fixed_buffers: fixed, registered_files, ..RingConfig::default() });
        follow(&ring, &on_disk(SIZE).path, OpenHow { direct, ..OpenHow::MEMBER }, &actions);
        prop_assert_eq!(ring.slab().usage().used_bytes, 0);
    }

    #[test]
    fn a_file_in_memory_behaves_as_a_vector(actions in prop::collection::vec(action(), 1..25)) {
        let ring = ring();
        follow(&ring, &in_memory(SIZE).path, OpenHow::MEMBER, &actions);
        prop_assert_eq!(ring.slab().usage().used_bytes, 0);
    }
}

#[test]
fn large_and_many_piece_transfers_arrive_whole_on_disk_and_in_memory() {
    for place in [on_disk(32 << 20), in_memory(32 << 20)] {
        let ring = ring();
        let mut file = File::open(&place.path, &ring, OpenHow::MEMBER).unwrap();
        let bytes: Vec<u8> = (0..8 << 20).map(|i: u32| (i / 511) as u8).collect();
        write(&ring, &mut file, 4096, &bytes, true).unwrap();
        assert!(read(&ring, &mut file, 4096, bytes.len()).unwrap() == bytes);
        let pieces = (0..100).map(|_| ring.slab().alloc(4096).unwrap()).collect();
        let done = run(&ring, &mut file, Op::Read { offset: 4096, bufs: pieces });
        done.result.unwrap();
        assert!(done.bufs.iter().flat_map(|buf| buf.iter()).eq(&bytes[..100 * 4096]));
    }
}

#[test]
fn memory_that_direct_io_does_not_take_is_copied_through_memory_that_it_does() {
    let ring = ring();
    let place = on_disk(SIZE);
    let mut file = File::open(&place.path, &ring, OpenHow::MEMBER).unwrap();
    let bytes: Vec<u8> = (0..8192u32).map(|i| (i / 7) as u8).collect();
    let odd = |at: usize| {
        let mut buf = ring.slab().alloc(16384).unwrap();
        drop(buf.split_to(at));
        buf.truncate(8192);
        buf
    };
    let mut buf = odd(28);
    buf.copy_from_slice(&bytes);
    let data = smallvec::smallvec![buf.freeze()];
    run(&ring, &mut file, Op::Write { offset: 4096, data, fua: false }).result.unwrap();
    let mut first = odd(100);
    let second = {
        let head = first.split_to(1001);
        std::mem::replace(&mut first, head)
    };
    let done = run(&ring, &mut file, Op::Read { offset: 4096, bufs: smallvec::smallvec![first, second] });
    done.result.unwrap();
    assert!(done.bufs.iter().flat_map(|buf| buf.iter()).eq(bytes.iter()));
    drop(done.bufs);
    assert_eq!(ring.slab().usage().used_bytes, 0);
}

#[test]
fn discarded_ranges_of_a_file_read_as_zeroes_and_its_size_stays() {
    for place in [on_disk(SIZE), in_memory(SIZE)] {
        let ring = ring();
        let mut file = File::open(&place.path, &ring, OpenHow::MEMBER).unwrap();
        assert!(file.geometry().discard && file.geometry().unmap_zeroes);
        write(&ring, &mut file, 0, &[5; 65536], false).unwrap();
        run(&ring, &mut file, Op::Discard { offset: 4096, len: 8192 }).result.unwrap();
        let bytes = read(&ring, &mut file, 0, 65536).unwrap();
        assert!(bytes[4096..12288].iter().all(|&b| b == 0));
        assert!(bytes[..4096].iter().chain(&bytes[12288..]).all(|&b| b == 5));
        assert_eq!(std::fs::metadata(&place.path).unwrap().len(), SIZE);
    }
}

#[test]
fn zeroing_what_no_fallocate_zeroes_is_written_in_bounded_pieces() {
    // tmpfs can punch holes and cannot zero ranges, so that zeroes without unmap are written: here in 6 rounds.
    let ring = ring();
    let place = in_memory(6 << 20);
    let mut file = File::open(&place.path, &ring, OpenHow::MEMBER).unwrap();
    write(&ring, &mut file, 0, &vec![9; 6 << 20], false).unwrap();
    let len = (6 << 20) - 4096;
    run(&ring, &mut file, Op::WriteZeroes { offset: 4096, len, fua: true, unmap: false }).result.unwrap();
    assert_eq!(read(&ring, &mut file, 0, 4096).unwrap(), [9; 4096]);
    assert!(read(&ring, &mut file, 4096, len as usize).unwrap().iter().all(|&b| b == 0));
}

/// Such a read was a short one, which an array takes for a bad block: it wrote the block again, the file grew, and
/// what was between the old and the new end was then read as zeroes.
#[test]
fn a_file_that_was_truncated_is_gone_from_the_first_read_past_its_end_on() {
    for place in [on_disk(SIZE), in_memory(SIZE)] {
        let ring = ring();
        let mut file = File::open(&place.path, &ring, OpenHow::MEMBER).unwrap();
        truncate(&place, 8192);
        assert_eq!(read(&ring, &mut file, 4096, 4096).unwrap().len(), 4096);
        assert_eq!(read(&ring, &mut file, 4096, 65536), Err(ErrorKind::Gone));
        assert_eq!(write(&ring, &mut file, 65536, &[1; 4096], false), Err(ErrorKind::Gone));
        assert_eq!(run(&ring, &mut file, Op::Flush).result.unwrap_err().kind, ErrorKind::Gone);
        assert_eq!(read(&ring, &mut file, 0, 4096), Err(ErrorKind::Gone), "once gone, it stays gone");
        assert_eq!(std::fs::metadata(&place.path).unwrap().len(), 8192);
        assert_eq!(ring.slab().usage().used_bytes, 0);
    }
}

#[test]
fn a_write_to_a_truncated_file_is_never_answered_well_and_a_fua_one_not_even_done() {
    for place in [on_disk(SIZE), in_memory(SIZE)] {
        for fua in [false, true] {
            let ring = ring();
            let mut file = File::open(&place.path, &ring, OpenHow::MEMBER).unwrap();
            truncate(&place, 0);
            let at = if fua { SIZE - 4096 } else { 65536 };
            assert_eq!(write(&ring, &mut file, at, &[1; 4096], fua), Err(ErrorKind::Gone));
            assert_eq!(read(&ring, &mut file, 0, 4096), Err(ErrorKind::Gone));
            let size = std::fs::metadata(&place.path).unwrap().len();
            assert_eq!(size, if fua { 0 } else { 65536 + 4096 });
            drop(file);
            truncate(&place, SIZE);
        }
    }
}

fn truncate(place: &TestFile, size: u64) {
    std::fs::OpenOptions::new().write(true).open(&place.path).unwrap().set_len(size).unwrap();
}

#[test]
fn an_error_number_of_the_system_becomes_a_typed_error_with_the_range() {
    let ring = ring();
    let place = on_disk(SIZE);
    let mut file = File::open(&place.path, &ring, OpenHow { read_only: true, ..OpenHow::MEMBER }).unwrap();
    let data = smallvec::smallvec![ring.slab().alloc(4096).unwrap().freeze()];
    let error = run(&ring, &mut file, Op::Write { offset: 8192, data, fua: false }).result.unwrap_err();
    assert_eq!((error.kind, error.errno), (ErrorKind::Gone, Some(libc::EBADF)));
    assert_eq!((error.op, error.offset, error.len), (OpKind::Write, 8192, 4096));
}

#[test]
fn many_requests_in_flight_complete_once_each_under_the_checked_wrapper() {
    for place in [on_disk(4 << 20), in_memory(4 << 20)] {
        for ring in rings() {
            let mut file = Checked::new(File::open(&place.path, &ring, OpenHow::MEMBER).unwrap());
            let deadline = ring.clock().refresh() + Duration::from_secs(30);
            for i in 0..200 {
                let bufs = smallvec::smallvec![ring.slab().alloc(4096).unwrap()];
                file.submit(Request { tag: Tag(i), op: Op::Read { offset: i * 4096, bufs }, deadline });
            }
            let mut done = Vec::new();
            until(&ring, || {
                file.reap(&mut done);
                (done.len() == 200).then_some(())
            });
            assert!(done.iter().all(|completion| completion.result.is_ok()));
            assert_eq!((file.in_flight(), file.broken_promises()), (0, 0));
        }
    }
}

#[test]
fn a_request_whose_deadline_has_passed_before_it_was_handed_over_gives_its_memory_back() {
    let ring = ring();
    let place = on_disk(SIZE);
    let mut file = File::open(&place.path, &ring, OpenHow::MEMBER).unwrap();
    let bufs = smallvec::smallvec![ring.slab().alloc(4096).unwrap()];
    file.submit(Request { tag: Tag(3), op: Op::Read { offset: 0, bufs }, deadline: Time::ZERO });
    let mut done = Vec::new();
    let answer = until(&ring, || {
        file.reap(&mut done);
        done.pop()
    });
    assert_eq!(answer.result.unwrap_err().kind, ErrorKind::Timeout);
    assert_eq!((answer.bufs.len(), ring.in_flight()), (1, 0));
    drop(answer);
    assert_eq!(ring.slab().usage().used_bytes, 0);
}

#[test]
fn a_file_dropped_with_requests_in_flight_gives_memory_and_claim_back() {
    let ring = ring();
    let place = on_disk(SIZE);
    for round in 0..5 {
        let mut file = File::open(&place.path, &ring, OpenHow::MEMBER).unwrap();
        for tag in 0..20 {
            let bufs = smallvec::smallvec![ring.slab().alloc(4096).unwrap()];
            file.submit(Request { tag: Tag(tag), op: Op::Read { offset: 0, bufs }, deadline: Time::NEVER });
            if tag == round * 4 {
                ring.enter(None, false).unwrap();
            }
        }
        drop(file);
        until(&ring, || (ring.in_flight() == 0).then_some(()));
        assert_eq!(ring.slab().usage().used_bytes, 0);
    }
}

#[test]
fn a_file_presents_larger_blocks_when_asked_to() {
    let ring = ring();
    let place = on_disk(SIZE + 512);
    let how = OpenHow { block_size: Some(BlockSize::B4096), ..OpenHow::MEMBER };
    let file = File::open(&place.path, &ring, how).unwrap();
    assert_eq!((file.geometry().block_size, file.geometry().size_bytes), (BlockSize::B4096, SIZE));
}

#[test]
fn a_file_that_became_larger_is_so_once_it_is_looked_at_again_and_never_smaller() {
    let ring = ring();
    for place in [on_disk(SIZE), in_memory(SIZE)] {
        let mut file = File::open(&place.path, &ring, OpenHow::MEMBER).unwrap();
        truncate(&place, 2 * SIZE + 100);
        assert_eq!(file.geometry().size_bytes, SIZE);
        file.refresh_size();
        let size = file.geometry().size_bytes;
        assert!(size > 2 * SIZE - 4096 && size.is_multiple_of(512));
        write(&ring, &mut file, size - 4096, &[5; 4096], true).unwrap();
        assert_eq!(read(&ring, &mut file, size - 4096, 4096).unwrap(), [5; 4096]);
        truncate(&place, SIZE);
        file.refresh_size();
        assert_eq!(file.geometry().size_bytes, size);
        assert_eq!(write(&ring, &mut file, 0, &[6; 4096], true), Err(ErrorKind::Gone));
    }
}
