//! `run --batch`: each prompt has the same text as in a run of its own, in the order of the prompts, also after interruptions.

mod common;

use std::{
    fs,
    path::Path,
    process::{Command, Output},
    thread,
    time::Duration,
};

use common::{fails, hymba, text, unless_emulated};
use serde_json::{Value, json};

/// Prompts with their own settings, and the equivalent flags of `run`.
fn prompts() -> Vec<(Value, Vec<&'static str>)> {
    let hello = json!([{"role": "user", "content": "Hello, who are you?"}]);
    vec![
        (
            json!({"prompt": "Once upon a time", "max_tokens": 12, "seed": 1}),
            vec!["Once upon a time", "-n", "12", "--seed", "1"],
        ),
        (
            json!({"prompt": "The fox", "n_predict": 8, "temp": 0}),
            vec!["The fox", "-n", "8", "--temp", "0", "--seed", "9"],
        ),
        (
            json!({"id": "chat", "messages": hello, "max_tokens": 10, "seed": 3, "top_k": 5, "top_p": 0.5}),
            vec!["--chat", "Hello, who are you?", "-n", "10", "--seed", "3", "--top-k", "5", "--top-p", "0.5"],
        ),
        (
            json!({"prompt": "A girl named Anna", "max_tokens": 30, "seed": 4, "stop": [" the", "zzz"]}),
            vec!["A girl named Anna", "-n", "30", "--seed", "4", "--stop", " the", "--stop", "zzz"],
        ),
        (
            json!({"prompt": "The end.", "max_tokens": 9, "seed": 5, "ignore_eos": true, "repeat_penalty": 1.3}),
            vec!["The end.", "-n", "9", "--seed", "5", "--ignore-eos", "--repeat-penalty", "1.3"],
        ),
        (
            json!({"custom_id": 7, "messages": hello, "system": "Be brief.", "max_tokens": 5, "min_p": 0.2, "seed": 6}),
            vec!["--chat", "Hello, who are you?", "--system", "Be brief.", "-n", "5", "--min-p", "0.2", "--seed", "6"],
        ),
    ]
}

fn write(path: &Path, lines: impl IntoIterator<Item = String>) {
    fs::write(path, lines.into_iter().map(|line| line + "\n").collect::<String>()).unwrap();
}

fn batch(input: &Path, output: &Path, flags: &[&str]) -> Command {
    let mut command = hymba(["run", "-q", "-c", "600", "--batch"]);
    command.arg(input).arg("-o").arg(output).args(flags);
    command
}

fn answers(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Returns the fields of an answer that do not depend on the machine.
fn comparable(answer: &Value) -> Value {
    let fields = ["line", "id", "text", "ids", "prompt_tokens", "generated_tokens", "stop_reason", "seed", "error"];
    fields.iter().map(|field| answer[field].clone()).collect()
}

#[test]
fn batched_texts_equal_single_runs() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in"), dir.path().join("out"));
    let prompts = prompts();
    write(&input, prompts.iter().map(|(line, _)| line.to_string()));
    let alone: Vec<Value> = prompts
        .iter()
        .map(|(_, flags)| {
            let Output { stdout, .. } = hymba(["run", "-q", "-c", "600", "--json"]).args(flags).output().unwrap();
            serde_json::from_slice(&stdout).unwrap()
        })
        .collect();
    for parallel in unless_emulated(&["1", "3", "8"][..], &["3"]) {
        let Output { status, stdout, stderr } =
            batch(&input, &output, &["--seed", "9", "--parallel", parallel]).output().unwrap();
        assert!(status.success() && stdout.is_empty(), "{}", text(&stderr));
        let answers = answers(&output);
        assert_eq!(answers.len(), alone.len());
        for (i, (answer, alone)) in answers.iter().zip(&alone).enumerate() {
            assert_eq!(answer["line"], i + 1);
            for field in ["version", "text", "ids", "stop_reason", "prompt_tokens", "generated_tokens", "seed"] {
                assert_eq!(answer[field], alone[field], "{field} of line {i}, {parallel} at once");
            }
        }
        assert_eq!((&answers[2]["id"], &answers[5]["id"], answers[0].get("id")), (&json!("chat"), &json!(7), None));
        assert_eq!(answers[3]["stop_reason"], "stop_string");
        // A complete file is not processed again.
        let before = fs::read(&output).unwrap();
        assert!(batch(&input, &output, &[]).status().unwrap().success());
        assert!(fs::read(&output).unwrap() == before);
        fs::remove_file(&output).unwrap();
    }
}

#[test]
fn an_invalid_line_does_not_stop_the_batch() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in"), dir.path().join("out"));
    let good = r#"{"prompt": "The fox", "max_tokens": 3}"#.to_string();
    let lines = [
        (good.clone(), ""),
        ("{".into(), "is not JSON"),
        (r#"{"id": 5, "prompt": "a", "tempe": 1}"#.into(), "unknown field `tempe`"),
        (r#"{"prompt": "a", "temperature": -1}"#.into(), "`temperature` -1: must be from 0 to 1000"),
        (r#"{"prompt": "a", "system": "b"}"#.into(), "`system` needs `messages`"),
        (json!({"prompt": "word ".repeat(700)}).to_string(), "more tokens do not fit: 600 of 600 tokens are left"),
        (json!({"prompt": "a", "stop": vec!["a"; 65]}).to_string(), "65 stop strings are too many"),
        (good.clone(), ""),
    ];
    write(&input, lines.iter().map(|(line, _)| line.clone()));
    let Output { status, stderr, .. } = batch(&input, &output, &["--parallel", "2"]).output().unwrap();
    assert_eq!((status.code(), text(&stderr)), (Some(1), String::new()));
    for (answer, (line, expected)) in answers(&output).iter().zip(&lines) {
        match answer["error"]["message"].as_str() {
            Some(message) => assert!(!expected.is_empty() && message.contains(expected), "{line}: {message}"),
            None => assert_eq!((*expected, answer["generated_tokens"].as_u64()), ("", Some(3)), "{line}"),
        }
    }
    let answers = answers(&output);
    assert_eq!((answers.len(), &answers[2]["id"]), (lines.len(), &json!(5)));
    // An error is an answer: the prompt is not repeated, and the exit code stays.
    assert_eq!(batch(&input, &output, &[]).status().unwrap().code(), Some(1));

    // A file with answers to other prompts, or of another kind, is refused.
    write(&input, [good.clone(), "{}".into()]);
    fails(&mut batch(&input, &output, &[]), 1, &["line 2 differs from the line that was answered before"]);
    write(&input, lines[..1].iter().map(|(line, _)| line.clone()));
    fails(&mut batch(&input, &output, &[]), 1, &["there are more answers than prompts"]);
    fails(&mut batch(&input, &input, &[]), 1, &["line 1 is not an answer of `run --batch`"]);
    assert_eq!(fs::read_to_string(&input).unwrap(), good + "\n");
    fails(&mut batch(&dir.path().join("none"), &output, &[]), 1, &["none"]);
    fails(&mut batch(&input, Path::new("-"), &[]), 2, &["--output", "standard output"]);
    fails(hymba(["run", "--batch"]).arg(&input), 2, &["--output"]);
}

/// After SIGKILL at arbitrary moments, and SIGTERM, the answers are those of an uninterrupted run.
#[cfg(unix)]
#[test]
fn an_interrupted_batch_resumes() {
    use std::os::unix::process::ExitStatusExt;

    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in"), dir.path().join("out"));
    let prompt = |i| json!({"prompt": format!("Story number {i}:"), "max_tokens": 5 + i % 7 * unless_emulated(10, 1)});
    write(&input, (0..unless_emulated(24, 6)).map(|i| prompt(i).to_string()));
    let flags = ["--seed", "3", "--parallel", "3"];
    assert!(batch(&input, &output, &flags).status().unwrap().success());
    let wanted: Vec<Value> = answers(&output).iter().map(comparable).collect();
    fs::remove_file(&output).unwrap();

    let lines = || fs::read_to_string(&output).unwrap_or_default().matches('\n').count();
    let mut interrupted = 0;
    for signal in ["-KILL", "-TERM", "-KILL"] {
        let before = lines();
        let mut child = batch(&input, &output, &flags).spawn().unwrap();
        while lines() < before + 2 && child.try_wait().unwrap().is_none() {
            thread::sleep(Duration::from_millis(2));
        }
        Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        let status = child.wait().unwrap();
        if status.success() {
            break; // it finished before the signal
        }
        assert!(status.signal() == Some(9) || status.code() == Some(143), "{status}");
        interrupted += 1;
    }
    assert!(interrupted > 0 && lines() < wanted.len(), "{interrupted} interrupted, {} answers", lines());
    assert!(batch(&input, &output, &flags).status().unwrap().success());
    let got: Vec<Value> = answers(&output).iter().map(comparable).collect();
    assert_eq!(got, wanted);
}
