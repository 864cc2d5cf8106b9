//! A terminal of a given width, at which a person types.
#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{process::Command, time::Duration};

use expectrl::{Expect, Session, process::unix::WaitStatus, session::OsSession};

use crate::common::much;

pub const CTRL_C: &str = "\x03";
pub const CTRL_D: &str = "\x04";

pub struct Terminal {
    session: OsSession,
    seen: Vec<u8>,
}

impl Terminal {
    /// Starts `command` once the terminal has this width.
    pub fn start(command: &Command, columns: u16) -> Self {
        // The library sets a width of its own after the start, so the command has to wait.
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
        session.set_expect_timeout(Some(Duration::from_secs(much(60, 400))));
        session.get_process_mut().set_window_size(columns, 24).unwrap();
        session.send("\n").unwrap();
        Self { session, seen: Vec::new() }
    }

    pub fn types(&mut self, keys: &str) {
        self.session.send(keys).unwrap();
    }

    /// Waits for `text`.
    #[track_caller]
    pub fn sees(&mut self, text: &str) {
        let found = self.session.expect(text);
        let found = found.unwrap_or_else(|e| panic!("`{text}` does not come ({e}) after {}", self.shown()));
        self.seen.extend_from_slice(found.as_bytes());
    }

    /// Waits for the end, and returns the exit code and all that was shown, without escape sequences.
    #[track_caller]
    pub fn ends(mut self) -> (i32, String) {
        let rest = self.session.expect(expectrl::Eof).unwrap();
        self.seen.extend_from_slice(rest.as_bytes());
        match self.session.get_process_mut().wait().unwrap() {
            WaitStatus::Exited(_, code) => (code, self.shown()),
            other => panic!("{other:?} after {}", self.shown()),
        }
    }

    fn shown(&self) -> String {
        let escape = regex::Regex::new("\x1b\\[[0-9;?]*[a-zA-Z]").unwrap();
        escape.replace_all(&String::from_utf8_lossy(&self.seen), "").replace("\r\n", "\n")
    }
}

/// Whether no line, or what a bar writes over it, is wider.
pub fn fits(shown: &str, columns: usize) -> bool {
    shown.split(['\r', '\n']).all(|line| line.chars().count() <= columns)
}
