//! Calibrated rounding: the checkpoint and the calibration text's activations are processed layer by layer.

use std::{collections::BTreeMap, num::NonZeroUsize, sync::atomic::AtomicBool};

use rayon::ThreadPool;

use super::{
    moments::Moments,
    sample::Sample,
    stream::{Advance, Stream},
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
        weights::{FeedForward, Finder, Layer},
    },
    quant::{
        rounding::{Factor, Gptq, Hessian, compensate},
        summary::Event,
        tensor_plan::TensorPlan,
    },
};

/// A checkpoint and its calibration text.
pub struct Calibrator<'a> {
    pub config: &'a Config,
    pub metadata: &'a Metadata,
    /// The checkpoint's name, for messages.
    pub file: &'a str,
    pub sample: &'a Sample,
    pub pool: &'a ThreadPool,
    pub cancel: &'a AtomicBool,
}

impl Calibrator<'_> {
    /// Runs the text through the unmodified checkpoint and accumulates the second moments of its matrices' inputs.
    pub fn moments(&self, plans: &[TensorPlan], progress: &mut dyn FnMut(Event)) -> Result<Moments> {
        let (mut stream, pieces) = self.open(plans)?;
        let mut moments = Moments::new(&self.sample.name, self.sample.context, pieces);
        progress(Event::Calibrate { steps: (stream.texts() * self.config.layers) as u64 });
        for group in by_layer(plans) {
            let Some(index) = group[0].spec.layer else { continue };
            let watch = &mut |matrix: &Matrix, x: MatRef<'_>| {
                let plan = group.iter().find(|plan| plan.spec.id == matrix.id);
                plan.into_iter().for_each(|plan| moments.add(&plan.spec, x));
            };
            stream.pass(index, &self.layer(index, group)?, Advance::Commit, watch, &mut || {
                self.step(progress, "processing the calibration text", 1)
            })?;
        }
        let norm = self.load(named(plans, "output_norm.weight"))?;
        let norm = Finder::new(&norm, self.config).vector("output_norm.weight")?;
        if let Some(head) = named(plans, "output.weight").or_else(|| named(plans, "token_embd.weight")) {
            stream.head_inputs(&norm, &mut |x| moments.add(&head.spec, x));
        }
        Ok(moments)
    }

    /// Rounds the quantized matrices of every layer with error compensation, using the outputs of the rounded previous
    /// layers. `write` receives all plans in order; those of rounded matrices have the result as input.
    pub fn compensate(
        &self,
        plans: &[TensorPlan],
        gptq: &Gptq,
        progress: &mut dyn FnMut(Event),
        write: &mut dyn FnMut(&[TensorPlan]) -> Result<()>,
    ) -> Result<()> {
        let (mut stream, _) = self.open(plans)?;
        let texts = stream.texts();
        progress(Event::Calibrate { steps: (3 * texts * self.config.layers) as u64 });
        for group in by_layer(plans) {
            let Some(index) = group[0].spec.layer else {
                write(group)?;
                continue;
            };
            let mut rounded = group.to_vec();
            let label = format!("layer {} of {}", index + 1, self.config.layers);
            let layer = self.layer(index, group)?;
            let matrices = to_round(&layer, group);
            let hessians =
                self.hessians(&mut stream, index, &layer, &matrices, &mut || self.step(progress, &label, 1))?;
            let mut reported = 0;
            self.round_layer(index, &mut rounded, &matrices, hessians, gptq, &mut |share| {
                let now = (texts as f64 * share) as u64;
                let steps = now - reported;
                reported = now;
                self.step(progress, &label, steps)
            })?;
            drop(matrices);
            drop(layer);
            let layer = self.layer(index, &rounded)?;
            stream.pass(index, &layer, Advance::Commit, &mut |_, _| (), &mut || self.step(progress, &label, 1))?;
            write(&rounded)?;
        }
        Ok(())
    }

    /// Returns the Hessians of the matrices' inputs, by input id.
    fn hessians(
        &self,
        stream: &mut Stream<'_>,
        index: usize,
        layer: &Layer,
        matrices: &[ToRound],
        done: &mut dyn FnMut() -> Result<()>,
    ) -> Result<BTreeMap<usize, Hessian>> {
        let mut hessians: BTreeMap<_, _> = matrices.iter().map(|m| (m.input, Hessian::new(m.matrix.cols))).collect();
        let watch = &mut |matrix: &Matrix, x: MatRef<'_>| {
            if let Some(hessian) = hessians.get_mut(&matrix.id) {
                let values = &x.buffer.f32()[x.start..];
                self.pool.install(|| hessian.add(values, x.rows, x.stride, self.cancel));
            }
        };
        stream.pass(index, layer, Advance::Peek, watch, done)?;
        Ok(hessians)
    }

    /// Rounds the matrices of a layer and stores the results as their plans' input. `step` receives the fraction of
    /// work done.
    fn round_layer(
        &self,
        index: usize,
        plans: &mut [TensorPlan],
        matrices: &[ToRound],
        hessians: BTreeMap<usize, Hessian>,
        gptq: &Gptq,
        step: &mut dyn FnMut(f64) -> Result<()>,
    ) -> Result<()> {
        let all: f64 = matrices.iter().map(ToRound::cost).sum();
        let mut done = 0.0;
        for (input, hessian) in hessians {
            let factor = self.pool.install(|| Factor::new(&hessian, gptq, self.cancel));
            Error::check_cancelled(self.cancel)?;
            let factor = factor.ok_or_else(|| {
                let problem = format!("layer {index} multiplies values that are not finite: the weights are damaged");
                Error::format(self.file, problem)
            })?;
            drop(hessian);
            for to_round in matrices.iter().filter(|m| m.input == input) {
                self.round(&mut plans[to_round.plan], to_round.matrix, &factor)?;
                done += to_round.cost();
                step(done / all)?;
            }
        }
        step(1.0)
    }

    /// Stores the rounded matrix as the plan's input.
    fn round(&self, plan: &mut TensorPlan, matrix: &Matrix, factor: &Factor) -> Result<()> {
        let mut values = vec![0.0; matrix.rows * matrix.cols];
        for (row, values) in values.chunks_exact_mut(matrix.cols).enumerate() {
            matrix.row(row, values);
        }
        let mut out = vec![0; matrix.rows * plan.row_bytes(plan.dtype)];
        let rounded = self.pool.install(|| compensate(plan.dtype, &values, factor, &mut out, self.cancel));
        rounded.map_err(|(row, unfit)| plan.unfit(row, unfit))?;
        plan.input = Stored::in_memory(out, plan.spec.shape.clone(), plan.dtype);
        Ok(())
    }

    /// Returns the stream of the calibration text before the first layer, and the number of its sequences.
    fn open(&self, plans: &[TensorPlan]) -> Result<(Stream<'_>, usize)> {
        let pieces = self.sample.pieces(self.metadata, self.file, self.cancel)?;
        let tables = ["token_embd.weight", "meta_embd.weight"].into_iter().filter_map(|name| named(plans, name));
        let tables = self.load(tables)?;
        let find = Finder::new(&tables, self.config);
        let meta = (self.config.meta_tokens > 0).then(|| find.matrix("meta_embd.weight")).transpose()?;
        let embeddings = find.matrix("token_embd.weight")?;
        if let Some(id) = pieces.iter().flatten().find(|&&id| id as usize >= embeddings.rows) {
            return Err(Error::format(self.file, format!("has a tokenizer with token {id}, which the model lacks")));
        }
        let threads = NonZeroUsize::new(self.pool.current_num_threads()).unwrap_or(NonZeroUsize::MIN);
        let stream = Stream::new(self.config, &embeddings, meta.as_ref(), &pieces, threads)?;
        Ok((stream, pieces.len()))
    }

    fn layer(&self, index: usize, plans: &[TensorPlan]) -> Result<Layer> {
        Finder::new(&self.load(plans)?, self.config).layer(index)
    }

    /// Loads tensors of the checkpoint into memory, for computation.
    fn load<'p>(&self, plans: impl IntoIterator<Item = &'p TensorPlan>) -> Result<Gguf> {
        let tensors =
            plans.into_iter().map(|plan| self.pool.install(|| plan.load(self.cancel))).collect::<Result<_>>()?;
        Ok(Gguf::in_memory(self.file, tensors))
    }

    fn step(&self, progress: &mut dyn FnMut(Event), label: &str, steps: u64) -> Result<()> {
        progress(Event::Calibrated { label, steps });
        Error::check_cancelled(self.cancel)
    }
}

/// A matrix to round with compensation.
struct ToRound<'a> {
    matrix: &'a Matrix,
    /// The index of its plan in the layer.
    plan: usize,
    /// The id of the matrix whose inputs are measured. Gate and up have the same input, so they share a Hessian.
    input: usize,
}

impl ToRound<'_> {
    /// Returns the relative work of rounding it.
    fn cost(&self) -> f64 {
        let Matrix { rows, cols, .. } = *self.matrix;
        rows as f64 * cols as f64 * cols as f64
    }
}

/// Returns the matrices of a layer that become blocks of another type.
fn to_round<'a>(layer: &'a Layer, plans: &[TensorPlan]) -> Vec<ToRound<'a>> {
    let becomes_blocks = |plan: &TensorPlan| plan.dtype.is_quantized() && plan.dtype != plan.input.dtype;
    let entry = |matrix: &'a Matrix| {
        let plan = plans.iter().position(|plan| plan.spec.id == matrix.id && becomes_blocks(plan))?;
        let input = match &layer.feed_forward {
            Some(FeedForward { gate: Some(gate), up, .. }) if gate.id == matrix.id => up.id,
            _ => matrix.id,
        };
        Some(ToRound { matrix, plan, input })
    };
    layer.matrices().filter_map(entry).collect()
}

/// Groups consecutive tensors by layer; those before and after all layers form groups of their own.
fn by_layer(plans: &[TensorPlan]) -> impl Iterator<Item = &[TensorPlan]> {
    plans.chunk_by(|a, b| a.spec.layer == b.spec.layer)
}

fn named<'p>(plans: &'p [TensorPlan], name: &str) -> Option<&'p TensorPlan> {
    plans.iter().find(|plan| plan.spec.name == name)
}
