//! The reader.
use super::Metadata;
use crate::format::{Blob, DType};

/// A tensor of the file: `dims` slowest first (`[rows, columns]`), the values as they lie in the map.
pub struct Tensor { pub name: String, pub dims: Vec<usize>, pub dtype: DType, pub data: Blob }
/// An open file.
pub struct Gguf { pub metadata: Metadata, pub tensors: Vec<Tensor> }
