//! Messages on standard error, prefixed with the program's name, and terminal output.

use std::{
    borrow::Cow,
    env,
    fmt::Write as _,
    io::{self, IsTerminal, StdoutLock, Write},
    process::ExitCode,
};

use serde::Serialize;

use super::{
    hints::{Interface, hint},
    wrap::wrapped,
};

/// Writes `hymba: message` to standard error, ignoring write errors.
pub fn note(message: &str) {
    report("hymba: ", message);
}

/// Prints a warning.
pub fn warn(message: &str) {
    report("hymba: warning: ", message);
}

/// Prints an error.
pub fn error(message: &str) {
    report("hymba: error: ", message);
}

fn report(prefix: &str, message: &str) {
    let message = if io::stderr().is_terminal() { printable(message) } else { message.into() };
    let _ = writeln!(io::stderr(), "{}", wrapped(&format!("{prefix}{message}"), err_width()));
}

/// Whether the terminal is dumb.
fn is_dumb() -> bool {
    env::var_os("TERM").is_some_and(|term| term == "dumb")
}

/// Whether to use colors on standard output.
pub fn has_colors() -> bool {
    colors(&io::stdout())
}

/// Returns the width of the terminal on standard output; `None` if it is not a terminal.
pub fn out_width() -> Option<usize> {
    width(&io::stdout())
}

/// Returns the width of the terminal on standard error; `None` if it is not a terminal.
pub fn err_width() -> Option<usize> {
    width(&io::stderr())
}

/// Starts a new line on standard error, if that is a terminal.
pub fn new_line() {
    if io::stderr().is_terminal() {
        let _ = writeln!(io::stderr());
    }
}

/// Whether to use colors on `stream`.
fn colors(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) && !is_dumb()
}

/// Whether standard error is a terminal that can draw a bar.
pub fn draws() -> bool {
    io::stderr().is_terminal() && !is_dumb()
}

/// Returns the width of the terminal on `stream`; `None` if it is not a terminal.
#[cfg(unix)]
fn width<S: IsTerminal + std::os::fd::AsFd>(stream: &S) -> Option<usize> {
    let size = terminal_size::terminal_size_of(stream).map_or(0, |(width, _)| usize::from(width.0));
    stream.is_terminal().then(|| narrowed(size, env::var("COLUMNS").ok().as_deref())).flatten()
}

/// Returns the width of the terminal on `stream`; `None` if it is not a terminal.
#[cfg(windows)]
fn width<S: IsTerminal + std::os::windows::io::AsHandle>(stream: &S) -> Option<usize> {
    let size = terminal_size::terminal_size_of(stream).map_or(0, |(width, _)| usize::from(width.0));
    stream.is_terminal().then(|| narrowed(size, env::var("COLUMNS").ok().as_deref())).flatten()
}

/// Returns the width of a terminal of `size` columns, limited by the value of COLUMNS; 0: the size is unknown, as over
/// some serial lines and in containers.
fn narrowed(size: usize, columns: Option<&str>) -> Option<usize> {
    let columns = columns.and_then(|columns| columns.parse().ok()).filter(|&columns: &usize| columns > 0);
    [Some(size).filter(|&size| size > 0), columns].into_iter().flatten().min()
}

/// Whether `c` is a control or invisible character.
fn is_control(c: char) -> bool {
    c.is_control() && !matches!(c, '\n' | '\t')
}

/// Writes a question to standard error, without a line break.
pub fn question(text: &str) -> io::Result<()> {
    write!(io::stderr(), "{} ", wrapped(&printable(text), err_width()))
}

/// Returns `text` with control characters except line breaks and tabs escaped (`\x1b`). Text from files or models may
/// contain them, and must not control the terminal.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(is_control) {
        return text.into();
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if is_control(c) {
            let _ = write!(shown, "\\x{:02x}", c as u32); // writing to a string cannot fail
        } else {
            shown.push(c);
        }
    }
    shown.into()
}

/// Standard output, and the only writer to it. Text for a terminal is escaped by [`printable`]; files and pipes receive
/// it unchanged.
pub struct Out {
    out: StdoutLock<'static>,
    terminal: bool,
}

/// Locks standard output.
pub fn out() -> Out {
    let out = io::stdout().lock();
    Out { terminal: out.is_terminal(), out }
}

impl Out {
    /// Whether it is a terminal.
    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Writes an escape sequence of our own, unescaped.
    pub fn style(&mut self, escape: &str) -> io::Result<()> {
        self.out.write_all(escape.as_bytes())
    }

    /// Writes `object` as JSON and a line break; at a terminal, control characters are JSON-escaped.
    pub fn json(&mut self, object: &impl Serialize, pretty: bool) -> io::Result<()> {
        let text = if pretty { serde_json::to_string_pretty(object) } else { serde_json::to_string(object) }?;
        let escape = |c: char| if is_control(c) { format!("\\u{:04x}", c as u32) } else { c.to_string() };
        let text = if self.terminal { text.chars().map(escape).collect() } else { text };
        writeln!(self.out, "{text}")
    }
}

impl Write for Out {
    /// Receives whole characters: `write!` writes strings.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.terminal {
            self.out.write_all(printable(&String::from_utf8_lossy(bytes)).as_bytes())?;
        } else {
            self.out.write_all(bytes)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Writes a line to standard error, dimmed if styles are allowed, ignoring write errors.
pub fn small_print(line: &str, styled: bool) {
    let (on, off) = if styled { ("\x1b[2m", "\x1b[0m") } else { ("", "") };
    let line = if io::stderr().is_terminal() { printable(line) } else { line.into() };
    let _ = writeln!(io::stderr(), "{on}{}{off}", wrapped(&line, err_width()));
}

/// Returns the description of a fallback.
pub fn describe_fallback(reason: &hymba::Error) -> String {
    let done = match reason {
        hymba::Error::CacheRange { .. } => "switched the KV cache to f32",
        _ => "falling back to CPU",
    };
    format!("{done}: {}", with_hint(reason.to_string(), reason, Interface::CommandLine))
}

/// Returns the error, its causes and the hint for this `interface` in one line; a cause already at the end of the line is
/// not repeated.
pub fn one_line(error: &anyhow::Error, interface: Interface) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if line.is_empty() {
            line = cause;
        } else if !line.ends_with(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    if let Some(error) = error.chain().find_map(|cause| cause.downcast_ref()) {
        line = with_hint(line, error, interface);
    }
    without_codes(&line).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Returns `text` without the standard library's error numbers: ` (os error 2)`.
pub fn without_codes(text: &str) -> String {
    const CODE: &str = " (os error ";
    let mut parts = text.split(CODE);
    let mut kept = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.split_once(')') {
            Some((code, rest)) if code.bytes().all(|byte| byte.is_ascii_digit()) => kept += rest,
            _ => kept = kept + CODE + part,
        }
    }
    kept
}

fn with_hint(message: String, error: &hymba::Error, interface: Interface) -> String {
    match hint(error, interface) {
        Some(hint) => format!("{message}; {hint}"),
        None => message,
    }
}

/// Whether the error is a closed pipe.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|e| e.downcast_ref::<io::Error>()).any(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// Prints clap's output: help or version on standard output, usage errors on standard error, prefixed with the
/// program's name.
pub fn show_parser_answer(answer: &clap::Error) -> ExitCode {
    if !answer.use_stderr() {
        return end_of_output(answer.print());
    }
    let text = answer.render();
    // clap quotes the arguments, which may contain file names expanded from `*`.
    let foreign = env::args_os().any(|argument| argument.to_string_lossy().contains(char::is_control));
    let text = match io::stderr().is_terminal() {
        true if foreign => printable(&text.to_string()).into_owned(),
        true if colors(&io::stderr()) => text.ansi().to_string(),
        _ => text.to_string(),
    };
    // As for all messages, a closed pipe is not an error.
    let text = text.replacen("error:", "hymba: error:", 1);
    let _ = io::stderr().write_all(wrapped(&text, err_width()).as_bytes());
    ExitCode::from(2)
}

/// Returns the exit code after writing all output, whose result is `written`.
pub fn end_of_output(written: io::Result<()>) -> ExitCode {
    match written.and_then(|()| io::stdout().flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            error(&without_codes(&format!("cannot write to standard output: {e}")));
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use anyhow::Context;

    use super::*;

    #[test]
    fn columns_narrows_a_terminal() {
        let cases = [
            (80, None, Some(80)),
            (80, Some("40"), Some(40)),
            (80, Some("200"), Some(80)),
            (80, Some("wide"), Some(80)),
            (80, Some("0"), Some(80)),
            (0, Some("40"), Some(40)),
            (0, None, None),
        ];
        for (size, columns, expected) in cases {
            assert_eq!(narrowed(size, columns), expected, "{size:?}, {columns:?}");
        }
    }

    #[test]
    fn causes_are_listed_once_in_one_line() {
        let missing = || io::Error::from(io::ErrorKind::NotFound);
        let error = anyhow::Error::from(hymba::Error::io("cannot open", "a.gguf", missing())).context("HYMBA_MODEL");
        let one_line = |error| one_line(&error, Interface::CommandLine);
        assert_eq!(one_line(error), "HYMBA_MODEL: cannot open a.gguf: entity not found");
        assert_eq!(one_line(anyhow::anyhow!("two\n  lines")), "two lines");
        let missing_file = hymba::Error::io("cannot open", "a (os error x)", io::Error::from_raw_os_error(2));
        assert_eq!(one_line(missing_file.into()), "cannot open a (os error x): No such file or directory");
        let empty = anyhow::Error::from(hymba::Error::NoTokenizer("a.gguf".into())).context("HYMBA_MODEL");
        let message = one_line(empty);
        assert!(
            message.starts_with("HYMBA_MODEL: a.gguf: has no tokenizer; convert the model again with `"),
            "{message}"
        );
        let error = Err::<(), _>(io::Error::from(io::ErrorKind::BrokenPipe)).context("while writing").unwrap_err();
        assert!(is_broken_pipe(&error) && !is_broken_pipe(&missing().into()));
    }

    /// All output passes through [`Out`], [`note`] or [`small_print`], which escape text from files and models.
    #[test]
    fn only_this_module_prints() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let (mut folders, mut checked, mut found) = (vec![root.clone()], 0, Vec::new());
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|e| e == "rs") && path != root.join("cli/terminal.rs") {
                    checked += 1;
                    let source = fs::read_to_string(&path).unwrap();
                    let lines = source.split("#[cfg(test)]\nmod tests").next().unwrap().lines().enumerate();
                    let printing = lines.filter(|(_, line)| prints(line));
                    found.extend(printing.map(|(i, line)| format!("{}:{}: {line}", path.display(), i + 1)));
                }
            }
        }
        assert!(found.is_empty() && checked > 100, "{checked} files, {found:#?}");
        for (line, expected) in [
            ("    writeln!(io::stdout(), \"{text}\")?;", true),
            ("    println!(\"{text}\");", true),
            ("    let out = stdout().lock();", true),
            ("    if io::stdout().is_terminal() {", false),
            ("    let use_stderr = answer.use_stderr();", false),
            ("//! println!()", false),
        ] {
            assert_eq!(prints(line), expected, "{line}");
        }
    }

    fn prints(line: &str) -> bool {
        let line = line.split("//").next().unwrap_or_default();
        let rest = ["stdout", "stderr"]
            .iter()
            .fold(line.to_owned(), |line, stream| line.replace(&format!("{stream}().is_terminal()"), ""));
        let is_word = |at: usize| !rest[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let words = ["stdout()", "stderr()", "print!", "println!", "eprint!", "eprintln!"];
        words.iter().any(|word| rest.match_indices(word).any(|(at, _)| is_word(at)))
    }

    #[test]
    fn control_characters_are_escaped() {
        for (text, shown) in [
            ("a\x1b[31mb\u{9b}0m\r\x7f\0", r"a\x1b[31mb\x9b0m\x0d\x7f\x00"),
            ("one\n\ttwo – é", "one\n\ttwo – é"),
            ("", ""),
        ] {
            assert_eq!(printable(text), shown);
        }
    }
}
