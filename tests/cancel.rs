//! Whatever takes long ends soon after a signal asks for it, and leaves nothing; what can't succeed is refused before it takes
//! long.
#![cfg(unix)]

mod common;

use std::{
    fs,
    path::Path,
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use common::{demo, hymba, runner, text, unless_emulated};

/// Many times what is promised: the machine is shared.
const SOON: Duration = Duration::from_secs(5);

/// Starts the command, asks it to stop after `wait`, when it is still at work, and checks that it does.
#[track_caller]
fn stops(command: &mut Command, wait: Duration) {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    thread::sleep(wait);
    assert!(child.try_wait().unwrap().is_none(), "it was done too soon to be stopped: {command:?}");
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    let asked = Instant::now();
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    let took = asked.elapsed();
    assert_eq!(status.code(), Some(143), "{command:?}: {}", text(&stderr));
    println!("{took:?} for {:?}", command.get_args().collect::<Vec<_>>());
    assert!(took < unless_emulated(SOON, 20 * SOON), "{command:?}: {took:?}");
}

/// As people write, and as no vocabulary knows it.
fn long_text(path: &Path, bytes: usize) {
    let line =
        "Once upon a time there was a fox who lived in 1999 hollow trees, and a zyxwvut that had no name at all.\n";
    fs::write(path, line.repeat(bytes / line.len())).unwrap();
}

#[test]
fn sigterm_stops_long_operations() {
    if runner().is_some() {
        eprintln!("SKIPPED: under emulation everything is long");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (long, short, out) = (dir.path().join("long.txt"), dir.path().join("short.txt"), dir.path().join("out"));
    long_text(&long, 15 << 20);
    long_text(&short, 60_000);
    let (long, short, out) = (long.to_str().unwrap(), short.to_str().unwrap(), out.to_str().unwrap());
    let soon = Duration::from_millis(1500);
    // Splitting a text into tokens, alone and before something else.
    stops(&mut hymba(["eval", "perplexity", "--json", long]), soon);
    stops(&mut hymba(["quantize", "-q", &demo(), out, "--type", "q8_0", "--calibrate", long]), soon);
    // Measuring, rounding with compensation, reading.
    let gptq = ["quantize", "-q", &demo(), out, "--type", "q4_0", "--rounding", "gptq", "--calibrate", short];
    for wait in [700, 1900, 3100] {
        stops(&mut hymba(gptq), Duration::from_millis(wait));
    }
    stops(&mut hymba(["eval", "compare", "--json", &demo(), &demo(), short]), soon);
    stops(&mut hymba(["bench", "-p", "4096", "-n", "0", "--ttft", "0"]), soon);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "something was left behind");
}

/// A text that the context can't hold is neither split to its end nor shown.
#[test]
fn too_long_prompts_are_refused_before_tokenization() {
    let dir = tempfile::tempdir().unwrap();
    let long = dir.path().join("long.txt");
    long_text(&long, 15 << 20);
    let start = Instant::now();
    let refused = |command: &mut Command, says: &str| {
        let Output { status, stdout, stderr } = command.output().unwrap();
        let said = text(&stderr);
        assert_eq!((status.code(), stdout.len()), (Some(1), 0), "{said}");
        assert!(said.contains(says) && said.contains("-c"), "{said}");
    };
    refused(hymba(["run", "-q", "-c", "1024", "-f"]).arg(&long), "more tokens do not fit: 1024 of 1024");
    refused(hymba(["chat", "-q", "-c", "1024", "-st"]).stdin(fs::File::open(&long).unwrap()), "message too long");
    refused(
        hymba(["run", "-q", "-c", "1024", "--prompt-cache"]).arg(dir.path().join("cache")).arg("-f").arg(&long),
        "tokens are left in the context",
    );
    // One that is not far beyond it too.
    long_text(&long, 8000);
    refused(hymba(["run", "-q", "-c", "1024", "-f"]).arg(&long), "tokens are left in the context");
    assert!(
        start.elapsed() < unless_emulated(Duration::from_secs(20), Duration::from_secs(400)),
        "{:?}",
        start.elapsed()
    );
}
