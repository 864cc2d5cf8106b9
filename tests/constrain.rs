//! Constrained generation: JSON schemas, regular expressions and grammars, in the library and in the commands.

mod common;

use std::{
    fs,
    io::Write,
    process::{Command, Output, Stdio},
};

use common::{fails, hymba, text};
use hymba::{
    Constraint, Error, Generation, Model, Request, Sampler, SamplingParams, Session, SessionOptions, Shape, StopReason,
    Tokenizer, Vocabulary, constrain::Next, generate,
};
use serde_json::{Value, json};

struct Demo {
    model: Model,
    tokenizer: Tokenizer,
    vocabulary: Vocabulary,
}

impl Demo {
    fn new() -> Self {
        let model = Model::open(concat!(env!("CARGO_MANIFEST_DIR"), "/models/hymba-demo.gguf")).unwrap();
        let tokenizer = model.tokenizer().unwrap();
        let vocabulary = Vocabulary::new(&tokenizer).unwrap();
        Self { model, tokenizer, vocabulary }
    }

    fn constraint(&self, shape: &Shape) -> Constraint {
        Constraint::new(&self.vocabulary, shape).unwrap()
    }

    fn refusal(&self, shape: &Shape) -> String {
        let refused = Constraint::new(&self.vocabulary, shape).err();
        let refused = refused.unwrap_or_else(|| panic!("{shape:?} is not refused"));
        assert!(matches!(refused, Error::Constraint { .. }), "{refused}");
        refused.to_string()
    }

    fn generate(&self, sampler: &mut Sampler, request: Request<'_>) -> Generation {
        let mut session = Session::new(&self.model, &SessionOptions::default()).unwrap();
        let prompt = self.tokenizer.encode("Once upon a time", true).unwrap();
        let mut shown = String::new();
        let request = Request { prompt: &prompt, limit: request.limit.or(Some(100)), ..request };
        let done = generate(&mut session, &self.tokenizer, sampler, &request, &mut |piece| {
            shown += piece;
            Ok(())
        });
        let done = done.unwrap();
        assert_eq!(done.text, shown);
        done
    }
}

fn sampler(temperature: f32, seed: u64) -> Sampler {
    Sampler::new(SamplingParams { temperature, ..SamplingParams::default() }, seed)
}

fn schema(value: &Value) -> Shape {
    Shape::JsonSchema(value.to_string())
}

/// Samplers of several temperatures and seeds.
fn samplers() -> impl Iterator<Item = Sampler> {
    [0.0, 0.8, 1.5].into_iter().flat_map(|temperature| (0..3).map(move |seed| sampler(temperature, seed)))
}

#[test]
fn every_text_matches_its_schema() {
    let demo = Demo::new();
    type IsRight = fn(&Value) -> bool;
    let cases: [(Value, IsRight); 7] = [
        (json!({"type": "boolean"}), Value::is_boolean),
        (json!({"enum": ["red", "green", 5, null]}), |v| {
            [json!("red"), json!("green"), json!(5), json!(null)].contains(v)
        }),
        (json!({"type": "integer", "minimum": 10, "maximum": 99}), |v| (10..=99).contains(&v.as_i64().unwrap())),
        (json!({"type": "array", "items": {"type": "string", "maxLength": 5}, "minItems": 1, "maxItems": 3}), |v| {
            (1..=3).contains(&v.as_array().unwrap().len())
        }),
        (
            json!({"type": "object", "properties": {"naïve ☃": {"type": "string", "pattern": "^[a-f]{2,4}$"}},
                "required": ["naïve ☃"], "additionalProperties": false}),
            |v| (2..=4).contains(&v["naïve ☃"].as_str().unwrap().len()),
        ),
        (
            json!({"oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}], "$defs": {
                "cat": {"type": "object", "properties": {"kind": {"const": "cat"}}, "required": ["kind"], "additionalProperties": false},
                "dog": {"type": "object", "properties": {"kind": {"const": "dog"}}, "required": ["kind"], "additionalProperties": false}}}),
            |v| ["cat", "dog"].contains(&v["kind"].as_str().unwrap()),
        ),
        (
            json!({"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "additionalProperties": false,
                "properties": {"next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}}, "required": ["next"]}}}),
            |v| v["next"].is_null() || v["next"].is_object(),
        ),
    ];
    let mut completed = 0;
    for (value, is_right) in cases {
        let constraint = demo.constraint(&schema(&value));
        for mut sampler in samplers() {
            let done = demo.generate(&mut sampler, Request { constraint: Some(&constraint), ..Request::default() });
            if done.stop == StopReason::Length {
                continue;
            }
            completed += 1;
            assert_eq!(done.stop, StopReason::EndOfText);
            let parsed = serde_json::from_str(&done.text).unwrap_or_else(|e| panic!("{value}: {} {e}", done.text));
            assert!(is_right(&parsed), "{value}: {parsed}");
        }
    }
    assert!(completed > 48, "{completed} of 63 texts were completed");
}

#[test]
fn forced_tokens_are_not_sampled() {
    let demo = Demo::new();
    let constraint = demo.constraint(&schema(&json!({"const": {"a": "Once upon a time", "b": [1, 2, 3]}})));
    let mut sampler = sampler(1.5, 3);
    let before = sampler.saved();
    let done = demo.generate(&mut sampler, Request { constraint: Some(&constraint), ..Request::default() });
    assert_eq!(done.text, r#"{"a": "Once upon a time", "b": [1, 2, 3]}"#);
    assert_eq!(sampler.saved(), before);
    assert_eq!(done.ids, demo.tokenizer.encode_more(&done.text).unwrap(), "the forced text has its usual tokens");
}

#[test]
fn an_incomplete_match_has_its_own_stop_reason() {
    let demo = Demo::new();
    let constraint = demo.constraint(&schema(&json!({"const": "Once upon a time there was a dragon"})));
    let request = Request { constraint: Some(&constraint), limit: Some(4), ..Request::default() };
    assert_eq!(demo.generate(&mut sampler(0.0, 0), request).stop, StopReason::Length);
    let complete = demo.constraint(&Shape::Regex("[a-z ]*".into()));
    let request = Request { constraint: Some(&complete), limit: Some(4), ..Request::default() };
    let mut sampler = sampler(0.0, 0);
    demo.tokenizer.ends().iter().for_each(|&end| sampler.ban(end));
    assert_eq!(demo.generate(&mut sampler, request).stop, StopReason::Limit, "the text matches at any length");
}

#[test]
fn a_constrained_text_resumes_after_a_cut() {
    let demo = Demo::new();
    let constraint = demo.constraint(&schema(&json!({"const": ["one", "two", "three"]})));
    let whole = demo.generate(&mut sampler(0.0, 0), Request { constraint: Some(&constraint), ..Request::default() });
    let (generated, rest) = whole.ids.split_at(4);
    let request = Request { constraint: Some(&constraint), generated, ..Request::default() };
    assert_eq!(demo.generate(&mut sampler(0.0, 0), request).ids, rest);
    let other = Request { constraint: Some(&constraint), generated: &rest[1..], ..Request::default() };
    let mut session = Session::new(&demo.model, &SessionOptions::default()).unwrap();
    let prompt = demo.tokenizer.encode("a", true).unwrap();
    let request = Request { prompt: &prompt, ..other };
    assert!(generate(&mut session, &demo.tokenizer, &mut sampler(0.0, 0), &request, &mut |_| Ok(())).is_err());
}

#[test]
fn a_leading_space_is_part_of_the_match() {
    let demo = Demo::new();
    let constraint = demo.constraint(&Shape::Regex(" (yes|no)".into()));
    let mut session = Session::new(&demo.model, &SessionOptions::default()).unwrap();
    let request =
        Request { prompt: &[demo.tokenizer.bos().unwrap()], constraint: Some(&constraint), ..Request::default() };
    let done = generate(&mut session, &demo.tokenizer, &mut sampler(0.0, 0), &request, &mut |_| Ok(())).unwrap();
    assert!([" yes", " no"].contains(&&*done.text), "{:?}", done.text);
}

#[test]
fn unenforceable_keywords_are_refused_with_their_path() {
    let demo = Demo::new();
    let refusal = |value: Value| demo.refusal(&schema(&value));
    assert_eq!(refusal(json!({"properties": {"a/b": {"not": {}}}})), "at #/properties/a~1b: `not` cannot be enforced");
    assert_eq!(
        refusal(json!({"items": {"$ref": "#/$defs/x"}, "$defs": {"x": {"format": "color"}}})),
        "at #/$defs/x: unknown format `color`"
    );
    assert_eq!(
        refusal(json!({"anyOf": [{"type": "null"}, {"type": "string", "pattern": "(?=a)b"}]}))
            .split(": ")
            .next()
            .unwrap(),
        "at #/anyOf/1"
    );
    assert!(refusal(json!({"type": "integer", "minimum": 5, "maximum": 4})).starts_with("at #: nothing can match: "));
    assert!(refusal(json!({"oneOf": [{"type": "integer"}, {"type": "number"}]})).contains("may overlap"));
    let text = |text: &str| demo.refusal(&Shape::JsonSchema(text.into()));
    assert!(text("{\"type\": ").starts_with("is not JSON: "));
    let deep = "{\"items\":".repeat(200) + "{}" + &"}".repeat(200);
    assert_eq!(text(&deep), "is nested more than 127 levels deep");
    let misspelled = json!({"properties": {"a": {"type": "strin"}}});
    assert_eq!(refusal(misspelled), "at #/properties/a/type: unknown type `strin`");
    assert_eq!(text("[]"), "a JSON schema must be an object or `true`");
    assert!(text("false").contains("nothing matches"));
    let optional = json!({"properties": {"never": false, "x": {"if": {}}}});
    assert_eq!(refusal(optional), "at #/properties/x: `if` cannot be enforced");
    let lenient = json!({"x-guidance": {"lenient": true}, "not": {}});
    assert_eq!(refusal(lenient), "at #: `not` cannot be enforced");
}

/// Returns a matching text: always the first allowed token that does not end it.
fn any_match(demo: &Demo, constraint: &Constraint) -> String {
    let (mut matching, mut bytes) = (constraint.matching(), Vec::new());
    for _ in 0..4000 {
        let id = match matching.next_tokens().unwrap() {
            Next::End => break,
            Next::Token(id) => id,
            Next::Tokens(allowed) => allowed.iter().find(|id| !demo.tokenizer.ends().contains(id)).unwrap(),
        };
        matching.accept(id).unwrap();
        bytes.extend(demo.tokenizer.piece(id));
    }
    assert!(matching.is_complete());
    String::from_utf8(bytes).unwrap()
}

#[test]
fn property_names_and_constants_are_not_keywords() {
    const KEYWORDS: &str = "$ref $id $schema $anchor $defs $dynamicRef $dynamicAnchor $comment $vocabulary x-guidance type \
        const enum multipleOf maximum exclusiveMaximum minimum exclusiveMinimum maxLength minLength pattern format items \
        prefixItems additionalItems contains maxItems minItems uniqueItems properties patternProperties definitions \
        additionalProperties propertyNames required maxProperties minProperties dependencies dependentRequired \
        dependentSchemas unevaluatedItems unevaluatedProperties allOf anyOf oneOf not if then else title description default \
        examples deprecated readOnly writeOnly contentEncoding contentMediaType contentSchema nullable discriminator";
    let demo = Demo::new();
    let names: Vec<_> = KEYWORDS.split_whitespace().collect();
    let object = |value: &dyn Fn(&str) -> Value| {
        let members: serde_json::Map<_, _> = names.iter().map(|&name| (name.to_owned(), value(name))).collect();
        json!({"type": "object", "properties": members, "required": names, "additionalProperties": false})
    };
    let matching =
        |schema: &Value| serde_json::from_str::<Value>(&any_match(&demo, &demo.constraint(&self::schema(schema))));
    let named = matching(&object(&|name| json!({"const": name, "description": "\u{1}"}))).unwrap();
    assert!(
        names.iter().all(|&name| named[name] == name) && named.as_object().unwrap().len() == names.len(),
        "{named}"
    );
    let within = |name: &str| json!({"type": "object", "properties": {name: {"const": 5}}, "required": [name], "additionalProperties": false});
    let nested = matching(&object(&within)).unwrap();
    assert!(names.iter().all(|&name| nested[name] == json!({name: 5})), "{nested}");
    // the contents of a constant are not a schema
    let data = object(&|_| json!({"$ref": "#/nowhere", "const": 5, "properties": {"type": 7}}));
    assert_eq!(matching(&json!({"const": data, "default": {"const": "\u{1}"}})).unwrap(), data);
    for name in names {
        let refusal = demo.refusal(&schema(&json!({"properties": {name: {"properties": {name: {"not": {}}}}}})));
        assert_eq!(refusal, format!("at #/properties/{name}/properties/{name}: `not` cannot be enforced"));
    }
}

/// Runs a command that must end with this exit code; returns standard output and standard error.
#[track_caller]
fn outputs(command: &mut Command, code: i32) -> (String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let (stdout, stderr) = (text(&stdout), text(&stderr));
    assert_eq!(status.code(), Some(code), "{stdout}{stderr}");
    (stdout, stderr)
}

const PERSON: &str = r#"{"type": "object", "properties": {"name": {"type": "string", "maxLength": 9},
    "age": {"type": "integer", "minimum": 1, "maximum": 99}}, "required": ["name", "age"], "additionalProperties": false}"#;

fn is_person(text: &str) -> bool {
    let person: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{text}: {e}"));
    person["name"].is_string() && (1..=99).contains(&person["age"].as_u64().unwrap())
}

#[test]
fn run_enforces_schemas_regexes_and_grammars() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let run = |flags: &[&str]| {
        let args =
            ["run", "-q", "--no-display-prompt", "--temp", "1.2", "--seed", "1", "--repeat-penalty", "3", "Lily is"];
        outputs(hymba(args).args(flags), 0).0
    };
    assert!(is_person(&run(&["--json-schema", PERSON])));
    assert!(is_person(&run(&["--json-schema", &file("person.json", PERSON)])));
    assert!(run(&["--regex", "^-[ab]{3}$"]).starts_with('-'));
    let output = run(&[
        "--grammar",
        &file("list.gbnf", "root ::= item+ # two lines or three\nitem ::= \"* \" [a-z]{1,5} \"\\n\"\n"),
    ]);
    assert!(output.lines().all(|line| line.starts_with("* ")) && output.ends_with('\n'), "{output}");
    let nested = run(&["--grammar", &file("nested.gbnf", "root ::= \"(\" (root | [a-c]) \")\""), "-n", "90"]);
    assert_eq!(nested.matches('(').count(), nested.matches(')').count(), "{nested}");
    let output = run(&["--grammar", &file("g.lark", "start: WORD \", \" WORD\nWORD: /[A-Z][a-z]{1,4}/")]);
    assert!(output.split(", ").count() == 2, "{output}");
    let object = outputs(
        &mut hymba(["run", "--json", "-q", "--seed", "4", "--temp", "0", "--json-object", "-n", "300", "Lily is"]),
        0,
    )
    .0;
    let object: Value = serde_json::from_str(&object).unwrap();
    assert!(serde_json::from_str::<Value>(object["text"].as_str().unwrap()).unwrap().is_object());
}

#[test]
fn an_incomplete_match_exits_with_code_3() {
    let cut = |flags: &[&str]| outputs(hymba(["run", "--json", "--regex", "[a-z]{200}", "Once"]).args(flags), 3);
    let (stdout, _) = cut(&["-n", "5"]);
    assert_eq!(serde_json::from_str::<Value>(&stdout).unwrap()["stop_reason"], "length");
    let (stdout, _) = cut(&["-c", "20"]);
    assert_eq!(serde_json::from_str::<Value>(&stdout).unwrap()["stop_reason"], "length");
    let (_, stderr) = outputs(&mut hymba(["run", "--regex", "[a-z]{200}", "-n", "5", "Once"]), 3);
    assert!(stderr.contains("incomplete: it was cut after 5 tokens"), "{stderr}");
    let stopped = ["run", "--json", "--regex", "[a-z]{200}", "--stop", "e", "Once"];
    let stdout: Value = serde_json::from_str(&outputs(&mut hymba(stopped), 0).0).unwrap();
    assert_eq!(stdout["stop_reason"], "stop_string", "stopping at --stop is not a failure");
}

#[test]
fn invalid_constraints_are_refused_before_generation() {
    let refused = |flags: &[&str], parts: &[&str]| fails(hymba(["run", "-q", "Once"]).args(flags), 2, parts);
    refused(&["--json-schema", r#"{"properties": {"a": {"not": {}}}}"#], &["--json-schema: at #/properties/a: `not`"]);
    refused(&["--regex", "a("], &["--regex: not a regular expression: unclosed group"]);
    refused(&["--regex", "a", "--json-object"], &["cannot be used with"]);
    fails(&mut hymba(["run", "-q", "--json-schema", "none.json", "Once"]), 1, &["none.json"]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("g");
    for (grammar, error) in [
        ("root ::= \"a\" |\n  b", "at line 2: rule `b` is not defined"),
        ("start: \"a\"\n  | b", "at line 1, column 8: unknown name"),
    ] {
        fs::write(&path, grammar).unwrap();
        refused(&["--grammar", path.to_str().unwrap()], &["--grammar ", error]);
    }
}

#[test]
fn the_format_command_changes_the_constraint_of_a_chat() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("person.json");
    fs::write(&path, PERSON).unwrap();
    let path = path.to_str().unwrap();
    let chat = |flags: &[&str], lines: &str| {
        let mut child = hymba(["chat", "-q", "--seed", "2", "-n", "60"])
            .args(flags)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
        (status.code(), text(&stdout), text(&stderr))
    };
    let lines = format!("Who is there?\n/format {path}\n/regen\nAnd who else?\n/format off\n/regen\n");
    let (code, stdout, stderr) = chat(&["--commands"], &lines);
    assert_eq!(code, Some(0), "{stderr}");
    let replies: Vec<_> = stdout.lines().filter(|line| !line.is_empty()).collect();
    assert!(is_person(replies[1]) && is_person(replies[2]) && !replies[3].starts_with('{'), "{replies:?}");
    let (code, stdout, _) = chat(&["--json-schema", path], "Who is there?\nAnd?\n");
    assert!(code == Some(0) && stdout.lines().filter(|line| !line.is_empty()).all(is_person), "{stdout}");
    let (code, _, stderr) = chat(&["--regex", "[a-z]{200}"], "Hello\n");
    assert_eq!(code, Some(3), "{stderr}");
    let (code, _, stderr) = chat(&["--commands"], "/format none.json\nHello\n");
    assert!(code == Some(1) && stderr.contains("none.json"), "{code:?} {stderr}");
}

#[test]
fn each_text_of_a_session_is_constrained() {
    let folder = tempfile::tempdir().unwrap();
    let session = folder.path().join("s").to_str().unwrap().to_owned();
    let run = |prompt: &[&str]| {
        let args = ["run", "-q", "--no-display-prompt", "--temp", "0", "--session", &session, "--json-schema", PERSON];
        outputs(hymba(args).args(prompt), 0).0
    };
    assert!(is_person(&run(&["Lily is"])));
    assert!(is_person(&run(&[" and Tom is"])), "each text matches by itself");
}
