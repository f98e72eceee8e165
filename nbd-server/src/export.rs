//! What a server offers: exports, their names and what is true of them.
//!
//! Invariants: names are unique, non-empty, at most [`MAX_NAME_BYTES`] bytes and free of NUL, so that a name
//! read from a client either is one of them or is refused.

use crate::access::Access;
use crate::limits::{MAX_DESCRIPTION_BYTES, MAX_EXPORTS, MAX_REQUEST_BYTES};
use crate::proto::Contexts;
use crate::proto::reply::Style;
use crate::proto::wire::transmission_flags as flags;
use raidcore::dev::Geometry;
use raidcore::limits::MAX_NAME_BYTES;

/// Names an export within a server; given out by whoever owns the devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExportId(pub u32);

/// One export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// Which one.
    pub id: ExportId,
    /// What clients ask for.
    pub name: String,
    /// What `NBD_OPT_LIST` tells people about it; may be empty.
    pub description: String,
    /// Size and abilities of the device behind it.
    pub geometry: Geometry,
    /// The device takes any offset and length; otherwise clients must keep to the block of its geometry.
    pub byte_granular: bool,
}

impl Export {
    /// The transmission flags: only what is true of the device and of this connection is announced.
    ///
    /// `NBD_FLAG_CAN_MULTI_CONN` is always true here: all connections share one device, and a flush covers
    /// every write that was answered on any of them.
    ///
    /// `contexts` are those that were selected for it. `NBD_CMD_CACHE` is told of because it does something: it
    /// reads, so bad blocks are found and repaired, and whatever caches there are below are warm afterwards.
    pub fn flags(&self, style: Style, contexts: Contexts) -> u16 {
        let g = &self.geometry;
        let writable = !g.read_only;
        let mut bits = flags::HAS_FLAGS | flags::SEND_FLUSH | flags::CAN_MULTI_CONN | flags::SEND_CACHE;
        let mut set = |when: bool, bit: u16| bits |= if when { bit } else { 0 };
        set(g.read_only, flags::READ_ONLY);
        set(writable, flags::SEND_FUA | flags::SEND_WRITE_ZEROES | flags::SEND_FAST_ZERO);
        set(writable && g.discard, flags::SEND_TRIM);
        set(g.rotational, flags::ROTATIONAL);
        set(style != Style::Simple, flags::SEND_DF);
        set(style == Style::Extended && !contexts.is_empty(), flags::BLOCK_STAT_PAYLOAD);
        bits
    }

    /// The block sizes to announce.
    pub fn block_sizes(&self) -> BlockSizes {
        let min = if self.byte_granular { 1 } else { self.geometry.block_size.bytes() };
        let device_max = u32::try_from(self.geometry.max_transfer_bytes).unwrap_or(u32::MAX);
        let max = device_max.clamp(4096, MAX_REQUEST_BYTES);
        let max = max - max % min;
        // The specification wants a power of two: the one below.
        let preferred = 1u32 << self.geometry.preferred_bytes.clamp(4096, max).ilog2();
        BlockSizes { min, preferred, max }
    }
}

/// Block sizes in bytes, as `NBD_INFO_BLOCK_SIZE` announces them. `min <= preferred <= max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizes {
    /// Every offset and length is a multiple of it.
    pub min: u32,
    /// Requests of it are served well. A power of two, at least 4096.
    pub preferred: u32,
    /// Largest payload, a multiple of `min`.
    pub max: u32,
}

/// What a client can ask to be told about ranges of an export: the metadata contexts of the NBD specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MetaContext {
    /// Which ranges hold data: flags [`allocation::HOLE`] and [`allocation::ZERO`].
    Allocation,
    /// How far a range is from being lost: [`health::REDUNDANT`], [`health::DEGRADED`] or
    /// [`health::UNREADABLE`].
    Health,
}

impl MetaContext {
    /// All there are.
    pub const ALL: [MetaContext; 2] = [MetaContext::Allocation, MetaContext::Health];

    /// The name clients know it by: a namespace, a colon, a leaf.
    pub const fn name(self) -> &'static str {
        match self {
            MetaContext::Allocation => "base:allocation",
            MetaContext::Health => "raidctl:health",
        }
    }
}

/// Flags of the extents of [`MetaContext::Allocation`]. No flag: allocated, with data of any kind.
pub mod allocation {
    /// Nothing is allocated there: writing to it may need space.
    pub const HOLE: u64 = 1 << 0;
    /// Reads as zeroes.
    pub const ZERO: u64 = 1 << 1;
}

/// The status of the extents of [`MetaContext::Health`]: a number, the larger the worse.
pub mod health {
    /// At least one more loss does no harm.
    pub const REDUNDANT: u64 = 0;
    /// Readable, and the next loss may take it: copy it first.
    pub const DEGRADED: u64 = 1;
    /// Lost, as far as is known: reading it fails.
    pub const UNREADABLE: u64 = 2;
}

/// A part of a range that has one status throughout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Bytes, not zero.
    pub len: u64,
    /// What is true of them; of the contexts there are, it always fits 32 bits.
    pub flags: u64,
}

/// The exports of a server, and who may use them: [`crate::offers::Offers`] is what a client sees of them.
///
/// Invariant: `access` has one entry for each of `list`, at the same place.
#[derive(Clone, Debug, Default)]
pub struct Exports {
    list: Vec<Export>,
    access: Vec<Access>,
}

/// Why an export cannot be offered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    /// Names are 1 to 63 bytes without NUL.
    #[error("export name {0:?} must be 1 to {MAX_NAME_BYTES} bytes without NUL: choose another name")]
    BadName(String),
    /// Descriptions are at most 255 bytes.
    #[error("description of export {0:?} is longer than {MAX_DESCRIPTION_BYTES} bytes: shorten it")]
    BadDescription(String),
    /// The name is taken.
    #[error("export name {0:?} is in use: choose another name")]
    NameTaken(String),
    /// The number is taken.
    #[error("export {0:?} is already offered")]
    IdTaken(ExportId),
    /// Nothing is offered under this number.
    #[error("{0:?} is not offered")]
    NotOffered(ExportId),
    /// Clients rely on what they were told.
    #[error(
        "export {name:?} has {size_bytes} bytes and cannot become smaller: withdraw it and offer it again"
    )]
    Shrinks {
        /// Which.
        name: String,
        /// Its size.
        size_bytes: u64,
    },
    /// The table is full.
    #[error("{MAX_EXPORTS} exports are offered already: stop one first")]
    TooMany,
}

impl Exports {
    /// No exports.
    pub fn new() -> Exports {
        Exports::default()
    }

    /// Offers one more, to everybody.
    pub fn add(&mut self, export: Export) -> Result<(), ExportError> {
        let name = &export.name;
        if name.is_empty() || name.len() > MAX_NAME_BYTES || name.contains('\0') {
            return Err(ExportError::BadName(name.clone()));
        }
        if export.description.len() > MAX_DESCRIPTION_BYTES || export.description.contains('\0') {
            return Err(ExportError::BadDescription(name.clone()));
        }
        if self.list.len() >= MAX_EXPORTS {
            return Err(ExportError::TooMany);
        }
        if self.list.iter().any(|e| e.name == *name) {
            return Err(ExportError::NameTaken(name.clone()));
        }
        if self.by_id(export.id).is_some() {
            return Err(ExportError::IdTaken(export.id));
        }
        self.list.push(export);
        self.access.push(Access::everybody());
        Ok(())
    }

    /// Offers one at a new size, which is not smaller than before.
    pub fn resize(&mut self, id: ExportId, size_bytes: u64) -> Result<(), ExportError> {
        let export = self.list.iter_mut().find(|e| e.id == id).ok_or(ExportError::NotOffered(id))?;
        if size_bytes < export.geometry.size_bytes {
            let (name, size_bytes) = (export.name.clone(), export.geometry.size_bytes);
            return Err(ExportError::Shrinks { name, size_bytes });
        }
        export.geometry.size_bytes = size_bytes;
        Ok(())
    }

    /// Withdraws one; `None` if it is not offered.
    pub fn remove(&mut self, id: ExportId) -> Option<Export> {
        let at = self.list.iter().position(|e| e.id == id)?;
        self.access.remove(at);
        Some(self.list.remove(at))
    }

    /// Says who may use an export from now on; who uses it already goes on. False if it is not offered.
    pub fn set_access(&mut self, id: ExportId, access: Access) -> bool {
        let at = self.list.iter().position(|e| e.id == id);
        at.map(|at| self.access[at] = access).is_some()
    }

    /// All of them with who may use them, in the order they were added.
    pub fn with_access(&self) -> impl Iterator<Item = (&Export, &Access)> {
        self.list.iter().zip(&self.access)
    }

    /// The export of this number.
    pub fn by_id(&self, id: ExportId) -> Option<&Export> {
        self.list.iter().find(|e| e.id == id)
    }

    /// All of them, in the order they were added.
    pub fn iter(&self) -> std::slice::Iter<'_, Export> {
        self.list.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use raidcore::dev::BlockSize;

    fn export(id: u32, name: &str) -> Export {
        Export {
            id: ExportId(id),
            name: name.to_owned(),
            description: String::new(),
            geometry: Geometry::plain(1 << 20, BlockSize::B4096),
            byte_granular: true,
        }
    }

    #[test]
    fn access_stays_with_its_export() {
        let mut exports = Exports::new();
        exports.add(export(1, "a")).unwrap();
        exports.add(export(2, "b")).unwrap();
        assert!(exports.set_access(ExportId(2), Access::everybody().read_only()));
        exports.remove(ExportId(1)).unwrap();
        assert!(!exports.set_access(ExportId(1), Access::everybody()));
        exports.add(export(1, "a")).unwrap();
        let all: Vec<_> = exports.with_access().map(|(e, access)| (e.id.0, access.clone())).collect();
        assert_eq!(all, [(2, Access::everybody().read_only()), (1, Access::everybody())]);
    }

    #[test]
    fn names_that_cannot_be_asked_for_or_are_taken_are_refused() {
        let mut exports = Exports::new();
        exports.add(export(1, "a")).unwrap();
        for bad in ["", "x\0y", &"n".repeat(64)] {
            assert!(matches!(exports.add(export(2, bad)), Err(ExportError::BadName(_))), "{bad:?}");
        }
        assert!(matches!(exports.add(export(2, "a")), Err(ExportError::NameTaken(_))));
        assert!(matches!(exports.add(export(1, "b")), Err(ExportError::IdTaken(_))));
    }

    #[test]
    fn only_what_is_true_is_announced() {
        let mut e = export(1, "a");
        let flags_of = |e: &Export, style| e.flags(style, Contexts::NONE);
        let simple = flags_of(&e, Style::Simple);
        assert_eq!(simple & (flags::SEND_TRIM | flags::SEND_DF | flags::READ_ONLY), 0);
        e.geometry.discard = true;
        assert_ne!(flags_of(&e, Style::Structured) & flags::SEND_TRIM, 0);
        assert_ne!(flags_of(&e, Style::Structured) & flags::SEND_DF, 0);
        assert_eq!(e.flags(Style::Structured, Contexts::all()) & flags::BLOCK_STAT_PAYLOAD, 0);
        assert_eq!(flags_of(&e, Style::Extended) & flags::BLOCK_STAT_PAYLOAD, 0);
        assert_ne!(e.flags(Style::Extended, Contexts::all()) & flags::BLOCK_STAT_PAYLOAD, 0);
        e.geometry.read_only = true;
        let read_only = flags_of(&e, Style::Structured);
        assert_eq!(read_only & (flags::SEND_TRIM | flags::SEND_FUA | flags::SEND_WRITE_ZEROES), 0);
        assert_ne!(read_only & flags::READ_ONLY, 0);
    }

    #[test]
    fn block_sizes_are_powers_of_two_in_order() {
        let mut e = export(1, "a");
        e.geometry.preferred_bytes = 3 * 65536;
        assert_eq!(e.block_sizes(), BlockSizes { min: 1, preferred: 131072, max: 32 << 20 });
        e.byte_granular = false;
        e.geometry.preferred_bytes = 0;
        assert_eq!(e.block_sizes(), BlockSizes { min: 4096, preferred: 4096, max: 32 << 20 });
        e.geometry.max_transfer_bytes = 1_000_000;
        assert_eq!(e.block_sizes().max, 244 * 4096);
    }
}
