//! The writer: computes the layout first, then streams the tensors in order.

use std::{io::Write, path::Path};

use super::{ALIGNMENT, Gguf, I8, MAGIC, Metadata, VERSION, Value, read::byte_len};
use crate::{
    Error, Result,
    format::{
        AtomicFile, Blob, DType, Privacy, open_file,
        packed::{self, GROUP, Packing},
    },
};

/// A tensor's entry in a layout.
#[derive(Clone, Debug)]
pub struct Slot {
    /// Its name.
    pub name: String,
    /// Sizes, slowest first: `[rows, columns]`.
    pub dims: Vec<usize>,
    /// How the values are stored.
    pub dtype: DType,
    /// The order of the stored blocks.
    pub packing: Packing,
    /// Where the values start in the file, in bytes.
    pub offset: u64,
    /// Bytes of the values.
    pub bytes: u64,
}

/// The layout of a file: everything but the tensors' values.
pub struct Layout {
    header: Vec<u8>,
    /// The tensors in file order.
    pub slots: Vec<Slot>,
    /// The file's length in bytes.
    pub size: u64,
}

impl Layout {
    /// Computes the layout of a file with these keys (`general.alignment` and `hymba.packed.*` are set here) and
    /// tensors: name, dimensions (slowest first), type, packing. Fails if a tensor cannot be stored in its type.
    pub fn new(mut metadata: Metadata, tensors: Vec<(String, Vec<usize>, DType, Packing)>) -> Result<Self> {
        let aligned = |n: u64| n.next_multiple_of(ALIGNMENT as u64);
        let packed = tensors.iter().filter(|t| t.3 == Packing::X8);
        packed::write_index(
            &mut metadata,
            packed.map(|(name, dims, dtype, _)| (name.as_str(), *dtype, dims.as_slice())),
        );
        metadata.remove("general.alignment");
        metadata.set("general.alignment", ALIGNMENT);
        let mut header = Vec::new();
        header.extend(MAGIC);
        header.extend(VERSION.to_le_bytes());
        header.extend((tensors.len() as u64).to_le_bytes());
        header.extend((metadata.iter().len() as u64).to_le_bytes());
        for (key, value) in metadata.iter() {
            put_str(&mut header, key);
            put_value(&mut header, value);
        }
        let mut slots = Vec::with_capacity(tensors.len());
        let mut offset = 0u64;
        for (name, dims, dtype, packing) in tensors {
            let fail = |e: String| Error::Request(format!("tensor `{name}` {e}"));
            let bytes = byte_len(&dims, dtype, packing).map_err(fail)? as u64;
            // Other readers must not misread permuted blocks: they see bytes, one group per row.
            let (id, seen) = match packing {
                Packing::Plain => (dtype.ggml_id(), dims.clone()),
                Packing::X8 => {
                    let groups = dims[0].div_ceil(GROUP);
                    (I8, vec![groups, bytes as usize / groups])
                }
            };
            put_str(&mut header, &name);
            header.extend((seen.len() as u32).to_le_bytes());
            for &dim in seen.iter().rev() {
                header.extend((dim as u64).to_le_bytes());
            }
            header.extend(id.to_le_bytes());
            header.extend(offset.to_le_bytes());
            slots.push(Slot { name, dims, dtype, packing, offset, bytes });
            offset = aligned(offset + bytes);
        }
        header.resize(aligned(header.len() as u64) as usize, 0);
        let start = header.len() as u64;
        for slot in &mut slots {
            slot.offset += start;
        }
        Ok(Self { header, slots, size: start + offset })
    }

    /// Returns the header, up to the tensors' values.
    pub fn header(&self) -> &[u8] {
        &self.header
    }
}

/// Write size: the page cache uses large pages only for writes of whole ones.
const WRITE_SIZE: usize = 2 << 20;

/// Writes a file with a layout. If dropped before [`finish`](Self::finish), it leaves nothing.
pub struct Writer {
    file: AtomicFile,
    slots: std::vec::IntoIter<Slot>,
    size: u64,
    /// Bytes missing of the current tensor.
    lacking: u64,
    position: u64,
    /// Buffered bytes before `position`.
    gathered: Vec<u8>,
}

impl Writer {
    /// Starts writing the file `path`. An existing one is rejected unless `force`.
    pub fn create(path: &Path, layout: Layout, force: bool) -> Result<Self> {
        let mut file = AtomicFile::create(path, force, Privacy::Shared)?;
        file.file().set_len(layout.size).map_err(|e| file.error(e))?;
        let (position, gathered) = (layout.header.len() as u64, layout.header);
        Ok(Self { file, slots: layout.slots.into_iter(), size: layout.size, lacking: 0, position, gathered })
    }

    /// Writes the next bytes of the current tensor, or the first of the next one. A write must not cross tensors.
    pub fn write(&mut self, mut piece: &[u8]) -> Result<()> {
        while !piece.is_empty() {
            if self.lacking == 0 {
                let Some(slot) = self.slots.next() else {
                    return Err(Error::Request("more values than the file's layout has".into()));
                };
                self.pad(slot.offset)?;
                self.lacking = slot.bytes;
            }
            let n = usize::try_from(self.lacking).unwrap_or(usize::MAX).min(piece.len());
            let (now, later) = piece.split_at(n);
            self.put(now)?;
            self.lacking -= n as u64;
            piece = later;
        }
        Ok(())
    }

    /// Returns the incomplete file at its full length; missing bytes read as zeros.
    pub fn temporary_path(&mut self) -> Result<&Path> {
        self.flush(self.gathered.len())?;
        Ok(self.file.temporary_path())
    }

    /// Returns the incomplete file under its final name.
    pub fn read_back(&mut self) -> Result<Gguf> {
        let file = open_file(self.temporary_path()?)?;
        let path = self.file.path();
        Gguf::parse(&path.display().to_string(), Blob::map_open(file, path)?)
    }

    /// Completes and names the file. Fails if values are missing.
    pub fn finish(mut self) -> Result<()> {
        if self.lacking > 0 || self.slots.len() > 0 {
            return Err(Error::Request("fewer values than the file's layout has".into()));
        }
        self.pad(self.size)?;
        self.flush(self.gathered.len())?;
        self.file.commit()
    }

    fn pad(&mut self, to: u64) -> Result<()> {
        self.put(&[0; ALIGNMENT][..(to - self.position) as usize])
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.gathered.extend_from_slice(bytes);
        self.position += bytes.len() as u64;
        self.flush(self.gathered.len() / WRITE_SIZE * WRITE_SIZE)
    }

    /// Flushes the first `n` buffered bytes.
    fn flush(&mut self, n: usize) -> Result<()> {
        self.file.file().write_all(&self.gathered[..n]).map_err(|e| self.file.error(e))?;
        self.gathered.drain(..n);
        Ok(())
    }
}

fn put_str(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// Writes a type and a value; numbers take 32 bits if they fit, as in ggml's tools.
fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Bool(v) => {
            out.extend(7u32.to_le_bytes());
            out.push(*v as u8);
        }
        Value::String(v) => {
            out.extend(8u32.to_le_bytes());
            put_str(out, v);
        }
        Value::Uint(v) => put_uints(out, std::slice::from_ref(v), false),
        Value::Int(v) => put_ints(out, std::slice::from_ref(v), false),
        Value::Float(v) => put_floats(out, std::slice::from_ref(v), false),
        Value::Uints(v) => put_uints(out, v, true),
        Value::Ints(v) => put_ints(out, v, true),
        Value::Floats(v) => put_floats(out, v, true),
        Value::Bools(v) => {
            put_kind(out, 7, v.len(), true);
            out.extend(v.iter().map(|&b| b as u8));
        }
        Value::Strings(v) => {
            put_kind(out, 8, v.len(), true);
            v.iter().for_each(|s| put_str(out, s));
        }
    }
}

fn put_kind(out: &mut Vec<u8>, kind: u32, len: usize, array: bool) {
    if array {
        out.extend(9u32.to_le_bytes());
        out.extend(kind.to_le_bytes());
        out.extend((len as u64).to_le_bytes());
    } else {
        out.extend(kind.to_le_bytes());
    }
}

macro_rules! put_numbers {
    ($name:ident, $wide:ty = $wide_kind:literal, $narrow:ty = $narrow_kind:literal, $fits:expr) => {
        fn $name(out: &mut Vec<u8>, values: &[$wide], array: bool) {
            if values.iter().all($fits) {
                put_kind(out, $narrow_kind, values.len(), array);
                values.iter().for_each(|&v| out.extend((v as $narrow).to_le_bytes()));
            } else {
                put_kind(out, $wide_kind, values.len(), array);
                values.iter().for_each(|&v| out.extend(v.to_le_bytes()));
            }
        }
    };
}

put_numbers!(put_uints, u64 = 10, u32 = 4, |&v| u32::try_from(v).is_ok());
put_numbers!(put_ints, i64 = 11, i32 = 5, |&v| i32::try_from(v).is_ok());
put_numbers!(put_floats, f64 = 12, f32 = 6, |&v| v.is_nan() || v as f32 as f64 == v);
