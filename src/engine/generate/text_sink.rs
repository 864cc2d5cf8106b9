//! A generated text, shown in whole characters and checked for stop strings.

use std::io;

use super::StopReason;
use crate::{
    Error, Result,
    text::{StopMatcher, Stream},
};

/// A text that goes to the caller's sink.
pub struct TextSink<'a> {
    /// What the sink got.
    pub shown: String,
    stream: Stream<'a>,
    stops: StopMatcher,
    sink: &'a mut dyn FnMut(&str) -> io::Result<()>,
}

impl<'a> TextSink<'a> {
    /// Returns a text that goes on where `stream` is, and ends at one of `stops`.
    pub fn new(stream: Stream<'a>, stops: &[String], sink: &'a mut dyn FnMut(&str) -> io::Result<()>) -> Result<Self> {
        Ok(Self { shown: String::new(), stream, stops: StopMatcher::new(stops)?, sink })
    }

    /// Shows what is complete with the next id; returns why, if the text ends here.
    pub fn push(&mut self, id: u32) -> Result<Option<StopReason>> {
        let piece = self.stream.push(id);
        self.push_text(&piece)
    }

    /// Shows what was held back, after the last id; returns why, if the text ends otherwise now.
    pub fn finish(&mut self) -> Result<Option<StopReason>> {
        let piece = self.stream.finish();
        if let Some(stop) = self.push_text(&piece)? {
            return Ok(Some(stop));
        }
        let held = self.stops.finish();
        self.show(&held)
    }

    fn push_text(&mut self, piece: &str) -> Result<Option<StopReason>> {
        let (text, hit) = self.stops.push(piece);
        let broken = self.show(&text)?;
        Ok(if hit { Some(StopReason::StopString) } else { broken })
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
