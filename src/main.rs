//! The `hymba` command.
fn main() {}
