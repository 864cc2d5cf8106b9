//! Small models decoded from the input, so that most inputs have a valid header: prefill, a few tokens, and a restore.

use std::sync::atomic::AtomicBool;

use hymba::{
    engine::{Model, Session, SessionOptions},
    format::{
        Blob, CacheType, DType,
        codec::encode_row,
        gguf::{Gguf, Layout, Metadata, Value},
        packed::{GROUP, Packing, pack},
    },
    model::{
        Activation, Config,
        tensors::{Role, meta_state_specs, specs},
    },
    sample::{Sampler, SamplingParams},
};

/// Choices, one byte each; zeros after the end of the input.
pub struct Source<'a>(pub &'a [u8]);

impl Source<'_> {
    pub fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    pub fn below(&mut self, n: usize) -> usize {
        usize::from(self.byte()) % n
    }

    fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// Returns an unusual value for a key.
    fn unusual_value(&mut self) -> Value {
        let n = self.pick(&[0, 1, 2, 31, 1 << 20, (1 << 20) + 1, u64::from(u32::MAX), u64::MAX]);
        match self.below(8) {
            0 | 1 => Value::Uint(n),
            2 => Value::Int(-1),
            3 => Value::Float(self.pick(&[0.0, -1.0, f64::NAN, f64::INFINITY, 1e-300, 1e300])),
            4 => Value::Bool(self.flag()),
            5 => Value::String(self.pick(&["", "silu", "relu2", "rms", "hymba", "q4_0x8"]).into()),
            6 => Value::Uints(vec![n; self.below(5)]),
            _ => Value::Bools(vec![self.flag(); self.below(5)]),
        }
    }
}

/// Choices for one layer with a head width of 32 and packed matrices.
pub const PACKED: [u8; 40] = {
    let mut choices = [0; 40];
    (choices[0], choices[2], choices[3], choices[4]) = (1, 3, 2, 1);
    let mut i = 18;
    while i < 40 {
        choices[i] = 3; // quantized, packed
        i += 1;
    }
    choices
};

pub fn config(s: &mut Source<'_>) -> Config {
    let heads = s.pick(&[2, 1, 3, 4, 8, 48]);
    let shared = s.pick(&[1, 2, 4, 48]);
    let (key_dim, value_dim) = (s.pick(&[4, 2, 8, 32, 6, 1]), s.pick(&[8, 4, 32, 3, 1]));
    let layers = s.pick(&[2, 1, 3]);
    let window = s.pick(&[Some(3), None, Some(1), Some(40)]);
    let windowed: Vec<bool> = (0..layers).map(|l| l > 0 && window.is_some() && !s.flag()).collect();
    let mut kv_source: Vec<usize> = (0..layers).collect();
    for l in 1..layers {
        if s.flag() && windowed[l] == windowed[l - 1] {
            kv_source[l] = kv_source[l - 1];
        }
    }
    Config {
        vocab: s.pick(&[12, 1, 32, 300]),
        context_length: 64,
        hidden: heads * key_dim,
        layers,
        ffn: s.pick(&[6, 0, 32, 1]),
        activation: s.pick(&[Activation::Silu, Activation::Relu2]),
        heads,
        kv_heads: if heads.is_multiple_of(shared) { heads / shared } else { heads },
        key_dim,
        value_dim,
        rms_eps: s.pick(&[1e-6, 0.0, 1e30]),
        window,
        windowed,
        kv_source,
        qk_norm: s.flag(),
        meta_tokens: s.pick(&[2, 0, 1, 5]),
        rope: key_dim.is_multiple_of(2) && !s.flag(),
        rope_base: s.pick(&[10000.0, 1.0, 1e-30, 1e30]),
        conv_kernel: s.pick(&[4, 1, 2, 7]),
        inner: heads * value_dim,
        state: s.pick(&[3, 1, 8, 17]),
        dt_rank: s.pick(&[2, 1, 32]),
        dt_b_c_norm: !s.flag(),
    }
}

/// Returns plausible weights, or arbitrary bytes.
fn values(s: &mut Source<'_>, dtype: DType, packing: Packing, rows: usize, cols: usize, seed: &mut u32) -> Vec<u8> {
    let mut next = || {
        *seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *seed >> 16
    };
    let row = dtype.row_bytes(cols).expect("whole blocks");
    let mut plain = vec![0; packing.stored_rows(rows) * row];
    match s.byte() >> 4 {
        1 => plain.iter_mut().for_each(|byte| *byte = next() as u8),
        2 => plain.fill(0xff),
        3 => plain.fill(0),
        _ => {
            for out in plain.chunks_mut(row).take(rows) {
                let values: Vec<f32> = (0..cols).map(|_| next() as f32 / 65536.0 - 0.6).collect();
                encode_row(dtype, &values, out).expect("small values fit");
            }
        }
    }
    if packing == Packing::Plain {
        return plain;
    }
    let mut packed = vec![0; plain.len()];
    plain.chunks(GROUP * row).zip(packed.chunks_mut(GROUP * row)).for_each(|(from, to)| pack(dtype, from, to));
    packed
}

/// Returns a model file; `set_tokenizer` may add metadata.
pub fn bytes(s: &mut Source<'_>, set_tokenizer: impl FnOnce(&mut Metadata)) -> Vec<u8> {
    let config = config(s);
    let mut metadata = Metadata::default();
    metadata.set("general.architecture", "hymba");
    config.to_metadata(&mut metadata);
    set_tokenizer(&mut metadata);
    let mut seed = 1;
    let mut tensors = Vec::new();
    for spec in specs(&config) {
        if spec.optional && s.flag() {
            continue;
        }
        let (rows, cols) = match spec.shape[..] {
            [rows, cols] => (rows, cols),
            _ => (1, spec.shape[0]),
        };
        let choice = s.byte();
        let fits = |d: &DType| spec.role != Role::Exact && d.row_bytes(cols).is_some();
        let dtype = Some(DType::ALL[usize::from(choice) % 16 % 10]).filter(fits).unwrap_or(DType::F32);
        let packed = Packing::fits(dtype) && choice & 1 == 1;
        let packing = if packed { Packing::X8 } else { Packing::Plain };
        let data = values(&mut Source(&[choice]), dtype, packing, rows, cols, &mut seed);
        tensors.push((spec.name, spec.shape, dtype, packing, data));
    }
    if config.meta_tokens > 0 && s.flag() {
        metadata.set("hymba.meta_state.version", 1u32);
        for (name, [rows, cols]) in meta_state_specs(&config).into_iter().filter(|(_, shape)| !shape.contains(&0)) {
            let data = values(s, DType::F32, Packing::Plain, rows, cols, &mut seed);
            tensors.push((name, vec![rows, cols], DType::F32, Packing::Plain, data));
        }
    }
    for _ in 0..s.below(4) {
        let keys: Vec<String> = metadata.iter().map(|(key, _)| key.into()).collect();
        let (key, value) = (s.pick(&keys.iter().map(String::as_str).collect::<Vec<_>>()), s.unusual_value());
        if s.flag() { metadata.remove(key) } else { metadata.set(key, value) }
    }
    let infos = tensors.iter().map(|(name, dims, dtype, packing, _)| (name.clone(), dims.clone(), *dtype, *packing));
    let layout = Layout::new(metadata, infos.collect()).expect("whole blocks");
    if layout.size > 32 << 20 {
        return Vec::new(); // with a large alignment, many small tensors exceed the size limit
    }
    let mut file = layout.header().to_vec();
    file.resize(layout.size as usize, 0);
    for (slot, (.., data)) in layout.slots.iter().zip(&tensors) {
        file[slot.offset as usize..][..data.len()].copy_from_slice(data);
    }
    for _ in 0..s.below(6) {
        let at = (usize::from(s.byte()) << 8 | usize::from(s.byte())) % file.len();
        file[at] ^= s.byte();
    }
    file
}

pub fn run(data: &[u8]) -> bool {
    let (choices, text) = data.split_at(data.len().saturating_sub(12).max(data.len() / 2));
    let file = bytes(&mut Source(choices), |_| ());
    let Ok(gguf) = Gguf::parse("model.gguf", Blob::from_vec(file)) else { return false };
    let Ok(model) = Model::from_gguf(gguf) else { return false };
    generate(&model, &mut Source(text)).is_ok()
}

/// Generates some tokens twice from the same checkpoint: both texts must be equal.
fn generate(model: &Model, s: &mut Source<'_>) -> hymba::Result<()> {
    let options = SessionOptions {
        context: Some(12 - s.below(12)),
        threads: 1.try_into().ok(),
        cache: s.pick(&CacheType::ALL),
        stored_meta_state: !s.flag(),
        chunk: s.pick(&[256, 1, 3]),
        ..SessionOptions::default()
    };
    let mut session = Session::new(model, &options)?;
    let prompt: Vec<u32> = (0..=s.below(12)).map(|_| s.byte().into()).collect();
    let params = SamplingParams::from_metadata(model.metadata(), model.file())?;
    let mut logits = session.prefill(&prompt, &AtomicBool::new(false))?.to_vec();
    let checkpoint = session.checkpoint(false)?;
    let start = logits.clone();
    let mut texts = Vec::new();
    for _ in 0..2 {
        let mut sampler = Sampler::new(params.clone(), 0);
        let mut ids = prompt.clone();
        while session.tokens() < session.context() && ids.len() < prompt.len() + 3 {
            let id = sampler.sample(&logits, &ids);
            ids.push(id);
            logits = session.decode(id)?.to_vec();
        }
        texts.push(ids);
        session.restore(&checkpoint);
        logits = start.clone();
    }
    assert_eq!(texts[0], texts[1], "the text after a restore differs");
    Ok(())
}

pub fn seeds() -> Vec<Vec<u8>> {
    let plain = vec![0; 24];
    let mut packed = PACKED.to_vec();
    packed.extend([0, 0, 0, 0, 4, 1, 2, 3, 4, 5, 6, 7]);
    let mut heads = vec![1; 37]; // one head, one layer, nothing optional
    heads.extend([0; 96]);
    vec![plain, packed, heads]
}
