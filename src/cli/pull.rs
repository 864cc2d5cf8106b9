//! `hymba pull`: from a name to a model that runs.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::Context;
use hymba::{
    Error, Model,
    format::{Privacy, gguf::Metadata, write_atomically},
    hub::{
        Cache, Client, Event, Fetch, Info, Installed, License, Lock, Name, Repo, Selection, Settings, Snapshot, Source,
        Store, select,
    },
    quant::{Options, TypePlan, convert},
};
use indicatif::DecimalBytes;

use self::estimate::Estimate;
use super::{
    ask::{ask, at_terminal},
    options::JobArgs,
    progress::Progress,
    terminal,
    usage::Usage,
};

mod estimate;

/// The default type.
pub const USUAL_TYPE: &str = "q4";

/// Download a model by name and convert it
///
/// Downloads to the Hugging Face cache (HF_HOME, HF_HUB_CACHE), converts the model, and installs it under its name for
/// -m (HYMBA_MODELS). Interrupted downloads are resumed. HF_ENDPOINT, HF_TOKEN, HF_TOKEN_PATH, HF_HUB_OFFLINE,
/// HTTPS_PROXY, NO_PROXY and SSL_CERT_FILE are honored.
#[derive(clap::Args)]
pub struct Args {
    /// Model name: OWNER/NAME or OWNER/NAME:TYPE
    #[arg(value_name = "NAME")]
    name: Name,
    /// Type or recipe as for `hymba quantize`, or type of a ready GGUF file [default: q4]
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// Keep the original download after conversion [default: ask at a terminal, else yes]
    #[arg(long, value_name = "WHEN")]
    keep_original: Option<Keep>,
    /// Branch, tag or commit
    #[arg(long, value_name = "REVISION", default_value = "main")]
    revision: String,
    /// Show download size, disk and memory needs without downloading
    #[arg(long)]
    dry_run: bool,
    /// Convert again even if installed and up to date
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    job: JobArgs,
}

#[derive(Clone, Copy, PartialEq, clap::ValueEnum)]
enum Keep {
    Yes,
    No,
}

impl Args {
    /// Whether it writes to standard output.
    pub fn writes_output(&self) -> bool {
        self.dry_run || !self.job.quiet
    }
}

/// Runs the command.
pub fn run(args: &Args, cancel: &Arc<AtomicBool>) -> anyhow::Result<()> {
    let pull = Pull::new(args, cancel)?;
    let Some(model) = pull.run()? else { return Ok(()) };
    if !args.job.quiet {
        writeln!(terminal::out(), "{}", next(&model)?)?;
    }
    Ok(())
}

/// Pulls a missing model after the user agreed.
pub fn by_name(name: Name, cancel: &Arc<AtomicBool>) -> anyhow::Result<Installed> {
    let args = Args {
        name,
        kind: None,
        keep_original: None,
        revision: "main".into(),
        dry_run: false,
        force: false,
        job: JobArgs::default(),
    };
    Pull::new(&args, cancel)?.run()?.context("nothing was installed")
}

/// Returns the summary and the next command.
fn next(model: &Installed) -> anyhow::Result<String> {
    let gguf = Model::open(&model.path)?;
    let chats = gguf.metadata().get("tokenizer.chat_template").is_some();
    let name = if model.kind == USUAL_TYPE { model.repo.to_string() } else { model.name().to_string() };
    let size = DecimalBytes(model.size_and_use()?.0);
    let next =
        if chats { format!("hymba chat -m {name}") } else { format!("hymba run -m {name} \"Once upon a time\"") };
    Ok(format!("installed {} ({size}): {}\ntry it: {next}", model.name(), model.path.display()))
}

struct Pull<'a> {
    args: &'a Args,
    name: Name,
    settings: Settings,
    store: Store,
    cancel: &'a Arc<AtomicBool>,
}

impl<'a> Pull<'a> {
    fn new(args: &'a Args, cancel: &'a Arc<AtomicBool>) -> anyhow::Result<Self> {
        let mut name = args.name.clone();
        if let Some(kind) = args.kind.as_ref().map(|kind| kind.to_ascii_lowercase()) {
            if name.kind.as_ref().is_some_and(|named| *named != kind) {
                return Err(Usage(format!("{name} and --type {kind} name different types; give one")).into());
            }
            name = format!("{}:{kind}", name.repo).parse().map_err(Usage)?;
        }
        Ok(Self { args, name, settings: Settings::from_env()?, store: Store::from_env()?, cancel })
    }

    /// Installs the model; `None` for a dry run.
    fn run(&self) -> anyhow::Result<Option<Installed>> {
        if self.settings.offline {
            return self.run_offline();
        }
        let client = Client::new(self.settings.clone(), self.cancel)?;
        let info = client.info(&self.name.repo, &self.args.revision)?;
        let name = Name { repo: info.repo.clone(), kind: self.name.kind.clone() };
        let paths: Vec<String> = info.files.iter().map(|file| file.path.clone()).collect();
        let selection = select(&name, &paths, USUAL_TYPE)?;
        let model = self.model(&info.repo, &selection)?;
        let is_new = self.store.list().iter().all(|model| model.repo != info.repo);
        if let Some(model) = self.up_to_date(&model, &info.commit) {
            return Ok(Some(model));
        }
        let files: Vec<_> = selection.files();
        let files: Vec<_> = info.files.iter().filter(|file| files.contains(&&*file.path)).collect();
        // The weights last: problems with other files show before hours of download.
        let (weights, other_files): (Vec<_>, Vec<_>) =
            files.into_iter().partition(|file| file.path.ends_with(".safetensors") || file.path.ends_with(".gguf"));
        let files: Vec<_> = other_files.into_iter().chain(weights).collect();
        let fetch = Fetch::new(&client, &info);
        let plan = fetch.plan(&files)?;
        let estimate = Estimate::new(&fetch, &selection, &plan, &model)?;
        if self.args.dry_run {
            write!(terminal::out(), "{}", estimate.report(&info, &self.args.revision, &plan, &self.settings, &model))?;
            return Ok(None);
        }
        if let Some(license) = info.license.as_ref().filter(|_| is_new && !self.args.job.quiet) {
            terminal::note(&license_note(&info.repo, license));
        }
        estimate.check_disk(&plan, &self.settings.cache, self.store.folder())?;
        let mut progress = Progress::new(self.args.job.quiet);
        progress.begin_bytes(plan.bytes(), plan.bytes() - plan.missing());
        let fetched = fetch.run(&plan, &self.args.revision, &mut |event| show(&mut progress, &event));
        progress.finish();
        if !self.args.job.quiet && matches!(fetched, Err(Error::Cancelled)) {
            terminal::note("interrupted; the same command resumes the download");
        }
        let snapshot = fetched?;
        self.install(&model, &selection, &snapshot, Some(&info))?;
        self.drop_original(&info.repo, &snapshot, plan.bytes())?;
        Ok(Some(model))
    }

    /// Resolves the model offline, from the cache.
    fn run_offline(&self) -> anyhow::Result<Option<Installed>> {
        let (repo, revision) = (&self.name.repo, &self.args.revision);
        let snapshot = Cache::new(&self.settings).find(repo, revision).with_context(|| {
            format!(
                "HF_HUB_OFFLINE is set, and {repo} at {revision} is not in the cache ({}); unset it to download",
                self.settings.cache.display()
            )
        })?;
        let names =
            fs::read_dir(&snapshot.folder).with_context(|| format!("cannot open {}", snapshot.folder.display()))?;
        let names: Vec<String> = names.flatten().filter_map(|file| file.file_name().into_string().ok()).collect();
        let selection = select(&self.name, &names, USUAL_TYPE)?;
        let model = self.model(repo, &selection)?;
        if let Some(model) = self.up_to_date(&model, &snapshot.commit) {
            return Ok(Some(model));
        }
        if self.args.dry_run {
            writeln!(
                terminal::out(),
                "no download needed; {} is converted from {}",
                model.name(),
                snapshot.folder.display()
            )?;
            return Ok(None);
        }
        self.install(&model, &selection, &snapshot, None)?;
        Ok(Some(model))
    }

    /// Returns the model to install.
    fn model(&self, repo: &Repo, selection: &Selection) -> anyhow::Result<Installed> {
        let kind = match selection {
            Selection::Ready { kind, .. } => kind,
            Selection::Checkpoint(_) => {
                let kind = self.name.kind.as_deref().unwrap_or(USUAL_TYPE);
                let known = || Usage(format!("unknown type `{kind}`; see `hymba quantize --help`"));
                TypePlan::from_name(kind).ok_or_else(known)?;
                kind
            }
        };
        Ok(self.store.model(repo, kind))
    }

    /// Returns the model if it is installed from this commit.
    fn up_to_date(&self, model: &Installed, commit: &str) -> Option<Installed> {
        let same = model.path.is_file() && model.source().is_some_and(|source| source.commit == commit);
        let found = (same && !self.args.force && !self.args.dry_run).then(|| model.clone())?;
        if !self.args.job.quiet {
            terminal::note(&format!("{} is installed and up to date", model.name()));
        }
        Some(found)
    }

    /// Converts the snapshot.
    fn install(
        &self,
        model: &Installed,
        selection: &Selection,
        snapshot: &Snapshot,
        info: Option<&Info>,
    ) -> anyhow::Result<()> {
        let folder = model.path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let waits =
            &mut || terminal::note(&format!("another hymba process is creating {}; waiting for it", model.name()));
        let _lock = Lock::take(&self.store.lock(model), waits, self.cancel)?;
        let source = Source { revision: self.args.revision.clone(), commit: snapshot.commit.clone() };
        if !self.args.force && model.path.is_file() && model.source().as_ref() == Some(&source) {
            return Ok(()); // by the other process
        }
        match selection {
            Selection::Ready { file, .. } => take(&snapshot.folder.join(file), &model.path)?,
            Selection::Checkpoint(_) => self.convert(model, snapshot, info)?,
        }
        Ok(model.set_source(&source)?)
    }

    fn convert(&self, model: &Installed, snapshot: &Snapshot, info: Option<&Info>) -> anyhow::Result<()> {
        let options = Options {
            types: TypePlan::from_name(&model.kind).context("unknown type")?,
            metadata: self.metadata(&model.repo, &snapshot.commit, info.and_then(|info| info.license.as_ref())),
            force: true,
            threads: self.args.job.threads(),
            ..Options::default()
        };
        let mut progress = Progress::new(self.args.job.quiet);
        let converted =
            convert(&snapshot.folder, &model.path, &options, &mut |event| progress.convert(event), self.cancel);
        progress.finish();
        let summary = converted?;
        if !self.args.job.quiet {
            summary.notes.iter().for_each(|note| terminal::note(note));
        }
        Ok(())
    }

    /// Returns the provenance metadata of the model file.
    fn metadata(&self, repo: &Repo, commit: &str, license: Option<&License>) -> Metadata {
        let page = format!("{}/{repo}", self.settings.endpoint);
        let mut metadata = Metadata::default();
        metadata.set("general.name", repo.name());
        metadata.set("general.organization", repo.owner());
        metadata.set("general.source.url", format!("{page}/tree/{commit}"));
        metadata.set("general.source.repo_url", page);
        if let Some(License { id, name, link }) = license {
            metadata.set("general.license", id.as_str());
            metadata.set("general.license.link", link.as_str());
            if let Some(name) = name {
                metadata.set("general.license.name", name.as_str());
            }
        }
        metadata
    }

    /// Removes the original download if the user wants that.
    fn drop_original(&self, repo: &Repo, snapshot: &Snapshot, bytes: u64) -> anyhow::Result<()> {
        let keep = match self.args.keep_original {
            Some(keep) => keep == Keep::Yes,
            None if self.args.job.quiet || !at_terminal() => true,
            None => {
                let size = DecimalBytes(bytes);
                let question = format!("Keep the original ({size}) for other types and programs?");
                ask(&question, true, self.cancel)?.unwrap_or(true)
            }
        };
        if !keep && !self.cancel.load(Ordering::Relaxed) {
            Cache::new(&self.settings).remove(repo, snapshot)?;
        }
        Ok(())
    }
}

/// Shows an event of a download.
fn show(progress: &mut Progress, event: &Event) {
    match event {
        Event::File { path, .. } => {
            progress.message(path);
            if !progress.has_bar() {
                progress.note(&format!("downloading {path}"));
            }
        }
        Event::Fetched { bytes } => progress.advance(*bytes),
        Event::Again { path, bytes } => {
            progress.subtract(*bytes);
            progress.note(&format!("{path}: the partial download cannot be resumed; starting over"));
        }
        Event::Waiting { path } => progress.note(&format!("another program is downloading {path}; waiting for it")),
        Event::Retry { path, reason, pause } => {
            progress.note(&format!("{path}: {reason}; trying again in {:.1} s", pause.as_secs_f64()));
        }
        Event::Checking { path } => progress.message(&format!("checking {path}")),
    }
}

fn license_note(repo: &Repo, License { id, name, link }: &License) -> String {
    format!("license of {repo}: {} ({link})", name.as_ref().unwrap_or(id))
}

/// Installs a ready GGUF file: as a hard link where possible, else as a copy.
fn take(from: &Path, to: &Path) -> anyhow::Result<()> {
    Model::open(from).context("the file is not a hymba model and was not installed")?;
    let bytes: PathBuf = fs::canonicalize(from).with_context(|| format!("cannot open {}", from.display()))?;
    let name = to.file_name().unwrap_or_default().to_string_lossy();
    let link = to.with_file_name(format!(".{name}.link"));
    let _ = fs::remove_file(&link); // left by a killed process
    if fs::hard_link(&bytes, &link).is_ok() {
        return fs::rename(&link, to).with_context(|| format!("cannot write {}", to.display()));
    }
    write_atomically(to, true, Privacy::Shared, |out| io::copy(&mut fs::File::open(&bytes)?, out).map(drop))?;
    Ok(())
}
