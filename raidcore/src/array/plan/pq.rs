//! Stripes with two parities: what a unit's members hold, as a code word.
//!
//! A new parity is what the new columns contribute and what the others do, and the latter can be had in two ways: from
//! the other columns (*reconstruct-write*) or from the old parity and the old content of the new columns
//! (*read-modify-write*). In both, what cannot be read is put in terms of what can be; with two members missing both
//! come to the same. The way with fewer reads is taken.
//!
//! Where a resync has not come yet, P and Q may contradict each other, and a later loss would make of that wrong data
//! in columns that were not even written. So there, reconstruct-write is taken: it leaves a word that agrees with
//! itself, since each lost column is taken from one source for both parities.

use super::bands::Band;
use super::{Access, Compute, Mem, Plan, Term, Unreadable, at_row};
use crate::layout::{Home, Homes, Q, Slot};
use crate::parity::{Factors, Word};
use smallvec::SmallVec;

/// The members of a unit by the parts of the word they hold.
pub(super) struct Stripe<'a> {
    data: &'a Homes,
    parity: Home,
    q: Q,
    word: Word,
}

/// Parts of the word.
pub(super) type Parts = SmallVec<[usize; 4]>;

/// Scratch buffers with what parts hold now, for one range of rows.
struct Present<'a> {
    stripe: &'a Stripe<'a>,
    row: u32,
    len: u32,
    /// The buffer of each part that has been read.
    scratch: SmallVec<[Option<usize>; 16]>,
}

impl<'a> Stripe<'a> {
    pub(super) fn new(data: &'a Homes, parity: Home, q: Q) -> Stripe<'a> {
        Stripe { data, parity, q, word: Word::new(data.len()) }
    }

    /// The part that a column is: its power in Q.
    pub(super) fn part_of(&self, column: usize) -> usize {
        (column + self.data.len() - self.q.first_column) % self.data.len()
    }

    pub(super) fn home(&self, part: usize) -> Home {
        match part {
            part if part == self.word.p() => self.parity,
            part if part == self.word.q() => self.q.home,
            part => self.data[(part + self.q.first_column) % self.data.len()],
        }
    }

    /// The part on this member.
    pub(super) fn part_on(&self, slot: Slot) -> Option<usize> {
        (0..self.word.parts()).find(|&part| self.home(part).slot == slot)
    }

    /// The parts that cannot be read.
    pub(super) fn lost(&self, access: Access) -> Parts {
        (0..self.word.parts()).filter(|&part| access.unreadable.contains(self.home(part).slot)).collect()
    }

    /// Part `wanted` as a sum of parts that are not lost.
    pub(super) fn recover(&self, wanted: usize, lost: &[usize]) -> Result<Factors, Unreadable> {
        self.word.recover(wanted, lost).ok_or(Unreadable)
    }

    /// Reads what the sum consists of, into scratch buffers.
    pub(super) fn read(&self, plan: &mut Plan, factors: &Factors, row: u32, len: u32) -> Vec<Term> {
        Present::new(self, row, len).terms(plan, factors)
    }

    /// Writes the parity of a band whose columns are new in part.
    pub(super) fn plan_band(&self, plan: &mut Plan, band: &Band, access: Access) -> Result<(), Unreadable> {
        let parities: Parts = [self.word.p(), self.word.q()]
            .into_iter()
            .filter(|&part| !access.unwritable.contains(self.home(part).slot))
            .collect();
        if parities.is_empty() {
            return Ok(());
        }
        let new: SmallVec<[(usize, Mem); 8]> = band
            .parts
            .iter()
            .map(|part| {
                (self.part_of(part.column), Mem::Span { span: part.span, from: part.from, len: band.len })
            })
            .collect();
        let lost = self.lost(access);
        let reconstructed = self.rest(&parities, &lost, |parity| self.of_other_columns(parity, &new));
        let modified = self.rest(&parities, &lost, |parity| self.of_old(parity, &new));
        let rest = match (reconstructed, modified) {
            (Some(one), Some(other)) if !access.unsynced && reads(&other) < reads(&one) => other,
            (Some(one), _) => one,
            (None, Some(other)) => other,
            (None, None) => return Err(Unreadable),
        };
        let mut present = Present::new(self, band.row, band.len);
        let columns = self.whole_columns(&new, &rest);
        if parities.len() == 2
            && let Some(columns) = columns
        {
            let columns = columns.into_iter().map(|column| match column {
                Column::New(mem) => mem,
                Column::Present(part) => present.read(plan, part),
            });
            let columns = columns.collect();
            let (p, q) = (plan.new_scratch(band.len), plan.new_scratch(band.len));
            plan.sums.push(Compute::Parities { p, q, columns });
            plan.write(at_row(self.parity, band.row), Mem::Scratch(p));
            plan.write(at_row(self.q.home, band.row), Mem::Scratch(q));
            return Ok(());
        }
        for (&parity, rest) in parities.iter().zip(&rest) {
            let mut terms = present.terms(plan, rest);
            let term =
                |&(part, source): &(usize, Mem)| Term { factor: self.word.factor_in(parity, part), source };
            terms.extend(new.iter().map(term));
            let result = Mem::Scratch(plan.new_scratch(band.len));
            plan.sums.push(Compute::Sum { dst: result, terms: terms.into() });
            plan.write(at_row(self.home(parity), band.row), result);
        }
        Ok(())
    }

    /// Brings P and Q of these rows in line with the columns. One column may be lost: it is what P makes of it.
    pub(super) fn plan_resync(
        &self,
        plan: &mut Plan,
        row: u32,
        len: u32,
        access: Access,
    ) -> Result<(), Unreadable> {
        let lost = self.lost(access);
        let lost_columns = lost.iter().filter(|&&part| part < self.word.p()).count();
        let mut present = Present::new(self, row, len);
        for parity in [self.word.p(), self.word.q()] {
            let home = self.home(parity);
            if access.unwritable.contains(home.slot) {
                continue;
            }
            if lost_columns > 0 && (parity == self.word.p() || lost.contains(&self.word.p())) {
                // It is what the lost column is taken from.
                continue;
            }
            let sum = self.of_other_columns(parity, &[]);
            let sum = self.word.without(sum, &lost).ok_or(Unreadable)?;
            let unless_equal = (!lost.contains(&parity)).then(|| present.read_into(plan, parity));
            let terms = present.terms(plan, &sum);
            let from = Mem::Scratch(plan.new_scratch(len));
            plan.sums.push(Compute::Sum { dst: from, terms: terms.into() });
            plan.writes.push(super::WriteStep { home: at_row(home, row), from, unless_equal });
        }
        Ok(())
    }

    /// What each parity is but for the new columns, in terms of what can be read.
    fn rest(
        &self,
        parities: &[usize],
        lost: &[usize],
        of: impl Fn(usize) -> Factors,
    ) -> Option<SmallVec<[Factors; 2]>> {
        parities.iter().map(|&parity| self.word.without(of(parity), lost)).collect()
    }

    /// The sum of the columns that are not new.
    fn of_other_columns(&self, parity: usize, new: &[(usize, Mem)]) -> Factors {
        let mut factors = self.word.nothing();
        (0..self.data.len()).for_each(|column| factors[column] = self.word.factor_in(parity, column));
        new.iter().for_each(|&(part, _)| factors[part] = 0);
        factors
    }

    /// The old parity without the old content of the new columns.
    fn of_old(&self, parity: usize, new: &[(usize, Mem)]) -> Factors {
        let mut factors = self.word.nothing();
        factors[parity] = 1;
        new.iter().for_each(|&(part, _)| factors[part] = self.word.factor_in(parity, part));
        factors
    }

    /// All columns in the order of their parts, if none is lost and no old parity counts: P and Q then take one pass.
    fn whole_columns(&self, new: &[(usize, Mem)], rest: &[Factors]) -> Option<SmallVec<[Column; 8]>> {
        let uses_parity =
            rest.iter().any(|factors| factors[self.word.p()..].iter().any(|&factor| factor != 0));
        let column = |part: usize| {
            let fresh = new.iter().find(|(new, _)| *new == part).map(|&(_, mem)| Column::New(mem));
            fresh.or_else(|| (rest[0][part] != 0).then_some(Column::Present(part)))
        };
        if uses_parity { None } else { (0..self.data.len()).map(column).collect() }
    }
}

/// Where a column comes from.
enum Column {
    New(Mem),
    Present(usize),
}

/// Parts that any of the sums needs.
fn reads(sums: &[Factors]) -> usize {
    (0..sums[0].len()).filter(|&part| sums.iter().any(|factors| factors[part] != 0)).count()
}

impl<'a> Present<'a> {
    fn new(stripe: &'a Stripe<'a>, row: u32, len: u32) -> Present<'a> {
        Present { stripe, row, len, scratch: SmallVec::from_elem(None, stripe.word.parts()) }
    }

    fn read(&mut self, plan: &mut Plan, part: usize) -> Mem {
        Mem::Scratch(self.read_into(plan, part))
    }

    /// The buffer of a part, which is read once.
    fn read_into(&mut self, plan: &mut Plan, part: usize) -> usize {
        let home = at_row(self.stripe.home(part), self.row);
        *self.scratch[part].get_or_insert_with(|| plan.read(home, self.len))
    }

    fn terms(&mut self, plan: &mut Plan, factors: &Factors) -> Vec<Term> {
        let counting = factors.iter().enumerate().filter(|(_, factor)| **factor != 0);
        counting.map(|(part, &factor)| Term { factor, source: self.read(plan, part) }).collect()
    }
}
