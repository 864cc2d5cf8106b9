//! Tests that run under an emulator of another CPU.

/// Returns the command to run the binary with that `HYMBA_TEST_RUNNER` names, words between spaces: an emulator, where
/// the tests are built for another CPU.
pub fn runner() -> Option<String> {
    std::env::var("HYMBA_TEST_RUNNER").ok().filter(|runner| !runner.trim().is_empty())
}

/// How much of something to do: an emulator takes a hundred times as long as the CPU it runs on.
pub fn much<T>(natively: T, emulated: T) -> T {
    if runner().is_some() { emulated } else { natively }
}
