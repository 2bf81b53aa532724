//! One server process: started with its own log file, watched, signalled and ended by its process id. A dropped
//! process is killed; so is one whose test dies, since the kernel ends it with the thread that started it.
//! So a process must be started from a thread that lives as long as it is wanted: a test's own, or main's.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::{ClusterError, wait_for};

/// Lines of a log that go into an error.
const TAIL_LINES: usize = 40;

/// How to start a process; the same each time.
#[derive(Debug, Clone)]
pub struct Launch {
    /// Short name for messages and the log file.
    pub name: String,
    pub program: PathBuf,
    pub args: Vec<String>,
    pub log: PathBuf,
}

/// A process that can be started, signalled and started again.
#[derive(Debug)]
pub struct Process {
    launch: Launch,
    child: Option<Child>,
    /// The process id for those who watch from other threads; 0 while it does not run.
    watched_pid: Arc<AtomicU32>,
}

impl Process {
    pub fn start(launch: Launch) -> Result<Self, ClusterError> {
        Self::start_watched(launch, Arc::default())
    }

    /// Starts a process and keeps its id in `pid`.
    pub fn start_watched(launch: Launch, pid: Arc<AtomicU32>) -> Result<Self, ClusterError> {
        let mut process = Self { launch, child: None, watched_pid: pid };
        process.start_again()?;
        Ok(process)
    }

    /// Starts the process as before. It must have ended.
    pub fn start_again(&mut self) -> Result<(), ClusterError> {
        assert!(self.child.is_none(), "{} is running", self.launch.name);
        let spawned = open_log(&self.launch.log).and_then(|log| {
            let mut command = Command::new(&self.launch.program);
            command.args(&self.launch.args).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
            // SAFETY: prctl with these arguments is async-signal-safe and touches no memory of the parent.
            unsafe {
                command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                    0 => Ok(()),
                    _ => Err(io::Error::last_os_error()),
                });
            }
            command.spawn()
        });
        let child =
            spawned.map_err(|source| ClusterError::Start { name: self.launch.name.clone(), source })?;
        self.watched_pid.store(child.id(), Ordering::Relaxed);
        self.child = Some(child);
        Ok(())
    }

    pub fn name(&self) -> &str {
        &self.launch.name
    }

    /// Process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Ends the process at once, as a crash would.
    pub fn kill(&mut self) {
        self.watched_pid.store(0, Ordering::Relaxed);
        if let Some(mut child) = self.child.take() {
            // Both fail only when the process has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Asks the process to stop and waits until it has.
    pub fn terminate(&mut self, within: Duration) -> Result<ExitStatus, ClusterError> {
        self.signal(libc::SIGTERM);
        self.wait_exit(within)
    }

    /// Waits until the process ends by itself.
    pub fn wait_exit(&mut self, within: Duration) -> Result<ExitStatus, ClusterError> {
        let child = self.child.as_mut().unwrap_or_else(|| panic!("{} is not running", self.launch.name));
        let what = format!("{} to end", self.launch.name);
        let status = wait_for(&what, within, || child.try_wait().ok().flatten())?;
        self.watched_pid.store(0, Ordering::Relaxed);
        self.child = None;
        Ok(status)
    }

    /// Stops the process in its tracks: connections stay open, nothing answers.
    pub fn freeze(&self) {
        self.signal(libc::SIGSTOP);
    }

    /// Asks the process to stop.
    pub fn ask_to_stop(&self) {
        self.signal(libc::SIGTERM);
    }

    /// Lets a frozen process go on.
    pub fn thaw(&self) {
        self.signal(libc::SIGCONT);
    }

    fn signal(&self, signal: i32) {
        if let Some(pid) = self.pid() {
            // SAFETY: a plain system call; the child is not reaped yet, so the id is still its own.
            unsafe { libc::kill(pid as libc::pid_t, signal) };
        }
    }

    /// The exit status when the process has ended without being asked to.
    pub fn died(&mut self) -> Option<ExitStatus> {
        self.child.as_mut().and_then(|child| child.try_wait().ok().flatten())
    }

    /// The whole log, of all starts.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.launch.log).unwrap_or_default()).into_owned()
    }

    /// The last lines of the log.
    pub fn log_tail(&self) -> String {
        tail(&self.launch.log)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "---- last lines of {} ({})\n{}",
                self.launch.name,
                self.launch.log.display(),
                self.log_tail()
            );
        }
        self.kill();
    }
}

fn open_log(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

fn tail(path: &Path) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::super::wait_until;
    use super::*;

    fn shell(dir: &Path, script: &str) -> Launch {
        let args = vec!["-c".to_string(), script.to_string()];
        Launch { name: "sh".into(), program: "/bin/sh".into(), args, log: dir.join("sh.log") }
    }

    #[test]
    fn a_killed_process_is_gone_and_can_start_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut process = Process::start(shell(dir.path(), "echo started; exec sleep 600")).unwrap();
        let starts = |process: &Process, count: usize| {
            let logged = || process.log_tail().lines().count() == count;
            wait_until("its line in the log", Duration::from_secs(10), logged).unwrap();
        };
        starts(&process, 1);
        let first = process.pid().unwrap();
        assert!(process.died().is_none());
        process.kill();
        assert!(!Path::new(&format!("/proc/{first}")).exists());
        process.start_again().unwrap();
        assert_ne!(process.pid(), Some(first));
        starts(&process, 2);
    }

    #[test]
    fn an_exit_is_noticed_with_its_status_and_last_words() {
        let dir = tempfile::tempdir().unwrap();
        let mut process = Process::start(shell(dir.path(), "echo no such luck >&2; exit 3")).unwrap();
        let status = process.wait_exit(Duration::from_secs(10)).unwrap();
        assert_eq!(status.code(), Some(3));
        assert_eq!(process.log_tail(), "no such luck");
    }

    #[test]
    fn a_process_that_does_not_stop_in_time_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let mut process =
            Process::start(shell(dir.path(), "trap '' TERM; while :; do sleep 600; done")).unwrap();
        assert!(process.wait_exit(Duration::from_millis(50)).is_err());
        assert!(process.pid().is_some(), "still ours to kill");
    }
}
