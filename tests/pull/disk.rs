//! Pulls to disks that are too small, full, or read-only.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
};

use crate::{
    LARGE, QUICK, assert_blobs,
    common::{fails, succeeds},
    hub::{Fault, World, checkpoint},
};

/// A temporary file system.
struct Disk(PathBuf);

impl Disk {
    /// Mounts a disk of this size; `None` without the required permissions.
    fn mount(path: &Path, megabytes: usize) -> Option<Self> {
        fs::create_dir(path).unwrap();
        let size = format!("size={megabytes}000000");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(path).status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(Self(path.into()));
        }
        eprintln!("SKIPPED: needs permission to mount a tmpfs");
        None
    }

    fn remount(&self, option: &str) {
        assert!(
            Command::new("mount").args(["-o", &format!("remount,{option}")]).arg(&self.0).status().unwrap().success()
        );
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn missing_disk_space_is_reported_before_the_download() {
    let world = World::with_model(LARGE);
    let Some(disk) = Disk::mount(&world.dir.path().join("hf"), 10) else { return };
    fails(&mut world.hymba(QUICK), 1, &["not enough disk space: ", "needed, 10.00 MB free"]);
    assert!(!world.hub.requests().iter().any(|r| r.is_get_of_data()));
    disk.remount("ro,size=100000000");
    fails(&mut world.hymba(QUICK), 1, &["cannot create ", "Read-only file system"]);
}

#[test]
fn a_download_resumes_after_a_full_disk() {
    let world = World::with_model(LARGE);
    let Some(disk) = Disk::mount(&world.dir.path().join("hf"), 40) else { return };
    let (filler, filled) = (disk.0.join("filler"), AtomicBool::new(false));
    let file = filler.clone();
    world.hub.on(move |r| {
        if r.is_get_of_data() && !filled.swap(true, Ordering::Relaxed) {
            fs::write(&file, vec![0; 30_000_000]).unwrap();
        }
        Fault::None
    });
    fails(&mut world.hymba(QUICK), 1, &["cannot write ", ".hymba-part: No space left"]);
    fs::remove_file(filler).unwrap();
    let before = world.hub.sent();
    succeeds(&mut world.hymba(QUICK));
    assert_blobs(&world);
    let (again, size) = (world.hub.sent() - before, checkpoint(LARGE)[3].1.len() as u64);
    assert!(again < size - 4_000_000, "{again} of {size} bytes were sent again");
}
