//! What the machine, or the container this runs in, has to offer.

use std::path::Path;

/// Memory to fall back on when nothing can be read: a small machine's.
const FALLBACK_MEMORY: u64 = 1 << 30;

/// The memory limit of the control group, or the machine's memory, whichever is smaller; bytes.
pub fn memory_bytes() -> u64 {
    let total = read("/proc/meminfo").and_then(|text| meminfo_total(&text)).unwrap_or(FALLBACK_MEMORY);
    let limits = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let limit = limits.iter().find_map(|path| read(path)?.trim().parse::<u64>().ok());
    // Without a limit the file says "max" or a number beyond all memory.
    limit.map_or(total, |limit| limit.min(total))
}

/// Cores that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(2, |n| n.get())
}

fn read(path: impl AsRef<Path>) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

fn meminfo_total(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn total_memory_is_found_among_the_lines() {
        assert_eq!(meminfo_total("MemFree: 1 kB\nMemTotal:       2048 kB\n"), Some(2 << 20));
        assert_eq!(meminfo_total("nothing"), None);
        assert!(memory_bytes() > 0 && cores() > 0);
    }
}
