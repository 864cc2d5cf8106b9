//! Measures the cost of constraints with a model's vocabulary: the time to compile them, and the time per token in addition to the
//! model's pass, for a given text and for random ones.
//!
//! ```text
//! cargo run --release --example constraint_cost -- MODEL.gguf|tokenizer.json
//! ```

use std::{collections::BTreeMap, env, fs, sync::atomic::AtomicBool, time::Instant};

use hymba::{
    Constraint, Model, Result, Shape, Tokenizer, Vocabulary,
    constrain::Next,
    format::gguf::Metadata,
    text::{ToolChoice, Tools},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};

/// Milliseconds per token of the 1.5B model, for comparison.
const PASS: f64 = 30.0;
/// Compilations per constraint.
const COMPILATIONS: usize = 9;
/// Random texts per constraint.
const WALKS: u64 = 5;
/// Maximum tokens of a random text.
const TOKENS: usize = 200;

fn tokenizer(path: &str) -> Result<Tokenizer> {
    if !path.ends_with(".json") {
        return Model::open(path)?.tokenizer();
    }
    let mut metadata = Metadata::default();
    metadata.set("tokenizer.huggingface.json", fs::read_to_string(path).unwrap_or_default());
    metadata.set("tokenizer.ggml.bos_token_id", 1u32);
    metadata.set("tokenizer.ggml.eos_token_id", 2u32);
    Tokenizer::from_metadata(&metadata, path)
}

/// A constraint: its name, a function that compiles it, and a matching text.
type Case = (&'static str, Box<dyn Fn(&Vocabulary) -> Result<Constraint>>, &'static str);

fn cases() -> Vec<Case> {
    let shape = |name, shape: Shape, text| -> Case {
        (name, Box::new(move |vocabulary: &Vocabulary| Constraint::new(vocabulary, &shape)), text)
    };
    let schema = |name, schema: Value, text| shape(name, Shape::JsonSchema(schema.to_string()), text);
    let calls = |name, choice: ToolChoice, text| -> Case {
        let parameters = json!({"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer",
            "minimum": 1, "maximum": 14}}, "required": ["city"], "additionalProperties": false});
        let list: Vec<_> = ["get_weather", "get_news", "find_hotel", "book_table", "convert_currency"]
            .map(|name| json!({"name": name, "parameters": parameters}))
            .into();
        let compile = move |vocabulary: &Vocabulary| {
            let tools = Tools::from_value(&list.clone().into(), "tools")?;
            let compiled = Constraint::of_calls(vocabulary, &tools, &choice, &[], &AtomicBool::new(false));
            Ok(compiled?.expect("tools are given"))
        };
        (name, Box::new(compile), text)
    };
    vec![
        schema(
            "a person",
            json!({"type": "object", "properties": {"name": {"type": "string", "maxLength": 40},
                "age": {"type": "integer", "minimum": 0, "maximum": 120}, "city": {"type": "string"}},
                "required": ["name", "age", "city"], "additionalProperties": false}),
            r#"{"name": "Ada Lovelace", "age": 36, "city": "London, where she was born in the year 1815"}"#,
        ),
        schema(
            "an order",
            json!({"type": "object", "properties": {
                "id": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"}, "date": {"type": "string", "format": "date"},
                "mail": {"type": "string", "format": "email"}, "state": {"enum": ["new", "paid", "shipped"]},
                "items": {"type": "array", "minItems": 1, "maxItems": 20, "items": {"type": "object", "properties": {
                    "what": {"type": "string", "minLength": 1, "maxLength": 80}, "count": {"type": "integer", "minimum": 1},
                    "price": {"type": "number", "minimum": 0, "multipleOf": 0.01}},
                    "required": ["what", "count", "price"], "additionalProperties": false}}},
                "required": ["id", "date", "mail", "state", "items"], "additionalProperties": false}),
            r#"{"id": "AB-1234", "date": "2026-11-29", "mail": "ada@example.org", "state": "paid", "items": [{"what": "a red bicycle with a bell", "count": 1, "price": 249.5}, {"what": "lamps", "count": 2, "price": 12.25}]}"#,
        ),
        schema(
            "a tree",
            json!({"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "properties": {"label": {"type": "string"},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}}}, "required": ["label", "children"],
                "additionalProperties": false}}}),
            r#"{"label": "root", "children": [{"label": "left branch", "children": []}, {"label": "right", "children": []}]}"#,
        ),
        shape(
            "any object",
            Shape::JsonObject,
            r#"{"title": "A story about a dog", "words": 120, "tags": ["dog", "park", null], "more": {"ok": true}}"#,
        ),
        shape(
            "a regular expression",
            Shape::Regex(r"[A-Z][a-z]+( [a-z]+){3,12}\. [0-9]{4}-[0-9]{2}-[0-9]{2}".into()),
            "Once upon a time there was a dog. 2026-11-29",
        ),
        shape(
            "a GBNF grammar",
            Shape::Gbnf(
                "root ::= item+\nitem ::= \"- \" text \"\\n\" nested?\nnested ::= \"  \" item\ntext ::= [^\\n]+".into(),
            ),
            "- Buy milk and bread\n  - The cheap one will do\n- Call the plumber\n",
        ),
        calls(
            "tools, auto",
            ToolChoice::Auto,
            "Let me see what I can find out about that, it will not take long.\n<toolcall> {\"name\": \"get_weather\", \"arguments\": {\"city\": \"Oslo\", \"days\": 3}} </toolcall>",
        ),
        calls(
            "tools, required",
            ToolChoice::Required,
            "<toolcall> {\"name\": \"find_hotel\", \"arguments\": {\"city\": \"Rome\", \"days\": 7}} </toolcall>",
        ),
    ]
}

/// Milliseconds since `start`.
fn since(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

/// Returns the quantile of the times at `share`.
fn quantile(times: &mut [f64], share: f64) -> f64 {
    times.sort_by(f64::total_cmp);
    times[((times.len() - 1) as f64 * share).round() as usize]
}

/// Matches `ids`, then random tokens up to a total of `limit`; returns the milliseconds of each token.
fn walk(constraint: &Constraint, ids: &[u32], limit: usize, random: &mut StdRng) -> Result<Vec<f64>> {
    let (mut matching, mut times) = (constraint.matching(), Vec::new());
    while times.len() < limit {
        let start = Instant::now();
        let next = matching.next_tokens()?;
        let took = since(start);
        let id = match (next, ids.get(times.len())) {
            (Next::End, _) => break,
            (_, Some(&id)) => id,
            (Next::Token(id), None) => id,
            (Next::Tokens(allowed), None) => {
                allowed.iter().nth(random.random_range(0..allowed.len())).expect("the index is in range")
            }
        };
        let start = Instant::now();
        matching.accept(id)?;
        times.push(took + since(start));
    }
    Ok(times)
}

fn main() -> Result<()> {
    let path = env::args().nth(1).unwrap_or_else(|| "models/hymba-demo.gguf".into());
    let tokenizer = tokenizer(&path)?;
    let start = Instant::now();
    let vocabulary = Vocabulary::new(&tokenizer)?;
    println!("{path}: {} tokens, prepared in {:.0} ms", tokenizer.vocab(), since(start));
    println!("| constraint | compile ms | text: median ms | p99 | random: median ms | p99 | max | % of {PASS} ms |");
    println!("|---|---|---|---|---|---|---|---|");
    for (name, compile, text) in cases() {
        let mut compiled = Vec::new();
        for _ in 0..COMPILATIONS {
            let start = Instant::now();
            compile(&vocabulary)?;
            compiled.push(since(start));
        }
        let (constraint, mut random) = (compile(&vocabulary)?, StdRng::seed_from_u64(1));
        let ids = tokenizer.encode_more(text)?;
        let mut given = walk(&constraint, &ids, ids.len(), &mut random)?;
        let mut walked = Vec::new();
        for seed in 0..WALKS {
            walked.extend(walk(&constraint, &[], TOKENS, &mut StdRng::seed_from_u64(seed))?);
        }
        let mean = given.iter().sum::<f64>() / given.len() as f64;
        println!(
            "| {name} | {:.1} | {:.3} | {:.3} | {:.3} | {:.3} | {:.3} | {:.2} |",
            quantile(&mut compiled, 0.5),
            quantile(&mut given, 0.5),
            quantile(&mut given, 0.99),
            quantile(&mut walked, 0.5),
            quantile(&mut walked, 0.99),
            quantile(&mut walked, 1.0),
            mean / PASS * 100.0,
        );
    }
    let schemas = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/schemas/accepted.json");
    let schemas =
        fs::read_to_string(schemas).ok().and_then(|text| serde_json::from_str::<BTreeMap<String, Value>>(&text).ok());
    let mut times = Vec::new();
    for schema in schemas.iter().flat_map(BTreeMap::values) {
        let start = Instant::now();
        Constraint::new(&vocabulary, &Shape::JsonSchema(schema.to_string()))?;
        times.push(since(start));
    }
    if !times.is_empty() {
        let (median, max) = (quantile(&mut times, 0.5), quantile(&mut times, 1.0));
        println!("{} schemas compiled: median {median:.1} ms, maximum {max:.1} ms", times.len());
    }
    Ok(())
}
