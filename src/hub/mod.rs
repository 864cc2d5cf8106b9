//! Models by name: from `owner/name` on a Hugging Face hub to files on this disk.
//!
//! What is downloaded lies in the cache that Python's tools use too, in their layout; what is made of it, or taken as it
//! is, lies in a folder of our own ([`Store`]). Nothing here uses the network but [`Client`], which nobody makes without
//! being asked to.

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
