//! Without faults the disk is an array of bytes; with them, it still answers everything, once, in time, and
//! does the same again from the same seed.

use super::{Rng, *};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Write { block: u64, blocks: u64, fua: bool },
    Zeroes { block: u64, blocks: u64 },
    Read { block: u64, blocks: u64 },
    Flush,
}

const BLOCKS: u64 = 48;

fn step() -> impl Strategy<Value = Step> {
    let extent = (0..BLOCKS, 1..20u64).prop_map(|(block, blocks)| (block, blocks.min(BLOCKS - block)));
    prop_oneof![
        4 => (extent.clone(), any::<bool>()).prop_map(|((block, blocks), fua)| Step::Write { block, blocks, fua }),
        1 => extent.clone().prop_map(|(block, blocks)| Step::Zeroes { block, blocks }),
        4 => extent.prop_map(|(block, blocks)| Step::Read { block, blocks }),
        1 => Just(Step::Flush),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_disk_without_faults_is_an_array_of_bytes(
        steps in prop::collection::vec(step(), 1..60),
        seed: u64,
        volatile_cache: bool,
        cache_bytes in prop_oneof![Just(4096u64), Just(1 << 20)],
        block_size in prop_oneof![Just(BlockSize::B512), Just(BlockSize::B4096)],
    ) {
        let block = u64::from(block_size.bytes());
        let quiet = DiskConfig::quiet(BLOCKS * block, block_size);
        let latency = DiskConfig::default().latency;
        let mut rig = Rig::new(DiskConfig { seed, volatile_cache, cache_bytes, latency, ..quiet });
        let mut model = vec![0u8; (BLOCKS * block) as usize];
        let mut rng = Rng::new(seed);
        for step in steps {
            match step {
                Step::Write { block: at, blocks, fua } => {
                    let mut bytes = vec![0; (blocks * block) as usize];
                    rng.fill(&mut bytes);
                    prop_assert_eq!(rig.result(rig.write_op(at * block, &bytes, fua)), Ok(()));
                    model[(at * block) as usize..][..bytes.len()].copy_from_slice(&bytes);
                    if fua {
                        prop_assert!(rig.disk.durable(at * block, blocks * block) == bytes);
                    }
                }
                Step::Zeroes { block: at, blocks } => {
                    let (offset, len) = (at * block, blocks * block);
                    let op = Op::WriteZeroes { offset, len, fua: false, unmap: false };
                    prop_assert_eq!(rig.result(op), Ok(()));
                    model[offset as usize..][..len as usize].fill(0);
                }
                Step::Read { block: at, blocks } => {
                    let bytes = rig.read(at * block, (blocks * block) as usize).unwrap();
                    prop_assert!(bytes[..] == model[(at * block) as usize..][..bytes.len()]);
                }
                Step::Flush => {
                    prop_assert_eq!(rig.result(Op::Flush), Ok(()));
                    prop_assert!(rig.disk.durable(0, BLOCKS * block) == model);
                }
            }
        }
        prop_assert!(rig.disk.peek(0, BLOCKS * block) == model);
        prop_assert_eq!(rig.slab.usage().used_bytes, 0);
    }
}

/// A storm of requests on a rough disk, with power cuts: the trace of all that was answered.
fn storm(seed: u64, rounds: u64) -> (Vec<String>, Vec<u8>, Stats) {
    const SIZE: u64 = 256 << 10;
    let rates = FaultRates { hang: 0.02, torn_write: 0.01, ..FaultRates::rough() };
    let mut rig = Rig::new(DiskConfig { seed, rates, size_bytes: SIZE, trace: 64, ..DiskConfig::default() });
    let (mut rng, mut log) = (Rng::new(!seed), Vec::new());
    for round in 0..rounds {
        let count = 1 + rng.index(16);
        for _ in 0..count {
            let offset = rng.below(SIZE / 4096) * 4096;
            let op = match rng.below(8) {
                0..3 => rig.write_op(offset, &[rng.next_u64() as u8; 4096], rng.chance(0.2)),
                3..6 => rig.read_op(offset, 4096),
                6 => Op::Discard { offset, len: 4096 },
                _ => Op::Flush,
            };
            rig.submit(op);
        }
        if rng.chance(0.05) {
            rig.dev.reap(&mut Vec::new());
            rig.reboot();
            continue;
        }
        rig.dev.cancel(Tag(rig.next_tag - 1));
        for answer in rig.collect(count) {
            assert!(!matches!(answer.result, Err(error) if error.kind == ErrorKind::Gone));
            let sum: u64 = answer.bufs.iter().flat_map(|buf| buf.iter()).map(|&b| u64::from(b)).sum();
            log.push(format!("{round} {:?} {:?} {sum}", answer.tag, answer.result));
        }
    }
    log.extend(rig.disk.trace().iter().map(ToString::to_string));
    (log, rig.disk.peek(0, SIZE), rig.disk.stats())
}

#[test]
fn the_same_seed_and_the_same_calls_give_the_same_answers_content_and_trace() {
    for seed in 0..8 {
        let (first, again) = (storm(seed, 300), storm(seed, 300));
        assert!(first == again, "seed {seed}");
    }
    assert!(storm(1, 300) != storm(2, 300));
}

#[test]
fn a_rough_disk_shows_every_fault_it_is_given() {
    let stats = storm(42, 3000).2;
    assert!(stats.errors > stats.timeouts && stats.timeouts > 0 && stats.late > 0, "{stats:?}");
    assert!(stats.power_cuts > 0 && stats.silent_faults > 0 && stats.fua_writes > 0, "{stats:?}");
}

#[test]
fn requests_in_flight_together_are_answered_in_a_seeded_order() {
    let order = |seed| {
        let mut rig = Rig::new(DiskConfig::quiet(1 << 20, BlockSize::B4096).with_seed(seed));
        for _ in 0..8 {
            rig.submit(Op::Flush);
        }
        rig.collect(8).iter().map(|c| c.tag.0).collect::<Vec<_>>()
    };
    assert_eq!(order(1), order(1));
    assert_ne!(order(1), order(2));
}

#[test]
fn a_big_disk_costs_what_is_written_to_it() {
    let mut rig = Rig::new(DiskConfig::quiet(1 << 50, BlockSize::B4096));
    assert_eq!(rig.write((1 << 50) - 4096, &[1; 4096]), Ok(()));
    assert_eq!(rig.result(Op::Discard { offset: 0, len: 1 << 49 }), Ok(()));
    let zeroes = Op::WriteZeroes { offset: 0, len: 1 << 50, fua: true, unmap: true };
    assert_eq!(rig.result(zeroes), Ok(()));
    assert_eq!(rig.read((1 << 50) - 4096, 4096).unwrap(), vec![0; 4096]);
}
