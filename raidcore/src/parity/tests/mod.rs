//! Every kernel against a loop over bytes, and against the field of an independent implementation.

mod pq;

use super::*;
use proptest::prelude::*;
use reed_solomon_erasure::Field as _;
use reed_solomon_erasure::galois_8::Field;

/// Longest buffer tried: several blocks of the widest kernel, and every remainder.
const MAX_LEN: usize = 1600;

fn scalar(dst: &[u8], sources: &[&[u8]], keep: bool) -> Vec<u8> {
    let sum = |at: usize| sources.iter().fold(if keep { dst[at] } else { 0 }, |sum, source| sum ^ source[at]);
    (0..dst.len()).map(sum).collect()
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    crate::sim::Rng::new(seed).fill(&mut bytes);
    bytes
}

/// `count` buffers of `len` bytes, each starting at its own odd place of its memory.
fn unaligned(memory: &[Vec<u8>], len: usize) -> Vec<&[u8]> {
    memory.iter().enumerate().map(|(i, bytes)| &bytes[(i * 7) % 64..][..len]).collect()
}

fn memory(count: usize, len: usize, seed: u64) -> Vec<Vec<u8>> {
    (0..count as u64).map(|i| noise(seed ^ i, len + 64)).collect()
}

fn check_all(len: usize, count: usize, offset: usize, seed: u64) {
    let memory = memory(count, len, seed);
    let sources = unaligned(&memory, len);
    let before = noise(!seed, len + offset + 64);
    for kernel in kernels() {
        for keep in [false, true] {
            let mut after = before.clone();
            let dst = &mut after[offset..offset + len];
            if keep {
                kernel.xor_accumulate(dst, &sources)
            } else {
                kernel.xor_into(dst, &sources)
            }
            let expected = scalar(&before[offset..offset + len], &sources, keep);
            assert!(after[offset..offset + len] == expected, "{kernel:?} {len} bytes, {count} sources");
            assert!(after[..offset] == before[..offset] && after[offset + len..] == before[offset + len..]);
        }
        let mut parity = vec![0; len];
        kernel.xor_into(&mut parity, &sources);
        let mut all = sources.clone();
        all.push(&parity);
        assert!(kernel.is_zero_xor(&all), "{kernel:?} {len} bytes, {count} sources");
    }
}

#[test]
fn every_length_up_to_several_blocks_is_right() {
    (0..=MAX_LEN).for_each(|len| check_all(len, 1 + len % 7, len % 5, len as u64));
}

#[test]
fn every_number_of_sources_is_right_and_none_leaves_zeroes_or_the_old_content() {
    (0..=64).for_each(|count| check_all(1111, count, 1, count as u64));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_length_any_alignment_and_any_number_of_sources_is_right(
        len in 0..=MAX_LEN, count in 1..=64usize, offset in 0..64usize, seed: u64,
    ) {
        check_all(len, count, offset, seed);
    }

    #[test]
    fn a_single_wrong_bit_anywhere_is_found(
        len in 1..=MAX_LEN, count in 1..=8usize, seed: u64, at: prop::sample::Index, bit in 0..8u32,
    ) {
        let memory = memory(count, len, seed);
        let mut parity = vec![0; len];
        xor_into(&mut parity, &unaligned(&memory, len));
        parity[at.index(len)] ^= 1 << bit;
        let mut sources = unaligned(&memory, len);
        sources.push(&parity);
        for kernel in kernels() {
            prop_assert!(!kernel.is_zero_xor(&sources), "{:?}", kernel);
        }
    }

    #[test]
    fn the_sum_is_that_of_an_independent_field(len in 1..=MAX_LEN, count in 1..=8usize, seed: u64) {
        let memory = memory(count, len, seed);
        let sources = unaligned(&memory, len);
        let mut expected = vec![0; len];
        for source in &sources {
            for (sum, &byte) in expected.iter_mut().zip(*source) {
                *sum = Field::add(*sum, byte);
            }
        }
        for kernel in kernels() {
            let mut parity = noise(seed, len);
            kernel.xor_into(&mut parity, &sources);
            prop_assert!(parity == expected, "{:?}", kernel);
        }
    }
}

#[test]
fn the_fastest_kernel_is_in_use_and_the_portable_one_is_always_there() {
    let names: Vec<_> = kernels().iter().map(Kernel::name).collect();
    assert_eq!((names[0], names.last()), (kernel_name(), Some(&"portable")));
}

#[test]
fn nothing_sums_to_zero() {
    assert!(is_zero_xor(&[]) && is_zero_xor(&[&[], &[]]) && is_zero_xor(&[&[0; 100]]));
    assert!(!is_zero_xor(&[&[1; 100]]));
}

#[test]
#[should_panic(expected = "different lengths")]
fn buffers_of_different_lengths_are_a_bug_of_the_caller() {
    xor_into(&mut [0; 4], &[&[1; 4], &[1; 5]]);
}
