//! Processes several prompts concurrently in one scheduler, so that the weights are read once per pass for all of them.
//!
//! ```text
//! cargo run --release --example batch -- model.gguf 8 "Once upon a time" "The weather today"
//! ```

use std::{
    env,
    sync::{Arc, mpsc::sync_channel},
    thread,
};

use hymba::{
    Error, Model, Result,
    scheduler::{Event, Job, Scheduler, SchedulerOptions},
};

fn main() -> Result<()> {
    let mut args = env::args().skip(1);
    let (Some(file), Some(slots)) = (args.next(), args.next().and_then(|slots| slots.parse().ok())) else {
        return Err(Error::Request("usage: batch MODEL SLOTS PROMPT...".into()));
    };
    let model = Arc::new(Model::open(file)?);
    let tokenizer = Arc::new(model.tokenizer()?);
    let options = SchedulerOptions { slots, ..SchedulerOptions::default() };
    let scheduler = Scheduler::start(model.clone(), tokenizer.clone(), &options)?;
    let mut readers = Vec::new();
    for prompt in args {
        let (send, events) = sync_channel(16);
        let sampling = model.sampling()?;
        let job = Job { limit: Some(100), sampling, ..Job::new(tokenizer.encode(&prompt, true)?, Box::new(send)) };
        scheduler.submit(job).map_err(|refused| Error::Request(format!("{refused:?}")))?;
        readers.push(thread::spawn(move || {
            let mut text = prompt;
            for event in events {
                match event {
                    Event::Token { text: more, .. } | Event::Done { text: more, .. } => text += &more,
                    Event::Failed(error) => return Err(error),
                    _ => {}
                }
            }
            Ok(text)
        }));
    }
    for reader in readers {
        println!("{}\n", reader.join().map_err(|_| Error::Cancelled)??);
    }
    let metrics = scheduler.metrics();
    let seconds = metrics.busy.as_secs_f64();
    println!(
        "{} prompt tokens, {} generated tokens, {} passes of {:.1} rows; {:.1} s",
        metrics.prompt_tokens,
        metrics.generated_tokens,
        metrics.passes,
        metrics.rows as f64 / metrics.passes.max(1) as f64,
        seconds,
    );
    Ok(())
}
