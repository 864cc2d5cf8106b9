#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    hymba_fuzz::run("request", data);
});
