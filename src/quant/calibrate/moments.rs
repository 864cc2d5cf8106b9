//! The importance matrix: second moments of each matrix's inputs by column, which weight the errors in that column.
//! Saved as GGUF, in the format of llama.cpp.

use std::{collections::BTreeMap, path::Path};

use crate::{
    Error, Result,
    backend::MatRef,
    format::{
        DType, check_output,
        codec::decode_row,
        gguf::{Gguf, Layout, Metadata, Writer},
        packed::Packing,
    },
    model::tensors::{Role, Spec},
};

/// The sums of one matrix.
struct Sums {
    /// The tensor's name.
    name: String,
    /// Σ x² of each column.
    squares: Vec<f32>,
    /// Number of inputs.
    count: f32,
}

/// The second moments of the inputs of a model's matrices.
pub struct Moments {
    /// By tensor id.
    sums: BTreeMap<usize, Sums>,
    /// The name of the calibration text.
    dataset: String,
    /// Tokens per sequence.
    context: usize,
    /// Number of sequences.
    texts: usize,
}

const SQUARES: &str = ".in_sum2";
const COUNTS: &str = ".counts";

impl Moments {
    /// Returns empty sums for `texts` sequences of `context` tokens from `dataset`.
    pub fn new(dataset: &str, context: usize, texts: usize) -> Self {
        Self { sums: BTreeMap::new(), dataset: dataset.to_owned(), context, texts }
    }

    /// Adds inputs of the matrix `spec`.
    pub fn add(&mut self, spec: &Spec, x: MatRef<'_>) {
        let none = || Sums { name: spec.name.clone(), squares: vec![0.0; x.cols], count: 0.0 };
        let sums = self.sums.entry(spec.id).or_insert_with(none);
        let values = &x.buffer.f32()[x.start..];
        for t in 0..x.rows {
            let row = &values[t * x.stride..][..x.cols];
            sums.squares.iter_mut().zip(row).for_each(|(sum, v)| *sum += v * v);
        }
        sums.count += x.rows as f32;
    }

    /// Returns the importance of each column of the matrix `spec`, if known.
    pub fn importance(&self, spec: &Spec) -> Option<Vec<f32>> {
        let Sums { squares, count, .. } = self.sums.get(&spec.id)?;
        // A column that was always zero gets a small weight, so that its values are kept.
        let mean: f32 = squares.iter().sum::<f32>() / squares.len() as f32;
        (mean > 0.0).then(|| squares.iter().map(|s| (s + 1e-4 * mean) / count).collect())
    }

    /// Writes the file at `path`, which is replaced if `force`.
    pub fn save(&self, path: &Path, force: bool) -> Result<()> {
        check_output(path, force)?;
        let mut metadata = Metadata::default();
        metadata.set("general.type", "imatrix");
        metadata.set("imatrix.datasets", vec![self.dataset.clone()]);
        metadata.set("imatrix.chunk_count", self.texts);
        metadata.set("imatrix.chunk_size", self.context);
        let mut sums: Vec<&Sums> = self.sums.values().collect();
        sums.sort_by_key(|sums| &sums.name);
        let tensors = sums.iter().flat_map(|Sums { name, squares, .. }| {
            let entry = |suffix, cols| (format!("{name}{suffix}"), vec![1, cols], DType::F32, Packing::Plain);
            [entry(SQUARES, squares.len()), entry(COUNTS, 1)]
        });
        let mut writer = Writer::create(path, Layout::new(metadata, tensors.collect())?, force)?;
        for Sums { squares, count, .. } in sums {
            writer.write(bytemuck::cast_slice(squares))?;
            writer.write(&count.to_le_bytes())?;
        }
        writer.finish()
    }

    /// Reads the file at `path`, made for a model with the tensors `specs`.
    pub fn load(path: &Path, specs: &[&Spec]) -> Result<Self> {
        let gguf = Gguf::open(path)?;
        let bad = |problem: String| Error::Calibration { file: gguf.file.clone(), problem };
        if gguf.metadata.string("general.type") != Some("imatrix") {
            return Err(bad("is not a calibration: its key general.type is not `imatrix`".into()));
        }
        let mut sums = BTreeMap::new();
        for tensor in &gguf.tensors {
            let Some(name) = tensor.name.strip_suffix(SQUARES) else { continue };
            let Some(spec) = specs.iter().find(|s| s.name == name) else {
                return Err(bad(format!("is for another model: this one has no tensor `{name}`")));
            };
            let cols = spec.shape.last().copied().unwrap_or(0);
            let counts = gguf.tensor(&format!("{name}{COUNTS}"));
            let read = |tensor: &crate::format::gguf::Tensor, len: usize| {
                let fits = tensor.dtype == DType::F32 && tensor.dims.iter().product::<usize>() == len;
                fits.then(|| {
                    let mut values = vec![0.0; len];
                    decode_row(DType::F32, &tensor.data, &mut values);
                    values
                })
            };
            let squares = read(tensor, cols)
                .ok_or_else(|| bad(format!("is for another model: `{name}` has {cols} columns in this one")))?;
            let count = counts.and_then(|counts| read(counts, 1)).map(|counts| counts[0]);
            let usable = |v: &f32| v.is_finite() && *v >= 0.0;
            match count {
                Some(count) if count > 0.0 && usable(&count) && squares.iter().all(usable) => {
                    sums.insert(spec.id, Sums { name: name.to_owned(), squares, count });
                }
                _ => return Err(bad(format!("is damaged: the sums of `{name}` are unusable"))),
            }
        }
        if let Some(spec) =
            specs.iter().find(|s| s.name.starts_with("blk.") && s.role == Role::Matrix && !sums.contains_key(&s.id))
        {
            return Err(bad(format!("lacks the tensor `{}` of this model", spec.name)));
        }
        gguf.bytes.check()?; // half of it may be of another file
        let size = |key: &str| gguf.metadata.uint(key).and_then(|v| usize::try_from(v).ok()).unwrap_or(0);
        let dataset = gguf.metadata.strings("imatrix.datasets").and_then(|names| names.get(0)).map(String::from);
        Ok(Self {
            sums,
            dataset: dataset.unwrap_or_default(),
            context: size("imatrix.chunk_size"),
            texts: size("imatrix.chunk_count"),
        })
    }
}
