//! Questions at the terminal.

use std::{
    io::{self, IsTerminal},
    sync::atomic::{AtomicBool, Ordering},
};

use hymba::Error;

use super::terminal;

/// Whether a user is there to answer.
pub fn at_terminal() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Asks a yes/no question at the terminal; an empty answer means `usual`.
pub fn ask(question: &str, usual: bool, cancel: &AtomicBool) -> anyhow::Result<bool> {
    loop {
        terminal::question(&format!("{question} [{}]", if usual { "Y/n" } else { "y/N" }))?;
        let mut line = String::new();
        let read = io::stdin().read_line(&mut line)?;
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::Cancelled.into());
        }
        match &*line.trim().to_lowercase() {
            "y" | "yes" => return Ok(true),
            "n" | "no" => return Ok(false),
            "" => return Ok(usual && read > 0),
            _ => (),
        }
    }
}
