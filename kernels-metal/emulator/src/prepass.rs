//! Translates Metal to C++: parses and removes the shaders' `[[...]]` attributes and replaces keywords unknown to C++,
//! leaving function bodies as they are. Function constants become variables, tables get the target's qualifiers, and
//! every kernel gets an entry point that collects its parameters.

use std::fmt::Write;

/// Translates the shaders in `metal` to C++; fails for constructs that it does not know.
pub fn to_cpp(metal: &str) -> Result<String, String> {
    let mut text = String::new();
    for line in metal.lines() {
        let declared = function_constant(line)?.or_else(|| table(line));
        text.push_str(&declared.unwrap_or_else(|| line.to_owned()));
        text.push('\n');
    }
    let mut entries = String::new();
    for (at, _) in text.match_indices("\nkernel void ") {
        let rest = &text[at + "\nkernel void ".len()..];
        let (name, rest) = rest.split_once('(').ok_or("a kernel has no parameters")?;
        let end = closing(rest).ok_or_else(|| format!("kernel {name}: a parenthesis is not closed"))?;
        entries.push_str(&entry(name, &rest[..end])?);
    }
    if entries.is_empty() {
        return Err("there is no kernel".into());
    }
    Ok(in_words_of_cpp(&(without_attributes(&text) + "\n" + &entries)))
}

/// Replaces Metal's keywords.
fn in_words_of_cpp(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for word in text.split_inclusive(|c: char| !c.is_alphanumeric() && c != '_') {
        let end = word.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(word.len());
        out.push_str(match &word[..end] {
            "kernel" => "SHIM_FN",
            "inline" => "SHIM_FN inline",
            "constant" => "const",
            "device" | "threadgroup" | "thread" => "",
            other => other,
        });
        out.push_str(&word[end..]);
    }
    out
}

/// Translates `constant TYPE NAME [[function_constant(I)]];` to a variable, if `line` is one.
fn function_constant(line: &str) -> Result<Option<String>, String> {
    let Some((declaration, rest)) = line.split_once("[[function_constant(") else { return Ok(None) };
    let words: Vec<&str> = declaration.split_whitespace().collect();
    match (&words[..], rest.split_once(")]];")) {
        (["constant", kind, name], Some((index, _))) => Ok(Some(format!("SHIM_CONSTANT({kind}, {name}, {index})"))),
        _ => Err(format!("what constant is this: {line}")),
    }
}

/// Translates `constant TYPE NAME[N] = ...` to a table, if `line` is one.
fn table(line: &str) -> Option<String> {
    let (declaration, values) = line.strip_prefix("constant ")?.split_once("] =")?;
    let (kind, rest) = declaration.split_once(' ')?;
    let (name, n) = rest.split_once('[')?;
    Some(format!("SHIM_TABLE({kind}, {name}, {n}) ={values}"))
}

/// Returns the position of the parenthesis that closes one opened before `text`.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 1;
    for (i, c) in text.char_indices() {
        depth += i32::from(c == '(') - i32::from(c == ')');
        if depth == 0 {
            return Some(i);
        }
    }
    None
}

/// Returns the entry point of a kernel.
fn entry(name: &str, parameters: &str) -> Result<String, String> {
    let (mut arguments, mut args_type) = (Vec::new(), None);
    for parameter in parameters.split(',') {
        let bad = || format!("kernel {name}: what parameter is this: {}", parameter.trim());
        let (declaration, attribute) = parameter.split_once("[[").ok_or_else(bad)?;
        let attribute = attribute.trim_end().strip_suffix("]]").ok_or_else(bad)?;
        let declaration = declaration.trim();
        let start = declaration.rfind(|c: char| !c.is_alphanumeric() && c != '_').ok_or_else(bad)? + 1;
        let kind = declaration[..start].trim();
        arguments.push(if let Some(index) = attribute.strip_prefix("buffer(").and_then(|s| s.strip_suffix(')')) {
            if let Some(structure) = kind.strip_prefix("constant ").and_then(|s| s.strip_suffix('&')) {
                args_type = Some(structure.trim());
                format!("*(const {}*)shim_args(launch)", structure)
            } else {
                format!("({kind})shim_buffer(launch, {index})")
            }
        } else if attribute == "threadgroup(0)" {
            format!("({kind})shim_threadgroup(launch)")
        } else {
            format!("shim_{attribute}(launch)")
        });
    }
    let args_type = args_type.ok_or_else(|| format!("kernel {name} has no arguments"))?;
    let mut out = String::new();
    let _ = writeln!(out, "SHIM_KERNEL({name}) {{ {name}({}); }}", arguments.join(", "));
    let _ = writeln!(out, "SHIM_REGISTER({name}, sizeof({args_type}))");
    Ok(out)
}

fn without_attributes(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("[[") {
        out.push_str(before);
        rest = after.split_once("]]").map_or("", |(_, after)| after);
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_become_entry_points() {
        let metal = "constant uint N [[function_constant(3)]];\n\
                     constant float T[2] = {1, 2};\n\
                     struct A { uint n; };\n\
                     kernel void twice(device const float *x [[buffer(0)]], constant A &a [[buffer(1)]],\n\
                     \x20                 uint tid [[thread_index_in_threadgroup]]) {\n}\n";
        let cpp = to_cpp(metal).unwrap();
        assert!(cpp.starts_with("SHIM_CONSTANT(uint, N, 3)\nSHIM_TABLE(float, T, 2) = {1, 2};\n"));
        assert!(!cpp.contains("[["));
        assert!(cpp.contains(
            "SHIM_KERNEL(twice) { twice(( const float *)shim_buffer(launch, 0), *(const A *)shim_args(launch), \
             shim_thread_index_in_threadgroup(launch)); }"
        ));
        assert!(cpp.contains("SHIM_REGISTER(twice, sizeof(A))"));
        assert!(to_cpp("\nkernel void odd(uint x) {}\n").is_err());
    }
}
