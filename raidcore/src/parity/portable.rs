//! The kernel for every processor: words in safe code, which the compiler turns into the baseline's vectors.

use super::Kernel;

pub(super) const KERNEL: Kernel = Kernel { name: "portable", xor, is_zero };

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
        for (to, word) in dst[at..at + BLOCK].chunks_exact_mut(8).zip(sum) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
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
