//! The state of a text: KV rows, conv state, SSM state; in memory, in checkpoints and in files.

mod checkpoint;
mod disk;
mod image;
mod kv;
mod layers;
mod meta;
mod rows;
mod thin;

pub use checkpoint::Checkpoint;
pub use disk::{Payload, SESSION_MAGIC, read_session, session_header, write_session};
pub use image::{image_bytes, image_is_finite};
pub use kv::{KvCache, KvLayout};
pub use layers::{LayerState, State};
pub use meta::MetaState;
pub use rows::{Recurrent, Rows};
pub use thin::{ImageOf, restored, thinned, thinned_bytes};
