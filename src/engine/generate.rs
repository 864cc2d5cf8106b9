//! Generates text for a prompt: prefill, then sampling and decoding, with speculative decoding where possible, until
//! there is a reason to stop.

use std::{
    io,
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

pub use super::{
    generation::{Generation, StopReason, Timings},
    token_model::TokenModel,
};
use super::{
    generator::Generator,
    speculate::{Forced, Speculate, Speculator},
};
use crate::{Error, Result, constrain::Constraint, sample::Sampler, text::Tokenizer};

/// A generation request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Request<'a> {
    /// Tokens that the session has already processed; the repetition penalty looks back on them too.
    pub history: &'a [u32],
    /// Tokens to process first; at least one if nothing was processed yet.
    pub prompt: &'a [u32],
    /// Maximum number of tokens; `None`: until the context is full.
    pub limit: Option<usize>,
    /// Stop strings, which do not become part of the text.
    pub stops: &'a [String],
    /// The constraint on the text.
    pub constraint: Option<&'a Constraint>,
    /// Tokens at the end of `history` and `prompt` that are the start of the generated text.
    pub generated: &'a [u32],
    /// Whether the caller may make room when the context is full and continue with all tokens so far as `generated`.
    /// Incomplete characters and partial stop strings are then held back over the pause.
    pub pauses: bool,
    /// Timings so far, for instance of processing `history`; those of the generation are added.
    pub timings: Timings,
    /// Cancels the generation when set; checked before every step.
    pub cancel: Option<&'a AtomicBool>,
}

/// Processes `request.prompt` and generates text. `sink` receives it piece by piece, in whole characters and without
/// stop strings. If the sink returns `BrokenPipe`, the text ends; other errors are returned.
pub fn generate(
    model: &mut impl TokenModel,
    tokenizer: &Tokenizer,
    sampler: &mut Sampler,
    request: &Request,
    sink: &mut dyn FnMut(&str) -> io::Result<()>,
) -> Result<Generation> {
    generate_with(model, tokenizer, sampler, request, &mut Speculator::new(Speculate::Auto), sink)
}

/// [`generate`] with `speculator`, which knows the other texts of the session. The result does not depend on it.
pub fn generate_with(
    model: &mut impl TokenModel,
    tokenizer: &Tokenizer,
    sampler: &mut Sampler,
    request: &Request,
    speculator: &mut Speculator,
    sink: &mut dyn FnMut(&str) -> io::Result<()>,
) -> Result<Generation> {
    let never = AtomicBool::new(false);
    let cancel = request.cancel.unwrap_or(&never);
    if request.prompt.is_empty() && model.tokens() == 0 {
        return Err(Error::Request("the prompt is empty, so there is nothing to continue".into()));
    }
    let history = [request.history, request.prompt].concat();
    let mut text = Generator::new(tokenizer, history, request.limit, request.stops)?;
    if let Some(constraint) = request.constraint {
        text.constrain(constraint.matching_after(request.generated)?);
    }
    text.resume(request.generated.len());
    if request.pauses {
        text.pause_when_full();
    }
    let mut timings = request.timings;

    let start = Instant::now();
    let read = model.prefill(request.prompt, cancel);
    timings.prompt_tokens += request.prompt.len();
    timings.prompt += start.elapsed();
    let logits = match read {
        Err(Error::Cancelled) => return text.finish(StopReason::Interrupted, timings, sink),
        logits => logits?,
    };

    let start = Instant::now();
    // Checked before each token, drafted or not.
    let reason_to_stop = |text: &Generator<'_>| match cancel.load(Ordering::Relaxed) {
        _ if text.at_limit() => Some(StopReason::Limit),
        true => Some(StopReason::Interrupted),
        false => None,
    };
    speculator.read(text.history());
    let mut stop = match reason_to_stop(&text) {
        None => text.choose(logits, sampler, sink)?,
        stop => stop,
    };
    let stop = loop {
        if let Some(stop) = stop.or_else(|| reason_to_stop(&text)) {
            break stop;
        }
        let Some(id) = text.unprocessed().filter(|_| model.tokens() < model.context()) else {
            break StopReason::ContextFull;
        };
        // Every accepted draft token yields one more token.
        let max_draft = text.left().map_or(usize::MAX, |left| left - 1);
        let forced = if speculator.is_on() && max_draft > 0 { text.forced() } else { Vec::new() };
        let counts = speculator.advance(model, id, max_draft, &Forced(&forced), &mut |logits| {
            text.mark_processed();
            stop = text.choose(logits, sampler, sink)?;
            Ok(text.unprocessed().filter(|_| stop.is_none() && reason_to_stop(&text).is_none()))
        })?;
        timings.add(counts);
    };
    timings.generated_tokens += text.ids().len();
    let mut done = text.finish(stop, timings, sink)?;
    done.timings.generation += start.elapsed();
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        sample::SamplingParams,
        text::{small_tokenizer, small_with_ends},
    };

    /// A model that generates the tokens of `script` regardless of its input.
    struct Script {
        script: Vec<u32>,
        read: Vec<u32>,
        generated: usize,
        context: usize,
        logits: Vec<f32>,
    }

    impl Script {
        fn new(script: &[u32]) -> Self {
            Self { script: script.into(), read: Vec::new(), generated: 0, context: 100, logits: Vec::new() }
        }

        fn next_logits(&mut self) -> &[f32] {
            self.logits = vec![0.0; 267];
            self.logits[EOS as usize] = 0.5;
            if let Some(&id) = self.script.get(self.generated) {
                self.logits[id as usize] = 1.0;
            }
            self.generated += 1;
            &self.logits
        }
    }

    impl TokenModel for Script {
        fn prefill(&mut self, ids: &[u32], cancel: &AtomicBool) -> Result<&[f32]> {
            Error::check_cancelled(cancel)?;
            self.read.extend(ids);
            Ok(self.next_logits())
        }
        fn decode(&mut self, id: u32) -> Result<&[f32]> {
            assert!(self.read.len() < self.context, "a step beyond the context");
            self.read.push(id);
            Ok(self.next_logits())
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
        Sampler::new(SamplingParams { temperature: 0.0, ..SamplingParams::default() }, 0)
    }

    /// Generates after the prompt "a"; returns the pieces that the sink received too.
    fn run(session: &mut Script, sampler: &mut Sampler, request: Request) -> (Generation, Vec<String>) {
        let mut pieces = Vec::new();
        let request = Request { prompt: &[1, SPACE_A], ..request };
        let done = generate(session, &small_tokenizer(), sampler, &request, &mut |s| {
            pieces.push(s.to_string());
            Ok(())
        });
        (done.unwrap(), pieces)
    }

    #[test]
    fn generation_ends_at_the_end_token() {
        let mut session = Script::new(&[SPACE_A, B]);
        let (done, pieces) = run(&mut session, &mut greedy(), Request::default());
        assert_eq!((done.text.as_str(), done.stop), (" ab", StopReason::EndOfText));
        assert_eq!((done.ids, pieces), (vec![SPACE_A, B], vec![" a".to_string(), "b".into()]));
        assert_eq!(session.read, [1, SPACE_A, SPACE_A, B]);
        let t = done.timings;
        assert_eq!((t.prompt_tokens, t.generated_tokens, t.decode_steps), (2, 2, 2));
    }

    #[test]
    fn any_end_token_ends_the_text() {
        for ends in [&[EOS, B][..], &[B, EOS]] {
            let tokenizer = small_with_ends(ends);
            let generated = |sampler: &mut Sampler| {
                let request = Request { prompt: &[1], limit: Some(4), ..Request::default() };
                generate(&mut Script::new(&[A, B, A]), &tokenizer, sampler, &request, &mut |_| Ok(())).unwrap()
            };
            let done = generated(&mut greedy());
            assert_eq!((done.ids, done.stop), (vec![A], StopReason::EndOfText));
            let mut sampler = greedy();
            ends.iter().for_each(|&end| sampler.ban(end));
            assert_eq!(generated(&mut sampler).stop, StopReason::Limit);
        }
    }

    #[test]
    fn no_decode_step_runs_after_the_last_token() {
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
    fn a_banned_end_token_is_never_chosen() {
        let mut sampler = greedy();
        sampler.ban(EOS);
        let (done, _) = run(&mut Script::new(&[A]), &mut sampler, Request { limit: Some(3), ..Request::default() });
        assert_eq!((done.ids, done.stop), (vec![A, 0, 0], StopReason::Limit));
    }

    #[test]
    fn stop_strings_are_not_output() {
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
            "held-back text is output at the end"
        );
    }

    #[test]
    fn incomplete_characters_are_flushed_at_the_end() {
        let (done, _) = run(&mut Script::new(&[A, 3 + 0xE2]), &mut greedy(), Request::default());
        assert_eq!(done.text, "a\u{fffd}");
    }

    #[test]
    fn broken_pipes_end_the_text_and_other_sink_errors_are_returned() {
        let run_with = |kind: io::ErrorKind| {
            let mut session = Script::new(&[A; 50]);
            let request = Request { prompt: &[1], ..Request::default() };
            generate(&mut session, &small_tokenizer(), &mut greedy(), &request, &mut |_| Err(kind.into()))
        };
        let done = run_with(io::ErrorKind::BrokenPipe).unwrap();
        assert_eq!((done.stop, done.ids.len()), (StopReason::BrokenPipe, 1));
        assert!(run_with(io::ErrorKind::StorageFull).unwrap_err().to_string().starts_with("cannot write the text: "));
    }

    #[test]
    fn cancelling_keeps_the_text_so_far() {
        let cancel = AtomicBool::new(false);
        let request = Request { prompt: &[1], cancel: Some(&cancel), ..Request::default() };
        let mut session = Script::new(&[A; 50]);
        let mut run_with = || {
            let mut sink = |_: &str| {
                cancel.store(true, Ordering::Relaxed);
                Ok(())
            };
            generate(&mut session, &small_tokenizer(), &mut greedy(), &request, &mut sink).unwrap()
        };
        let done = run_with();
        assert_eq!((done.text.as_str(), done.stop), ("a", StopReason::Interrupted));
        let done = run_with();
        assert_eq!((done.text.as_str(), done.stop), ("", StopReason::Interrupted), "during the prompt");
    }

    #[test]
    fn an_empty_prompt_without_history_is_an_error() {
        let (mut session, none) = (Script::new(&[]), Request::default());
        let error = generate(&mut session, &small_tokenizer(), &mut greedy(), &none, &mut |_| Ok(()));
        assert!(error.unwrap_err().to_string().starts_with("the prompt is empty"));
    }
}
