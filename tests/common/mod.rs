//! What the tests of the binary share.
#![allow(dead_code, unused_imports, reason = "each test file uses a part of it")]

#[cfg(feature = "serve")]
pub mod http;
mod runner;

use std::{
    ffi::OsStr,
    path::Path,
    process::{Command, Output, Stdio},
    sync::LazyLock,
};

pub use runner::{much, runner};

use hymba::format::gguf::{Gguf, Layout, Metadata, Value, Writer};

/// Returns the binary, with nothing on its standard input and no model of the user's: it takes the demo, or under
/// emulation [`demo_of_any_depth`].
pub fn hymba<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    hymba_at(Path::new(env!("CARGO_BIN_EXE_hymba")), args)
}

/// The same with a copy of the binary.
pub fn hymba_at<S: AsRef<OsStr>>(program: &Path, args: impl IntoIterator<Item = S>) -> Command {
    let runner = runner().unwrap_or_default();
    let mut words = runner.split_whitespace().map(OsStr::new).chain([program.as_os_str()]);
    let mut command = Command::new(words.next().unwrap());
    command.args(words).args(args).env_remove("HYMBA_MODEL").env("HYMBA_CONFIG", "").stdin(Stdio::null());
    if !runner.is_empty() {
        command.env("HYMBA_MODEL", demo_of_any_depth());
    }
    command
}

pub fn golden(case: &str) -> String {
    format!("{}/tests/golden/{case}", env!("CARGO_MANIFEST_DIR"))
}

/// Returns the demo model's file.
pub fn demo() -> String {
    format!("{}/models/hymba-demo.gguf", env!("CARGO_MANIFEST_DIR"))
}

/// The same where it does not matter what it says: under emulation its first layers alone, a third of the work.
pub fn demo_of_any_depth() -> String {
    if runner().is_some() { FIRST_LAYERS.clone() } else { demo() }
}

static FIRST_LAYERS: LazyLock<String> = LazyLock::new(|| {
    const LAYERS: usize = 3; // a global one, and two that share their windowed keys and values
    let whole = Gguf::open(Path::new(&demo())).unwrap();
    let mut metadata = whole.metadata.clone();
    metadata.set("hymba.block_count", LAYERS as u64);
    for key in ["hymba.attention.sliding_window_pattern", "hymba.attention.kv_source"] {
        let value = match whole.metadata.get(key).unwrap() {
            Value::Bools(all) => Value::Bools(all[..LAYERS].to_vec()),
            Value::Uints(all) => Value::Uints(all[..LAYERS].to_vec()),
            other => panic!("{key} is {other:?}"),
        };
        metadata.set(key, value);
    }
    let layer = |name: &str| name.split('.').find_map(|part| part.parse::<usize>().ok());
    let kept = |name: &str| layer(name).is_none_or(|layer| layer < LAYERS);
    let file = format!("{}/first-layers.gguf", env!("CARGO_TARGET_TMPDIR"));
    write_some(&whole, metadata, kept, Path::new(&file));
    file
});

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// What the binary says of a model that no flag names, or that could chat.
const NOTICES: [&str; 3] = ["using the built-in demo", "(from HYMBA_MODEL)", "has a chat template"];

/// It fails with this code, in one sentence that holds all of `says`.
#[track_caller]
pub fn fails(command: &mut Command, code: i32, says: &[&str]) {
    let Output { status, stderr, .. } = command.output().unwrap();
    let stderr = text(&stderr);
    assert_eq!(status.code(), Some(code), "{stderr}");
    assert!(stderr.contains("hymba: error: ") && !stderr.contains("panicked"), "{stderr}");
    for part in says {
        assert!(stderr.contains(part), "`{part}` is missing in: {stderr}");
    }
    let notices = stderr.lines().filter(|line| NOTICES.iter().any(|n| line.contains(n))).count();
    assert!(code == 2 || stderr.lines().count() - notices == 1, "more than a sentence: {stderr}");
}

/// It succeeds, and this is its standard output.
#[track_caller]
pub fn succeeds(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    assert!(status.success(), "{}", text(&stderr));
    text(&stdout)
}

#[track_caller]
pub fn quantize(input: &str, output: &Path, more: &[&str]) {
    succeeds(hymba(["quantize", input]).arg(output).args(more));
}

/// Returns the header of a session file.
#[track_caller]
pub fn session_header(path: &Path) -> serde_json::Value {
    let file = std::fs::read(path).unwrap();
    let length = u32::from_le_bytes(file[12..16].try_into().unwrap()) as usize;
    serde_json::from_slice(&file[16..16 + length]).unwrap()
}

/// Writes a model again with other keys.
pub fn write_again(model: &Gguf, metadata: Metadata, to: &Path) {
    write_some(model, metadata, |_| true, to);
}

/// The same with the tensors alone whose names are `kept`.
fn write_some(model: &Gguf, metadata: Metadata, kept: impl Fn(&str) -> bool, to: &Path) {
    let tensors = || model.tensors.iter().filter(|t| kept(&t.name));
    let places = tensors().map(|t| (t.name.clone(), t.dims.clone(), t.dtype, t.packing));
    let mut writer = Writer::create(to, Layout::new(metadata, places.collect()).unwrap(), true).unwrap();
    tensors().for_each(|t| writer.write(&t.data).unwrap());
    writer.finish().unwrap();
}
