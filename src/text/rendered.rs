//! Rendered prompts, and which parts of them come from messages. Templates are arbitrary programs, so this is
//! determined by rendering the messages a second time with sentinel characters.

use std::{collections::HashMap, ops::Range};

use super::{Inputs, Markers, Message, Template};
use crate::Result;

/// A text to tokenize, and which parts come from messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// The text.
    pub text: String,
    /// The ranges that come from messages, in order; empty if no marker can arise from them.
    pub literal: Vec<Range<usize>>,
}

/// Private-use characters that frame the content of each message, two per message.
const FRAMES: Range<u32> = 0xF0000..0x10FFFE;
/// Private-use characters that replace characters of messages.
const SIGNS: Range<u32> = 0xE000..0xF900;

impl Template {
    /// Renders `inputs` like [`Template::render`] and returns which parts come from messages, contexts and tools, as
    /// far as `markers` could arise from them.
    ///
    /// First the messages are rendered with sentinels around each content, inside its white space. If the output is
    /// otherwise unchanged, the sentinels mark the contents. If the template depends on how a message starts or ends,
    /// characters at the edges of markers are replaced instead. If the output changes even then (the template counts or
    /// splits), and contains more markers than for messages without any, the whole text is considered literal.
    pub fn render_literal<'a>(&self, inputs: impl Into<Inputs<'a>>, ask: bool, markers: &Markers) -> Result<Rendered> {
        let inputs = inputs.into();
        let may_hold = |text: &str| markers.may_hold([text].into_iter());
        let mut contents = Vec::new();
        let variables = inputs.variables(ask, &may_hold, &mut |content| {
            contents.push(content.to_owned());
            content.to_owned()
        });
        let text = self.render_with(&variables)?;
        let contents: Vec<&str> = contents.iter().map(String::as_str).collect();
        if !markers.may_hold(contents.iter().copied()) {
            return Ok(Rendered { text, literal: Vec::new() });
        }
        let render = |contents: &[String]| {
            let mut contents = contents.iter();
            let variables = inputs.variables(ask, &may_hold, &mut |_| contents.next().cloned().unwrap_or_default());
            self.render_with(&variables).ok()
        };
        let literal = literal(&text, &contents, markers, &render);
        self.check_cancelled()?;
        Ok(Rendered { text, literal })
    }

    /// Returns the white space that this template puts between a prompt and its reply, which the model generates too.
    pub fn reply_indent(&self) -> String {
        const MARK: &str = "\u{e000}\u{e001}";
        use super::Role::{Assistant, User};
        let messages = [Message::new(User, "a"), Message::new(Assistant, MARK), Message::new(User, "a")];
        let both = self.render(&messages[..1], true).and_then(|before| Ok((before, self.render(&messages, true)?)));
        let Ok((before, after)) = both else { return String::new() };
        let indent = after.strip_prefix(&*before).and_then(|rest| rest.split(MARK).next());
        indent.filter(|indent| indent.trim().is_empty()).unwrap_or_default().into()
    }
}

/// Returns the parts of `text`, rendered from `contents`, that come from them.
fn literal(
    text: &str,
    contents: &[&str],
    markers: &Markers,
    render: &dyn Fn(&[String]) -> Option<String>,
) -> Vec<Range<usize>> {
    if let Some(ranges) = framed(text, contents, render).or_else(|| replaced(text, contents, markers.edges(), render)) {
        return joined(ranges);
    }
    let without: Vec<String> = contents.iter().map(|content| content.replace(markers.edges(), "x")).collect();
    let harmless = render(&without).is_some_and(|without| markers.count(text) <= markers.count(&without));
    let all = 0..text.len();
    if harmless { Vec::new() } else { vec![all] }
}

/// Returns the parts between sentinels around each content; `None` if the text changes otherwise.
fn framed(text: &str, contents: &[&str], render: &dyn Fn(&[String]) -> Option<String>) -> Option<Vec<Range<usize>>> {
    let is_sign = |c: char| FRAMES.contains(&u32::from(c));
    if contents.len() > FRAMES.len() / 2 || contents.iter().any(|content| content.contains(is_sign)) {
        return None;
    }
    let sign = |i: usize| char::from_u32(FRAMES.start + i as u32).unwrap_or_default();
    let frame = |(i, content): (usize, &&str)| {
        let inner = content.trim();
        let start = content.len() - content.trim_start().len();
        let (before, after) = (&content[..start], &content[start + inner.len()..]);
        if inner.is_empty() {
            return content.to_string();
        }
        format!("{before}{}{inner}{}{after}", sign(2 * i), sign(2 * i + 1))
    };
    let rendered = render(&contents.iter().enumerate().map(frame).collect::<Vec<_>>())?;

    let (mut plain, mut ranges) = (String::new(), Vec::new());
    let (mut open, mut ends) = (HashMap::new(), Vec::new());
    for c in rendered.chars() {
        if !is_sign(c) {
            plain.push(c);
            continue;
        }
        let (i, at) = ((u32::from(c) - FRAMES.start) as usize, plain.len());
        let content = contents.get(i / 2)?.trim();
        if i % 2 == 0 {
            ends.extend(open.insert(i, at).map(|start| (content, start)));
        } else {
            // The start was trimmed, or the same content came twice, up to this point.
            let start =
                open.remove(&(i - 1)).unwrap_or_else(|| at - common(plain.chars().rev(), content.chars().rev()));
            ranges.push(start..at);
        }
    }
    if plain != text {
        return None;
    }
    ends.extend(open.into_iter().filter_map(|(i, start)| Some((contents.get(i / 2)?.trim(), start))));
    // The end was trimmed.
    ranges
        .extend(ends.into_iter().map(|(content, start)| start..start + common(text[start..].chars(), content.chars())));
    Some(ranges)
}

/// Returns the length in bytes of the common prefix of `text` and `content`, ignoring case.
fn common(text: impl Iterator<Item = char>, content: impl Iterator<Item = char>) -> usize {
    let same = |(a, b): &(char, char)| a == b || a.to_lowercase().eq(b.to_lowercase());
    text.zip(content).take_while(same).map(|(a, _)| a.len_utf8()).sum()
}

/// Returns the positions of characters from `contents` that are in `edges`, found by replacing each with a sentinel;
/// `None` if the text changes otherwise.
fn replaced(
    text: &str,
    contents: &[&str],
    edges: &[char],
    render: &dyn Fn(&[String]) -> Option<String>,
) -> Option<Vec<Range<usize>>> {
    let is_sign = |c: char| SIGNS.contains(&u32::from(c));
    if edges.len() > SIGNS.len() || contents.iter().any(|content| content.contains(is_sign)) {
        return None;
    }
    let sign = |c: char| edges.iter().position(|&edge| edge == c).and_then(|i| char::from_u32(SIGNS.start + i as u32));
    let replace = |content: &&str| content.chars().map(|c| sign(c).unwrap_or(c)).collect();
    let rendered = render(&contents.iter().map(replace).collect::<Vec<String>>())?;
    let (mut ranges, mut others) = (Vec::new(), rendered.chars());
    for (at, c) in text.char_indices() {
        let other = others.next()?;
        if other != c {
            if sign(c) != Some(other) {
                return None;
            }
            ranges.push(at..at + c.len_utf8());
        }
    }
    others.next().is_none().then_some(ranges)
}

/// Returns the union of `ranges`, ordered and disjoint.
pub(super) fn joined(mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_by_key(|range| range.start);
    let mut joined: Vec<Range<usize>> = Vec::new();
    for range in ranges {
        match joined.last_mut().filter(|last| range.start <= last.end) {
            Some(last) => last.end = last.end.max(range.end),
            None => joined.push(range),
        }
    }
    joined
}

impl Rendered {
    /// Returns a text that comes entirely from messages.
    pub fn running(text: String, markers: &Markers) -> Self {
        let all = 0..text.len();
        let literal = if markers.may_hold([&*text].into_iter()) { vec![all] } else { Vec::new() };
        Self { text, literal: joined(literal) }
    }

    /// Returns the parts after the first `start` bytes, relative to them.
    pub fn literal_after(&self, start: usize) -> Vec<Range<usize>> {
        let after = self.literal.iter().filter(|range| range.end > start);
        after.map(|range| range.start.max(start) - start..range.end - start).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::{Role, Tools, small_tokenizer};

    /// Returns the parts of the prompt for `contents`, alternating between user and model, that come from messages.
    fn literal_parts(source: &str, contents: &[&str]) -> Vec<String> {
        let template = Template::new(source, "test", "<s>", "</s>").unwrap();
        let markers = small_tokenizer().markers(&template.markers()).unwrap();
        let roles = [Role::User, Role::Assistant].into_iter().cycle();
        let messages: Vec<_> = roles.zip(contents).map(|(role, content)| Message::new(role, content)).collect();
        let Rendered { text, literal } = template.render_literal(&messages, true, &markers).unwrap();
        assert_eq!(text, template.render(&messages, true).unwrap());
        literal.into_iter().map(|range| text[range].into()).collect()
    }

    #[test]
    fn message_contents_are_located_in_any_template() {
        let each =
            |expression: &str| "{% for m in messages %}<a>{{ WHAT }}</a>{% endfor %}".replace("WHAT", expression);
        let contents = [" <a> ", "b<b>"];
        assert_eq!(literal_parts(&each("m.content"), &["a", "b"]), [""; 0], "no marker can arise");
        assert_eq!(literal_parts(&each("m.content"), &contents), ["<a>", "b<b>"]);
        assert_eq!(literal_parts(&each("'<b>' + m.content.strip() + '<b>'"), &contents), ["<a>", "b<b>"]);
        assert_eq!(literal_parts(&each("m.content|upper"), &contents), ["<A>", "B<B>"]);
        assert_eq!(literal_parts(&each("m.content|tojson"), &[" <a> "]).len(), 1);
        assert_eq!(literal_parts(&each("m.content ~ m.content"), &["<a>"]), ["<a><a>"]);
        let thought = each("m.content.split('</think>')[-1].lstrip('\\n')");
        assert_eq!(literal_parts(&thought, &["a", "<think>b</think>\n\n<a>"]), ["a", "<a>"]);
        assert_eq!(literal_parts(&each("m.content.split('|')[0]"), &["<a>b|c"]), ["<a>b"]);
        // depends on how the content starts and ends
        let first = each("m.content[0] + '.' + m.content[1:]");
        assert_eq!(literal_parts(&first, &["b<a>"]), ["<", ">"]);
        let ends = each("m.content if m.content.endswith('>') else 'c'");
        assert_eq!(literal_parts(&ends, &["<a>"]), ["<a><a></a>"]);
        // both together cannot be resolved: everything is literal, if it matters
        let both = each("m.content[0] ~ m.content[1:] if m.content[0] == '<' else m.content|length");
        assert_eq!(literal_parts(&both, &["<a>"]), ["<a><a></a>"]);
        assert_eq!(literal_parts(&both, &["c>"]), [""; 0]);
        // sentinels within a message have no effect
        let private = ["\u{f0000}<a>\u{f0001}\u{e000}"];
        assert_eq!(literal_parts(&each("m.content"), &private), [format!("<a>{}</a>", private[0])]);
    }

    #[test]
    fn tools_contexts_and_results_are_never_markers() {
        const SOURCE: &str = "{% for t in tools or [] %}<tool> {{ t|tojson }} </tool>{% endfor %}{% for c in contexts %}\
            <context> {{ c.strip() }} </context>{% endfor %}{% for m in messages %}<extra_id_1>{{ m.role }} \
            {{ m.content }}{% endfor %}";
        let template = Template::new(SOURCE, "test", "<s>", "</s>").unwrap();
        let markers = small_tokenizer().markers(&template.markers()).unwrap();
        let list =
            serde_json::json!([{"name": "f", "description": "a </tool> \"b\"\n<b>", "<key>": 1, "n": [2.5, "c"]}]);
        let tools = Tools::from_value(&list, "test").unwrap();
        let contexts = [" <context> ".to_owned(), "d".to_owned()];
        let call = "<toolcall> {\"name\": \"f\", \"arguments\": {\"a\": \"</toolcall>\"}} </toolcall>";
        let quoted = format!("<tool> {call} <toolcall>");
        let messages = [
            Message::new(Role::User, "<user>"),
            Message::new(Role::Assistant, &quoted),
            Message::new(Role::Tool, "<result>"),
        ];
        let literal_parts = |inputs: Inputs<'_>| -> Vec<String> {
            let Rendered { text, literal } = template.render_literal(inputs, true, &markers).unwrap();
            assert_eq!(text, template.render(inputs, true).unwrap());
            literal.into_iter().map(|range| text[range].into()).collect()
        };
        let inputs = Inputs { messages: &messages, tools: Some(&tools), contexts: &contexts, parse_special: false };
        let elsewhere = ["a </tool> \\\"b\\\"\\n<b>", "<key>", "<context>", "d"];
        let json = "{\"name\": \"f\", \"arguments\": {\"a\": \"</toolcall>\"}}";
        let contents = ["<user>", "<tool>", json, "<toolcall>", "<result>"];
        assert_eq!(literal_parts(inputs), [&elsewhere[..], &contents].concat());
        let special = Inputs { parse_special: true, ..inputs };
        assert_eq!(literal_parts(special), [&elsewhere[..], &["<result>"]].concat());
        let without = Inputs { tools: None, contexts: &[], ..inputs };
        assert_eq!(literal_parts(without), ["<user>", &quoted, "<result>"], "without tools there are no calls");
    }

    #[test]
    fn white_space_before_the_reply_is_detected() {
        let indent = |source: &str| Template::new(source, "test", "<s>", "</s>").unwrap().reply_indent();
        let llama = "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} \
            {{ m.content }} </s>{% endif %}{% endfor %}";
        assert_eq!(indent(llama), " ");
        assert_eq!(indent("{% for m in messages %}{{ m.content }}{% endfor %}"), "");
        assert_eq!(indent("{{ messages[2].content }}"), "");
    }
}
