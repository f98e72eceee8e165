//! `cargo fuzz run --sanitizer none handshake fuzz/corpus/handshake fuzz/seeds/handshake`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::handshake(data));
