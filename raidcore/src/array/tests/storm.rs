//! Everything at once, on virtual time: requests in flight together, members failed by hand and dying by
//! themselves, spares that come and some that die early. What is answered is held against a `Vec<u8>`, and at the
//! end redundancy is checked. A failure names its seed.

use super::edges::turn;
use super::rig::{LARGE_DISK_BYTES, Rig, Shape, pattern};
use crate::dev::{Completion, Op, Tag};
use crate::layout::Level;
use crate::meta::MemberState;
use crate::sim::{DiskConfig, Latency, Rng};
use std::time::Duration;

const SHAPES: [(Level, usize); 9] = [
    (Level::Raid1, 2),
    (Level::Raid1, 3),
    (Level::Raid5, 3),
    (Level::Raid5, 5),
    (Level::Raid6, 4),
    (Level::Raid6, 6),
    (Level::Raid10, 3),
    (Level::Raid10, 4),
    (Level::Raid10, 5),
];

struct Storm {
    rig: Rig,
    rng: Rng,
    model: Vec<u8>,
    /// What each read in flight must give.
    reads: Vec<(Tag, u64, Vec<u8>)>,
    /// A disk that died and that the array has not yet found dead: one at a time, for one loss is what all
    /// levels survive.
    dead: Option<usize>,
    /// A disk that was added and is not yet in a slot.
    spare: Option<usize>,
    name: String,
}

impl Storm {
    fn new(seed: u64) -> Storm {
        let mut rng = Rng::new(seed);
        let (level, slots) = SHAPES[rng.index(SHAPES.len())];
        let chunk = [4096, 16384, 131_072][rng.index(3)];
        let shape = Shape { seed, chunk, disk_bytes: LARGE_DISK_BYTES, ..Shape::new(level, slots) };
        let us = Duration::from_micros;
        let latency = Latency { min: us(50), max: us(2000) };
        let config = DiskConfig { latency, ..DiskConfig::quiet(shape.disk_bytes, shape.block) };
        let rig = Rig::with_disks(shape, config);
        let model = vec![0; rig.size().min(2 << 20) as usize];
        let name = format!("seed {seed}, {level} of {slots}, chunk {chunk}");
        Storm { rig, rng, model, reads: Vec::new(), dead: None, spare: None, name }
    }

    /// Requests that do not overlap, all over the array.
    fn submit(&mut self, round: u64) -> Vec<Tag> {
        let mut tags = Vec::new();
        let mut at = self.rng.below(32) * 512;
        while at + 200_000 < self.model.len() as u64 && tags.len() < 40 {
            let most = if self.rng.chance(0.2) { 120 } else { 8 };
            let len = 512 * (1 + self.rng.index(most));
            let target = &mut self.model[at as usize..at as usize + len];
            let fua = self.rng.chance(0.2);
            let tag = match self.rng.index(8) {
                0 | 1 => {
                    let expected = target.to_vec();
                    let op = self.rig.read_op(at, len);
                    let tag = self.rig.submit(op);
                    self.reads.push((tag, at, expected));
                    tag
                }
                2 => {
                    target.fill(0);
                    let unmap = self.rng.chance(0.5);
                    self.rig.submit(Op::WriteZeroes { offset: at, len: len as u64, fua, unmap })
                }
                _ => {
                    let bytes = pattern(at, len, round * 1000 + at);
                    target.copy_from_slice(&bytes);
                    let op = self.rig.write_op(at, &bytes, fua);
                    self.rig.submit(op)
                }
            };
            tags.push(tag);
            at += len as u64 + self.rng.below(4) * 512 * self.rng.below(40);
        }
        if self.rng.chance(0.3) {
            tags.push(self.rig.submit(Op::Flush));
        }
        tags
    }

    fn state_of_disk(&self, disk: usize) -> Option<MemberState> {
        let name = format!("disk{disk}");
        let members = self.rig.array.status().members;
        members.into_iter().find(|member| member.device.as_ref() == Some(&name)).map(|member| member.state)
    }

    /// One of the slots fails: by hand, or its disk dies.
    fn strike(&mut self) {
        let status = self.rig.array.status();
        let slot = self.rng.index(status.members.iter().filter(|member| member.slot.is_some()).count());
        let Some(device) = status.members[slot].device.clone() else { return };
        let disk: usize = device.trim_start_matches("disk").parse().unwrap();
        let is_needed = !self.rig.array.can_lose(self.rig.array.slots[slot]);
        if self.rng.chance(0.5) {
            let refused = self.rig.array.fail(&device).is_err();
            assert!(refused || !is_needed, "{}", self.name);
        } else if !is_needed && status.members[slot].state == MemberState::InSync {
            self.rig.disks[disk].fail();
            self.dead = Some(disk);
        }
    }

    fn round(&mut self, round: u64) {
        let tags = self.submit(round);
        let mut done = Vec::new();
        let turns = self.rng.index(30);
        turn(&mut self.rig, turns, &mut done);
        self.dead = self.dead.filter(|&disk| self.state_of_disk(disk) == Some(MemberState::InSync));
        if self.dead.is_none() && self.rng.chance(0.3) {
            self.strike();
        }
        self.spare = self.spare.filter(|&disk| self.state_of_disk(disk) == Some(MemberState::Spare));
        if self.spare.is_none() && self.rng.chance(0.3) {
            let disk = self.rig.new_disk();
            if self.rng.chance(0.2) {
                self.rig.disks[disk].fail_after(self.rng.below(4));
            }
            self.rig.add(disk);
            self.spare = Some(disk);
        }
        for _ in 0..200_000 {
            if done.len() >= tags.len() {
                break;
            }
            turn(&mut self.rig, 1, &mut done);
        }
        assert_eq!(done.len(), tags.len(), "{} round {round}: not all is answered", self.name);
        self.check(round, &done);
    }

    fn check(&mut self, round: u64, done: &[Completion]) {
        for completion in done {
            let status = self.rig.array.status();
            assert!(
                completion.result.is_ok(),
                "{} round {round}: {:?} {status:?}",
                self.name,
                completion.result
            );
            if let Some(at) = self.reads.iter().position(|(tag, ..)| *tag == completion.tag) {
                let (_, offset, expected) = self.reads.swap_remove(at);
                let got: Vec<u8> = completion.bufs.iter().flat_map(|buf| buf.to_vec()).collect();
                assert!(got == expected, "{} round {round}: wrong data at {offset} {status:?}", self.name);
            }
        }
    }

    fn end(mut self) {
        for at in (0..self.model.len()).step_by(256 << 10) {
            let len = (256 << 10).min(self.model.len() - at);
            assert!(self.rig.read(at as u64, len).unwrap() == self.model[at..at + len], "{}", self.name);
        }
        turn(&mut self.rig, 5000, &mut Vec::new());
        if self.rig.array.all_well {
            let members = self.rig.array.status().members.into_iter().filter(|member| member.slot.is_some());
            let disk = |device: Option<String>| device.unwrap().trim_start_matches("disk").parse().unwrap();
            let disks: Vec<usize> = members.map(|member| disk(member.device)).collect();
            self.rig.check_redundancy(&disks);
        }
        self.rig.stop();
    }
}

#[test]
fn a_storm_of_requests_and_failures_loses_nothing_and_leaves_nothing_unanswered() {
    for seed in 1..=80 {
        let mut storm = Storm::new(seed);
        (0..30).for_each(|round| storm.round(round));
        storm.end();
    }
}
