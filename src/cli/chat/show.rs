//! What /show and /help say.

use hymba::{
    engine::{Conversation, conversation::Overflow, generate::Timings},
    sample::Setting,
};

use super::commands::COMMANDS;

/// The commands.
pub fn help() -> String {
    let mut text = String::new();
    for (name, after, what) in COMMANDS {
        text += &format!("{:<22} {what}\n", format!("/{name} {after}"));
    }
    text + "\nA message of several lines: a backslash at the end of a line, or \"\"\" before and after it.\n\
            Ctrl-C stops a reply. Tab completes, Ctrl-R searches what was typed before.\n"
}

/// A number of turns.
pub fn turns(count: usize) -> String {
    if count == 1 { "1 turn".into() } else { format!("{count} turns") }
}

/// How much of the context is used.
pub fn usage(conversation: &mut Conversation<'_>) -> String {
    let (used, context) = (conversation.used(), conversation.timeline().context());
    format!("{used} of {context} tokens ({} %)", 100 * used / context.max(1))
}

/// What happens at the end of the context.
pub fn at_the_end(conversation: &Conversation<'_>) -> &'static str {
    match conversation.options().overflow {
        Overflow::Stop => "the reply stops there (--overflow slide drops the oldest turns instead; -c has more room)",
        Overflow::Slide => "the oldest turns are dropped and the others read again",
    }
}

/// Settings, context, memory, speed.
pub fn page(c: &mut Conversation<'_>, model: &str, last: Option<&Timings>, undo_memory: usize) -> String {
    let mut lines = Vec::new();
    let mut line = |name: &str, what: String| lines.push(format!("{name:<9} {what}"));
    line("model", model.into());
    line("system", c.system().map_or_else(|| "none".into(), |text| text.replace('\n', " ")));
    let template = match (&c.options().template, c.stops()) {
        (None, _) => "none: messages and replies are one running text".into(),
        (Some(_), []) => "replies end where the model says so".into(),
        (Some(_), stops) => format!("replies end at {} and where the model says so", stops.join(" ")),
    };
    line("template", template);
    line("branch", format!("{} (of {}), {}", c.branch_name(), c.branches().join(", "), turns(c.turns().len())));
    line("context", format!("{} used; at its end {}", usage(c), at_the_end(c)));
    let config = c.timeline().session().model().config();
    let windowed = config.windowed.iter().filter(|&&windowed| windowed).count();
    if let (Some(window), 1..) = (config.window, windowed) {
        let global = config.layers - windowed;
        line("windows", format!("{windowed} layers keep the last {window} tokens and never fill; {global} keep all"));
    }
    let cache = c.timeline().session().cache_type().name();
    line("cache", format!("{:.1} MB, keys and values as {cache}", c.timeline().session().cache_bytes() as f64 / 1e6));
    let bytes = c.timeline().checkpoint_bytes() as f64 / 1e6;
    line("undo", format!("{bytes:.1} of {:.0} MB used for checkpoints to go back to", undo_memory as f64 / 1e6));
    if let Some(t) = last {
        let (prompt, decode) = (t.prompt_rate(), t.decode_rate());
        line(
            "speed",
            format!(
                "read {} tok, {prompt:.1} tok/s; wrote {} tok, {decode:.1} tok/s",
                t.prompt_tokens, t.generated_tokens
            ),
        );
    }
    let limit = c.options().limit.map_or_else(|| "-1".into(), |limit| limit.to_string());
    let sampler = c.sampler();
    let knobs = Setting::ALL.map(|setting| format!("{} {}", setting.name(), sampler.params().get(setting)));
    line("sampling", format!("{}, seed {}, predict {limit}", knobs.join(", "), sampler.seed()));
    lines.join("\n") + "\n"
}
