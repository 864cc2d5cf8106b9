//! Generates two continuations of one prompt, which is processed once: `cargo run --release --example branch -- MODEL PROMPT`.

use std::{env, sync::atomic::AtomicBool};

use hymba::{Model, Request, Result, Sampler, Session, SessionOptions, Timeline, TokenModel, Watch, generate};

fn main() -> Result<()> {
    let mut args = env::args().skip(1);
    let model = Model::open(args.next().unwrap_or("models/hymba-demo.gguf".into()))?;
    let tokenizer = model.tokenizer()?;
    let prompt = tokenizer.encode(&args.next().unwrap_or("Once upon a time".into()), true)?;
    let session = Session::new(&model, &SessionOptions::default())?;
    let mut timeline = Timeline::new(session, 256 << 20); // bytes of checkpoints
    let cancel = AtomicBool::new(false);
    timeline.prefill(&prompt, &cancel)?;
    timeline.checkpoint()?;
    let start = timeline.steps().to_vec();
    for seed in [1, 2] {
        let mut sampler = Sampler::new(model.sampling()?, seed);
        let request = Request { history: &prompt, limit: Some(60), ..Request::default() };
        let done = generate(&mut timeline, &tokenizer, &mut sampler, &request, &mut |_| Ok(()))?;
        println!("seed {seed}:{}\n", done.text);
        timeline.seek(&start, &Watch { cancel: &cancel, progress: &|_, _| () })?;
    }
    println!("{} tokens processed", timeline.evaluated());
    Ok(())
}
