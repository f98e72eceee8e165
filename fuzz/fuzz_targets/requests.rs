//! `cargo fuzz run --sanitizer none requests fuzz/corpus/requests fuzz/seeds/requests`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::requests(data));
