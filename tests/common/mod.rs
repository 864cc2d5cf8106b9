//! Helpers shared by the tests of the binary.
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

pub use runner::{runner, unless_emulated};

use hymba::format::gguf::{Gguf, Layout, Metadata, Value, Writer};

/// Returns a command that runs the binary with an empty standard input and without the user's settings. Its model is the
/// demo, under emulation [`demo_of_any_depth`].
pub fn hymba<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    hymba_at(Path::new(env!("CARGO_BIN_EXE_hymba")), args)
}

/// The same for a copy of the binary at `program`.
pub fn hymba_at<S: AsRef<OsStr>>(program: &Path, args: impl IntoIterator<Item = S>) -> Command {
    let runner = runner().unwrap_or_default();
    let mut argv = runner.split_whitespace().map(OsStr::new).chain([program.as_os_str()]);
    let mut command = Command::new(argv.next().unwrap());
    command.args(argv).args(args).env_remove("HYMBA_MODEL").env("HYMBA_CONFIG", "").stdin(Stdio::null());
    if !runner.is_empty() {
        command.env("HYMBA_MODEL", demo_of_any_depth());
    }
    command
}

/// Returns the folder of a golden checkpoint.
pub fn golden(case: &str) -> String {
    format!("{}/tests/golden/{case}", env!("CARGO_MANIFEST_DIR"))
}

/// Returns the demo model's file.
pub fn demo() -> String {
    format!("{}/models/hymba-demo.gguf", env!("CARGO_MANIFEST_DIR"))
}

/// Returns the demo for tests that do not depend on its text: under emulation only its first layers, a third of the work.
pub fn demo_of_any_depth() -> String {
    if runner().is_some() { FIRST_LAYERS.clone() } else { demo() }
}

static FIRST_LAYERS: LazyLock<String> = LazyLock::new(|| {
    const LAYERS: usize = 3; // a global layer, and two windowed layers that share a KV cache
    let demo = Gguf::open(Path::new(&demo())).unwrap();
    let mut metadata = demo.metadata.clone();
    metadata.set("hymba.block_count", LAYERS as u64);
    for key in ["hymba.attention.sliding_window_pattern", "hymba.attention.kv_source"] {
        let value = match demo.metadata.get(key).unwrap() {
            Value::Bools(values) => Value::Bools(values[..LAYERS].to_vec()),
            Value::Uints(values) => Value::Uints(values[..LAYERS].to_vec()),
            other => panic!("{key} is {other:?}"),
        };
        metadata.set(key, value);
    }
    let layer = |name: &str| name.split('.').find_map(|part| part.parse::<usize>().ok());
    let kept = |name: &str| layer(name).is_none_or(|layer| layer < LAYERS);
    let file = format!("{}/first-layers.gguf", env!("CARGO_TARGET_TMPDIR"));
    write_tensors(&demo, metadata, kept, Path::new(&file));
    file
});

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Notes that the binary prints about its choice of a model and a mode.
const NOTICES: [&str; 3] = ["using the built-in demo", "(from HYMBA_MODEL)", "has a chat template"];

/// Runs a command that must fail with this exit code and one sentence that contains all of `parts`.
#[track_caller]
pub fn fails(command: &mut Command, code: i32, parts: &[&str]) {
    let Output { status, stderr, .. } = command.output().unwrap();
    let stderr = text(&stderr);
    assert_eq!(status.code(), Some(code), "{stderr}");
    assert!(stderr.contains("hymba: error: ") && !stderr.contains("panicked"), "{stderr}");
    for part in parts {
        assert!(stderr.contains(part), "`{part}` is missing in: {stderr}");
    }
    let notices = stderr.lines().filter(|line| NOTICES.iter().any(|n| line.contains(n))).count();
    assert!(code == 2 || stderr.lines().count() - notices == 1, "more than one sentence: {stderr}");
}

/// Runs a command that must succeed, and returns its standard output.
#[track_caller]
pub fn succeeds(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    assert!(status.success(), "{}", text(&stderr));
    text(&stdout)
}

/// Converts `input` to `output` with these flags.
#[track_caller]
pub fn quantize(input: &str, output: &Path, flags: &[&str]) {
    succeeds(hymba(["quantize", input]).arg(output).args(flags));
}

/// Returns the header of a session file.
#[track_caller]
pub fn session_header(path: &Path) -> serde_json::Value {
    let file = std::fs::read(path).unwrap();
    let length = u32::from_le_bytes(file[12..16].try_into().unwrap()) as usize;
    serde_json::from_slice(&file[16..16 + length]).unwrap()
}

/// Writes a copy of a model with other metadata.
pub fn write_with_metadata(model: &Gguf, metadata: Metadata, path: &Path) {
    write_tensors(model, metadata, |_| true, path);
}

/// The same with only the tensors whose names satisfy `kept`.
fn write_tensors(model: &Gguf, metadata: Metadata, kept: impl Fn(&str) -> bool, path: &Path) {
    let tensors = || model.tensors.iter().filter(|t| kept(&t.name));
    let infos = tensors().map(|t| (t.name.clone(), t.dims.clone(), t.dtype, t.packing));
    let mut writer = Writer::create(path, Layout::new(metadata, infos.collect()).unwrap(), true).unwrap();
    tensors().for_each(|t| writer.write(&t.data).unwrap());
    writer.finish().unwrap();
}
