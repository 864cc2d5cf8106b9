//! Fuzz targets: one function for each kind of untrusted input. The fuzzers in `targets/` call them, and `tests/fuzz.rs` replays
//! the inputs in `corpus/`.

pub mod blocks;
pub mod constraint;
pub mod conversation;
pub mod folder;
pub mod gguf;
pub mod model;
pub mod request;
pub mod session;
pub mod text;

/// A fuzz target.
pub struct Target {
    /// The name of the fuzzer and of its corpus.
    pub name: &'static str,
    /// Processes the input as a command would; returns whether all of it was valid. It must not panic.
    pub run: fn(&[u8]) -> bool,
    /// Valid inputs.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All targets.
pub const TARGETS: [Target; 11] = [
    Target { name: "gguf", run: gguf::read, seeds: gguf::seeds },
    Target { name: "config", run: folder::config, seeds: folder::config_seeds },
    Target { name: "import", run: folder::import, seeds: folder::import_seeds },
    Target { name: "tokenizer", run: text::tokenizer, seeds: text::tokenizer_seeds },
    Target { name: "template", run: text::template, seeds: text::template_seeds },
    Target { name: "session", run: session::load, seeds: session::seeds },
    Target { name: "conversation", run: conversation::run, seeds: conversation::seeds },
    Target { name: "blocks", run: blocks::decode, seeds: blocks::seeds },
    Target { name: "constraint", run: constraint::constrain, seeds: constraint::seeds },
    Target { name: "request", run: request::answer, seeds: request::seeds },
    Target { name: "run", run: model::run, seeds: model::seeds },
];

/// Runs the target with this name.
pub fn run(name: &str, data: &[u8]) -> bool {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target with this name");
    (target.run)(data)
}
