//! What is done with hostile input: one function for each way in. The fuzzers in `targets/` call them, and so does
//! `tests/fuzz.rs`, which replays what the fuzzers found worth keeping in `corpus/`.

pub mod blocks;
pub mod constraint;
pub mod conversation;
pub mod folder;
pub mod gguf;
pub mod model;
pub mod request;
pub mod session;
pub mod text;

/// A way in.
pub struct Target {
    /// Of the fuzzer and of the folder in `corpus/`.
    pub name: &'static str,
    /// Works with the input as a command would. Was it good to the end? It may be refused, but nothing else.
    pub run: fn(&[u8]) -> bool,
    /// Inputs that are good to the end.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: [Target; 11] = [
    Target { name: "gguf", run: gguf::read, seeds: gguf::seeds },
    Target { name: "config", run: folder::config, seeds: folder::config_seeds },
    Target { name: "import", run: folder::import, seeds: folder::import_seeds },
    Target { name: "tokenizer", run: text::tokenizer, seeds: text::tokenizer_seeds },
    Target { name: "template", run: text::template, seeds: text::template_seeds },
    Target { name: "session", run: session::load, seeds: session::seeds },
    Target { name: "conversation", run: conversation::run, seeds: conversation::seeds },
    Target { name: "blocks", run: blocks::decode, seeds: blocks::seeds },
    Target { name: "constraint", run: constraint::hold, seeds: constraint::seeds },
    Target { name: "request", run: request::answer, seeds: request::seeds },
    Target { name: "run", run: model::run, seeds: model::seeds },
];

/// Runs the target called `name`.
pub fn run(name: &str, data: &[u8]) -> bool {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target of that name");
    (target.run)(data)
}
