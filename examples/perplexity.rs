//! Computes the perplexity of a text: `cargo run --release --example perplexity -- MODEL FILE`.

use std::{env, fs};

use hymba::{Model, Session, SessionOptions, perplexity};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = env::args().skip(1);
    let model = Model::open(args.next().unwrap_or("models/hymba-demo.gguf".into()))?;
    let tokenizer = model.tokenizer()?;
    let text = fs::read_to_string(args.next().unwrap_or("tests/data/samuel.txt".into()))?;
    let ids = tokenizer.encode(&text, false)?;
    let bos = tokenizer.bos().ok_or("the tokenizer has no token that begins a text")?;
    let options = SessionOptions { context: Some(512), ..SessionOptions::default() };
    let mut session = Session::new(&model, &options)?;
    let mut done = |so_far: &hymba::Perplexity| eprint!("\r{} tokens", so_far.predicted());
    let result = perplexity(&mut session, bos, &ids, &false.into(), &mut done)?;
    println!("\nperplexity {:.3} ± {:.3}", result.perplexity().mean, result.perplexity().error);
    Ok(())
}
