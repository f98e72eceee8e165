//! What clients are told of ranges of a logical unit, in the terms of the protocol's metadata contexts.

use nbd_server::export::{Extent, MetaContext, allocation, health};
use nbd_server::limits::MAX_EXTENTS;
use raidcore::array::{Array, Health};
use raidcore::dev::BlockDev;
use raidcore::lu::Lu;
use std::ops::Range;

/// Appends what is true of `range`, at most [`MAX_EXTENTS`] extents of it.
pub fn tell(lu: &Lu<Array>, context: MetaContext, range: Range<u64>, out: &mut Vec<Extent>) {
    match context {
        MetaContext::Allocation => {
            // Members that cannot give space back hold the zeroes they were told to write.
            let hole = if lu.geometry().unmap_zeroes { allocation::HOLE } else { 0 };
            let known = hole | allocation::ZERO;
            let extent = |(len, zero)| Extent { len, flags: if zero { known } else { 0 } };
            out.extend(lu.zeroes().runs(range).take(MAX_EXTENTS).map(extent));
        }
        MetaContext::Health => {
            let extent = |(len, health)| Extent { len, flags: status(health) };
            out.extend(lu.dev().health().runs(range).take(MAX_EXTENTS).map(extent));
        }
    }
}

fn status(health: Health) -> u64 {
    match health {
        Health::Redundant => health::REDUNDANT,
        Health::Degraded => health::DEGRADED,
        Health::Unreadable => health::UNREADABLE,
    }
}
