#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| discovery_etcd::fuzz_watch(data));
