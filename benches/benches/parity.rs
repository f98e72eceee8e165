//! Parity of a 4+1 stripe, P+Q of an 8+2 stripe and two of its columns from the rest, by every kernel of this
//! processor, beside memcpy.
//!
//! Throughput counts every byte loaded and every byte stored, for both alike: 4+1 chunks of 64 KiB are 5 * 64 KiB,
//! and the memcpy beside them copies half of that, so that it also moves 5 * 64 KiB. Chunks of 64 KiB stay in the
//! L2 cache between two iterations; those of 1 MiB, taken in turn from a ring of stripes, do not.
#![allow(missing_docs)] // criterion's macros make public items

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use raidcore::buf::{Buf, Slab, SlabConfig};
use raidcore::parity::{Kernel, Word, kernels};
use std::hint::black_box;
use std::time::Duration;

const SOURCES: usize = 4;
/// Where the bench runs out of cache, the stripes of one round are larger than any L2.
const RING_BYTES: usize = 320 << 20;

/// One stripe: the chunks of data, and the parity last.
struct Stripe {
    chunks: Vec<Buf>,
}

impl Stripe {
    fn xor(&mut self, kernel: &Kernel) {
        let [data @ .., parity] = &mut self.chunks[..] else { return };
        let [a, b, c, d] = data else { return };
        kernel.xor_into(parity, &[&a[..], &b[..], &c[..], &d[..]]);
        black_box(&mut parity[..]);
    }

    fn check(&self, kernel: &Kernel) -> bool {
        let chunks: Vec<&[u8]> = self.chunks.iter().map(|chunk| &chunk[..]).collect();
        kernel.is_zero_xor(&chunks)
    }

    /// Copies half as many bytes as a stripe has: two chunks onto two others, and half of the last onto itself.
    fn copy(&mut self) {
        let [a, b, c, d, e] = &mut self.chunks[..] else { return };
        c.copy_from_slice(a);
        d.copy_from_slice(b);
        let (from, to) = e.split_at_mut(a.len() / 2);
        to.copy_from_slice(from);
        black_box(&mut e[..]);
    }
}

fn stripes(chunk_bytes: usize, count: usize) -> Option<Vec<Stripe>> {
    let slab = Slab::new(&SlabConfig::of(&[(chunk_bytes, count * (SOURCES + 1))])).ok()?;
    let chunk = |i: usize| {
        let mut buf = slab.alloc(chunk_bytes).ok()?;
        buf.fill(i as u8);
        Some(buf)
    };
    (0..count).map(|_| Some(Stripe { chunks: (0..=SOURCES).map(chunk).collect::<Option<_>>()? })).collect()
}

fn parity(c: &mut Criterion, name: &str, chunk_bytes: usize, count: usize) {
    let Some(mut ring) = stripes(chunk_bytes, count) else {
        eprintln!("{name}: no memory for {count} stripes, skipped");
        return;
    };
    let mut group = c.benchmark_group(name);
    group.throughput(Throughput::Bytes((chunk_bytes * (SOURCES + 1)) as u64));
    let mut at = 0;
    let mut next = || {
        at = (at + 1) % count;
        at
    };
    for kernel in kernels() {
        group.bench_function(BenchmarkId::new("xor", kernel.name()), |b| {
            b.iter(|| ring[next()].xor(&kernel));
        });
    }
    for kernel in kernels() {
        ring.iter_mut().for_each(|stripe| stripe.xor(&kernel));
        group.bench_function(BenchmarkId::new("check", kernel.name()), |b| {
            b.iter(|| black_box(ring[next()].check(&kernel)));
        });
    }
    group.bench_function("memcpy", |b| b.iter(|| ring[next()].copy()));
    group.finish();
}

/// Eight columns with P and Q.
const COLUMNS: usize = 8;

struct Pair {
    columns: Vec<Buf>,
    p: Buf,
    q: Buf,
}

impl Pair {
    fn pq(&mut self, kernel: &Kernel) {
        let columns: Vec<&[u8]> = self.columns.iter().map(|column| &column[..]).collect();
        kernel.pq_into(&mut self.p, &mut self.q, &columns);
        black_box(&mut self.q[..]);
    }

    /// Column 0 as if column 1 were lost, too.
    fn recover(&mut self, kernel: &Kernel) {
        let Some(factors) = Word::new(COLUMNS).recover(0, &[0, 1]) else { return };
        let Some((first, others)) = self.columns.split_first_mut() else { return };
        let mut terms: Vec<(u8, &[u8])> = vec![(factors[COLUMNS], &self.p), (factors[COLUMNS + 1], &self.q)];
        terms.extend((2..COLUMNS).map(|column| (factors[column], &others[column - 1][..])));
        kernel.combine_into(first, &terms);
        black_box(&mut first[..]);
    }
}

fn pairs(chunk_bytes: usize, count: usize) -> Option<Vec<Pair>> {
    let slab = Slab::new(&SlabConfig::of(&[(chunk_bytes, count * (COLUMNS + 2))])).ok()?;
    let chunk = |i: usize| {
        let mut buf = slab.alloc(chunk_bytes).ok()?;
        buf.fill(i as u8 + 1);
        Some(buf)
    };
    let pair = |_| {
        let columns = (0..COLUMNS).map(chunk).collect::<Option<_>>()?;
        Some(Pair { columns, p: chunk(COLUMNS)?, q: chunk(COLUMNS + 1)? })
    };
    (0..count).map(pair).collect()
}

fn pq(c: &mut Criterion, name: &str, chunk_bytes: usize, count: usize) {
    let Some(mut ring) = pairs(chunk_bytes, count) else {
        eprintln!("{name}: no memory for {count} stripes, skipped");
        return;
    };
    let mut group = c.benchmark_group(name);
    let mut at = 0;
    let mut next = || {
        at = (at + 1) % count;
        at
    };
    group.throughput(Throughput::Bytes((chunk_bytes * (COLUMNS + 2)) as u64));
    for kernel in kernels() {
        group.bench_function(BenchmarkId::new("pq", kernel.name()), |b| b.iter(|| ring[next()].pq(&kernel)));
    }
    group.throughput(Throughput::Bytes((chunk_bytes * (COLUMNS + 1)) as u64));
    for kernel in kernels() {
        let id = BenchmarkId::new("recover 1 of 2", kernel.name());
        group.bench_function(id, |b| b.iter(|| ring[next()].recover(&kernel)));
    }
    group.finish();
}

fn benches(c: &mut Criterion) {
    parity(c, "parity 4+1 x 64K in L2", 64 << 10, 1);
    parity(c, "parity 4+1 x 1M out of cache", 1 << 20, RING_BYTES / ((SOURCES + 1) << 20));
    pq(c, "parity 8+2 x 64K in L2", 64 << 10, 1);
    pq(c, "parity 8+2 x 1M out of cache", 1 << 20, RING_BYTES / ((COLUMNS + 2) << 20));
}

criterion_group! {
    name = all;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(20)
        .without_plots();
    targets = benches
}
criterion_main!(all);
