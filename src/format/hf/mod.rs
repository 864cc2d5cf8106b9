//! Hugging Face folders: config.json, safetensors shards, tokenizer files.
