//! `fuzz/run meta_contexts`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::meta_contexts(data));
