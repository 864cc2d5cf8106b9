//! `src/bindings.rs` is what bindgen makes of the header. With `HYMBA_WRITE_BINDINGS` set it is written anew.

use std::{env, fs, path::Path};

#[test]
fn bindings_are_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let made = bindgen::Builder::default()
        .header(root.join("include/hymba_kernels.h").to_str().expect("a UTF-8 path"))
        .allowlist_item("(hk|HK)_.*")
        .rustified_enum("hk_type")
        .prepend_enum_name(false)
        .use_core()
        .layout_tests(false)
        .raw_line("// Made by bindgen from include/hymba_kernels.h; tests/bindings.rs keeps it current.")
        .disable_header_comment()
        .generate()
        .expect("bindgen reads the header")
        .to_string();
    let file = root.join("src/bindings.rs");
    if env::var_os("HYMBA_WRITE_BINDINGS").is_some() {
        fs::write(&file, &made).expect("src/bindings.rs is writable");
    }
    let checked_in = fs::read_to_string(&file).expect("src/bindings.rs is there");
    assert!(checked_in == made, "src/bindings.rs is stale: run this test with HYMBA_WRITE_BINDINGS=1");
}
