//! Limits on the size of JSON schemas. llguidance limits the number of its compile steps, but compiles some keywords in a
//! single step, however large the result.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::{Number, Value};

use super::schema::subschemas;
use crate::{Error, Result};

/// Maximum number of patterns of one string: the size of their intersection is the product of their sizes.
const PATTERNS: u64 = 3;
/// Maximum least common multiple of the divisors of one number: each remainder is a state.
const DIVISOR: u64 = 100_000;
/// Maximum number of members of one object: any pair may be adjacent.
const MEMBERS: u64 = 1000;
/// Maximum number of key patterns of one object: every pair is compared.
const KEY_PATTERNS: u64 = 50;
/// Maximum work for a whole schema, in units of about half a microsecond.
const WORK: u64 = 10_000_000;
/// Smaller numbers of members and key patterns, and smaller divisors, are not counted.
const SMALL: u64 = 10;
/// Maximum number of paths with a load in a schema.
const PATHS: usize = 20_000;
/// Maximum nesting depth of schemas, including references.
const DEPTH: usize = 300;

/// The sizes of the constraints that apply to one value.
#[derive(Clone, Copy, Default, PartialEq)]
struct Load {
    patterns: u64,
    divisor: u64,
    members: u64,
    key_patterns: u64,
}

/// Loads by the path of the value: `/a` is the member a, `/*` any member, `/#` any item.
type Loads = BTreeMap<String, Load>;

/// Rejects schemas that are too expensive to compile together.
pub(super) fn check<'s>(schemas: impl IntoIterator<Item = &'s Value>) -> Result<()> {
    let mut work = 0;
    for schema in schemas {
        let loads = Estimate { root: schema, memo: HashMap::new(), open: HashSet::new() }.loads("", 0)?;
        work += loads.values().map(|load| load.work()).sum::<u64>();
    }
    let problem = "its large objects, key patterns and divisors are too many to compile".into();
    if work > WORK { Err(Error::Constraint { location: None, problem }) } else { Ok(()) }
}

impl Load {
    /// Returns the load of a schema's own keywords.
    fn of(schema: &Value) -> Self {
        let count = |key: &str| schema.get(key).and_then(Value::as_object).map_or(0, |members| members.len() as u64);
        let counted = |count: u64| if count < SMALL { 0 } else { count };
        let divisor = schema.get("multipleOf").and_then(Value::as_number).map_or(0, digits);
        Self {
            patterns: schema.get("pattern").is_some_and(Value::is_string).into(),
            divisor: counted(divisor),
            members: counted(count("properties")),
            key_patterns: counted(count("patternProperties")),
        }
    }

    fn and(self, other: Self) -> Self {
        Self {
            patterns: self.patterns + other.patterns,
            divisor: match (self.divisor, other.divisor) {
                (0, one) | (one, 0) => one,
                (a, b) => a.saturating_mul(b / greatest_common_divisor(a, b)),
            },
            members: self.members + other.members,
            key_patterns: self.key_patterns + other.key_patterns,
        }
    }

    fn or(self, other: Self) -> Self {
        Self {
            patterns: self.patterns.max(other.patterns),
            divisor: self.divisor.max(other.divisor),
            members: self.members.max(other.members),
            key_patterns: self.key_patterns.max(other.key_patterns),
        }
    }

    /// Returns the approximate work, from measurements.
    fn work(self) -> u64 {
        self.members.pow(2) + 70 * self.key_patterns.pow(2) + 20 * self.divisor
    }

    /// Returns which limit it exceeds, if any.
    fn excess(self) -> Option<String> {
        if self.patterns > PATTERNS {
            return Some(format!("a string can have at most {PATTERNS} patterns at once, not {}", self.patterns));
        }
        if self.divisor > DIVISOR {
            return Some(format!("`multipleOf` with more than {DIVISOR} remainders cannot be enforced"));
        }
        if self.members > MEMBERS {
            return Some(format!("{} members are too many; the limit is {MEMBERS}", self.members));
        }
        let too_many = format!("{} key patterns are too many; the limit is {KEY_PATTERNS}", self.key_patterns);
        (self.key_patterns > KEY_PATTERNS).then_some(too_many)
    }
}

/// Returns the digits of a number as an integer: the number of remainders, since division is checked digit by digit.
fn digits(number: &Number) -> u64 {
    let text = number.to_string();
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((&text, "0"));
    let mantissa: String = mantissa.chars().filter(char::is_ascii_digit).collect();
    let power = exponent.parse::<i64>().map_or(u32::MAX, |power| power.clamp(0, 30) as u32);
    mantissa.parse::<u64>().map_or(u64::MAX, |digits| digits.saturating_mul(10u64.saturating_pow(power)))
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

struct Estimate<'s> {
    root: &'s Value,
    memo: HashMap<String, Loads>,
    /// Schemas being visited: a recursive reference to one adds nothing.
    open: HashSet<String>,
}

impl Estimate<'_> {
    /// Returns the loads of the schema at `pointer`; fails if one exceeds a limit.
    fn loads(&mut self, pointer: &str, depth: usize) -> Result<Loads> {
        let Some(schema) = self.root.pointer(pointer) else { return Ok(Loads::new()) };
        if let Some(memo) = self.memo.get(pointer) {
            return Ok(memo.clone());
        }
        let refused = |problem: String| Error::Constraint { location: Some(format!("#{pointer}")), problem };
        if depth > DEPTH {
            return Err(refused(format!("schemas refer to each other more than {DEPTH} deep")));
        }
        if !self.open.insert(pointer.into()) {
            return Ok(Loads::new());
        }
        let own = Load::of(schema);
        let mut loads: Loads = (own != Load::default()).then(|| (String::new(), own)).into_iter().collect();
        let mut options = Loads::new();
        for part in subschemas(self.root, pointer) {
            let keyword = part[pointer.len() + 1..].split('/').next().unwrap_or_default();
            let name = &part[pointer.len() + 1 + keyword.len()..];
            let step = match keyword {
                "allOf" | "anyOf" | "oneOf" => "",
                "properties" => name,
                "additionalProperties" | "patternProperties" => "/*",
                "items" | "prefixItems" | "additionalItems" => "/#",
                _ => continue, // refused anyway, or of no effect
            };
            let inner = self.loads(&part, depth + 1)?;
            match keyword {
                "allOf" | "properties" => merge(&mut loads, step, inner, Load::and),
                _ => merge(&mut options, step, inner, Load::or),
            }
        }
        if let Some(target) = schema.get("$ref").and_then(Value::as_str).and_then(|to| to.strip_prefix('#')) {
            let inner = self.loads(&percent_decoded(target), depth + 1)?;
            merge(&mut loads, "", inner, Load::and);
        }
        merge(&mut loads, "", options, Load::and);
        if loads.len() > PATHS {
            return Err(refused(format!("it has more than {PATHS} subschemas that count against limits")));
        }
        if let Some(problem) = loads.keys().find_map(|path| total(&loads, path).excess()) {
            return Err(refused(problem));
        }
        self.open.remove(pointer);
        self.memo.insert(pointer.into(), loads.clone());
        Ok(loads)
    }
}

/// Merges the loads of a subschema, whose paths `step` extends, into `loads`.
fn merge(loads: &mut Loads, step: &str, inner: Loads, join: fn(Load, Load) -> Load) {
    for (path, load) in inner {
        let at = loads.entry(format!("{step}{path}")).or_default();
        *at = join(*at, load);
    }
}

/// Returns the total load at `path`, including that of matching wildcard paths.
fn total(loads: &Loads, path: &str) -> Load {
    let exact = loads[path];
    let has_wildcard = |path: &str| path.split('/').any(|step| step == "*");
    if loads.len() > 64 || !loads.keys().any(|other| has_wildcard(other)) {
        return exact;
    }
    let same = |other: &str| {
        let (mut a, mut b) = (path.split('/'), other.split('/'));
        loop {
            match (a.next(), b.next()) {
                (None, None) => return true,
                (Some(one), Some(two)) if one == two || (one != "#" && two != "#" && (one == "*" || two == "*")) => {}
                _ => return false,
            }
        }
    };
    loads.iter().filter(|(other, _)| same(other)).fold(Load::default(), |all, (_, load)| all.and(*load))
}

/// Decodes the fragment of a URI.
fn percent_decoded(fragment: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), fragment.as_bytes());
    while let Some((&byte, after)) = rest.split_first() {
        let code = after.get(..2).and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        let code = code.filter(|_| byte == b'%');
        bytes.push(code.unwrap_or(byte));
        rest = if code.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refusal(schema: Value) -> Option<String> {
        check([&schema]).err().map(|error| error.to_string())
    }

    fn members(count: usize) -> Value {
        (0..count).map(|i| (format!("m{i}"), json!({"type": "integer"}))).collect::<serde_json::Map<_, _>>().into()
    }

    #[test]
    fn constraints_on_the_same_value_add_up() {
        let patterns = |count: usize| -> Vec<_> { (0..count).map(|i| json!({"pattern": format!("a{i}")})).collect() };
        assert_eq!(refusal(json!({"allOf": patterns(3)})), None);
        assert_eq!(refusal(json!({"anyOf": patterns(30), "pattern": "b"})), None);
        for schema in [
            json!({"allOf": patterns(4)}),
            json!({"allOf": patterns(2), "anyOf": [{"allOf": patterns(2)}]}),
            json!({"allOf": [{"$ref": "#/$defs/a%25b"}, {"$ref": "#/$defs/a%25b"}], "$defs": {"a%b": {"allOf": patterns(2)}}}),
            json!({"allOf": patterns(4).into_iter().map(|p| json!({"properties": {"x": {"items": p}}})).collect::<Vec<_>>()}),
            json!({"additionalProperties": {"allOf": patterns(2)}, "allOf": [{"properties": {"x": {"allOf": patterns(2)}}}]}),
        ] {
            assert!(
                refusal(schema.clone()).is_some_and(|reason| reason.contains("4 patterns") || reason.contains("not 4")),
                "{schema}"
            );
        }
        let separate: serde_json::Map<_, _> =
            patterns(50).into_iter().zip(0..).map(|(p, i)| (format!("m{i}"), p)).collect();
        assert_eq!(refusal(json!({"properties": separate})), None, "they apply to different strings");
        let recursive =
            json!({"$ref": "#/$defs/a", "$defs": {"a": {"pattern": "a", "properties": {"b": {"$ref": "#/$defs/a"}}}}});
        assert_eq!(refusal(recursive), None);
    }

    #[test]
    fn limits_apply_per_value_and_in_total() {
        for divisor in [json!(0.01), json!(7), json!(3600), json!(100_000), json!(2.5e-7), json!(1e3)] {
            assert_eq!(refusal(json!({"multipleOf": divisor})), None, "{divisor}");
        }
        for schema in [
            json!({"multipleOf": 1_000_003}),
            json!({"multipleOf": 1e30}),
            json!({"multipleOf": 99.99999}),
            json!({"allOf": [{"multipleOf": 991}, {"multipleOf": 997}]}),
        ] {
            assert!(refusal(schema.clone()).is_some_and(|reason| reason.starts_with("at #: `multipleOf`")), "{schema}");
        }
        assert_eq!(refusal(json!({"properties": members(1000)})), None);
        let many = refusal(json!({"items": {"allOf": [{"properties": members(600)}, {"properties": members(600)}]}}));
        assert_eq!(many.unwrap(), "at #/items: 1200 members are too many; the limit is 1000");
        let many: serde_json::Map<_, _> = (0..60).map(|i| (format!("^a{i}"), json!({}))).collect();
        assert!(refusal(json!({"patternProperties": many})).unwrap().contains("60 key patterns"));
        let divisors: serde_json::Map<_, _> =
            (0..9).map(|i| (format!("m{i}"), json!({"multipleOf": 99_000 + i}))).collect();
        assert!(refusal(json!({"properties": divisors})).unwrap().contains("too many to compile"));
        let chain: serde_json::Map<_, _> =
            (0..400).map(|i| (format!("d{i}"), json!({"$ref": format!("#/$defs/d{}", i + 1)}))).collect();
        assert!(refusal(json!({"$ref": "#/$defs/d0", "$defs": chain})).unwrap().contains("300 deep"));
    }
}
