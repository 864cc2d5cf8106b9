//! The state after the meta tokens, computed from the weights and stored beside them.

use std::{
    num::NonZeroUsize,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use crate::{
    Error, Result,
    backend::Device,
    format::gguf::Gguf,
    forward::{LayerView, MetaPass},
    model::{Config, Weights},
};

/// The key that says that the state after the meta tokens is stored.
pub(super) const KEY: &str = "hymba.meta_state.version";
/// The version of its layout.
pub(super) const VERSION: u32 = 1;

/// Returns a vector for each of `tensors::meta_state_specs`, computed from the weights in the file at `path`. Each layer's
/// pages are released when the layer is done, so that a model of any size passes through little memory.
pub(super) fn compute(
    path: &Path,
    config: &Config,
    threads: Option<NonZeroUsize>,
    cancel: &AtomicBool,
) -> Result<Vec<Vec<f32>>> {
    let weights = Weights::from_gguf(&Gguf::open(path)?, config)?;
    let release = &mut |view: LayerView<'_>| {
        weights.layers[view.layer].matrices().for_each(|m| m.data.release());
        if cancel.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { Ok(()) }
    };
    let pass = MetaPass { backend: &mut Device::cpu_only(threads), config, weights: &weights };
    Ok(pass.run(Some(release))?.into_vectors())
}
