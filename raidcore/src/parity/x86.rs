//! The kernels of x86-64, by AVX-512 and AVX2: those of P here, those that need Q's field in `x86_pq`.
//!
//! Both are one text, compiled for each vector width. A block of vectors stays in registers while the sources go
//! by, so memory is read once and written once. Slices are cut to whole vectors before a vector is touched;
//! `unsafe` are the loads and stores alone, each of an array of exactly its size.
#![allow(unsafe_code)] // one of the three places: vector instructions

use super::portable::{is_zero_bytes, xor_bytes};
use super::{Kernel, x86_pq};
use std::arch::x86_64::*;

/// The kernels this processor has, the fastest first.
pub(super) fn detected() -> Vec<Kernel> {
    let has_gfni = is_x86_feature_detected!("gfni");
    let mut kernels = Vec::new();
    if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
        let (xor, is_zero) = (avx512::xor, avx512::is_zero);
        use x86_pq::{avx512 as shuffled, avx512_gfni as gfni};
        if has_gfni {
            let (pq, combine) = (gfni::pq, gfni::combine);
            kernels.push(Kernel { name: "avx512-gfni", xor, is_zero, pq, combine });
        }
        let (pq, combine) = (shuffled::pq, shuffled::combine);
        kernels.push(Kernel { name: "avx512", xor, is_zero, pq, combine });
    }
    if is_x86_feature_detected!("avx2") {
        let (xor, is_zero) = (avx2::xor, avx2::is_zero);
        use x86_pq::{avx2 as shuffled, avx2_gfni as gfni};
        if has_gfni {
            let (pq, combine) = (gfni::pq, gfni::combine);
            kernels.push(Kernel { name: "avx2-gfni", xor, is_zero, pq, combine });
        }
        let (pq, combine) = (shuffled::pq, shuffled::combine);
        kernels.push(Kernel { name: "avx2", xor, is_zero, pq, combine });
    }
    kernels
}

/// The kernel of one vector width. `$lanes` vectors are summed side by side: enough that a source's loop is
/// longer than its overhead, few enough that all sums and a load fit into the registers.
macro_rules! kernel {
    ($module:ident, $feature:literal, $vector:ty, $bytes:literal, $lanes:literal,
     $zero:ident, $load:ident, $store:ident, $xor:ident, $or:ident, $is_zero:expr) => {
        mod $module {
            use super::*;

            const VECTOR: usize = $bytes;
            const BLOCK: usize = VECTOR * $lanes;

            #[target_feature(enable = $feature)]
            pub(in super::super) fn xor(dst: &mut [u8], sources: &[&[u8]], keep: bool) {
                let blocks = dst.len() - dst.len() % BLOCK;
                for at in (0..blocks).step_by(BLOCK) {
                    let mut sum = [$zero(); $lanes];
                    if keep {
                        add(&mut sum, &dst[at..at + BLOCK]);
                    }
                    for source in sources {
                        add(&mut sum, &source[at..at + BLOCK]);
                    }
                    store(&mut dst[at..at + BLOCK], &sum);
                }
                let whole = dst.len() - dst.len() % VECTOR;
                for at in (blocks..whole).step_by(VECTOR) {
                    let mut sum = [$zero()];
                    if keep {
                        add(&mut sum, &dst[at..at + VECTOR]);
                    }
                    for source in sources {
                        add(&mut sum, &source[at..at + VECTOR]);
                    }
                    store(&mut dst[at..at + VECTOR], &sum);
                }
                xor_bytes(dst, sources, keep, whole);
            }

            #[target_feature(enable = $feature)]
            pub(in super::super) fn is_zero(sources: &[&[u8]]) -> bool {
                let len = sources.first().map_or(0, |first| first.len());
                let blocks = len - len % BLOCK;
                for at in (0..blocks).step_by(BLOCK) {
                    let mut sum = [$zero(); $lanes];
                    for source in sources {
                        add(&mut sum, &source[at..at + BLOCK]);
                    }
                    let mut any = $zero();
                    for vector in sum {
                        any = $or(any, vector);
                    }
                    if !$is_zero(any) {
                        return false;
                    }
                }
                is_zero_bytes(sources, blocks)
            }

            #[inline]
            #[target_feature(enable = $feature)]
            fn add<const N: usize>(sum: &mut [$vector; N], from: &[u8]) {
                let (vectors, _) = from.as_chunks::<VECTOR>();
                for (sum, vector) in sum.iter_mut().zip(vectors) {
                    // SAFETY: `vector` is a readable array of a vector's size; the load takes any alignment.
                    let vector = unsafe { $load(vector.as_ptr().cast()) };
                    *sum = $xor(*sum, vector);
                }
            }

            #[inline]
            #[target_feature(enable = $feature)]
            fn store<const N: usize>(to: &mut [u8], sum: &[$vector; N]) {
                let (vectors, _) = to.as_chunks_mut::<VECTOR>();
                for (vector, sum) in vectors.iter_mut().zip(sum) {
                    // SAFETY: `vector` is a writable array of a vector's size; the store takes any alignment.
                    unsafe { $store(vector.as_mut_ptr().cast(), *sum) };
                }
            }
        }
    };
}

kernel!(
    avx512,
    "avx512f",
    __m512i,
    64,
    8,
    _mm512_setzero_si512,
    _mm512_loadu_si512,
    _mm512_storeu_si512,
    _mm512_xor_si512,
    _mm512_or_si512,
    |any| _mm512_test_epi64_mask(any, any) == 0
);

kernel!(
    avx2,
    "avx2",
    __m256i,
    32,
    8,
    _mm256_setzero_si256,
    _mm256_loadu_si256,
    _mm256_storeu_si256,
    _mm256_xor_si256,
    _mm256_or_si256,
    |any| _mm256_testz_si256(any, any) == 1
);
