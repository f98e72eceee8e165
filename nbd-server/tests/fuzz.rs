//! The fuzz targets on the stable toolchain and without a fuzzer: over the seeds, and over mutations of them that
//! are the same in each run. A failure prints the input; `fuzz/run` goes on from the same seeds for longer.

#![allow(clippy::unwrap_used)] // a test may unwrap

#[path = "../../fuzz/src/lib.rs"]
mod targets;

use std::path::Path;

const MUTATIONS: u64 = 20_000;

/// Of a target that does public-key cryptography each time.
const FEW_MUTATIONS: u64 = 1_000;

/// SplitMix64: small, seeded, good enough to choose bytes.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

/// Prints the input of a target that panics.
struct Report<'a>(&'a [u8]);

impl Drop for Report<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("input: {:02x?}", self.0);
        }
    }
}

fn mutate(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut data = seeds[random.below(seeds.len())].clone();
    for _ in 0..=random.below(6) {
        let at = random.below(data.len());
        match random.below(6) {
            0 => data[at] = random.next() as u8,
            1 => data[at] ^= 1 << random.below(8),
            2 => data.truncate(at.max(2)),
            3 => {
                let end = at + random.below(data.len() - at).min(64);
                let piece = data[at..end].to_vec();
                data.splice(at..at, piece);
            }
            4 => {
                // Numbers at the edges are where lengths go wrong.
                let edges = [0u32, 1, 0x7fff_ffff, 0x8000_0000, u32::MAX, 8192, 8193, 32 << 20, 64 << 20];
                let value = edges[random.below(edges.len())].to_be_bytes();
                let end = data.len().min(at + 4);
                data[at..end].copy_from_slice(&value[..end - at]);
            }
            _ => {
                let other = &seeds[random.below(seeds.len())];
                data.extend_from_slice(&other[random.below(other.len())..]);
            }
        }
        data.truncate(20_000);
    }
    data
}

fn run(name: &str, count: u64, target: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds").join(name);
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let seeds: Vec<_> = files.iter().map(|file| std::fs::read(file).unwrap()).collect();
    assert!(!seeds.is_empty());
    let mut random = Random(1);
    let mutations = (0..count).map(|_| mutate(&mut random, &seeds));
    for data in seeds.iter().cloned().chain(mutations) {
        let report = Report(&data);
        target(report.0);
    }
}

#[test]
fn no_handshake_breaks_the_server() {
    run("handshake", MUTATIONS, targets::handshake);
}

#[test]
fn no_stream_of_requests_breaks_the_server() {
    run("requests", MUTATIONS, targets::requests);
}

#[test]
fn no_query_of_metadata_contexts_breaks_the_server() {
    run("meta_contexts", MUTATIONS, targets::meta_contexts);
}

#[test]
fn no_handshake_of_a_server_breaks_the_client() {
    run("client_handshake", MUTATIONS, targets::client_handshake);
}

#[test]
fn no_replies_of_a_server_break_the_client() {
    run("client_replies", MUTATIONS, targets::client_replies);
}

#[test]
fn nobody_between_client_and_server_breaks_tls() {
    run("tls_entry", FEW_MUTATIONS, targets::tls_entry);
}

#[test]
fn no_superblocks_break_an_assembly() {
    run("superblocks", MUTATIONS, targets::superblocks);
}
