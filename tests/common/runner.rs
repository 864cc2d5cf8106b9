//! Support for tests that run under an emulator of another CPU.

/// Returns the emulator's command line from `HYMBA_TEST_RUNNER`, split at spaces, if the tests are built for another CPU.
pub fn runner() -> Option<String> {
    std::env::var("HYMBA_TEST_RUNNER").ok().filter(|runner| !runner.trim().is_empty())
}

/// Returns `native`, or `emulated` under an emulator, which takes a hundred times as long: sizes of the work to do.
pub fn unless_emulated<T>(native: T, emulated: T) -> T {
    if runner().is_some() { emulated } else { native }
}
