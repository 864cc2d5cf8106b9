//! The state after the meta tokens. It depends on the weights only: conversion stores it in the model file, and
//! sessions start from it. Always F32, independent of the cache type.

use std::ops::Deref;

use super::State;
use crate::{
    Error, Result,
    backend::Memory,
    format::{Vector, gguf::Gguf},
    model::{Config, tensors::meta_state_specs},
};

/// The vectors of `tensors::meta_state_specs`, in that order.
pub struct MetaState(Vec<Values>);

enum Values {
    Computed(Vec<f32>),
    Stored(Vector),
}

impl Deref for Values {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        match self {
            Self::Computed(values) => values,
            Self::Stored(values) => values,
        }
    }
}

impl MetaState {
    /// Reads the stored state from `gguf`; `None` if it is absent or uses another layout version.
    pub fn stored(gguf: &Gguf, config: &Config) -> Result<Option<Self>> {
        if gguf.metadata.uint("hymba.meta_state.version") != Some(1) {
            return Ok(None);
        }
        let read = |(name, shape): (String, [usize; 2])| {
            if shape.contains(&0) {
                return Ok(Values::Computed(Vec::new())); // a one-tap convolution has no state
            }
            let bad = |problem: &str| Error::model(&gguf.file, format!("tensor `{name}` {problem}"));
            let tensor = gguf.tensor(&name).ok_or_else(|| bad("of the stored meta state is missing"))?;
            if tensor.dims != shape {
                return Err(bad(&format!("has shape {:?}, but the metadata requires {shape:?}", tensor.dims)));
            }
            let values = Vector::new(&gguf.file, tensor)?;
            if values.iter().any(|v| !v.is_finite()) {
                return Err(bad("contains values that are not finite"));
            }
            Ok(Values::Stored(values))
        };
        meta_state_specs(config).into_iter().map(read).collect::<Result<_>>().map(|v| Some(Self(v)))
    }

    /// Returns the vectors, in the order of `tensors::meta_state_specs`.
    pub fn into_vectors(self) -> Vec<Vec<f32>> {
        let own = |values| match values {
            Values::Computed(values) => values,
            Values::Stored(values) => values.to_vec(),
        };
        self.0.into_iter().map(own).collect()
    }

    /// Copies the state out of `state`, which must have processed exactly the meta tokens.
    pub fn take(memory: &mut dyn Memory, config: &Config, state: &State) -> Self {
        let (k, v) = config.kv_widths();
        let mut all = Vec::new();
        for layer in &state.layers {
            if let Some(kv) = &layer.kv {
                all.push(memory.download(&kv.k, config.meta_tokens * k));
                all.push(memory.download(&kv.v, config.meta_tokens * v));
            }
            let past = config.conv_kernel - 1;
            all.push(transposed(&memory.download(&layer.conv, past * config.inner), past));
            all.push(memory.download(&layer.ssm, config.inner * config.state));
        }
        Self(all.into_iter().map(Values::Computed).collect())
    }

    /// Copies the state into an empty `state`, whose KV cache type must be wide enough.
    pub fn put(&self, memory: &mut dyn Memory, config: &Config, state: &mut State) -> Result<()> {
        let cache = state.cache;
        let fits = |values: &[f32]| values.iter().all(|v| v.abs() <= cache.limit());
        let mut vectors = self.0.iter();
        let mut next = || vectors.next().map_or(&[][..], |v| v);
        for (index, layer) in state.layers.iter_mut().enumerate() {
            if let Some(kv) = &mut layer.kv {
                let (k, v) = (next(), next());
                if !fits(k) || !fits(v) {
                    return Err(Error::CacheRange { layer: index, cache: cache.name() });
                }
                memory.upload(k, &mut kv.k, 0);
                memory.upload(v, &mut kv.v, 0);
            }
            memory.upload(&transposed(next(), config.inner), &mut layer.conv, 0);
            memory.upload(next(), &mut layer.ssm, 0);
        }
        state.position = config.meta_tokens;
        Ok(())
    }
}

/// Transposes `values [rows, _]`: files store the conv state as `[inner, past]`, sessions as `[past, inner]`.
fn transposed(values: &[f32], rows: usize) -> Vec<f32> {
    let cols = values.len().checked_div(rows).unwrap_or(0);
    (0..values.len()).map(|i| values[i % rows * cols + i / rows]).collect()
}
