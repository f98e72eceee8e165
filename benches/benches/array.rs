//! Planning, and the array over disks in memory: what the engine itself costs per request.
//!
//! The disks copy each transfer once (into or out of their memory), so a 4 KiB read here is one 4 KiB copy plus
//! the engine. Requests are submitted 32 at a time, as a client with a queue depth of 32 does.
#![allow(missing_docs)] // criterion's macros make public items

use benches::{DISK_BYTES, array_in_memory};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use raidcore::array::Array;
use raidcore::array::plan::{Access, Span, plan_write};
use raidcore::buf::{Slab, SlabConfig, View, ViewList};
use raidcore::dev::{BlockDev, Completion, Op, Request, Tag};
use raidcore::layout::{Layout, LayoutSpec, Level, UnitId};
use raidcore::sim::Rng;
use raidcore::time::{Clock, Time};
use std::hint::black_box;
use std::time::Duration;

const QUEUE_DEPTH: u64 = 32;

fn planning(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("plan");
    let Ok(layout) = Layout::new(LayoutSpec::new(Level::Raid5, 5, 65536)) else { return };
    group.bench_function("place a byte", |b| b.iter(|| layout.place(black_box(123_456_789))));
    group.bench_function("map a unit", |b| b.iter(|| layout.unit_map(black_box(UnitId(1234)))));
    let map = layout.unit_map(UnitId(1234));
    let small = [Span { column: 2, row: 8192, len: 4096 }];
    let full: Vec<Span> = (0..4).map(|column| Span { column, row: 0, len: 65536 }).collect();
    for (name, spans) in [("4 KiB", &small[..]), ("full stripe", &full[..])] {
        group.bench_function(BenchmarkId::new("write", name), |b| {
            b.iter(|| plan_write(&map, black_box(spans), Access::default()));
        });
    }
    group.finish();
}

/// An array with what is needed to keep it busy.
struct Bench {
    array: Array,
    slab: Slab,
    clock: Clock,
    rng: Rng,
    data: View,
    done: Vec<Completion>,
}

impl Bench {
    fn new(level: Level, slots: usize) -> Option<Bench> {
        let clock = Clock::virtual_at(Time::from_ns(1));
        let slab = Slab::new(&SlabConfig::server()).ok()?;
        let array = array_in_memory(level, slots, 65536, &clock, &slab).ok()?;
        let mut data = slab.alloc(1 << 20).ok()?;
        data.fill(0x5a);
        Some(Bench { array, slab, clock, rng: Rng::new(1), data: data.freeze(), done: Vec::new() })
    }

    /// Runs `QUEUE_DEPTH` requests of `len` bytes at random multiples of `len`.
    fn turn(&mut self, len: usize, write: bool) {
        let places = self.array.geometry().size_bytes / len as u64;
        let deadline = self.clock.now() + Duration::from_secs(30);
        for tag in 0..QUEUE_DEPTH {
            let offset = self.rng.below(places) * len as u64;
            let op = if write {
                Op::Write { offset, data: ViewList::from_iter([self.data.slice(0, len)]), fua: false }
            } else {
                let Ok(bufs) = self.slab.alloc_list(len) else { return };
                Op::Read { offset, bufs }
            };
            self.array.submit(Request { tag: Tag(tag), op, deadline });
        }
        while self.done.len() < QUEUE_DEPTH as usize {
            self.array.reap(&mut self.done);
        }
        assert!(self.done.iter().all(|completion| completion.result.is_ok()));
        self.done.clear();
    }
}

fn requests(criterion: &mut Criterion) {
    const { assert!(DISK_BYTES >= 1 << 20) };
    let mut group = criterion.benchmark_group("array");
    let levels =
        [(Level::Raid0, 4), (Level::Raid1, 2), (Level::Raid10, 4), (Level::Raid5, 5), (Level::Raid6, 6)];
    for (level, slots) in levels {
        for (name, len, write) in [
            ("4K read", 4096, false),
            ("4K write", 4096, true),
            ("1M read", 1 << 20, false),
            ("1M write", 1 << 20, true),
        ] {
            let Some(mut bench) = Bench::new(level, slots) else { return };
            group.throughput(Throughput::Elements(QUEUE_DEPTH));
            group.bench_function(BenchmarkId::new(name, level), |b| b.iter(|| bench.turn(len, write)));
        }
    }
    group.finish();
}

fn settings() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .without_plots()
}

criterion_group!(name = benches; config = settings(); targets = planning, requests);
criterion_main!(benches);
