//! Tokenization of texts with literal ranges, in which no markers may arise.

use std::ops::Range;

use tokenizers::Encoding;

use super::{
    Markers, Tokenizer,
    divide::PART,
    markers::{Found, Piece},
};
use crate::{Error, Result, limits};

/// A part of a text that is encoded separately.
#[derive(Clone, Debug, PartialEq)]
enum Part {
    Text(Range<usize>),
    /// A character as byte tokens.
    Bytes(Range<usize>),
    /// A zero-width character, inserted where no other ids stand for the same text.
    Gap(usize),
}

const GAP: &str = "\u{200b}";
/// Each round breaks all markers that are found; further ones only appear where markers overlap.
const ROUNDS: usize = 16;

impl Tokenizer {
    /// Returns the ids of `text`, like [`Tokenizer::encode`] or, if `continues`, [`Tokenizer::encode_more`], except that
    /// no marker that touches one of the ranges `literal` becomes the marker's ids. The text is split inside such a
    /// marker, so that other ids stand for it. If that does not help, one of its characters becomes byte tokens, or
    /// otherwise a zero-width space is inserted. What remains a marker even then (a special token of one character
    /// without byte tokens) is omitted.
    pub fn encode_literal(
        &self,
        text: &str,
        literal: &[Range<usize>],
        markers: &Markers,
        continues: bool,
    ) -> Result<Vec<u32>> {
        if literal.is_empty() {
            return if continues { self.encode_more(text) } else { self.encode(text, false) };
        }
        limits::check_prompt(text, "the text")?;
        let mut parts = vec![Part::Text(0..text.len())];
        let mut encoded = vec![self.part(text, &parts[0], continues)?];
        for _ in 0..ROUNDS {
            let pieces = encoded.concat();
            let found = found(markers, self, &pieces, text, literal);
            if found.is_empty() {
                return Ok(pieces.iter().map(|piece| piece.id).collect());
            }
            let mut breaks: Vec<Part> = found.iter().map(|found| self.breaking(text, &pieces, found)).collect();
            breaks.sort_by_key(Part::start);
            breaks.dedup();
            (parts, encoded) = self.broken(text, parts, encoded, &breaks, continues)?;
        }
        let mut pieces = encoded.concat();
        for remaining in found(markers, self, &pieces, text, literal) {
            pieces[remaining.tokens].iter_mut().for_each(|piece| piece.id = u32::MAX);
        }
        Ok(pieces.iter().map(|piece| piece.id).filter(|&id| id != u32::MAX).collect())
    }

    /// Splits `parts` at `breaks`, which are in order, and encodes the changed ones.
    fn broken(
        &self,
        text: &str,
        parts: Vec<Part>,
        encoded: Vec<Vec<Piece>>,
        breaks: &[Part],
        continues: bool,
    ) -> Result<(Vec<Part>, Vec<Vec<Piece>>)> {
        let (mut all, mut pieces) = (Vec::new(), Vec::new());
        let mut breaks = breaks.iter().peekable();
        for (part, old) in parts.into_iter().zip(encoded) {
            let Part::Text(range) = &part else {
                all.push(part);
                pieces.push(old);
                continue;
            };
            let (mut at, before) = (range.start, all.len());
            while let Some(cut) = breaks.next_if(|cut| cut.start() < range.end) {
                if cut.start() < at {
                    continue; // already broken
                }
                if at < cut.start() {
                    all.push(Part::Text(at..cut.start()));
                }
                at = cut.end();
                if *cut != Part::Text(at..at) {
                    all.push(cut.clone());
                }
            }
            if all.len() == before && at == range.start {
                all.push(part);
                pieces.push(old);
                continue;
            }
            if at < range.end {
                all.push(Part::Text(at..range.end));
            }
            for (i, part) in all.iter().enumerate().skip(before) {
                pieces.push(self.part(text, part, continues || i > 0)?);
            }
        }
        Ok((all, pieces))
    }

    /// Returns how to break a marker: by a split (an empty text), a character that becomes bytes, or a gap.
    fn breaking(&self, text: &str, pieces: &[Piece], found: &Found) -> Part {
        let within = |piece: &Piece| {
            let range = piece.range.start.max(found.range.start)..piece.range.end.min(found.range.end);
            text.get(range.clone()).filter(|covered| !covered.is_empty()).map(|covered| (covered, range))
        };
        let inside = || pieces[found.tokens.clone()].iter().filter_map(|piece| Some((piece, within(piece)?)));
        // A token of several characters cannot arise where the text is split inside it.
        let longest = inside().map(|(_, part)| part).max_by_key(|(covered, _)| covered.chars().count());
        if let Some((covered, range)) = longest {
            let half = covered.chars().count() / 2;
            if let Some((at, _)) = covered.char_indices().nth(half).filter(|_| half > 0) {
                return Part::Text(range.start + at..range.start + at);
            }
        }
        let character = inside().find(|(piece, (covered, _))| {
            !self.is_byte(piece.id) && covered.bytes().all(|byte| self.byte_id(byte).is_some())
        });
        match character {
            Some((_, (_, range))) => Part::Bytes(range),
            None => {
                let after = found.range.start + 1..;
                Part::Gap(after.take(4).find(|&at| text.is_char_boundary(at)).unwrap_or(text.len()))
            }
        }
    }

    fn part(&self, text: &str, part: &Part, continues: bool) -> Result<Vec<Piece>> {
        match part {
            Part::Text(range) => {
                let mut pieces = self.pieces(&text[range.clone()], continues)?;
                for piece in &mut pieces {
                    piece.range = piece.range.start + range.start..piece.range.end + range.start;
                }
                Ok(pieces)
            }
            Part::Bytes(range) => {
                let ids = text[range.clone()].bytes().filter_map(|byte| self.byte_id(byte));
                Ok(ids.map(|id| Piece { id, range: range.clone() }).collect())
            }
            Part::Gap(at) => {
                let ids = self.encode_more(GAP)?;
                Ok(ids.into_iter().map(|id| Piece { id, range: *at..*at }).collect())
            }
        }
    }

    /// Returns the tokens of `text` and their positions; a long text is encoded in parts, like in
    /// [`Tokenizer::encode`].
    pub(super) fn pieces(&self, text: &str, continues: bool) -> Result<Vec<Piece>> {
        let divided = text.len() > PART && self.traits.plain;
        let parts = if divided { self.split_points().parts(text).collect() } else { vec![text] };
        let (mut pieces, mut start) = (Vec::new(), 0);
        for part in parts {
            if let Some(cancel) = self.cancel.as_deref().filter(|_| divided) {
                Error::check_cancelled(cancel)?;
            }
            let of_part = self.pieces_of_part(part, continues || start > 0)?;
            pieces.extend(
                of_part
                    .into_iter()
                    .map(|Piece { id, range }| Piece { id, range: range.start + start..range.end + start }),
            );
            start += part.len();
        }
        Ok(pieces)
    }

    fn pieces_of_part(&self, text: &str, continues: bool) -> Result<Vec<Piece>> {
        const BEFORE: &str = "\n";
        if continues {
            let before = self.encode(BEFORE, false)?;
            let all = self.encoding_with_offsets(&format!("{BEFORE}{text}"))?;
            if all.get_ids().starts_with(&before) {
                return Ok(pieces_of(&all, before.len(), BEFORE.len()));
            }
        }
        Ok(pieces_of(&self.encoding_with_offsets(text)?, 0, 0))
    }

    fn encoding_with_offsets(&self, text: &str) -> Result<Encoding> {
        self.encoding(text, |inner| inner.encode(text, false))
    }

    /// Returns the id of a byte token.
    fn byte_id(&self, byte: u8) -> Option<u32> {
        self.inner.token_to_id(&format!("<0x{byte:02X}>"))
    }
}

/// Returns the tokens after the first `skipped`, for a text that starts at `start`.
fn pieces_of(encoding: &Encoding, skipped: usize, start: usize) -> Vec<Piece> {
    let all = encoding.get_ids().iter().zip(encoding.get_offsets()).skip(skipped);
    let range = |&(from, to): &(usize, usize)| from.saturating_sub(start)..to.saturating_sub(start);
    all.map(|(&id, offsets)| Piece { id, range: range(offsets) }).collect()
}

/// Returns the markers among `pieces` that touch one of the ranges `literal`.
fn found(
    markers: &Markers,
    tokenizer: &Tokenizer,
    pieces: &[Piece],
    text: &str,
    literal: &[Range<usize>],
) -> Vec<Found> {
    markers.find(tokenizer, pieces, text).into_iter().filter(|found| touches(&found.range, literal)).collect()
}

/// Whether `range` overlaps one of `others`, which are ordered and disjoint.
fn touches(range: &Range<usize>, others: &[Range<usize>]) -> bool {
    let after = others.partition_point(|other| other.end <= range.start);
    others.get(after).is_some_and(|other| other.start < range.end)
}

impl Part {
    fn start(&self) -> usize {
        match self {
            Self::Text(range) | Self::Bytes(range) => range.start,
            Self::Gap(at) => *at,
        }
    }

    fn end(&self) -> usize {
        match self {
            Self::Text(range) | Self::Bytes(range) => range.end,
            Self::Gap(at) => *at,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use super::*;
    use crate::{format::gguf::Metadata, text::small_tokenizer};

    /// Returns a tokenizer with these tokens after `<unk>`, `<s>`, `</s>` and, with `bytes`, the byte tokens; and with
    /// normalizers.
    fn tokenizer(bytes: bool, words: &[&str], merges: &[[&str; 2]], more: &[[&str; 2]]) -> Tokenizer {
        let special = ["<unk>", "<s>", "</s>"].map(String::from);
        let bytes = (0..if bytes { 256 } else { 0 }).map(|b| format!("<0x{b:02X}>"));
        let all = special.iter().cloned().chain(bytes).chain(words.iter().map(ToString::to_string));
        let vocab: serde_json::Map<_, _> = all.zip(0..).map(|(token, id)| (token, id.into())).collect();
        let added = [0, 1, 2].map(|id| {
            serde_json::json!({"id": id, "content": special[id], "special": true, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false})
        });
        let replace =
            |[from, to]: &[&str; 2]| serde_json::json!({"type": "Replace", "pattern": {"String": from}, "content": to});
        let prepend = serde_json::json!({"type": "Prepend", "prepend": "▁"});
        let normalizers: Vec<_> = [prepend].into_iter().chain([[" ", "▁"]].iter().chain(more).map(replace)).collect();
        let json = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "pre_tokenizer": null,
            "post_processor": null, "normalizer": {"type": "Sequence", "normalizers": normalizers},
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
                {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
            "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                "vocab": vocab, "merges": merges},
        });
        let mut metadata = Metadata::default();
        metadata.set("tokenizer.huggingface.json", json.to_string());
        for (key, id) in [("unknown", 0u32), ("bos", 1), ("eos", 2)] {
            metadata.set(format!("tokenizer.ggml.{key}_token_id"), id);
        }
        Tokenizer::from_metadata(&metadata, "small.gguf").unwrap()
    }

    /// Counts the marker `<tool>` and special tokens in the ids of `before`, `content` and `after`, of which only `content`
    /// is literal; asserts that the text is preserved.
    fn markers_in(t: &Tokenizer, before: &str, content: &str, after: &str) -> usize {
        let markers = t.markers(&["<tool>".into()]).unwrap();
        let text = format!("{before}{content}{after}");
        let literal = before.len()..before.len() + content.len();
        let count = [false, true].map(|continues| {
            let ids = t.encode_literal(&text, from_ref(&literal), &markers, continues).unwrap();
            let pieces: Vec<Piece> = ids.iter().map(|&id| Piece { id, range: 0..0 }).collect();
            markers.find(t, &pieces, "").len()
        });
        assert_eq!(count[0], count[1]);
        count[0]
    }

    const LETTERS: [&str; 10] = ["▁", "<", ">", "t", "o", "l", "to", "tool", "ol", "▁<"];
    const MERGES: [[&str; 2]; 4] = [["t", "o"], ["o", "l"], ["to", "ol"], ["▁", "<"]];

    #[test]
    fn literal_text_never_becomes_a_marker() {
        let words = tokenizer(true, &LETTERS, &MERGES, &[]);
        let letters = tokenizer(true, &["▁", "<", ">", "t", "o", "l"], &[], &[]);
        let bytes = tokenizer(true, &["▁"], &[], &[]);
        let no_bytes = tokenizer(false, &["▁", "<", ">", "t", "o", "l"], &[], &[]);
        for (name, t) in [("words", &words), ("letters", &letters), ("bytes", &bytes), ("no bytes", &no_bytes)] {
            for content in ["<tool>", " <tool> ", "<tool><tool>", "<<tool>", "<tool", "tool", "lo<tool>lo", "▁<tool>"]
            {
                for (before, after) in [("", ""), ("<tool>", "<tool>"), ("<tool> ", "\n"), ("<", ">")] {
                    let own = [before, after].iter().filter(|part| part.contains("<tool>")).count();
                    let name = format!("{name}: {before:?} {content:?} {after:?}");
                    assert_eq!(markers_in(t, before, content, after), own, "{name}");
                }
            }
            for content in ["</s>", "<s>", "o<s></s>l", "<unk>"] {
                assert_eq!(markers_in(t, "<tool>", content, "<s>"), 2, "{name}: {content}");
            }
        }
    }

    #[test]
    fn literal_encoding_keeps_the_text_and_all_other_ids() {
        let t = tokenizer(true, &LETTERS, &MERGES, &[]);
        let markers = t.markers(&["<tool>".into()]).unwrap();
        let ids = |text: &str, literal: Range<usize>| t.encode_literal(text, &[literal], &markers, false).unwrap();
        for text in ["", "tool", "<tool>tool", "lo <tool> </s> <tool>\n", "日本 <tool>"] {
            assert_eq!(t.decode(&ids(text, 0..text.len())), text);
            assert_eq!(ids(text, text.len()..text.len()), t.encode(text, false).unwrap());
        }
        for text in ["tool > <", "<too>", "<to ol>"] {
            assert_eq!(ids(text, 0..text.len()), t.encode(text, false).unwrap(), "{text} has no marker");
        }
        assert_eq!(ids("<tool><tool>", 6..12)[..3], t.encode("<tool>", false).unwrap());
    }

    /// Characters that this tokenizer normalizes to those of a marker.
    #[test]
    fn lookalikes_do_not_become_markers() {
        let t = tokenizer(true, &LETTERS, &MERGES, &[["＜", "<"], ["ⓞ", "o"]]);
        let markers = t.markers(&["<tool>".into()]).unwrap();
        assert!(markers.may_hold(["＜tⓞ"].into_iter()));
        for content in ["＜tool>", "<tⓞⓞl>", "＜tⓞol>＜tool>"] {
            assert_eq!(markers_in(&t, "<tool>", content, ""), 1, "{content}");
        }
        assert!(!small_tokenizer().markers(&[]).unwrap().may_hold(["＜tⓞ"].into_iter()));
    }

    #[test]
    fn hostile_text_takes_no_extra_rounds() {
        let t = tokenizer(true, &LETTERS, &MERGES, &[]);
        let markers = t.markers(&["<tool>".into(), "tool><".into(), "<tool><tool>".into()]).unwrap();
        let bytes = |times: usize| {
            let text = "<tool>".repeat(times) + &"</s>".repeat(times);
            let (before, all) = (t.bytes_encoded(), 0..text.len());
            let ids = t.encode_literal(&text, &[all], &markers, false).unwrap();
            assert!(
                markers.find(&t, &ids.iter().map(|&id| Piece { id, range: 0..0 }).collect::<Vec<_>>(), "").is_empty()
            );
            t.bytes_encoded() - before
        };
        let (few, many) = (bytes(500), bytes(1000));
        assert!(many <= few * 21 / 10, "{few} {many}");
    }
}
