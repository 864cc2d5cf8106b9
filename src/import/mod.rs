//! Hugging Face folders: config.json, safetensors shards, tokenizer files. Read only.

mod card;
mod config;
mod folder;
mod read;
mod tokenizer;
mod weights;

pub use folder::Folder;
