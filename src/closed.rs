//! Whether standard output was closed (`>&-`) when the program began. The runtime opens /dev/null in the place of a
//! closed descriptor before `main`, so that nothing fails later: what is asked for would be lost without a word.

use std::sync::atomic::{AtomicBool, Ordering};

static CLOSED: AtomicBool = AtomicBool::new(false);

/// Whether standard output was closed; `false` where that can't be found out.
pub fn output_was_closed() -> bool {
    CLOSED.load(Ordering::Relaxed)
}

#[cfg(unix)]
extern "C" fn look() {
    // SAFETY: the call takes any number for a descriptor, and changes nothing.
    CLOSED.store(unsafe { libc::fcntl(libc::STDOUT_FILENO, libc::F_GETFD) } == -1, Ordering::Relaxed);
}

/// Called by the loader before the runtime begins.
// SAFETY: the section is a list of functions of the C ABI, which are called without regard to what they take; this one
// takes nothing, and needs nothing of the runtime.
#[cfg(unix)]
#[used]
#[cfg_attr(target_vendor = "apple", unsafe(link_section = "__DATA,__mod_init_func"))]
#[cfg_attr(not(target_vendor = "apple"), unsafe(link_section = ".init_array"))]
static BEFORE_MAIN: extern "C" fn() = look;
