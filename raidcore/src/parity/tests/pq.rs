//! P, Q and what follows from them, against the multiplication of an independent implementation.

use super::*;

fn product(a: u8, b: u8) -> u8 {
    Field::mul(a, b)
}

/// The generator's powers by that implementation.
fn generator_to(exponent: usize) -> u8 {
    Field::exp(2, exponent)
}

fn combined(dst: &[u8], terms: &[(u8, &[u8])], keep: bool) -> Vec<u8> {
    let sum = |at: usize| terms.iter().fold(0, |sum, (f, source)| sum ^ product(*f, source[at]));
    (0..dst.len()).map(|at| sum(at) ^ if keep { dst[at] } else { 0 }).collect()
}

/// P and Q by each kernel of columns of this length, and sums with factors.
fn check_pq(len: usize, count: usize, offset: usize, seed: u64) {
    let memory = memory(count, len, seed);
    let columns = unaligned(&memory, len);
    let before = noise(!seed, len + offset + 64);
    let plain: Vec<(u8, &[u8])> = columns.iter().map(|column| (1, *column)).collect();
    let weighted: Vec<(u8, &[u8])> =
        columns.iter().enumerate().map(|(i, column)| (generator_to(i), *column)).collect();
    let factors = noise(seed ^ 99, count);
    let any: Vec<(u8, &[u8])> = factors.iter().copied().zip(columns.iter().copied()).collect();
    let place = offset..offset + len;
    let is_untouched_but_there = |after: &[u8]| {
        after[..place.start] == before[..place.start] && after[place.end..] == before[place.end..]
    };
    for kernel in kernels() {
        let (mut p, mut q) = (before.clone(), before.clone());
        kernel.pq_into(&mut p[place.clone()], &mut q[place.clone()], &columns);
        let ground = &before[place.clone()];
        assert!(p[place.clone()] == combined(ground, &plain, false), "P {kernel:?} {len} {count}");
        assert!(q[place.clone()] == combined(ground, &weighted, false), "Q {kernel:?} {len} {count}");
        assert!(is_untouched_but_there(&p) && is_untouched_but_there(&q), "{kernel:?} {len} {count}");
        for keep in [false, true] {
            let mut sum = before.clone();
            if keep {
                kernel.combine_accumulate(&mut sum[place.clone()], &any);
            } else {
                kernel.combine_into(&mut sum[place.clone()], &any);
            }
            assert!(sum[place.clone()] == combined(ground, &any, keep), "sum {kernel:?} {len} {count}");
            assert!(is_untouched_but_there(&sum), "{kernel:?} {len} {count}");
        }
    }
}

#[test]
fn p_q_and_sums_of_every_length_are_right() {
    (0..=MAX_LEN).for_each(|len| check_pq(len, 1 + len % 7, len % 5, len as u64));
}

#[test]
fn p_q_and_sums_of_every_number_of_columns_are_right() {
    (0..=62).for_each(|count| check_pq(1111, count, 1, count as u64));
}

#[test]
fn every_product_of_every_kernel_is_that_of_an_independent_field() {
    let all: Vec<u8> = (0..=255).collect();
    for factor in 0..=255 {
        let expected: Vec<u8> = all.iter().map(|&byte| product(factor, byte)).collect();
        let own: Vec<u8> = all.iter().map(|&byte| multiply(factor, byte)).collect();
        assert!(own == expected, "times {factor}");
        for kernel in kernels() {
            let mut products = vec![0; 256];
            kernel.combine_into(&mut products, &[(factor, &all)]);
            assert!(products == expected, "{kernel:?} times {factor}");
        }
        if factor != 0 {
            assert_eq!(product(factor, inverse(factor)), 1);
        }
        assert_eq!(power(usize::from(factor)), generator_to(usize::from(factor)));
    }
}

/// By hand, in the field where 2 * 0x80 = 0x1d: of the columns 01 80 ff, P = 01 + 80 + ff = 7e. Horner from the last:
/// ff; 2 * ff = fe + 1d = e3, plus 80 is 63; 2 * 63 = c6, plus 01 is c7. So Q = c7.
#[test]
fn a_vector_computed_by_hand() {
    for kernel in kernels() {
        let (mut p, mut q) = ([0; 97], [0; 97]);
        kernel.pq_into(&mut p, &mut q, &[&[0x01; 97], &[0x80; 97], &[0xff; 97]]);
        assert_eq!((p, q), ([0x7e; 97], [0xc7; 97]), "{kernel:?}");
    }
}

/// All parts of a random word, one byte each.
fn word_of(columns: &[u8]) -> Vec<u8> {
    let p = columns.iter().fold(0, |sum, byte| sum ^ byte);
    let q = columns.iter().enumerate().fold(0, |sum, (i, &byte)| sum ^ product(generator_to(i), byte));
    columns.iter().copied().chain([p, q]).collect()
}

fn value(factors: &[u8], parts: &[u8]) -> u8 {
    factors.iter().zip(parts).fold(0, |sum, (&factor, &part)| sum ^ product(factor, part))
}

#[test]
fn any_two_parts_follow_from_the_others_and_no_three_do() {
    for columns in 2..=20 {
        let word = Word::new(columns);
        let parts = word_of(&noise(columns as u64, columns));
        for a in 0..word.parts() {
            for b in 0..word.parts() {
                for wanted in [a, b] {
                    let factors = word.recover(wanted, &[a, b]).unwrap();
                    assert!(factors[a] == 0 && factors[b] == 0, "{columns}: {wanted} of {a}, {b}");
                    assert_eq!(value(&factors, &parts), parts[wanted], "{columns}: {wanted} of {a}, {b}");
                }
                let third = (0..word.parts()).find(|part| *part != a && *part != b).unwrap();
                assert!(a == b || word.recover(a, &[a, b, third]).is_none());
            }
        }
    }
}

proptest! {
    #[test]
    fn a_sum_keeps_its_value_without_what_is_lost(
        columns in 1..=62usize, seed: u64, lost in prop::collection::vec(any::<prop::sample::Index>(), 0..=2),
    ) {
        let word = Word::new(columns);
        let parts = word_of(&noise(seed, columns));
        let lost: Vec<usize> = lost.iter().map(|at| at.index(word.parts())).collect();
        let factors = Factors::from_vec(noise(!seed, word.parts()));
        let without = word.without(factors.clone(), &lost).unwrap();
        prop_assert!(lost.iter().all(|&part| without[part] == 0));
        prop_assert_eq!(value(&without, &parts), value(&factors, &parts));
    }

    #[test]
    fn any_length_any_alignment_and_any_number_of_columns_is_right(
        len in 0..=MAX_LEN, count in 1..=62usize, offset in 0..64usize, seed: u64,
    ) {
        check_pq(len, count, offset, seed);
    }
}
