//! The output of /show and /help.

use hymba::{
    engine::{
        Conversation,
        conversation::{Overflow, Turn},
        generate::Timings,
    },
    sample::Setting,
    text::{ParsedReply, Tools, parse_reply},
};

use super::{commands::COMMANDS, screen::CALL};
use crate::cli::{
    tools,
    wording::{counted, drafts, grouped, rate},
    wrap::wrapped,
};

/// Returns the list of commands.
pub fn help(width: Option<usize>) -> String {
    let narrow = width.is_some_and(|width| width < 70);
    let mut text = String::new();
    for (name, after, description) in COMMANDS {
        let command = format!("/{name} {after}");
        text +=
            &if narrow { format!("{command}\n  {description}\n") } else { format!("{command:<22} {description}\n") };
    }
    text + "\nMultiline message: end a line with a backslash, or put \"\"\" before and after it. // sends a leading slash.\n\
            Ctrl-C stops a reply. Tab completes, Ctrl-R searches the history.\n"
}

/// Returns the user's message, or the tool results, as typed.
pub fn query(turn: &Turn) -> String {
    if turn.answers_results() {
        let results = turn.results.iter().map(|result| format!("/tool {result}"));
        return results.collect::<Vec<_>>().join("\n");
    }
    turn.user.clone()
}

/// Returns a reply that may call `tools`, its calls on lines of their own.
pub fn reply(reply: &str, tools: Option<&Tools>) -> String {
    let Some(tools) = tools else { return reply.into() };
    let ParsedReply { text, calls } = parse_reply(reply, tools);
    let calls = calls.iter().map(|call| format!("{CALL}{}", tools::shown(call)));
    let text = Some(text).filter(|text| !text.is_empty());
    text.into_iter().chain(calls).collect::<Vec<_>>().join("\n")
}

/// Returns a number of turns as text.
pub fn turns(count: usize) -> String {
    counted(count, "turn")
}

/// Returns how much of the context is used, as text.
pub fn usage(conversation: &mut Conversation<'_>) -> String {
    let (used, context) = (conversation.used(), conversation.timeline().context());
    format!("{} of {} tokens", grouped(used), grouped(context))
}

/// Returns the overflow policy's name.
pub fn overflow(conversation: &Conversation<'_>) -> &'static str {
    match conversation.options().overflow {
        Overflow::Stop => "stop",
        Overflow::Slide => "slide",
    }
}

/// Returns settings, context, memory and speed as text.
pub fn page(
    c: &mut Conversation<'_>,
    model: &str,
    last: Option<&Timings>,
    undo_memory: usize,
    width: Option<usize>,
) -> String {
    const NAMES: usize = 10;
    let mut lines = Vec::new();
    let width = width.map(|width| width.saturating_sub(NAMES));
    let mut line = |name: &str, description: String| {
        let description = wrapped(&description, width).replace('\n', &format!("\n{:NAMES$}", ""));
        lines.push(format!("{name:<NAMES$}{description}"));
    };
    line("model", model.into());
    line("system", c.system().map_or_else(|| "none".into(), |text| text.replace('\n', " ")));
    let stops: Vec<_> = c.stops().iter().map(String::as_str).chain(["EOS"]).collect();
    let template = if c.options().template.is_some() { "chat template" } else { "none (plain continuation)" };
    line("template", format!("{template}; stop: {}", stops.join(", ")));
    line("branch", format!("{} (of {}), {}", c.branch_name(), c.branches().join(", "), turns(c.turns().len())));
    let description = match c.options().overflow {
        Overflow::Stop => "stop (the reply stops there)",
        Overflow::Slide => "slide (drops the oldest turns)",
    };
    line("context", format!("{} used; overflow {description}", usage(c)));
    if let Some(tools) = c.tools() {
        line("tools", tools.iter().map(|tool| &*tool.name).collect::<Vec<_>>().join(", "));
    }
    if !c.contexts().is_empty() {
        line("contexts", counted(c.contexts().len(), "text"));
    }
    if c.options().constraint.is_some() {
        line("format", "constrained; /format off removes the constraint".into());
    }
    let config = c.timeline().session().model().config();
    let windowed = config.windowed.iter().filter(|&&windowed| windowed).count();
    if let (Some(window), 1..) = (config.window, windowed) {
        let global = config.layers - windowed;
        line("attention", format!("{windowed} sliding-window layers ({window} tokens), {global} global"));
    }
    let cache = c.timeline().session().cache_type().name();
    line("cache", format!("{:.1} MB, {cache}", c.timeline().session().cache_bytes() as f64 / 1e6));
    let bytes = c.timeline().checkpoint_bytes() as f64 / 1e6;
    line("undo", format!("{bytes:.1} of {:.0} MB of checkpoints used", undo_memory as f64 / 1e6));
    if let Some(t) = last {
        let (prompt, decode) = (rate(t.prompt_rate()), rate(t.decode_rate()));
        let drafts = drafts(t).map(|drafts| format!("; {drafts}")).unwrap_or_default();
        let (read, generated) = (t.prompt_tokens, t.generated_tokens);
        line("speed", format!("prompt {read} tok, {prompt}; generated {generated} tok, {decode}{drafts}"));
    }
    let limit = c.options().limit.map_or_else(|| "-1".into(), |limit| limit.to_string());
    let (overflow, context) = (overflow(c), c.timeline().context());
    let sampler = c.sampler();
    let knobs = Setting::ALL.map(|setting| format!("{} {}", setting.name(), sampler.params().get(setting)));
    let (knobs, seed) = (knobs.join(", "), sampler.seed());
    line("settings", format!("{knobs}, seed {seed}, predict {limit}, context {context}, overflow {overflow}"));
    lines.join("\n") + "\n"
}
