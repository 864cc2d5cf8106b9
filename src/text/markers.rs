//! Markers: the control sequences that tell the model who speaks and where a turn or a tool call begins. Some are
//! special tokens of the vocabulary; others are ordinary text (`<extra_id_1>`, `[INST]`) whose sequence of ids has the
//! same effect. Only the template may produce them: markers in untrusted text are tokenized to other ids.

use std::{collections::HashMap, ops::Range};

use super::{Message, Role, Template, Tokenizer};
use crate::Result;

/// Maximum number of markers of a template; actual ones have a dozen.
const MAX_MARKERS: usize = 256;
/// Maximum length of a marker in characters.
const LONGEST: usize = 64;

/// The markers of a tokenizer and a template.
#[derive(Debug)]
pub struct Markers {
    special: HashMap<u32, String>,
    texts: Vec<Marker>,
    /// First and last characters of markers.
    edges: Vec<char>,
    /// Whether the tokenizer normalizes characters other than spaces.
    normalizes: bool,
}

/// A marker that is ordinary text to the tokenizer.
#[derive(Debug)]
struct Marker {
    text: String,
    /// Its ids in the middle of a text. The first and last token may extend beyond the marker.
    ids: Vec<u32>,
    /// The texts of the first and last id.
    first: Vec<u8>,
    last: Vec<u8>,
}

/// A token and the bytes that it covers.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub id: u32,
    pub range: Range<usize>,
}

/// The tokens of a text that form a marker.
#[derive(Debug)]
pub(super) struct Found {
    /// The tokens.
    pub tokens: Range<usize>,
    /// The bytes of the marker.
    pub range: Range<usize>,
}

impl Tokenizer {
    /// Returns the special tokens of this tokenizer and the markers `texts`.
    pub fn markers(&self, texts: &[String]) -> Result<Markers> {
        let added = self.inner.get_added_tokens_decoder();
        let special: HashMap<_, _> =
            added.into_iter().filter(|(_, t)| t.special).map(|(id, t)| (id, t.content)).collect();
        let marker = |text: &String| {
            let ids = self.encode_more(text)?;
            let text_of = |id: Option<&u32>| id.map(|&id| self.piece(id)).unwrap_or_default();
            let (first, last) = (text_of(ids.first()), text_of(ids.last()));
            Ok::<_, crate::Error>(Marker { text: text.clone(), ids, first, last })
        };
        let texts: Vec<Marker> = texts.iter().map(marker).collect::<Result<_>>()?;
        let names = special.values().map(|name| name.trim()).chain(texts.iter().map(|marker| &*marker.text));
        let mut edges: Vec<char> =
            names.flat_map(|name| [name.chars().next(), name.chars().next_back()]).flatten().collect();
        edges.sort_unstable();
        edges.dedup();
        Ok(Markers { special, texts, edges, normalizes: !self.traits.plain })
    }
}

impl Markers {
    /// Returns the first and last characters of markers.
    pub(super) fn edges(&self) -> &[char] {
        &self.edges
    }

    /// Whether `contents` may contain or complete a marker.
    pub(super) fn may_hold<'a>(&self, mut contents: impl Iterator<Item = &'a str>) -> bool {
        contents.any(|content| self.normalizes && !content.is_empty() || content.contains(&*self.edges))
    }

    /// Counts the markers in `text`.
    pub(super) fn count(&self, text: &str) -> usize {
        let names = self.special.values().map(|name| name.trim()).chain(self.texts.iter().map(|marker| &*marker.text));
        names.filter(|name| !name.is_empty()).map(|name| text.matches(name).count()).sum()
    }

    /// Returns the markers among the tokens of a text.
    pub(super) fn find(&self, tokenizer: &Tokenizer, tokens: &[Piece], text: &str) -> Vec<Found> {
        let mut found = Vec::new();
        for (i, token) in tokens.iter().enumerate() {
            if let Some(name) = self.special.get(&token.id) {
                let covered = text.get(token.range.clone()).unwrap_or_default();
                // Unknown characters are also the unknown token.
                let at = covered.find(name.trim()).map(|at| token.range.start + at);
                if let Some(start) = at.or((Some(token.id) != tokenizer.unknown).then_some(token.range.start)) {
                    let end = at.map_or(token.range.end, |at| at + name.trim().len());
                    found.push(Found { tokens: i..i + 1, range: start..end });
                }
            }
        }
        for marker in &self.texts {
            let Some(last) = marker.ids.len().checked_sub(1) else { continue };
            for (i, window) in tokens.windows(marker.ids.len()).enumerate() {
                if let Some(range) = marker.range_in(window, last, tokenizer, self.normalizes) {
                    found.push(Found { tokens: i..i + marker.ids.len(), range });
                }
            }
        }
        found
    }
}

impl Marker {
    /// Returns the bytes of this marker, if `window` is it.
    fn range_in(&self, window: &[Piece], last: usize, tokenizer: &Tokenizer, inexact: bool) -> Option<Range<usize>> {
        let same = |at: usize| window[at].id == self.ids[at];
        if last == 0 {
            return same(0).then(|| window[0].range.clone());
        }
        let inner = (1..last).all(same);
        let begins = || same(0) || tokenizer.piece(window[0].id).ends_with(&self.first);
        let ends = || same(last) || tokenizer.piece(window[last].id).starts_with(&self.last);
        (inner && begins() && ends()).then(|| {
            let (first, end) = (&window[0].range, &window[last].range);
            if inexact {
                return first.start..end.end;
            }
            let width = |bytes: &[u8]| bytes.strip_prefix(b" ").unwrap_or(bytes).len();
            let start = first.end.saturating_sub(width(&self.first)).max(first.start);
            start..(end.start + self.last.len()).min(end.end)
        })
    }
}

impl Template {
    /// Returns the marker-like strings of this template: `<…>` without white space, and `[…]` in capitals.
    pub fn markers(&self) -> Vec<String> {
        let mut markers = Vec::new();
        tags(self.source(), &mut markers);
        // Some markers are composed of several literals.
        let messages = [Role::System, Role::User, Role::Assistant, Role::User].map(|role| Message::new(role, "a"));
        let rendered = self.render(&messages, true).or_else(|_| self.render(&messages[1..], true));
        tags(&rendered.unwrap_or_default(), &mut markers);
        if markers.iter().any(|marker| marker.starts_with("<extra_id_")) {
            // The tool call markers of Hymba's instruct models, whether or not the template contains them.
            markers.extend(["<tool>", "</tool>", "<toolcall>", "</toolcall>"].map(String::from));
        }
        markers.sort_unstable();
        markers.dedup();
        markers.truncate(MAX_MARKERS);
        markers
    }
}

/// Adds the marker-like strings of `text`.
fn tags(text: &str, to: &mut Vec<String>) {
    let capital = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || "_/|".contains(c);
    let other = |c: char| !c.is_whitespace() && !"\"'{}<".contains(c);
    for (at, open) in text.match_indices(['<', '[']) {
        let (close, inside): (_, &dyn Fn(char) -> bool) = if open == "<" { ('>', &other) } else { (']', &capital) };
        let rest = &text[at + 1..];
        let end = rest.char_indices().take(LONGEST).find(|&(_, c)| c == close || !inside(c));
        let Some((length, _)) = end.filter(|&(length, c)| c == close && length > 0) else { continue };
        if rest[..length].contains(char::is_alphabetic) {
            to.push(text[at..at + length + 2].into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::small_tokenizer;

    #[test]
    fn markers_are_found_in_the_template() {
        let markers = |source: &str| Template::new(source, "test", "<s>", "</s>").unwrap().markers();
        let chatml = "{% for m in messages %}{{ '<|im_' + 'start|>' + m['role'] }}{% if 1 < 2 and 2 > 1 %}\
            {{ messages[0][m.content] }}{% endif %}[INST] [/INST]<<SYS>> [ a ]{% endfor %}";
        assert_eq!(markers(chatml), ["<SYS>", "<|im_start|>", "[/INST]", "[INST]"]);
        let hymba = "{{ '<extra_id_0>System' }}{{ '<context> a </context>' }}";
        let expected = ["</context>", "</tool>", "</toolcall>", "<context>", "<extra_id_0>", "<tool>", "<toolcall>"];
        assert_eq!(markers(hymba), expected);
        assert_eq!(markers("{{ messages[0].content }}"), [""; 0]);
    }

    #[test]
    fn markers_are_found_in_any_context() {
        let t = small_tokenizer();
        let markers = t.markers(&["<tab>".into()]).unwrap();
        for (text, count) in [("<tab>", 1), ("a <tab>b <tab>", 2), ("<ta b>", 0), ("a</s><tab>", 2)] {
            let pieces = t.pieces(text, false).unwrap();
            let found = markers.find(&t, &pieces, text);
            assert_eq!(found.len(), count, "{text}");
            for found in found {
                assert!(["<tab>", "</s>"].contains(&&text[found.range.clone()]), "{text} {found:?}");
            }
        }
        assert!(markers.may_hold(["a", "b>"].into_iter()) && !markers.may_hold(["a", "b"].into_iter()));
    }
}
