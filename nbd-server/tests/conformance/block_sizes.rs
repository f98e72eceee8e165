//! "Block size constraints".

use crate::common::be;
use crate::common::haggle::{info_data, infos};
use crate::nbd::*;
use crate::stage::{SIZE, Stage, Witness};
use raidcore::dev::BlockSize;

/// Minimum, preferred and maximum, as told.
fn told_by(stage: &Stage, number: u32) -> [u64; 3] {
    let told = infos(&stage.haggle().ask(number, &info_data("vol", &[3])));
    let (_, sizes) = told.into_iter().find(|(kind, _)| *kind == 3).unwrap();
    [be(&sizes[..4]), be(&sizes[4..8]), be(&sizes[8..])]
}

/// The maximum was whatever the device said, whole blocks or not.
#[test]
fn sizes_are_told_in_order_and_in_whole_blocks() {
    for preferred in [0, 192 << 10, 1 << 30] {
        for most in [1u64, 5000, 1_000_000, u64::MAX] {
            for (granular, block) in [(true, 1), (false, 4096)] {
                let device = Witness::ram().with(|geometry| {
                    geometry.block_size = BlockSize::B4096;
                    geometry.preferred_bytes = preferred;
                    geometry.max_transfer_bytes = most;
                });
                let stage = Stage::of(device).reoffer(move |export| export.byte_granular = granular);
                for number in [INFO, GO] {
                    let [min, preferred, max] = told_by(&stage, number);
                    assert_eq!(min, block);
                    assert!(preferred.is_power_of_two() && preferred >= 512.max(min) && preferred <= max);
                    assert!(max.is_multiple_of(min) && SIZE.is_multiple_of(min), "{max}");
                }
            }
        }
    }
}

#[test]
fn the_largest_payload_goes_through_and_one_byte_more_is_einval() {
    let stage = Stage::new();
    let [_, _, max] = told_by(&stage, INFO);
    assert!(max >= 1 << 20);
    let payload = vec![1; max as usize + 1];
    for mut line in stage.lines() {
        assert_eq!(line.error(0, READ, 0, max, b""), 0);
        assert_eq!(line.error(0, READ, 0, max + 1, b""), EINVAL);
        assert_eq!(line.error(0, WRITE, 0, max, &payload[1..]), 0);
        assert_eq!(line.error(0, WRITE, 0, max + 1, &payload), EINVAL);
        line.assert_alive();
    }
}

/// Their length is no payload: the maximum does not bind them.
#[test]
fn trims_zeroes_and_caches_may_be_longer_than_the_largest_payload() {
    let stage = Stage::new();
    assert!(told_by(&stage, INFO)[2] < SIZE);
    for mut line in stage.lines() {
        for kind in [TRIM, ZEROES, CACHE] {
            assert_eq!(line.error(0, kind, 0, SIZE, b""), 0, "command {kind}");
        }
    }
}

/// Also those who did not ask for the sizes: they are served, and what does not fit is an error and does no harm.
#[test]
fn what_is_not_whole_blocks_is_einval_and_changes_nothing() {
    let stage = Stage::new().reoffer(|export| export.byte_granular = false);
    let [min, ..] = told_by(&stage, INFO);
    assert_eq!(min, 512);
    for mut line in stage.lines() {
        stage.diary();
        for (offset, len) in [(0, 1), (0, 511), (0, 513), (1, 512), (511, 512), (SIZE - 1, 1)] {
            for kind in [READ, TRIM, ZEROES, CACHE] {
                assert_eq!(line.error(0, kind, offset, len, b""), EINVAL, "command {kind}");
            }
            assert_eq!(line.error(0, WRITE, offset, len, &vec![1; len as usize]), EINVAL);
            let status = line.error(0, STATUS, offset, len, b"");
            assert_eq!(status, EINVAL);
        }
        assert_eq!(stage.diary(), [], "nothing of it reached the device");
        assert_eq!(line.error(0, WRITE, 512, 512, &[1; 512]), 0);
        assert_eq!(line.error(0, READ, SIZE - 512, 512, b""), 0);
    }
}

#[test]
fn where_the_minimum_is_one_any_offset_and_length_will_do() {
    let stage = Stage::new();
    assert_eq!(told_by(&stage, GO)[0], 1);
    for mut line in stage.lines() {
        for (offset, len) in [(0, 1), (1, 1), (511, 2), (4095, 4098), (SIZE - 1, 1)] {
            assert_eq!(line.error(0, WRITE, offset, len, &vec![7; len as usize]), 0);
            for kind in [READ, TRIM, ZEROES, CACHE] {
                assert_eq!(line.error(0, kind, offset, len, b""), 0, "command {kind} at {offset}");
            }
        }
    }
}
