//! Sorting with a fallible comparison.

use super::Failure;

/// Returns `items` sorted by `less`, keeping the order of equal items; stops at the first failure.
pub fn sort_by<T: Clone>(
    mut items: Vec<T>,
    mut less: impl FnMut(&T, &T) -> Result<bool, Failure>,
) -> Result<Vec<T>, Failure> {
    let mut width = 1;
    while width < items.len() {
        let mut merged = Vec::with_capacity(items.len());
        for pair in items.chunks(2 * width) {
            let (mut left, mut right) = pair.split_at(width.min(pair.len()));
            while let ([first, left_rest @ ..], [second, right_rest @ ..]) = (left, right) {
                if less(second, first)? {
                    merged.push(second.clone());
                    right = right_rest;
                } else {
                    merged.push(first.clone());
                    left = left_rest;
                }
            }
            merged.extend_from_slice(left);
            merged.extend_from_slice(right);
        }
        items = merged;
        width *= 2;
    }
    Ok(items)
}
