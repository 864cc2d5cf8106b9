//! Sets `embedded_demo` where the demo checkpoint can be part of the binary: a package from the registry comes without it.

use std::{env, path::Path};

const DEMO: &str = "models/hymba-demo.gguf";

fn main() {
    println!("cargo::rustc-check-cfg=cfg(embedded_demo)");
    println!("cargo::rerun-if-changed={DEMO}");
    if env::var_os("CARGO_FEATURE_EMBEDDED_DEMO").is_some() && Path::new(DEMO).is_file() {
        println!("cargo::rustc-cfg=embedded_demo");
    }
}
