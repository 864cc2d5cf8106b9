//! Rounding that knows what the model's matrices multiply: the checkpoint passes through memory a layer at a time, and the
//! calibration text with it.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    num::NonZeroUsize,
    ops::Range,
    ptr,
    sync::atomic::{AtomicBool, Ordering},
};

use rayon::ThreadPool;

use super::{
    calibrate::{Advance, Moments, Sample, Stream},
    convert::Job,
    rounding::{Factor, Gptq, Hessian, compensate},
    summary::Event,
};
use crate::{
    Error, Result,
    backend::MatRef,
    format::{
        Matrix, Stored,
        gguf::{Gguf, Metadata},
    },
    model::{
        Config,
        weights::{Finder, Layer},
    },
};

/// A checkpoint and the text that it reads.
pub(super) struct Calibrated<'a> {
    pub(super) config: &'a Config,
    pub(super) metadata: &'a Metadata,
    /// The checkpoint's name, for messages.
    pub(super) file: &'a str,
    pub(super) sample: &'a Sample,
    pub(super) pool: &'a ThreadPool,
    pub(super) cancel: &'a AtomicBool,
}

const LAYER_NAMES: &str = "blk.";

impl Calibrated<'_> {
    /// Reads the text with the checkpoint as it is, and sums up what its matrices multiply.
    pub(super) fn moments(&self, jobs: &[Job], progress: &mut dyn FnMut(Event)) -> Result<Moments> {
        let (mut stream, pieces) = self.open(jobs)?;
        let mut moments = Moments::new(&self.sample.name, self.sample.context, pieces);
        let texts = stream.texts() as u64;
        progress(Event::Calibrate { steps: texts * self.config.layers as u64 });
        for index in 0..self.config.layers {
            let layer = self.layer(index, &jobs[layer_range(jobs, index)])?;
            let names = Names::new(index, &layer);
            stream.pass(
                index,
                &layer,
                Advance::Commit,
                &mut |matrix, x| names.of(matrix).into_iter().for_each(|name| moments.add(name, x)),
                &mut || self.step(progress, "reading the calibration text", 1),
            )?;
        }
        let tied = jobs.iter().all(|job| job.spec.name != "output.weight");
        let name = if tied { "token_embd.weight" } else { "output.weight" };
        let norm = self.load(jobs.iter().filter(|job| job.spec.name == "output_norm.weight"))?;
        let norm = Finder::new(&norm, self.config).vector("output_norm.weight")?;
        stream.head_inputs(&norm, &mut |x| moments.add(name, x));
        Ok(moments)
    }

    /// Rounds the quantized matrices of every layer so that columns make up for the errors of others, each on what the
    /// layers before it make once they are rounded. `write` gets all jobs, in order; those of rounded matrices have
    /// what they became for input.
    pub(super) fn compensate(
        &self,
        jobs: &[Job],
        gptq: &Gptq,
        progress: &mut dyn FnMut(Event),
        write: &mut dyn FnMut(&[Job]) -> Result<()>,
    ) -> Result<()> {
        let (mut stream, _) = self.open(jobs)?;
        let texts = stream.texts() as u64;
        progress(Event::Calibrate { steps: 3 * texts * self.config.layers as u64 });
        let mut written = 0;
        for index in 0..self.config.layers {
            let range = layer_range(jobs, index);
            write(&jobs[written..range.start])?;
            written = range.end;
            let mut rounded = jobs[range].to_vec();
            let layer = self.layer(index, &rounded)?;
            let what = format!("layer {} of {}", index + 1, self.config.layers);
            let hessians =
                self.hessians(&mut stream, index, &layer, &rounded, &mut || self.step(progress, &what, 1))?;
            let all: usize = rounded.iter().map(cost).sum();
            let (mut done, mut told) = (0, 0);
            let mut factors = BTreeMap::new();
            for job in rounded.iter_mut().filter(|job| compensable(job)) {
                let name = shared(&job.spec.name);
                let Some(hessian) = hessians.get(&name) else { continue };
                let factor = match factors.entry(name) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(new) => {
                        let factor = self.pool.install(|| Factor::new(hessian, gptq));
                        new.insert(factor.ok_or_else(|| {
                            let what =
                                format!("layer {index} multiplies values that are not finite: the weights are damaged");
                            Error::format(self.file, what)
                        })?)
                    }
                };
                done += cost(job); // before there is nothing left to do
                self.round(job, &layer, index, factor)?;
                let now = texts * done as u64 / all as u64;
                self.step(progress, &what, now - told)?;
                told = now;
            }
            drop((hessians, factors, layer));
            let layer = self.layer(index, &rounded)?;
            stream.pass(index, &layer, Advance::Commit, &mut |_, _| (), &mut || self.step(progress, &what, 1))?;
            write(&rounded)?;
        }
        write(&jobs[written..])
    }

    /// The second moments of what the layer's matrices multiply, under the names that [`shared`] gives them.
    fn hessians(
        &self,
        stream: &mut Stream<'_>,
        index: usize,
        layer: &Layer,
        jobs: &[Job],
        done: &mut dyn FnMut() -> Result<()>,
    ) -> Result<BTreeMap<String, Hessian>> {
        let wanted = jobs.iter().filter(|job| compensable(job));
        let mut hessians: BTreeMap<_, _> =
            wanted.map(|job| (shared(&job.spec.name), Hessian::new(job.rows_and_cols().1))).collect();
        let names = Names::new(index, layer);
        let watch = &mut |matrix: &Matrix, x: MatRef<'_>| {
            if let Some(hessian) = names.of(matrix).and_then(|name| hessians.get_mut(name)) {
                let values = &x.buffer.f32()[x.start..];
                self.pool.install(|| hessian.add(values, x.rows, x.stride));
            }
        };
        stream.pass(index, layer, Advance::Peek, watch, done)?;
        Ok(hessians)
    }

    /// Makes what the job's matrix becomes the job's input.
    fn round(&self, job: &mut Job, layer: &Layer, index: usize, factor: &Factor) -> Result<()> {
        let names = Names::new(index, layer);
        let Some((_, matrix)) = names.0.iter().find(|(name, _)| *name == job.spec.name) else { return Ok(()) };
        let mut values = vec![0.0; matrix.rows * matrix.cols];
        for (row, values) in values.chunks_exact_mut(matrix.cols).enumerate() {
            matrix.row(row, values);
        }
        let mut out = vec![0; matrix.rows * job.row_bytes(job.dtype)];
        let rounded = self.pool.install(|| compensate(job.dtype, &values, factor, &mut out));
        rounded.map_err(|(row, unfit)| job.unfit(row, unfit))?;
        job.input = Stored::in_memory(out, job.spec.shape.clone(), job.dtype);
        Ok(())
    }

    /// The text in front of the first layer, and the number of its pieces.
    fn open(&self, jobs: &[Job]) -> Result<(Stream<'_>, usize)> {
        let pieces = self.sample.pieces(self.metadata, self.file)?;
        let tables =
            self.load(jobs.iter().filter(|j| ["token_embd.weight", "meta_embd.weight"].contains(&&*j.spec.name)))?;
        let find = Finder::new(&tables, self.config);
        let meta = (self.config.meta_tokens > 0).then(|| find.matrix("meta_embd.weight")).transpose()?;
        let embeddings = find.matrix("token_embd.weight")?;
        if let Some(id) = pieces.iter().flatten().find(|&&id| id as usize >= embeddings.rows) {
            return Err(Error::format(
                self.file,
                format!("has a tokenizer that makes the token {id}, which the model lacks"),
            ));
        }
        let stream = Stream::new(self.config, &embeddings, meta.as_ref(), &pieces, self.threads())?;
        Ok((stream, pieces.len()))
    }

    fn layer(&self, index: usize, jobs: &[Job]) -> Result<Layer> {
        Finder::new(&self.load(jobs.iter())?, self.config).layer(index)
    }

    /// The tensors as they are in the checkpoint, ready to compute with.
    fn load<'j>(&self, jobs: impl Iterator<Item = &'j Job>) -> Result<Gguf> {
        let tensors = jobs.map(|job| self.pool.install(|| job.load())).collect::<Result<_>>()?;
        Ok(Gguf::in_memory(self.file, tensors))
    }

    fn step(&self, progress: &mut dyn FnMut(Event), what: &str, steps: u64) -> Result<()> {
        progress(Event::Calibrated { what, steps });
        if self.cancel.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { Ok(()) }
    }

    fn threads(&self) -> NonZeroUsize {
        NonZeroUsize::new(self.pool.current_num_threads()).unwrap_or(NonZeroUsize::MIN)
    }
}

/// A layer's matrices by the names of their tensors.
struct Names<'a>(Vec<(String, &'a Matrix)>);

impl<'a> Names<'a> {
    fn new(index: usize, layer: &'a Layer) -> Self {
        let named = layer.named_matrices().map(|(name, matrix)| (format!("{LAYER_NAMES}{index}.{name}"), matrix));
        Self(named.collect())
    }

    fn of(&self, matrix: &Matrix) -> Option<&str> {
        self.0.iter().find(|(_, m)| ptr::eq(*m, matrix)).map(|(name, _)| name.as_str())
    }
}

/// Gate and up read the same: the moments of both are under the name of up.
fn shared(name: &str) -> String {
    name.replace("ffn_gate", "ffn_up")
}

fn compensable(job: &Job) -> bool {
    job.dtype.is_quantized() && job.dtype != job.input.dtype && job.spec.shape.len() == 2
}

/// How much work it is to round a matrix.
fn cost(job: &Job) -> usize {
    let (rows, cols) = job.rows_and_cols();
    if compensable(job) { rows * cols / 1024 * cols } else { 0 }
}

/// Where the tensors of layer `index` are: all in a row.
fn layer_range(jobs: &[Job], index: usize) -> Range<usize> {
    let prefix = format!("{LAYER_NAMES}{index}.");
    let is_in = |job: &Job| job.spec.name.starts_with(&prefix);
    let start = jobs.iter().position(is_in).unwrap_or(jobs.len());
    start..start + jobs[start..].iter().take_while(|job| is_in(job)).count()
}
