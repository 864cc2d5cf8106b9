//! Limits that are checked before allocating. They are far beyond any Hymba model, text or session; a file that exceeds
//! them is damaged or hostile. A test compares them with the table in `docs/trust.md`.

use crate::{Error, Result};

/// Bytes in a megabyte, the unit of messages and documentation.
pub const MB: usize = 1_000_000;

/// Bytes of a GGUF header: metadata and tensor list. The largest tokenizers need a quarter of it.
pub const GGUF_HEADER: usize = 64 * MB;
/// Bytes of a key or tensor name; names in use have at most a quarter of this.
pub const NAME: usize = 256;
/// Dimensions of a tensor, as in GGUF.
pub const DIMENSIONS: u32 = 4;
/// Largest tensor alignment in bytes; the smallest is 8.
pub const ALIGNMENT: u64 = 65536;
/// Layers.
pub const LAYERS: usize = 1024;
/// Any width or count in a model's configuration, except layers and context.
pub const WIDTH: usize = 1 << 20;
/// Meta tokens; the pass over them, which comes first, takes time quadratic in their number.
pub const META_TOKENS: usize = 2048;
/// Array items in GGUF metadata; the largest vocabularies need a tenth of it. An item takes 8 bytes in memory.
pub const ARRAY_ITEMS: usize = 1 << 22;
/// Context size in tokens, of models and sessions.
pub const CONTEXT: usize = 1 << 24;
/// Bytes of a text file in a Hugging Face folder.
pub const FOLDER_TEXT: usize = 48 * MB;
/// Bytes of a safetensors header; ten thousand tensors need a tenth of it.
pub const SAFETENSORS_HEADER: usize = 16 * MB;
/// Maximum growth factor of a text in a tokenizer's normalizers and decoders combined.
pub const TOKENIZER_GROWTH: usize = 16;
/// Normalizers, pre-tokenizers and decoders of a tokenizer; each takes one pass over a text.
pub const TOKENIZER_PARTS: usize = 16;
/// Bytes of a token.
pub const TOKEN: usize = 1024;
/// Total bytes of added tokens, which every text is searched for.
pub const ADDED_TOKENS: usize = MB;
/// Bytes, after normalization, of a piece of text that the tokenizer cannot divide further. Tokenizing takes about 140
/// bytes of memory and most of a microsecond per byte.
pub const UNDIVIDED: usize = 2 * MB;
/// Bytes of a prompt, a message or a rendered chat template: several times the largest practical context.
pub const PROMPT: usize = 16 * MB;
/// Bytes of a chat template.
pub const TEMPLATE: usize = MB;
/// Steps of rendering a chat template: a statement, an operation, an item, or 64 bytes of text processed count as one.
pub const TEMPLATE_STEPS: u64 = 2_000_000;
/// Nesting depth of macro calls and recursive loops.
pub const TEMPLATE_DEPTH: usize = 64;
/// Nesting depth of brackets, operations and blocks in a chat template's source.
pub const TEMPLATE_NESTING: usize = 200;
/// Total nesting depth during rendering, including calls.
pub const TEMPLATE_CALL_DEPTH: usize = 1000;
/// Nesting depth of lists and dicts.
pub const TEMPLATE_VALUE_DEPTH: usize = 128;
/// Bytes of a JSON schema, a regular expression or a grammar that constrains texts.
pub const CONSTRAINT: usize = 256_000;
/// Nesting depth of brackets in a regular expression or a grammar.
pub const CONSTRAINT_DEPTH: usize = 64;
/// Stop strings.
pub const STOPS: usize = 64;
/// Bytes of a stop string.
pub const STOP: usize = 1024;
/// Tokens that end a text.
pub const ENDS: usize = 64;
/// Bytes of a list of tools.
pub const TOOLS_BYTES: usize = MB;
/// Tools that a model may call.
pub const TOOLS: usize = 128;
/// Bytes of a tool's name.
pub const TOOL_NAME: usize = 64;
/// Bytes of a tool's result.
pub const TOOL_RESULT: usize = MB;
/// Bytes of a session file's header: ids and texts of the conversation, which take a few times as much in memory.
pub const SESSION_HEADER: usize = 128 * MB;

/// Fails if `text` is longer than a prompt may be; `label` is the subject of the message.
pub fn check_prompt(text: &str, label: &str) -> Result<()> {
    check_length(text.len(), label)
}

/// Fails if a text of `bytes` bytes is longer than a prompt may be.
pub fn check_length(bytes: usize, label: &str) -> Result<()> {
    if bytes <= PROMPT {
        return Ok(());
    }
    let limit = PROMPT / MB;
    Err(Error::Request(format!("{label} has {bytes} bytes; the limit is {limit} MB; use a part of it")))
}

/// Fails if `text` is longer than the result of a tool may be.
pub fn check_result(text: &str) -> Result<()> {
    if text.len() <= TOOL_RESULT {
        return Ok(());
    }
    let (bytes, limit) = (text.len(), TOOL_RESULT / MB);
    Err(Error::Request(format!("the tool's result has {bytes} bytes; the limit is {limit} MB; return a part of it")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of the table are `| label | number | ...`.
    #[test]
    fn the_table_in_the_docs_has_these_numbers() {
        let section = include_str!("../docs/trust.md").split("## Limits").nth(1).unwrap();
        let table = section.split("\n## ").next().unwrap();
        let all = [
            ("header of a GGUF file", "64 MB", GGUF_HEADER),
            ("key or tensor name", "256 bytes", NAME),
            ("dimensions of a tensor", "4", DIMENSIONS as usize),
            ("alignment of tensors", "65,536 bytes", ALIGNMENT as usize),
            ("layers", "1,024", LAYERS),
            ("meta tokens", "2,048", META_TOKENS),
            ("any other width or count of a model", "1,048,576", WIDTH),
            ("items of all arrays in a GGUF file's keys", "4,194,304", ARRAY_ITEMS),
            ("context", "16,777,216 tokens", CONTEXT),
            ("text file of a Hugging Face folder", "48 MB", FOLDER_TEXT),
            ("header of a safetensors file", "16 MB", SAFETENSORS_HEADER),
            ("growth of a text in the tokenizer", "16 times", TOKENIZER_GROWTH),
            ("parts of a tokenizer", "16", TOKENIZER_PARTS),
            ("token", "1,024 bytes", TOKEN),
            ("all added tokens", "1 MB", ADDED_TOKENS),
            ("longest indivisible part of a text, after normalization", "2 MB", UNDIVIDED),
            ("prompt or message, also as the template renders it", "16 MB", PROMPT),
            ("chat template", "1 MB", TEMPLATE),
            ("steps to render a template", "2,000,000", TEMPLATE_STEPS as usize),
            ("macro call depth of a template", "64", TEMPLATE_DEPTH),
            ("nesting of brackets, operations and blocks in a template", "200", TEMPLATE_NESTING),
            ("total nesting while rendering, calls included", "1,000", TEMPLATE_CALL_DEPTH),
            ("nesting of lists and dicts in a template", "128", TEMPLATE_VALUE_DEPTH),
            ("JSON schema, regular expression or grammar", "256,000 bytes", CONSTRAINT),
            ("nesting of brackets in an expression or grammar", "64", CONSTRAINT_DEPTH),
            ("stop strings", "64", STOPS),
            ("stop string", "1,024 bytes", STOP),
            ("EOS tokens", "64", ENDS),
            ("list of tools", "1 MB", TOOLS_BYTES),
            ("tools", "128", TOOLS),
            ("tool's name", "64 bytes", TOOL_NAME),
            ("tool's result", "1 MB", TOOL_RESULT),
            ("header of a session file", "128 MB", SESSION_HEADER),
        ];
        for (label, number, value) in all {
            let row = table.lines().find(|line| line.starts_with(&format!("| {label} | ")));
            let row = row.unwrap_or_else(|| panic!("docs/trust.md says nothing of: {label}"));
            assert_eq!(row.split(" | ").nth(1), Some(number), "{row}");
            let digits: String = number.chars().filter(char::is_ascii_digit).collect();
            let unit = if number.ends_with("MB") { MB } else { 1 };
            assert_eq!(digits.parse::<usize>().unwrap() * unit, value, "{label}");
        }
        let rows = table.lines().filter(|line| line.starts_with("| "));
        assert_eq!(rows.count(), all.len() + 1, "the table has rows that are not checked here");
    }

    #[test]
    fn prompts_have_a_maximum_length() {
        assert!(check_prompt(&"a".repeat(PROMPT), "the text").is_ok());
        let error = check_prompt(&"a".repeat(PROMPT + 1), "the text").unwrap_err().to_string();
        assert_eq!(error, "the text has 16000001 bytes; the limit is 16 MB; use a part of it");
    }
}
