//! Runs NVIDIA's Hymba language models (arXiv 2411.13676): attention heads and Mamba heads side by side in every layer.
//!
//! ```
//! use std::io::{Write, stdout};
//!
//! use hymba::{Model, Request, Sampler, Session, SessionOptions, generate};
//!
//! fn main() -> hymba::Result<()> {
//!     let model = Model::open("models/hymba-demo.gguf")?;
//!     let (tokenizer, mut sampler) = (model.tokenizer()?, Sampler::new(model.sampling()?, 42));
//!     let mut session = Session::new(&model, &SessionOptions::default())?;
//!     let prompt = tokenizer.encode("Once upon a time", true)?;
//!     let request = Request { prompt: &prompt, limit: Some(40), ..Request::default() };
//!     let show = &mut |piece: &str| write!(stdout(), "{piece}");
//!     let story = generate(&mut session, &tokenizer, &mut sampler, &request, show)?;
//!     assert!(!story.text.is_empty());
//!     Ok(())
//! }
//! ```
//!
//! [`Session`] processes one sequence; [`Timeline`] adds its token history, with rewinding, branches and session files;
//! [`Conversation`] is a chat on a timeline. The folder `examples` has a program for each.
//!
//! # Layers
//!
//! Imports point down. Items not listed on this page serve the program, the tests and the fuzzers, and may change.
//!
//! ```text
//! server                                 the HTTP API
//! eval                                   perplexity, divergence
//! engine        quant                    sessions and conversations; conversion and calibration
//! forward  constrain                     the forward pass, written once for every backend; constrained generation
//! state  import                          KV rows, conv and SSM state; Hugging Face folders
//! model  backend  text  sample           sizes and weights; operations and devices; tokenizer and templates; sampling
//! hub                                    models by name: download, cache, installed models
//! format                                 number types, block codecs, GGUF, atomic file replacement
//! error  foreign  limits  system
//! ```

#[doc(hidden)]
pub mod backend;
#[doc(hidden)]
pub mod constrain;
#[doc(hidden)]
pub mod engine;
mod error;
#[doc(hidden)]
pub mod eval;
#[doc(hidden)]
pub mod foreign;
#[doc(hidden)]
pub mod format;
#[doc(hidden)]
pub mod forward;
#[doc(hidden)]
pub mod hub;
#[doc(hidden)]
pub mod import;
#[doc(hidden)]
pub mod limits;
#[doc(hidden)]
pub mod model;
#[doc(hidden)]
pub mod quant;
#[doc(hidden)]
pub mod sample;
#[cfg(feature = "serve")]
#[doc(hidden)]
pub mod server;
#[doc(hidden)]
pub mod state;
#[doc(hidden)]
pub mod system;
#[doc(hidden)]
pub mod text;
mod threads;

pub use backend::DeviceChoice;
pub use constrain::{Constraint, Shape, Vocabulary};
pub use engine::{
    Conversation, Model, Session, SessionOptions, Timeline, TokenModel, conversation,
    generate::{Generation, Request, StopReason, Timings, generate, generate_with},
    scheduler,
    speculate::{Speculate, Speculator},
    timeline::Watch,
};
pub use error::{Error, FileContents, Mismatch, Result};
pub use eval::{Estimate, Perplexity, perplexity};
pub use format::CacheType;
pub use sample::{Sampler, SamplingParams};
pub use state::Checkpoint;
pub use text::{Template, Tokenizer};
