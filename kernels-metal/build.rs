//! For macOS: compiles the shaders where Xcode's Metal compiler is. Elsewhere the program compiles them when it starts.

use std::{env, fs, path::Path, process::Command};

/// The shaders in the order of `SOURCE` in src/lib.rs.
const SHADERS: [&str; 9] =
    ["common", "weights", "matvec", "matmul", "norms", "elementwise", "ssm", "attention", "top_k"];

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
    let text: Option<String> = SHADERS.iter().map(|s| fs::read_to_string(format!("shaders/{s}.metal")).ok()).collect();
    let written = text.is_some_and(|text| fs::write(&source, text).is_ok());
    written
        && Command::new("xcrun")
            .args(["-sdk", "macosx", "metal", "-O2", "-fno-fast-math", "-std=macos-metal2.3"])
            .arg(&source)
            .arg("-o")
            .arg(&library)
            .output()
            .is_ok_and(|output| output.status.success())
}
