//! The line editor: history from one run to the next, several lines, completion.

use std::{
    borrow::Cow,
    cell::Cell,
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use rustyline::{
    CompletionType, Config, Context, Helper,
    completion::{Completer, FilenameCompleter, Pair},
    error::ReadlineError,
    highlight::Highlighter,
    hint::Hinter,
    history::DefaultHistory,
    validate::{ValidationContext, ValidationResult, Validator},
};

use hymba::Error;

use super::{
    commands::{COMMANDS, knobs},
    message::{Event, is_whole, typed},
    screen::PROMPT_STYLE,
};

/// Messages that are remembered.
const HISTORY: usize = 1000;

/// A line editor on the terminal.
pub struct Editor {
    inner: rustyline::Editor<Helpers, DefaultHistory>,
    history: Option<PathBuf>,
    color: bool,
    /// Is a line being typed?
    waiting: Arc<AtomicBool>,
    cancel: Arc<AtomicBool>,
}

impl Editor {
    /// An editor with the history of earlier runs. When `cancel` is set while it waits for a line (Ctrl-C does not do
    /// that, a signal from elsewhere does), the wait ends.
    pub fn new(color: bool, cancel: &Arc<AtomicBool>) -> anyhow::Result<Self> {
        // Without a data folder there is no history, and no harm.
        let history = dirs::data_dir().map(|folder| folder.join("hymba")).and_then(|folder| {
            fs::create_dir_all(&folder).ok()?;
            Some(folder.join("history"))
        });
        let inner = line_editor(history.as_deref(), color)?;
        let waiting = Arc::new(AtomicBool::new(false));
        wake_when(cancel.clone(), waiting.clone());
        Ok(Self { inner, history, color, waiting, cancel: cancel.clone() })
    }

    /// The next message, whole.
    pub fn read(&mut self, prompt: &str, initial: &str, branches: Vec<String>) -> anyhow::Result<Event> {
        if let Some(helpers) = self.inner.helper_mut() {
            helpers.branches = branches;
            helpers.typed.set(!initial.is_empty());
        }
        self.waiting.store(true, Ordering::Relaxed);
        let line = self.inner.readline_with_initial(prompt, (initial, ""));
        self.waiting.store(false, Ordering::Relaxed);
        match line {
            Err(_) if self.cancel.load(Ordering::Relaxed) => Err(Error::Cancelled.into()),
            Ok(line) => {
                if !line.trim().is_empty() && self.inner.add_history_entry(&line).unwrap_or(false) {
                    // Written at once, so that it outlives whatever happens; that it can't be is no reason to stop.
                    let _ = self.history.as_ref().map(|path| self.inner.append_history(path));
                }
                Ok(typed(&line))
            }
            Err(ReadlineError::Interrupted) if self.inner.helper().is_some_and(|h| h.typed.get()) => {
                Ok(Event::Line(String::new()))
            }
            Err(ReadlineError::Interrupted) => Ok(Event::Interrupt),
            Err(ReadlineError::Eof) => Ok(Event::End),
            Err(ReadlineError::Io(e)) if e.kind() == io::ErrorKind::InvalidData => {
                // What comes after the byte was meant to belong to it: alone it may mean anything.
                drop_typed_ahead();
                self.inner = line_editor(self.history.as_deref(), self.color)?;
                let what = "what was typed is not UTF-8 text and was dropped; set the terminal to UTF-8";
                Ok(Event::Refused(Error::Request(what.into())))
            }
            Err(e) => Err(e.into()),
        }
    }
}

/// A line editor with the lines in the file `history`, and nothing typed.
fn line_editor(history: Option<&Path>, color: bool) -> rustyline::Result<rustyline::Editor<Helpers, DefaultHistory>> {
    let config = Config::builder()
        .max_history_size(HISTORY)?
        .history_ignore_dups(true)?
        .completion_type(CompletionType::List)
        .auto_add_history(false)
        .build();
    let mut inner = rustyline::Editor::with_config(config)?;
    let (files, branches, typed) = (FilenameCompleter::new(), Vec::new(), Cell::new(false));
    inner.set_helper(Some(Helpers { files, branches, typed, color }));
    // A pipe in its place would have to wait for who writes to it.
    if let Some(path) = history.filter(|path| path.is_file()) {
        let _ = inner.load_history(path);
    }
    Ok(inner)
}

/// Drops what was typed and not read, and what else a paste brings.
#[cfg(unix)]
fn drop_typed_ahead() {
    use std::{thread, time::Duration};

    const MOMENT: Duration = Duration::from_millis(20);
    let more = || rustix::io::ioctl_fionread(io::stdin()).is_ok_and(|bytes| bytes > 0);
    for i in 0.. {
        // SAFETY: the call takes a descriptor and a number, and touches no memory of ours.
        unsafe { libc::tcflush(libc::STDIN_FILENO, libc::TCIFLUSH) };
        thread::sleep(MOMENT);
        // Lines that are not whole are not counted.
        if i > 4 && !more() {
            return;
        }
    }
}

#[cfg(not(unix))]
fn drop_typed_ahead() {}

/// Elsewhere nothing but Ctrl-C sets `cancel`, and the editor sees to that.
#[cfg(not(unix))]
fn wake_when(_cancel: Arc<AtomicBool>, _waiting: Arc<AtomicBool>) {}

/// Ends the wait for a line when `cancel` is set: of all signals, the editor looks at this one.
#[cfg(unix)]
fn wake_when(cancel: Arc<AtomicBool>, waiting: Arc<AtomicBool>) {
    use std::{thread, time::Duration};

    use rustix::process::{Signal, getpid, kill_process};

    // A system that refuses the thread lets a second signal end the wait.
    let _ = thread::Builder::new().spawn(move || {
        loop {
            thread::sleep(Duration::from_millis(50));
            if cancel.load(Ordering::Relaxed) && waiting.load(Ordering::Relaxed) {
                let _ = kill_process(getpid(), Signal::INT);
                thread::sleep(Duration::from_millis(500));
            }
        }
    });
}

/// What the editor asks while a line is typed.
struct Helpers {
    files: FilenameCompleter,
    branches: Vec<String>,
    /// Is there anything on the line?
    typed: Cell<bool>,
    color: bool,
}

impl Helper for Helpers {}

impl Highlighter for Helpers {
    fn highlight_prompt<'b, 's: 'b, 'p: 'b>(&'s self, prompt: &'p str, _default: bool) -> Cow<'b, str> {
        if self.color { format!("{PROMPT_STYLE}{prompt}\x1b[0m").into() } else { prompt.into() }
    }
}

impl Hinter for Helpers {
    type Hint = String;

    /// Hints nothing; it is asked after every change of the line.
    fn hint(&self, line: &str, _: usize, _: &Context<'_>) -> Option<String> {
        self.typed.set(!line.is_empty());
        None
    }
}

impl Validator for Helpers {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let whole = is_whole(context.input());
        Ok(if whole { ValidationResult::Valid(None) } else { ValidationResult::Incomplete })
    }
}

impl Helpers {
    /// Completes the name of a file at the end of `typed`, where `~/` is the home folder and stays.
    fn complete_file(&self, typed: &str) -> rustyline::Result<(usize, Vec<Pair>)> {
        let start = typed.rfind(" ~/").map(|space| space + 1);
        let home = dirs::home_dir().map(|home| format!("{}/", home.display()));
        let (Some(start), Some(home)) = (start, home) else { return self.files.complete_path(typed, typed.len()) };
        let expanded = format!("{home}{}", &typed[start + 2..]);
        let (_, pairs) = self.files.complete_path(&expanded, expanded.len())?;
        let shorten = |pair: Pair| {
            let rest = pair.replacement.strip_prefix(&home).map(|rest| format!("~/{rest}"));
            Pair { replacement: rest.unwrap_or(pair.replacement), ..pair }
        };
        Ok((start, pairs.into_iter().map(shorten).collect()))
    }
}

impl Completer for Helpers {
    type Candidate = Pair;

    fn complete(&self, line: &str, pos: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<Pair>)> {
        let typed = &line[..pos];
        let Some(command) = typed.strip_prefix('/') else { return Ok((pos, Vec::new())) };
        let among = |start: usize, names: &mut dyn Iterator<Item = String>| {
            let names = names.filter(|name| name.starts_with(&typed[start..]));
            (start, names.map(|name| Pair { display: name.trim_end().into(), replacement: name }).collect())
        };
        match command.split_once(' ') {
            None => {
                let space = |after: &str| if after.is_empty() { "" } else { " " };
                let mut names = COMMANDS.iter().map(|(name, after, _)| format!("/{name}{}", space(after)));
                Ok(among(0, &mut names))
            }
            Some(("load" | "read" | "save" | "format", _)) => self.complete_file(typed),
            Some(("switch", _)) => Ok(among("/switch ".len(), &mut self.branches.iter().cloned())),
            Some(("set", _)) => Ok(among("/set ".len(), &mut knobs().map(|name| format!("{name} ")))),
            Some(_) => Ok((pos, Vec::new())),
        }
    }
}
