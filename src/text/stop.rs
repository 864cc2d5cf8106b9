//! Stop strings.

use crate::{Error, Result, limits};

/// Passes text through until a stop string appears, holding back only a possible start of one. Of several matches, the
/// one that ends first counts, and among those the longest; so the result does not depend on how the text is split into
/// pieces.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
}

impl StopMatcher {
    /// Returns a detector for `stops`; empty strings are ignored, too many or too long ones are rejected.
    pub fn new(stops: &[String]) -> Result<Self> {
        if stops.len() > limits::STOPS {
            let (count, limit) = (stops.len(), limits::STOPS);
            return Err(Error::Request(format!("{count} stop strings are too many; give {limit} at most")));
        }
        if let Some(long) = stops.iter().find(|s| s.len() > limits::STOP) {
            let (bytes, limit) = (long.len(), limits::STOP);
            return Err(Error::Request(format!("a stop string of {bytes} bytes is too long; the limit is {limit}")));
        }
        Ok(Self { stops: stops.iter().filter(|s| !s.is_empty()).cloned().collect(), held: String::new() })
    }

    /// Adds a piece. Returns the text that can be shown, and whether a stop string was found; then the text ends before
    /// that string and nothing more may be pushed.
    pub fn push(&mut self, piece: &str) -> (String, bool) {
        let mut text = std::mem::take(&mut self.held);
        text.push_str(piece);
        let hits = self.stops.iter().filter_map(|s| text.find(s.as_str()).map(|at| (at + s.len(), at)));
        if let Some((_, at)) = hits.min() {
            text.truncate(at);
            return (text, true);
        }
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let begins_stop = |tail: &str| self.stops.iter().any(|s| s.starts_with(tail));
        let keep = text
            .char_indices()
            .map(|(at, _)| at)
            .filter(|at| text.len() - at < longest)
            .find(|&at| begins_stop(&text[at..]));
        if let Some(at) = keep {
            self.held = text.split_off(at);
        }
        (text, false)
    }

    /// Returns the held-back text at the end.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the output for `pieces`, and whether a stop string was found.
    fn run<'a>(stops: &[&str], pieces: impl IntoIterator<Item = &'a str>) -> (String, bool) {
        let mut matcher = StopMatcher::new(&stops.iter().map(|s| s.to_string()).collect::<Vec<_>>()).unwrap();
        let mut out = String::new();
        for piece in pieces {
            let (text, hit) = matcher.push(piece);
            out += &text;
            if hit {
                return (out, true);
            }
        }
        (out + &matcher.finish(), false)
    }

    /// The same, by checking every prefix of the whole text.
    fn expected(stops: &[&str], text: &str) -> (String, bool) {
        for end in 0..=text.len() {
            let hit = stops.iter().filter(|s| !s.is_empty() && text.as_bytes()[..end].ends_with(s.as_bytes()));
            if let Some(stop) = hit.max_by_key(|s| s.len()) {
                return (text[..end - stop.len()].into(), true);
            }
        }
        (text.into(), false)
    }

    #[test]
    fn holds_back_only_what_may_become_a_stop_string() {
        let mut matcher = StopMatcher::new(&["User:".into()]).unwrap();
        assert_eq!(matcher.push("Hello Us"), ("Hello ".into(), false));
        assert_eq!(matcher.push("ual. U"), ("Usual. ".into(), false));
        assert_eq!(matcher.finish(), "U");
    }

    #[test]
    fn stop_strings_have_limits() {
        let refusal = |stops: Vec<String>| StopMatcher::new(&stops).map(drop).map_err(|e| e.to_string());
        assert_eq!(refusal(vec!["a".repeat(limits::STOP); limits::STOPS]), Ok(()));
        let many = refusal(vec!["a".into(); limits::STOPS + 1]).unwrap_err();
        assert_eq!(many, "65 stop strings are too many; give 64 at most");
        let long = refusal(vec!["a".repeat(limits::STOP + 1)]).unwrap_err();
        assert_eq!(long, "a stop string of 1025 bytes is too long; the limit is 1024");
    }

    #[test]
    fn results_do_not_depend_on_splitting() {
        let cases: [(&[&str], &str); 9] = [
            (&["ab"], "aaab rest"),
            (&["aab", "ab"], "caaab"),
            (&["abcd", "bc"], "xabcdy"),
            (&["\n\n", "\nUser"], "a\nUs\n\nUser"),
            (&["…é"], "…… …é!"),
            (&["🙂🙂", "🙂a"], "🙂 🙂a🙂"),
            (&["never"], "nevnevnev"),
            (&["", "b"], "aba"),
            (&[], "nothing stops this"),
        ];
        for (stops, text) in cases {
            let cuts: Vec<usize> = text.char_indices().map(|(at, _)| at).skip(1).collect();
            let want = expected(stops, text);
            assert_eq!(run(stops, [text]), want, "{stops:?} in {text:?}");
            // Every way to split the text within the first twelve positions.
            for choice in 0u32..1 << cuts.len().min(12) {
                let mut from = 0;
                let ends = cuts.iter().enumerate().filter(|(i, _)| choice >> i & 1 == 1).map(|(_, &at)| at);
                let pieces: Vec<_> =
                    ends.chain([text.len()]).map(|to| &text[std::mem::replace(&mut from, to)..to]).collect();
                assert_eq!(run(stops, pieces.iter().copied()), want, "{stops:?} in {pieces:?}");
            }
        }
    }
}
