//! `hymba serve`: the HTTP server.

mod socket;

use std::{
    env,
    io::Write,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
};

use anyhow::Context;
use clap::builder::NonEmptyStringValueParser;
use hymba::{
    Error,
    engine::{
        Model,
        scheduler::{Scheduler, SchedulerOptions},
    },
    hub::Store,
    sample::SamplingParams,
    server::{self, Access, ChatFormat, Hints, ModelCard, Options, Server},
};

use self::socket::Socket;
use super::{
    model::{EMBEDDED_NAME, ModelArgs},
    options::{SamplingArgs, SessionArgs, beyond_training, count, list_devices},
    prompt,
    speculate::DraftArgs,
    terminal,
    usage::Usage,
};

/// Serve a model over HTTP with OpenAI's API.
///
/// Several requests are processed concurrently. Ctrl-C or SIGTERM shuts the server down after the answers in progress;
/// a second one exits immediately.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  hymba serve -m hymba-1.5b-q4.gguf
  hymba serve --host 0.0.0.0 --api-key-file keys.txt
  hymba serve --unix /run/user/1000/hymba.sock
  curl http://127.0.0.1:8080/v1/chat/completions -H 'Content-Type: application/json' \\
       -d '{\"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}]}'")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Address or host name to listen on
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1", value_parser = NonEmptyStringValueParser::new())]
    host: String,
    /// Port to listen on (0: any free port)
    #[arg(long, value_name = "PORT", default_value = "8080", value_parser = port)]
    port: u16,
    /// Listen on a Unix socket instead, accessible only to its owner
    #[arg(long, value_name = "FILE", conflicts_with_all = ["host", "port"])]
    unix: Option<PathBuf>,
    /// Require an API key; repeatable [default: $HYMBA_API_KEY, if set]. Other users of the machine can see command
    /// lines: prefer --api-key-file
    #[arg(long, value_name = "KEY", value_parser = NonEmptyStringValueParser::new())]
    api_key: Vec<String>,
    /// Require one of the API keys in FILE, one per line
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Allow serving without a key to other machines or to any web page
    #[arg(long)]
    no_auth: bool,
    /// Accept NAME in Host headers, in addition to IP addresses, localhost and --host; repeatable
    #[arg(long, value_name = "NAME")]
    allow_host: Vec<String>,
    /// Allow web pages from ORIGIN (https://chat.example.org, or * for all); repeatable
    #[arg(long, value_name = "ORIGIN", value_parser = origin)]
    cors: Vec<String>,
    /// Model name in the API; the first one replaces the default; repeatable
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    alias: Vec<String>,
    /// Number of sequences decoded concurrently
    #[arg(long, short_alias = 'n', value_name = "N", default_value = "4", value_parser = count(1..=256))]
    parallel: usize,
    /// Maximum number of queued sequences; further requests get status 429
    #[arg(long, value_name = "N", default_value = "64", value_parser = count(0..=65536))]
    queue: usize,
    /// Memory for prefix states of prompts and conversations, in MB (0: disabled) [default: a quarter of the free
    /// memory, at most 4000]
    #[arg(long, value_name = "MB", value_parser = count(0..=1 << 30))]
    cache_memory: Option<usize>,
    /// Also keep prefix states in DIR, so that they survive restarts
    #[arg(long, value_name = "DIR")]
    cache_folder: Option<PathBuf>,
    /// Suppress all messages except errors
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    runtime: SessionArgs,
    #[command(flatten)]
    drafts: DraftArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

fn port(text: &str) -> Result<u16, String> {
    let range = 0..=u64::from(u16::MAX);
    count(range)(text).map(|port| port as u16)
}

/// Parses the origin of web pages.
fn origin(text: &str) -> Result<String, &'static str> {
    let host = text.strip_prefix("http://").or(text.strip_prefix("https://"));
    match host {
        _ if text == "*" => Ok(text.into()),
        Some(host) if !host.is_empty() && !host.contains(['/', '*', ' ']) => Ok(text.to_ascii_lowercase()),
        _ => Err("must be an origin such as https://chat.example.org, without a path, or *"),
    }
}

/// Serves until a signal requests a shutdown.
pub fn run(args: &Args, cancel: &Arc<AtomicBool>) -> anyhow::Result<()> {
    if args.runtime.list_devices {
        return Ok(list_devices()?);
    }
    args.sampling.apply(SamplingParams::default())?;
    let keys = args.keys(cancel)?;
    // Before loading the model, which may take some time.
    let socket = Socket::bind(&args.host, args.port, args.unix.as_deref(), args.no_auth || !keys.is_empty())?;
    let access = args.access(&keys);

    let model = Arc::new(args.model.open(args.quiet, cancel)?);
    let tokenizer = Arc::new(model.tokenizer()?);
    let chat = ChatFormat::of(&model, &tokenizer)?;
    if chat.is_none() && !args.quiet {
        terminal::warn("the model has no chat template: /v1/chat/completions is not served, /v1/completions is");
    }
    let (sampling, seed) = (args.sampling.of_model(&model, args.quiet)?, args.sampling.seed);
    model.read_meta_tokens(args.runtime.options().threads, cancel)?;
    let options = SchedulerOptions {
        session: args.runtime.options(),
        slots: args.parallel,
        queue: args.queue,
        speculate: args.drafts.speculate,
        cache_memory: args.cache_memory.map(|mb| mb.saturating_mul(1_000_000)),
        cache_folder: args.cache_folder.clone(),
        cache_failed: if args.quiet {
            |_| ()
        } else {
            |e| terminal::warn(&format!("prefix states are no longer saved: {e}"))
        },
        measure: true,
    };
    let scheduler = Scheduler::start(model.clone(), tokenizer.clone(), &options)?;
    let context = scheduler.context();
    if !args.quiet {
        scheduler.fallback().into_iter().for_each(terminal::warn);
        beyond_training(&model, context).iter().for_each(|warning| terminal::warn(warning));
    }
    let server = Server::new(Options {
        scheduler,
        chat,
        card: card(args, &model),
        context,
        vocab: tokenizer.vocab().min(model.config().vocab),
        tokenizer,
        sampling,
        seed,
        reply_limit: model.reply_limit()?,
        access,
        stop: cancel.clone(),
    })?;
    serve(&server, socket, args.quiet)?;
    Err(Error::Cancelled.into()) // exit code of the signal
}

/// Runs the server on its own threads.
fn serve(server: &Arc<Server>, socket: Socket, quiet: bool) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(4)
        .thread_name("http")
        .enable_all()
        .build()
        .context("cannot start the threads that serve connections")?;
    let (listeners, address, _socket_file) = {
        let _entered = runtime.enter();
        socket.listeners()?
    };
    let mut out = terminal::out();
    if !quiet {
        writeln!(out, "hymba: serving {} at {address}", server.model_id())?;
        out.flush()?;
    }
    let router = server::router(server);
    runtime.block_on(server::serve(server, &router, listeners));
    Ok(())
}

impl Args {
    /// Returns the accepted keys.
    fn keys(&self, cancel: &AtomicBool) -> anyhow::Result<Vec<String>> {
        let mut keys = self.api_key.clone();
        if let Some(path) = &self.api_key_file {
            let text = prompt::read_text(path, cancel)?;
            let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
            let before = keys.len();
            keys.extend(lines.map(str::to_owned));
            if keys.len() == before {
                return Err(
                    Usage(format!("--api-key-file {}: contains no keys; write one per line", path.display())).into()
                );
            }
        }
        if keys.is_empty()
            && let Ok(key) = env::var(KEY_VARIABLE)
            && !key.trim().is_empty()
        {
            keys.push(key.trim().into());
        }
        let is_token = |key: &String| key.bytes().all(|byte| byte.is_ascii_graphic());
        if !keys.iter().all(is_token) {
            return Err(Usage("an API key may only contain visible ASCII characters, without spaces".into()).into());
        }
        if keys.is_empty() && !self.no_auth && self.cors.iter().any(|origin| origin == "*") {
            let what = "--cors '*' lets every web page that is open on this machine use the model; add --api-key-file, or \
                --no-auth if that is meant";
            return Err(Usage(what.into()).into());
        }
        Ok(keys)
    }

    fn access(&self, keys: &[String]) -> Access {
        let hosts = [&self.host].into_iter().chain(&self.allow_host).cloned().collect();
        Access::new(keys, self.unix.is_none().then_some(hosts), self.cors.clone())
            .with_hints(Hints { host: "--allow-host NAME allows it", origin: "--cors ORIGIN allows it" })
    }
}

/// A key in the environment, which other users of the machine cannot read.
const KEY_VARIABLE: &str = "HYMBA_API_KEY";

/// Returns the public information about the model.
fn card(args: &Args, model: &Model) -> ModelCard {
    let mut names = args.alias.clone();
    let path = Path::new(model.file());
    let installed = Store::from_env().ok().and_then(|store| {
        let all = store.list();
        all.into_iter().find(|installed| installed.path == path)
    });
    if let Some(installed) = installed {
        names.push(installed.name().to_string());
        names.push(installed.repo.to_string());
    }
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    names.push(if model.file() == EMBEDDED_NAME { "hymba-demo".into() } else { stem.unwrap_or_default() });
    names.extend(model.metadata().string("general.name").map(str::to_owned));
    names.push("hymba".into());
    let mut known = std::collections::HashSet::new();
    names.retain(|name| !name.is_empty() && known.insert(name.clone()));
    let created = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |time| time.as_secs());
    ModelCard { names, created, trained_context: model.config().default_context(), bytes: model.bytes().len() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_have_no_path() {
        for good in ["*", "https://chat.example.org", "http://localhost:3000"] {
            assert_eq!(origin(good).as_deref(), Ok(good));
        }
        for bad in ["chat.example.org", "https://a/", "https://*.a", "https://", "null"] {
            assert!(origin(bad).is_err(), "{bad}");
        }
    }
}
