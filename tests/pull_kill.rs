//! Pulls that are killed at random moments of download and conversion: the next one completes, files with final names are
//! always correct, and little is downloaded twice. `HYMBA_KILLS` is the number of kills.
#![cfg(unix)]

mod common;
#[path = "common/hub.rs"]
mod hub;

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use common::{succeeds, unless_emulated};
use hub::{Fault, REPO, World, checkpoint};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use sha2::{Digest, Sha256};

const VOCABULARY: usize = 120_000;
/// Bytes that may be downloaded twice per kill, over four connections.
const MAX_LOSS: u64 = 4 * (4 << 20);

/// Asserts that files with final names are complete and correct; partial files have other names.
#[track_caller]
fn check_files(world: &World, reference: &[u8], is_done: bool) {
    for file in fs::read_dir(world.cache().join("blobs")).into_iter().flatten().flatten() {
        let name = file.file_name().into_string().unwrap();
        if name.len() == 64 {
            let hash = Sha256::digest(fs::read(file.path()).unwrap());
            assert_eq!(hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>(), name);
        } else if name.len() != 40 {
            assert!(!is_done && name.contains(".hymba-") && !name.ends_with("bad"), "{name} is left");
        }
    }
    let installed = world.installed("q4");
    assert!(!is_done || installed.exists());
    if installed.exists() {
        assert!(fs::read(&installed).unwrap() == reference, "a wrong model is installed");
    }
    for file in fs::read_dir(installed.parent().unwrap()).into_iter().flatten().flatten() {
        let name = file.file_name().into_string().unwrap();
        let is_known = ["Tiny-Model-q4.gguf", ".Tiny-Model-q4.lock", ".Tiny-Model-q4.source.json"].contains(&&*name);
        assert!(is_known || !is_done, "{name} is left");
    }
}

fn remove(path: &Path) {
    if path.exists() {
        fs::remove_dir_all(path).unwrap();
    }
}

#[test]
fn a_pull_resumes_after_sigkill() {
    let kills: usize = std::env::var("HYMBA_KILLS").map_or(unless_emulated(12, 2), |kills| kills.parse().unwrap());
    let seed = std::env::var("HYMBA_SEED").map_or(7, |seed| seed.parse().unwrap());
    let mut random = StdRng::seed_from_u64(seed);
    let world = World::with_model(VOCABULARY);
    let size: u64 = [0, 1, 2, 3].map(|i| checkpoint(VOCABULARY)[i].1.len() as u64).iter().sum();
    world.hub.on(|r| if r.is_get_of_data() { Fault::Slow(Duration::from_millis(5)) } else { Fault::None });
    let pull = || world.hymba(["pull", REPO, "-q", "-t", "1"]);
    let clear = || {
        remove(&world.dir.path().join("hf"));
        remove(&world.dir.path().join("models"));
        world.hub.forget_requests();
    };
    let start = Instant::now();
    succeeds(&mut pull());
    let usual = start.elapsed();
    let reference = fs::read(world.installed("q4")).unwrap();
    clear();

    let has_downloaded = || world.cache().join("refs/main").exists();
    let (mut killed, mut in_a_row, mut worst, mut converting) = (0, 0, 0, 0);
    while killed < kills {
        let before = world.hub.sent();
        let mut child = pull().spawn().unwrap();
        // Early moments are more likely, so that there are several kills per download.
        let moment = usual.mul_f64(random.random_range(0.0..1.1f64).powi(2));
        let end = Instant::now() + moment;
        let status = loop {
            let status = child.try_wait().unwrap();
            if status.is_some() || Instant::now() >= end {
                break status;
            }
            thread::sleep(Duration::from_millis(2));
        };
        let status = match status {
            // After a conversion that is not killed, a new download starts.
            None if killed + 1 == kills || random.random_bool(if has_downloaded() { 0.5 } else { 0.95 }) => {
                child.kill().unwrap();
                child.wait().unwrap();
                killed += 1;
                in_a_row += 1;
                converting += usize::from(has_downloaded());
                check_files(&world, &reference, false);
                continue;
            }
            None => child.wait().unwrap(),
            Some(status) => status,
        };
        assert!(status.success());
        check_files(&world, &reference, true);
        let twice = world.hub.sent().saturating_sub(size + 10_000); // config.json is downloaded each time
        assert!(
            twice <= MAX_LOSS * in_a_row,
            "{twice} bytes were downloaded twice in {in_a_row} kills; the last began at {before}"
        );
        worst = worst.max(twice / in_a_row.max(1));
        in_a_row = 0;
        clear();
    }
    succeeds(&mut pull());
    check_files(&world, &reference, true);
    let twice = world.hub.sent().saturating_sub(size + 10_000);
    assert!(twice <= MAX_LOSS * in_a_row, "{twice} bytes were downloaded twice in {in_a_row} kills");
    println!(
        "{killed} kills, {converting} of them after the download; at most {worst} bytes per kill were downloaded twice"
    );
}
