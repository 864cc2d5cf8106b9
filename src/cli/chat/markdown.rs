//! Light Markdown styling of streamed text: emphasis and code are styled, and their marks stay, so that copied text is
//! exactly the model's. Styles end with their line, except in code blocks.

const BOLD: &str = "\x1b[1m";
const ITALIC: &str = "\x1b[3m";
const CODE: &str = "\x1b[36m";
const HEADING: &str = "\x1b[1;4m";
const PLAIN: &str = "\x1b[0m";

/// The styling state of a streamed text.
#[derive(Debug, Default)]
pub struct Markdown {
    /// A run of marks that may still grow.
    held: String,
    /// The last character before `held`.
    last: Option<char>,
    /// Whether the line holds only white space so far.
    fresh: bool,
    started: bool,
    bold: bool,
    italic: bool,
    code: bool,
    heading: bool,
    /// Whether inside a code block.
    block: bool,
    /// Whether on a fence line.
    fence: bool,
}

impl Markdown {
    /// Returns the styled `piece`.
    pub fn push(&mut self, piece: &str) -> String {
        let mut out = String::new();
        for c in piece.chars() {
            if !self.started {
                (self.started, self.fresh) = (true, true);
            }
            if self.held.chars().next().is_some_and(|held| held != c) {
                self.marks(Some(c), &mut out);
            }
            match c {
                '*' | '_' | '`' | '#' => self.held.push(c),
                _ => {
                    self.plain(c, &mut out);
                }
            }
        }
        out
    }

    /// Returns what remains to be written at the end of the text.
    pub fn finish(&mut self) -> String {
        let mut out = String::new();
        self.marks(None, &mut out);
        if self.is_styled() {
            out += PLAIN;
        }
        *self = Self::default();
        out
    }

    fn is_styled(&self) -> bool {
        self.bold || self.italic || self.code || self.heading || self.block || self.fence
    }

    fn plain(&mut self, c: char, out: &mut String) {
        if c == '\n' {
            let styled = self.is_styled();
            (self.bold, self.italic, self.code, self.heading, self.fence) = (false, false, false, false, false);
            if styled {
                *out += PLAIN;
            }
            out.push(c);
            if self.block {
                *out += CODE;
            }
            self.fresh = true;
        } else {
            out.push(c);
            self.fresh &= c.is_whitespace();
        }
        self.last = Some(c);
    }

    /// Handles a complete run of marks; `next` is the character after it.
    fn marks(&mut self, next: Option<char>, out: &mut String) {
        let marks = std::mem::take(&mut self.held);
        let Some(mark) = marks.chars().next() else { return };
        let opens = next.is_some_and(|c| !c.is_whitespace()) && self.last.is_none_or(|c| !c.is_alphanumeric());
        let closes = self.last.is_some_and(|c| !c.is_whitespace()) && next.is_none_or(|c| !c.is_alphanumeric());
        let was = self.style();
        let mut after = true; // whether the marks come after the escape: they are styled themselves
        match (mark, marks.len()) {
            ('`', 3..) if self.fresh => {
                self.block = !self.block;
                self.fence = true;
            }
            _ if self.block || self.fence => {}
            ('`', 1) => {
                self.code = !self.code;
                after = self.code;
            }
            _ if self.code => {}
            ('#', 1..=6) if self.fresh && next == Some(' ') => self.heading = true,
            ('*' | '_', 1..=3) => {
                let (bold, italic) = (marks.len() >= 2, marks.len() != 2);
                if (!bold || self.bold) && (!italic || self.italic) && closes {
                    (self.bold, self.italic) = (self.bold && !bold, self.italic && !italic);
                    after = false;
                } else if opens {
                    (self.bold, self.italic) = (self.bold || bold, self.italic || italic);
                }
            }
            _ => {}
        }
        let now = self.style();
        let change = if was == now { String::new() } else { format!("{PLAIN}{now}") };
        *out += &if after { change + &marks } else { marks.clone() + &change };
        self.last = Some(mark);
        self.fresh = false;
    }

    fn style(&self) -> String {
        let styles = [
            (self.heading, HEADING),
            (self.bold, BOLD),
            (self.italic, ITALIC),
            (self.code || self.block || self.fence, CODE),
        ];
        styles.into_iter().filter(|s| s.0).map(|s| s.1).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Styles `text`, with `<b>` and the like for the escapes.
    fn shown(text: &str) -> String {
        let mut uncut = Markdown::default();
        let all = uncut.push(text) + &uncut.finish();
        // the result does not depend on how the text is cut into pieces
        let mut pieces = Markdown::default();
        let single: String = text.chars().map(|c| pieces.push(&c.to_string())).collect();
        assert_eq!(single + &pieces.finish(), all, "{text:?}");
        let names = [(BOLD, "<b>"), (ITALIC, "<i>"), (CODE, "<c>"), (HEADING, "<h>"), (PLAIN, "<->")];
        let all = names.iter().fold(all, |text, (escape, name)| text.replace(escape, name));
        let bare = names.iter().fold(all.clone(), |text, (_, name)| text.replace(name, ""));
        assert_eq!(bare, text, "nothing is lost");
        all
    }

    #[test]
    fn styles_emphasis_and_code() {
        assert_eq!(shown("a **b c** d"), "a <-><b>**b c**<-> d");
        assert_eq!(shown("*a* _b_"), "<-><i>*a*<-> <-><i>_b_<->");
        assert_eq!(shown("***a***"), "<-><b><i>***a***<->");
        assert_eq!(shown("`a*b*` c"), "<-><c>`a*b*`<-> c");
        assert_eq!(shown("# A\nb"), "<-><h># A<->\nb");
    }

    #[test]
    fn blocks_of_code_are_blocks() {
        assert_eq!(shown("```py\n*a*\n```\nb"), "<-><c>```py<->\n<c>*a*<->\n<c>```<->\nb");
    }

    #[test]
    fn leaves_other_characters_alone() {
        for text in ["2 * 3 * 4", "snake_case_name", "a_b", "#hash", "* item", "a**", "😀 # x", ""] {
            assert_eq!(shown(text).replace("<->", ""), text);
        }
        assert_eq!(shown("**a\nb"), "<-><b>**a<->\nb", "styles end with their line");
        assert_eq!(shown("**a"), "<-><b>**a<->", "and with the text");
    }
}
