//! The commands of a conversation: a slash, a name, and what comes after it.

use std::path::PathBuf;

use hymba::sample::Setting;

/// A command, parsed.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    Help,
    Exit,
    Clear,
    System(Option<String>),
    Set(Option<Knob>),
    Show,
    Undo(usize),
    Regen,
    Edit(Option<String>),
    /// Where to, and whether over a file that is something else.
    Save(PathBuf, bool),
    Load(PathBuf),
    Read(PathBuf),
    Branch(Option<String>),
    Switch(String),
}

/// What /set sets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Knob {
    Sampling(Setting, f64),
    Seed(u64),
    /// Tokens of a reply at most.
    Predict(Option<usize>),
}

/// Name, what comes after it, and what it does; in the order in which /help lists them.
pub const COMMANDS: [(&str, &str, &str); 14] = [
    ("help", "", "list the commands"),
    ("exit", "", "leave (also Ctrl-D)"),
    ("clear", "", "forget what was said"),
    ("system", "[TEXT]", "what the model should be; without TEXT: nothing"),
    ("set", "[NAME VALUE]", "a sampling flag, seed or predict: /set temp 0.7"),
    ("show", "", "settings, context, memory and speed"),
    ("undo", "[N]", "take back the last N turns"),
    ("regen", "", "another reply to the last message"),
    ("edit", "[TEXT]", "change the last message and hear a new reply"),
    ("save", "[--force] FILE", "write the conversation to a file; --force: over a file of another kind too"),
    ("load", "FILE", "go on with a conversation from a file"),
    ("read", "FILE", "put a file's text before the next message"),
    ("branch", "[NAME]", "go on as a second continuation; without NAME: list them"),
    ("switch", "NAME", "go to another continuation"),
];

/// Names that /set knows.
pub fn knobs() -> impl Iterator<Item = &'static str> {
    Setting::ALL.map(Setting::name).into_iter().chain(["seed", "predict"])
}

impl Command {
    /// The command that `line` is; `None` if it is a message. Two slashes begin a message with one.
    pub fn parse(line: &str) -> Option<Result<Self, String>> {
        let rest = line.strip_prefix('/').filter(|rest| !rest.starts_with('/'))?;
        let (name, argument) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        Some(Self::new(name, argument.trim()))
    }

    fn new(name: &str, argument: &str) -> Result<Self, String> {
        let text = || Some(argument.to_owned()).filter(|text| !text.is_empty());
        let usage = || {
            let known = COMMANDS.iter().find(|command| command.0 == name);
            known.map(|(name, after, what)| format!("/{name} {after}: {what}")).unwrap_or_default()
        };
        let file = || text().map(|text| path(&text)).ok_or_else(usage);
        let alone =
            |command| if argument.is_empty() { Ok(command) } else { Err(format!("/{name} takes nothing more")) };
        match name {
            "help" | "?" => alone(Self::Help),
            "exit" | "quit" => alone(Self::Exit),
            "clear" => alone(Self::Clear),
            "show" => alone(Self::Show),
            "regen" => alone(Self::Regen),
            "system" => Ok(Self::System(text())),
            "edit" => Ok(Self::Edit(text())),
            "branch" => Ok(Self::Branch(text())),
            "switch" => text().map(Self::Switch).ok_or_else(usage),
            "save" => match argument.strip_prefix("--force").filter(|rest| rest.starts_with(char::is_whitespace)) {
                Some(rest) => Ok(Self::Save(path(rest.trim_start()), true)),
                None => file().map(|file| Self::Save(file, false)),
            },
            "load" => file().map(Self::Load),
            "read" => file().map(Self::Read),
            "undo" if argument.is_empty() => Ok(Self::Undo(1)),
            "undo" => argument.parse().map(Self::Undo).map_err(|_| format!("/undo {argument}: a number is needed")),
            "set" if argument.is_empty() => Ok(Self::Set(None)),
            "set" => knob(argument).map(|knob| Self::Set(Some(knob))),
            _ => Err(format!("there is no command /{name}; /help lists them, and // begins a message with a slash")),
        }
    }
}

fn knob(text: &str) -> Result<Knob, String> {
    let (name, value) = text.split_once(['=', ' ']).unwrap_or((text, ""));
    let (name, value) = (name.trim_start_matches('-').replace('_', "-"), value.trim());
    let number = || value.parse::<f64>().map_err(|_| format!("/set {name} {value}: a number is needed"));
    match &*name {
        "seed" => value.parse().map(Knob::Seed).map_err(|_| format!("/set seed {value}: a whole number is needed")),
        "predict" | "n" => match number()? {
            -1.0 => Ok(Knob::Predict(None)),
            n if n >= 0.0 && n.fract() == 0.0 => Ok(Knob::Predict(Some(n as usize))),
            _ => Err(format!("/set {name} {value}: a whole number is needed, or -1")),
        },
        _ => match Setting::ALL.into_iter().find(|setting| setting.name() == name) {
            Some(setting) => Ok(Knob::Sampling(setting, number()?)),
            None => Err(format!("there is no setting `{name}`; there is {}", knobs().collect::<Vec<_>>().join(", "))),
        },
    }
}

/// A path as people type it: `~` is the home folder, a backslash takes the meaning off a space.
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
        assert_eq!(parse("/set temp 0.7"), Some(Command::Set(Some(Knob::Sampling(Setting::Temperature, 0.7)))));
        assert_eq!(parse("/set --top_k=5"), Some(Command::Set(Some(Knob::Sampling(Setting::TopK, 5.0)))));
        assert_eq!(parse("/set seed 7"), Some(Command::Set(Some(Knob::Seed(7)))));
        assert_eq!(parse("/set n -1"), Some(Command::Set(Some(Knob::Predict(None)))));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let refusal = |line| Command::parse(line).unwrap().unwrap_err();
        assert!(refusal("/hlep").contains("no command /hlep"));
        assert!(refusal("/").contains("/help"));
        assert!(refusal("/undo x").contains("number"));
        assert!(refusal("/load").starts_with("/load FILE"));
        assert!(refusal("/show me").contains("nothing more"));
        assert!(refusal("/set temperature 1").contains("temp, top-k"));
        assert!(refusal("/set seed -1").contains("whole number"));
    }
}
