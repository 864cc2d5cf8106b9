//! What the fuzzers in `fuzz/` do, done once with every input that they found worth keeping: no crash, no hang.

use std::{fs, path::Path, time::Instant};

#[path = "../fuzz/src/lib.rs"]
#[allow(dead_code, reason = "the fuzzers call it by name")]
mod fuzz;

#[test]
fn seeds_are_good_to_the_end() {
    for target in fuzz::TARGETS {
        for (i, seed) in (target.seeds)().iter().enumerate() {
            assert!((target.run)(seed), "{} refuses its seed {i}", target.name);
        }
    }
}

#[test]
fn the_corpora_do_no_harm() {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for target in fuzz::TARGETS {
        for entry in fs::read_dir(corpora.join(target.name)).into_iter().flatten() {
            let path = entry.unwrap().path();
            let (data, start) = (fs::read(&path).unwrap(), Instant::now());
            (target.run)(&data);
            assert!(start.elapsed().as_secs() < 10, "{} takes {:?}", path.display(), start.elapsed());
        }
    }
}
