//! md's near layout: the copies of chunk `c` stand at positions `c * copies + j`, counted along the members and
//! then down the rows.
//!
//! Three members, two copies: row 0 holds `0 0 1`, row 1 holds `1 2 2`.

use super::Slot;

/// Member and row (in chunks) of copy `copy` of chunk `chunk`.
pub(super) fn home(slots: usize, copies: usize, chunk: u64, copy: usize) -> (Slot, u64) {
    let position = chunk * copies as u64 + copy as u64;
    (Slot::from_index((position % slots as u64) as usize), position / slots as u64)
}

/// True if every chunk has a copy on a member that is not missing. The pattern repeats after `slots` chunks.
pub(super) fn survives(slots: usize, copies: usize, missing: impl Fn(Slot) -> bool) -> bool {
    let has_copy = |chunk| (0..copies).any(|copy| !missing(home(slots, copies, chunk, copy).0));
    (0..slots as u64).all(has_copy)
}
