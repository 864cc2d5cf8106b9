//! Detects whether standard output was closed (`>&-`) at startup. Before `main`, the runtime replaces closed
//! descriptors with /dev/null, so output would be lost silently.

use std::sync::atomic::{AtomicBool, Ordering};

static CLOSED: AtomicBool = AtomicBool::new(false);

/// Whether standard output was closed; `false` if unknown.
pub fn output_was_closed() -> bool {
    CLOSED.load(Ordering::Relaxed)
}

#[cfg(unix)]
extern "C" fn check_stdout() {
    // SAFETY: the call accepts any descriptor number and changes nothing.
    CLOSED.store(unsafe { libc::fcntl(libc::STDOUT_FILENO, libc::F_GETFD) } == -1, Ordering::Relaxed);
}

/// Called by the loader before the runtime starts.
// SAFETY: the section lists functions with the C ABI, whose arguments may be ignored; this one does not use the
// runtime.
#[cfg(unix)]
#[used]
#[cfg_attr(target_vendor = "apple", unsafe(link_section = "__DATA,__mod_init_func"))]
#[cfg_attr(not(target_vendor = "apple"), unsafe(link_section = ".init_array"))]
static BEFORE_MAIN: extern "C" fn() = check_stdout;
