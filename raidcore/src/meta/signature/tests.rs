//! Each signature where its format puts it. Images made by the real tools are in tests/signatures.rs.

use super::*;
use crate::blocking::tests::{Mem, blocking};

const SIZE: usize = 4 << 20;

/// A device that holds `magic` at each of `places`.
fn image(places: &[(usize, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; SIZE];
    for &(at, magic) in places {
        bytes[at..at + magic.len()].copy_from_slice(magic);
    }
    bytes
}

#[test]
fn each_signature_is_found_where_its_format_puts_it() {
    let md = 0xa92b_4efc_u32.to_le_bytes();
    let partition = [0x80, 0, 0, 0, 0x83, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0];
    for (name, places) in [
        ("LUKS1", &[(0, &b"LUKS\xba\xbe\0\x01"[..])][..]),
        ("LUKS2", &[(0, b"LUKS\xba\xbe\0\x02")]),
        ("LUKS2", &[(0x4000, b"SKUL\xba\xbe\0\x02")]),
        ("LVM2 physical volume", &[(512, b"LABELONE"), (536, b"LVM2 001")]),
        ("md RAID member (0.90)", &[(SIZE - 65536, &md)]),
        ("md RAID member (1.0)", &[(SIZE - 8192, &md)]),
        ("md RAID member (1.1)", &[(0, &md)]),
        ("md RAID member (1.2)", &[(4096, &md)]),
        ("Intel firmware RAID member", &[(SIZE - 1024, b"Intel Raid ISM Cfg Sig. ")]),
        ("ext2/3/4", &[(1080, &[0x53, 0xef])]),
        ("xfs", &[(0, b"XFSB")]),
        ("btrfs", &[(65600, b"_BHRfS_M")]),
        ("ZFS member", &[((128 << 10) + 5 * 1024, &0x00ba_b10c_u64.to_le_bytes())]),
        ("ZFS member", &[(SIZE - (128 << 10), &0x00ba_b10c_u64.to_be_bytes())]),
        ("swap", &[(4086, b"SWAPSPACE2")]),
        ("NTFS", &[(3, b"NTFS    "), (510, &[0x55, 0xaa])]),
        ("FAT", &[(82, b"FAT32   "), (510, &[0x55, 0xaa])]),
        ("GPT", &[(512, b"EFI PART")]),
        ("GPT", &[(4096, b"EFI PART")]),
        ("GPT", &[(SIZE - 512, b"EFI PART")]),
        ("MBR partition table", &[(446, &partition), (510, &[0x55, 0xaa])]),
        ("member of an array of ours (damaged or of another version)", &[(0, b"RAIDCORE")]),
    ] {
        let found = detect(&Ends::of(&image(places))).unwrap_or_else(|| panic!("{name} not found"));
        assert_eq!((found.name.as_str(), found.offset), (name, found.offset));
        assert!(places.iter().any(|&(at, _)| at as u64 == found.offset), "{name} at {}", found.offset);
    }
}

#[test]
fn a_blank_device_and_one_of_noise_without_magic_carry_no_signature() {
    assert_eq!(detect(&Ends::of(&vec![0; SIZE])), None);
    assert_eq!(detect(&Ends::of(&vec![0x11; SIZE])), None);
    assert_eq!(detect(&Ends::of(&image(&[(510, &[0x55, 0xaa])]))), None, "no partition in it");
}

#[test]
fn devices_of_any_small_size_are_looked_at_without_a_panic() {
    for size in (0..70_000usize).step_by(512).chain([1 << 20, (1 << 20) + 512]) {
        assert_eq!(foreign_signature(&mut blocking(Mem::new(size))), Ok(None), "{size}");
    }
}

#[test]
fn a_wiped_device_carries_no_signature_and_keeps_its_middle() {
    let mut mem = Mem::new(SIZE);
    mem.bytes =
        image(&[(1080, &[0x53, 0xef]), (SIZE - 512, b"EFI PART"), (SIZE - 65536, b"\xfc\x4e\x2b\xa9")]);
    mem.bytes[SIZE / 2] = 7;
    let mut dev = blocking(mem);
    assert!(foreign_signature(&mut dev).unwrap().is_some());
    wipe(&mut dev).unwrap();
    assert_eq!(foreign_signature(&mut dev).unwrap(), None);
    assert_eq!(dev.inner_mut().bytes[SIZE / 2], 7);
}
