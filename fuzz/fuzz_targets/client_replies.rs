//! `fuzz/run client_replies`
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::client_replies(data));
