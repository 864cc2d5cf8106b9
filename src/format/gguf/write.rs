//! The writer.
pub struct Layout;
pub struct Writer;
