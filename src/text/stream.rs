//! Streaming decoder: returns complete characters only.

use super::Tokenizer;

/// Decodes a growing sequence of ids. The concatenated output of [`Stream::push`] and [`Stream::finish`] equals
/// [`Tokenizer::decode`] of all ids.
#[derive(Clone)]
pub struct Stream<'t> {
    tokenizer: &'t Tokenizer,
    /// Whether no text was returned yet, so that a leading space may have to be removed.
    at_start: bool,
    /// The start of an incomplete character: at most 3 bytes between pushes.
    pending: Vec<u8>,
}

impl Tokenizer {
    /// Returns a decoder that takes one id at a time.
    pub fn stream(&self) -> Stream<'_> {
        Stream { tokenizer: self, at_start: true, pending: Vec::new() }
    }

    /// Returns a decoder that continues after `ids`. Only the last 3 bytes matter, since an incomplete character has no
    /// more.
    pub fn stream_after(&self, ids: &[u32]) -> Stream<'_> {
        let mut bytes = 0;
        let before = ids.iter().rposition(|&id| {
            bytes += self.piece(id).len();
            bytes > 3
        });
        let mut stream = self.stream();
        ids[before.unwrap_or(0)..].iter().for_each(|&id| drop(stream.push(id)));
        stream
    }
}

impl Tokenizer {
    /// Returns the number of `ids`, following `before`, whose text consists of whole characters at the start of `text`,
    /// and the rest of `text`.
    pub fn ids_within<'s>(&self, before: &[u32], ids: &[u32], text: &'s str) -> (usize, &'s str) {
        let mut stream = self.stream_after(before);
        let (mut rest, mut within) = (text, (0, text));
        for (i, &id) in ids.iter().enumerate() {
            let Some(after) = rest.strip_prefix(&*stream.push(id)) else { break };
            rest = after;
            if stream.is_complete() {
                within = (i + 1, rest);
            }
        }
        within
    }
}

impl Stream<'_> {
    /// Adds an id and returns the text that it completes, possibly none. Bytes that cannot become a character are
    /// returned as U+FFFD immediately.
    pub fn push(&mut self, id: u32) -> String {
        let mut piece = self.tokenizer.piece(id);
        if self.at_start && !piece.is_empty() {
            self.at_start = false;
            if self.tokenizer.strips_space() && piece[0] == b' ' {
                piece.remove(0);
            }
        }
        self.pending.extend(piece);
        let mut text = String::new();
        let mut rest = Vec::new();
        let mut chunks = self.pending.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            text.push_str(chunk.valid());
            if chunks.peek().is_none() && is_unfinished(chunk.invalid()) {
                rest = chunk.invalid().to_vec();
            } else if !chunk.invalid().is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        self.pending = rest;
        text
    }

    /// Keeps a leading space, for a part of a text.
    pub fn keep_space(&mut self) {
        self.at_start = false;
    }

    /// Whether the text of all ids was returned.
    pub fn is_complete(&self) -> bool {
        self.pending.is_empty()
    }

    /// Returns the rest: U+FFFD for an incomplete character.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }
}

/// Whether these bytes are an incomplete character.
fn is_unfinished(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|e| e.valid_up_to() == 0 && e.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use crate::text::tokenizer::tests::small;

    /// Returns the id of a byte token in the small tokenizer.
    fn byte(b: u8) -> u32 {
        3 + u32::from(b)
    }

    fn pieces(ids: &[u32]) -> Vec<String> {
        let tokenizer = small();
        let mut stream = tokenizer.stream();
        let mut out: Vec<_> = ids.iter().map(|&id| stream.push(id)).collect();
        out.push(stream.finish());
        out
    }

    #[test]
    fn incomplete_characters_are_held_back() {
        let ids = "🙂".bytes().map(byte).collect::<Vec<_>>();
        assert_eq!(pieces(&ids), ["", "", "", "🙂", ""]);
    }

    #[test]
    fn invalid_bytes_are_not_held_back() {
        assert_eq!(pieces(&[byte(0x80), 260]), ["\u{fffd}", "a", ""]);
        assert_eq!(pieces(&[byte(0xE2), 260]), ["", "\u{fffd}a", ""], "another token ends the wait");
        assert_eq!(pieces(&[byte(0xE2), byte(0xE2), byte(0x80), byte(0xA6)]), ["", "\u{fffd}", "", "…", ""]);
        assert_eq!(pieces(&[byte(0xF0), byte(0x9F)]), ["", "", "\u{fffd}"], "so does the end of the text");
        assert_eq!(pieces(&[byte(0xFF); 3]), ["\u{fffd}", "\u{fffd}", "\u{fffd}", ""]);
    }

    #[test]
    fn only_the_leading_space_is_removed() {
        assert_eq!(pieces(&[1, 262, 262]), ["", "a", " a", ""]);
        assert_eq!(pieces(&[259, 262]), ["", " a", ""]);
        assert_eq!(pieces(&[260, 262]), ["a", " a", ""]);
        let tokenizer = small();
        let mut stream = tokenizer.stream();
        stream.keep_space();
        assert_eq!(stream.push(262), " a");
    }

    #[test]
    fn resumed_streams_have_the_same_pending_bytes() {
        let tokenizer = small();
        let some = [byte(0xF0), byte(0x9F), byte(0xC2), byte(0x80), byte(0xFF), 259, 260, 262, 1];
        // Every sequence of five of these ids.
        for text in 0..some.len().pow(5) {
            let ids: Vec<u32> = (0..5).map(|i| some[text / some.len().pow(i) % some.len()]).collect();
            let mut uninterrupted = tokenizer.stream();
            ids.iter().for_each(|&id| drop(uninterrupted.push(id)));
            let after = tokenizer.stream_after(&ids);
            assert_eq!((after.at_start, after.pending), (uninterrupted.at_start, uninterrupted.pending), "{ids:?}");
        }
    }

    #[test]
    fn pieces_concatenate_to_the_decoded_text() {
        let tokenizer = small();
        // Every id several times, in an order that mixes bytes and words.
        let ids: Vec<u32> = (0..4000u32).map(|i| i.wrapping_mul(2_654_435_761) >> 7).map(|h| h % 268).collect();
        let joined = pieces(&ids).concat();
        assert_eq!(joined, tokenizer.decode(&ids));
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.piece(id)).collect();
        assert_eq!(joined, String::from_utf8_lossy(&bytes));
    }
}
