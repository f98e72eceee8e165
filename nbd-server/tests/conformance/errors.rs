//! "Error values": which error for what, and that the connection goes on.

use crate::nbd::*;
use crate::stage::{SIZE, Stage, Witness};
use raidcore::dev::{ErrorKind, Op};

#[test]
fn past_the_end_is_enospc_to_writers_and_einval_to_all_others() {
    let stage = Stage::new();
    for mut line in stage.lines() {
        // The last two have an end that no 64 bits can hold.
        for (offset, len) in
            [(SIZE, 1), (SIZE - 1, 2), (0, SIZE + 1), (SIZE * 2, 1), (u64::MAX, 1), (u64::MAX, 4096)]
        {
            for kind in [READ, TRIM, CACHE, STATUS] {
                assert_eq!(
                    line.error(0, kind, offset, len, b""),
                    EINVAL,
                    "command {kind}: {len} at {offset}"
                );
            }
            assert_eq!(line.error(0, ZEROES, offset, len, b""), ENOSPC);
            if len <= 4096 {
                assert_eq!(line.error(0, WRITE, offset, len, &vec![0; len as usize]), ENOSPC);
            }
        }
        for kind in [READ, TRIM, CACHE, ZEROES] {
            assert_eq!(line.error(0, kind, SIZE - 1, 1, b""), 0, "the last byte is there");
        }
        line.assert_alive();
    }
    assert!(stage.diary().iter().all(|entry| entry.offset + entry.len <= SIZE));
}

#[test]
fn a_read_only_export_answers_eperm_to_all_that_writes_and_serves_the_rest() {
    let stage = Stage::of(Witness::ram().with(|geometry| geometry.read_only = true));
    for mut line in stage.lines() {
        stage.diary();
        for flags in [0, FUA] {
            assert_eq!(line.error(flags, WRITE, 0, 5000, &[1; 5000]), EPERM);
            assert_eq!(line.error(flags, TRIM, 0, 4096, b""), EPERM);
            assert_eq!(line.error(flags, ZEROES, 0, 4096, b""), EPERM);
        }
        assert_eq!(line.error(0, WRITE, SIZE, 1, &[1]), EPERM, "that it may not comes before where it goes");
        assert_eq!(line.error(FAST_ZERO, ZEROES, 0, 4096, b""), EPERM);
        assert_eq!(stage.diary(), []);
        assert_eq!(line.error(0, READ, 0, 4096, b""), 0);
        assert_eq!(line.error(0, FLUSH, 0, 0, b""), 0);
        assert_eq!(line.error(0, CACHE, 0, 4096, b""), 0);
    }
}

/// ENOTSUP is for fast zeroes alone: a device that cannot do something else used to answer with it, also to a
/// WRITE_ZEROES without the flag, which a server must not.
#[test]
fn errors_of_the_device_are_those_of_the_specification() {
    type Case = (fn(&Op) -> Option<ErrorKind>, u64);
    let cases: [Case; 6] = [
        (|_| Some(ErrorKind::Medium), EIO),
        (|_| Some(ErrorKind::Gone), EIO),
        (|_| Some(ErrorKind::Timeout), EIO),
        (|_| Some(ErrorKind::NoSpace), ENOSPC),
        (|_| Some(ErrorKind::ReadOnly), EPERM),
        (|_| Some(ErrorKind::Unsupported), EINVAL),
    ];
    let stage = Stage::new();
    for (how, error) in cases {
        for mut line in stage.lines() {
            stage.fail(how);
            for kind in [READ, FLUSH, TRIM, CACHE, ZEROES] {
                let len = if kind == FLUSH { 0 } else { 4096 };
                assert_eq!(line.error(0, kind, 0, len, b""), error, "command {kind}");
            }
            assert_eq!(line.error(0, WRITE, 0, 4, b"data"), error);
            stage.fail(|_| None);
            line.assert_alive();
        }
    }
}

#[test]
fn what_a_command_is_comes_before_where_it_goes() {
    let stage = Stage::new();
    for mut line in stage.lines() {
        assert_eq!(line.error(1 << 9, WRITE, SIZE, 4, b"data"), EINVAL, "the flag before the end");
        assert_eq!(line.error(1 << 9, ZEROES, SIZE, 4096, b""), EINVAL);
        assert_eq!(line.error(FAST_ZERO, ZEROES, SIZE, 4096, b""), ENOSPC, "the end before the speed");
    }
}
