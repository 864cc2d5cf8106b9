//! Settings: flags that can also be given as environment variables or in the configuration file. Flags override
//! variables, and variables override the file. Prompts, output files and safety overrides are never settings.

use std::{
    env,
    ffi::OsString,
    fmt::Display,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use clap::{
    Arg, ArgMatches, Command, Error,
    builder::StyledStr,
    error::{ContextKind, ContextValue, ErrorKind as Refusal},
    parser::ValueSource,
};

use super::terminal::without_codes;

/// The commands that accept every setting; the others accept those of [`COMMON`].
const SESSIONS: [&str; 3] = ["run", "chat", "serve"];
/// Settings that mean the same in every command that has the flag.
const COMMON: [&str; 3] = ["model", "threads", "backend"];
/// The names of all settings: long flags.
pub const NAMES: [&str; 18] = [
    "model",
    "context",
    "threads",
    "backend",
    "cache-type",
    "temp",
    "top-k",
    "top-p",
    "min-p",
    "repeat-penalty",
    "repeat-last-n",
    "speculate",
    "color",
    "host",
    "port",
    "parallel",
    "cache-memory",
    "api-key-file",
];

/// Those that name a file.
const FILES: [&str; 2] = ["model", "api-key-file"];

/// The variable for the configuration file; if empty, none is read.
const FILE_VARIABLE: &str = "HYMBA_CONFIG";
/// Maximum size of a configuration file.
const FILE_BYTES: u64 = 64 << 10;

/// The source of a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Variable(String),
    File(PathBuf),
}

impl Origin {
    /// Returns the variable's name or the file's path.
    pub fn name(&self) -> String {
        match self {
            Self::Variable(name) => name.clone(),
            Self::File(path) => path.display().to_string(),
        }
    }
}

/// A setting with a value.
#[derive(Clone, Debug)]
pub struct Setting {
    /// One of [`NAMES`].
    pub name: &'static str,
    pub value: OsString,
    pub origin: Origin,
    /// Where and how it is set, for messages: `HYMBA_TEMP=0.5` or `config.toml: temp = 0.5`.
    pub source: String,
}

/// Returns the variable of a setting, such as `HYMBA_TOP_K`.
pub fn variable(name: &str) -> String {
    format!("HYMBA_{}", name.replace('-', "_").to_uppercase())
}

/// Returns the value of [`FILE_VARIABLE`].
fn named_file() -> Option<PathBuf> {
    env::var_os(FILE_VARIABLE).map(PathBuf::from)
}

/// Returns where the configuration file is, whether or not it exists.
pub fn file() -> Option<PathBuf> {
    if let Some(path) = named_file() {
        return Some(path).filter(|path| !path.as_os_str().is_empty());
    }
    let folder = if cfg!(windows) {
        dirs::config_dir()
    } else {
        let xdg = env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
        xdg.or_else(|| dirs::home_dir().map(|home| home.join(".config")))
    };
    Some(folder?.join("hymba").join("config.toml"))
}

/// Returns the settings from the environment and the configuration file. The default file may be absent; a file named by
/// [`FILE_VARIABLE`] must exist.
pub fn read() -> Result<Vec<Setting>, String> {
    if let Some(path) = named_file().and(file())
        && let Err(e) = fs::metadata(&path)
    {
        return Err(without_codes(&format!("{FILE_VARIABLE}: cannot read {}: {e}", path.display())));
    }
    read_existing()
}

/// Like [`read`], but a file that is absent is always allowed.
pub fn read_existing() -> Result<Vec<Setting>, String> {
    let in_file = match file() {
        Some(path) => read_file(&path)?,
        None => Vec::new(),
    };
    let from_variable = |name| {
        let variable = variable(name);
        let value = env::var_os(&variable).filter(|value| !value.is_empty())?;
        let source = format!("{variable}={}", value.display());
        Some(Setting { name, value, origin: Origin::Variable(variable), source })
    };
    let set = |name| from_variable(name).or_else(|| in_file.iter().find(|setting| setting.name == name).cloned());
    Ok(NAMES.into_iter().filter_map(set).collect())
}

fn read_file(path: &Path) -> Result<Vec<Setting>, String> {
    let fail = |reason: String| without_codes(&format!("{}: {reason}", path.display()));
    match fs::metadata(path) {
        Ok(meta) if meta.len() > FILE_BYTES => return Err(fail("is too large for a configuration file".into())),
        Ok(meta) if !meta.is_file() => return Err(fail("is not a regular file".into())),
        Ok(_) => {}
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        // After `su`, the home folder may belong to another user.
        Err(e) if e.kind() == ErrorKind::PermissionDenied && env::var_os(FILE_VARIABLE).is_none() => {
            return Ok(Vec::new());
        }
        Err(e) => return Err(fail(format!("cannot be read: {e}"))),
    }
    let text = fs::read_to_string(path).map_err(|e| fail(format!("cannot be read: {e}")))?;
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| {
        let line = e.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
        fail(format!("line {line}: {}", e.message()))
    })?;
    let setting = |(key, value): (&String, &toml::Value)| {
        let name = NAMES
            .into_iter()
            .find(|name| name == key)
            .ok_or_else(|| fail(format!("unknown setting `{key}`; available: {}", NAMES.join(", "))))?;
        let is_text = value.is_str();
        let value: OsString = match value {
            toml::Value::String(text) if FILES.contains(&name) => expand_home(text),
            toml::Value::String(text) => text.into(),
            toml::Value::Integer(number) => number.to_string().into(),
            toml::Value::Float(number) => number.to_string().into(),
            _ => return Err(fail(format!("`{key}` must be a string or a number"))),
        };
        let shown = if is_text { format!("{:?}", value.display().to_string()) } else { value.display().to_string() };
        let source = format!("{}: {key} = {shown}", path.display());
        Ok(Setting { name, value, origin: Origin::File(path.into()), source })
    };
    table.iter().map(setting).collect()
}

fn expand_home(text: &str) -> OsString {
    match (text.strip_prefix("~/"), dirs::home_dir()) {
        (Some(rest), Some(home)) => home.join(rest).into(),
        _ => text.into(),
    }
}

/// Returns `command` with `settings` as the defaults of its flags, and with the variables in its help.
pub fn apply(command: Command, settings: &[Setting]) -> Command {
    command.mut_subcommands(|sub| {
        let all = SESSIONS.contains(&sub.get_name());
        apply_to(sub, all, settings)
    })
}

fn apply_to(command: Command, all: bool, settings: &[Setting]) -> Command {
    let ids = command.get_arguments().filter_map(|arg| {
        let name = arg.get_long().and_then(|long| NAMES.into_iter().find(|name| *name == long))?;
        (all || COMMON.contains(&name)).then(|| (arg.get_id().clone(), name))
    });
    let ids: Vec<_> = ids.collect();
    let command = ids.into_iter().fold(command, |command, (id, name)| {
        command.mut_arg(id, |arg| {
            let arg = show_variable(arg, name);
            match settings.iter().find(|setting| setting.name == name) {
                // The source of the model is reported when it is opened.
                Some(Setting { name: "model", origin: Origin::Variable(_), .. }) | None => arg,
                Some(setting) => arg.default_value(setting.value.clone()),
            }
        })
    });
    command.mut_subcommands(|sub| apply_to(sub, all, settings))
}

/// Returns those of `settings` that no flag of `flags` overrides.
pub fn effective(settings: &[Setting], flags: &ArgMatches) -> Vec<Setting> {
    let is_default = |setting: &&Setting| {
        let id = setting.name.replace('-', "_");
        flags.ids().any(|known| *known == *id) && flags.value_source(&id) == Some(ValueSource::DefaultValue)
    };
    settings.iter().filter(is_default).cloned().collect()
}

fn show_variable(arg: Arg, name: &str) -> Arg {
    if name == "model" {
        return arg; // its help already mentions it
    }
    let shown = |help: &StyledStr| format!("{help} [env: {}]", variable(name));
    let (help, long) = (arg.get_help().map(shown), arg.get_long_help().map(shown));
    let arg = match help {
        Some(help) => arg.help(help),
        None => arg,
    };
    match long {
        Some(long) => arg.long_help(long),
        None => arg,
    }
}

/// Returns the error for an invalid setting: without the usage of a command, which is not the cause.
pub fn invalid(message: impl Display) -> Error {
    Error::raw(Refusal::InvalidValue, format!("{message}\n"))
}

/// Attributes `error` to the variable or file whose value `parse` rejects, if there is one; `parse` takes settings and
/// parses the command line.
pub fn attribute_error(error: Error, settings: &[Setting], parse: impl Fn(&[Setting]) -> Result<(), Error>) -> Error {
    if !matches!(error.kind(), Refusal::InvalidValue | Refusal::ValueValidation) {
        return error;
    }
    let refused = settings.iter().find_map(|setting| {
        // clap does not report the source of an invalid value, so each setting is tried alone.
        let reason = parse(std::slice::from_ref(setting)).err()?;
        parse(&[]).is_ok().then_some((setting, reason))
    });
    let Some((setting, reason)) = refused else { return error };
    let problem = match (reason.get(ContextKind::ValidValue), std::error::Error::source(&reason)) {
        (Some(ContextValue::Strings(valid)), _) if !valid.is_empty() => format!("must be one of {}", valid.join(", ")),
        (_, Some(problem)) => problem.to_string(),
        _ => "invalid value".into(),
    };
    invalid(format_args!("{}: {problem}", setting.source))
}
