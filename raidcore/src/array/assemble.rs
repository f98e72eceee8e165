//! From an assembly to a running array.

use super::commit::Commit;
use super::member::{Member, MemberId};
use super::stop::Phase;
use super::unit::Units;
use super::{Array, Event};
use crate::buf::{Exhausted, Slab, SlabConfig};
use crate::dev::{BlockDev, Geometry};
use crate::layout::{Layout, Level};
use crate::limits::{ARRAY_QUEUE_DEPTH, DEFAULT_DEADLINE, MAX_MEMBERS, MAX_REQUEST_BYTES, MAX_SPARES};
use crate::meta::{self, ArrayMeta, Assembly, Found, IncarnationUuid, MemberState, SUPERBLOCK_BYTES};
use crate::slots::Slots;
use crate::time::{Clock, Time};
use std::time::Duration;
use uuid::Uuid;

/// Scratch memory beyond what one operation needs: how much work on partial stripes goes on side by side.
const SCRATCH_SMALL_BLOCKS: usize = 2048;
pub(super) const SCRATCH_ROW_BLOCKS: usize = 384;

/// How an array is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArrayOptions {
    /// When a member's I/O is given up and the member is failed.
    pub member_deadline: Duration,
    /// How long no write must come before the superblocks are marked clean (md's safe_mode_delay).
    pub clean_delay: Duration,
}

impl Default for ArrayOptions {
    fn default() -> ArrayOptions {
        ArrayOptions { member_deadline: DEFAULT_DEADLINE, clean_delay: Duration::from_millis(200) }
    }
}

/// Why an array that may be started was not.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No memory for the array's own work.
    #[error("no memory for the array's work buffers: {0}")]
    Memory(#[from] std::io::Error),
    /// Not even the first buffer could be had.
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
    /// A device that the assembly counts on was not handed over.
    #[error("the device of slot {0} was not handed over")]
    MissingDevice(usize),
    /// A member one metadata update behind the others. Were it left so, a crash in the middle of the first update
    /// of this run would leave it two behind, and out.
    #[error("{0} lags behind the newest metadata: bring it up with `meta::catch_up` before the start")]
    Lagging(String),
    /// A member that takes no transfer of the height of a unit, or no request at all.
    #[error(
        "{device} takes transfers of {max_transfer_bytes} bytes, {queue_depth} at a time: {needed} and 1 are needed"
    )]
    Unfit {
        /// The device.
        device: String,
        /// What it takes.
        max_transfer_bytes: u64,
        /// How many together.
        queue_depth: u32,
        /// What the array needs.
        needed: u32,
    },
    /// A feature that forbids this version to write.
    #[error("the array uses features that this version may not write: use the version that made it")]
    ReadOnly,
}

impl Array {
    /// Starts the array that `assembly` describes.
    ///
    /// `found` is what [`assemble`](crate::meta::assemble) was given, and `devices` holds, with their index in
    /// it, at least the devices that the assembly uses; those it calls lagging have been
    /// [brought up](crate::meta::catch_up), in `found` as on disk. Nothing is written here: the superblocks that announce
    /// the start are written by the first calls of `reap`, and no write is acknowledged before they are.
    pub fn assemble(
        assembly: &Assembly,
        found: &[Found],
        devices: Vec<(usize, Box<dyn BlockDev>)>,
        clock: &Clock,
        slab: &Slab,
        options: ArrayOptions,
    ) -> Result<Array, StartError> {
        refuse_unready(assembly, found)?;
        let meta = assembly.begin(IncarnationUuid(Uuid::new_v4()), clock.wall_ns());
        let layout = meta.layout;
        let members = members_of(&meta, assembly, found, devices)?;
        refuse_unfit(&members, &layout)?;
        let in_slot = |slot| members.iter().position(|member| member.slot == Some(slot)).map(MemberId);
        let slots: Vec<MemberId> = layout.all_slots().filter_map(in_slot).collect();
        debug_assert_eq!(slots.len(), layout.slots());

        let scratch = Slab::new(&scratch_config(&layout))?;
        let superblock_blocks = 2 * (MAX_MEMBERS + MAX_SPARES);
        let superblock_memory = Slab::new(&SlabConfig::of(&[(SUPERBLOCK_BYTES, superblock_blocks)]))?;
        let zeroes = scratch_zeroes(&layout)?;
        let mut array = Array {
            geometry: geometry_of(&meta, &layout, &members),
            layout,
            options,
            clock: clock.clone(),
            slab: slab.clone(),
            scratch,
            superblock_memory,
            zeroes,
            members,
            slots,
            all_well: false,
            failed: false,
            // An array that was just created is the one that is unsynced without a doubt.
            in_doubt: meta.resync.is_some() && !(assembly.array.clean && assembly.array.events == 1),
            unclean: false,
            phase: Phase::Serving,
            parents: Slots::new(),
            units: Units::default(),
            ops: Slots::new(),
            awaiting_commit: Vec::new(),
            commit: Commit::at_start(),
            grow: None,
            flushes: Slots::new(),
            flushes_waiting: Vec::new(),
            flushes_awaiting_commit: Vec::new(),
            sync: None,
            resync_given_up: false,
            walks: 0,
            growths: 0,
            last_write: clock.now(),
            writes_begun: 0,
            outcomes: Vec::new(),
            completions: Vec::new(),
            finished: Vec::new(),
            events: Vec::new(),
            next_deadline_check: Time::ZERO,
            meta,
        };
        array.event(Event::NewArray);
        array.look_at_health();
        array.tell_degraded();
        Ok(array)
    }
}

/// What must be so before anything is started.
fn refuse_unready(assembly: &Assembly, found: &[Found]) -> Result<(), StartError> {
    if assembly.read_only {
        return Err(StartError::ReadOnly);
    }
    let lags = |&&index: &&usize| found[index].loaded.superblock.array.events < assembly.array.events;
    if let Some(&index) = assembly.lagging.iter().find(lags) {
        return Err(StartError::Lagging(found[index].device.clone()));
    }
    Ok(())
}

fn refuse_unfit(members: &[Member], layout: &Layout) -> Result<(), StartError> {
    for member in members {
        if let Some(geometry) = member.geometry().filter(|g| !fits(g, layout)) {
            let Geometry { max_transfer_bytes, queue_depth, .. } = geometry;
            let (device, needed) = (member.device.clone(), layout.unit_rows());
            return Err(StartError::Unfit { device, max_transfer_bytes, queue_depth, needed });
        }
    }
    Ok(())
}

fn members_of(
    meta: &ArrayMeta,
    assembly: &Assembly,
    found: &[Found],
    devices: Vec<(usize, Box<dyn BlockDev>)>,
) -> Result<Vec<Member>, StartError> {
    let mut devices: Vec<(usize, Option<Box<dyn BlockDev>>)> =
        devices.into_iter().map(|(index, dev)| (index, Some(dev))).collect();
    let mut members = Vec::new();
    // Who is out, has no slot and no device, can never come back: it leaves the table.
    let is_known = |entry: &&meta::Member| entry.slot.is_some() || !entry.state.is_out();
    for entry in meta.members.iter().filter(is_known) {
        let used = assembly.slots.iter().flatten().chain(&assembly.spares);
        let index = used.copied().find(|&index| found[index].loaded.superblock.own.member == entry.uuid);
        let mut member = match index {
            Some(index) if !entry.state.is_out() => {
                let dev = devices.iter_mut().find(|(i, _)| *i == index).and_then(|(_, dev)| dev.take());
                let dev =
                    dev.ok_or(StartError::MissingDevice(entry.slot.map_or(index, |slot| slot.index())))?;
                let own = found[index].loaded.superblock.own;
                Member::present(entry.uuid, found[index].device.clone(), dev, own)
            }
            _ => Member::missing(entry.uuid),
        };
        member.slot = entry.slot;
        member.state = entry.state;
        member.rebuilt_bytes = entry.rebuilt_bytes;
        if member.geometry().is_none() && !member.state.is_out() {
            member.state = MemberState::Missing;
        }
        members.push(member);
    }
    Ok(members)
}

/// True if a member of this geometry can take part.
pub(super) fn fits(geometry: &Geometry, layout: &Layout) -> bool {
    geometry.max_transfer_bytes >= u64::from(layout.unit_rows()) && geometry.queue_depth > 0
}

/// What the array is to its user: the least of what its members can do.
fn geometry_of(meta: &ArrayMeta, layout: &Layout, members: &[Member]) -> Geometry {
    let geometries: Vec<Geometry> = members.iter().filter_map(Member::geometry).collect();
    let unmap = !geometries.is_empty() && geometries.iter().all(|g| g.unmap_zeroes);
    let preferred = match layout.level() {
        Level::Raid1 => layout.chunk_bytes(),
        _ => u32::try_from(layout.stripe_bytes()).unwrap_or(layout.chunk_bytes()),
    };
    let fast_zero_bytes = if layout.parity_algorithm().is_some() { preferred } else { 1 };
    Geometry {
        preferred_bytes: preferred,
        fast_zero_bytes,
        max_transfer_bytes: MAX_REQUEST_BYTES,
        queue_depth: ARRAY_QUEUE_DEPTH,
        rotational: geometries.iter().any(|g| g.rotational),
        volatile_cache: geometries.iter().any(|g| g.volatile_cache),
        discard: unmap,
        unmap_zeroes: unmap,
        ..Geometry::plain(layout.capacity(meta.data_bytes), meta.block_size)
    }
}

/// Enough for the largest operation (a row of every member twice over), and for many small ones at once.
fn scratch_config(layout: &Layout) -> SlabConfig {
    let rows = layout.unit_rows() as usize;
    let per_operation = 2 * (layout.slots() + 2);
    let row_blocks = (per_operation * 4).max(SCRATCH_ROW_BLOCKS);
    if rows == crate::limits::PAGE_BYTES {
        return SlabConfig::of(&[(rows, SCRATCH_SMALL_BLOCKS + row_blocks)]);
    }
    SlabConfig::of(&[(crate::limits::PAGE_BYTES, SCRATCH_SMALL_BLOCKS), (rows, row_blocks)])
}

fn scratch_zeroes(layout: &Layout) -> Result<crate::buf::View, StartError> {
    let rows = layout.unit_rows() as usize;
    let mut zeroes = Slab::new(&SlabConfig::of(&[(rows, 1)]))?.alloc(rows)?;
    zeroes.fill(0);
    Ok(zeroes.freeze())
}
