//! A stripe with P and Q as a code word: what each part of it is in terms of the others.
//!
//! The parts are numbered: the columns by their power of the generator in Q, then P, then Q. So
//! P = D0 + D1 + ... and Q = D0 + 2 D1 + 4 D2 + ... (addition is exclusive or). Any two parts follow from the rest,
//! and no three do.
//!
//! Pure algebra over single factors; buffers are combined by [`combine_into`](super::combine_into).

use super::field::{inverse, multiply, power};
use smallvec::SmallVec;

/// A sum of parts: the factor of each, zero where it does not count.
pub type Factors = SmallVec<[u8; 16]>;

/// A stripe of so many columns, with P and Q.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word {
    columns: usize,
}

impl Word {
    /// Of 1 to 255 columns: so many different powers the generator has.
    pub fn new(columns: usize) -> Word {
        assert!((1..=255).contains(&columns), "Q tells at most 255 columns apart");
        Word { columns }
    }

    /// How many parts there are.
    pub fn parts(self) -> usize {
        self.columns + 2
    }

    /// The number of P.
    pub fn p(self) -> usize {
        self.columns
    }

    /// The number of Q.
    pub fn q(self) -> usize {
        self.columns + 1
    }

    /// The sum in which nothing counts.
    pub fn nothing(self) -> Factors {
        SmallVec::from_elem(0, self.parts())
    }

    /// What one column contributes to P and to Q.
    pub fn factor_in(self, parity: usize, column: usize) -> u8 {
        if parity == self.p() { 1 } else { power(column) }
    }

    /// Part `wanted` as a sum of the parts that are not `lost`; whether `wanted` is among these makes no
    /// difference. `None` if too many are lost. P is preferred to Q, so that where they contradict each other, all
    /// parts of one word are taken from the same.
    pub fn recover(self, wanted: usize, lost: &[usize]) -> Option<Factors> {
        let mut others = lost.iter().copied().filter(|&part| part != wanted);
        let (other, too_many) = (others.next(), others.next());
        if too_many.is_some() {
            return None;
        }
        let mut factors = self.nothing();
        match (wanted < self.columns, other) {
            (true, Some(other)) if other == self.p() => self.column_from_q(wanted, &mut factors),
            (true, Some(other)) if other < self.columns => self.column_of_two(wanted, other, &mut factors),
            (true, _) => {
                factors[..=self.p()].fill(1);
                factors[wanted] = 0;
            }
            (false, other) => {
                (0..self.columns).for_each(|column| factors[column] = self.factor_in(wanted, column));
                if let Some(column) = other.filter(|&other| other < self.columns) {
                    return self.without(factors, &[column, wanted]);
                }
            }
        }
        Some(factors)
    }

    /// The same sum without the `lost` parts: each that counts is put in terms of the others. `None` if one of them
    /// cannot be.
    pub fn without(self, mut factors: Factors, lost: &[usize]) -> Option<Factors> {
        for &part in lost {
            let factor = std::mem::replace(&mut factors[part], 0);
            if factor != 0 {
                let instead = self.recover(part, lost)?;
                factors.iter_mut().zip(instead).for_each(|(sum, term)| *sum ^= multiply(factor, term));
            }
        }
        Some(factors)
    }

    /// Dx = (Q + the other columns' part of Q) / g^x.
    fn column_from_q(self, x: usize, factors: &mut Factors) {
        let scale = inverse(power(x));
        (0..self.columns).for_each(|column| factors[column] = multiply(scale, power(column)));
        factors[x] = 0;
        factors[self.q()] = scale;
    }

    /// Dx + Dy and g^x Dx + g^y Dy are known: p and q, which are P and Q without the other columns. So
    /// Dx = (g^y p + q) / (g^x + g^y).
    fn column_of_two(self, x: usize, y: usize, factors: &mut Factors) {
        let scale = inverse(power(x) ^ power(y));
        let (of_p, of_q) = (multiply(scale, power(y)), scale);
        for column in (0..self.columns).filter(|&column| column != x && column != y) {
            factors[column] = of_p ^ multiply(of_q, power(column));
        }
        factors[self.p()] = of_p;
        factors[self.q()] = of_q;
    }
}
