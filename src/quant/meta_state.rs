//! The state after the meta tokens, computed from the weights and stored after them.

use std::{num::NonZeroUsize, sync::atomic::AtomicBool};

use crate::{
    Result,
    backend::Device,
    format::{
        DType,
        gguf::{Metadata, Writer},
        packed::Packing,
    },
    forward::{LayerView, MetaPass},
    model::{Config, Weights, tensors::meta_state_specs},
};

/// The key for the layout version of the stored state after the meta tokens.
pub(super) const KEY: &str = "hymba.meta_state.version";
/// The version of its layout.
const VERSION: u32 = 1;

/// Adds the state's key to `metadata` and returns its tensors' entries for a [`Layout`](crate::format::gguf::Layout);
/// none if the model has no meta tokens.
pub(super) fn reserve(config: &Config, metadata: &mut Metadata) -> Vec<(String, Vec<usize>, DType, Packing)> {
    if config.meta_tokens == 0 {
        return Vec::new();
    }
    metadata.set(KEY, VERSION);
    // A one-tap convolution has no state, and GGUF allows no empty tensors.
    let stored = meta_state_specs(config).into_iter().filter(|(_, dims)| !dims.contains(&0));
    stored.map(|(name, dims)| (name, dims.to_vec(), DType::F32, Packing::Plain)).collect()
}

/// Computes the state from the weights written to `writer`, and writes it after them. The pages of each layer are
/// released afterwards, so that models larger than memory can be processed.
pub(super) fn write(
    writer: &mut Writer,
    config: &Config,
    threads: Option<NonZeroUsize>,
    cancel: &AtomicBool,
) -> Result<()> {
    let weights = Weights::from_gguf(&writer.read_back()?, config)?;
    let release = &mut |view: LayerView<'_>| {
        weights.layers[view.layer].matrices().for_each(|m| m.data.release());
        Ok(())
    };
    let (backend, weights) = (&mut Device::cpu_only(threads), &weights);
    let pass = MetaPass { backend, config, weights, cancel: Some(cancel) };
    let state = pass.run(Some(release))?.into_vectors();
    state.iter().try_for_each(|values| writer.write(bytemuck::cast_slice(values)))
}
