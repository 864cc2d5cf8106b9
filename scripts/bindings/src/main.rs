//! `cargo run -p hymba-bindings` writes `kernels-cpu/src/bindings.rs` from the header (needs libclang);
//! with `-- --check` it only says whether that file is current.

use std::{env, fs, path::Path, process::ExitCode};

fn main() -> ExitCode {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels-cpu");
    let made = bindgen::Builder::default()
        .header(kernels.join("include/hymba_kernels.h").to_string_lossy())
        .allowlist_item("(hk|HK)_.*")
        .rustified_enum("hk_type")
        .prepend_enum_name(false)
        .use_core()
        .layout_tests(false)
        .disable_header_comment()
        .raw_line("// Made by bindgen from include/hymba_kernels.h: `cargo run -p hymba-bindings` regenerates it.")
        .generate();
    let made = match made {
        Ok(bindings) => bindings.to_string(),
        Err(e) => {
            eprintln!("bindgen does not read the header: {e}");
            return ExitCode::FAILURE;
        }
    };
    let file = kernels.join("src/bindings.rs");
    if env::args().any(|a| a == "--check") {
        if fs::read_to_string(&file).is_ok_and(|now| now == made) {
            println!("kernels-cpu/src/bindings.rs is current");
            return ExitCode::SUCCESS;
        }
        eprintln!("kernels-cpu/src/bindings.rs is stale: run `cargo run -p hymba-bindings`");
        return ExitCode::FAILURE;
    }
    match fs::write(&file, made) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("cannot write {}: {e}", file.display());
            ExitCode::FAILURE
        }
    }
}
