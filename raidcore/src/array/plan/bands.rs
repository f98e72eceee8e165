//! Rows cut into bands: within a band, each column is covered either wholly or not at all.
//!
//! A write from the middle of one chunk to the middle of the next covers different columns in different rows.
//! Cut at every row where the coverage changes, each band is the simple problem "these columns are new, those
//! are old", and any set of spans is a list of such problems.

use super::Span;
use smallvec::SmallVec;

/// Part of a span: `from` bytes into span number `span`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) column: usize,
    pub(super) span: usize,
    pub(super) from: u32,
}

/// Rows `row..row + len`, wholly covered in the columns of `parts` and nowhere else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Band {
    pub(super) row: u32,
    pub(super) len: u32,
    pub(super) parts: SmallVec<[Part; 8]>,
}

/// The bands of `spans`, which do not overlap, in the order of their rows. Parts are in the order of columns.
pub(super) fn bands(spans: &[Span]) -> Vec<Band> {
    let mut cuts: SmallVec<[u32; 16]> = spans.iter().flat_map(|span| [span.row, span.end()]).collect();
    cuts.sort_unstable();
    cuts.dedup();
    let mut bands = Vec::with_capacity(cuts.len());
    for pair in cuts.windows(2) {
        let (row, end) = (pair[0], pair[1]);
        let covers = |span: &Span| span.row <= row && span.end() >= end;
        let part =
            |(index, span): (usize, &Span)| Part { column: span.column, span: index, from: row - span.row };
        let mut parts: SmallVec<[Part; 8]> =
            spans.iter().enumerate().filter(|(_, s)| covers(s)).map(part).collect();
        parts.sort_unstable_by_key(|part| part.column);
        if !parts.is_empty() {
            bands.push(Band { row, len: end - row, parts });
        }
    }
    bands
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_over_a_chunk_border_is_two_bands_with_one_column_each() {
        let spans = [Span { column: 0, row: 12, len: 4 }, Span { column: 1, row: 0, len: 8 }];
        let got: Vec<_> =
            bands(&spans).iter().map(|b| (b.row, b.len, b.parts[0].column, b.parts.len())).collect();
        assert_eq!(got, [(0, 8, 1, 1), (12, 4, 0, 1)]);
    }

    #[test]
    fn spans_of_different_height_share_the_rows_they_have_in_common() {
        let spans = [Span { column: 1, row: 0, len: 16 }, Span { column: 0, row: 4, len: 4 }];
        let got: Vec<_> = bands(&spans).iter().map(|b| (b.row, b.len, b.parts.len())).collect();
        assert_eq!(got, [(0, 4, 1), (4, 4, 2), (8, 8, 1)]);
        assert_eq!(bands(&spans)[1].parts[1], Part { column: 1, span: 0, from: 4 });
    }
}
