//! The `hymba` command: parse, dispatch, exit code.
//!
//! 0: done, or the reader of the output went away · 1: it failed · 2: wrong usage · 130: interrupted.

mod cli;

use std::{
    process::{ExitCode, exit},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use clap::Parser;
use cli::{
    hints::Place,
    terminal,
    usage::{Reported, Usage},
};

/// The exit code after an interrupt.
pub const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let cli = match cli::Cli::try_parse_from(cli::arguments()) {
        Ok(cli) => cli,
        Err(answer) => return terminal::show_parser_answer(&answer),
    };
    hymba::format::exit_where_files_end();
    // The first signal asks the work to stop where it can; the second does not ask.
    let cancel = Arc::new(AtomicBool::new(false));
    let signalled = cancel.clone();
    let handler = ctrlc::set_handler(move || {
        if signalled.swap(true, Ordering::Relaxed) {
            exit(INTERRUPTED.into());
        }
    });
    match handler.map_err(anyhow::Error::from).and_then(|()| cli.command.run(&cancel)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit_code(&error),
    }
}

/// Reports `error`, if it is one that the user should read about.
fn exit_code(error: &anyhow::Error) -> ExitCode {
    if error.downcast_ref::<hymba::Error>().is_some_and(|e| matches!(e, hymba::Error::Cancelled)) {
        return ExitCode::from(INTERRUPTED);
    }
    if terminal::is_broken_pipe(error) {
        return ExitCode::SUCCESS;
    }
    if error.is::<Reported>() {
        return ExitCode::FAILURE;
    }
    terminal::note(&terminal::one_line(error, Place::CommandLine));
    ExitCode::from(if error.is::<Usage>() { 2 } else { 1 })
}
