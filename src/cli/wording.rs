//! Formatting of numbers, and name suggestions.

use hymba::Timings;

/// Formats a number with commas between thousands.
pub fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let first = (digits.len() - 1) % 3 + 1;
    let mut text = digits[..first].to_owned();
    for at in (first..digits.len()).step_by(3) {
        text.push(',');
        text += &digits[at..at + 3];
    }
    text
}

/// Formats a count of things.
pub fn counted(count: usize, noun: &str) -> String {
    format!("{} {noun}{}", grouped(count), if count == 1 { "" } else { "s" })
}

/// Formats tokens per second with the significant digits.
pub fn rate(tokens_per_second: f64) -> String {
    let digits = usize::from(tokens_per_second < 9.95);
    format!("{tokens_per_second:.digits$} tok/s")
}

/// Formats the acceptance rate of draft tokens, if there were any.
pub fn drafts(t: &Timings) -> Option<String> {
    let (per_pass, share) = (t.tokens_per_pass()?, t.accepted_share()?);
    Some(format!("{per_pass:.1} tokens per pass, {:.0} % of drafts accepted", 1e2 * share))
}

/// Returns the one of `names` closest to `typed`, if it is close.
pub fn nearest<'a>(typed: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let (distance, name) = names.map(|name| (edits(typed, name), name)).min()?;
    (distance <= 1 + typed.chars().count() / 4 && distance < name.len()).then_some(name)
}

/// Returns the edit distance with transpositions (Damerau–Levenshtein).
fn edits(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<_>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let differs = usize::from(a[i - 1] != b[j - 1]);
            let mut least = (rows[i - 1][j] + 1).min(row[j - 1] + 1).min(rows[i - 1][j - 1] + differs);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_have_commas() {
        let text: Vec<_> = [0, 7, 999, 1000, 12345, 1234567].map(grouped).into();
        assert_eq!(text, ["0", "7", "999", "1,000", "12,345", "1,234,567"]);
        assert_eq!((counted(1, "turn"), counted(2, "turn")), ("1 turn".into(), "2 turns".into()));
        assert_eq!((rate(9.4), rate(92.04)), ("9.4 tok/s".into(), "92 tok/s".into()));
    }

    #[test]
    fn similar_names_are_found() {
        let names = ["help", "exit", "regen", "history", "set"];
        for (typed, meant) in [
            ("hlep", Some("help")),
            ("histroy", Some("history")),
            ("regn", Some("regen")),
            ("exti", Some("exit")),
            ("frobnicate", None),
            ("", None),
            ("x", None),
        ] {
            assert_eq!(nearest(typed, names.into_iter()), meant, "{typed}");
        }
    }
}
