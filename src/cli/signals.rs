//! Termination signals. The first one requests a graceful stop; the second one exits immediately.

use std::{
    io,
    sync::{
        Arc, LazyLock, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

/// Exit codes of signals are this plus the signal's number, as in shells.
const BASE: u8 = 128;
/// SIGINT.
const SIGINT: u8 = 2;

/// The last signal received; 0: none.
static LAST: LazyLock<Arc<AtomicUsize>> = LazyLock::new(Arc::default);

/// Set by signals.
static CANCEL: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Returns the flag that signals set, for code that is not passed it.
pub fn cancel() -> Arc<AtomicBool> {
    CANCEL.get().cloned().unwrap_or_default()
}

/// Returns the exit code after a signal.
pub fn exit_code() -> u8 {
    let signal = u8::try_from(LAST.load(Ordering::Relaxed)).unwrap_or_default();
    BASE + if signal == 0 { SIGINT } else { signal }
}

/// Whether a signal should end the program rather than the current operation, unlike Ctrl-C at a terminal.
pub fn must_end() -> bool {
    ![0, usize::from(SIGINT)].contains(&LAST.load(Ordering::Relaxed))
}

/// Makes SIGINT, SIGTERM and SIGHUP set `cancel`, except those inherited as ignored (nohup, background jobs).
#[cfg(unix)]
pub fn watch(cancel: &Arc<AtomicBool>) -> io::Result<()> {
    use signal_hook::{
        consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ},
        flag,
    };

    let cancel = CANCEL.get_or_init(|| cancel.clone());
    for signal in [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|&signal| !is_ignored(signal)) {
        // A closing terminal may send two signals; leave time to save.
        if signal != SIGHUP {
            flag::register_conditional_shutdown(signal, i32::from(BASE) + signal, cancel.clone())?;
        }
        flag::register_usize(signal, LAST.clone(), signal as usize)?;
        flag::register(signal, cancel.clone())?;
    }
    // With a handler, exceeding `ulimit -f` fails the write instead of killing the process.
    flag::register(SIGXFSZ, Arc::default()).map(drop)
}

#[cfg(unix)]
fn is_ignored(signal: libc::c_int) -> bool {
    let mut now = std::mem::MaybeUninit::uninit();
    // SAFETY: without a new action the call only queries; it fills the structure when it returns 0.
    unsafe {
        libc::sigaction(signal, std::ptr::null(), now.as_mut_ptr()) == 0
            && now.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

/// Makes Ctrl-C set `cancel`.
#[cfg(not(unix))]
pub fn watch(cancel: &Arc<AtomicBool>) -> io::Result<()> {
    let cancel = CANCEL.get_or_init(|| cancel.clone()).clone();
    let handler = move || {
        if cancel.swap(true, Ordering::Relaxed) {
            std::process::exit((BASE + SIGINT).into());
        }
    };
    ctrlc::set_handler(handler).map_err(io::Error::other)
}
