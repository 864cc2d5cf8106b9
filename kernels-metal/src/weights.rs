//! Weights: the memory-mapped model file, used by the device without a copy.

use crate::{Binding, Buffer, Device, DeviceError};

/// The storage format of a matrix; the numbers are those in `shaders/common.metal`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[allow(missing_docs)]
pub enum Format {
    F32 = 0,
    F16 = 1,
    BF16 = 2,
    Q8_0 = 3,
    Q4_0 = 4,
    Q4_1 = 5,
    Q5_0 = 6,
    Q5_1 = 7,
    Iq4Nl = 8,
    Mxfp4 = 9,
    Q8_0X8 = 19,
    Q4_0X8 = 20,
    Q4_1X8 = 21,
    Q5_0X8 = 22,
    Q5_1X8 = 23,
    Iq4NlX8 = 24,
    Mxfp4X8 = 25,
}

impl Format {
    /// Whether rows are interleaved by eight.
    pub fn interleaved(self) -> bool {
        self as u32 >= Self::Q8_0X8 as u32
    }
}

/// A matrix `[rows, cols]` inside the bytes passed to [`crate::Gpu::new`].
#[derive(Clone, Copy)]
pub struct Weight<'a> {
    /// The storage format.
    pub format: Format,
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// The encoded matrix.
    pub bytes: &'a [u8],
}

/// A model's bytes as buffers. If they exceed the maximum buffer size, overlapping windows start at every half of it,
/// so that any tensor of at most that half is inside one window.
pub(crate) struct WeightMap {
    from: usize,
    len: usize,
    step: usize,
    windows: Vec<Buffer>,
}

impl WeightMap {
    /// # Safety `bytes` must not move or change while this exists.
    pub(crate) unsafe fn new(device: &dyn Device, bytes: &[u8]) -> Result<Self, DeviceError> {
        let page = device.page();
        let address = bytes.as_ptr() as usize;
        // A memory map consists of whole pages. Bytes embedded in the program may not, and are copied.
        let in_place = address.is_multiple_of(page);
        let longest = device.longest_buffer() / (2 * page) * (2 * page);
        let step = if bytes.len() <= longest { bytes.len().max(1) } else { longest / 2 };
        let mut windows = Vec::new();
        for from in (0..bytes.len()).step_by(step) {
            let part = &bytes[from..bytes.len().min(from + longest)];
            windows.push(if in_place {
                // SAFETY: guaranteed by the caller; the rest of the last page belongs to the map.
                unsafe { device.wrap(part.as_ptr(), part.len().next_multiple_of(page)) }?
            } else {
                let copy = device.allocate(part.len())?;
                // SAFETY: the buffer is new and has the size of the part.
                unsafe { std::ptr::copy_nonoverlapping(part.as_ptr(), copy.contents(), part.len()) };
                copy
            });
        }
        Ok(Self { from: address, len: bytes.len(), step, windows })
    }

    /// Returns the binding for `part` of the model.
    ///
    /// # Panics If it is not inside the model, or longer than half of a buffer.
    pub(crate) fn find<T>(&self, part: &[T]) -> Binding {
        let len = size_of_val(part);
        let at = (part.as_ptr() as usize).wrapping_sub(self.from);
        assert!(at <= self.len && len <= self.len - at, "a weight lies outside the model");
        let window = at / self.step;
        let (buffer, offset) = (&self.windows[window], at - window * self.step);
        assert!(offset + len <= buffer.len(), "a tensor of {len} bytes does not fit a buffer of this GPU");
        Binding { buffer: buffer.clone(), offset, len, writable: false }
    }
}

#[cfg(test)]
mod tests {
    use super::Format;

    /// The shaders' enum is parsed from their source; its names are those of [`Format`] in capitals.
    #[test]
    fn format_numbers_match_the_shaders() {
        use Format::*;
        let source = include_str!("../shaders/common.metal");
        let body = source.split_once("enum Format : uint {").unwrap().1.split_once('}').unwrap().0;
        let mut numbers = std::collections::HashMap::new();
        for (name, value) in body.split(',').filter_map(|entry| entry.split_once('=')) {
            let value: u32 = value
                .split('+')
                .map(|term| numbers.get(term.trim()).copied().unwrap_or_else(|| term.trim().parse().unwrap()))
                .sum();
            numbers.insert(name.trim().to_uppercase(), value);
        }
        let formats = [
            F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Iq4Nl, Mxfp4, Q8_0X8, Q4_0X8, Q4_1X8, Q5_0X8, Q5_1X8,
            Iq4NlX8, Mxfp4X8,
        ];
        for format in formats {
            let name = format!("{format:?}").to_uppercase().replace("IQ4NL", "IQ4_NL");
            assert_eq!(numbers.remove(&name), Some(format as u32), "{name}");
        }
        assert_eq!(numbers.into_keys().collect::<Vec<_>>(), ["X8"], "the shaders have more formats");
    }
}
