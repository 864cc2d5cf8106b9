//! Compiles the C kernels: one object per instruction set, each with its own flags, all linked into every build.

fn main() {
    println!("cargo::rerun-if-changed=c");
    println!("cargo::rerun-if-changed=include");
    let arch = std::env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    let avx2: &[&str] = if arch == "x86_64" { &["-mavx2", "-mfma", "-mf16c"] } else { &[] };
    for (file, flags) in [("scalar", [].as_slice()), ("avx2", avx2)] {
        let mut build = cc::Build::new();
        build.include("include").include("c").file(format!("c/{file}.c")).opt_level(3).warnings(true).std("c11");
        // No contraction: a product and a sum are fused only where the code says so, with every compiler.
        build.flag_if_supported("-ffp-contract=off").flag_if_supported("-fno-math-errno");
        for flag in flags {
            build.flag(flag);
        }
        build.compile(&format!("hymba_kernels_{file}"));
    }
}
