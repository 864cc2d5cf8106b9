//! Escape sequences in command-line texts, where shell quoting keeps backslashes.

use super::{terminal, usage::Usage};

/// The --escape flag.
#[derive(Debug, clap::Args)]
pub struct EscapeArgs {
    /// Process escape sequences (\n, \t, \\, \", \xNN, \uNNNN, ...) in texts given on the command line
    #[arg(short, long)]
    escape: bool,
}

impl EscapeArgs {
    /// Returns the value of `text`, given by `flag`, with escapes processed if requested.
    pub fn text(&self, flag: &str, text: &str) -> Result<String, Usage> {
        if !self.escape {
            return Ok(text.into());
        }
        unescape(text).ok_or_else(|| {
            Usage(format!("{flag}: the escape sequences are not valid UTF-8; write a character as \\uNNNN"))
        })
    }

    /// Returns the stop strings. Notes, unless `quiet`, a string that is unlikely to occur.
    pub fn stops(&self, stops: &[String], quiet: bool) -> Result<Vec<String>, Usage> {
        let escaped = |stop: &&String| unescape(stop).is_none_or(|meant| meant != **stop);
        if let Some(stop) = stops.iter().find(escaped).filter(|_| !self.escape && !quiet) {
            terminal::note(&format!(
                "--stop {stop}: the backslash is literal; add --escape to process escape sequences"
            ));
        }
        stops.iter().map(|stop| self.text("--stop", stop)).collect()
    }
}

/// Returns `text` with its escape sequences replaced; unknown ones are kept. `None` if the result is not UTF-8.
fn unescape(text: &str) -> Option<String> {
    let (mut out, mut rest) = (Vec::with_capacity(text.len()), text);
    while let Some((before, after)) = rest.split_once('\\') {
        out.extend_from_slice(before.as_bytes());
        let letter = after.chars().next();
        rest = &after[letter.map_or(0, char::len_utf8)..];
        let mut number = |digits: usize| {
            let hex = rest.get(..digits).filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()))?;
            rest = &rest[digits..];
            u32::from_str_radix(hex, 16).ok()
        };
        match letter {
            Some('n') => out.push(b'\n'),
            Some('r') => out.push(b'\r'),
            Some('t') => out.push(b'\t'),
            Some(quoted @ ('\\' | '"' | '\'')) => out.push(quoted as u8),
            Some(kind @ ('x' | 'u')) => match (kind, number(if kind == 'x' { 2 } else { 4 })) {
                ('x', Some(byte)) => out.push(byte as u8),
                (_, Some(code)) => out.extend_from_slice(char::from_u32(code)?.encode_utf8(&mut [0; 4]).as_bytes()),
                (_, None) => out.extend_from_slice(&[b'\\', kind as u8]),
            },
            other => {
                out.push(b'\\');
                out.extend(other.map(String::from).unwrap_or_default().bytes());
            }
        }
    }
    out.extend_from_slice(rest.as_bytes());
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_stand_for_characters() {
        for (typed, meant) in [
            (r"a\nb\tc\r", "a\nb\tc\r"),
            (r#"\\n \" \'"#, "\\n \" '"),
            (r"\x41\xc3\xa9\u00e9", "Aéé"),
            (r"\q \x4 \u12g4 \é \", r"\q \x4 \u12g4 \é \"),
            ("", ""),
        ] {
            assert_eq!(unescape(typed).as_deref(), Some(meant), "{typed}");
        }
        assert_eq!([r"\xff", r"\ud800"].map(unescape), [None, None]);
    }
}
