//! Models by name: from `owner/name` on a Hugging Face hub to files on this disk.
//!
//! Downloads go to the cache of Python's tools, in their layout; converted and ready models to a folder of our own
//! ([`Store`]). Only [`Client`] uses the network, and only `hymba pull`, or a pull that the user agreed to, creates
//! one.

mod cache;
mod client;
mod disk;
mod download;
mod fetch;
mod hash;
mod info;
mod lock;
mod name;
mod part;
mod ranges;
mod retry;
mod select;
mod settings;
mod store;
mod url;

pub use cache::{Cache, Snapshot};
pub use client::Client;
pub use disk::{free_space, same_disk};
pub use download::Event;
pub use fetch::{Fetch, Plan};
pub use info::{Info, License, RemoteFile};
pub use lock::Lock;
pub use name::{Name, Repo};
pub use select::{Selection, ready_type, select};
pub use settings::{HUB, Settings, Token};
pub use store::{Installed, Source, Store};
