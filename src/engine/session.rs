//! A session: a model, a machine, and what has been read so far.

use std::{
    num::NonZeroUsize,
    ops::Range,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use super::Model;
use crate::{
    Error, Result,
    backend::{
        cpu::{Cpu, Memory},
        metal::{self, Metal},
        timed::{Profile, Timed},
    },
    format::CacheType,
    model::forward::{self, LayerView, Pass, Rule, Scratch, forward},
    state::{MetaState, Snapshot, State, image_bytes},
    system,
};

/// A point in a session's text to come back to.
pub type Point = Snapshot<Memory>;

/// Sees every layer's output of every pass; an error ends the pass.
pub type Observer<'a> = forward::Observer<'a, Memory>;

/// What a session computes with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Machine {
    /// The CPU.
    #[default]
    Cpu,
    /// The GPU of a Mac, or an error.
    Metal,
    /// The GPU of a Mac if it is there and willing, else the CPU.
    Auto,
}

/// What this machine has to compute with: the name of the backend, and what it is.
pub fn machines() -> Vec<(&'static str, String)> {
    let mut cpu = cpu(None);
    let cpu = format!("{} threads, {} kernels", cpu.cpu().threads(), cpu.cpu().kernels());
    let gpus = metal::names().into_iter().map(|name| ("metal", name));
    [("cpu", cpu)].into_iter().chain(gpus).collect()
}

/// How a session is set up.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// Tokens of text that fit; by default what the model was trained for.
    pub context: Option<usize>,
    /// Threads; by default one for each core the process may use.
    pub threads: Option<NonZeroUsize>,
    /// What to compute with.
    pub machine: Machine,
    /// How keys and values are stored.
    pub cache: CacheType,
    /// Start from the state after the meta tokens that the file holds, rather than compute it?
    pub stored_meta_state: bool,
    /// Tokens that are read at once; by default whole tiles of every kernel.
    pub chunk: usize,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            context: None,
            threads: None,
            machine: Machine::default(),
            cache: CacheType::default(),
            stored_meta_state: true,
            chunk: 240,
        }
    }
}

/// What a number of threads can do at most, in a second.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes read from memory.
    pub read_bytes: f64,
    /// 8-bit multiply-adds from registers, the way the products do them.
    pub int8_macs: f64,
    /// f32 multiply-adds from registers.
    pub float_macs: f64,
}

/// A text being read and written. Everything it remembers is in its [`State`].
pub struct Session<'m> {
    model: &'m Model,
    backend: Timed,
    options: SessionOptions,
    /// Why the CPU took over, if it did.
    fallback: Option<Error>,
    state: State<Memory>,
    scratch: Scratch<Memory>,
    context: usize,
    /// The state after the meta tokens, if it had to be computed.
    meta_state: Option<MetaState>,
}

impl<'m> Session<'m> {
    /// An empty text: the meta tokens are read, nothing more.
    pub fn new(model: &'m Model, options: &SessionOptions) -> Result<Self> {
        if options.machine == Machine::Cpu || (options.machine == Machine::Auto && metal::names().is_empty()) {
            return Self::on(model, options, cpu(options.threads));
        }
        let gpu = || {
            let metal = Metal::new(metal::open()?, model.weights(), model.config())?;
            Self::on(model, options, Timed::new(Cpu::new(NonZeroUsize::MIN), Some(metal)))
        };
        match gpu() {
            Err(why) if options.machine == Machine::Auto => {
                Ok(Self { fallback: Some(why), ..Self::on(model, options, cpu(options.threads))? })
            }
            result => result,
        }
    }

    /// [`Session::new`] on a machine that is there already.
    pub fn on(model: &'m Model, options: &SessionOptions, backend: Timed) -> Result<Self> {
        let config = model.config();
        let block = options.cache.dtype().block_len();
        if !config.key_dim.is_multiple_of(block) || !config.value_dim.is_multiple_of(block) {
            let (name, k, v) = (options.cache.name(), config.key_dim, config.value_dim);
            return Err(Error::Request(format!(
                "a KV cache of type {name} needs heads whose widths are multiples of {block}; this model has {k} and \
                 {v}: take --cache-type f16"
            )));
        }
        let context = options.context.unwrap_or_else(|| config.default_context());
        let state = State::new(&backend, config, context, options.cache)?;
        if let Some(there) = system::available_memory().filter(|&there| state.bytes as u64 > there) {
            let [wanted, there] = [state.bytes as f64, there as f64].map(|bytes| bytes / 1e9);
            return Err(Error::Request(format!(
                "there is no memory for {wanted:.1} GB of cache, {there:.1} GB are free; ask for a shorter context (-c)"
            )));
        }
        let chunk = options.chunk.clamp(1, context.max(1));
        let mut scratch = Scratch::new(&backend, config, chunk, options.cache)?;
        scratch.hold_logits(&backend, 1)?;
        let mut session = Self {
            model,
            backend,
            options: options.clone(),
            fallback: None,
            state,
            scratch,
            context,
            meta_state: None,
        };
        match session.clear() {
            Err(why @ Error::CacheRange { .. }) if options.cache != CacheType::F32 => {
                let options = SessionOptions { cache: CacheType::F32, ..session.options };
                Ok(Self { fallback: Some(why), ..Self::on(model, &options, session.backend)? })
            }
            cleared => cleared.map(|()| session),
        }
    }

    /// Reads `ids` as a prompt; returns the logits `[vocab]` after the last.
    pub fn prefill(&mut self, ids: &[u32], cancel: &AtomicBool) -> Result<&[f32]> {
        self.read(ids, cancel, None)
    }

    /// [`Session::prefill`] with a look at every layer.
    pub fn prefill_observed(&mut self, ids: &[u32], cancel: &AtomicBool, observe: Observer<'_>) -> Result<&[f32]> {
        self.read(ids, cancel, Some(observe))
    }

    fn read(&mut self, ids: &[u32], cancel: &AtomicBool, mut observe: Option<Observer<'_>>) -> Result<&[f32]> {
        self.check(ids)?;
        let mut chunks = ids.chunks(self.scratch.chunk()).peekable();
        while let Some(chunk) = chunks.next() {
            if cancel.load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
            let logits = if chunks.peek().is_none() { chunk.len() - 1..chunk.len() } else { 0..0 };
            let observe: Option<Observer<'_>> = match &mut observe {
                Some(observe) => Some(*observe),
                None => None,
            };
            self.pass(chunk, Rule::Prefill, logits, observe)?;
        }
        self.logits(1)
    }

    /// Reads `ids` as a prompt, and hands the logits `[vocab]` after each of them to `each`.
    pub fn prefill_all(
        &mut self,
        ids: &[u32],
        cancel: &AtomicBool,
        mut each: impl FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        self.check(ids)?;
        self.scratch.hold_logits(&self.backend, ids.len().min(self.scratch.chunk()))?;
        let (chunk, vocab) = (self.scratch.chunk(), self.model.config().vocab);
        for (i, ids) in ids.chunks(chunk).enumerate() {
            if cancel.load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
            self.pass(ids, Rule::Prefill, 0..ids.len(), None)?;
            for (t, logits) in self.logits(ids.len())?.chunks(vocab).enumerate() {
                each(i * chunk + t, logits)?;
            }
        }
        Ok(())
    }

    /// Reads a generated token; returns the logits `[vocab]` after it.
    pub fn decode(&mut self, id: u32) -> Result<&[f32]> {
        self.check(&[id])?;
        self.pass(&[id], Rule::Decode, 0..1, None)?;
        self.logits(1)
    }

    /// Forgets the text: the session is as new.
    pub fn clear(&mut self) -> Result<()> {
        self.state.clear(&mut self.backend);
        let config = self.model.config();
        if config.meta_tokens == 0 {
            return Ok(());
        }
        if let Some(meta) = self.model.stored_meta_state().filter(|_| self.options.stored_meta_state) {
            meta.put(&mut self.backend, config, &mut self.state, self.options.cache)?;
        } else {
            if self.meta_state.is_none() {
                self.meta_state = Some(read_meta_tokens(self.model, &mut self.backend, None)?);
            }
            if let Some(meta) = &self.meta_state {
                meta.put(&mut self.backend, config, &mut self.state, self.options.cache)?;
            }
        }
        Ok(())
    }

    /// Tokens that are read at once.
    pub fn chunk(&self) -> usize {
        self.scratch.chunk()
    }

    /// Tokens of text read so far.
    pub fn tokens(&self) -> usize {
        self.state.position - self.model.config().meta_tokens
    }

    /// Tokens of text that fit.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Bytes of keys, values, conv and SSM state.
    pub fn cache_bytes(&self) -> usize {
        self.state.bytes
    }

    /// Bytes of the cache that a decode step reads at this length of the text: the rows it sees, conv and SSM state.
    pub fn bytes_read_per_token(&self) -> u64 {
        let plan = self.model.plan();
        plan.read_bytes(self.tokens(), self.options.cache)
    }

    /// Bytes a second that this session's threads can read from memory, measured now: from the mapped weights, all of
    /// them, as decode reads them; or, if they are few, from several times what most last-level caches hold.
    pub fn read_bandwidth(&mut self) -> f64 {
        const LEAST: usize = 160 << 20;
        const PASSES: usize = 2;
        match self.model.bytes() {
            few if few.len() < LEAST => self.backend.cpu().read_bandwidth(&vec![1; LEAST], PASSES),
            weights => self.backend.cpu().read_bandwidth(weights, PASSES),
        }
    }

    /// What this session's threads can do at most, measured now.
    pub fn limits(&mut self) -> Limits {
        let [int8_macs, float_macs] = self.backend.cpu().rates(3);
        Limits { read_bytes: self.read_bandwidth(), int8_macs, float_macs }
    }

    /// The name of the GPU at work, if one is.
    pub fn gpu(&self) -> Option<String> {
        self.backend.gpu().map(Metal::name)
    }

    /// Why the session is not what was asked for: the CPU is at work though a GPU was looked for first, or the KV cache is
    /// wider.
    pub fn fallback(&self) -> Option<&Error> {
        self.fallback.as_ref()
    }

    /// Is there another way to go on after `failed`? The CPU, should a GPU be lost; a wider KV cache.
    pub(super) fn may_take_over(&self, failed: &Error) -> bool {
        match failed {
            Error::Gpu(_) => self.options.machine == Machine::Auto,
            Error::CacheRange { .. } => self.options.cache != CacheType::F32,
            _ => false,
        }
    }

    /// What was read is lost: becomes an empty session on the CPU, with a wider KV cache if that was the reason.
    pub(super) fn take_over(&mut self, why: Error) -> Result<()> {
        let cache = if matches!(why, Error::CacheRange { .. }) { CacheType::F32 } else { self.options.cache };
        let options = SessionOptions { machine: Machine::Cpu, cache, ..self.options.clone() };
        *self = Self { fallback: Some(why), ..Self::on(self.model, &options, cpu(options.threads))? };
        Ok(())
    }

    /// Goes on with another number of threads; results stay the same.
    pub fn set_threads(&mut self, threads: NonZeroUsize) {
        *self.backend.cpu() = Cpu::new(threads);
    }

    /// How keys and values are stored.
    pub fn cache_type(&self) -> CacheType {
        self.options.cache
    }

    /// Threads at work.
    pub fn threads(&mut self) -> usize {
        self.backend.cpu().threads()
    }

    /// The instruction set at work.
    pub fn kernels(&mut self) -> &'static str {
        self.backend.cpu().kernels()
    }

    /// Starts measuring where the time goes, or stops.
    pub fn measure(&mut self, on: bool) {
        self.backend.measure(on);
    }

    /// Where the time went since [`Session::measure`].
    pub fn profile(&self) -> Profile {
        self.backend.profile()
    }

    /// The point where the text ends now, to come back to. Making one costs a copy of the windowed layers' rows and the
    /// conv and SSM states, no evaluation.
    pub fn snapshot(&mut self) -> Result<Point> {
        self.state.snapshot(&mut self.backend, self.model.config(), self.options.cache, false)
    }

    /// Like [`Session::snapshot`], with the rows of global layers: a point that can be come back to from any text.
    pub fn snapshot_whole(&mut self) -> Result<Point> {
        self.state.snapshot(&mut self.backend, self.model.config(), self.options.cache, true)
    }

    /// Goes back to a point of this session's text; what comes after it is forgotten.
    ///
    /// # Panics
    /// If the text ends before the point, and the point is not whole.
    pub fn restore(&mut self, point: &Point) {
        self.state.restore(&mut self.backend, self.model.config(), point);
    }

    /// Appends the state's bytes to `out`, for a file; without `grown` those that a point holds.
    pub(super) fn write_image(&mut self, grown: bool, out: &mut Vec<u8>) {
        self.state.write_image(&mut self.backend, self.model.config(), self.options.cache, grown, out);
    }

    /// How many bytes [`Session::write_image`] appends after `tokens` tokens of text.
    pub(super) fn image_bytes(&self, tokens: usize, grown: bool) -> usize {
        image_bytes(self.model.config(), self.options.cache, tokens, grown)
    }

    /// Takes over the state that was written after `tokens` tokens of text.
    pub(super) fn read_image(&mut self, tokens: usize, grown: bool, image: &[u8]) {
        self.state.read_image(&mut self.backend, self.model.config(), self.options.cache, grown, tokens, image);
    }

    /// The model.
    pub fn model(&self) -> &'m Model {
        self.model
    }

    fn pass(&mut self, ids: &[u32], rule: Rule, logits: Range<usize>, observe: Option<Observer<'_>>) -> Result<()> {
        let weights = self.model.weights();
        let pass = Pass { table: &weights.token_embd, rows: ids, rule, logits };
        let (state, scratch) = (&mut self.state, &mut self.scratch);
        let done = forward(&mut self.backend, self.model.config(), weights, state, scratch, &pass, observe);
        done.map_err(|e| match e {
            Error::NotFinite(_) => Error::format(self.model.file(), e.to_string()),
            e => e,
        })
    }

    /// The last pass's first `rows` rows of logits.
    fn logits(&self, rows: usize) -> Result<&[f32]> {
        self.model.check_file()?;
        let logits = &self.scratch.logits().f32()[..rows * self.model.config().vocab];
        if logits.iter().all(|v| v.is_finite()) {
            return Ok(logits);
        }
        Err(Error::format(
            self.model.file(),
            "made logits that are not finite: the weights are damaged, or do not bear this type; convert the model again",
        ))
    }

    fn check(&self, ids: &[u32]) -> Result<()> {
        let vocab = self.model.config().vocab;
        if ids.is_empty() {
            return Err(Error::Request("there is nothing to read: give at least one token".into()));
        }
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) {
            return Err(Error::Request(format!(
                "token id {id} is out of the vocabulary: ids go from 0 to {}",
                vocab - 1
            )));
        }
        self.check_room(ids.len())
    }

    /// Do `tokens` more tokens fit?
    pub(super) fn check_room(&self, tokens: usize) -> Result<()> {
        let left = self.context - self.tokens();
        if tokens > left {
            return Err(Error::Request(format!(
                "{tokens} more tokens do not fit: the context holds {}, {left} of them free; shorten the text or raise \
                 the context (-c)",
                self.context
            )));
        }
        Ok(())
    }
}

/// Reads the meta tokens into a state of their own; `observe` sees every layer.
fn read_meta_tokens(model: &Model, backend: &mut Timed, mut observe: Option<Observer<'_>>) -> Result<MetaState> {
    const CHUNK: usize = 256;
    let (config, weights) = (model.config(), model.weights());
    let Some(table) = &weights.meta_embd else {
        unreachable!("a model with meta tokens has their embeddings: the file was checked");
    };
    let mut state = State::new(backend, config, 0, CacheType::F32)?;
    let mut scratch = Scratch::new(backend, config, CHUNK.min(table.rows), CacheType::F32)?;
    let all: Vec<u32> = (0..table.rows as u32).collect();
    for rows in all.chunks(CHUNK) {
        let pass = Pass { table, rows, rule: Rule::Prefill, logits: 0..0 };
        let observe: Option<Observer<'_>> = match &mut observe {
            Some(observe) => Some(*observe),
            None => None,
        };
        forward(backend, config, weights, &mut state, &mut scratch, &pass, observe)?;
    }
    Ok(MetaState::take(backend, config, &state))
}

/// Computes the state after the meta tokens, for `hymba quantize` to store: `None` if the model has no meta tokens.
/// Lets go of each layer's pages when the layer is done, so that a model of any size passes through little memory.
pub fn compute_meta_state(
    model: &Model,
    threads: Option<NonZeroUsize>,
    cancel: &AtomicBool,
) -> Result<Option<MetaState>> {
    if model.config().meta_tokens == 0 {
        return Ok(None);
    }
    let mut backend = cpu(threads);
    let release = &mut |view: LayerView<'_, Memory>| {
        model.weights().layers[view.layer].matrices().for_each(|m| m.data.release());
        if cancel.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { Ok(()) }
    };
    read_meta_tokens(model, &mut backend, Some(release)).map(Some)
}

/// The CPU, by default with a thread for each core.
fn cpu(threads: Option<NonZeroUsize>) -> Timed {
    let cores = || thread::available_parallelism().ok();
    Timed::new(Cpu::new(threads.or_else(cores).unwrap_or(NonZeroUsize::MIN)), None)
}
