//! `fuzz/run superblocks`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::superblocks(data));
