//! Formatting of numbers and strings with width and precision.

use super::{Failure, meter::Writer, python, value::Value};

/// A number to format.
#[derive(Clone, Copy)]
pub enum Number {
    /// An integer.
    Int(i128),
    /// A floating-point number.
    Float(f64),
}

/// A format specification.
pub struct Spec {
    /// The fill character.
    pub fill: char,
    /// `<`, `>`, `^`, or `=` to fill between sign and digits.
    pub align: Option<char>,
    /// `+`, `-` or a space.
    pub sign: char,
    /// Whether `#` was given.
    pub alternate: bool,
    /// Whether to fill with zeros.
    pub zero: bool,
    /// The minimum width in characters.
    pub width: usize,
    /// The thousands separator.
    pub grouping: Option<char>,
    /// The number of digits, or the maximum length of a string.
    pub precision: Option<usize>,
    /// The conversion type.
    pub kind: Option<char>,
    /// Whether this is for `%` formatting, where a precision pads integers with zeros.
    pub percent_style: bool,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            fill: ' ',
            align: None,
            sign: '-',
            alternate: false,
            zero: false,
            width: 0,
            grouping: None,
            precision: None,
            kind: None,
            percent_style: false,
        }
    }
}

/// Maximum precision.
const PRECISION: usize = 65_000;

impl Spec {
    /// Parses what follows the colon.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        let mut spec = Self::default();
        let bad = || Failure::new(format!("Invalid format specifier '{text}'"));
        let mut chars = text.chars().peekable();
        let mut ahead = chars.clone();
        let (first, second) = (ahead.next(), ahead.next());
        if second.is_some_and(|c| "<>^=".contains(c)) {
            (spec.fill, spec.align) = (first.unwrap_or(' '), second);
            chars.nth(1);
        } else if first.is_some_and(|c| "<>^=".contains(c)) {
            spec.align = first;
            chars.next();
        }
        if let Some(sign) = chars.next_if(|c| "+- ".contains(*c)) {
            spec.sign = sign;
        }
        spec.alternate = chars.next_if_eq(&'#').is_some();
        spec.zero = chars.next_if_eq(&'0').is_some();
        let digits = |chars: &mut std::iter::Peekable<std::str::Chars<'_>>| {
            let mut text = String::new();
            while let Some(digit) = chars.next_if(char::is_ascii_digit) {
                text.push(digit);
            }
            if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(|_| bad()) }
        };
        spec.width = digits(&mut chars)?.unwrap_or_default();
        spec.grouping = chars.next_if(|c| ",_".contains(*c));
        if chars.next_if_eq(&'.').is_some() {
            spec.precision = Some(digits(&mut chars)?.ok_or_else(bad)?);
        }
        spec.kind = chars.next();
        if chars.next().is_some() {
            return Err(bad());
        }
        Ok(spec)
    }

    /// Appends a value of any type.
    pub fn value(&self, value: &Value, plain: bool, out: &mut Writer<'_>) -> Result<(), Failure> {
        if plain {
            return python::write(value, out);
        }
        let bad =
            |kind| Failure::new(format!("Unknown format code '{kind}' for object of type '{}'", value.type_name()));
        match (value, self.kind) {
            (Value::Str(text), None | Some('s')) => {
                if self.align == Some('=') || self.sign != '-' || self.grouping.is_some() || self.alternate {
                    return Err(Failure::new("a format specifier for numbers cannot format a string"));
                }
                self.text(text, out)
            }
            (Value::Float(float), kind) => match kind {
                None => self.number(Number::Float(*float), ' ', out),
                Some(kind @ ('e' | 'E' | 'f' | 'F' | 'g' | 'G' | '%')) => self.number(Number::Float(*float), kind, out),
                Some(kind) => Err(bad(kind)),
            },
            (Value::Int(_) | Value::Bool(_), kind) => {
                let whole = value.as_int().unwrap_or_default();
                match kind.unwrap_or('d') {
                    kind @ ('d' | 'b' | 'o' | 'x' | 'X') => {
                        if self.precision.is_some() {
                            return Err(Failure::new("Precision not allowed in integer format specifier"));
                        }
                        self.number(Number::Int(whole), kind, out)
                    }
                    kind @ ('e' | 'E' | 'f' | 'F' | 'g' | 'G' | '%') => {
                        self.number(Number::Float(whole as f64), kind, out)
                    }
                    kind => Err(bad(kind)),
                }
            }
            (_, kind) => Err(bad(kind.unwrap_or('s'))),
        }
    }

    /// Appends a string.
    pub fn text(&self, text: &str, out: &mut Writer<'_>) -> Result<(), Failure> {
        let end = self.precision.and_then(|precision| text.char_indices().nth(precision)).map(|(at, _)| at);
        self.pad("", &text[..end.unwrap_or(text.len())], '<', out)
    }

    fn pad(&self, sign: &str, body: &str, align: char, out: &mut Writer<'_>) -> Result<(), Failure> {
        let fill = self.width.saturating_sub(sign.chars().count() + body.chars().count());
        let (fill_with, align) = match self.align {
            None if self.zero => ('0', if align == '<' { '<' } else { '=' }),
            Some(align) if self.zero && self.fill == ' ' => ('0', align),
            align_given => (self.fill, align_given.unwrap_or(align)),
        };
        let fill_with = fill_with.to_string();
        let before = match align {
            '<' | '=' => 0,
            '^' => fill / 2,
            _ => fill,
        };
        out.repeat(&fill_with, before)?;
        out.push(sign)?;
        if align == '=' {
            out.repeat(&fill_with, fill)?;
        }
        out.push(body)?;
        out.repeat(&fill_with, if align == '=' { 0 } else { fill - before })
    }

    /// Appends a number with the conversion type `kind`; a space means none.
    pub fn number(&self, number: Number, kind: char, out: &mut Writer<'_>) -> Result<(), Failure> {
        if self.precision.is_some_and(|precision| precision > PRECISION) {
            return Err(Failure::new("precision too big"));
        }
        out.meter().charge(self.precision.unwrap_or(6))?;
        let (negative, mut digits) = match number {
            Number::Int(value) => {
                let size = value.unsigned_abs();
                let digits = match kind {
                    'x' => format!("{size:x}"),
                    'X' => format!("{size:X}"),
                    'o' => format!("{size:o}"),
                    'b' => format!("{size:b}"),
                    _ => size.to_string(),
                };
                let zeros = self.precision.filter(|_| self.percent_style).unwrap_or_default();
                (value < 0, "0".repeat(zeros.saturating_sub(digits.len())) + &digits)
            }
            Number::Float(value) => (value.is_sign_negative() && !value.is_nan(), self.float(value.abs(), kind)),
        };
        if let Some(separator) = self.grouping {
            digits = grouped(&digits, separator, if "xXob".contains(kind) { 4 } else { 3 });
        }
        let sign = match (negative, self.sign) {
            (true, _) => "-",
            (false, '+') => "+",
            (false, ' ') => " ",
            _ => "",
        };
        let prefix = match kind {
            'x' if self.alternate => "0x",
            'X' if self.alternate => "0X",
            'o' if self.alternate => "0o",
            'b' if self.alternate => "0b",
            _ => "",
        };
        self.pad(&format!("{sign}{prefix}"), &digits, '>', out)
    }

    /// Formats a float that is not negative.
    fn float(&self, value: f64, kind: char) -> String {
        let precision = self.precision.unwrap_or(6);
        let mut text = if !value.is_finite() {
            python::float(value) + if kind == '%' { "%" } else { "" }
        } else {
            match kind {
                'f' | 'F' => format!("{value:.precision$}") + if self.alternate && precision == 0 { "." } else { "" },
                '%' => format!("{:.precision$}%", value * 100.0),
                'e' | 'E' => scientific(value, precision),
                ' ' if self.precision.is_none() => python::float(value),
                _ => self.general(value, precision.max(1), kind == ' '),
            }
        };
        if kind.is_ascii_uppercase() {
            text.make_ascii_uppercase();
        }
        text
    }

    fn general(&self, value: f64, precision: usize, is_default: bool) -> String {
        let long = scientific(value, precision - 1);
        let (mantissa, exponent) = long.split_once('e').unwrap_or((&long, "0"));
        let exponent: i64 = exponent.parse().unwrap_or_default();
        let max_exponent = precision as i64 - i64::from(is_default);
        let stripped = |text: &str| {
            if self.alternate || !text.contains('.') {
                return text.to_owned();
            }
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        };
        if !(-4..max_exponent).contains(&exponent) {
            return format!("{}e{}", stripped(mantissa), &long[mantissa.len() + 1..]);
        }
        let decimals = usize::try_from(precision as i64 - 1 - exponent).unwrap_or_default();
        let plain = stripped(&format!("{value:.decimals$}"));
        if is_default && !plain.contains('.') { plain + ".0" } else { plain }
    }
}

fn scientific(value: f64, precision: usize) -> String {
    let text = format!("{value:.precision$e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |digits| ('-', digits));
    format!("{mantissa}e{sign}{digits:0>2}")
}

fn grouped(digits: &str, separator: char, size: usize) -> String {
    let end = digits.find(|c: char| !c.is_ascii_hexdigit() || c == 'e').unwrap_or(digits.len());
    let mut text = String::new();
    for (i, digit) in digits[..end].chars().enumerate() {
        if i > 0 && (end - i).is_multiple_of(size) {
            text.push(separator);
        }
        text.push(digit);
    }
    text + &digits[end..]
}
