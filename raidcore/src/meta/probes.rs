//! The signatures of others: what stands where. The most specific come first, partition tables last, for boot
//! sectors of file systems look like them.
//!
//! Sources: the on-disk format documents of each (ext4 wiki, xfs_fs(5) layout, btrfs wiki, LUKS1 and LUKS2
//! specification, LVM2 label, md superblock description in md(4), UEFI specification for GPT).

use super::signature::Ends;

/// One kind of signature.
pub(super) struct Probe {
    /// What it is a sign of.
    pub name: &'static str,
    /// Where it was found.
    pub find: fn(&Ends) -> Option<u64>,
}

const fn probe(name: &'static str, find: fn(&Ends) -> Option<u64>) -> Probe {
    Probe { name, find }
}

/// All of them, most specific first.
pub(super) const PROBES: &[Probe] = &[
    probe("LUKS1", |ends| luks(ends, 1)),
    probe("LUKS2", |ends| luks(ends, 2).or_else(|| any(ends, &LUKS2_COPIES, b"SKUL\xba\xbe"))),
    probe("LVM2 physical volume", lvm2),
    probe("md RAID member (0.90)", md_090),
    probe("md RAID member (1.0)", md_10),
    probe("md RAID member (1.1)", |ends| any(ends, &[0], &MD_MAGIC)),
    probe("md RAID member (1.2)", |ends| any(ends, &[4096], &MD_MAGIC)),
    probe("Intel firmware RAID member", |ends| {
        any(ends, &[ends.size_bytes.checked_sub(1024)?], b"Intel Raid ISM Cfg Sig. ")
    }),
    probe("bcache", |ends| any(ends, &[4096 + 24], &BCACHE_MAGIC)),
    probe("ext2/3/4", |ends| any(ends, &[1080], &[0x53, 0xef])),
    probe("xfs", |ends| any(ends, &[0], b"XFSB")),
    probe("btrfs", |ends| any(ends, &[65536 + 64], b"_BHRfS_M")),
    probe("f2fs", |ends| any(ends, &[1024], &0xf2f5_2010_u32.to_le_bytes())),
    probe("ZFS member", zfs),
    probe("swap", swap),
    probe("NTFS", |ends| any(ends, &[3], b"NTFS    ")),
    probe("exFAT", |ends| any(ends, &[3], b"EXFAT   ")),
    probe("FAT", |ends| any(ends, &[54], b"FAT12   ").or_else(|| fat(ends))),
    probe("ISO 9660", |ends| any(ends, &[32769], b"CD001")),
    probe("GPT", gpt),
    probe("MBR partition table", mbr),
];

const MD_MAGIC: [u8; 4] = 0xa92b_4efc_u32.to_le_bytes();
const BCACHE_MAGIC: [u8; 16] =
    [0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba, 0x6d, 0x81];
/// Where the second LUKS2 header may stand, as far as it is read.
const LUKS2_COPIES: [u64; 6] = [0x4000, 0x8000, 0x1_0000, 0x2_0000, 0x4_0000, 0x8_0000];

fn any(ends: &Ends, offsets: &[u64], magic: &[u8]) -> Option<u64> {
    offsets.iter().copied().find(|&offset| ends.has(offset, magic))
}

fn luks(ends: &Ends, version: u16) -> Option<u64> {
    (ends.has(0, b"LUKS\xba\xbe") && ends.has(6, &version.to_be_bytes())).then_some(0)
}

/// The label is in one of the first four sectors.
fn lvm2(ends: &Ends) -> Option<u64> {
    (0..4).map(|sector| sector * 512).find(|&at| ends.has(at, b"LABELONE") && ends.has(at + 24, b"LVM2 001"))
}

/// In the last 64 KiB that begin on a multiple of 64 KiB, in the byte order of the machine that made it.
fn md_090(ends: &Ends) -> Option<u64> {
    let at = (ends.size_bytes & !0xffff).checked_sub(0x1_0000)?;
    let mut swapped = MD_MAGIC;
    swapped.reverse();
    any(ends, &[at], &MD_MAGIC).or_else(|| any(ends, &[at], &swapped))
}

/// Between 8 and 12 KiB before the end.
fn md_10(ends: &Ends) -> Option<u64> {
    any(ends, &[ends.size_bytes.checked_sub(8192)? & !4095], &MD_MAGIC)
}

/// An uberblock in one of the four labels: 128 KiB into each, one per KiB.
fn zfs(ends: &Ends) -> Option<u64> {
    const LABEL: u64 = 256 << 10;
    const MAGIC: u64 = 0x00ba_b10c;
    let end = ends.size_bytes - ends.size_bytes % LABEL;
    let labels = [Some(0), Some(LABEL), end.checked_sub(2 * LABEL), end.checked_sub(LABEL)];
    let uberblocks = |label| (0..128).map(move |i: u64| label + (128 << 10) + i * 1024);
    labels
        .into_iter()
        .flatten()
        .flat_map(uberblocks)
        .find(|&at| ends.has(at, &MAGIC.to_le_bytes()) || ends.has(at, &MAGIC.to_be_bytes()))
}

/// In the last ten bytes of the first page, whose size is the machine's.
fn swap(ends: &Ends) -> Option<u64> {
    let pages = [4096u64, 8192, 16384, 65536].map(|page| page - 10);
    any(ends, &pages, b"SWAPSPACE2").or_else(|| any(ends, &pages, b"SWAP-SPACE"))
}

fn fat(ends: &Ends) -> Option<u64> {
    any(ends, &[54], b"FAT16   ").or_else(|| any(ends, &[82], b"FAT32   "))
}

/// The header in the second block, or its backup in the last one.
fn gpt(ends: &Ends) -> Option<u64> {
    let backups = [ends.size_bytes.checked_sub(512)?, ends.size_bytes.checked_sub(4096)?];
    any(ends, &[512, 4096], b"EFI PART").or_else(|| any(ends, &backups, b"EFI PART"))
}

/// The boot signature, and four entries that look like partitions, at least one of them used.
fn mbr(ends: &Ends) -> Option<u64> {
    let entries = ends.at(446, 64)?.chunks_exact(16);
    let plausible = entries.clone().all(|entry| entry[0] == 0 || entry[0] == 0x80);
    let used = entries.clone().any(|entry| entry[4] != 0);
    (ends.has(510, &[0x55, 0xaa]) && plausible && used).then_some(510)
}
