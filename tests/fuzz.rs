//! Runs the fuzz targets in `fuzz/` once with their seeds and every input of their corpora: no crash, no hang.
#![cfg(feature = "serve")]

use std::{fs::File, io::Read, path::Path, time::Instant};

#[path = "../fuzz/src/lib.rs"]
#[allow(dead_code, reason = "the fuzzers call it by name")]
mod fuzz;

#[test]
fn fuzz_seeds_succeed() {
    for target in fuzz::TARGETS {
        for (i, seed) in (target.seeds)().iter().enumerate() {
            assert!((target.run)(seed), "{} refuses its seed {i}", target.name);
        }
    }
}

#[test]
fn fuzz_corpora_cause_no_crash_or_hang() {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let mut inputs = 0;
    for target in fuzz::TARGETS {
        let Ok(file) = File::open(corpora.join(target.name).with_extension("tar")) else { continue };
        for entry in tar::Archive::new(file).entries().unwrap() {
            let (mut entry, mut data) = (entry.unwrap(), Vec::new());
            entry.read_to_end(&mut data).unwrap();
            let start = Instant::now();
            (target.run)(&data);
            let path = entry.path().unwrap();
            assert!(start.elapsed().as_secs() < 10, "{} {} takes {:?}", target.name, path.display(), start.elapsed());
            inputs += 1;
        }
    }
    assert!(inputs > 1000, "only {inputs} inputs");
}
