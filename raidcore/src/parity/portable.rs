//! The kernel for every processor: words in safe code, which the compiler turns into the baseline's vectors.

use super::field::{POLYNOMIAL, multiply};
use super::{Kernel, Scaled};

pub(super) const KERNEL: Kernel = Kernel { name: "portable", xor, is_zero, pq, combine };

const WORDS: usize = 16;
const BLOCK: usize = WORDS * 8;

fn xor(dst: &mut [u8], sources: &[&[u8]], keep: bool) {
    let whole = dst.len() - dst.len() % BLOCK;
    for at in (0..whole).step_by(BLOCK) {
        let mut sum = [0; WORDS];
        if keep {
            add(&mut sum, &dst[at..at + BLOCK]);
        }
        for source in sources {
            add(&mut sum, &source[at..at + BLOCK]);
        }
        store(&mut dst[at..at + BLOCK], &sum);
    }
    xor_bytes(dst, sources, keep, whole);
}

fn is_zero(sources: &[&[u8]]) -> bool {
    let len = sources.first().map_or(0, |first| first.len());
    let whole = len - len % BLOCK;
    for at in (0..whole).step_by(BLOCK) {
        let mut sum = [0; WORDS];
        for source in sources {
            add(&mut sum, &source[at..at + BLOCK]);
        }
        if sum.iter().fold(0, |any, word| any | word) != 0 {
            return false;
        }
    }
    is_zero_bytes(sources, whole)
}

fn pq(p: &mut [u8], q: &mut [u8], sources: &[&[u8]]) {
    let whole = p.len() - p.len() % BLOCK;
    for at in (0..whole).step_by(BLOCK) {
        let (mut p_sum, mut q_sum) = ([0; WORDS], [0; WORDS]);
        for source in sources.iter().rev() {
            q_sum = q_sum.map(double);
            add(&mut p_sum, &source[at..at + BLOCK]);
            add(&mut q_sum, &source[at..at + BLOCK]);
        }
        store(&mut p[at..at + BLOCK], &p_sum);
        store(&mut q[at..at + BLOCK], &q_sum);
    }
    pq_bytes(p, q, sources, whole);
}

fn combine(dst: &mut [u8], terms: &[Scaled], keep: bool) {
    let whole = dst.len() - dst.len() % BLOCK;
    for at in (0..whole).step_by(BLOCK) {
        let mut sum = [0; WORDS];
        // Bit by bit of all factors, the highest first, doubling between two of them.
        for bit in (0..8).rev() {
            sum = sum.map(double);
            for (_, source) in terms.iter().filter(|(factor, _)| factor >> bit & 1 == 1) {
                add(&mut sum, &source[at..at + BLOCK]);
            }
        }
        if keep {
            add(&mut sum, &dst[at..at + BLOCK]);
        }
        store(&mut dst[at..at + BLOCK], &sum);
    }
    combine_bytes(dst, terms, keep, whole);
}

/// Doubles each of eight bytes in Q's field: what a byte loses at its top comes back as the polynomial.
#[inline(always)]
fn double(word: u64) -> u64 {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    let carries = word >> 7 & ONES;
    ((word & !(ONES << 7)) << 1) ^ (carries * u64::from(POLYNOMIAL))
}

#[inline(always)]
fn store(to: &mut [u8], sum: &[u64; WORDS]) {
    for (to, word) in to.chunks_exact_mut(8).zip(sum) {
        to.copy_from_slice(&word.to_ne_bytes());
    }
}

#[inline(always)]
fn add(sum: &mut [u64; WORDS], block: &[u8]) {
    let (words, _) = block.as_chunks::<8>();
    for (sum, word) in sum.iter_mut().zip(words) {
        *sum ^= u64::from_ne_bytes(*word);
    }
}

/// The bytes from `from` on, one by one: what is too short for a vector.
pub(super) fn xor_bytes(dst: &mut [u8], sources: &[&[u8]], keep: bool, from: usize) {
    for (at, to) in dst.iter_mut().enumerate().skip(from) {
        let sum = sources.iter().fold(0, |sum, source| sum ^ source[at]);
        *to = if keep { *to ^ sum } else { sum };
    }
}

/// As [`xor_bytes`], for the check.
pub(super) fn is_zero_bytes(sources: &[&[u8]], from: usize) -> bool {
    let len = sources.first().map_or(0, |first| first.len());
    (from..len).all(|at| sources.iter().fold(0, |sum, source| sum ^ source[at]) == 0)
}

/// P and Q of the bytes from `from` on, one by one.
pub(super) fn pq_bytes(p: &mut [u8], q: &mut [u8], sources: &[&[u8]], from: usize) {
    for (at, (p, q)) in p.iter_mut().zip(q).enumerate().skip(from) {
        let step = |(p, q): (u8, u8), source: &&[u8]| (p ^ source[at], multiply(q, 2) ^ source[at]);
        (*p, *q) = sources.iter().rev().fold((0, 0), step);
    }
}

/// As [`xor_bytes`], each source times its factor.
pub(super) fn combine_bytes(dst: &mut [u8], terms: &[Scaled], keep: bool, from: usize) {
    for (at, to) in dst.iter_mut().enumerate().skip(from) {
        let sum = terms.iter().fold(0, |sum, (factor, source)| sum ^ multiply(*factor, source[at]));
        *to = if keep { *to ^ sum } else { sum };
    }
}
