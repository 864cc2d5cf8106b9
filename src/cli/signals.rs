//! Signals that ask the program to stop. The first one asks the work, which stops where it can; the second does not ask.

use std::{
    io,
    sync::{
        Arc, LazyLock, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

/// What a shell adds to the number of a signal that ended a program.
const BASE: u8 = 128;
/// The number of Ctrl-C's signal.
const SIGINT: u8 = 2;

/// The number of the last signal that came; 0: none.
static LAST: LazyLock<Arc<AtomicUsize>> = LazyLock::new(Arc::default);

/// What the signals set.
static CANCEL: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Returns what is set when a signal asks to stop, for work that is not handed it.
pub fn cancel() -> Arc<AtomicBool> {
    CANCEL.get().cloned().unwrap_or_default()
}

/// Returns the exit code of work that a signal stopped.
pub fn exit_code() -> u8 {
    let signal = u8::try_from(LAST.load(Ordering::Relaxed)).unwrap_or_default();
    BASE + if signal == 0 { SIGINT } else { signal }
}

/// Whether a signal wants the program to end, and not what it is doing alone, as Ctrl-C does at a terminal.
pub fn must_end() -> bool {
    ![0, usize::from(SIGINT)].contains(&LAST.load(Ordering::Relaxed))
}

/// From now on SIGINT, SIGTERM and SIGHUP set `cancel`, but for those that whoever started the program wants ignored: as
/// nohup does, or a shell that runs it in the background.
#[cfg(unix)]
pub fn watch(cancel: &Arc<AtomicBool>) -> io::Result<()> {
    use signal_hook::{
        consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ},
        flag,
    };

    let cancel = CANCEL.get_or_init(|| cancel.clone());
    for signal in [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|&signal| !is_ignored(signal)) {
        // A terminal that closes may send two, which leave time to save.
        if signal != SIGHUP {
            flag::register_conditional_shutdown(signal, i32::from(BASE) + signal, cancel.clone())?;
        }
        flag::register_usize(signal, LAST.clone(), signal as usize)?;
        flag::register(signal, cancel.clone())?;
    }
    // Handled, however little, it does not end the process: the write that is too long for `ulimit -f` fails.
    flag::register(SIGXFSZ, Arc::default()).map(drop)
}

#[cfg(unix)]
fn is_ignored(signal: libc::c_int) -> bool {
    let mut now = std::mem::MaybeUninit::uninit();
    // SAFETY: without a new action the call only asks; it fills the structure when it returns 0.
    unsafe {
        libc::sigaction(signal, std::ptr::null(), now.as_mut_ptr()) == 0
            && now.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

/// From now on Ctrl-C sets `cancel`.
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
