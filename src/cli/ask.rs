//! Questions at the terminal.

use std::{
    io::{self, IsTerminal},
    sync::atomic::AtomicBool,
};

use hymba::{Error, Result};

use super::terminal;

/// Whether a user is there to answer.
pub fn at_terminal() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Asks a yes/no question at the terminal; an empty answer means `default_answer`. Returns `None` at the end of the input.
pub fn ask(question: &str, default_answer: bool, cancel: &AtomicBool) -> anyhow::Result<Option<bool>> {
    loop {
        terminal::question(&format!("{question} [{}]", if default_answer { "Y/n" } else { "y/N" }))?;
        let mut line = String::new();
        let read = wait(cancel).map_err(anyhow::Error::from);
        let read = read.and_then(|()| Ok(io::stdin().read_line(&mut line)?));
        if !line.ends_with('\n') {
            terminal::new_line();
        }
        read?;
        Error::check_cancelled(cancel)?;
        match &*line.trim().to_lowercase() {
            "y" | "yes" => return Ok(Some(true)),
            "n" | "no" => return Ok(Some(false)),
            "" => return Ok((!line.is_empty()).then_some(default_answer)),
            _ => (),
        }
    }
}

/// Waits until there is a line to read, which signals would not interrupt.
#[cfg(unix)]
fn wait(cancel: &AtomicBool) -> Result<()> {
    use rustix::{
        event::{PollFd, PollFlags, Timespec, poll},
        io::Errno,
    };

    let period = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    loop {
        Error::check_cancelled(cancel)?;
        match poll(&mut [PollFd::new(&io::stdin(), PollFlags::IN)], Some(&period)) {
            Ok(0) | Err(Errno::INTR) => (),
            _ => return Ok(()),
        }
    }
}

/// Elsewhere a signal ends the read.
#[cfg(not(unix))]
fn wait(_cancel: &AtomicBool) -> Result<()> {
    Ok(())
}
