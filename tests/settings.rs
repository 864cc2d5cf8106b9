//! Settings from the environment and the configuration file; completions and manual pages.

mod common;

use std::{fs, path::Path};

use common::{fails, hymba, succeeds};

fn config(dir: &Path, text: &str) -> String {
    let path = dir.join("config.toml");
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[test]
fn flags_override_variables_and_variables_override_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = config(dir.path(), "temp = 0.25\ntop-k = 7\ncache-type = \"q8_0\"\n");
    let shown = succeeds(hymba(["config"]).env("HYMBA_CONFIG", &file).env("HYMBA_TEMP", "0.5"));
    for line in [
        "temp = 0.5  # HYMBA_TEMP".to_string(),
        format!("top-k = 7  # {file}"),
        format!("cache-type = q8_0  # {file}"),
        "# context: default (HYMBA_CONTEXT)".into(),
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line} is missing in {shown}");
    }
    // At a temperature of 0 the seed has no effect; --temp overrides it.
    let texts = |flags: &[&str]| {
        ["1", "2"].map(|seed| {
            let mut command = hymba(["run", "-n", "12", "-q", "--seed", seed, "Once upon a time"]);
            succeeds(command.args(flags).env("HYMBA_CONFIG", &file).env("HYMBA_TEMP", "0"))
        })
    };
    let [a, b] = texts(&[]);
    assert_eq!(a, b);
    let [a, b] = texts(&["--temp", "5", "--top-k", "0", "--top-p", "1", "--min-p", "0"]);
    assert_ne!(a, b);
}

#[test]
fn a_resumed_text_keeps_its_sampling_parameters() {
    let dir = tempfile::tempdir().unwrap();
    let session = dir.path().join("text.session");
    let run = |more: &[&str]| {
        let mut command = hymba(["run", "-n", "8", "-q", "--no-display-prompt", "--session"]);
        command.arg(&session).args(more);
        command
    };
    succeeds(&mut run(&["--temp", "5", "--top-k", "0", "--top-p", "1", "--min-p", "0", "--seed", "3", "Once"]));
    let plain = succeeds(&mut run(&["--session-ro"]));
    assert_eq!(plain, succeeds(run(&["--session-ro"]).env("HYMBA_TEMP", "0")));
    assert_ne!(plain, succeeds(&mut run(&["--session-ro", "--temp", "0"])));
}

#[test]
fn invalid_settings_are_reported_with_their_source() {
    let dir = tempfile::tempdir().unwrap();
    let with = |text: &str| config(dir.path(), text);
    let run = || hymba(["run", "-n", "1", "Once"]);
    fails(run().env("HYMBA_CONFIG", with("temperature = 1\n")), 2, &["config.toml", "unknown setting `temperature`"]);
    fails(run().env("HYMBA_CONFIG", with("a line\n")), 2, &["config.toml", "line 1"]);
    fails(run().env("HYMBA_CONFIG", with("temp = [1]\n")), 2, &["config.toml", "`temp` must be a string or a number"]);
    fails(run().env("HYMBA_CONFIG", with("force = true\n")), 2, &["config.toml", "unknown setting `force`"]);
    fails(
        run().env("HYMBA_CONFIG", with("context = \"large\"\n")),
        2,
        &["config.toml: context = \"large\": must be a whole number from 0 to"],
    );
    fails(run().env("HYMBA_THREADS", "none"), 2, &["HYMBA_THREADS=none: must be a whole number from 1 to 512"]);
    fails(run().env("HYMBA_TEMP", "-3"), 2, &["HYMBA_TEMP=-3: must be from 0 to 1000"]);
    fails(run().env("HYMBA_BACKEND", "gpu"), 2, &["HYMBA_BACKEND=gpu: must be one of auto, cpu, metal"]);
    let stderr = run().env("HYMBA_TEMP", "abc").output().unwrap().stderr;
    assert_eq!(String::from_utf8(stderr).unwrap(), "hymba: error: HYMBA_TEMP=abc: must be a number\n");
    fails(run().env("HYMBA_CONFIG", dir.path()), 2, &["is not a regular file"]);
    // A setting that a flag overrides is not checked, and help always works.
    succeeds(run().args(["-c", "64"]).env("HYMBA_CONTEXT", "large"));
    succeeds(hymba(["run", "--help"]).env("HYMBA_CONFIG", with("a line\n")));
    let help = succeeds(&mut hymba(["run", "--help"]));
    assert!(help.contains("[env: HYMBA_TOP_K]") && !help.contains("HYMBA_SEED"), "{help}");
}

#[test]
fn a_configuration_file_that_is_named_must_exist() {
    let missing = ("HYMBA_CONFIG", "missing.toml");
    let problem = "HYMBA_CONFIG: cannot read missing.toml: No such file or directory\n";
    fails(hymba(["run", "-n", "1", "Once"]).env(missing.0, missing.1), 2, &[problem]);
    let shown = succeeds(hymba(["config"]).env(missing.0, missing.1).env("HYMBA_TEMP", "0.5"));
    assert!(
        shown.starts_with("# missing.toml (no such file)\n") && shown.contains("temp = 0.5  # HYMBA_TEMP"),
        "{shown}"
    );
    let empty = tempfile::tempdir().unwrap();
    succeeds(hymba(["run", "-q", "-n", "1", "Once"]).env_remove(missing.0).env("XDG_CONFIG_HOME", empty.path()));
}

#[test]
fn the_model_is_chosen_by_flag_then_variable_then_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = config(dir.path(), "model = \"in-the-file.gguf\"\n");
    let run = || hymba(["run", "-n", "1", "Once"]);
    fails(run().env("HYMBA_CONFIG", &file).env_remove("HYMBA_MODEL"), 1, &["in-the-file.gguf"]);
    fails(run().env("HYMBA_CONFIG", &file).env("HYMBA_MODEL", "in-the-variable.gguf"), 1, &["in-the-variable.gguf"]);
    fails(run().env("HYMBA_CONFIG", &file).args(["-m", "in-the-flag.gguf"]), 1, &["in-the-flag.gguf"]);
}

#[test]
fn completions_and_manual_pages_cover_every_command() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = succeeds(&mut hymba(["completions", shell]));
        for word in ["quantize", "top-k", "completions"] {
            assert!(script.contains(word), "{shell} does not complete {word}");
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let pages = dir.path().join("man/man1");
    succeeds(hymba(["man"]).arg(&pages));
    succeeds(hymba(["man"]).arg(&pages));
    for (page, text) in
        [("hymba.1", "hymba\\-run"), ("hymba-run.1", "top\\-k"), ("hymba-eval-perplexity.1", "perplexity")]
    {
        let page = fs::read_to_string(pages.join(page)).unwrap();
        assert!(page.contains(text) && page.starts_with(".ie"), "{text}: {page}");
    }
    fails(hymba(["man"]).arg(pages.join("hymba.1")), 1, &["hymba.1"]);
}
