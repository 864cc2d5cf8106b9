//! Sets of byte ranges.

use std::{iter, ops::Range};

/// A set of bytes, as ordered, non-adjacent ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ranges(Vec<Range<u64>>);

impl Ranges {
    /// Adds a range, which may overlap others.
    pub fn insert(&mut self, new: Range<u64>) {
        if new.is_empty() {
            return;
        }
        let first = self.0.partition_point(|range| range.end < new.start);
        let last = self.0.partition_point(|range| range.start <= new.end);
        let touched = &self.0[first..last];
        let start = touched.first().map_or(new.start, |range| range.start.min(new.start));
        let end = touched.last().map_or(new.end, |range| range.end.max(new.end));
        self.0.splice(first..last, iter::once(start..end));
    }

    /// Returns the number of stored bytes.
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(|range| range.end - range.start).sum()
    }

    /// Returns the complement within the first `size` bytes, in pieces of at most `max_len`.
    pub fn missing(&self, size: u64, max_len: u64) -> Vec<Range<u64>> {
        let mut pieces = Vec::new();
        let mut start = 0;
        let ends = self.0.iter().cloned().chain(iter::once(size..size));
        for stored in ends {
            while start < stored.start.min(size) {
                let end = stored.start.min(size).min(start.saturating_add(max_len));
                pieces.push(start..end);
                start = end;
            }
            start = start.max(stored.end);
        }
        pieces
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "sets of one range are meant")]
mod tests {
    use super::*;

    #[test]
    fn ranges_grow_together() {
        let mut set = Ranges::default();
        for range in [10..20, 40..50, 20..30, 5..6, 48..60, 7..7] {
            set.insert(range);
        }
        assert_eq!(set.0, [5..6, 10..30, 40..60]);
        assert_eq!(set.bytes(), 41);
        set.insert(0..45);
        assert_eq!(set.0, [0..60]);
    }

    #[test]
    fn missing_ranges_are_split_into_pieces() {
        let mut set = Ranges::default();
        assert_eq!(set.missing(25, 10), [0..10, 10..20, 20..25]);
        assert_eq!(set.missing(0, 10), []);
        set.insert(3..4);
        set.insert(12..25);
        assert_eq!(set.missing(25, 6), [0..3, 4..10, 10..12]);
        assert_eq!(set.missing(30, 6), [0..3, 4..10, 10..12, 25..30]);
        assert_eq!(set.missing(2, 6), [0..2]);
        assert_eq!(set.missing(30, u64::MAX), [0..3, 4..12, 25..30]);
    }
}
