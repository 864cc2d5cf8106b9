//! Advice for errors in terms of flags and slash commands, which the library does not know; it is appended to the
//! library's messages.

use std::borrow::Cow;

use hymba::{Error, FileContents, Mismatch};

/// The interface in which the hint is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interface {
    /// In a shell, after the program exited: advise on flags.
    CommandLine,
    /// In a running conversation: advise on slash commands.
    Conversation,
}

/// Returns advice to append to `error` after a semicolon, if there is any.
pub fn hint(error: &Error, interface: Interface) -> Option<Cow<'static, str>> {
    let hint = match error {
        Error::Exists(_) => "add --force to replace it",
        Error::NotReplaced { contents, .. } => match (contents, interface) {
            (FileContents::Model, _) => "name another file",
            (_, Interface::Conversation) => "name another file, or replace it with /save --force",
            (FileContents::Conversation, _) => "resume it with `hymba chat --resume`, or replace it with --force",
            (FileContents::Text, _) => "resume it with `hymba run --session`, or replace it with --force",
            _ => "name another file, or replace it with --force",
        },
        Error::NotGguf { .. } => "name a GGUF file, or convert a Hugging Face folder with `hymba quantize`",
        Error::Model { .. } => "convert the model again with `hymba quantize`",
        Error::NoTokenizer(_) => {
            "convert the model again with `hymba quantize` from a folder that contains tokenizer.json"
        }
        Error::Template { .. } => "use another one with --chat-template-file",
        Error::SessionMismatch { reason, .. } => return mismatch(reason, interface),
        Error::Calibration { .. } => "create one for this model with --calibrate",
        Error::NoSuchTensor { .. } => "names for --tensor-type look like blk.0.ffn_up.weight",
        Error::TensorRange { name, .. } => {
            return Some(format!("keep it wider, for example with --tensor-type {name}=f32").into());
        }
        Error::ContextFull { .. } => "shorten the text or use a larger -c",
        Error::ConversationFull { .. } => match interface {
            Interface::CommandLine => "use --overflow slide or a larger -c",
            Interface::Conversation => "use /undo, /clear, /set context N or /set overflow slide",
        },
        Error::BranchExists(name) => return Some(format!("switch to it with /switch {name}").into()),
        Error::CacheTypeWidth { .. } => "use --cache-type f16",
        Error::GpuCacheType(_) => "use --cache-type f16, or --backend cpu",
        Error::CacheRange { .. } => "use --cache-type f32",
        Error::OutOfMemory { .. } => "use a smaller -c",
        Error::GpuOutOfMemory(_) => "use a smaller -c, or --backend cpu",
        Error::GpuUnsupported(_) => "use --backend cpu",
        Error::Gpu(_) => "try again, or use --backend cpu",
        _ => return None,
    };
    Some(hint.into())
}

fn mismatch(reason: &Mismatch, interface: Interface) -> Option<Cow<'static, str>> {
    let hint = match (reason, interface) {
        (Mismatch::CacheType { saved, .. }, Interface::CommandLine) => format!("add --cache-type {saved}").into(),
        (Mismatch::CacheType { saved, .. }, Interface::Conversation) => {
            format!("start with --cache-type {saved} to load it").into()
        }
        (Mismatch::Tokens { .. }, Interface::CommandLine) => "raise it with -c".into(),
        (Mismatch::Tokens { .. }, Interface::Conversation) => "start with a larger -c to load it".into(),
        (Mismatch::Conversation, _) => "resume it with `hymba chat --resume`".into(),
        (Mismatch::Text, _) => "resume it with `hymba run --session`".into(),
        (Mismatch::Model(_), _) => return None,
    };
    Some(hint)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use clap::CommandFactory;
    use regex::Regex;

    use super::*;
    use crate::cli::{Cli, chat::commands::COMMANDS};

    /// Finds flags and slash commands anywhere in Rust source, and short flags and subcommands in string literals.
    struct Words {
        token: Regex,
        anywhere: Regex,
        literal: Regex,
    }

    impl Words {
        fn new() -> Self {
            let commands = COMMANDS.map(|command| command.0).join("|");
            let subcommands: Vec<_> = Cli::command().get_subcommands().map(|c| c.get_name().to_owned()).collect();
            let subcommands = subcommands.join("|");
            Self {
                token: Regex::new(r##"(?s)//[^\n]*|/\*.*?\*/|r#".*?"#|"(?:\\.|[^"\\])*"|'(?:\\[^']+|[^\\'])'"##)
                    .unwrap(),
                anywhere: Regex::new(&format!(r#"--[a-z][a-z-]*|[\s"`(]/(?:{commands})\b"#)).unwrap(),
                literal: Regex::new(&format!(r#"[\s"`(]-[a-z]\b|\bhymba (?:{subcommands})\b"#)).unwrap(),
            }
        }

        fn found<'a>(&self, source: &'a str) -> Vec<&'a str> {
            let literals = self.token.find_iter(source).map(|token| token.as_str()).filter(|t| !t.starts_with('/'));
            let in_literals = literals.flat_map(|literal| self.literal.find_iter(literal));
            self.anywhere.find_iter(source).chain(in_literals).map(|found| found.as_str()).collect()
        }
    }

    /// Returns the library's sources by path from the repository root.
    fn sources() -> Vec<(String, String)> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut folders = ["src", "kernels-cpu/src", "kernels-metal/src"].map(|folder| root.join(folder)).to_vec();
        let mut sources = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() && path != root.join("src/cli") {
                    folders.push(path);
                } else if path.extension().is_some_and(|e| e == "rs") && path != root.join("src/main.rs") {
                    let name = path.strip_prefix(root).unwrap().display().to_string();
                    sources.push((name, fs::read_to_string(path).unwrap()));
                }
            }
        }
        sources
    }

    #[test]
    fn the_library_mentions_no_flags_or_commands() {
        let (words, sources) = (Words::new(), sources());
        let found: Vec<_> = sources.iter().map(|(name, source)| (name, words.found(source))).collect();
        let found: Vec<_> = found.into_iter().filter(|(_, words)| !words.is_empty()).collect();
        assert!(found.is_empty(), "{found:?}");
        for part in ["src/error.rs", "src/engine/session.rs", "kernels-metal/src/device.rs"] {
            assert!(sources.iter().any(|(name, _)| Path::new(name) == Path::new(part)), "{part} was not checked");
        }
    }

    #[test]
    fn flags_and_commands_are_found() {
        let words = Words::new();
        for (source, found) in [
            (r#"let a = "use --cache-type f16";"#, &["--cache-type"][..]),
            ("/// See `--pure`.", &["--pure"]),
            (r#"say("a larger -c makes room")"#, &[" -c"]),
            (r#"say("a shorter context (-c)")"#, &["(-c"]),
            (r#"say("/undo, /clear make room")"#, &["\"/undo", " /clear"]),
            ("/// What /set sets.", &[" /set"]),
            (r#"say("convert it with `hymba quantize`")"#, &["hymba quantize"]),
            (r#"let a = f(-c) - b / show; read("/proc/meminfo", '"', "a-b", "//");"#, &[]),
        ] {
            assert_eq!(words.found(source), found, "{source}");
        }
    }

    #[test]
    fn an_error_and_its_hint_are_one_sentence() {
        let session = |reason| Error::SessionMismatch { file: "talk".into(), reason };
        let template = |line| Error::Template { origin: "t.jinja".into(), line, problem: "no".into() };
        let memory = |available| Error::OutOfMemory { wanted: 2_500_000_000, available };
        for (error, expected) in [
            (Error::Exists("out.gguf".into()), "out.gguf: already exists; add --force to replace it"),
            (
                Error::NotReplaced { path: "notes".into(), contents: FileContents::Other },
                "notes: is not a hymba session file, and was not replaced; name another file, or replace it with --force",
            ),
            (
                Error::NotReplaced { path: "m.gguf".into(), contents: FileContents::Model },
                "m.gguf: is a model file (GGUF), and was not replaced; name another file",
            ),
            (
                session(Mismatch::Tokens { tokens: 5, context: 4 }),
                "talk: has 5 tokens, but the context size is 4; raise it with -c",
            ),
            (
                session(Mismatch::Text),
                "talk: is a `run` session, not a conversation; resume it with `hymba run --session`",
            ),
            (
                template(Some(2)),
                "t.jinja: is not a usable chat template, line 2: no; use another one with --chat-template-file",
            ),
            (template(None), "t.jinja: is not a usable chat template: no; use another one with --chat-template-file"),
            (
                memory(Some(1_000_000_000)),
                "not enough memory for the KV cache: 2.5 GB needed, 1.0 GB available; use a smaller -c",
            ),
            (memory(None), "not enough memory for the KV cache and activations: 2.5 GB needed; use a smaller -c"),
            (
                Error::ContextFull { needed: 5, free: 4, context: 9 },
                "5 more tokens do not fit: 4 of 9 tokens are left in the context; shorten the text or use a larger -c",
            ),
            (Error::BranchExists("b".into()), "branch `b` already exists; switch to it with /switch b"),
            (Error::Gpu("it was lost".into()), "the GPU failed: it was lost; try again, or use --backend cpu"),
        ] {
            assert_eq!(format!("{error}; {}", hint(&error, Interface::CommandLine).unwrap()), expected);
        }
    }

    #[test]
    fn hints_depend_on_the_interface() {
        let full = Error::ConversationFull { needed: 9, free: 3, context: 3 };
        assert!(!hint(&full, Interface::CommandLine).unwrap().contains('/'));
        assert!(hint(&full, Interface::Conversation).unwrap().starts_with("use /undo"));
        let reason = Mismatch::CacheType { saved: "f16".into(), cache: "f32" };
        let other = Error::SessionMismatch { file: "talk".into(), reason };
        assert_eq!(hint(&other, Interface::CommandLine).unwrap(), "add --cache-type f16");
        assert_eq!(hint(&other, Interface::Conversation).unwrap(), "start with --cache-type f16 to load it");
        assert!(hint(&Error::Cancelled, Interface::CommandLine).is_none());
    }
}
