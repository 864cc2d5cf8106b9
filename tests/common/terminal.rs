//! A pseudo-terminal of a given width.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{process::Command, time::Duration};

use expectrl::{Expect, Session, process::unix::WaitStatus, session::OsSession};

use crate::common::unless_emulated;

pub const CTRL_C: &str = "\x03";
pub const CTRL_D: &str = "\x04";

pub struct Terminal {
    session: OsSession,
    /// Output so far.
    seen: Vec<u8>,
}

impl Terminal {
    /// Starts `command` in a terminal of this width.
    pub fn start(command: &Command, columns: u16) -> Self {
        // The library sets its own width after the start, so the command has to wait for the next one.
        let mut shell = Command::new("sh");
        shell.args(["-c", "read -r _ && exec \"$0\" \"$@\""]);
        shell.arg(command.get_program()).args(command.get_args()).env("TERM", "xterm").env_remove("COLUMNS");
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        let mut session = Session::spawn(shell).unwrap();
        session.set_expect_timeout(Some(Duration::from_secs(unless_emulated(60, 400))));
        session.get_process_mut().set_window_size(columns, 24).unwrap();
        session.send("\n").unwrap();
        Self { session, seen: Vec::new() }
    }

    pub fn send(&mut self, keys: &str) {
        self.session.send(keys).unwrap();
    }

    /// Waits for `text`.
    #[track_caller]
    pub fn expect(&mut self, text: &str) {
        let found = self.session.expect(text);
        let found = found.unwrap_or_else(|e| panic!("no `{text}` ({e}) after {}", self.plain()));
        self.seen.extend_from_slice(found.as_bytes());
    }

    /// Waits for the end, and returns the exit code and the output without escape sequences.
    #[track_caller]
    pub fn wait(mut self) -> (i32, String) {
        let rest = self.session.expect(expectrl::Eof).unwrap();
        self.seen.extend_from_slice(rest.as_bytes());
        match self.session.get_process_mut().wait().unwrap() {
            WaitStatus::Exited(_, code) => (code, self.plain()),
            other => panic!("{other:?} after {}", self.plain()),
        }
    }

    fn plain(&self) -> String {
        let escape = regex::Regex::new("\x1b\\[[0-9;?]*[a-zA-Z]").unwrap();
        escape.replace_all(&String::from_utf8_lossy(&self.seen), "").replace("\r\n", "\n")
    }
}

/// Whether all lines fit, including those that a progress bar overwrites.
pub fn fits(output: &str, columns: usize) -> bool {
    output.split(['\r', '\n']).all(|line| line.chars().count() <= columns)
}
