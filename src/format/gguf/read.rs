//! The reader. Every length, count and offset is checked against the file's size before allocating, so that a damaged
//! or hostile file causes an error message and nothing else.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
};

use super::{I8, MAGIC, Metadata, Strings, VERSION, Value};
use crate::{
    Error, Result,
    format::{
        Blob, DType,
        packed::{self, GROUP, Packing},
    },
    limits,
};

/// Default of `general.alignment`.
const DEFAULT_ALIGNMENT: u64 = 32;

/// A tensor of the file.
#[derive(Clone)]
pub struct Tensor {
    /// Its name, unique in the file.
    pub name: String,
    /// Sizes, slowest first: `[rows, columns]`.
    pub dims: Vec<usize>,
    /// How the values are stored.
    pub dtype: DType,
    /// The order of the stored blocks.
    pub packing: Packing,
    /// Where the values start in the file, in bytes.
    pub offset: u64,
    /// The stored values.
    pub data: Blob,
}

/// An open file.
#[derive(Clone)]
pub struct Gguf {
    /// The file's name, for messages.
    pub file: String,
    /// The whole file.
    pub bytes: Blob,
    /// Its keys and values.
    pub metadata: Metadata,
    /// Its tensors, in the file's order.
    pub tensors: Vec<Tensor>,
    index: HashMap<String, usize>,
}

impl Gguf {
    /// Maps the file at `path` and reads its header.
    pub fn open(path: &Path) -> Result<Self> {
        Self::parse(&path.display().to_string(), Blob::map(path)?)
    }

    /// Reads the header of `blob`, a whole GGUF file; `file` is its name for messages.
    pub fn parse(file: &str, blob: Blob) -> Result<Self> {
        let size = blob.len();
        let mut header = Header {
            file,
            bytes: &blob[..size.min(limits::GGUF_HEADER)],
            at: 0,
            capped: size > limits::GGUF_HEADER,
            items: 0,
        };
        header.magic_and_version()?;
        let tensor_count = header.u64("the number of tensors")?;
        let key_count = header.u64("the number of keys")?;
        let metadata = header.metadata(key_count)?;
        let alignment = alignment(&metadata).map_err(|problem| header.bad(problem))?;
        let infos = header.tensor_infos(tensor_count, alignment, &metadata)?;
        let data_start = (header.at as u64).next_multiple_of(alignment);

        let mut tensors = Vec::with_capacity(infos.len());
        let mut spans = Vec::with_capacity(infos.len());
        for info in infos {
            let locate = |offset: u64| {
                let start = usize::try_from(offset.checked_add(data_start)?).ok()?;
                blob.slice(start..start.checked_add(info.bytes)?).map(|data| (start, data))
            };
            let Some((start, data)) = locate(info.offset) else {
                return Err(header.bad(format!(
                    "is truncated: tensor `{}` ends past the end of the file; download or convert it again",
                    info.name
                )));
            };
            spans.push((start, start + info.bytes, tensors.len()));
            let TensorInfo { name, dims, dtype, packing, .. } = info;
            tensors.push(Tensor { name, dims, dtype, packing, offset: start as u64, data });
        }
        spans.sort_unstable();
        if let Some(pair) = spans.windows(2).find(|pair| pair[0].1 > pair[1].0) {
            let (a, b) = (&tensors[pair[0].2].name, &tensors[pair[1].2].name);
            return Err(
                header.bad(format!("is damaged: tensors `{a}` and `{b}` overlap; download or convert it again"))
            );
        }
        Ok(Self::from_parts(file, blob, metadata, tensors))
    }

    /// Returns a file of tensors in memory, with distinct names.
    pub(crate) fn in_memory(file: &str, tensors: Vec<Tensor>) -> Self {
        Self::from_parts(file, Blob::from_static(&[]), Metadata::default(), tensors)
    }

    fn from_parts(file: &str, bytes: Blob, metadata: Metadata, tensors: Vec<Tensor>) -> Self {
        let index = tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
        Self { file: file.into(), bytes, metadata, tensors, index }
    }

    /// Returns the tensor called `name`.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.index.get(name).map(|&i| &self.tensors[i])
    }
}

fn alignment(metadata: &Metadata) -> std::result::Result<u64, String> {
    const KEY: &str = "general.alignment";
    if metadata.get(KEY).is_none() {
        return Ok(DEFAULT_ALIGNMENT);
    }
    match metadata.uint(KEY) {
        Some(a) if a.is_power_of_two() && (8..=limits::ALIGNMENT).contains(&a) => Ok(a),
        _ => Err(format!(
            "has an unusable {KEY}: a power of two from 8 to {} is needed; convert it again",
            limits::ALIGNMENT
        )),
    }
}

struct TensorInfo {
    name: String,
    dims: Vec<usize>,
    dtype: DType,
    packing: Packing,
    offset: u64,
    bytes: usize,
}

/// A cursor over the header.
struct Header<'a> {
    file: &'a str,
    bytes: &'a [u8],
    at: usize,
    capped: bool,
    /// Total array items so far.
    items: usize,
}

impl<'a> Header<'a> {
    fn bad(&self, problem: impl Into<String>) -> Error {
        Error::format(self.file, problem)
    }

    fn take(&mut self, n: usize, item: &str) -> Result<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        match rest.get(..n) {
            Some(taken) => {
                self.at += n;
                Ok(taken)
            }
            None if self.capped => {
                Err(self
                    .bad(format!("is damaged: {item} lies beyond the first {} MB", limits::GGUF_HEADER / limits::MB)))
            }
            None => {
                Err(self
                    .bad(format!("is truncated: {item} runs past the end of the file; download or convert it again")))
            }
        }
    }

    fn array<const N: usize>(&mut self, item: &str) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N, item)?);
        Ok(bytes)
    }

    fn u32(&mut self, item: &str) -> Result<u32> {
        self.array(item).map(u32::from_le_bytes)
    }

    fn u64(&mut self, item: &str) -> Result<u64> {
        self.array(item).map(u64::from_le_bytes)
    }

    /// Returns the bytes of `count` items of `size` bytes each.
    fn items(&mut self, count: u64, size: usize, item: &str) -> Result<&'a [u8]> {
        // A product that overflows usize is past the end of any file.
        let bytes = usize::try_from(count).ok().and_then(|n| n.checked_mul(size)).unwrap_or(usize::MAX);
        self.take(bytes, item)
    }

    fn str(&mut self, item: &str) -> Result<&'a str> {
        let len = self.u64(item)?;
        let bytes = self.items(len, 1, item)?;
        std::str::from_utf8(bytes).map_err(|_| self.bad(format!("is damaged: {item} is not UTF-8 text")))
    }

    /// Reads a key or tensor name: short and printable, so that messages can quote it.
    fn name(&mut self, item: &str) -> Result<&'a str> {
        let name = self.str(item)?;
        if name.len() > limits::NAME || name.chars().any(char::is_control) {
            let limit = limits::NAME;
            return Err(self.bad(format!("is damaged: {item} is longer than {limit} bytes or unprintable")));
        }
        Ok(name)
    }

    /// Rejects a count of items that exceeds the remaining bytes, at `min_bytes` bytes per item.
    fn check_count(&self, count: u64, min_bytes: u64, item: &str) -> Result<usize> {
        let max_count = (self.bytes.len() - self.at) as u64 / min_bytes;
        if count > max_count {
            return Err(self.bad(format!(
                "is truncated or damaged: it declares {count} {item}, more than it has bytes for; \
                 download or convert it again"
            )));
        }
        Ok(count as usize)
    }

    fn magic_and_version(&mut self) -> Result<()> {
        let start = &self.bytes[..self.bytes.len().min(8)];
        if !start.starts_with(&MAGIC) {
            if start.starts_with(b"version ") {
                return Err(self.bad(
                    "is not a GGUF file but a Git LFS pointer; fetch the file itself, for example with `git lfs pull`",
                ));
            }
            return Err(Error::NotGguf { file: self.file.into(), problem: "is not a GGUF file" });
        }
        self.at = MAGIC.len();
        let version = self.u32("the version")?;
        if version.swap_bytes() == VERSION {
            return Err(self.bad("is a big-endian GGUF file; only little-endian files are supported"));
        }
        if version != VERSION {
            return Err(
                self.bad(format!("is GGUF version {version}, but version {VERSION} is needed; convert it again"))
            );
        }
        Ok(())
    }

    fn metadata(&mut self, count: u64) -> Result<Metadata> {
        // The shortest entry: an empty key's length, a type, one byte.
        let count = self.check_count(count, 13, "keys")?;
        let mut seen = HashSet::with_capacity(count);
        let mut pairs = Vec::with_capacity(count);
        for _ in 0..count {
            let key = self.name("a key")?;
            if !seen.insert(key) {
                return Err(self.bad(format!("is damaged: the key `{key}` appears twice")));
            }
            pairs.push((key.to_owned(), self.value(key)?));
        }
        Ok(Metadata::from_distinct(pairs))
    }

    fn value(&mut self, key: &str) -> Result<Value> {
        let item = format!("the value of `{key}`");
        let item = item.as_str();
        macro_rules! number {
            ($from:ty, $kind:ident, $to:ty) => {
                Value::$kind(<$to>::from(<$from>::from_le_bytes(self.array(item)?)))
            };
        }
        Ok(match self.u32(item)? {
            0 => number!(u8, Uint, u64),
            1 => number!(i8, Int, i64),
            2 => number!(u16, Uint, u64),
            3 => number!(i16, Int, i64),
            4 => number!(u32, Uint, u64),
            5 => number!(i32, Int, i64),
            6 => number!(f32, Float, f64),
            7 => {
                let [byte] = self.array(item)?;
                Value::Bool(self.bool(byte, key)?)
            }
            8 => Value::String(self.str(item)?.to_owned()),
            9 => self.array_value(key, item)?,
            10 => number!(u64, Uint, u64),
            11 => number!(i64, Int, i64),
            12 => number!(f64, Float, f64),
            other => return Err(self.bad(format!("is damaged: {item} has the unknown type {other}"))),
        })
    }

    fn array_value(&mut self, key: &str, item: &str) -> Result<Value> {
        let kind = self.u32(item)?;
        let count = self.u64(item)?;
        self.items = self.items.saturating_add(self.check_count(count, 1, "array items")?);
        if self.items > limits::ARRAY_ITEMS {
            let limit = limits::ARRAY_ITEMS;
            return Err(
                self.bad(format!("has arrays of {} items or more in its metadata; the limit is {limit}", self.items))
            );
        }
        macro_rules! numbers {
            ($from:ty, $kind:ident, $to:ty) => {{
                let (items, _) = self.items(count, size_of::<$from>(), item)?.as_chunks();
                Value::$kind(items.iter().map(|&b| <$to>::from(<$from>::from_le_bytes(b))).collect())
            }};
        }
        Ok(match kind {
            0 => numbers!(u8, Uints, u64),
            1 => numbers!(i8, Ints, i64),
            2 => numbers!(u16, Uints, u64),
            3 => numbers!(i16, Ints, i64),
            4 => numbers!(u32, Uints, u64),
            5 => numbers!(i32, Ints, i64),
            6 => numbers!(f32, Floats, f64),
            7 => {
                let bytes = self.items(count, 1, item)?;
                Value::Bools(bytes.iter().map(|&b| self.bool(b, key)).collect::<Result<_>>()?)
            }
            8 => {
                let count = self.check_count(count, 8, "strings")?;
                let mut strings = Strings::default();
                for _ in 0..count {
                    strings.push(self.str(item)?);
                }
                Value::Strings(strings)
            }
            9 => return Err(self.bad(format!("has an array of arrays at `{key}`, which is not supported"))),
            10 => numbers!(u64, Uints, u64),
            11 => numbers!(i64, Ints, i64),
            12 => numbers!(f64, Floats, f64),
            other => return Err(self.bad(format!("is damaged: {item} is an array of the unknown type {other}"))),
        })
    }

    fn bool(&self, byte: u8, key: &str) -> Result<bool> {
        match byte {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.bad(format!("is damaged: a boolean of `{key}` is {byte}, neither 0 nor 1"))),
        }
    }

    fn tensor_infos(&mut self, count: u64, alignment: u64, metadata: &Metadata) -> Result<Vec<TensorInfo>> {
        // The shortest entry: an empty name's length, the number of dimensions, one of them, type and offset.
        let count = self.check_count(count, 32, "tensors")?;
        let mut index = packed::read_index(metadata).map_err(|problem| self.bad(problem))?;
        let mut seen = HashSet::with_capacity(count);
        let mut infos = Vec::with_capacity(count);
        for _ in 0..count {
            let name = self.name("a tensor's name")?;
            if !seen.insert(name) {
                return Err(self.bad(format!("is damaged: the tensor `{name}` appears twice")));
            }
            let item = format!("the entry of tensor `{name}`");
            let dim_count = self.u32(&item)?;
            if !(1..=limits::DIMENSIONS).contains(&dim_count) {
                return Err(
                    self.bad(format!("is damaged: tensor `{name}` has {dim_count} dimensions; it must have 1 to 4"))
                );
            }
            let mut dims = Vec::with_capacity(limits::DIMENSIONS as usize);
            for _ in 0..dim_count {
                match usize::try_from(self.u64(&item)?) {
                    Ok(0) => return Err(self.bad(format!("is damaged: tensor `{name}` has a dimension of 0"))),
                    Ok(dim) => dims.insert(0, dim),
                    Err(_) => return Err(self.bad(format!("is damaged: tensor `{name}` is larger than memory"))),
                }
            }
            let id = self.u32(&item)?;
            let packed = index.remove(name).filter(|_| id == I8);
            let (dtype, packing) = match packed {
                Some((dtype, ..)) => (dtype, Packing::X8),
                None => (DType::from_ggml_id(id).ok_or_else(|| self.unknown_type(name, id, metadata))?, Packing::Plain),
            };
            let offset = self.u64(&item)?;
            if !offset.is_multiple_of(alignment) {
                return Err(self.bad(format!(
                    "is damaged: tensor `{name}` starts at {offset}, which is not a multiple of the alignment {alignment}"
                )));
            }
            let damaged = |problem: String| self.bad(format!("is damaged: tensor `{name}` {problem}"));
            let shape = packed.map_or(dims.clone(), |(_, rows, cols)| vec![rows, cols]);
            let bytes = byte_len(&shape, dtype, packing).map_err(damaged)?;
            if packing == Packing::X8 {
                let groups = shape[0].div_ceil(GROUP);
                if dims != [groups, bytes / groups] {
                    return Err(damaged(format!("has {dims:?} bytes for packed rows and columns of {shape:?}")));
                }
            }
            infos.push(TensorInfo { name: name.to_owned(), dims: shape, dtype, packing, offset, bytes });
        }
        if let Some(name) = index.keys().next() {
            return Err(self.bad(format!("is damaged: it declares a packed tensor `{name}` that is missing")));
        }
        Ok(infos)
    }

    fn unknown_type(&self, tensor: &str, id: u32, metadata: &Metadata) -> Error {
        let name = GGML_NAMES.get(id as usize).copied().filter(|name| !name.is_empty()).unwrap_or("unknown");
        let known = DType::ALL.map(DType::name).join(", ");
        let whose = match metadata.string("general.architecture") {
            Some(other) if other != super::ARCHITECTURE => {
                format!(", and the model is of architecture `{other}`, not `{}`", super::ARCHITECTURE)
            }
            _ => String::new(),
        };
        self.bad(format!("stores tensor `{tensor}` as unsupported type {name} ({id}); supported: {known}{whose}"))
    }
}

/// Returns the bytes of a tensor of `dims` (slowest first), or the problem with them as a verb phrase.
pub(super) fn byte_len(dims: &[usize], dtype: DType, packing: Packing) -> std::result::Result<usize, String> {
    let (&cols, outer) = dims.split_last().ok_or("has no dimensions")?;
    let row = dtype.row_bytes(cols).ok_or_else(|| {
        format!(
            "has rows of {cols} values, which is not a multiple of the {} values in a block of {dtype}",
            dtype.block_len()
        )
    })?;
    let rows = outer.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    let stored = rows.filter(|&n| n <= isize::MAX as usize).map(|n| packing.stored_rows(n));
    stored
        .and_then(|rows| rows.checked_mul(row))
        .filter(|&bytes| bytes <= isize::MAX as usize)
        .ok_or_else(|| "is larger than memory".into())
}

/// Names of ggml's tensor types by number, for messages; empty: withdrawn.
const GGML_NAMES: [&str; 41] = [
    "F32", "F16", "Q4_0", "Q4_1", "", "", "Q5_0", "Q5_1", "Q8_0", "Q8_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
    "Q8_K", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS", "I8", "I16", "I32", "I64",
    "F64", "IQ1_M", "BF16", "", "", "", "TQ1_0", "TQ2_0", "", "", "", "MXFP4", "NVFP4",
];
