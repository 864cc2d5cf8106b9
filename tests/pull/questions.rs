//! Pulls at a terminal: questions and progress bars.

use std::fs;

use crate::{
    common::succeeds,
    hub::{REPO, World, checkpoint, commit},
    official::published,
    terminal::{CTRL_C, CTRL_D, Terminal, fits},
};

/// Weights of 6 MB, for a download that takes some time.
const VOCABULARY: usize = 20_000;
const OFFER: &str = "a/Tiny-Model is not installed. Download and convert it now? [Y/n] ";
const KEEP: &str = "for other types and programs? [Y/n] ";

#[test]
fn run_offers_to_pull_a_missing_model() {
    let world = World::new();
    commit(&world.hub, REPO, &published(None));
    let start = || {
        let mut terminal = Terminal::start(&world.hymba(["run", "-m", REPO, "-n", "3", "--chat", "-q", "hi"]), 200);
        terminal.expect(OFFER);
        terminal
    };
    for (keys, code) in [("n\r", 1), ("perhaps\rNO\r", 1), (CTRL_D, 1), (CTRL_C, 130), ("ye\x03", 130)] {
        let mut terminal = start();
        terminal.send(keys);
        let (ended, shown) = terminal.wait();
        assert_eq!(ended, code, "{keys:?}: {shown}");
        let error =
            "hymba: error: a/Tiny-Model: no such file or installed model; get it with `hymba pull a/Tiny-Model`";
        assert_eq!(shown.contains(error), code == 1, "{keys:?}: {shown}");
    }
    assert!(world.hub.requests().is_empty());

    let mut terminal = start();
    terminal.send("\r");
    terminal.expect("license of a/Tiny-Model: tiny-license (");
    terminal.expect(KEEP);
    terminal.send("n\r");
    let (code, shown) = terminal.wait();
    assert!(code == 0 && !shown.rsplit(KEEP).next().unwrap().trim().is_empty(), "{shown}");
    assert!(world.installed("q4").exists() && !world.cache().exists());
}

#[test]
fn the_original_is_kept_unless_declined() {
    let world = World::with_model(128);
    let pull = |keys: &str| {
        let mut terminal = Terminal::start(&world.hymba(["pull", REPO, "--type", "f16", "--force"]), 200);
        terminal.expect(KEEP);
        terminal.send(keys);
        let (code, shown) = terminal.wait();
        let is_kept = world.cache().join("refs/main").exists();
        (code, shown.contains("try it: hymba run -m a/Tiny-Model:f16"), is_kept)
    };
    for keys in ["\r", "yes\r", CTRL_D] {
        assert_eq!(pull(keys), (0, true, true), "{keys:?}");
    }
    assert_eq!(pull(CTRL_C), (130, false, true), "the model is installed, and nothing is removed");
    assert!(world.installed("f16").exists());
    assert_eq!(pull("n\r"), (0, true, false));
    // With --keep-original there is no question.
    for (keep, kept) in [("yes", true), ("no", false)] {
        let pull = world.hymba(["pull", REPO, "--type", "f16", "--force", "--keep-original", keep]);
        let (code, shown) = Terminal::start(&pull, 200).wait();
        assert!(code == 0 && !shown.contains("[Y/n]") && world.cache().exists() == kept, "{shown}");
    }
}

/// Progress bar and messages fit a narrow terminal; a pipe gets messages only, and -q suppresses all.
#[test]
fn progress_fits_the_terminal_width() {
    let world = World::with_model(VOCABULARY);
    let pull = |more: &[&str]| world.hymba([&["pull", REPO, "--force", "--keep-original", "no"], more].concat());
    let (code, shown) = Terminal::start(&pull(&[]), 40).wait();
    let (progress, summary) = shown.split_once("installed a/Tiny-Model:q4").unwrap();
    assert!(code == 0 && fits(progress, 40), "{shown}");
    assert!(summary.contains("try it: hymba run -m a/Tiny-Model"), "{shown}");
    for part in ["license of a/Tiny-Model:\ntiny-license", "█", " % ", " left model.safetensor"] {
        assert!(shown.contains(part), "{part} is missing in {shown}");
    }
    let (code, shown) = Terminal::start(&pull(&["-q"]), 40).wait();
    assert_eq!((code, &*shown), (0, ""));
    let piped = pull(&[]).output().unwrap();
    let lines: Vec<_> = piped.stderr.split(|&byte| byte == b'\n').map(String::from_utf8_lossy).collect();
    assert!(lines.iter().any(|line| line == "hymba: downloading model.safetensors"), "{lines:?}");
    assert!(lines.iter().all(|line| line.is_empty() || line.starts_with("hymba: ") && !line.contains('\x1b')));

    let folder = world.dir.path().join("original");
    fs::create_dir_all(&folder).unwrap();
    for (name, bytes) in checkpoint(VOCABULARY) {
        fs::write(folder.join(name), bytes).unwrap();
    }
    let quantize = |more: &[&str]| {
        let mut command = world.hymba(["quantize", "--force"].iter().chain(more));
        command.arg(&folder).arg(world.dir.path().join("out.gguf"));
        command
    };
    let (code, shown) = Terminal::start(&quantize(&[]), 40).wait();
    assert!(code == 0 && shown.contains("% ") && shown.contains(" left "), "{shown}");
    let bars: Vec<_> = shown.split(['\r', '\n']).filter(|line| line.contains(" left ")).collect();
    assert!(fits(&bars.join("\n"), 40), "{bars:?}");
    assert_eq!(Terminal::start(&quantize(&["-q"]), 40).wait(), (0, String::new()));
    assert_eq!(succeeds(&mut quantize(&["-q"])), "");
}
