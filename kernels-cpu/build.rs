//! Compiles the C kernels: one object per instruction set, each with its own flags, all linked into every build.

fn main() {
    println!("cargo::rerun-if-changed=c");
    println!("cargo::rerun-if-changed=include");
    let arch = std::env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    const AVX512: [&str; 8] =
        ["-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni", "-mavx512vbmi"];
    for (file, flags) in [
        ("scalar", [].as_slice()),
        ("avx2", &["-mavx2", "-mfma", "-mf16c"]),
        ("avxvnni", &["-mavx2", "-mfma", "-mf16c", "-mavxvnni"]),
        ("avx512vnni", &AVX512[..7]),
        ("avx512vbmi", &AVX512),
        // GCC's first scheduling hoists loads until the sums of a tile no longer fit the registers.
        ("neon", &["-fno-schedule-insns"]),
        ("neon_dotprod", &["-fno-schedule-insns", "-march=armv8.2-a+dotprod"]),
        ("neon_i8mm", &["-fno-schedule-insns", "-march=armv8.2-a+dotprod+i8mm"]),
    ] {
        let wanted = if file.starts_with("avx") { "x86_64" } else { "aarch64" };
        let flags = if arch == wanted { flags } else { &[] };
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
