//! For macOS: compiles the shaders if Xcode's Metal compiler is available; otherwise they are compiled at run time.

#[path = "src/source.rs"]
mod source;

use std::{env, fs, path::Path, process::Command};

fn main() {
    println!("cargo::rustc-check-cfg=cfg(hymba_metallib)");
    println!("cargo::rerun-if-changed=shaders");
    if env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "macos") && compile() {
        println!("cargo::rustc-cfg=hymba_metallib");
    }
}

fn compile() -> bool {
    let Some(out) = env::var_os("OUT_DIR") else { return false };
    let (source, library) = (Path::new(&out).join("hymba.metal"), Path::new(&out).join("hymba.metallib"));
    fs::write(&source, source::SOURCE).is_ok()
        && Command::new("xcrun")
            .args(["-sdk", "macosx", "metal", "-O2", "-fno-fast-math", "-std=macos-metal2.3"])
            .arg(&source)
            .arg("-o")
            .arg(&library)
            .output()
            .is_ok_and(|output| output.status.success())
}
