#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| meepo_fuzzing::run("jobs", data));
