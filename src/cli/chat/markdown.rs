//! Light Markdown: what stands between emphasis marks or in code is styled, and the marks stay, so that what is copied
//! from the screen is what the model said. Takes pieces as they come; a style never outlives its line, a block of code
//! aside.

const BOLD: &str = "\x1b[1m";
const ITALIC: &str = "\x1b[3m";
const CODE: &str = "\x1b[36m";
const HEADING: &str = "\x1b[1;4m";
const PLAIN: &str = "\x1b[0m";

/// A text on its way to a terminal.
#[derive(Debug, Default)]
pub struct Markdown {
    /// A run of marks whose end is not known yet.
    held: String,
    /// The last character before `held`.
    last: Option<char>,
    /// Is nothing but white space on the line so far?
    fresh: bool,
    begun: bool,
    bold: bool,
    italic: bool,
    code: bool,
    heading: bool,
    /// In a block of code.
    block: bool,
    /// On a line that begins or ends a block.
    fence: bool,
}

impl Markdown {
    /// What to write for `piece`.
    pub fn push(&mut self, piece: &str) -> String {
        let mut out = String::new();
        for c in piece.chars() {
            if !self.begun {
                (self.begun, self.fresh) = (true, true);
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

    /// What to write at the end of the text.
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

    /// A run of equal marks is over; `next` comes after it.
    fn marks(&mut self, next: Option<char>, out: &mut String) {
        let marks = std::mem::take(&mut self.held);
        let Some(mark) = marks.chars().next() else { return };
        let opens = next.is_some_and(|c| !c.is_whitespace()) && self.last.is_none_or(|c| !c.is_alphanumeric());
        let closes = self.last.is_some_and(|c| !c.is_whitespace()) && next.is_none_or(|c| !c.is_alphanumeric());
        let was = self.style();
        let mut after = true; // do the marks come after the style that they begin, before the end of the one they end?
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

    /// With `<b>` and the like for the escapes.
    fn shown(text: &str) -> String {
        let mut whole = Markdown::default();
        let all = whole.push(text) + &whole.finish();
        // cut anywhere, it comes out the same
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
    fn styles_what_is_marked() {
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
    fn leaves_alone_what_is_no_mark() {
        for text in ["2 * 3 * 4", "snake_case_name", "a_b", "#hash", "* item", "a**", "😀 # x", ""] {
            assert_eq!(shown(text).replace("<->", ""), text);
        }
        assert_eq!(shown("**a\nb"), "<-><b>**a<->\nb", "a style ends with its line");
        assert_eq!(shown("**a"), "<-><b>**a<->", "and with the text");
    }
}
