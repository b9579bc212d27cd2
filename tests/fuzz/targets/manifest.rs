//! What a backup says about itself: any bytes, and any bytes with a checksum that fits.
#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use coordinator::backup::Manifest;
use libfuzzer_sys::fuzz_target;

static ROOT: LazyLock<tempfile::TempDir> =
    LazyLock::new(|| tempfile::tempdir_in("/dev/shm").expect("a folder in memory"));

fuzz_target!(|bytes: &[u8]| {
    read(bytes);
    let sum = blake3::hash(bytes).to_hex();
    read(&[format!("muster-backup 1 0.1.0 {sum}\n").as_bytes(), bytes].concat());
});

fn read(bytes: &[u8]) {
    std::fs::write(ROOT.path().join("manifest"), bytes).expect("a file");
    if let Ok(manifest) = Manifest::read(ROOT.path()) {
        for file in &manifest.files {
            assert!(!Path::new(&file.path).is_absolute() && !file.path.contains(".."));
        }
    }
}
