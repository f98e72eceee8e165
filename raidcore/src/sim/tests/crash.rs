//! Power cuts: what is flushed is kept, what is not is lost by the sector, and nothing else happens.

use super::*;
use std::collections::HashSet;

const BLOCKS: usize = 16;

/// Versions that each sector may have after a power cut; the first of them is the durable one.
struct Model {
    versions: Vec<Vec<u8>>,
}

impl Model {
    fn write(&mut self, sector: usize, version: u8, durable: bool) {
        if durable {
            self.versions[sector].clear();
        }
        self.versions[sector].push(version);
    }

    fn flush(&mut self) {
        self.versions.iter_mut().for_each(|versions| drop(versions.drain(..versions.len() - 1)));
    }
}

/// Random writes and flushes, then a power cut with writes in flight. Returns what broke the promise, if any.
fn one_life(config: DiskConfig, rounds: usize) -> Result<HashSet<usize>, String> {
    let seed = config.seed;
    let block = config.block_size.bytes() as usize;
    let tear = config.tear.unwrap_or(config.block_size).bytes() as usize;
    let (per_block, cached) = (block / tear.min(block), config.volatile_cache);
    let sector_bytes = block / per_block;
    let mut rig = Rig::new(config);
    let mut rng = Rng::new(seed ^ 0xc4a5);
    let mut model = Model { versions: vec![vec![0]; BLOCKS * per_block] };
    let mut ages = HashSet::new();
    for version in 1..=rounds as u8 {
        let first = rng.index(BLOCKS);
        let count = 1 + rng.index((BLOCKS - first).min(6));
        let fua = rng.chance(0.15);
        let op = rig.write_op((first * block) as u64, &vec![version; count * block], fua);
        let last = usize::from(version) == rounds;
        let sectors = first * per_block..(first + count) * per_block;
        if last {
            rig.submit(op);
            rig.dev.reap(&mut Vec::new());
            sectors.for_each(|sector| model.write(sector, version, false));
            break;
        }
        assert_eq!(rig.result(op), Ok(()));
        sectors.for_each(|sector| model.write(sector, version, fua || !cached));
        if rng.chance(0.2) {
            assert_eq!(rig.result(Op::Flush), Ok(()));
            model.flush();
        }
    }
    rig.reboot();
    for (sector, versions) in model.versions.iter().enumerate() {
        let bytes = rig.read((sector * sector_bytes / block * block) as u64, block).unwrap();
        let bytes = &bytes[sector * sector_bytes % block..][..sector_bytes];
        let age = versions.iter().rev().position(|&version| bytes.iter().all(|&b| b == version));
        ages.insert(
            age.ok_or_else(|| format!("seed {seed}: sector {sector} is {} of {versions:?}", bytes[0]))?,
        );
        let durable = rig.disk.durable((sector * sector_bytes) as u64, sector_bytes as u64);
        if durable != bytes {
            return Err(format!("seed {seed}: sector {sector} is not durable after the power cut"));
        }
    }
    Ok(ages)
}

fn configs(seed: u64) -> Vec<DiskConfig> {
    let mut configs = Vec::new();
    for (block_size, tear) in [
        (BlockSize::B4096, None),
        (BlockSize::B4096, Some(BlockSize::B512)),
        (BlockSize::B512, None),
        (BlockSize::B512, Some(BlockSize::B4096)),
    ] {
        for cache_bytes in [8192, 32 << 20] {
            let size_bytes = (BLOCKS * block_size.bytes() as usize) as u64;
            let config =
                DiskConfig { block_size, tear, seed, cache_bytes, size_bytes, ..DiskConfig::default() };
            configs.push(DiskConfig { volatile_cache: !seed.is_multiple_of(4), ..config });
        }
    }
    configs
}

#[test]
fn after_a_power_cut_every_sector_is_one_of_the_versions_since_its_last_flush() {
    let mut ages = HashSet::new();
    for seed in 0..400 {
        for config in configs(seed) {
            ages.extend(one_life(config, 24).unwrap());
        }
    }
    // The check is worth something only if old and older versions do come back.
    assert!((0..4).all(|age| ages.contains(&age)), "{ages:?}");
}

#[test]
fn the_check_catches_a_disk_that_ignores_flushes() {
    let rates = FaultRates { lost_flush: 1.0, ..FaultRates::default() };
    let lives = (0..100).flat_map(configs).filter(|config| config.volatile_cache);
    assert!(lives.map(|config| DiskConfig { rates, ..config }).any(|config| one_life(config, 24).is_err()));
}

#[test]
fn the_check_catches_a_disk_that_tears_smaller_than_it_says() {
    let torn = |seed| {
        let quiet = DiskConfig::quiet(1 << 20, BlockSize::B4096);
        let mut rig = Rig::new(DiskConfig { tear: Some(BlockSize::B512), seed, ..quiet });
        assert_eq!(rig.write(0, &[1; 4096]), Ok(()));
        rig.reboot();
        let bytes = rig.disk.peek(0, 4096);
        bytes.contains(&0) && bytes.contains(&1)
    };
    assert!((0..100).any(torn));
}

#[test]
fn a_power_cut_answers_what_is_in_flight_with_gone_and_only_to_the_old_device() {
    let mut rig = Rig::new(DiskConfig::default());
    rig.submit(rig.write_op(0, &[1; 4096], false));
    rig.submit(rig.read_op(0, 4096));
    rig.dev.reap(&mut Vec::new());
    rig.disk.power_cut();
    let mut rebooted = Checked::new(rig.disk.device());
    let done = rig.collect(2);
    assert!(done.iter().all(|c| c.result.is_err_and(|error| error.kind == ErrorKind::Gone)));
    assert_eq!(rig.result(Op::Flush), Err(ErrorKind::Gone));
    let mut late = Vec::new();
    rig.clock.advance_to(rig.clock.now() + DEADLINE);
    rebooted.reap(&mut late);
    assert!(late.is_empty());
    rig.dev = rebooted;
    assert_eq!(rig.result(Op::Flush), Ok(()));
}

#[test]
fn without_a_volatile_cache_an_answered_write_is_never_lost() {
    for seed in 0..50 {
        let quiet = DiskConfig::quiet(1 << 20, BlockSize::B4096).with_seed(seed);
        let mut rig = Rig::new(DiskConfig { volatile_cache: false, ..quiet });
        assert_eq!(rig.write(4096, &[1; 4096]), Ok(()));
        rig.reboot();
        assert_eq!(rig.read(4096, 4096).unwrap(), vec![1; 4096]);
    }
}

#[test]
fn the_death_of_a_process_loses_nothing_that_was_answered_and_may_finish_what_was_not() {
    let mut outcomes = HashSet::new();
    for seed in 0..50 {
        let mut rig = Rig::new(DiskConfig::default().with_seed(seed));
        assert_eq!(rig.write(0, &[1; 4096]), Ok(()));
        rig.submit(rig.write_op(4096, &[2; 4096], false));
        rig.dev.reap(&mut Vec::new());
        rig.dev = Checked::new(rig.disk.device());
        rig.idle(Duration::from_secs(1));
        assert_eq!(rig.read(0, 4096).unwrap(), vec![1; 4096]);
        outcomes.insert(rig.read(4096, 4096).unwrap()[0]);
        assert_eq!(rig.slab.usage().used_bytes, 0);
    }
    assert_eq!(outcomes, HashSet::from([0, 2]));
}
