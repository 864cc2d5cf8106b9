//! Makes a GGUF file of a checkpoint, whatever its size: pieces of rows are read, converted and written, and never more
//! than a few of them are in memory.

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Instant,
};

use rayon::prelude::*;
use regex::Regex;

use super::{
    calibrate::{Moments, Sample},
    calibrated::Calibrated,
    checkpoint::Checkpoint,
    meta_state, recipe,
    rounding::{Rounding, Searcher},
    summary::{Event, Summary, size_label},
};
use crate::{
    Error, Result,
    format::{
        Blob, DType, Stored, check_output,
        codec::{Unfit, decode_row, encode_row},
        gguf::{Layout, Tensor, Writer},
        packed::{self, GROUP, Packing},
    },
    model::tensors::{Role, Spec, meta_state_specs},
    threads,
};

/// How to convert.
pub struct Options {
    /// The type of the matrices.
    pub dtype: DType,
    /// Interleave the rows of quantized matrices by eight, as the kernels read them fastest?
    pub packed: bool,
    /// Other types for tensors whose name (in GGUF) matches; the last match wins.
    pub overrides: Vec<(Regex, DType)>,
    /// How values become blocks.
    pub rounding: Rounding,
    /// How it is known which errors are felt; with [`Rounding::Gptq`] a text.
    pub calibration: Option<Calibration>,
    /// Where to save what was measured on the text.
    pub save_moments: Option<PathBuf>,
    /// Replace an existing output?
    pub force: bool,
    /// Threads that convert; `None`: one a core.
    pub threads: Option<NonZeroUsize>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            dtype: DType::Q4_0,
            packed: true,
            overrides: Vec::new(),
            rounding: Rounding::default(),
            calibration: None,
            save_moments: None,
            force: false,
            threads: None,
        }
    }
}

/// How it is known which errors of a matrix are felt.
#[derive(Clone, Debug)]
pub enum Calibration {
    /// The model reads a text.
    Text(Sample),
    /// What was measured before, and saved.
    File(PathBuf),
}

/// Bytes of input that are read at once.
const PIECE: usize = 4 << 20;

/// A tensor on its way.
#[derive(Clone)]
pub(super) struct Job {
    pub(super) spec: Spec,
    pub(super) input: Stored,
    pub(super) dtype: DType,
    packing: Packing,
    a_is_log: bool,
    /// Rounds to blocks; plainly if there is none.
    searcher: Option<Arc<Searcher>>,
    /// How much errors in each column are felt, if that is known.
    importance: Option<Vec<f32>>,
}

/// Converts the checkpoint `input`, a Hugging Face folder or a GGUF file of ours, to the GGUF file `output`.
///
/// Once all weights are in place, the state after the meta tokens is computed from them and stored too.
///
/// `output` appears when everything has succeeded; an error, or `cancel` turning true, leaves nothing.
pub fn convert(
    input: &Path,
    output: &Path,
    options: &Options,
    progress: &mut dyn FnMut(Event),
    cancel: &AtomicBool,
) -> Result<Summary> {
    let start = Instant::now();
    check_output(output, options.force)?;
    if let Some(path) = &options.save_moments {
        check_output(path, options.force)?;
    }
    if let (Ok(a), Ok(b)) = (input.canonicalize(), output.canonicalize())
        && a == b
    {
        return Err(Error::Request(format!("{} is both input and output; name another output", output.display())));
    }
    let Checkpoint { config, mut metadata, tensors, notes, a_is_log } = Checkpoint::open(input)?;
    recipe::check(tensors.iter().map(|(spec, _)| spec), &options.overrides)?;

    let mut summary = Summary { notes, ..Summary::default() };
    let mut requantized = 0;
    let mut jobs = Vec::with_capacity(tensors.len());
    for (spec, input) in tensors {
        let recipe::Choice { dtype, wished } = recipe::choose(&spec, options.dtype, &options.overrides);
        if let Some(wished) = wished {
            summary.fallbacks.push((spec.name.clone(), wished, dtype));
        }
        requantized += usize::from(input.dtype.block_len() > 1 && input.dtype != dtype);
        let a_is_log = a_is_log && spec.name.ends_with(".ssm_a");
        let matrix = spec.role != Role::Exact && spec.shape.len() == 2;
        let packing = if options.packed && matrix && Packing::fits(dtype) { Packing::X8 } else { Packing::Plain };
        let search = !matches!(options.rounding, Rounding::Nearest) && dtype.is_quantized();
        let searcher = search.then(|| Arc::new(Searcher::new(dtype)));
        jobs.push(Job { spec, input, dtype, packing, a_is_log, searcher, importance: None });
    }
    if requantized > 0 {
        summary.notes.push(format!(
            "{requantized} tensors were quantized before; converting from the original checkpoint gives better results"
        ));
    }
    let place = |j: &Job| (j.spec.name.clone(), j.spec.shape.clone(), j.dtype, j.packing);
    let mut layout: Vec<_> = jobs.iter().map(place).collect();
    let states = if config.meta_tokens > 0 { meta_state_specs(&config) } else { Vec::new() };
    // A convolution of one tap has no state, and GGUF no empty tensors.
    let stored_states = states.iter().filter(|(_, dims)| !dims.contains(&0));
    layout.extend(stored_states.map(|(name, dims)| (name.clone(), dims.to_vec(), DType::F32, Packing::Plain)));

    let parameters = jobs.iter().map(|j| j.spec.shape.iter().product::<usize>() as u64).sum();
    metadata.set("general.size_label", size_label(parameters));
    metadata.set("general.file_type", options.dtype.file_type());
    metadata.set("general.quantization_version", 2u32);
    if !states.is_empty() {
        metadata.set(meta_state::KEY, meta_state::VERSION);
    }
    let layout = Layout::new(metadata.clone(), layout)?;
    summary.count(&layout, jobs.len(), parameters);

    let pool = threads::pool(options.threads).ok_or_else(|| Error::Request(NO_THREAD.into()))?;
    let mut writer = Writer::create(output, layout, options.force)?;
    let file = input.display().to_string();
    let calibrated =
        |sample| Calibrated { config: &config, metadata: &metadata, file: &file, sample, pool: &pool, cancel };
    if let (Rounding::Gptq(gptq), Some(Calibration::Text(sample))) = (&options.rounding, &options.calibration) {
        let write = &mut |jobs: &[Job]| stream(jobs, &mut writer, &pool, &mut |_| (), cancel);
        calibrated(sample).compensate(&jobs, gptq, progress, write)?;
    } else {
        let moments = match &options.calibration {
            None => None,
            Some(Calibration::File(path)) => {
                Some(Moments::load(path, &jobs.iter().map(|job| &job.spec).collect::<Vec<_>>())?)
            }
            Some(Calibration::Text(sample)) => Some(calibrated(sample).moments(&jobs, progress)?),
        };
        if let Some(moments) = &moments {
            jobs.iter_mut().for_each(|job| job.importance = moments.importance(&job.spec.name));
            if let Some(path) = &options.save_moments {
                moments.save(path, options.force)?;
            }
        }
        progress(Event::Begin { bytes: jobs.iter().map(|j| j.bytes()).sum() });
        stream(&jobs, &mut writer, &pool, progress, cancel)?;
    }
    if !states.is_empty() {
        progress(Event::MetaState);
        let computed = meta_state::compute(writer.temporary_path()?, &config, options.threads, cancel);
        let values = computed.map_err(|e| match e {
            Error::NotFinite(_) => Error::format(&file, e.to_string()),
            e => e,
        })?;
        values.iter().try_for_each(|values| writer.write(bytemuck::cast_slice(values)))?;
    }
    if cancel.load(Ordering::Relaxed) {
        return Err(Error::Cancelled);
    }
    writer.finish()?;
    summary.seconds = start.elapsed().as_secs_f64();
    Ok(summary)
}

/// What is said where the system refuses the threads that a conversion can't do without.
const NO_THREAD: &str = "the system allows this process no more threads, and a conversion needs two beside its own";

/// Reads on a thread of its own, one or two pieces ahead; converts on the pool; writes in order.
fn stream(
    jobs: &[Job],
    writer: &mut Writer,
    pool: &rayon::ThreadPool,
    progress: &mut dyn FnMut(Event),
    cancel: &AtomicBool,
) -> Result<()> {
    let (sender, receiver) = mpsc::sync_channel::<Result<(usize, usize, Vec<u8>)>>(1);
    thread::scope(|scope| {
        let read = move || {
            for (index, job) in jobs.iter().enumerate() {
                for (row, from, len) in job.pieces() {
                    let mut bytes = vec![0; len];
                    let read = job.input.read(from, &mut bytes).map(|()| (index, row, bytes));
                    let failed = read.is_err();
                    // The other side is gone if it has met an error or was cancelled.
                    if sender.send(read).is_err() || failed {
                        return;
                    }
                }
            }
        };
        thread::Builder::new().spawn_scoped(scope, read).map_err(|_| Error::Request(NO_THREAD.into()))?;
        // Taken in here, so that the reader learns of an early return.
        let receiver = receiver;
        let mut out = Vec::new();
        for piece in &receiver {
            if cancel.load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
            let (index, row, bytes) = piece?;
            let job = &jobs[index];
            pool.install(|| job.convert(row, &bytes, &mut out))?;
            writer.write(&out)?;
            progress(Event::Converted { tensor: &job.spec.name, bytes: bytes.len() as u64 });
        }
        Ok(())
    })
}

impl Job {
    /// The whole tensor in memory, as the checkpoint holds it: to compute with.
    pub(super) fn load(&self) -> Result<Tensor> {
        let Self { spec, input, .. } = self;
        let dtype = if spec.role == Role::Exact { DType::F32 } else { input.dtype };
        let packing = if Packing::fits(dtype) { Packing::X8 } else { Packing::Plain };
        let plain = Self { dtype, packing, searcher: None, importance: None, ..self.clone() };
        let mut bytes = vec![0; plain.bytes() as usize];
        input.read(0, &mut bytes)?;
        let mut out = Vec::new();
        plain.convert(0, &bytes, &mut out)?;
        let (name, dims) = (spec.name.clone(), spec.shape.clone());
        Ok(Tensor { name, dims, dtype, packing, offset: 0, data: Blob::from_vec(out) })
    }

    pub(super) fn rows_and_cols(&self) -> (usize, usize) {
        match self.spec.shape[..] {
            [rows, cols] => (rows, cols),
            _ => (1, self.spec.shape.iter().product()),
        }
    }

    pub(super) fn row_bytes(&self, dtype: DType) -> usize {
        // A layout and a checkpoint are made of whole blocks only.
        dtype.row_bytes(self.rows_and_cols().1).unwrap_or(0)
    }

    fn bytes(&self) -> u64 {
        (self.input.packing.stored_rows(self.rows_and_cols().0) * self.row_bytes(self.input.dtype)) as u64
    }

    /// First row, first byte and length of the pieces, which are whole groups of rows but for the last of a plain
    /// tensor.
    fn pieces(&self) -> impl Iterator<Item = (usize, u64, usize)> + use<> {
        let row_bytes = self.row_bytes(self.input.dtype);
        let rows = self.input.packing.stored_rows(self.rows_and_cols().0);
        let step = (PIECE / row_bytes).next_multiple_of(GROUP).max(GROUP);
        (0..rows).step_by(step).map(move |row| (row, (row * row_bytes) as u64, step.min(rows - row) * row_bytes))
    }

    /// Converts the whole rows in `bytes`, of which the first is row `first`.
    fn convert(&self, first: usize, bytes: &[u8], out: &mut Vec<u8>) -> Result<()> {
        let (from, to) = (self.row_bytes(self.input.dtype), self.row_bytes(self.dtype));
        let (all_rows, cols) = self.rows_and_cols();
        let rows = (bytes.len() / from).min(all_rows - first);
        let regroup = |from: &[u8], row: usize, turn: fn(DType, &[u8], &mut [u8]), dtype| {
            let mut to = vec![0; from.len()];
            to.par_chunks_exact_mut(GROUP * row).zip(from.par_chunks_exact(GROUP * row)).for_each(|(to, from)| {
                turn(dtype, from, to);
            });
            to
        };
        let unpacked;
        let plain = match self.input.packing {
            Packing::Plain => bytes,
            Packing::X8 => {
                unpacked = regroup(bytes, from, packed::unpack, self.input.dtype);
                &unpacked
            }
        };
        out.clear();
        out.resize(self.packing.stored_rows(rows) * to, 0);
        let pairs = plain.par_chunks_exact(from).zip(out.par_chunks_exact_mut(to)).take(rows);
        pairs.enumerate().with_min_len(8).try_for_each_init(
            || vec![0f32; cols],
            |values, (row, (bytes, out))| {
                self.convert_row(values, bytes, out).map_err(|unfit| self.unfit(first + row, unfit))
            },
        )?;
        if self.packing == Packing::X8 {
            *out = regroup(out, to, packed::pack, self.dtype);
        }
        Ok(())
    }

    fn convert_row(&self, values: &mut [f32], bytes: &[u8], out: &mut [u8]) -> std::result::Result<(), Unfit> {
        decode_row(self.input.dtype, bytes, values);
        if self.a_is_log {
            values.iter_mut().for_each(|v| *v = -f64::from(*v).exp() as f32);
        } else if self.input.dtype == self.dtype {
            // Encoding blocks again could change them.
            out.copy_from_slice(bytes);
            return values.iter().all(|v| v.is_finite()).then_some(()).ok_or(Unfit::NotFinite);
        }
        match &self.searcher {
            Some(searcher) => searcher.encode_row(values, self.importance.as_deref(), out),
            None => encode_row(self.dtype, values, out),
        }
    }

    pub(super) fn unfit(&self, row: usize, unfit: Unfit) -> Error {
        let Spec { name, official, .. } = &self.spec;
        match unfit {
            Unfit::NotFinite => Error::Request(format!(
                "tensor `{name}` ({official}) holds NaN or infinity in row {row}; the checkpoint is damaged, \
                 download it again"
            )),
            Unfit::Overflow => {
                let (name, official) = (name.clone(), official.clone());
                Error::TensorRange { name, official, row, dtype: self.dtype.name() }
            }
        }
    }
}
