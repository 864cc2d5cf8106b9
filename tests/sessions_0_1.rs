//! Session files of version 0.1, with its continuation of each (`data/README.md`): every later version loads them and
//! continues the same texts with bit-identical logits. With the scalar kernels, which add in another order, only the contents of
//! the files are compared.

mod common;

use std::{
    ffi::OsStr,
    fmt::Debug,
    fs,
    path::{Path, PathBuf},
    sync::{LazyLock, atomic::AtomicBool},
};

use common::{hymba, succeeds, unless_emulated};
use hymba::{
    Error, FileContents,
    engine::{
        Conversation, Model, Session, SessionOptions, Timeline,
        conversation::{Kind, Options, Overflow, ReplySink, Saved, check_replaceable},
        generate::TokenModel,
        timeline::Watch,
    },
    format::CacheType,
    sample::{Sampler, SamplingParams},
    text::Tokenizer,
};
use serde::Deserialize;

/// Results of version 0.1. Logits are hashed.
#[derive(Deserialize)]
struct Expected {
    texts: Vec<Text>,
    prompt: Prompt,
    chats: Vec<Chat>,
}

#[derive(Deserialize)]
struct Text {
    file: String,
    cache: String,
    /// Continuations; the first one has no flags beyond the file.
    runs: Vec<Run>,
    /// After loading, after each token of the first run, some tokens before the end of the file's text, and after loading
    /// again and prefilling one token, which alone uses the oldest row of a window.
    logits: Vec<String>,
}

#[derive(Deserialize)]
struct Run {
    args: Vec<String>,
    ids: Vec<u32>,
    text: String,
}

#[derive(Deserialize)]
struct Prompt {
    file: String,
    cache: String,
    /// The text whose state the file contains.
    text: String,
    runs: Vec<PromptRun>,
    /// At the end, and at each checkpoint, the last one first.
    logits: Vec<String>,
}

/// A prompt that begins with the first `keep` bytes of the text.
#[derive(Deserialize)]
struct PromptRun {
    keep: usize,
    add: String,
    cached_tokens: usize,
    prompt_tokens: usize,
    ids: Vec<u32>,
}

#[derive(Deserialize)]
struct Chat {
    file: String,
    cache: String,
    /// After loading.
    logits: String,
    lines: Vec<Line>,
}

/// A message or a command, the reply if there is one, and the logits after it.
#[derive(Deserialize)]
struct Line {
    line: String,
    reply: Option<String>,
    logits: String,
}

/// Maximum tokens of a reply.
const LIMIT: usize = 16;
/// Tokens to rewind.
const REWIND: usize = 7;
static NO_CANCEL: AtomicBool = AtomicBool::new(false);
static EXPECTED: LazyLock<Expected> =
    LazyLock::new(|| serde_json::from_slice(&fs::read(fixture("expected.json")).unwrap()).unwrap());
static MODEL: LazyLock<Model> = LazyLock::new(|| Model::open(fixture("model.gguf")).unwrap());

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/sessions-0.1").join(name)
}

/// Copies a file to `folder`, since the program updates some of the files that it loads.
fn copied(name: &str, folder: &Path) -> PathBuf {
    let copy = folder.join(name);
    fs::copy(fixture(name), &copy).unwrap();
    copy
}

fn watch() -> Watch<'static> {
    Watch { cancel: &NO_CANCEL, progress: &|_, _| () }
}

/// Returns a prefix of the hash of their bits.
fn hash(logits: &[f32]) -> String {
    let bytes: Vec<u8> = logits.iter().flat_map(|v| v.to_le_bytes()).collect();
    blake3::hash(&bytes).to_hex()[..16].into()
}

fn timeline(cache: &str) -> Timeline<'static> {
    let cache = CacheType::ALL.into_iter().find(|kind| kind.name() == cache).unwrap();
    let options = SessionOptions { cache, threads: unless_emulated(2, 1).try_into().ok(), ..SessionOptions::default() };
    Timeline::new(Session::new(&MODEL, &options).unwrap(), usize::MAX)
}

/// Compares computed values, unless the kernels add in another order than those that computed `expected`.
#[track_caller]
fn assert_computed<A: PartialEq<B> + Debug, B: Debug>(seen: A, expected: B, what: &str) {
    static COMPARABLE: LazyLock<bool> = LazyLock::new(|| timeline("f32").session().kernels() != "scalar");
    if *COMPARABLE {
        assert_eq!(seen, expected, "{what}");
    }
}

/// Returns the report of `hymba run --json` with the fixtures' model.
fn run(cache: &str, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> serde_json::Value {
    let mut command = hymba(["run", "--json", "--quiet", "--backend", "cpu", "--cache-type", cache, "--model"]);
    serde_json::from_str(&succeeds(command.arg(fixture("model.gguf")).args(args))).unwrap()
}

#[test]
fn texts_of_0_1_continue_identically() {
    let folder = tempfile::tempdir().unwrap();
    for Text { file, cache, runs, logits } in &EXPECTED.texts {
        let copy = copied(file, folder.path());
        for Run { args, ids, text } in runs {
            let flags = ["--session", copy.to_str().unwrap(), "--session-ro"];
            let done = run(cache, flags.into_iter().chain(args.iter().map(String::as_str)));
            assert_computed(&done["ids"], &serde_json::json!(ids), &format!("{file}, {args:?}"));
            assert_computed(&done["text"], text, &format!("{file}, {args:?}"));
        }
        assert!(fs::read(&copy).unwrap() == fs::read(fixture(file)).unwrap(), "{file}");

        let mut timeline = timeline(cache);
        let unprocessed = timeline.load(&copy, |saved: Saved, _| Ok(saved.unprocessed)).unwrap();
        let loaded = timeline.steps().to_vec();
        let mut seen = vec![hash(timeline.logits())];
        assert_eq!(seen[0], logits[0], "{file}");
        seen.extend(unprocessed.iter().chain(&runs[0].ids).map(|&id| hash(timeline.decode(id).unwrap())));
        timeline.seek(&loaded[..loaded.len() - REWIND], &watch()).unwrap();
        seen.push(hash(timeline.logits()));
        timeline.load(&copy, |_: Saved, _| Ok(())).unwrap();
        unprocessed.iter().for_each(|&id| drop(timeline.decode(id).unwrap().to_vec()));
        seen.push(hash(timeline.prefill(&runs[0].ids[..1], &NO_CANCEL).unwrap()));
        assert_computed(&seen, logits, file);
    }
}

#[test]
fn prompt_caches_of_0_1_are_used() {
    let folder = tempfile::tempdir().unwrap();
    let Prompt { file, cache, text, runs, logits } = &EXPECTED.prompt;
    for PromptRun { keep, add, cached_tokens, prompt_tokens, ids } in runs {
        let copy = copied(file, folder.path());
        let prompt = format!("{}{add}", &text[..*keep]);
        let done = run(cache, ["-n", "16", "--seed", "5", "--prompt-cache", copy.to_str().unwrap(), &prompt]);
        assert_eq!([&done["cached_tokens"], &done["prompt_tokens"]], [cached_tokens, prompt_tokens], "{keep}{add}");
        assert_computed(&done["ids"], &serde_json::json!(ids), &format!("{keep}{add}"));
    }

    let mut timeline = timeline(cache);
    timeline.load(&fixture(file), |_: Saved, _| Ok(())).unwrap();
    let whole = timeline.steps().to_vec();
    let mut seen = vec![hash(timeline.logits())];
    for checkpoint in [512, 256] {
        timeline.seek(&whole[..checkpoint], &watch()).unwrap();
        assert_eq!(timeline.evaluated(), 0, "the state at {checkpoint} is in the file");
        seen.push(hash(timeline.logits()));
    }
    assert_eq!(seen, *logits);
    timeline.seek(&whole, &watch()).unwrap();
    assert_eq!(timeline.evaluated(), whole.len() - 256);
    assert_computed(&hash(timeline.logits()), &logits[0], file);
}

#[test]
fn conversations_of_0_1_continue_identically() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = Tokenizer::from_metadata(MODEL.metadata(), MODEL.file()).unwrap();
    for Chat { file, cache, logits, lines } in &EXPECTED.chats {
        let script = folder.path().join("script");
        fs::write(&script, lines.iter().map(|line| format!("{}\n", line.line)).collect::<String>()).unwrap();
        let mut chat = hymba([
            "chat",
            "--quiet",
            "--commands",
            "--backend",
            "cpu",
            "--cache-type",
            cache,
            "-n",
            &LIMIT.to_string(),
        ]);
        chat.arg("--model").arg(fixture("model.gguf")).arg("--resume").arg(fixture(file));
        let replies = lines.iter().filter_map(|line| line.reply.as_ref());
        let replies: String = replies.map(|reply| format!("{reply}\n")).collect();
        assert_computed(succeeds(chat.stdin(fs::File::open(&script).unwrap())), replies, file);

        let options = Options {
            template: None,
            system: None,
            limit: Some(LIMIT),
            stops: Vec::new(),
            parse_special: false,
            overflow: Overflow::Stop,
            ..Options::default()
        };
        let sampler = Sampler::new(SamplingParams::default(), 0);
        let mut conversation = Conversation::new(timeline(cache), &tokenizer, sampler, options).unwrap();
        conversation.load(&fixture(file), false).unwrap();
        assert_eq!(hash(conversation.timeline().logits()), *logits, "{file}");
        for Line { line, reply, logits } in lines {
            let mut sink = ReplySink { watch: watch(), text: &mut |_| Ok(()) };
            let result = match line.split_once(' ').unwrap_or((line, "")) {
                ("/regen", _) => Some(conversation.regenerate(&mut sink)),
                ("/undo", _) => conversation.undo(1, &watch()).map(|_| None).unwrap(),
                ("/switch", name) => conversation.switch(name, &watch()).map(|()| None).unwrap(),
                ("/system", text) => conversation.set_system(Some(text), &watch()).map(|()| None).unwrap(),
                _ => Some(conversation.send(line, &mut sink)),
            };
            let what = format!("{file}, {line}");
            assert_computed(&result.map(|reply| reply.unwrap().generation.text), reply, &what);
            assert_computed(&hash(conversation.timeline().logits()), logits, &what);
        }
    }
}

/// Files of 0.1 do not store their kind, but may only be replaced by their own kind; a text and a prompt without checkpoints
/// look the same.
#[test]
fn kinds_of_0_1_files_are_recognized() {
    let kinds = [Kind::Chat, Kind::Text, Kind::Prompt];
    let known = |file: &str| kinds.map(|kind| check_replaceable(&fixture(file), kind, false).is_ok());
    for Chat { file, .. } in &EXPECTED.chats {
        assert_eq!(known(file), [true, false, false], "{file}");
    }
    for Text { file, .. } in &EXPECTED.texts {
        assert_eq!(known(file), [false, true, true], "{file}");
    }
    assert_eq!(known(&EXPECTED.prompt.file), [false, false, true]);
    let model = check_replaceable(&fixture("model.gguf"), Kind::Chat, true);
    assert!(matches!(model, Err(Error::NotReplaced { contents: FileContents::Model, .. })));
}
