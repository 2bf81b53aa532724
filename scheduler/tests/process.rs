//! The `scheduler` program: its flags, its messages, and how it stops.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(20);

fn scheduler() -> Command {
    Command::new(env!("CARGO_BIN_EXE_scheduler"))
}

fn run(args: &[&str]) -> Output {
    scheduler().args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A process that does not outlive the test.
struct Process {
    child: Child,
    lines: Receiver<String>,
}

impl Process {
    fn start(data_dir: &str) -> Process {
        Process::start_with(&["--data-dir", data_dir])
    }

    fn start_with(args: &[&str]) -> Process {
        let mut command = scheduler();
        command.args(["--client-urls", "http://127.0.0.1:0", "--log-format", "json"]).args(args);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let stderr = child.stderr.take().unwrap();
        let (sender, lines) = sync_channel(1000);
        std::thread::spawn(move || {
            BufReader::new(stderr).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Process { child, lines }
    }

    /// The first log line with this message.
    fn line(&self, message: &str) -> serde_json::Value {
        loop {
            let line = self.lines.recv_timeout(DEADLINE).unwrap_or_else(|e| panic!("no {message:?}: {e}"));
            let value: serde_json::Value = serde_json::from_str(&line).unwrap();
            if value["fields"]["message"] == message {
                return value;
            }
        }
    }

    fn terminate(&mut self) -> ExitStatus {
        self.signal_to_stop();
        self.line("scheduler stopped");
        self.child.wait().unwrap()
    }

    /// Stops a process that never served.
    fn stop(&mut self) -> ExitStatus {
        self.signal_to_stop();
        self.child.wait().unwrap()
    }

    fn signal_to_stop(&self) {
        let pid = libc::pid_t::try_from(self.child.id()).unwrap();
        // SAFETY: kill has no memory effects, and the pid is that of a child that was not waited for yet.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ended = self.child.kill().is_err();
        let _reaped = self.child.wait().is_err();
    }
}

#[test]
fn the_effective_configuration_is_printed_with_flags_over_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("scheduler.toml");
    std::fs::write(&file, "name = 'from-file'\n[replication]\nmax-replicas = 5\n").unwrap();
    let file = file.to_str().unwrap();
    let output = run(&["--config", file, "--name", "from-flag", "--print-config"]);
    let printed = text(&output.stdout);
    assert!(printed.contains("name = \"from-flag\"") && printed.contains("max-replicas = 5"), "{printed}");

    std::fs::write(file, "[schedule]\nmax-store-downtime = '1h'\n").unwrap();
    let output = run(&["--config", file]);
    assert!(!output.status.success());
    let message = text(&output.stderr);
    assert!(
        message
            .contains("unknown key schedule.max-store-downtime; did you mean schedule.max-store-down-time?")
    );
}

#[test]
fn a_second_process_on_the_same_data_is_refused_and_sigterm_stops_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().to_str().unwrap();
    let mut first = Process::start(data_dir);
    let served = first.line("scheduler serves");
    let second = run(&["--client-urls", "http://127.0.0.1:0", "--data-dir", data_dir]);
    assert!(!second.status.success());
    let message = text(&second.stderr);
    assert!(message.contains("is in use by another scheduler"), "{message}");
    assert!(first.terminate().success());

    let mut again = Process::start(data_dir);
    assert_eq!(again.line("scheduler serves")["fields"]["cluster_id"], served["fields"]["cluster_id"]);
    assert!(again.terminate().success());
}

#[test]
fn a_start_without_etcd_says_what_it_waits_for_and_can_be_stopped() {
    // A port that nobody listens on, and nobody gets while it is bound here.
    let unused = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let url = format!("etcd://{}", unused.local_addr().unwrap());
    let mut waiting = Process::start_with(&["--metadata", &url]);
    let line = waiting.line("waiting for etcd");
    let error = line["fields"]["error"].as_str().unwrap();
    assert!(error.contains("etcd cannot be reached") && error.contains("check that most of its members run"));
    assert!(waiting.stop().success());

    let output = run(&["--metadata", "consul://a:1"]);
    assert!(!output.status.success());
    let message = text(&output.stderr);
    assert!(message.contains("write etcd://HOST:PORT"), "{message}");
}
