//! Hugging Face folders: config.json, safetensors shards, tokenizer files. Read only.

mod cache;
mod card;
mod config;
mod folder;
mod read;
mod tokenizer;
mod weights;

pub use cache::checkpoint_folder;
pub use config::check_config;
pub use folder::Folder;
