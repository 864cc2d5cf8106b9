//! Memory of the machine and of this process.

/// Returns the bytes still available to this process, on the machine or within its container's limit; `None` if
/// unknown. Linux overcommits, and kills processes that use more.
pub fn available_memory() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let number = |path: &str| read(path)?.trim().parse::<u64>().ok();
    let machine = read("/proc/meminfo")?;
    let line = machine.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let machine = line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)?;
    let container = number("/sys/fs/cgroup/memory.max")
        .and_then(|limit| Some(limit.saturating_sub(number("/sys/fs/cgroup/memory.current")?)));
    Some(container.map_or(machine, |container| container.min(machine)))
}

/// Returns the peak memory of this process in bytes; `None` except on Linux.
pub fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #[test]
    fn available_memory_is_known_on_linux() {
        assert!(super::available_memory().is_some_and(|bytes| bytes > 1 << 20));
    }
}
