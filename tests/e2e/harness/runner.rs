//! Runs one test as a process of its own, with a time limit. Used on the host and by the agent in L1 alike.

use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Signal, kill_process_group};
use serde::{Deserialize, Serialize};

use super::{E2eTest, sys};

/// The line before a failed test's reason.
pub const FAILURE_MARK: &str = "--- the test failed:";

/// What the VMM says of a guest that had one, whether that is its end or the guest starts again.
pub const TRIPLE_FAULT: &str = "triple fault on vCPU";

/// How a test ended.
#[derive(Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// Why it failed, if it did.
    pub failure: Option<String>,
    /// All that the test and its VMMs said, shortened in the middle if it is very long.
    pub log: String,
}

impl Outcome {
    /// Whether it failed by what an emulated L1 may have done to the guest.
    pub fn may_be_tcgs(&self) -> bool {
        self.failure.is_some() && self.log.contains(TRIPLE_FAULT)
    }

    fn failed(reason: String, log: String) -> Self {
        Outcome {
            failure: Some(reason),
            log,
        }
    }
}

/// Runs `test` in a process of its own.
pub fn run(test: &E2eTest) -> Outcome {
    start_and_wait(&test.name, test.limit).unwrap_or_else(|error| {
        Outcome::failed(format!("cannot run the test: {error}"), String::new())
    })
}

fn start_and_wait(name: &str, limit: Duration) -> io::Result<Outcome> {
    let (mut output, writer) = io::pipe()?;
    let mut command = Command::new("/proc/self/exe");
    command
        .args(["--in-place", name])
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .process_group(0);
    sys::die_with_parent(&mut command, Signal::KILL);
    let mut child = command.spawn()?;
    // The command holds the pipe's other end, which would keep the log from ever ending.
    drop(command);
    let reader = std::thread::spawn(move || {
        let mut log = BoundedLog::default();
        let mut buffer = vec![0; 1 << 16];
        while let Ok(count @ 1..) = output.read(&mut buffer) {
            log.push(&buffer[..count]);
        }
        log.into_text()
    });
    let pid = sys::pid_of(&child)?;
    let in_time = sys::wait_ended(pid, limit)?;
    // Also when it ended by itself: what it started must not live on.
    let _ = kill_process_group(pid, Signal::KILL);
    let status = child.wait()?;
    let log = reader.join().unwrap_or_default();
    Ok(if !in_time {
        Outcome::failed(format!("not done within {} s", limit.as_secs()), log)
    } else if status.success() {
        Outcome { failure: None, log }
    } else {
        let reason = log.rsplit_once(FAILURE_MARK).map_or_else(
            || format!("ended with {status}"),
            |(_, reason)| reason.trim().to_owned(),
        );
        Outcome::failed(reason, log)
    })
}

/// Keeps the beginning and the end of a log of any length.
#[derive(Default)]
struct BoundedLog {
    head: Vec<u8>,
    tail: Vec<u8>,
    dropped_bytes: usize,
}

impl BoundedLog {
    const HEAD_BYTES: usize = 1 << 16;
    const TAIL_BYTES: usize = 1 << 18;

    fn push(&mut self, bytes: &[u8]) {
        let to_head = bytes.len().min(Self::HEAD_BYTES - self.head.len());
        self.head.extend(&bytes[..to_head]);
        self.tail.extend(&bytes[to_head..]);
        // Cut seldom, so that it costs little.
        if self.tail.len() > 2 * Self::TAIL_BYTES {
            let cut = self.tail.len() - Self::TAIL_BYTES;
            self.tail.drain(..cut);
            self.dropped_bytes += cut;
        }
    }

    fn into_text(self) -> String {
        let mut text = String::from_utf8_lossy(&self.head).into_owned();
        if self.dropped_bytes > 0 {
            text += &format!("\n--- {} bytes left out\n", self.dropped_bytes);
        }
        text + &String::from_utf8_lossy(&self.tail)
    }
}
