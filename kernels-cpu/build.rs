//! Compiles the C kernels: one object per instruction set, each with its own flags, all linked into every build.

use std::{env, sync::Mutex, thread};

/// Clang 18 to 21 may have 512-bit vectors disabled, as in `zig cc`. GCC needs no flag for them.
const EVEX512: &str = "-mevex512";
/// If this variable is set, a compiler without one of the instruction sets is an error.
const REQUIRE_ALL: &str = "HYMBA_REQUIRE_ALL_KERNELS";

fn main() {
    println!("cargo::rerun-if-changed=c");
    println!("cargo::rerun-if-changed=include");
    println!("cargo::rerun-if-env-changed={REQUIRE_ALL}");
    let arch = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    const AVX512: [&str; 9] =
        [EVEX512, "-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni", "-mavx512vbmi"];
    let mut common = cc::Build::new();
    common.include("include").include("c").opt_level(3).warnings(true).std("c11");
    let builds: Vec<_> = [
        ("scalar", [].as_slice()),
        ("avx2", &["-mavx2", "-mfma", "-mf16c"]),
        ("avxvnni", &["-mavx2", "-mfma", "-mf16c", "-mavxvnni"]),
        ("avx512vnni", &AVX512[..8]),
        ("avx512vbmi", &AVX512),
        // GCC's first scheduling pass hoists loads until the accumulators of a tile no longer fit the registers.
        ("neon", &["-fno-schedule-insns"]),
        // Where there are two flags, the second is for `zig cc`, which does not know the first.
        ("neon_dotprod", &["-fno-schedule-insns", "-march=armv8.2-a+dotprod|-mcpu=generic+dotprod"]),
        ("neon_i8mm", &["-fno-schedule-insns", "-march=armv8.2-a+dotprod+i8mm|-mcpu=generic+dotprod+i8mm"]),
    ]
    .into_iter()
    .map(|(file, flags)| {
        let wanted = if file.starts_with("avx") { "x86_64" } else { "aarch64" };
        let flags = if arch == wanted { flags } else { &[] };
        let mut build = common.clone();
        build.file(format!("c/{file}.c"));
        // No contraction: products and sums are fused only where the code says so, with every compiler. If the compiler
        // does not support an instruction set, its table is empty. Flags are tested one at a time, since all attempts
        // write to the same file.
        for alternatives in ["-ffp-contract=off", "-fno-math-errno"].iter().chain(flags) {
            match alternatives.split('|').find(|flag| common.is_flag_supported(flag).unwrap_or(false)) {
                Some(flag) => {
                    build.flag(flag);
                }
                None if alternatives.starts_with("-m") && *alternatives != EVEX512 => {
                    let problem = format!("the compiler does not support {alternatives}: {file} is not available");
                    assert!(env::var_os(REQUIRE_ALL).is_none(), "{problem}");
                    println!("cargo::warning={problem}");
                }
                None => {}
            }
        }
        build
    })
    .collect();

    let jobs = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1usize);
    let queue = Mutex::new(builds.into_iter());
    let next = || queue.lock().expect("no other thread has panicked").next();
    let mut objects = thread::scope(|scope| {
        let compile = || std::iter::from_fn(next).flat_map(|b| b.compile_intermediates()).collect::<Vec<_>>();
        let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(compile)).collect();
        workers.into_iter().flat_map(|w| w.join().expect("a compiler that fails ends the process")).collect::<Vec<_>>()
    });
    objects.sort();
    common.objects(objects).compile("hymba_kernels");
}
