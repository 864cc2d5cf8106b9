//! Compiles the shaders as C++ with the shim and instrumented memory accesses, and the emulator's runtime.

#[path = "src/prepass.rs"]
mod prepass;

use std::{env, fs, path::PathBuf};

fn main() {
    for path in ["shim", "runtime", "src/prepass.rs"] {
        println!("cargo::rerun-if-changed={path}");
    }
    println!("cargo::rerun-if-changed=tests/faults.metal");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let faults = fs::read_to_string("tests/faults.metal").unwrap_or_else(|e| panic!("tests/faults.metal: {e}"));
    let sources = [("shaders", hymba_kernels_metal::SOURCE), ("faults", faults.as_str())].map(|(name, metal)| {
        let path = out.join(name).with_extension("cpp");
        let cpp = prepass::to_cpp(metal).unwrap_or_else(|e| panic!("{name}: {e}"));
        fs::write(&path, cpp).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        path
    });
    let build = || {
        let mut build = cc::Build::new();
        build.cpp(true).std("c++17").opt_level(2).include("shim").flag("-ffp-contract=off").warnings(true);
        // Kernels are only referenced by constructors, which a linker would drop without this.
        build.link_lib_modifier("+whole-archive");
        build
    };
    build().file("runtime/runtime.cpp").file("runtime/memory.cpp").compile("hymba_emulator_runtime");
    // The sanitizer's library is not linked: runtime/memory.cpp implements its calls. Uninitialized variables get a pattern
    // that tests detect.
    build()
        .files(&sources)
        .flag("-fsanitize=thread")
        .flag_if_supported("-ftrivial-auto-var-init=pattern")
        .flag_if_supported("-Wno-tsan")
        .compile("hymba_emulated_shaders");
}
