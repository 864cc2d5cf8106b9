//! The line editor: persistent history, multi-line input, completion.

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
    commands::{COMMANDS, setting_names},
    message::{Event, is_complete, typed},
    screen::PROMPT_STYLE,
};

/// Maximum number of history entries.
const HISTORY: usize = 1000;

/// A line editor on the terminal.
pub struct Editor {
    inner: rustyline::Editor<Helpers, DefaultHistory>,
    history: Option<PathBuf>,
    color: bool,
    /// Whether a line is being typed.
    waiting: Arc<AtomicBool>,
    cancel: Arc<AtomicBool>,
}

impl Editor {
    /// Returns an editor with the saved history. When `cancel` is set while it waits for a line (by a signal, not by
    /// Ctrl-C), the wait ends.
    pub fn new(color: bool, cancel: &Arc<AtomicBool>) -> anyhow::Result<Self> {
        // Without a data folder, history is not saved.
        let history = dirs::data_dir().map(|folder| folder.join("hymba")).and_then(|folder| {
            fs::create_dir_all(&folder).ok()?;
            Some(folder.join("history"))
        });
        let inner = line_editor(history.as_deref(), color)?;
        let waiting = Arc::new(AtomicBool::new(false));
        interrupt_wait_when(cancel.clone(), waiting.clone());
        Ok(Self { inner, history, color, waiting, cancel: cancel.clone() })
    }

    /// Returns the next complete message.
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
                    // Saved immediately, so that a crash does not lose it; a failure to save is ignored.
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
                // The rest of the input belonged to the invalid byte and could be misread as a command.
                discard_pending_input();
                self.inner = line_editor(self.history.as_deref(), self.color)?;
                let problem = "dropped input that is not valid UTF-8; set the terminal to UTF-8";
                Ok(Event::Refused(Error::Request(problem.into())))
            }
            Err(e) => Err(e.into()),
        }
    }
}

/// Returns a line editor with the history in the file `history`.
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
    // Opening a FIFO in its place would block until a writer appears.
    if let Some(path) = history.filter(|path| path.is_file()) {
        let _ = inner.load_history(path);
    }
    Ok(inner)
}

/// Discards pending input, including the rest of a paste.
#[cfg(unix)]
fn discard_pending_input() {
    use std::{thread, time::Duration};

    const MOMENT: Duration = Duration::from_millis(20);
    let more = || rustix::io::ioctl_fionread(io::stdin()).is_ok_and(|bytes| bytes > 0);
    for i in 0.. {
        // SAFETY: the call takes a descriptor and a number, and accesses no memory of this process.
        unsafe { libc::tcflush(libc::STDIN_FILENO, libc::TCIFLUSH) };
        thread::sleep(MOMENT);
        // Incomplete lines are not counted.
        if i > 4 && !more() {
            return;
        }
    }
}

#[cfg(not(unix))]
fn discard_pending_input() {}

/// On other systems only Ctrl-C sets `cancel`, which the editor handles itself.
#[cfg(not(unix))]
fn interrupt_wait_when(_cancel: Arc<AtomicBool>, _waiting: Arc<AtomicBool>) {}

/// Ends the wait for a line when `cancel` is set, through the one signal that the editor reacts to.
#[cfg(unix)]
fn interrupt_wait_when(cancel: Arc<AtomicBool>, waiting: Arc<AtomicBool>) {
    use std::{thread, time::Duration};

    use rustix::process::{Signal, getpid, kill_process};

    // Without this thread, a second signal still ends the wait.
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

/// The editor's callbacks while a line is typed.
struct Helpers {
    files: FilenameCompleter,
    branches: Vec<String>,
    /// Whether the line is not empty.
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

    /// Returns no hint; called after every edit, which is how edits are noticed.
    fn hint(&self, line: &str, _: usize, _: &Context<'_>) -> Option<String> {
        self.typed.set(!line.is_empty());
        None
    }
}

impl Validator for Helpers {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let complete = is_complete(context.input());
        Ok(if complete { ValidationResult::Valid(None) } else { ValidationResult::Incomplete })
    }
}

impl Helpers {
    /// Completes the path at the end of `typed`; a leading `~/` is resolved but kept as typed.
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
            Some(("set", _)) => Ok(among("/set ".len(), &mut setting_names().map(|name| format!("{name} ")))),
            Some(_) => Ok((pos, Vec::new())),
        }
    }
}
