//! `hymba eval logits`: token ids in, logits out.

use std::{
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use anyhow::Context;
use hymba::{
    Error,
    engine::SessionOptions,
    format::{Privacy, write_atomically},
    sample::{Sampler, SamplingParams},
};
use safetensors::{Dtype, tensor::TensorView};

use super::args::Common;
use crate::cli::{
    options::{count, new_session},
    prompt::read_text,
    usage::Usage,
};

#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("input").required(true).args(["ids", "ids_file"])))]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// Prompt as token ids, used exactly as given: no BOS is added
    #[arg(long, value_name = "ID,ID,...", value_delimiter = ',', value_parser = token_id)]
    ids: Vec<u32>,
    /// Read the token ids from a file, separated by commas or white space
    #[arg(long, value_name = "FILE")]
    ids_file: Option<PathBuf>,
    /// Generate N tokens greedily after the prompt; row s of `decode` are the logits that token s was chosen from
    #[arg(long, value_name = "N", default_value = "0", value_parser = count(0..=u64::MAX))]
    decode: usize,
    /// Prefill chunk size in tokens
    #[arg(long, value_name = "N", default_value = "256", value_parser = count(1..=u64::MAX))]
    chunk: usize,
    /// Recompute the meta-token state instead of loading it
    #[arg(long)]
    no_meta_state: bool,
    /// Safetensors file to write: `prefill` [T, vocab], and with --decode `decode` [N, vocab] and `tokens` [N]
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Replace the output file if it exists
    #[arg(long)]
    force: bool,
}

fn token_id(text: &str) -> Result<u32, &'static str> {
    text.parse().map_err(|_| "must be token ids separated by commas")
}

pub fn run(args: &Args, cancel: &AtomicBool) -> anyhow::Result<()> {
    let ids = match &args.ids_file {
        Some(file) => read_ids(file, cancel)?,
        None => args.ids.clone(),
    };
    let source = args.ids_file.as_ref().map_or("--ids".into(), |file| file.display().to_string());
    if ids.is_empty() {
        return Err(Error::format(source, "contains no token ids").into());
    }
    let model = args.common.model.open(false, cancel)?;
    let options = SessionOptions {
        stored_meta_state: !args.no_meta_state,
        chunk: args.chunk,
        // the last chosen token is not decoded
        ..args.common.machine.options(ids.len() + args.decode.saturating_sub(1))
    };
    let mut greedy =
        Sampler::new(SamplingParams { temperature: 0.0, repeat_penalty: 1.0, ..SamplingParams::default() }, 0);
    let mut session = new_session(&model, &options, cancel)?;
    let vocab = model.config().vocab;
    let mut prefill = Vec::new();
    let read = session.prefill_all(&ids, cancel, |_, logits| {
        prefill.extend_from_slice(logits);
        Ok(())
    });
    read.with_context(|| source.clone())?;

    let (mut decode, mut tokens) = (Vec::new(), Vec::new());
    let mut logits = prefill[prefill.len() - vocab..].to_vec();
    for step in 0..args.decode {
        Error::check_cancelled(cancel)?;
        let token = greedy.sample(&logits, &[]);
        decode.extend_from_slice(&logits);
        tokens.push(token as i32);
        if step + 1 < args.decode {
            logits = session.decode(token)?.to_vec();
        }
    }

    let view = |dtype, rows: Vec<usize>, bytes| TensorView::new(dtype, rows, bytes).context("cannot store a tensor");
    let mut tensors = vec![("prefill", view(Dtype::F32, vec![ids.len(), vocab], bytemuck::cast_slice(&prefill))?)];
    if args.decode > 0 {
        tensors.push(("decode", view(Dtype::F32, vec![args.decode, vocab], bytemuck::cast_slice(&decode))?));
        tensors.push(("tokens", view(Dtype::I32, vec![args.decode], bytemuck::cast_slice(&tokens))?));
    }
    let bytes = safetensors::serialize(tensors, None).context("cannot serialize the tensors")?;
    Ok(write_atomically(&args.output, args.force, Privacy::Shared, |file| file.write_all(&bytes))?)
}

fn read_ids(file: &Path, cancel: &AtomicBool) -> anyhow::Result<Vec<u32>> {
    let text = read_text(file, cancel)?;
    let words = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|w| !w.is_empty());
    words
        .map(|word| word.parse().map_err(|_| Usage(format!("{}: `{word}` is not a token id", file.display())).into()))
        .collect()
}
