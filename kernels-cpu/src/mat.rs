//! Views on matrices of activations.

/// A matrix `[rows, cols]` of f32 whose rows are `stride` values apart; each row is a token.
#[derive(Clone, Copy)]
pub struct MatRef<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) stride: usize,
}

/// A mutable [`MatRef`].
pub struct MatMut<'a> {
    pub(crate) data: &'a mut [f32],
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) stride: usize,
}

/// Returns the number of values from the start of the first row to the end of the last.
fn span(rows: usize, cols: usize, stride: usize) -> usize {
    assert!(cols <= stride, "rows of {cols} overlap at a stride of {stride}");
    if rows == 0 { 0 } else { (rows - 1) * stride + cols }
}

impl<'a> MatRef<'a> {
    /// Returns the view of `rows` rows of `cols` values that starts at value `start` of a matrix whose rows are
    /// `stride` long.
    ///
    /// # Panics If the view does not lie inside `data`.
    pub fn new(data: &'a [f32], rows: usize, start: usize, cols: usize, stride: usize) -> Self {
        assert!(start % stride.max(1) + cols <= stride, "{cols} columns from {start} on, in rows of {stride}");
        let data = if rows == 0 { &[] } else { &data[start..][..span(rows, cols, stride)] };
        Self { data, rows, cols, stride }
    }

    /// Returns some columns of all rows.
    ///
    /// # Panics If the columns are out of range.
    pub fn columns(&self, cols: std::ops::Range<usize>) -> Self {
        assert!(cols.end <= self.cols, "columns up to {} of {}", cols.end, self.cols);
        Self::new(self.data, self.rows, cols.start, cols.len(), self.stride)
    }

    /// Returns the number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Returns row `i`, `[cols]`.
    pub fn row(&self, i: usize) -> &'a [f32] {
        &self.data[i * self.stride..][..self.cols]
    }
}

impl<'a> MatMut<'a> {
    /// See [`MatRef::new`].
    ///
    /// # Panics If the view does not lie inside `data`.
    pub fn new(data: &'a mut [f32], rows: usize, start: usize, cols: usize, stride: usize) -> Self {
        assert!(start % stride.max(1) + cols <= stride, "{cols} columns from {start} on, in rows of {stride}");
        let data = if rows == 0 { &mut [] } else { &mut data[start..][..span(rows, cols, stride)] };
        Self { data, rows, cols, stride }
    }

    /// Returns row `i`, `[cols]`.
    pub fn row_mut(&mut self, i: usize) -> &mut [f32] {
        &mut self.data[i * self.stride..][..self.cols]
    }
}
