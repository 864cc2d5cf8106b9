//! Session files, loaded as a conversation and as a text with a small model.

use std::{
    fs,
    sync::{LazyLock, atomic::AtomicBool},
};

use hymba::{
    engine::{
        Conversation, Model, Session, SessionOptions, Timeline,
        conversation::{Options, Overflow, ReplySink, Saved},
        generate::TokenModel,
        timeline::Watch,
    },
    format::{Blob, CacheType, gguf::Gguf},
    sample::{Sampler, SamplingParams},
    state::{ImageOf, image_bytes, thinned_bytes},
    text::{Template, Tokenizer},
};
use serde_json::Value;
use tempfile::NamedTempFile;

use super::{model, text};

/// Placeholder for the hash of the model file, so that the corpus does not depend on it.
const FINGERPRINT: &str = "FINGERPRINT";
const TEMPLATE: &str = "{% for m in messages %}<e>{{ m.content }}</e>{% endfor %}";
static NO_CANCEL: AtomicBool = AtomicBool::new(false);
static MODEL: LazyLock<(Model, Tokenizer)> = LazyLock::new(|| {
    let file = model::bytes(&mut model::Source(&[]), text::set_tokenizer);
    let model = Model::from_gguf(Gguf::parse("small", Blob::from_vec(file)).expect("a file")).expect("a model");
    let tokenizer = Tokenizer::from_metadata(model.metadata(), model.file()).expect("a tokenizer");
    (model, tokenizer)
});

fn watch() -> Watch<'static> {
    Watch { cancel: &NO_CANCEL, progress: &|_, _| () }
}

fn timeline() -> Timeline<'static> {
    let options = SessionOptions { context: Some(40), threads: 1.try_into().ok(), ..SessionOptions::default() };
    Timeline::new(Session::new(&MODEL.0, &options).expect("a session"), 1 << 20)
}

fn sampler() -> Sampler {
    Sampler::new(SamplingParams { temperature: 0.0, ..SamplingParams::default() }, 0)
}

fn conversation() -> Conversation<'static> {
    let template = Template::new(TEMPLATE, "test", "<s>", "</s>").expect("a template");
    let options = Options {
        template: Some(template),
        system: None,
        limit: Some(2),
        stops: Vec::new(),
        parse_special: false,
        overflow: Overflow::Slide,
        ..Options::default()
    };
    Conversation::new(timeline(), &MODEL.1, sampler(), options).expect("a conversation")
}

fn send(conversation: &mut Conversation<'_>, message: &str) -> bool {
    conversation.send(message, &mut ReplySink { watch: watch(), text: &mut |_| Ok(()) }).is_ok()
}

/// Input: the header's JSON, a zero byte, and bytes that are repeated to the payload size of the header; magic, lengths and hash
/// are added. Or a whole file.
fn file(data: &[u8]) -> Vec<u8> {
    if data.starts_with(b"hymbases") {
        return data.to_vec();
    }
    let mut parts = data.splitn(2, |&b| b == 0);
    let header =
        String::from_utf8_lossy(parts.next().unwrap_or_default()).replace(FINGERPRINT, MODEL.0.fingerprint().unwrap());
    let fill = parts.next().unwrap_or_default();
    let size = serde_json::from_str(&header).ok().and_then(|h| payload_bytes(&h)).unwrap_or(fill.len());
    let mut file =
        [b"hymbases", &1u32.to_le_bytes()[..], &(header.len() as u32).to_le_bytes(), header.as_bytes()].concat();
    file.extend(fill.iter().copied().chain([0]).cycle().take(size));
    file.extend(blake3::hash(&file).as_bytes());
    file
}

fn payload_bytes(header: &Value) -> Option<usize> {
    let kind = CacheType::ALL.into_iter().find(|kind| Some(kind.name()) == header["cache_type"].as_str())?;
    let tokens = header["steps"]["ids"].as_array()?.len();
    let checkpoints = header["marks"].as_array()?;
    let logits = if tokens > 0 { 4 * MODEL.0.config().vocab } else { 0 };
    let (config, thin) = (MODEL.0.config(), header["thin"].as_bool() == Some(true));
    let mut later = ImageOf { tokens: tokens.min(100), global_layers: true };
    let end = image_bytes(config, kind, later.tokens, true) + logits;
    let checkpoints = checkpoints.iter().take(50).map(|at| {
        let of = ImageOf { tokens: usize::try_from(at.as_u64()?).ok()?.min(100), global_layers: false };
        let later = std::mem::replace(&mut later, of);
        let whole = || image_bytes(config, kind, of.tokens, false);
        Some(logits + if thin { thinned_bytes(config, kind, of, later) } else { whole() })
    });
    Some(checkpoints.sum::<Option<usize>>()? + end)
}

pub fn load(data: &[u8]) -> bool {
    let saved = NamedTempFile::new().expect("a temporary file");
    fs::write(&saved, file(data)).expect("room for it");

    let mut running = timeline();
    let check = |saved_text: Saved, _: &[_]| Ok((saved_text.text_sampler(saved.path())?, saved_text.unprocessed));
    let text = running.load(saved.path(), check).and_then(|(sampler, unprocessed)| {
        unprocessed.map(|id| running.decode(id).map(drop)).transpose()?;
        running.decode(5)?;
        Ok(sampler)
    });

    let mut conversation = conversation();
    if conversation.load(saved.path(), false).is_err() {
        return text.is_ok();
    }
    let sent = send(&mut conversation, "ab a") && send(&mut conversation, "b");
    let names: Vec<String> = conversation.branches().into_iter().map(Into::into).collect();
    let switched = names.iter().all(|name| {
        name == conversation.branch_name()
            || conversation.switch(name, &watch()).is_ok() && send(&mut conversation, "a")
    });
    let undone = conversation.undo(1, &watch()).is_ok();
    let again = NamedTempFile::new().expect("a temporary file");
    if conversation.save(again.path(), &watch()).is_ok() {
        conversation.load(again.path(), false).expect("a saved conversation can be loaded");
    }
    sent && switched && undone
}

pub fn seeds() -> Vec<Vec<u8>> {
    let saved = NamedTempFile::new().expect("a temporary file");
    let mut conversation = conversation();
    assert!(send(&mut conversation, "a") && send(&mut conversation, "ab b"));
    conversation.branch("other").expect("a branch");
    assert!(send(&mut conversation, "b"));
    conversation.save(saved.path(), &watch()).expect("saved");
    let chat = fs::read(&saved).expect("the saved file");
    let mut text = timeline();
    text.prefill(&[1, 5, 6, 7], &NO_CANCEL).expect("read");
    text.checkpoint().expect("a checkpoint");
    text.decode(5).expect("read");
    text.save(saved.path(), &Saved::text(&sampler(), None), true).expect("saved");
    [chat, fs::read(&saved).expect("the saved file")]
        .map(|file| {
            let length = u32::from_le_bytes(file[12..16].try_into().expect("four bytes")) as usize;
            let header = std::str::from_utf8(&file[16..16 + length]).expect("JSON");
            let header = header.replace(MODEL.0.fingerprint().unwrap(), FINGERPRINT);
            [header.as_bytes(), &[0], &[0x11, 0x2e, 0x01, 0x3c]].concat()
        })
        .into()
}
