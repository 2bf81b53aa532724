//! What a process takes: resident memory and threads, read from /proc.

use std::io;

/// Of one process, now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Usage {
    pub resident_kib: u64,
    pub threads: u64,
}

pub fn of(pid: u32) -> io::Result<Usage> {
    parse(&std::fs::read_to_string(format!("/proc/{pid}/status"))?)
}

fn parse(status: &str) -> io::Result<Usage> {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        number.ok_or_else(|| io::Error::other(format!("no {name} in /proc/PID/status")))
    };
    Ok(Usage { resident_kib: field("VmRSS")?, threads: field("Threads")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_its_own_process() {
        let usage = of(std::process::id()).unwrap();
        assert!(usage.resident_kib > 100 && usage.threads >= 1, "{usage:?}");
    }

    #[test]
    fn a_status_without_the_fields_is_an_error() {
        assert_eq!(parse("VmRSS:\t  12 kB\nThreads:\t3\n").unwrap(), Usage { resident_kib: 12, threads: 3 });
        assert!(parse("Name:\tx\n").is_err());
    }
}
