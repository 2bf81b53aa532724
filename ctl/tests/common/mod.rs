//! A playground as a process, and kvctl run against it: what the tests of this directory share.
#![allow(dead_code, reason = "each test program uses its part")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

pub const KVCTL: &str = env!("CARGO_BIN_EXE_kvctl");
pub const STOP_DEADLINE: Duration = Duration::from_secs(30);

/// A playground process on free ports, stopped at the end.
pub struct Playground {
    child: Option<Child>,
    /// Kept open, so that the process can write.
    _stdout: BufReader<ChildStdout>,
    pub ready: serde_json::Value,
}

impl Playground {
    pub fn start(args: &[&str]) -> Playground {
        let mut child = Command::new(KVCTL)
            .args(["playground", "--port", "0", "--output", "json"])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        if line.is_empty() {
            let status = child.wait().unwrap();
            panic!("the playground ended before it was ready: {status}");
        }
        let ready = serde_json::from_str(&line).unwrap();
        Playground { child: Some(child), _stdout: stdout, ready }
    }

    pub fn kvctl(&self, args: &[&str]) -> Output {
        self.kvctl_with_input(args, b"")
    }

    pub fn kvctl_with_input(&self, args: &[&str], input: &[u8]) -> Output {
        let mut child = Command::new(KVCTL)
            .env("KVCTL_SCHEDULER", self.ready["scheduler"].as_str().unwrap())
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let writer = std::thread::spawn(move || stdin.write_all(&input));
        let output = child.wait_with_output().unwrap();
        // A command that does not read its input closes the pipe.
        let _ = writer.join().unwrap();
        output
    }

    /// A command that goes on while the test talks to it.
    pub fn spawn(&self, args: &[&str]) -> Talk {
        let mut child = Command::new(KVCTL)
            .env("KVCTL_SCHEDULER", self.ready["scheduler"].as_str().unwrap())
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take();
        Talk { child: Some(child), stdin }
    }

    pub fn json(&self, args: &[&str]) -> serde_json::Value {
        let output = self.kvctl(&[args, &["--output", "json"]].concat());
        assert_eq!(code(&output), 0, "{args:?}: {}", stderr(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The output of a command that succeeds.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.kvctl(args);
        assert_eq!(code(&output), 0, "{args:?}: {}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command until it succeeds.
    pub fn until(&self, args: &[&str]) {
        let started = Instant::now();
        loop {
            let output = self.kvctl(args);
            if code(&output) == 0 {
                return;
            }
            assert!(started.elapsed() < STOP_DEADLINE, "{args:?}: {}", stderr(&output));
        }
    }

    /// Looks until something is so.
    pub fn wait_for(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let started = Instant::now();
        while !is_so() {
            assert!(started.elapsed() < STOP_DEADLINE, "waited in vain for {what}");
        }
    }

    /// Sends SIGTERM and returns the exit code.
    pub fn stop(mut self) -> Option<i32> {
        let child = self.child.take().unwrap();
        signal("-TERM", child.id());
        wait(child)
    }
}

/// A running command that reads what the test writes.
pub struct Talk {
    child: Option<Child>,
    stdin: Option<ChildStdin>,
}

impl Talk {
    pub fn send(&mut self, text: &str) {
        self.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    /// Sends what Ctrl-C in a terminal does; returns the exit code.
    pub fn interrupt(mut self) -> Option<i32> {
        let child = self.child.take().unwrap();
        signal("-INT", child.id());
        wait(child)
    }

    /// Ends its input and returns its exit code.
    pub fn finish(mut self) -> Option<i32> {
        drop(self.stdin.take());
        wait(self.child.take().unwrap())
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        // Only a failed test comes here with a process.
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Playground {
    fn drop(&mut self) {
        // Only a failed test comes here with a process.
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

pub fn signal(name: &str, pid: u32) {
    assert!(Command::new("kill").args([name, &pid.to_string()]).status().unwrap().success());
}

/// The exit code of a process that is about to end.
pub fn wait(mut child: Child) -> Option<i32> {
    let pid = child.id();
    let (sender, ended) = std::sync::mpsc::sync_channel(1);
    std::thread::spawn(move || sender.send(child.wait().unwrap().code()));
    ended.recv_timeout(STOP_DEADLINE).unwrap_or_else(|_| {
        signal("-KILL", pid);
        panic!("the playground did not stop in {STOP_DEADLINE:?}");
    })
}

pub fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn path_text(path: &Path) -> &str {
    path.to_str().unwrap()
}
