//! Randomly initialized checkpoints for benchmarks, exactly as fast as trained ones.

use std::{path::Path, sync::atomic::AtomicBool};

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{meta_state, tensor_type::choose};
use crate::{
    Error, Result,
    format::{
        DType,
        codec::encode_row,
        gguf::{ARCHITECTURE, Layout, Metadata, Writer},
        packed::{self, Packing},
    },
    model::{
        Config,
        tensors::{Spec, specs},
    },
};

/// Sizes that a random checkpoint can have.
pub const SHAPES: [&str; 1] = ["hymba-1.5b"];

/// Writes the checkpoint to `output`, its matrices in `dtype`, packed as the kernels read them.
pub fn random_checkpoint(shape: &str, dtype: DType, output: &Path, cancel: &AtomicBool) -> Result<()> {
    if shape != SHAPES[0] {
        return Err(Error::Request(format!("unknown shape `{shape}`; available: {}", SHAPES.join(", "))));
    }
    random_weights(&Config::hymba_1_5b(), &format!("random weights of the shape {shape}"), dtype, output, cancel)
}

/// Writes a checkpoint of any sizes, for tests; see [`random_checkpoint`].
pub fn random_weights(config: &Config, name: &str, dtype: DType, output: &Path, cancel: &AtomicBool) -> Result<()> {
    let mut metadata = Metadata::default();
    metadata.set("general.architecture", ARCHITECTURE);
    metadata.set("general.name", name);
    config.to_metadata(&mut metadata);
    let entry = |spec: &Spec| {
        let dtype = choose(spec, dtype, None).dtype;
        (spec.name.clone(), spec.shape.clone(), dtype, Packing::fastest(dtype))
    };
    let specs: Vec<Spec> =
        specs(config).into_iter().filter(|s| !s.optional || s.name.ends_with("conv1d.bias")).collect();
    let entries: Vec<_> = specs.iter().map(entry).collect();
    let layout = entries.iter().cloned().chain(meta_state::reserve(config, &mut metadata)).collect();
    let mut writer = Writer::create(output, Layout::new(metadata, layout)?, true)?;
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    for (name, shape, dtype, packing) in entries {
        let cols = *shape.last().unwrap_or(&1);
        let rows = shape.iter().product::<usize>() / cols;
        let groups = row_pool(&mut rng, &name, cols, dtype, packing)?;
        for _ in 0..rows.div_ceil(packing.stored_rows(1)) {
            Error::check_cancelled(cancel)?;
            writer.write(&groups[rng.random_range(0..groups.len())])?;
        }
    }
    if config.meta_tokens > 0 {
        meta_state::write(&mut writer, config, None, cancel)?;
    }
    writer.finish()
}

/// Returns some encoded rows, or groups of packed ones, that the tensor's are drawn from.
fn row_pool(rng: &mut impl Rng, name: &str, cols: usize, dtype: DType, packing: Packing) -> Result<Vec<Vec<u8>>> {
    const GROUPS: usize = 16;
    let lanes = packing.stored_rows(1);
    let spread = (3.0 / cols as f32).sqrt(); // a product with values of variance 1 has variance 1
    let mut value = |i: usize| match name {
        n if n.ends_with("ssm_a") => -((i % cols + 1) as f32),
        n if n.ends_with("norm.weight") || n.ends_with("ssm_d") => 1.0,
        n if n.ends_with("ssm_dt.bias") => rng.random_range(-6.0..-2.0),
        n if n.contains("down") || n.contains("out_proj") => rng.random_range(-spread..spread) / 8.0,
        n if n.contains("embd") => rng.random_range(-0.03..0.03),
        _ => rng.random_range(-spread..spread),
    };
    (0..GROUPS)
        .map(|_| {
            let values: Vec<f32> = (0..lanes * cols).map(&mut value).collect();
            let row = dtype.row_bytes(cols).unwrap_or(0);
            let mut plain = vec![0; lanes * row];
            for (values, bytes) in values.chunks(cols).zip(plain.chunks_mut(row)) {
                encode_row(dtype, values, bytes)
                    .map_err(|_| Error::Request(format!("{} cannot hold the weights of {name}", dtype.name())))?;
            }
            if packing == Packing::Plain {
                return Ok(plain);
            }
            let mut group = vec![0; plain.len()];
            packed::pack(dtype, &plain, &mut group);
            Ok(group)
        })
        .collect()
}
