//! Superblocks that somebody else may have written, and what an assembly makes of several of them.

use raidcore::meta::{CopyState, Found, Loaded, SUPERBLOCK_BYTES, Superblock, SuperblockError, assemble};

/// Superblocks in a row, the last one filled up with zeroes; their checksums are set right first, for a fuzzer does
/// not guess them.
pub fn superblocks(data: &[u8]) {
    let mut found = Vec::new();
    for (index, bytes) in data.chunks(SUPERBLOCK_BYTES).enumerate() {
        let mut copy = [0; SUPERBLOCK_BYTES];
        copy[..bytes.len()].copy_from_slice(bytes);
        if let Err(SuperblockError::BadCrc { computed, .. }) = Superblock::decode(&copy) {
            copy[12..16].copy_from_slice(&computed.to_le_bytes());
        }
        let Ok(superblock) = Superblock::decode(&copy) else { continue };
        assert!(superblock.encode() == copy, "what is decoded encodes to other bytes");
        let device_bytes = superblock.own.device_bytes;
        let loaded = Loaded { superblock, copies: [CopyState::Valid; 2] };
        found.push(Found { device: format!("d{index}"), loaded, device_bytes });
    }
    for force in [false, true] {
        for array in assemble(&found, force).into_iter().flatten() {
            let named = array.slots.iter().flatten().chain(&array.spares).chain(&array.lagging);
            assert!(named.chain(array.left_out.iter().map(|out| &out.index)).all(|i| *i < found.len()));
            assert_eq!(array.slots.len(), array.array.layout.slots());
            let in_use: Vec<_> = array.slots.iter().flatten().chain(&array.spares).collect();
            assert!(
                in_use.iter().all(|i| in_use.iter().filter(|j| i == *j).count() == 1),
                "a device serves twice"
            );
        }
    }
}
