//! Slash commands: `/NAME ARGUMENT`.

use std::path::PathBuf;

use hymba::{engine::conversation::Overflow, limits, sample::Setting};

use crate::cli::wording::nearest;

/// A command, parsed.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    Help,
    Exit,
    Clear,
    System(Option<String>),
    Set(Option<ChatSetting>),
    Show,
    /// The last N turns, or all.
    History(Option<usize>),
    Undo(usize),
    Regen,
    Edit(Option<String>),
    /// The path, and whether a file of another kind may be replaced.
    Save(PathBuf, bool),
    Load(PathBuf),
    Read(PathBuf),
    /// The format that constrains replies; `None`: no constraint.
    Format(Option<PathBuf>),
    /// The result of a tool call; `None`: the text attached by /read.
    Tool(Option<String>),
    Branch(Option<String>),
    Switch(String),
}

/// A setting of /set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ChatSetting {
    Sampling(Setting, f64),
    Seed(u64),
    /// Maximum number of tokens per reply.
    Predict(Option<usize>),
    /// Context size in tokens.
    Context(usize),
    Overflow(Overflow),
}

/// Name, arguments and description, in the order of /help.
pub const COMMANDS: [(&str, &str, &str); 17] = [
    ("help", "", "list the commands"),
    ("exit", "", "exit (also Ctrl-D)"),
    ("clear", "", "clear the conversation"),
    ("system", "[TEXT]", "set the system prompt; without TEXT: remove it"),
    ("set", "[NAME VALUE]", "change a setting: /set temp 0.7; without NAME: show them"),
    ("show", "", "show settings, context, memory and speed"),
    ("history", "[N]", "show the conversation, or its last N turns"),
    ("undo", "[N]", "undo the last turn, or the last N"),
    ("regen", "", "regenerate the last reply"),
    ("edit", "[TEXT]", "edit the last message and regenerate the reply"),
    ("save", "[--force] FILE", "save the conversation; --force: replace a file of another kind"),
    ("load", "FILE", "load a conversation"),
    ("read", "FILE", "attach a file to the next message"),
    ("format", "FILE|off", "constrain replies to a JSON schema or a grammar; off: no constraint"),
    ("tool", "[RESULT]", "answer the model's tool call; without RESULT: with the text attached by /read"),
    ("branch", "[NAME]", "create a branch; without NAME: list them"),
    ("switch", "NAME", "switch to a branch"),
];

/// Returns the names of the settings.
pub fn setting_names() -> impl Iterator<Item = &'static str> {
    Setting::ALL.map(Setting::name).into_iter().chain(["seed", "predict", "context", "overflow"])
}

impl Command {
    /// Parses `line` as a command; `None` if it is a message. A message with a leading slash is typed with two.
    pub fn parse(line: &str) -> Option<Result<Self, String>> {
        let rest = line.strip_prefix('/').filter(|rest| !rest.starts_with('/'))?;
        let (name, argument) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        Some(Self::new(name, argument.trim()))
    }

    fn new(name: &str, argument: &str) -> Result<Self, String> {
        let text = || Some(argument.to_owned()).filter(|text| !text.is_empty());
        let usage = || {
            let known = COMMANDS.iter().find(|command| command.0 == name);
            known.map(|(name, after, description)| format!("/{name} {after}: {description}")).unwrap_or_default()
        };
        let file = || text().map(|text| path(&text)).ok_or_else(usage);
        let alone =
            |command| if argument.is_empty() { Ok(command) } else { Err(format!("/{name} takes no arguments")) };
        match name {
            "help" | "?" => alone(Self::Help),
            "exit" | "quit" | "bye" => alone(Self::Exit),
            "clear" => alone(Self::Clear),
            "show" => alone(Self::Show),
            "history" if argument.is_empty() => Ok(Self::History(None)),
            "history" => number(name, argument).map(|turns| Self::History(Some(turns))),
            "regen" => alone(Self::Regen),
            "system" => Ok(Self::System(text())),
            "edit" => Ok(Self::Edit(text())),
            "tool" => Ok(Self::Tool(text())),
            "branch" => Ok(Self::Branch(text())),
            "switch" => text().map(Self::Switch).ok_or_else(usage),
            "save" => match argument.strip_prefix("--force").filter(|rest| rest.starts_with(char::is_whitespace)) {
                Some(rest) => Ok(Self::Save(path(rest.trim_start()), true)),
                None => file().map(|file| Self::Save(file, false)),
            },
            "load" => file().map(Self::Load),
            "read" => file().map(Self::Read),
            "format" if argument == "off" => Ok(Self::Format(None)),
            "format" => file().map(|file| Self::Format(Some(file))),
            "undo" if argument.is_empty() => Ok(Self::Undo(1)),
            "undo" => number(name, argument).map(Self::Undo),
            "set" if argument.is_empty() => Ok(Self::Set(None)),
            "set" => chat_setting(argument).map(|setting| Self::Set(Some(setting))),
            _ => {
                let meant = nearest(name, COMMANDS.iter().map(|command| command.0));
                let hint = meant.map_or_else(|| "try /help".into(), |meant| format!("did you mean /{meant}?"));
                Err(format!("unknown command /{name}; {hint} (to send a leading slash, type //)"))
            }
        }
    }
}

fn number(name: &str, argument: &str) -> Result<usize, String> {
    argument.parse().map_err(|_| format!("/{name} {argument}: must be a non-negative integer"))
}

fn chat_setting(text: &str) -> Result<ChatSetting, String> {
    let text = text.strip_prefix("parameter ").map_or(text, str::trim_start); // ollama's syntax
    let (name, value) = text.split_once(['=', ' ']).unwrap_or((text, ""));
    let (name, value) = (name.trim_start_matches('-').replace('_', "-"), value.trim());
    let refuse = |must: &str| format!("/set {name} {value}: must be {must}");
    let number = || value.parse::<f64>().map_err(|_| refuse("a number"));
    match &*name {
        "seed" => value.parse().map(ChatSetting::Seed).map_err(|_| refuse("a non-negative integer")),
        "predict" | "n" | "num-predict" | "n-predict" | "max-tokens" => match number()? {
            -1.0 => Ok(ChatSetting::Predict(None)),
            n if n >= 0.0 && n.fract() == 0.0 => Ok(ChatSetting::Predict(Some(n as usize))),
            _ => Err(refuse("a non-negative integer, or -1 for no limit")),
        },
        "context" | "c" | "ctx-size" | "num-ctx" => match value.parse() {
            Ok(tokens @ 1..=limits::CONTEXT) => Ok(ChatSetting::Context(tokens)),
            _ => Err(refuse(&format!("a whole number from 1 to {}", limits::CONTEXT))),
        },
        "overflow" => match value {
            "stop" => Ok(ChatSetting::Overflow(Overflow::Stop)),
            "slide" => Ok(ChatSetting::Overflow(Overflow::Slide)),
            _ => Err(refuse("stop or slide")),
        },
        _ => {
            let known = match &*name {
                "temperature" => "temp",
                other => other,
            };
            match Setting::ALL.into_iter().find(|setting| setting.name() == known) {
                Some(setting) => Ok(ChatSetting::Sampling(setting, number()?)),
                None => Err(format!(
                    "unknown setting `{name}`; available: {}",
                    setting_names().collect::<Vec<_>>().join(", ")
                )),
            }
        }
    }
}

/// Expands a typed path: `~` is the home folder, and a backslash escapes a space.
fn path(text: &str) -> PathBuf {
    let text = if cfg!(unix) { rustyline::completion::unescape(text, Some('\\')) } else { text.into() };
    match (text.strip_prefix("~/"), dirs::home_dir()) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => PathBuf::from(&*text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_commands_or_messages() {
        let parse = |line| Command::parse(line).map(Result::unwrap);
        assert_eq!(parse("Hello /help"), None);
        assert_eq!(parse("//etc"), None);
        assert_eq!(parse("/help"), Some(Command::Help));
        assert_eq!(parse("/undo"), Some(Command::Undo(1)));
        assert_eq!(parse("/undo  3 "), Some(Command::Undo(3)));
        assert_eq!(parse("/system Be brief.\nVery."), Some(Command::System(Some("Be brief.\nVery.".into()))));
        assert_eq!(parse("/save my\\ file"), Some(Command::Save("my file".into(), false)));
        assert_eq!(parse("/save --force  a b"), Some(Command::Save("a b".into(), true)));
        assert_eq!(parse("/save --forced"), Some(Command::Save("--forced".into(), false)));
        assert_eq!(parse("/set temp 0.7"), Some(Command::Set(Some(ChatSetting::Sampling(Setting::Temperature, 0.7)))));
        assert_eq!(parse("/set --top_k=5"), Some(Command::Set(Some(ChatSetting::Sampling(Setting::TopK, 5.0)))));
        assert_eq!(parse("/set seed 7"), Some(Command::Set(Some(ChatSetting::Seed(7)))));
        assert_eq!(parse("/set n -1"), Some(Command::Set(Some(ChatSetting::Predict(None)))));
        assert_eq!(parse("/set context 4096"), Some(Command::Set(Some(ChatSetting::Context(4096)))));
        assert_eq!(parse("/set overflow slide"), Some(Command::Set(Some(ChatSetting::Overflow(Overflow::Slide)))));
        let temperature = Some(Command::Set(Some(ChatSetting::Sampling(Setting::Temperature, 0.5))));
        assert_eq!(parse("/set parameter temperature 0.5"), temperature);
        assert_eq!(
            (parse("/history"), parse("/history 2")),
            (Some(Command::History(None)), Some(Command::History(Some(2))))
        );
        assert_eq!(parse("/bye"), Some(Command::Exit));
        assert_eq!(
            (parse("/tool"), parse("/tool {}")),
            (Some(Command::Tool(None)), Some(Command::Tool(Some("{}".into()))))
        );
        assert_eq!(parse("/format off"), Some(Command::Format(None)));
        assert_eq!(parse("/format a.json"), Some(Command::Format(Some("a.json".into()))));
    }

    #[test]
    fn errors_say_what_is_wrong() {
        let refusal = |line| Command::parse(line).unwrap().unwrap_err();
        assert!(refusal("/hlep").starts_with("unknown command /hlep; did you mean /help?"));
        assert!(refusal("/frobnicate").starts_with("unknown command /frobnicate; try /help"));
        assert!(refusal("/").contains("/help"));
        assert!(refusal("/undo x").contains("integer"));
        assert!(refusal("/load").starts_with("/load FILE"));
        assert!(refusal("/format").starts_with("/format FILE|off"));
        assert!(refusal("/show me").contains("no arguments"));
        assert!(refusal("/set heat 1").contains("temp, top-k"));
        assert!(refusal("/set context 0").contains("from 1 to"));
        assert!(refusal("/set overflow wrap").ends_with("must be stop or slide"));
        assert!(refusal("/set seed -1").contains("non-negative integer"));
    }
}
