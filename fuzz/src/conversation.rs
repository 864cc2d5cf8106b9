//! Conversations with a small model, with commands and messages decoded from the input. After every command the processed tokens
//! must match the template's rendering, and the state must equal that of a new session after the same steps.

use std::{
    cell::Cell,
    sync::{
        LazyLock,
        atomic::{AtomicBool, Ordering},
    },
};

use hymba::{
    Error,
    engine::{
        Conversation, Model, Session, SessionOptions, Timeline,
        conversation::{Options, Overflow, Reply, ReplySink},
        generate::StopReason,
        timeline::{Watch, passes},
    },
    format::{
        Blob,
        gguf::{Gguf, Metadata},
    },
    forward::Phase,
    sample::{Sampler, SamplingParams},
    text::{Message, Role, Template, Tokenizer},
};
use serde_json::json;
use tempfile::TempDir;

use super::model::{self, Source};

/// Maximum number of commands per input.
const STEPS: usize = 24;
const ROLE: &str =
    "{% for m in messages %}{{ '<a>' if m.role == 'user' else '<b>' if m.role == 'assistant' else '<tool>' }}";
/// How templates render a message, and their end.
const KINDS: [(&str, &str); 8] = [
    ("m.content", "<b>"),
    ("m.content.strip()", "<b>"),
    ("m.content.split('|')[-1]", "<b>"),
    ("(m.content if m.role != 'assistant' or loop.index0 + 2 >= messages|length else 'o')", "<b>"),
    ("m.content", "{{ 'a' * messages|length }}<b>"),
    ("(m.content|upper|lower)", "<b>"),
    ("(m.content[1:] if m.content.startswith('a') else m.content)", "<b>"),
    ("(m.content ~ m.content)", "<b>"),
];
/// Parts of messages.
const WORDS: [&str; 16] =
    ["a", "b", " a", "ab", "tool", " ", "\n", "é", "|", "<", ">", "<tool>", "<e>", "</s>", "<a>", "to<b>ol"];
static GO_ON: AtomicBool = AtomicBool::new(false);
static MODEL: LazyLock<(Model, Tokenizer)> = LazyLock::new(|| {
    // two layers, a window, a vocabulary of 32
    let file = model::bytes(&mut Source(&[0, 0, 0, 0, 0, 0, 0, 0, 2]), set_tokenizer);
    let model = Model::from_gguf(Gguf::parse("small", Blob::from_vec(file)).expect("a file")).expect("a model");
    let tokenizer = Tokenizer::from_metadata(model.metadata(), model.file()).expect("a tokenizer");
    (model, tokenizer)
});

/// Sets a tokenizer with tokens for all characters in use, and some longer ones.
fn set_tokenizer(metadata: &mut Metadata) {
    const TOKENS: [&str; 31] = [
        "<unk>", "<s>", "</s>", "<0x0A>", "<0xC3>", "<0xA9>", "<0x3C>", "<0x65>", "<0xEF>", "<0xBF>", "<0xBD>", "▁",
        "a", "b", "o", "t", "l", "e", "s", "<", ">", "|", "/", "to", "ol", "tool", "▁a", "ab", "▁<", "<e>", "</e>",
    ];
    let vocab: serde_json::Map<_, _> = TOKENS.iter().zip(0..).map(|(t, id)| (t.to_string(), id.into())).collect();
    let added = [0, 1, 2, 29].map(|id| {
        json!({"id": id, "content": TOKENS[id], "special": true, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false})
    });
    let json = json!({
        "version": "1.0", "added_tokens": added, "pre_tokenizer": null, "post_processor": null,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false, "vocab": vocab,
            "merges": [["t", "o"], ["o", "l"], ["to", "ol"], ["▁", "a"], ["a", "b"], ["▁", "<"]]},
    });
    metadata.set("tokenizer.huggingface.json", json.to_string());
    for (key, id) in [("unknown", 0u32), ("bos", 1), ("eos", 2)] {
        metadata.set(format!("tokenizer.ggml.{key}_token_id"), id);
    }
}

fn template(kind: usize) -> String {
    let (content, end) = KINDS[kind];
    format!("{ROLE}{{{{ {content} }}}}{{{{ '\\n' }}}}{{% endfor %}}{end}")
}

fn session(context: usize) -> Session<'static> {
    let options = SessionOptions { context: Some(context), threads: 1.try_into().ok(), ..SessionOptions::default() };
    Session::new(&MODEL.0, &options).expect("a session")
}

/// Parameters of a conversation, decoded from the input.
struct Setup {
    context: usize,
    budget: usize,
    temperature: f32,
    template: Option<String>,
    overflow: Overflow,
    parse_special: bool,
}

impl Setup {
    fn new(s: &mut Source<'_>) -> Self {
        Self {
            context: s.pick(&[64, 48, 90, 120]),
            budget: s.pick(&[1 << 20, 0, 20_000]),
            temperature: s.pick(&[1.0, 0.0, 2.0]),
            template: s
                .pick(&[Some(0), Some(1), Some(2), Some(3), Some(4), Some(5), Some(6), Some(7), None])
                .map(template),
            overflow: s.pick(&[Overflow::Stop, Overflow::Slide]),
            parse_special: s.below(8) == 7,
        }
    }

    fn conversation(&self) -> Conversation<'static> {
        let params = SamplingParams { temperature: self.temperature, ..SamplingParams::default() };
        let parse = |source: &String| Template::new(source, "test", "<s>", "</s>").expect("a template");
        let options = Options {
            template: self.template.as_ref().map(parse),
            system: None,
            limit: Some(6),
            stops: vec!["|s".into()],
            parse_special: self.parse_special,
            overflow: self.overflow,
            ..Options::default()
        };
        let timeline = Timeline::new(session(self.context), self.budget);
        Conversation::new(timeline, &MODEL.1, Sampler::new(params, 1), options).expect("a conversation")
    }
}

/// Input: the setup, then commands and their arguments.
pub fn run(data: &[u8]) -> bool {
    let s = &mut Source(data);
    let setup = Setup::new(s);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut conversation = setup.conversation();
    let mut valid = true;
    for _ in 0..STEPS {
        if s.0.is_empty() {
            break;
        }
        let before = (conversation.turns().to_vec(), conversation.system().map(String::from));
        match step(&mut conversation, s, &folder, &setup) {
            Ok(()) => check(&mut conversation, &setup),
            Err(Error::Cancelled) => {}
            Err(e) => {
                valid = false;
                assert!(!e.to_string().is_empty());
                let after = (conversation.turns().to_vec(), conversation.system().map(String::from));
                assert!(before == after, "{e}: a failed command has changed the conversation");
            }
        }
    }
    valid
}

fn text(s: &mut Source<'_>) -> String {
    (0..=s.below(6)).map(|_| s.pick(&WORDS)).collect()
}

/// Executes one command, which may be cancelled after some progress or some pieces of text.
fn step(c: &mut Conversation<'static>, s: &mut Source<'_>, folder: &TempDir, setup: &Setup) -> hymba::Result<()> {
    let command = s.byte();
    let cancel = AtomicBool::new(false);
    let remaining = Cell::new(if command >= 192 { s.below(8) } else { usize::MAX });
    let tick = || {
        remaining.set(remaining.get().saturating_sub(1));
        cancel.store(remaining.get() == 0, Ordering::Relaxed);
    };
    tick();
    let progress = |_: usize, _: usize| tick();
    let watch = Watch { cancel: &cancel, progress: &progress };
    let file = folder.path().join(s.pick(&["a", "b"]));
    let name = s.pick(&["main", "b", "c"]);
    let mut text_sink = |_: &str| {
        tick();
        Ok(())
    };
    let sink = &mut ReplySink { watch, text: &mut text_sink };
    match command % 16 {
        0..5 => completed(c.send(&text(s), sink)),
        5 => completed(c.regenerate(sink)),
        6 => c.undo(1 + s.below(3), &watch).map(drop),
        7 => c.branch(name),
        8 => c.switch(name, &watch),
        9 => {
            let system = text(s);
            c.set_system(Some(&*system).filter(|_| command & 16 == 0), &watch)
        }
        10 => c.save(&file, &watch),
        11 => c.load(&file, command & 16 > 0),
        12 => {
            // like /edit
            let message = text(s);
            c.undo(1, &watch)?;
            completed(c.send(&message, sink)).or(Err(Error::Cancelled)) // the turn is undone even if the new message fails
        }
        13 => {
            c.set_limit(s.pick(&[Some(6), Some(0), Some(1), None]));
            c.sampler().set_seed(s.byte().into());
            Ok(())
        }
        14 => {
            // another conversation loads the same state
            c.save(&file, &watch)?;
            let mut other = Setup { template: None, ..Setup::new(&mut Source(&[])) };
            other.context = setup.context;
            let mut other = other.conversation();
            other.load(&file, false)?;
            assert!(other.turns() == c.turns() && other.timeline().steps() == c.timeline().steps());
            assert!(other.timeline().logits() == c.timeline().logits());
            Ok(())
        }
        _ => c.clear(),
    }
}

fn completed(reply: hymba::Result<Reply>) -> hymba::Result<()> {
    match reply?.generation.stop {
        StopReason::Interrupted => Err(Error::Cancelled),
        _ => Ok(()),
    }
}

fn check(c: &mut Conversation<'static>, setup: &Setup) {
    let used = c.used();
    let steps = c.timeline().steps().to_vec();
    // after an error or a cancel the timeline may lag behind; the next command updates it
    if steps.len() != used {
        return;
    }
    let mut fresh = session(setup.context);
    let mut logits = Vec::new();
    for pass in passes(&steps) {
        let ids: Vec<u32> = pass.iter().map(|step| step.id).collect();
        logits = match pass[0].phase {
            Phase::Prefill => fresh.prefill(&ids, &GO_ON).expect("room").to_vec(),
            Phase::Decode => fresh.decode(ids[0]).expect("room").to_vec(),
        };
    }
    assert!(c.timeline().logits() == logits, "the logits differ from those of a new session");

    let turns = c.turns().to_vec();
    let (Some(template), Some((last, before))) = (&c.options().template, turns.split_last()) else { return };
    let mut messages: Vec<_> = c.system().into_iter().map(|text| Message::new(Role::System, text)).collect();
    for turn in before {
        messages.extend([Message::new(Role::User, &turn.user), Message::new(Role::Assistant, &turn.reply)]);
    }
    messages.push(Message::new(Role::User, &last.user));
    let mut rendered = template.render(&messages, true).expect("it was rendered before");
    let ids: Vec<u32> = steps.iter().map(|step| step.id).collect();
    let mut processed = MODEL.1.decode(&ids);
    if setup.parse_special {
        rendered = MODEL.1.decode(&MODEL.1.encode(&rendered, false).expect("encoded before"));
        (rendered, processed) = (rendered.replace(' ', ""), processed.replace(' ', ""));
    }
    assert!(
        processed.starts_with(&rendered),
        "the template renders\n{rendered:?}\nthe session processed\n{processed:?}"
    );
    if !setup.parse_special {
        let (rest, reply) = (&processed[rendered.len()..], &last.reply);
        assert!(
            rest.starts_with(reply) || reply.starts_with(rest),
            "the reply is {reply:?}, the session processed {rest:?}"
        );
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let setups = (0..9u8).map(|kind| vec![3, 0, 0, kind, 1, 0]);
    // commands (with file and name), and a message of some words
    let commands =
        [0, 0, 0, 2, 0, 1, 2, 0, 0, 0, 1, 11, 3, 5, 0, 0, 7, 0, 1, 1, 0, 1, 3, 8, 4, 12, 9, 10, 0, 0, 14, 0, 0];
    setups.map(|setup| [&setup[..], &commands, &[8, 0, 0, 2, 0, 0, 1, 0, 1, 6, 0, 0, 0]].concat()).collect()
}
