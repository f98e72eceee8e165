//! The kernels of x86-64 for P+Q and for sums with factors, in three ways to multiply and two widths.
//!
//! Q is summed from the last column to the first, doubling between two of them (Horner's scheme), so that P+Q
//! needs no table. Sums with factors look up both halves of each byte (`vpshufb`), or let GFNI's affine
//! transformation multiply by the factor's matrix; its own multiplication instruction is of another field.
#![allow(unsafe_code)] // one of the three places: vector instructions

use super::Scaled;
use super::field::{MATRICES, NIBBLES, POLYNOMIAL};
use super::portable::{combine_bytes, pq_bytes};
use std::arch::x86_64::*;

/// The kernel of one vector width and one way to multiply. `$lanes` vectors of P and as many of Q are summed side
/// by side. `$prepare` makes of a factor what `$multiply` takes together with a vector.
macro_rules! kernel {
    ($module:ident, $feature:literal, $vector:ty, $bytes:literal, $lanes:literal,
     $zero:ident, $load:ident, $store:ident, $xor:ident,
     prepare $prepare:item
     multiply $multiply:item
     double $double:item) => {
        pub(super) mod $module {
            use super::*;

            const VECTOR: usize = $bytes;
            const BLOCK: usize = VECTOR * $lanes;

            #[target_feature(enable = $feature)]
            pub(in super::super) fn pq(p: &mut [u8], q: &mut [u8], sources: &[&[u8]]) {
                let blocks = p.len() - p.len() % BLOCK;
                for at in (0..blocks).step_by(BLOCK) {
                    pq_block::<$lanes>(&mut p[at..at + BLOCK], &mut q[at..at + BLOCK], sources, at);
                }
                let whole = p.len() - p.len() % VECTOR;
                for at in (blocks..whole).step_by(VECTOR) {
                    pq_block::<1>(&mut p[at..at + VECTOR], &mut q[at..at + VECTOR], sources, at);
                }
                pq_bytes(p, q, sources, whole);
            }

            #[target_feature(enable = $feature)]
            pub(in super::super) fn combine(dst: &mut [u8], terms: &[Scaled], keep: bool) {
                let blocks = dst.len() - dst.len() % BLOCK;
                for at in (0..blocks).step_by(BLOCK) {
                    combine_block::<$lanes>(&mut dst[at..at + BLOCK], terms, at, keep);
                }
                let whole = dst.len() - dst.len() % VECTOR;
                for at in (blocks..whole).step_by(VECTOR) {
                    combine_block::<1>(&mut dst[at..at + VECTOR], terms, at, keep);
                }
                combine_bytes(dst, terms, keep, whole);
            }

            #[inline]
            #[target_feature(enable = $feature)]
            fn pq_block<const N: usize>(p: &mut [u8], q: &mut [u8], sources: &[&[u8]], at: usize) {
                let (mut p_sum, mut q_sum) = ([$zero(); N], [$zero(); N]);
                for source in sources.iter().rev() {
                    let column: [$vector; N] = load(&source[at..at + N * VECTOR]);
                    for lane in 0..N {
                        p_sum[lane] = $xor(p_sum[lane], column[lane]);
                        q_sum[lane] = $xor(double(q_sum[lane]), column[lane]);
                    }
                }
                store(p, &p_sum);
                store(q, &q_sum);
            }

            #[inline]
            #[target_feature(enable = $feature)]
            fn combine_block<const N: usize>(dst: &mut [u8], terms: &[Scaled], at: usize, keep: bool) {
                let mut sum: [$vector; N] = if keep { load(dst) } else { [$zero(); N] };
                for (factor, source) in terms {
                    let table = prepare(*factor);
                    let column: [$vector; N] = load(&source[at..at + N * VECTOR]);
                    for lane in 0..N {
                        sum[lane] = $xor(sum[lane], multiply(table, column[lane]));
                    }
                }
                store(dst, &sum);
            }

            #[inline]
            #[target_feature(enable = $feature)]
            $prepare

            #[inline]
            #[target_feature(enable = $feature)]
            $multiply

            #[inline]
            #[target_feature(enable = $feature)]
            $double

            #[inline]
            #[target_feature(enable = $feature)]
            fn load<const N: usize>(from: &[u8]) -> [$vector; N] {
                let mut vectors = [$zero(); N];
                let (chunks, _) = from.as_chunks::<VECTOR>();
                for (vector, chunk) in vectors.iter_mut().zip(chunks) {
                    // SAFETY: `chunk` is a readable array of a vector's size; the load takes any alignment.
                    *vector = unsafe { $load(chunk.as_ptr().cast()) };
                }
                vectors
            }

            #[inline]
            #[target_feature(enable = $feature)]
            fn store<const N: usize>(to: &mut [u8], vectors: &[$vector; N]) {
                let (chunks, _) = to.as_chunks_mut::<VECTOR>();
                for (chunk, vector) in chunks.iter_mut().zip(vectors) {
                    // SAFETY: `chunk` is a writable array of a vector's size; the store takes any alignment.
                    unsafe { $store(chunk.as_mut_ptr().cast(), *vector) };
                }
            }
        }
    };
}

kernel!(avx512_gfni, "avx512f,avx512bw,gfni", __m512i, 64, 8,
    _mm512_setzero_si512, _mm512_loadu_si512, _mm512_storeu_si512, _mm512_xor_si512,
    prepare fn prepare(factor: u8) -> __m512i {
        _mm512_set1_epi64(MATRICES[usize::from(factor)] as i64)
    }
    multiply fn multiply(matrix: __m512i, bytes: __m512i) -> __m512i {
        _mm512_gf2p8affine_epi64_epi8::<0>(bytes, matrix)
    }
    double fn double(bytes: __m512i) -> __m512i {
        multiply(prepare(2), bytes)
    }
);

kernel!(avx512, "avx512f,avx512bw", __m512i, 64, 8,
    _mm512_setzero_si512, _mm512_loadu_si512, _mm512_storeu_si512, _mm512_xor_si512,
    prepare fn prepare(factor: u8) -> (__m512i, __m512i) {
        let (low, high) = &NIBBLES[usize::from(factor)];
        // SAFETY: a readable array of 16 bytes; the load takes any alignment.
        let low = unsafe { _mm_loadu_si128(low.as_ptr().cast()) };
        // SAFETY: as above.
        let high = unsafe { _mm_loadu_si128(high.as_ptr().cast()) };
        (_mm512_broadcast_i32x4(low), _mm512_broadcast_i32x4(high))
    }
    multiply fn multiply((low, high): (__m512i, __m512i), bytes: __m512i) -> __m512i {
        let mask = _mm512_set1_epi8(0x0f);
        let of_low = _mm512_shuffle_epi8(low, _mm512_and_si512(bytes, mask));
        let of_high = _mm512_shuffle_epi8(high, _mm512_and_si512(_mm512_srli_epi64::<4>(bytes), mask));
        _mm512_xor_si512(of_low, of_high)
    }
    double fn double(bytes: __m512i) -> __m512i {
        let carried = _mm512_maskz_set1_epi8(_mm512_movepi8_mask(bytes), POLYNOMIAL as i8);
        _mm512_xor_si512(_mm512_add_epi8(bytes, bytes), carried)
    }
);

kernel!(avx2_gfni, "avx2,gfni", __m256i, 32, 4,
    _mm256_setzero_si256, _mm256_loadu_si256, _mm256_storeu_si256, _mm256_xor_si256,
    prepare fn prepare(factor: u8) -> __m256i {
        _mm256_set1_epi64x(MATRICES[usize::from(factor)] as i64)
    }
    multiply fn multiply(matrix: __m256i, bytes: __m256i) -> __m256i {
        _mm256_gf2p8affine_epi64_epi8::<0>(bytes, matrix)
    }
    double fn double(bytes: __m256i) -> __m256i {
        multiply(prepare(2), bytes)
    }
);

kernel!(avx2, "avx2", __m256i, 32, 4,
    _mm256_setzero_si256, _mm256_loadu_si256, _mm256_storeu_si256, _mm256_xor_si256,
    prepare fn prepare(factor: u8) -> (__m256i, __m256i) {
        let (low, high) = &NIBBLES[usize::from(factor)];
        // SAFETY: a readable array of 16 bytes; the load takes any alignment.
        let low = unsafe { _mm_loadu_si128(low.as_ptr().cast()) };
        // SAFETY: as above.
        let high = unsafe { _mm_loadu_si128(high.as_ptr().cast()) };
        (_mm256_broadcastsi128_si256(low), _mm256_broadcastsi128_si256(high))
    }
    multiply fn multiply((low, high): (__m256i, __m256i), bytes: __m256i) -> __m256i {
        let mask = _mm256_set1_epi8(0x0f);
        let of_low = _mm256_shuffle_epi8(low, _mm256_and_si256(bytes, mask));
        let of_high = _mm256_shuffle_epi8(high, _mm256_and_si256(_mm256_srli_epi64::<4>(bytes), mask));
        _mm256_xor_si256(of_low, of_high)
    }
    double fn double(bytes: __m256i) -> __m256i {
        let carries = _mm256_cmpgt_epi8(_mm256_setzero_si256(), bytes);
        let carried = _mm256_and_si256(carries, _mm256_set1_epi8(POLYNOMIAL as i8));
        _mm256_xor_si256(_mm256_add_epi8(bytes, bytes), carried)
    }
);
