//! A checkpoint of a model's sizes with random weights, to measure speed with: nothing to download, and no faster or
//! slower than a trained one.

use std::{path::Path, sync::atomic::AtomicBool};

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{meta_state, tensor_type::choose};
use crate::{
    Error, Result,
    format::{
        DType,
        codec::encode_row,
        gguf::{Layout, Metadata, Writer},
        packed::{self, GROUP, Packing},
    },
    model::{
        Config,
        tensors::{Role, Spec, specs},
    },
};

/// Sizes that a random checkpoint can have.
pub const SHAPES: [&str; 1] = ["hymba-1.5b"];

/// The keys of `shape`, as the paper (table 11) and the published configuration give the sizes.
fn metadata(shape: &str) -> Result<Metadata> {
    if shape != SHAPES[0] {
        return Err(Error::Request(format!("no shape `{shape}` is known; there is {}", SHAPES.join(", "))));
    }
    const GLOBAL: [u64; 3] = [0, 15, 31];
    // After each global layer pairs share keys and values; the first group of the second half is a triple.
    let source = |layer: u64| match layer {
        0 | 15 | 31 => layer,
        1..15 => layer - (layer - 1) % 2,
        16..19 => 16,
        _ => layer - (layer - 19) % 2,
    };
    let mut m = Metadata::default();
    m.set("general.architecture", "hymba");
    m.set("general.name", format!("random weights of the shape {shape}"));
    for (key, value) in [
        ("vocab_size", 32001u32),
        ("context_length", 8192),
        ("embedding_length", 1600),
        ("block_count", 32),
        ("feed_forward_length", 5504),
        ("attention.head_count", 25),
        ("attention.head_count_kv", 5),
        ("attention.key_length", 64),
        ("attention.value_length", 128),
        ("attention.sliding_window", 1024),
        ("meta_token_count", 128),
        ("rope.dimension_count", 64),
        ("ssm.conv_kernel", 4),
        ("ssm.inner_size", 3200),
        ("ssm.state_size", 16),
        ("ssm.time_step_rank", 100),
    ] {
        m.set(format!("hymba.{key}"), value);
    }
    m.set("hymba.feed_forward_activation", "silu");
    m.set("hymba.attention.qk_norm", "none");
    m.set("hymba.attention.layer_norm_rms_epsilon", 1e-6f32);
    m.set("hymba.rope.freq_base", 74534.83f32);
    m.set("hymba.ssm.dt_b_c_rms", true);
    m.set("hymba.attention.sliding_window_pattern", (0..32).map(|l| !GLOBAL.contains(&l)).collect::<Vec<bool>>());
    m.set("hymba.attention.kv_source", (0..32).map(source).collect::<Vec<u64>>());
    Ok(m)
}

/// Writes the checkpoint to `output`, its matrices in `dtype`, packed as the kernels read them.
pub fn random_checkpoint(shape: &str, dtype: DType, output: &Path, cancel: &AtomicBool) -> Result<()> {
    let mut metadata = metadata(shape)?;
    let config = Config::from_metadata(&metadata, shape)?;
    let place = |spec: &Spec| {
        let dtype = choose(spec, dtype, None).dtype;
        let packs = spec.role != Role::Exact && spec.shape.len() == 2 && Packing::fits(dtype);
        (spec.name.clone(), spec.shape.clone(), dtype, if packs { Packing::X8 } else { Packing::Plain })
    };
    let specs: Vec<Spec> =
        specs(&config).into_iter().filter(|s| !s.optional || s.name.ends_with("conv1d.bias")).collect();
    let places: Vec<_> = specs.iter().map(place).collect();
    let layout = places.iter().cloned().chain(meta_state::reserve(&config, &mut metadata)).collect();
    let mut writer = Writer::create(output, Layout::new(metadata, layout)?, true)?;
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    for (name, shape, dtype, packing) in places {
        let cols = *shape.last().unwrap_or(&1);
        let rows = shape.iter().product::<usize>() / cols;
        let groups = bank(&mut rng, &name, cols, dtype, packing)?;
        let lanes = if packing == Packing::X8 { GROUP } else { 1 };
        for _ in 0..rows.div_ceil(lanes) {
            writer.write(&groups[rng.random_range(0..groups.len())])?;
        }
    }
    meta_state::write(&mut writer, &config, None, cancel)?;
    writer.finish()
}

/// Some encoded rows, or groups of packed ones, that the tensor's are drawn from.
fn bank(rng: &mut impl Rng, name: &str, cols: usize, dtype: DType, packing: Packing) -> Result<Vec<Vec<u8>>> {
    const GROUPS: usize = 16;
    let lanes = if packing == Packing::X8 { GROUP } else { 1 };
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
