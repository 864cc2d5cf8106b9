//! A conversation with one message per line: `cargo run --release --example chat -- MODEL`.

use std::{
    env,
    io::{Write, stdin, stdout},
    sync::atomic::AtomicBool,
};

use hymba::{
    Conversation, Model, Sampler, Session, SessionOptions, Timeline, Watch,
    conversation::{Options, Overflow, ReplySink},
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let model = Model::open(env::args().nth(1).unwrap_or("models/hymba-demo.gguf".into()))?;
    let tokenizer = model.tokenizer()?;
    let session = Session::new(&model, &SessionOptions::default())?;
    let options = Options {
        template: model.chat_template(&tokenizer)?,
        system: None,
        limit: Some(200),
        stops: Vec::new(),
        parse_special: false,
        overflow: Overflow::Slide,
        ..Options::default()
    };
    let checkpoints = 256 << 20; // bytes
    let timeline = Timeline::new(session, checkpoints);
    let mut conversation = Conversation::new(timeline, &tokenizer, Sampler::new(model.sampling()?, 42), options)?;
    let cancel = AtomicBool::new(false);
    let mut text = |piece: &str| {
        print!("{piece}");
        stdout().flush()
    };
    for line in stdin().lines() {
        let watch = Watch { cancel: &cancel, progress: &|_, _| () };
        conversation.send(&line?, &mut ReplySink { watch, text: &mut text })?;
        println!();
    }
    Ok(())
}
