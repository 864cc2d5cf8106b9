//! No chat template can crash, hang or use unbounded memory: it renders a text or fails with one sentence.

use hymba::{Error, Template};
use serde_json::{Map, json};

const MANY: &str = "{% for i in range(99999) %}";
const END: &str = "{% endfor %}";

/// Returns the rendered text, or the error message.
fn outcome(source: &str) -> Result<String, String> {
    let variables: Map<_, _> = [("x".to_owned(), json!(1)), ("messages".to_owned(), json!([]))].into_iter().collect();
    let rendered = Template::new(source, "t", "", "").and_then(|template| template.render_with(&variables));
    rendered.map_err(|error| {
        let is_sentence = matches!(error, Error::Template { .. } | Error::Request(_) | Error::Format { .. });
        let text = error.to_string();
        assert!(is_sentence && text.len() < 10_000 && !text.contains("engine failed"), "{text}");
        text
    })
}

/// Asserts that each template fails with a message that contains one of `words`.
fn refused(words: &[&str], templates: &[String]) {
    for source in templates {
        let start: String = source.chars().take(120).collect();
        match outcome(source) {
            Ok(text) => panic!("{start}: rendered {} bytes", text.len()),
            Err(e) => assert!(words.iter().any(|word| e.contains(word)), "{start}: {e}"),
        }
    }
}

fn owned(templates: &[&str]) -> Vec<String> {
    templates.iter().map(|&template| template.to_owned()).collect()
}

fn repeated(before: &str, part: &str, after: &str) -> String {
    format!("{before}{}{after}", part.repeat(60_000))
}

#[test]
fn self_referencing_values_are_bounded() {
    let set = "{% set ns = namespace() %}{% set ns.a = ns %}";
    let list = "{% set ns = namespace() %}{% set ns.a = [ns] %}";
    assert_eq!(outcome(&format!("{set}{{{{ ns }}}}")).unwrap(), "<Namespace {'a': <object>}>");
    assert_eq!(outcome(&format!("{list}{{{{ ns.a == ns.a }}}}{{{{ ns.a == [1] }}}}")).unwrap(), "TrueFalse");
    assert_eq!(outcome(&format!("{list}{{{{ [ns.a, ns.a] | map('string') | list | length }}}}")).unwrap(), "2");
    let each = |set: &str, value: &str| format!("{set}{{{{ {value} }}}}");
    refused(&["is not JSON"], &[each(set, "ns | tojson"), each(list, "ns.a | tojson")]);
    refused(&["cannot be ordered"], &[each(set, "[ns, 1] | sort"), each(list, "ns.a < [namespace()]")]);
}

#[test]
fn deep_and_shared_values_are_bounded() {
    let grown = |by: &str, times: &str, then: &str| {
        format!("{{% set ns = namespace(x=[], y=[]) %}}{times}{{% set ns.x = {by} %}}{END}{{{{ {then} }}}}")
    };
    let deep = ["[ns.x]", "(ns.x,)", "{'a': ns.x}", "[[ns.x]] + []", "dict(a=ns.x)", "[ns.x] * 1"];
    let deep: Vec<_> = deep.iter().map(|by| grown(by, MANY, "ns.x")).collect();
    refused(&["nested more than 128 deep"], &deep);
    let hundred = "{% for i in range(100) %}";
    let shared = ["ns.x", "ns.x == [[ns.x, ns.x]]", "ns.x | tojson", "ns.x | string | length", "'%s' % [ns.x]"];
    let shared: Vec<_> = shared.iter().map(|then| grown("[ns.x, ns.x]", hundred, then)).collect();
    refused(&["more than 2000000 steps"], &shared[..1]);
    refused(&["more than 2000000 steps"], &shared[2..]);
    assert_eq!(outcome(&shared[1]).unwrap(), "False");
    refused(&["more than 2000000 steps"], &[grown("(ns.x, ns.x)", hundred, "{(ns.x, 1): 1}").replace("x=[]", "x=1")]);
    let two = "{% set ns = namespace(x=1, y=1) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}\
        {% set ns.y = [ns.y, ns.y] %}{% endfor %}";
    refused(&["more than 2000000 steps"], &["==", "<", ">="].map(|op| format!("{two}{{{{ ns.x {op} [ns.y][0] }}}}")));
    // Chained namespaces are limited by steps, not by depth.
    refused(&["more than 2000000 steps"], &[grown("namespace(p=ns.x)", "{% for j in 'aaa' * 99999 %}", "ns.x")]);
}

#[test]
fn nested_and_chained_source_is_bounded() {
    let chains =
        ["+1", "-1", "*1", "**1", " and x", " or x", ".a", "[0]", "()", "|e", "|default(1)", " if 1", "//1", "%1"];
    let mut templates: Vec<_> = chains.iter().map(|chain| repeated("{{ x", chain, " }}")).collect();
    templates.extend(["-", "+", "not "].map(|open| repeated("{{ ", open, "1 }}")));
    let pairs = [("(", ")"), ("[", "]"), ("{1:", "}"), ("x(", ")"), ("x[", "]"), ("x|f(", ")"), ("[1,", "]")];
    templates.extend(pairs.map(|(open, close)| repeated(&repeated("{{ ", open, "1"), close, " }}")));
    templates.push(repeated("{{ 1", " if 1 else 1", " }}"));
    templates.push(repeated(&repeated("{% set ", "(", "a"), ")", " = 1 %}"));
    for open in ["{% if 1 %}", "{% for i in x %}", "{% with %}", "{% macro m() %}", "{% filter e %}", "{% set a %}"] {
        templates.push(open.repeat(20_000));
    }
    refused(&["nested more than 200 deep"], &templates);
    // These are not nested.
    let flat = |before: &str, part: &str, after: &str| outcome(&repeated(before, part, after));
    assert_eq!(flat("{{ 1", "~1", " }}").unwrap().len(), 60_001);
    assert_eq!(flat("{{ 1", " == 1", " }}").unwrap(), "True");
    assert_eq!(flat("{% if 0 %}", "{% elif 0 %}", "{% else %}a{% endif %}").unwrap(), "a");
    refused(&["chained"], &[repeated("{{ x", " is defined", " }}")]);
    let sets: String = (0..40_000).map(|i| format!("{{% set a{i} = 1 %}}")).collect();
    refused(&["too many variables"], &[format!("{}{sets}{}", "{% if 1 %}".repeat(150), "{% endif %}".repeat(150))]);
}

#[test]
fn infinite_recursion_is_refused() {
    refused(
        &["nested more than 64 deep", "nested more than 1000 deep"],
        &owned(&[
            "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
            "{% macro m() %}{{ caller() }}{% call m() %}a{% endcall %}{% endmacro %}{% call m() %}b{% endcall %}",
            "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
            "{% macro m() %}{% for i in [1] %}{% if 1 %}{{ (((([m()]))))[0] ~ 1 }}{% endif %}{% endfor %}{% endmacro %}{{ m() }}",
        ]),
    );
    let macro_of = |depth: usize| {
        let (open, close) = ("(".repeat(60) + &"[".repeat(60), "]".repeat(60) + &")".repeat(60));
        format!("{{% macro m(n) %}}{{{{ {open}m(n + 1) if n < {depth} else 1{close} }}}}{{% endmacro %}}{{{{ m(0) }}}}")
    };
    assert!(outcome(&macro_of(10)).is_ok());
    refused(&["nested more than 1000 deep"], &[macro_of(60)]);
}

#[test]
fn growing_values_are_refused() {
    let templates = owned(&[
        "{{ [[1]] | tojson(indent=2000000000) }}",
        "{{ 'x' * 10**9 }}",
        "{{ [1] * 10**9 }}",
        "{{ (1,) * 10**30 }}",
        "{{ range(99999) | join('x' * 100000) }}",
        "{{ ('a' * 999999).replace('a', 'b' * 999999) }}",
        "{{ ('a' * 999999).replace('', 'b' * 9999) }}",
        "{{ '%999999999d' % 1 }}{{ '%*d' % (10**9, 1) }}",
        "{{ '{:999999999}'.format(1) }}",
        "{{ 'a'.center(10**9) }}",
        "{{ 'a'.zfill(10**9) }}",
        "{{ 'a'.rjust(10**30) }}",
        "{{ ('\t' * 9999).expandtabs(10**9) }}",
        "{{ 'a\nb' | indent(10**9) }}",
        "{{ 'a' | center(10**9) }}",
        "{{ [1] | batch(10**9, 0) | list }}",
        "{{ [1] | slice(10**9) | list }}",
        "{{ ('\n' * 9999999).splitlines() | length }}",
        "{{ ('a' * 9999999) | list | length }}",
        "{{ ('\\x01' * 9999999) | tojson }}{{ ['\\x01' * 9999999] }}",
        "{{ ('{a}' * 99999).format(a='b' * 9999) }}",
        "{{ ('é' * 9999999) | urlencode }}",
    ]);
    refused(&["more than 2000000 steps"], &templates);
    let doubling = [
        "ns.x + ns.x",
        "ns.x ~ ns.x",
        "ns.x * 2",
        "ns.x.replace('a', 'aa')",
        "ns.x.join([ns.x, ns.x])",
        "'%s%s' % (ns.x, ns.x)",
    ];
    let doubling = doubling.map(|by| {
        format!("{{% set ns = namespace(x='aaaa') %}}{{% for i in range(60) %}}{{% set ns.x = {by} %}}{END}")
    });
    refused(&["more than 2000000 steps"], &doubling);
    refused(&["Range too big"], &owned(&["{{ range(10**9) }}", "{{ range(-10**37, 10**37, 3) }}"]));
    refused(
        &["too big", "width"],
        &owned(&["{{ '%.999999999f' % 1 }}", "{{ '%9999999999999999999999999999999999999999d' % 1 }}"]),
    );
    refused(&["too large"], &owned(&["{{ 9 ** 9 ** 9 }}", "{{ 10 ** 38 * 10 }}", "{{ -(-2 ** 126 * 2) }}"]));
}

#[test]
fn expensive_steps_are_charged() {
    let long = "{% set a = 'a' * 999999 %}{% set b = 'a' * 999998 ~ 'a' %}{% set d = {a: 1} %}{% set l = range(99999) | list %}";
    let costly = [
        "a == b",
        "d[b]",
        "b in d",
        "'c' in a",
        "a.find('c')",
        "a.partition('c')",
        "a | length",
        "a[-1]",
        "a[::-1]",
        "a.upper()",
        "a < b",
        "a.strip('b')",
        "a.split('b')",
        "-1 in l",
        "l.count(-1)",
        "l[::]",
        "l | sort | first",
        "l | sum",
        "l | max",
        "l | map('string') | list",
        "l == l[1:] + [1]",
        "a ~ b",
        "a | hash if false else a | tojson",
        "{a: 1}",
        "a is lower",
        "namespace(a=1)",
        "cycler(1)",
        "[1] | map('string')",
        "l | unique | list",
        "l | groupby(0) if 0 else l | select | list",
        "dict(d, b=1)",
        "'%s' % a",
        "'{}'.format(a)",
        "raise_exception(a) if 0 else a | e",
        "a | wordcount",
        "loop.changed(l[:9999])",
    ];
    let costly: Vec<_> = costly
        .iter()
        .map(|value| format!("{long}{MANY}{{% set x = {value} %}}{END}{MANY}{{{{ i }}}}{END}{MANY}{MANY}{END}{END}"))
        .collect();
    let step = if std::env::var_os("HYMBA_TEST_RUNNER").is_some() { 9 } else { 1 }; // emulation is slow
    refused(&["more than 2000000 steps"], &costly.into_iter().step_by(step).collect::<Vec<_>>());
    let endless = [
        "{% for j in range(99999) %}{% endfor %}",
        "{% macro m() %}{% endmacro %}{% for j in range(99) %}{{ m() }}{% endfor %}",
        "{{ 'a' * 9999 }}",
    ];
    let endless: Vec<_> = endless.iter().map(|body| format!("{MANY}{body}{END}")).collect();
    refused(&["more than 2000000 steps", "the limit is 16 MB"], &endless);
}

#[test]
fn raised_messages_are_truncated() {
    let message = outcome("{{ raise_exception('x' * 9999999) }}").unwrap_err();
    assert!(message.contains("xxx") && message.ends_with(" …") && message.len() < 2200, "{}", message.len());
}

#[test]
fn truncated_source_does_not_crash() {
    for part in [
        "{",
        "{%",
        "{#",
        "{{",
        "{% raw %}{%",
        "{{ 'a",
        "{{ \"",
        "{% if",
        "{{ x |",
        "{{ 1e",
        "{{ '\\",
        "{% for x in",
        "\\",
    ] {
        let _ = outcome(part);
        let _ = outcome(&part.repeat(30_000));
    }
    refused(&["invalid escape"], &owned(&["{{ '\\ud800' }}", "{{ '\\x4' }}", "{{ '\\U00110000' }}"]));
    refused(&["too large"], &[repeated("{{ ", "9", " }}")]);
    let whole = "{% macro m(a, b=1) %}{{ a }}{% endmacro %}{% for x in [1, 'é'] if x %}{{ m(x)|trim }}{# c #}{% endfor %}{{ '%s' % x }}";
    for (at, _) in whole.char_indices() {
        let _ = outcome(&whole[..at]);
        let _ = outcome(&whole[at..]);
    }
}
