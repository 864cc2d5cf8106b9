//! Session files and prompt caches.

use std::{
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
    time::Instant,
};

use hymba::{
    Error, Result,
    engine::{
        Timeline,
        conversation::{Kind, Saved, check_replaceable},
        generate::{Generation, StopReason, Timings, TokenModel},
        timeline::{Watch, decoded, prefilled},
    },
    format::check_writable,
    forward::CHUNK,
    sample::Sampler,
    text::Tokenizer,
};

use crate::cli::usage::{Usage, output_file};

/// Session and prompt cache flags.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Saving and resuming")]
pub struct StoredArgs {
    /// Resume from FILE if it exists; save the session to it on exit
    #[arg(long, value_name = "FILE")]
    pub session: Option<PathBuf>,
    /// Do not update the session file
    #[arg(long, requires = "session")]
    pub session_ro: bool,
    /// Cache the processed prompt in FILE; a later prompt with the same prefix is processed only from the first difference
    #[arg(long, value_name = "FILE", conflicts_with = "session")]
    pub prompt_cache: Option<PathBuf>,
    /// Replace a --session or --prompt-cache file of another kind; model files are never replaced
    #[arg(long)]
    pub force: bool,
}

impl StoredArgs {
    /// Checks early whether the output file can and may be written.
    pub fn check(&self) -> anyhow::Result<()> {
        let Some((path, kind)) = self.written() else {
            let is_useless = self.force && self.session.is_none();
            let problem = "--force applies to --session or --prompt-cache; add one of them";
            return if is_useless { Err(Usage(problem.into()).into()) } else { Ok(()) };
        };
        output_file("--session and --prompt-cache", path)?;
        check_writable(path)?;
        Ok(check_replaceable(path, kind, self.force)?)
    }

    /// Returns the file to write and its kind.
    fn written(&self) -> Option<(&Path, Kind)> {
        let session = self.session.as_deref().filter(|_| !self.session_ro).map(|path| (path, Kind::Text));
        session.or_else(|| self.prompt_cache.as_deref().map(|path| (path, Kind::Prompt)))
    }

    /// Returns the session file to resume.
    pub fn existing_session(&self) -> Option<&Path> {
        self.session.as_deref().filter(|path| path.exists() && !self.replaces_other())
    }

    /// Whether the output replaces a file that cannot be resumed.
    fn replaces_other(&self) -> bool {
        self.force && self.written().is_some_and(|(path, kind)| check_replaceable(path, kind, false).is_err())
    }
}

/// Resumes the text in `path` and returns its sampler.
pub fn resume(timeline: &mut Timeline<'_>, path: &Path) -> Result<Sampler> {
    let (sampler, unprocessed) =
        timeline.load(path, |saved: Saved, _| Ok((saved.text_sampler(path)?, saved.unprocessed)))?;
    if let Some(id) = unprocessed {
        timeline.decode(id)?;
    }
    Ok(sampler)
}

/// Saves the text to `path`, with the part of `generated` that was shown.
pub fn save(
    timeline: &mut Timeline<'_>,
    stored: &StoredArgs,
    path: &Path,
    tokenizer: &Tokenizer,
    sampler: &Sampler,
    generated: &Generation,
) -> Result<()> {
    let mut unprocessed = generated.unprocessed;
    if generated.stop == StopReason::StopString {
        rewind_to_shown(timeline, tokenizer, generated)?;
        unprocessed = None;
    }
    if let Some(id) = unprocessed.filter(|_| timeline.steps().len() < timeline.context()) {
        timeline.decode(id)?;
        unprocessed = None;
    }
    check_replaceable(path, Kind::Text, stored.force)?;
    timeline.save(path, &Saved::text(sampler, unprocessed), false)
}

/// Rewinds the tokens of `generated` beyond its text; if the text ends within a token, processes the rest of it.
fn rewind_to_shown(timeline: &mut Timeline<'_>, tokenizer: &Tokenizer, generated: &Generation) -> Result<()> {
    let read = timeline.steps().len();
    let start = read + usize::from(generated.unprocessed.is_some()) - generated.ids.len();
    let (kept, rest) = tokenizer.ids_within(&timeline.ids()[..start], &generated.ids, &generated.text);
    let mut target = timeline.steps()[..read.min(start + kept)].to_vec();
    target.extend(generated.ids[target.len() - start..kept].iter().map(|&id| decoded(id)));
    let rest = tokenizer.encode_more(rest)?;
    if target.len() + rest.len() <= timeline.context() {
        target.extend(prefilled(&rest));
    }
    timeline.seek(&target, &Watch { cancel: &AtomicBool::new(false), progress: &|_, _| () })
}

/// Tokens between two checkpoints.
const CHECKPOINT_STRIDE: usize = 64;

/// A timeline that reports prompt progress and creates regular checkpoints, so that the end of a text can be rewound
/// without processing all of it again.
pub struct Checkpointed<'t, 'm> {
    timeline: &'t mut Timeline<'m>,
    /// Whether it creates checkpoints.
    on: bool,
    /// Tokens before the last one.
    last: Option<usize>,
    /// Receives the progress through the prompt.
    progress: &'t dyn Fn(usize, usize),
}

impl<'t, 'm> Checkpointed<'t, 'm> {
    /// Wraps `timeline`, with checkpoints if `on`; `progress` receives the progress through the prompt.
    pub fn new(timeline: &'t mut Timeline<'m>, on: bool, progress: &'t dyn Fn(usize, usize)) -> Self {
        Self { timeline, on, last: None, progress }
    }

    /// Returns the number of tokens until the next checkpoint is due; `None`: it is due now.
    fn until_checkpoint(&self) -> Option<usize> {
        (self.last? + CHECKPOINT_STRIDE).checked_sub(self.tokens()).filter(|&left| left > 0)
    }

    fn checkpoint_if_due(&mut self) -> Result<()> {
        if self.on && self.until_checkpoint().is_none() {
            self.timeline.checkpoint()?;
            self.last = Some(self.tokens());
        }
        Ok(())
    }
}

impl TokenModel for Checkpointed<'_, '_> {
    fn prefill(&mut self, ids: &[u32], cancel: &AtomicBool) -> Result<&[f32]> {
        let mut target = self.timeline.steps().to_vec();
        target.extend(prefilled(ids));
        self.timeline.seek(&target, &Watch { cancel, progress: self.progress })?;
        (self.progress)(ids.len(), ids.len());
        Ok(self.timeline.logits())
    }

    fn decode(&mut self, id: u32) -> Result<&[f32]> {
        self.checkpoint_if_due()?;
        self.timeline.decode(id)
    }

    fn max_guesses(&self) -> usize {
        // A pass ends where single steps would create a checkpoint.
        let left = if self.on { self.until_checkpoint().unwrap_or(CHECKPOINT_STRIDE) - 1 } else { usize::MAX };
        self.timeline.max_guesses().min(left)
    }

    fn verify(&mut self, ids: &[u32], is_right: &mut dyn FnMut(&[f32]) -> Result<bool>) -> Result<()> {
        self.checkpoint_if_due()?;
        self.timeline.verify(ids, is_right)
    }

    fn tokens(&self) -> usize {
        self.timeline.tokens()
    }

    fn context(&self) -> usize {
        TokenModel::context(self.timeline)
    }
}

/// Processes the prompt `ids` from the first difference to the cache at `path`, and updates the cache if it changed.
/// Returns the timings.
pub fn read_cached(
    timeline: &mut Timeline<'_>,
    stored: &StoredArgs,
    path: &Path,
    ids: &[u32],
    sampler: &Sampler,
    watch: &Watch<'_>,
) -> Result<Timings> {
    /// Approximate number of checkpoints in the cache, for other prompts with a common prefix.
    const CHECKPOINTS: usize = 4;
    if ids.len() > timeline.context() {
        let (tokens, context) = (ids.len(), timeline.context());
        let problem = format!("prompt too long: {tokens} tokens, context size {context}; use a larger -c");
        return Err(Error::Request(problem));
    }
    let start = Instant::now();
    if path.exists() && !stored.replaces_other() {
        timeline.load(path, |_: Saved, _| Ok(()))?;
    }
    let known = timeline.ids().iter().zip(ids).take_while(|(a, b)| a == b).count();
    let mut target = timeline.steps()[..known].to_vec();
    target.extend(prefilled(&ids[known..]));
    let stride = ids.len().div_ceil(CHECKPOINTS).next_multiple_of(CHUNK);
    // The next prompt is likely to differ at the same position.
    for at in (known..ids.len()).step_by(stride) {
        timeline.seek(&target[..at], watch)?;
        timeline.checkpoint()?;
    }
    timeline.seek(&target, watch)?;
    if known < ids.len() {
        check_replaceable(path, Kind::Prompt, stored.force)?;
        timeline.save(path, &Saved::prompt(sampler), true)?;
    }
    Ok(Timings { prompt_tokens: timeline.evaluated(), prompt: start.elapsed(), ..Timings::default() })
}
