//! The public API: open a model, hold a session, generate.
