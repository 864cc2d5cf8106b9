//! Conversations with the demo model: the processed tokens match the template after undo, regenerate, branches, slides,
//! and loading a file.

mod common;

use std::{
    cell::RefCell,
    path::Path,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, Ordering},
    },
};

use common::unless_emulated;
use hymba::{
    Constraint, Error, Mismatch, Shape, Vocabulary,
    engine::{
        Conversation, Model, Session, SessionOptions, Timeline,
        conversation::{Options, Overflow, Reply, ReplySink},
        generate::StopReason,
        timeline::{Watch, passes},
    },
    forward::Phase,
    sample::{Sampler, SamplingParams},
    text::{Message, Role, Template, Tokenizer},
};

/// Like the template of Hymba-Instruct.
const HYMBA: &str = "{{ '<extra_id_0>System' }}{% for m in messages %}{% if m['role'] == 'system' %}{{ '\\n' + \
    m['content'].strip() }}{% endif %}{% endfor %}{{ '\\n\\n' }}{% for m in messages %}{% if m['role'] == 'user' %}\
    {{ '<extra_id_1>User\\n' + m['content'].strip() + '\\n' }}{% elif m['role'] == 'assistant' %}\
    {{ '<extra_id_1>Assistant\\n' + m['content'].strip() + '\\n' }}{% endif %}{% endfor %}\
    {% if add_generation_prompt %}{{ '<extra_id_1>Assistant\\n' }}{% endif %}";
const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
const LLAMA: &str = "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content }} [/INST]\
    {% elif m.role == 'assistant' %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}";
/// Removes past replies up to their last space, as other templates do up to `</think>`.
const FORGETFUL: &str = "{% for m in messages %}{{ m.role }}: {% if m.role == 'assistant' %}\
    {{ m.content.split(' ')[-1].lstrip() }}{% else %}{{ m.content }}{% endif %}\n{% endfor %}assistant: ";
/// Renders only the last reply.
const CURT: &str = "{% for m in messages %}{{ m.role + '\\n' }}\
    {{ m.content if m.role != 'assistant' or loop.index0 + 2 >= messages|length else '...' }}{{ '\\n' }}{% endfor %}\
    {{ 'assistant\\n' }}";
/// No prompt is a prefix of the next one, so that nothing processed can be kept.
const REWRITING: &str = "{% for m in messages %}{{ m.content }}|{% endfor %}{{ messages|length }}:";

static NO_CANCEL: AtomicBool = AtomicBool::new(false);
static DEMO: LazyLock<(Model, Tokenizer)> = LazyLock::new(|| {
    let model = Model::open(Path::new(&common::demo())).unwrap();
    let tokenizer = model.tokenizer().unwrap();
    (model, tokenizer)
});

fn watch() -> Watch<'static> {
    Watch { cancel: &NO_CANCEL, progress: &|_, _| () }
}

fn template(source: &str) -> Template {
    Template::new(source, "test", "<s>", "</s>").unwrap()
}

#[derive(Clone)]
struct Setup {
    template: Option<&'static str>,
    system: Option<&'static str>,
    context: usize,
    limit: usize,
    overflow: Overflow,
    stops: Vec<String>,
    temperature: f32,
    undo_memory: usize,
    /// Constraint of replies.
    regex: Option<&'static str>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            template: Some(HYMBA),
            system: Some(" Be brief. "),
            context: 600,
            limit: unless_emulated(12, 4),
            overflow: Overflow::Stop,
            stops: Vec::new(),
            temperature: 0.8,
            undo_memory: 256 << 20,
            regex: None,
        }
    }
}

impl Setup {
    fn conversation(&self) -> Conversation<'static> {
        self.conversation_with(&DEMO.1)
    }

    fn conversation_with<'m>(&self, tokenizer: &'m Tokenizer) -> Conversation<'m> {
        let model = &DEMO.0;
        let options = SessionOptions { context: Some(self.context), ..SessionOptions::default() };
        let timeline = Timeline::new(Session::new(model, &options).unwrap(), self.undo_memory);
        let sampler = Sampler::new(SamplingParams { temperature: self.temperature, ..SamplingParams::default() }, 1);
        let options = Options {
            template: self.template.map(template),
            system: self.system.map(Into::into),
            limit: Some(self.limit),
            stops: self.stops.clone(),
            parse_special: false,
            overflow: self.overflow,
            constraint: self.regex.map(|regex| {
                let vocabulary = Vocabulary::new(tokenizer).unwrap();
                Arc::new(Constraint::new(&vocabulary, &Shape::Regex(regex.into())).unwrap())
            }),
            ..Options::default()
        };
        Conversation::new(timeline, tokenizer, sampler, options).unwrap()
    }
}

fn stream(
    conversation: &mut Conversation<'_>,
    send: impl FnOnce(&mut Conversation<'_>, &mut ReplySink<'_>) -> hymba::Result<Reply>,
) -> hymba::Result<Reply> {
    let streamed = RefCell::new(String::new());
    let mut text = |piece: &str| {
        streamed.borrow_mut().push_str(piece);
        Ok(())
    };
    let reply = send(conversation, &mut ReplySink { watch: watch(), text: &mut text })?;
    assert_eq!(reply.generation.text, *streamed.borrow());
    if reply.generation.stop != StopReason::Interrupted {
        assert_eq!(conversation.turns().last().unwrap().reply, reply.generation.text);
    }
    check(conversation);
    Ok(reply)
}

fn send(conversation: &mut Conversation<'_>, message: &str) -> Reply {
    stream(conversation, |c, sink| c.send(message, sink)).unwrap()
}

fn regenerate(conversation: &mut Conversation<'_>) -> Reply {
    stream(conversation, |c, sink| c.regenerate(sink)).unwrap()
}

/// Asserts that the session has processed the template's rendering, and has the logits of a new session after the same steps.
#[track_caller]
fn check(conversation: &mut Conversation<'_>) {
    let (model, tokenizer) = &*DEMO;
    let turns = conversation.turns().to_vec();
    if let (Some(template), Some((last, before))) = (&conversation.options().template, turns.split_last()) {
        let mut messages: Vec<_> = conversation.system().into_iter().map(|s| Message::new(Role::System, s)).collect();
        for turn in before {
            messages.extend([Message::new(Role::User, &turn.user), Message::new(Role::Assistant, &turn.reply)]);
        }
        messages.push(Message::new(Role::User, &last.user));
        // white space between a prompt and its reply is as generated, or the template's if the reply is empty
        const NO_INDENT: &str = "\u{e000}";
        let indent = template.reply_indent();
        let replies = messages.iter().filter(|message| message.role == Role::Assistant);
        let contents: Vec<String> = replies
            .map(|reply| match reply.content.strip_prefix(&*indent) {
                Some(content) => content.into(),
                None if reply.content.is_empty() => String::new(),
                None => format!("{NO_INDENT}{}", reply.content),
            })
            .collect();
        let replies = messages.iter_mut().filter(|message| message.role == Role::Assistant);
        replies.zip(&contents).for_each(|(message, content)| message.content = content);
        let rendered = template.render(&messages, true).unwrap().replace(&format!("{indent}{NO_INDENT}"), "");
        // decoding adds a space after special tokens, or gives them no text
        let [rendered, processed] = [tokenizer.encode(&rendered, false).unwrap(), conversation.timeline().ids()]
            .map(|ids| tokenizer.decode(&ids));
        assert!(
            processed.starts_with(&rendered),
            "the template renders\n{rendered}\nthe session processed\n{processed}"
        );
        // if the context is full, the end of the reply is not processed
        let (reply, rest) = (&last.reply, &processed[rendered.len()..]);
        assert!(
            rest.starts_with(reply) || reply.starts_with(rest),
            "the reply is\n{reply}\nthe session processed\n{processed}"
        );
    }
    if conversation.timeline().steps().len() > unless_emulated(usize::MAX, 60) {
        return;
    }
    let context = conversation.timeline().context();
    let options = SessionOptions { context: Some(context), ..SessionOptions::default() };
    let mut session = Session::new(model, &options).unwrap();
    let mut logits = Vec::new();
    for pass in passes(conversation.timeline().steps()) {
        let ids: Vec<u32> = pass.iter().map(|step| step.id).collect();
        logits = match pass[0].phase {
            Phase::Prefill => session.prefill(&ids, &NO_CANCEL).unwrap().to_vec(),
            Phase::Decode => session.decode(ids[0]).unwrap().to_vec(),
        };
    }
    assert!(conversation.timeline().logits() == logits, "the logits differ from those of a replay");
}

#[test]
fn processed_tokens_match_the_template() {
    for &template in unless_emulated(
        &[Some(HYMBA), Some(CHATML), Some(LLAMA), Some(FORGETFUL), Some(CURT), Some(REWRITING), None][..],
        &[Some(REWRITING)],
    ) {
        for &temperature in unless_emulated(&[0.0, 1.0][..], &[1.0]) {
            let mut c = Setup { template, temperature, ..Setup::default() }.conversation();
            let messages = ["Hello", "A story of a king.\n\nA long one!", "Ünïcödé 🙂 日本", " ", "And then?"];
            let messages = &messages[unless_emulated(0, 2)..];
            for message in messages {
                send(&mut c, message);
            }
            assert_eq!(c.turns().len(), messages.len());
        }
    }
}

/// If a template rewrites part of the history, only the tokens from the first changed prompt on are reprocessed.
#[test]
fn only_the_rewritten_part_is_reprocessed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("talk");
    for &template in unless_emulated(&[FORGETFUL, CURT][..], &[FORGETFUL]) {
        let mut c = Setup { template: Some(template), system: None, ..Setup::default() }.conversation();
        let mut prompts = Vec::new();
        for (i, message) in ["Hello", "Tell me a story.", "And then?", "The end."].into_iter().enumerate() {
            let used = c.used();
            let reply = send(&mut c, message);
            prompts.push(c.used() - reply.generation.ids.len());
            let first = if template == FORGETFUL { 1 } else { 2 };
            assert_eq!(reply.rewritten > 0, i >= first, "{i}");
            // the last prompt, or the first, which contains no reply, is kept with its checkpoint
            let kept = if template == FORGETFUL { prompts[i.saturating_sub(1)] } else { prompts[0] };
            if i >= first {
                let evaluated = reply.generation.timings.prompt_tokens;
                assert!(evaluated <= prompts[i] - kept, "{evaluated} of {} processed, {kept} kept", prompts[i]);
                assert!(reply.rewritten <= used - kept);
            }
        }
        regenerate(&mut c);
        c.undo(1, &watch()).unwrap();
        check(&mut c);
        c.branch("other").unwrap();
        send(&mut c, "Another end.");
        c.switch("main", &watch()).unwrap();
        check(&mut c);
        c.save(&file, &watch()).unwrap();
        let mut loaded = Setup { template: None, system: None, ..Setup::default() }.conversation();
        loaded.load(&file, false).unwrap();
        let before = loaded.timeline().evaluated();
        let reply = send(&mut loaded, "Who?");
        assert!(reply.rewritten > 0 && loaded.timeline().evaluated() - before < loaded.used() + reply.rewritten);
        loaded.switch("other", &watch()).unwrap();
        check(&mut loaded);
        loaded.set_system(Some("You are a fox."), &watch()).unwrap();
        check(&mut loaded);
        send(&mut loaded, "And now?");
        // another template renders all past turns differently
        let mut other = Setup { template: Some(CHATML), ..Setup::default() }.conversation();
        other.load(&file, true).unwrap();
        regenerate(&mut other);
        other.load(&file, true).unwrap();
        assert!(send(&mut other, "Hm.").rewritten > 0);

        let setup = Setup { template: Some(template), system: None, context: 90, limit: 20, ..Setup::default() };
        let mut c = Setup { overflow: Overflow::Slide, ..setup }.conversation();
        let dropped: usize =
            (0..unless_emulated(9, 7)).map(|i| send(&mut c, &format!("This is message {i}")).dropped).sum();
        assert!(dropped > 0);
    }
}

/// Each token is processed once and each text tokenized once, with a template that does not rewrite. The whole conversation
/// is rendered each time, which the context size bounds.
#[test]
fn work_is_linear_in_the_number_of_turns() {
    for (template, message) in [(HYMBA, "Hello"), (CHATML, "Hello <|im_start|>"), (FORGETFUL, "Hello")] {
        let work = |turns: usize| {
            let tokenizer = DEMO.0.tokenizer().unwrap();
            let setup =
                Setup { template: Some(template), context: 2000, limit: 3, temperature: 0.0, ..Setup::default() };
            let mut c = setup.conversation_with(&tokenizer);
            let before = tokenizer.bytes_encoded();
            for _ in 0..turns {
                c.send(message, &mut ReplySink { watch: watch(), text: &mut |_| Ok(()) }).unwrap();
            }
            let evaluated = c.timeline().evaluated();
            assert!(template != CHATML || evaluated == c.used(), "{evaluated} tokens processed for {}", c.used());
            (evaluated, tokenizer.bytes_encoded() - before)
        };
        let (few, many) = (work(unless_emulated(8, 2)), work(unless_emulated(16, 4)));
        assert!(many.0 <= few.0 * 5 / 2, "{few:?} {many:?} tokens processed");
        assert!(many.1 <= few.1 * 5 / 2, "{few:?} {many:?} bytes tokenized");
    }
}

/// Generation stops at the marker with which the template starts the next turn, and the marker is not shown.
#[test]
fn replies_stop_at_the_templates_end_marker() {
    let stops = |source| template(source).stops().unwrap();
    assert_eq!(
        (stops(HYMBA), stops(CHATML)),
        (vec!["<extra_id_1>".into()], vec!["<|im_end|>".into(), "<|im_start|>".into()])
    );
    // "the" is common enough to be generated within 200 tokens
    let ends_with_the =
        "{% for m in messages %}{{ m.content }}{% if m.role == 'user' %}\n{% else %}<the>{% endif %}{% endfor %}";
    let mut c =
        Setup { template: Some(ends_with_the), limit: unless_emulated(200, 40), ..Setup::default() }.conversation();
    assert_eq!(c.stops(), ["<the>"]);
    send(&mut c, "Once upon a time");
    let options = Options {
        template: None,
        system: None,
        limit: Some(200),
        stops: vec![" the ".into()],
        parse_special: false,
        overflow: Overflow::Stop,
        ..Options::default()
    };
    let (model, tokenizer) = &*DEMO;
    let timeline = Timeline::new(Session::new(model, &SessionOptions::default()).unwrap(), 1 << 28);
    let mut c = Conversation::new(timeline, tokenizer, Sampler::new(SamplingParams::default(), 3), options).unwrap();
    let mut stopped = 0;
    for message in ["Once upon a time there was", "But then", "At last"] {
        let reply = send(&mut c, message);
        assert!(!reply.generation.text.contains(" the "));
        stopped += usize::from(reply.generation.stop == StopReason::StopString);
        // the session continues without the stop string
        let ids = c.timeline().ids();
        assert!(tokenizer.decode(&ids).contains(message));
    }
    assert!(stopped > 1);
    let turns: Vec<_> = c.turns().iter().map(|t| format!("{}{}", t.user, t.reply)).collect();
    let processed = tokenizer.decode(&c.timeline().ids());
    assert!(processed.starts_with(&turns.join("\n")), "{processed}\nis not\n{}", turns.join("\n"));
}

#[test]
fn undo_and_regenerate_process_no_tokens() {
    for &(undo_memory, free) in unless_emulated(&[(256 << 20, true), (0, false)][..], &[(256 << 20, true)]) {
        let mut c = Setup { undo_memory, ..Setup::default() }.conversation();
        send(&mut c, "Hello");
        send(&mut c, "Tell me a story.");
        c.sampler().set_seed(5);
        let first = regenerate(&mut c);
        c.sampler().set_seed(5);
        let again = regenerate(&mut c);
        assert_eq!(first.generation.text, again.generation.text, "the same seed gives the same reply");
        assert_eq!(again.generation.timings.prompt_tokens == 0, free);
        let other = regenerate(&mut c);
        assert_ne!(other.generation.text, again.generation.text, "the next draw gives another reply");

        let before = c.timeline().evaluated();
        let undone = c.undo(1, &watch()).unwrap();
        assert_eq!(undone[0].user, "Tell me a story.");
        assert_eq!(c.timeline().evaluated() == before, free);
        check(&mut c);
        assert!(c.undo(2, &watch()).unwrap_err().to_string().contains("only 1 turns to undo"));
        c.undo(1, &watch()).unwrap();
        assert_eq!((c.used(), c.timeline().steps().len()), (0, 0));
        assert!(c.undo(1, &watch()).unwrap_err().to_string().contains("no messages yet"));
        send(&mut c, "Hello again");
    }
}

#[test]
fn branches_are_independent() {
    for &(undo_memory, free) in unless_emulated(&[(256 << 20, true), (0, false)][..], &[(256 << 20, true)]) {
        let mut c = Setup { undo_memory, ..Setup::default() }.conversation();
        send(&mut c, "Hello");
        c.branch("other").unwrap();
        let other = send(&mut c, "I am a wolf.").generation.text;
        let before = c.timeline().evaluated();
        c.switch("main", &watch()).unwrap();
        assert_eq!(c.timeline().evaluated() == before, free);
        check(&mut c);
        assert_eq!(c.turns().len(), 1);
        send(&mut c, "I am a fox.");
        send(&mut c, "A red one.");
        c.undo(3, &watch()).unwrap();
        send(&mut c, "Something else");
        let before = c.timeline().evaluated();
        c.switch("other", &watch()).unwrap();
        assert_eq!(c.timeline().evaluated() == before, free);
        check(&mut c);
        assert_eq!((c.turns()[1].reply.as_str(), c.branches()), (other.as_str(), vec!["main", "other"]));
        assert!(c.branch("main").unwrap_err().to_string().contains("already"));
        assert!(c.switch("third", &watch()).unwrap_err().to_string().contains("branches: main, other"));
        c.switch("main", &watch()).unwrap();
        assert_eq!(c.turns()[0].user, "Something else");
    }
}

#[test]
fn a_full_context_stops_or_slides() {
    let long = "word ".repeat(100);
    let mut c = Setup { context: 90, limit: 40, ..Setup::default() }.conversation();
    let stop = loop {
        match stream(&mut c, |c, sink| c.send("Go on", sink)) {
            Ok(reply) if reply.generation.stop == StopReason::ContextFull => break None,
            Ok(_) => {}
            Err(e) => break Some(e.to_string()),
        }
    };
    assert!(c.used() <= 90 && c.used() > 60, "{} {stop:?}", c.used());
    let error = stream(&mut c, |c, sink| c.send(&long, sink)).err().unwrap().to_string();
    assert!(error.contains("message too long") && error.contains(" of 90 "), "{error}");

    let mut c = Setup { context: 120, limit: 40, overflow: Overflow::Slide, ..Setup::default() }.conversation();
    let (mut dropped, mut within) = (0, 0);
    for i in 0..unless_emulated(12, 7) {
        let used = c.used();
        let reply = send(&mut c, &format!("Tell me a story about fox number {i}"));
        dropped += reply.dropped;
        within += usize::from(reply.dropped > 0 && used < 95);
        assert_eq!(c.turns().len() + dropped, i + 1);
        assert_eq!(c.system(), Some(" Be brief. "));
        assert!(c.used() <= 120);
    }
    assert!(
        dropped > unless_emulated(4, 1) && within > 0,
        "{dropped} turns were dropped, {within} times during a reply"
    );
    assert!(
        stream(&mut c, |c, sink| c.send(&long.repeat(2), sink)).is_err(),
        "a message longer than the context is refused"
    );
}

/// A slide at any byte of a character or of a stop string shows no part of either.
#[test]
fn a_slide_splits_no_character_or_stop_string() {
    let setup = Setup { limit: 200, overflow: Overflow::Slide, temperature: 0.0, ..Setup::default() };
    for context in unless_emulated(130..134, 130..131) {
        let mut c = Setup { context, regex: Some("(🙂){15}"), ..setup.clone() }.conversation();
        send(&mut c, "Hello");
        let reply = send(&mut c, "Hello");
        assert!(reply.dropped > 0, "no turn was dropped, {} of {context} used", c.used());
        assert_eq!(reply.generation.text, "🙂".repeat(15), "context {context}");

        let stops = vec!["🙂🙂!".into()];
        let mut c = Setup { context, regex: Some("(🙂){15}!"), stops, ..setup.clone() }.conversation();
        send(&mut c, "Hello");
        let reply = send(&mut c, "Hello");
        assert_eq!((&*reply.generation.text, reply.generation.stop), (&*"🙂".repeat(13), StopReason::StopString));
        assert!(reply.dropped > 0);
    }
    // At the end of a reply an incomplete character is shown as U+FFFD.
    let mut c = Setup { context: 130, limit: 58, regex: Some("(🙂){15}"), ..setup }.conversation();
    send(&mut c, "Hello");
    assert!(send(&mut c, "Hello").generation.text.ends_with("🙂\u{fffd}"));
}

/// Cancelling while turns are dropped leaves the conversation unchanged.
#[test]
fn a_cancelled_slide_leaves_the_conversation_unchanged() {
    let mut c = Setup { context: 300, overflow: Overflow::Slide, ..Setup::default() }.conversation();
    while c.used() < 270 {
        send(&mut c, "Tell me more.");
    }
    let (before, used) = (c.turns().to_vec(), c.used());
    let cancel = AtomicBool::new(true);
    let watch = Watch { cancel: &cancel, progress: &|_, _| () };
    let long = "Tell me a story about a fox and a wolf. ".repeat(3);
    let stopped = c.send(&long, &mut ReplySink { watch, text: &mut |_| Ok(()) });
    assert!(matches!(stopped, Err(Error::Cancelled)));
    assert_eq!((c.turns(), c.used()), (&*before, used));
    assert!(matches!(c.set_system(Some("Be a wolf."), &watch), Err(Error::Cancelled)));
    assert_eq!((c.turns(), c.system()), (&*before, Some(" Be brief. ")));
    check(&mut c);
    assert!(send(&mut c, &long).dropped > 0);
}

#[test]
fn set_system_reprocesses_the_conversation() {
    let mut c = Setup::default().conversation();
    send(&mut c, "Hello");
    send(&mut c, "Who are you?");
    let before = c.turns().to_vec();
    c.set_system(Some("You are a fox."), &watch()).unwrap();
    check(&mut c);
    assert!(c.turns().iter().zip(&before).all(|(a, b)| a.user == b.user && a.reply == b.reply));
    send(&mut c, "And now?");
    c.set_system(None, &watch()).unwrap();
    check(&mut c);
}

#[test]
fn a_cancelled_reply_keeps_the_generated_part() {
    let mut c = Setup { limit: 50, ..Setup::default() }.conversation();
    send(&mut c, "Hello");
    let before = c.turns().to_vec();
    let cancel = AtomicBool::new(true);
    let watch = Watch { cancel: &cancel, progress: &|_, _| () };
    let mut ignore = |_: &str| Ok(());
    let stopped = c.send("Before a word", &mut ReplySink { watch, text: &mut ignore });
    assert!(matches!(stopped, Err(Error::Cancelled)));
    assert_eq!(c.turns(), before);

    cancel.store(false, Ordering::Relaxed);
    let mut words = 0;
    let mut stop = |_: &str| {
        words += 1;
        cancel.store(words > 3, Ordering::Relaxed);
        Ok(())
    };
    let reply = c.send("Tell me a story", &mut ReplySink { watch, text: &mut stop }).unwrap();
    assert_eq!(reply.generation.stop, StopReason::Interrupted);
    assert!(!c.turns()[1].reply.is_empty());
    check(&mut c);
    send(&mut c, "Go on");
}

#[test]
fn a_loaded_conversation_continues_identically() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("talk");
    let mut original = Setup { temperature: 1.0, ..Setup::default() }.conversation();
    send(&mut original, "Hello");
    original.branch("other").unwrap();
    send(&mut original, "Tell me a story.");
    original.save(&file, &watch()).unwrap();

    let mut loaded = Setup { template: None, system: None, ..Setup::default() }.conversation();
    send(&mut loaded, "Something that is replaced");
    loaded.load(&file, false).unwrap();
    assert!(loaded.timeline().logits() == original.timeline().logits());
    assert_eq!(loaded.turns(), original.turns());
    assert_eq!((loaded.system(), loaded.branches()), (Some(" Be brief. "), vec!["main", "other"]));
    for message in ["And then?", "The end."] {
        let replies = [&mut original, &mut loaded].map(|c| send(c, message).generation.text);
        assert_eq!(replies[0], replies[1]);
    }
    loaded.switch("main", &watch()).unwrap();
    check(&mut loaded);
    assert_eq!(loaded.turns().len(), 1);
    loaded.undo(1, &watch()).unwrap();

    // a text is not a conversation
    let mut timeline = Timeline::new(Session::new(&DEMO.0, &SessionOptions::default()).unwrap(), 0);
    timeline.save(&file, &hymba::engine::conversation::Saved::text(loaded.sampler(), None), false).unwrap();
    let refused = original.load(&file, false);
    assert!(matches!(refused, Err(Error::SessionMismatch { reason: Mismatch::Text, .. })));
    assert_eq!(original.turns().len(), 4);
    check(&mut original);
}

/// A reply that fills the context, when there are no turns to drop, can be saved and loaded.
#[test]
fn a_full_context_can_be_saved() {
    let file = tempfile::tempdir().unwrap();
    let file = file.path().join("talk");
    for overflow in [Overflow::Stop, Overflow::Slide] {
        let setup = || Setup { context: 60, limit: 200, overflow, ..Setup::default() }.conversation();
        let mut c = setup();
        assert_eq!(send(&mut c, "Tell me a short story about a fox").generation.stop, StopReason::ContextFull);
        assert!(c.used() <= 60);
        c.save(&file, &watch()).unwrap();
        setup().load(&file, false).unwrap();
    }
}

/// A file whose template cannot be used is refused, and the current conversation stays unchanged.
#[test]
fn a_failed_load_leaves_the_conversation_unchanged() {
    let folder = tempfile::tempdir().unwrap();
    let (raising, many) = (folder.path().join("raising"), folder.path().join("many"));
    let mut saved = Setup { template: Some(CHATML), system: None, ..Setup::default() }.conversation();
    send(&mut saved, "Hello");
    saved.save(&many, &watch()).unwrap();
    // a template of the same length, so that nothing else in the file changes
    let raises = CHATML.replacen("m.role", "m.n.xx", 1);
    let mut bytes = std::fs::read(&many).unwrap();
    let (old, new) = [CHATML, &raises].map(|source| serde_json::to_string(source).unwrap()).into();
    let start = bytes.windows(old.len()).position(|window| window == old.as_bytes()).unwrap();
    bytes[start..start + old.len()].copy_from_slice(new.as_bytes());
    let body = bytes.len() - 32;
    let hash = blake3::hash(&bytes[..body]);
    bytes[body..].copy_from_slice(hash.as_bytes());
    std::fs::write(&raising, bytes).unwrap();

    let stops: Vec<String> = (0..63).map(|i| format!("stop {i}")).collect();
    for (file, stops) in [(&raising, vec![]), (&many, stops)] {
        let mut c = Setup { stops, ..Setup::default() }.conversation();
        send(&mut c, "Who are you?");
        c.branch("other").unwrap();
        let before = (c.turns().to_vec(), c.stops().to_vec(), c.sampler().params().clone(), c.timeline().ids());
        assert!(c.load(file, false).is_err());
        let after = (c.turns().to_vec(), c.stops().to_vec(), c.sampler().params().clone(), c.timeline().ids());
        assert!(before == after && c.branches() == ["main", "other"] && c.system() == Some(" Be brief. "));
        assert_eq!(c.options().template.as_ref().unwrap().source(), HYMBA);
        send(&mut c, "And now?");
    }
}
