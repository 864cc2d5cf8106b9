//! From a prompt to a text: prefill, then sample and decode until something says stop.

use std::{
    io,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use super::Session;
use crate::{
    Error, Result,
    sample::Sampler,
    text::{StopMatcher, Tokenizer},
};

/// What generation needs of a [`Session`].
pub trait Steps {
    /// Reads `ids` and returns the logits [vocab] after the last of them. What knows the logits of what was read before
    /// takes no ids too.
    fn prefill(&mut self, ids: &[u32], cancel: &AtomicBool) -> Result<&[f32]>;
    /// Reads one id and returns the logits [vocab] after it.
    fn decode(&mut self, id: u32) -> Result<&[f32]>;
    /// Ids read so far.
    fn tokens(&self) -> usize;
    /// How many ids fit.
    fn context(&self) -> usize;
}

impl Steps for Session<'_> {
    fn prefill(&mut self, ids: &[u32], cancel: &AtomicBool) -> Result<&[f32]> {
        Session::prefill(self, ids, cancel)
    }
    fn decode(&mut self, id: u32) -> Result<&[f32]> {
        Session::decode(self, id)
    }
    fn tokens(&self) -> usize {
        Session::tokens(self)
    }
    fn context(&self) -> usize {
        Session::context(self)
    }
}

/// What to generate.
#[derive(Clone, Copy, Debug, Default)]
pub struct Request<'a> {
    /// Ids that the session has read already; the repeat penalty looks back on them too.
    pub history: &'a [u32],
    /// Ids to read first; at least one, if nothing was read yet.
    pub prompt: &'a [u32],
    /// How many tokens at most; `None`: until the context is full.
    pub limit: Option<usize>,
    /// Strings that end the text when they appear in it; they do not become part of it.
    pub stops: &'a [String],
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The model said that the text is over.
    EndOfText,
    /// [`Request::limit`] is reached.
    Limit,
    /// One of [`Request::stops`] appeared.
    StopString,
    /// The session's context is full.
    ContextFull,
    /// The caller's `cancel` was set.
    Interrupted,
    /// Whoever read the text went away.
    BrokenPipe,
}

impl StopReason {
    /// The name in machine-readable output.
    pub fn name(self) -> &'static str {
        match self {
            Self::EndOfText => "end_of_text",
            Self::Limit => "limit",
            Self::StopString => "stop_string",
            Self::ContextFull => "context_full",
            Self::Interrupted => "interrupted",
            Self::BrokenPipe => "broken_pipe",
        }
    }
}

/// How long it took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Timings {
    /// Ids of the prompt.
    pub prompt_tokens: usize,
    /// Time to read the prompt.
    pub prompt: Duration,
    /// Ids of the text. The first of them costs no decode step, it follows from the prompt.
    pub generated_tokens: usize,
    /// Decode steps.
    pub decode_steps: usize,
    /// Time from the end of the prompt to the end of the text: decode steps, sampling and the sink.
    pub generation: Duration,
}

impl Timings {
    /// Prompt tokens read per second.
    pub fn prompt_rate(&self) -> f64 {
        rate(self.prompt_tokens, self.prompt)
    }

    /// Decode steps per second; 0 if there was none.
    pub fn decode_rate(&self) -> f64 {
        rate(self.decode_steps, self.generation)
    }
}

fn rate(count: usize, time: Duration) -> f64 {
    if count == 0 { 0.0 } else { count as f64 / time.as_secs_f64().max(1e-9) }
}

/// A generated text.
#[derive(Clone, Debug)]
pub struct Generation {
    /// What went to the sink.
    pub text: String,
    /// The tokens chosen, without the one that says the text is over. The session has read all of them but the last;
    /// after a stop string they go on behind `text`.
    pub ids: Vec<u32>,
    /// Why the text ended.
    pub stop: StopReason,
    /// How long it took.
    pub timings: Timings,
}

/// Reads `request.prompt` and generates what follows. `sink` gets the text as it comes, in pieces of whole characters;
/// what it gets was checked for stop strings. A `BrokenPipe` from the sink ends the text, any other failure of it is
/// an error. `cancel` is looked at before every step.
pub fn generate(
    session: &mut impl Steps,
    tokenizer: &Tokenizer,
    sampler: &mut Sampler,
    request: &Request,
    cancel: &AtomicBool,
    sink: &mut dyn FnMut(&str) -> io::Result<()>,
) -> Result<Generation> {
    if request.prompt.is_empty() && session.tokens() == 0 {
        return Err(Error::Request("the prompt is empty, so that there is nothing to go on from".into()));
    }
    let mut text = Text { shown: String::new(), stops: StopMatcher::new(request.stops)?, sink };
    let mut timings = Timings { prompt_tokens: request.prompt.len(), ..Timings::default() };
    let mut history = [request.history, request.prompt].concat();
    let mut stream = tokenizer.stream();
    // What the prompt says is known; its ids only bring the stream to where the text goes on.
    for &id in &history {
        stream.push(id);
    }
    let read = history.len();

    let start = Instant::now();
    let mut logits = match session.prefill(request.prompt, cancel) {
        Err(Error::Cancelled) => {
            timings.prompt = start.elapsed();
            return Ok(Generation { text: String::new(), ids: Vec::new(), stop: StopReason::Interrupted, timings });
        }
        logits => logits?,
    };
    timings.prompt = start.elapsed();

    let start = Instant::now();
    let mut last = None;
    let mut stop = loop {
        if Some(history.len() - read) == request.limit {
            break StopReason::Limit;
        }
        if cancel.load(Ordering::Relaxed) {
            break StopReason::Interrupted;
        }
        if let Some(id) = last {
            if session.tokens() >= session.context() {
                break StopReason::ContextFull;
            }
            logits = session.decode(id)?;
            timings.decode_steps += 1;
        }
        let id = sampler.sample(logits, &history);
        if tokenizer.eos() == Some(id) {
            break StopReason::EndOfText;
        }
        history.push(id);
        last = Some(id);
        if let Some(stop) = text.push(&stream.push(id))? {
            break stop;
        }
    };
    if !matches!(stop, StopReason::StopString | StopReason::BrokenPipe) {
        stop = text.finish(&stream.finish())?.unwrap_or(stop);
    }
    timings.generation = start.elapsed();
    let ids = history.split_off(read);
    timings.generated_tokens = ids.len();
    Ok(Generation { text: text.shown, ids, stop, timings })
}

/// The text on its way out.
struct Text<'a> {
    shown: String,
    stops: StopMatcher,
    sink: &'a mut dyn FnMut(&str) -> io::Result<()>,
}

impl Text<'_> {
    /// Takes a piece; says so if the text ends here.
    fn push(&mut self, piece: &str) -> Result<Option<StopReason>> {
        let (text, hit) = self.stops.push(piece);
        let broken = self.show(&text)?;
        Ok(if hit { Some(StopReason::StopString) } else { broken })
    }

    /// Takes the last piece and lets go of what was held back.
    fn finish(&mut self, piece: &str) -> Result<Option<StopReason>> {
        if let Some(stop) = self.push(piece)? {
            return Ok(Some(stop));
        }
        let held = self.stops.finish();
        self.show(&held)
    }

    fn show(&mut self, text: &str) -> Result<Option<StopReason>> {
        if text.is_empty() {
            return Ok(None);
        }
        self.shown.push_str(text);
        match (self.sink)(text) {
            Ok(()) => Ok(None),
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(Some(StopReason::BrokenPipe)),
            Err(e) => Err(Error::io("cannot write", "the text", e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{sample::Params, text::small_tokenizer};

    /// Says the ids of `script` one after the other, whatever it reads.
    struct Script {
        script: Vec<u32>,
        read: Vec<u32>,
        said: usize,
        context: usize,
        logits: Vec<f32>,
    }

    impl Script {
        fn new(script: &[u32]) -> Self {
            Self { script: script.into(), read: Vec::new(), said: 0, context: 100, logits: Vec::new() }
        }

        fn say(&mut self) -> &[f32] {
            self.logits = vec![0.0; 267];
            self.logits[EOS as usize] = 0.5;
            if let Some(&id) = self.script.get(self.said) {
                self.logits[id as usize] = 1.0;
            }
            self.said += 1;
            &self.logits
        }
    }

    impl Steps for Script {
        fn prefill(&mut self, ids: &[u32], cancel: &AtomicBool) -> Result<&[f32]> {
            if cancel.load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
            self.read.extend(ids);
            Ok(self.say())
        }
        fn decode(&mut self, id: u32) -> Result<&[f32]> {
            assert!(self.read.len() < self.context, "a step beyond the context");
            self.read.push(id);
            Ok(self.say())
        }
        fn tokens(&self) -> usize {
            self.read.len()
        }
        fn context(&self) -> usize {
            self.context
        }
    }

    const EOS: u32 = 2;
    /// "a", "b" and " a" in the small tokenizer.
    const A: u32 = 260;
    const B: u32 = 261;
    const SPACE_A: u32 = 262;

    fn greedy() -> Sampler {
        Sampler::new(Params { temperature: 0.0, ..Params::default() }, 0)
    }

    /// Generates after the prompt "a"; the sink goes along as a list of pieces.
    fn run(session: &mut Script, sampler: &mut Sampler, request: Request) -> (Generation, Vec<String>) {
        let mut pieces = Vec::new();
        let cancel = AtomicBool::new(false);
        let request = Request { prompt: &[1, SPACE_A], ..request };
        let done = generate(session, &small_tokenizer(), sampler, &request, &cancel, &mut |s| {
            pieces.push(s.to_string());
            Ok(())
        });
        (done.unwrap(), pieces)
    }

    #[test]
    fn ends_where_the_model_says() {
        let mut session = Script::new(&[SPACE_A, B]);
        let (done, pieces) = run(&mut session, &mut greedy(), Request::default());
        assert_eq!((done.text.as_str(), done.stop), (" ab", StopReason::EndOfText));
        assert_eq!((done.ids, pieces), (vec![SPACE_A, B], vec![" a".to_string(), "b".into()]));
        assert_eq!(session.read, [1, SPACE_A, SPACE_A, B]);
        let t = done.timings;
        assert_eq!((t.prompt_tokens, t.generated_tokens, t.decode_steps), (2, 2, 2));
    }

    #[test]
    fn runs_no_step_that_nobody_needs() {
        for limit in 0..3 {
            let mut session = Script::new(&[B; 9]);
            let (done, _) = run(&mut session, &mut greedy(), Request { limit: Some(limit), ..Request::default() });
            assert_eq!((done.ids.len(), done.stop), (limit, StopReason::Limit));
            assert_eq!(done.timings.decode_steps, limit.saturating_sub(1));
        }
        let mut session = Script { context: 4, ..Script::new(&[B; 9]) };
        let (done, _) = run(&mut session, &mut greedy(), Request::default());
        assert_eq!((done.ids.len(), done.stop), (3, StopReason::ContextFull));
    }

    #[test]
    fn a_banned_end_does_not_come() {
        let mut sampler = greedy();
        sampler.ban(EOS);
        let (done, _) = run(&mut Script::new(&[A]), &mut sampler, Request { limit: Some(3), ..Request::default() });
        assert_eq!((done.ids, done.stop), (vec![A, 0, 0], StopReason::Limit));
    }

    #[test]
    fn a_stop_string_is_not_shown() {
        let stops = ["ba".to_string()];
        let request = Request { stops: &stops, ..Request::default() };
        let (done, pieces) = run(&mut Script::new(&[A, B, B, A, A]), &mut greedy(), request);
        assert_eq!((done.text.as_str(), done.stop), ("ab", StopReason::StopString));
        assert_eq!(done.ids, [A, B, B, A]);
        assert_eq!(pieces, ["a", "b"], "the first b was held back until the next token");
        let (done, _) = run(&mut Script::new(&[A, B]), &mut greedy(), request);
        assert_eq!(
            (done.text.as_str(), done.stop),
            ("ab", StopReason::EndOfText),
            "what was held back comes at the end"
        );
    }

    #[test]
    fn half_a_character_comes_out_at_the_end() {
        let (done, _) = run(&mut Script::new(&[A, 3 + 0xE2]), &mut greedy(), Request::default());
        assert_eq!(done.text, "a\u{fffd}");
    }

    #[test]
    fn a_closed_pipe_ends_quietly_and_a_full_disk_does_not() {
        let go = |kind: io::ErrorKind| {
            let mut session = Script::new(&[A; 50]);
            let request = Request { prompt: &[1], ..Request::default() };
            let cancel = AtomicBool::new(false);
            generate(&mut session, &small_tokenizer(), &mut greedy(), &request, &cancel, &mut |_| Err(kind.into()))
        };
        let done = go(io::ErrorKind::BrokenPipe).unwrap();
        assert_eq!((done.stop, done.ids.len()), (StopReason::BrokenPipe, 1));
        assert!(go(io::ErrorKind::StorageFull).unwrap_err().to_string().starts_with("cannot write the text: "));
    }

    #[test]
    fn a_signal_ends_the_text_where_it_is() {
        let cancel = AtomicBool::new(false);
        let request = Request { prompt: &[1], ..Request::default() };
        let mut session = Script::new(&[A; 50]);
        let mut go = |cancel: &AtomicBool| {
            let mut sink = |_: &str| {
                cancel.store(true, Ordering::Relaxed);
                Ok(())
            };
            generate(&mut session, &small_tokenizer(), &mut greedy(), &request, cancel, &mut sink).unwrap()
        };
        let done = go(&cancel);
        assert_eq!((done.text.as_str(), done.stop), ("a", StopReason::Interrupted));
        let done = go(&cancel);
        assert_eq!((done.text.as_str(), done.stop), ("", StopReason::Interrupted), "during the prompt");
    }

    #[test]
    fn nothing_to_go_on_from_is_an_error() {
        let (mut session, cancel) = (Script::new(&[]), AtomicBool::new(false));
        let none = Request::default();
        let error = generate(&mut session, &small_tokenizer(), &mut greedy(), &none, &cancel, &mut |_| Ok(()));
        assert!(error.unwrap_err().to_string().starts_with("the prompt is empty"));
    }
}
