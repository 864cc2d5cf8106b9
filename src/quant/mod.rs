//! Block codecs, and the making of small checkpoints from large ones.
