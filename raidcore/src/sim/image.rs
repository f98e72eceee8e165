//! What a disk holds: a sparse array of bytes, zero where nothing was written.
//!
//! Pages are shared between clones until one of them is written to, so a copy of a disk costs its table and
//! not its content. Never bounded by a size: the devices above check their ranges.

use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;

const PAGE: u64 = 64 << 10;

/// Sparse bytes.
#[derive(Clone, Default)]
pub(super) struct Image {
    pages: HashMap<u64, Rc<[u8]>>,
}

impl Image {
    /// Fills `to` with the bytes from `offset` on.
    pub(super) fn read(&self, offset: u64, to: &mut [u8]) {
        let mut rest = to;
        for (page, within) in pieces(offset..offset + rest.len() as u64) {
            let (head, tail) = rest.split_at_mut(within.len());
            match self.pages.get(&page) {
                Some(bytes) => head.copy_from_slice(&bytes[within]),
                None => head.fill(0),
            }
            rest = tail;
        }
    }

    /// Writes `from` at `offset`.
    pub(super) fn write(&mut self, offset: u64, from: &[u8]) {
        let mut rest = from;
        for (page, within) in pieces(offset..offset + rest.len() as u64) {
            let (head, tail) = rest.split_at(within.len());
            let bytes = self.pages.entry(page).or_insert_with(|| Rc::from(vec![0; PAGE as usize]));
            Rc::make_mut(bytes)[within].copy_from_slice(head);
            rest = tail;
        }
    }

    /// Makes `range` read as zeroes; whole pages are given back, so that zeroing a big disk is cheap.
    pub(super) fn zero(&mut self, range: Range<u64>) {
        let whole = range.start.div_ceil(PAGE)..range.end / PAGE;
        if whole.is_empty() {
            return self.zero_parts(range);
        }
        self.zero_parts(range.start..whole.start * PAGE);
        self.zero_parts(whole.end * PAGE..range.end);
        if (whole.end - whole.start) as usize > self.pages.len() {
            self.pages.retain(|page, _| !whole.contains(page));
        } else {
            whole.for_each(|page| drop(self.pages.remove(&page)));
        }
    }

    fn zero_parts(&mut self, range: Range<u64>) {
        for (page, within) in pieces(range) {
            if let Some(bytes) = self.pages.get_mut(&page) {
                Rc::make_mut(bytes)[within].fill(0);
            }
        }
    }
}

/// The pages of `range`, with the part of each that lies in it.
fn pieces(range: Range<u64>) -> impl Iterator<Item = (u64, Range<usize>)> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        if at >= range.end {
            return None;
        }
        let (page, from) = (at / PAGE, at % PAGE);
        let to = PAGE.min(from + (range.end - at));
        at += to - from;
        Some((page, from as usize..to as usize))
    })
}

#[cfg(test)]
mod tests {
    use super::super::Rng;
    use super::*;

    #[test]
    fn an_image_is_an_array_of_bytes() {
        const SIZE: usize = 5 * PAGE as usize;
        let (mut rng, mut image, mut model) = (Rng::new(3), Image::default(), vec![0u8; SIZE]);
        for _ in 0..500 {
            let offset = rng.index(SIZE);
            let len = rng.index((SIZE - offset).min(3 * PAGE as usize) + 1);
            if rng.chance(0.3) {
                image.zero(offset as u64..(offset + len) as u64);
                model[offset..offset + len].fill(0);
            } else {
                rng.fill(&mut model[offset..offset + len]);
                image.write(offset as u64, &model[offset..offset + len]);
            }
        }
        let mut all = vec![1; SIZE];
        image.read(0, &mut all);
        assert!(all == model);
    }

    #[test]
    fn a_clone_does_not_see_later_writes_and_big_ranges_cost_nothing() {
        let mut image = Image::default();
        image.write(1 << 50, &[7; 100]);
        let old = image.clone();
        image.zero(0..1 << 60);
        let (mut now, mut then) = ([1; 100], [1; 100]);
        image.read(1 << 50, &mut now);
        old.read(1 << 50, &mut then);
        assert_eq!((now, then), ([0; 100], [7; 100]));
        assert!(image.pages.is_empty());
    }
}
