//! Compiles the C kernels: one object per instruction set, each with its own flags, all linked into every build.

fn main() {
    println!("cargo::rerun-if-changed=c");
    println!("cargo::rerun-if-changed=include");
    let arch = std::env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    const AVX2: [&str; 3] = ["-mavx2", "-mfma", "-mf16c"];
    const AVX512: [&str; 5] = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni", "-mavx512vbmi"];
    for (file, more) in [
        ("scalar", None),
        ("avx2", Some([].as_slice())),
        ("avxvnni", Some(&["-mavxvnni"])),
        ("avx512vnni", Some(&AVX512[..4])),
        ("avx512vbmi", Some(&AVX512)),
    ] {
        let flags = more.filter(|_| arch == "x86_64").into_iter().flat_map(|more| AVX2.iter().chain(more));
        let mut build = cc::Build::new();
        build.include("include").include("c").file(format!("c/{file}.c")).opt_level(3).warnings(true).std("c11");
        // No contraction: a product and a sum are fused only where the code says so, with every compiler.
        build.flag_if_supported("-ffp-contract=off").flag_if_supported("-fno-math-errno");
        for flag in flags {
            build.flag_if_supported(flag); // a table that the compiler cannot make is empty
        }
        build.compile(&format!("hymba_kernels_{file}"));
    }
}
