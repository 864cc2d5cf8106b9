//! Word wrap of streamed text.

use unicode_width::UnicodeWidthChar;

/// Code fence; lines of code blocks are not wrapped.
const FENCE: &str = "```";

/// Word wrap at a terminal's width. A word is written once it is complete; escape sequences have no width.
#[derive(Debug)]
pub struct Wrap {
    /// Line width; `None`: no wrapping.
    width: Option<usize>,
    /// Used columns of the line.
    column: usize,
    /// Spaces before the word.
    spaces: String,
    word: String,
    word_width: usize,
    /// Whether within an escape sequence.
    escape: bool,
    /// Whether only spaces precede the word on its line.
    fresh: bool,
    /// Whether within a code block.
    code: bool,
}

impl Wrap {
    /// Returns a wrapper for lines of `width` columns.
    pub fn new(width: Option<usize>) -> Self {
        let width = width.filter(|&width| width >= MIN_WIDTH);
        let (spaces, word) = (String::new(), String::new());
        Self { width, column: 0, spaces, word, word_width: 0, escape: false, fresh: true, code: false }
    }

    /// Returns the wrapped `text`, without an incomplete last word.
    pub fn push(&mut self, text: &str) -> String {
        let Some(width) = self.width else { return text.into() };
        let mut out = String::with_capacity(text.len() + 8);
        for c in text.chars() {
            match c {
                _ if self.escape => {
                    self.word.push(c);
                    self.escape = !c.is_ascii_alphabetic();
                }
                '\x1b' => {
                    self.word.push(c);
                    self.escape = true;
                }
                '\n' => self.end_line(&mut out),
                ' ' | '\t' => {
                    self.flush(width, &mut out);
                    self.spaces.push(c);
                }
                _ => self.add(c, width, &mut out),
            }
        }
        out
    }

    /// Returns the rest at the end of the text.
    pub fn finish(&mut self) -> String {
        let mut out = String::new();
        if let Some(width) = self.width {
            self.flush(width, &mut out);
        }
        out += &std::mem::take(&mut self.spaces);
        *self = Self::new(self.width);
        out
    }

    fn end_line(&mut self, out: &mut String) {
        self.flush(self.width.unwrap_or(usize::MAX), out);
        out.push('\n');
        self.spaces.clear();
        (self.column, self.fresh) = (0, true);
    }

    fn add(&mut self, c: char, width: usize, out: &mut String) {
        let columns = c.width().unwrap_or(0);
        // Scripts with wide characters have no spaces: lines may break anywhere, as in overlong words.
        if columns == 2 || self.word_width + columns > width {
            self.flush(width, out);
        }
        self.word.push(c);
        self.word_width += columns;
        if columns == 2 {
            self.flush(width, out);
        }
    }

    /// Writes the word.
    fn flush(&mut self, width: usize, out: &mut String) {
        if self.word.is_empty() {
            return;
        }
        if self.fresh && self.word.contains(FENCE) {
            self.code = !self.code;
        }
        let spaces = self.spaces.len();
        if !self.code && self.column > 0 && self.column + spaces + self.word_width > width {
            out.push('\n');
            self.column = 0;
        } else {
            *out += &self.spaces;
            self.column += spaces;
        }
        *out += &self.word;
        self.column += self.word_width;
        self.fresh &= self.word_width == 0;
        self.word.clear();
        self.spaces.clear();
        self.word_width = 0;
    }
}

/// Minimum width for wrapping.
const MIN_WIDTH: usize = 10;

/// Returns `text` wrapped.
pub fn wrapped(text: &str, width: Option<usize>) -> String {
    let mut wrap = Wrap::new(width);
    wrap.push(text) + &wrap.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Wraps at ten columns, in one piece or in many.
    fn at_ten(text: &str) -> String {
        let uncut = wrapped(text, Some(10));
        let mut wrap = Wrap::new(Some(10));
        let pieces: String = text.chars().map(|c| wrap.push(&c.to_string())).collect();
        assert_eq!(pieces + &wrap.finish(), uncut, "{text:?}");
        uncut
    }

    #[test]
    fn lines_break_between_words() {
        for (text, broken) in [
            ("one two three", "one two\nthree"),
            ("one two six", "one two\nsix"),
            ("one two 3.", "one two 3."),
            ("one\n\n  two three four\n", "one\n\n  two\nthree four\n"),
            ("unbelievably long", "unbelievab\nly long"),
            ("a unbelievably", "a\nunbelievab\nly"),
            ("日本語日本語日本語", "日本語日本\n語日本語"),
            ("", ""),
            ("end ", "end "),
        ] {
            assert_eq!(at_ten(text), broken);
        }
    }

    #[test]
    fn escapes_have_no_width_and_code_is_not_wrapped() {
        assert_eq!(at_ten("\x1b[1mone two\x1b[0m 3"), "\x1b[1mone two\x1b[0m 3");
        let code = "```\nlet a = b + c + d;\n```\nand then more";
        assert_eq!(at_ten(code), "```\nlet a = b + c + d;\n```\nand then\nmore");
    }

    #[test]
    fn without_a_width_nothing_changes() {
        let text = "word ".repeat(40);
        assert_eq!(wrapped(&text, None), text);
        assert_eq!(wrapped(&text, Some(3)), text);
    }
}
