//! The `hymba` command: parse, dispatch, exit code.
//!
//! Exit codes: 0: success, or the reader of the output closed the pipe · 1: failure · 2: usage error · 3: the output
//! was cut before it matched its constraint · 128 + n: stopped by signal n.

mod cli;
mod closed;
#[cfg(test)]
#[path = "../tests/common/counting.rs"]
mod counting;

use std::{
    process::ExitCode,
    sync::{Arc, atomic::AtomicBool},
};

use cli::{
    hints::Interface,
    signals, terminal,
    usage::{Incomplete, Reported, Usage},
};

fn main() -> ExitCode {
    let cli = cli::Cli::of_process();
    let writes = cli.as_ref().map_or_else(|answer| !answer.use_stderr(), |cli| cli.command.writes_output());
    if writes && closed::output_was_closed() {
        terminal::error("cannot write to standard output: it is closed");
        return ExitCode::FAILURE;
    }
    let cli = match cli {
        Ok(cli) => cli,
        Err(answer) => return terminal::show_parser_answer(&answer),
    };
    hymba::foreign::silence_panics();
    hymba::format::install_sigbus_handler();
    let cancel = Arc::new(AtomicBool::new(false));
    if let Err(error) = signals::watch(&cancel) {
        terminal::error(&format!("cannot install signal handlers: {error}"));
        return ExitCode::FAILURE;
    }
    match cli.command.run(&cancel) {
        Ok(()) => terminal::end_of_output(Ok(())),
        Err(error) => exit_code(&error),
    }
}

/// Reports `error`, unless it was already reported.
fn exit_code(error: &anyhow::Error) -> ExitCode {
    if error.downcast_ref::<hymba::Error>().is_some_and(|e| matches!(e, hymba::Error::Cancelled)) {
        return ExitCode::from(signals::exit_code());
    }
    if terminal::is_broken_pipe(error) {
        return ExitCode::SUCCESS;
    }
    if error.is::<Incomplete>() {
        return ExitCode::from(3);
    }
    if error.is::<Reported>() {
        return ExitCode::FAILURE;
    }
    terminal::error(&terminal::one_line(error, Interface::CommandLine));
    ExitCode::from(if error.is::<Usage>() { 2 } else { 1 })
}
