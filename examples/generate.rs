//! Generates text from a prompt: `cargo run --release --example generate -- MODEL PROMPT`.

use std::{
    env,
    io::{Write, stdout},
};

use hymba::{Model, Request, Result, Sampler, Session, SessionOptions, generate};

fn main() -> Result<()> {
    let mut args = env::args().skip(1);
    let model = Model::open(args.next().unwrap_or("models/hymba-demo.gguf".into()))?;
    let tokenizer = model.tokenizer()?;
    let prompt = tokenizer.encode(&args.next().unwrap_or("Once upon a time".into()), true)?;
    let mut session = Session::new(&model, &SessionOptions::default())?;
    let mut sampler = Sampler::new(model.sampling()?, 42);
    let request = Request { prompt: &prompt, limit: Some(100), ..Request::default() };
    let show = &mut |piece: &str| {
        print!("{piece}");
        stdout().flush()
    };
    let done = generate(&mut session, &tokenizer, &mut sampler, &request, show)?;
    println!("\n{} tokens, {:.1} tokens/s", done.ids.len(), done.timings.decode_rate());
    Ok(())
}
