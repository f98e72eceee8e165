//! What is asked for right becomes superblocks; what is asked for wrong is named, with its remedy.

use super::*;
use crate::layout::Level;

const MIB: u64 = 1 << 20;

fn device(name: &str, size_bytes: u64) -> Candidate {
    Candidate { name: name.to_owned(), geometry: Geometry::plain(size_bytes, BlockSize::B512) }
}

fn params(level: Level, members: usize) -> CreateParams {
    CreateParams {
        name: "vol0".to_owned(),
        layout: LayoutSpec::new(level, 0, 64 << 10),
        members: (0..members).map(|i| device(&format!("/dev/d{i}"), 64 * MIB)).collect(),
        spares: vec![],
        assume_clean: false,
        now_ns: 99,
    }
}

fn plan(params: &CreateParams) -> Result<Vec<Superblock>, CreateError> {
    let mut next = 0;
    plan_create(params, || {
        next += 1;
        Uuid::from_u128(next)
    })
}

#[test]
fn each_device_gets_a_superblock_that_can_be_written_and_they_agree_on_the_array() {
    let mut params = params(Level::Raid5, 4);
    params.spares.push(device("/dev/spare", 65 * MIB));
    params.members[2].geometry.block_size = BlockSize::B4096;
    let superblocks = plan(&params).unwrap();
    assert_eq!(superblocks.len(), 5);
    for (i, superblock) in superblocks.iter().enumerate() {
        assert_eq!(Superblock::decode(&superblock.encode()).unwrap(), *superblock);
        assert_eq!(superblock.array, superblocks[0].array);
        assert_eq!(superblock.own.member, superblock.array.members[i].uuid);
    }
    let array = &superblocks[4].array;
    assert_eq!(array.members[4].state, MemberState::Spare);
    assert_eq!((array.block_size, array.data_offset, array.resync), (BlockSize::B4096, MIB, Some(0)));
    assert_eq!(array.data_bytes, 63 * MIB - (64 << 10));
    assert_eq!(array.size_bytes(), 3 * array.data_bytes);
}

#[test]
fn the_smallest_device_decides_where_data_starts_and_ends() {
    let mut params = params(Level::Raid1, 2);
    params.members = vec![device("a", 128 * MIB + 4095), device("b", 1 << 40)];
    let array = &plan(&params).unwrap()[0].array;
    assert_eq!((array.data_offset, array.data_bytes), (8 * MIB, 120 * MIB - (64 << 10)));
    let mut huge = params;
    huge.members = vec![device("a", u64::MAX), device("b", u64::MAX)];
    assert_eq!(plan(&huge).unwrap()[0].array.data_bytes, MAX_DATA_BYTES);
    assert!(!plan(&huge).unwrap()[0].encode().is_empty());
}

#[test]
fn a_first_resync_is_due_unless_the_members_agree_or_there_is_nothing_to_agree_on() {
    assert_eq!(plan(&params(Level::Raid10, 3)).unwrap()[0].array.resync, Some(0));
    assert_eq!(plan(&params(Level::Raid0, 2)).unwrap()[0].array.resync, None);
    let known = CreateParams { assume_clean: true, ..params(Level::Raid5, 3) };
    assert_eq!(plan(&known).unwrap()[0].array.resync, None);
}

#[test]
fn the_number_of_members_must_fit_the_level() {
    for (level, too_few) in
        [(Level::Raid0, 1), (Level::Raid1, 1), (Level::Raid5, 2), (Level::Raid6, 3), (Level::Raid10, 1)]
    {
        let error = plan(&params(level, too_few)).unwrap_err();
        assert!(matches!(error, CreateError::Layout(LayoutError::TooFewMembers { .. })), "{error}");
        assert!(plan(&params(level, too_few + 1)).is_ok());
        assert!(plan(&params(level, 64)).is_ok());
        let error = plan(&params(level, 65)).unwrap_err();
        assert_eq!(error, CreateError::Layout(LayoutError::TooManyMembers(65)));
    }
}

#[test]
fn chunk_and_copies_must_be_possible() {
    let mut params = params(Level::Raid10, 3);
    for chunk in [0, 2048, 65535, 96 << 10, 32 << 20] {
        params.layout.chunk_bytes = chunk;
        let error = plan(&params).unwrap_err();
        assert_eq!(error, CreateError::Layout(LayoutError::BadChunk(u64::from(chunk))));
    }
    params.layout.chunk_bytes = 64 << 10;
    for copies in [0, 1, 4] {
        params.layout.copies = copies;
        let error = plan(&params).unwrap_err();
        assert_eq!(error, CreateError::Layout(LayoutError::BadCopies { copies, slots: 3 }));
    }
}

#[test]
fn a_name_that_is_none_is_refused() {
    let params = CreateParams { name: "a b".to_owned(), ..params(Level::Raid1, 2) };
    assert!(matches!(plan(&params).unwrap_err(), CreateError::Name(_)));
}

#[test]
fn a_device_too_small_is_named_with_the_size_it_would_need() {
    let mut params = params(Level::Raid1, 2);
    let need = MIB + (64 << 10) + (64 << 10);
    params.members[1] = device("/dev/tiny", need);
    assert_eq!(plan(&params).unwrap()[0].array.data_bytes, 64 << 10);
    params.members[1] = device("/dev/tiny", need - 512);
    let error = plan(&params).unwrap_err().to_string();
    assert_eq!(
        error,
        "/dev/tiny has 1179136 bytes: a member of this array needs at least 1179648; use a larger device"
    );
    params.layout.chunk_bytes = 16 << 20;
    assert!(plan(&params).unwrap_err().to_string().ends_with("or a smaller chunk"));
}

#[test]
fn a_device_given_twice_or_read_only_is_named() {
    let mut params = params(Level::Raid1, 2);
    params.spares.push(device("/dev/d1", 64 * MIB));
    assert_eq!(plan(&params).unwrap_err(), CreateError::GivenTwice { device: "/dev/d1".to_owned() });
    params.spares.clear();
    params.members[0].geometry.read_only = true;
    assert_eq!(plan(&params).unwrap_err(), CreateError::ReadOnly { device: "/dev/d0".to_owned() });
}

#[test]
fn spares_are_limited_and_useless_to_raid0() {
    let mut params = params(Level::Raid0, 2);
    params.spares.push(device("/dev/spare", 64 * MIB));
    assert!(matches!(plan(&params).unwrap_err(), CreateError::UselessSpare { .. }));
    params.layout.level = Level::Raid1;
    params.spares = (0..33).map(|i| device(&format!("s{i}"), 64 * MIB)).collect();
    assert_eq!(plan(&params).unwrap_err(), CreateError::TooManySpares(33));
}
