//! How much memory there is. Linux hands out more than it has, and ends the process when it is used.

/// Bytes that this process could still use, as far as the system tells: those of the machine, or of the container if that
/// may use less.
pub fn available() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let number = |path: &str| read(path)?.trim().parse::<u64>().ok();
    let machine = read("/proc/meminfo")?;
    let line = machine.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let machine = line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)?;
    let container = number("/sys/fs/cgroup/memory.max")
        .and_then(|most| Some(most.saturating_sub(number("/sys/fs/cgroup/memory.current")?)));
    Some(container.map_or(machine, |container| container.min(machine)))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #[test]
    fn the_system_tells() {
        assert!(super::available().is_some_and(|bytes| bytes > 1 << 20));
    }
}
