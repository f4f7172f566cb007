//! Runs one test as a process of its own, with a time limit. Used on the host and by the agent in L1 alike.

use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Signal, kill_process_group};
use serde::{Deserialize, Serialize};

use super::host::in_emulated_l1;
use super::{E2eTest, paths, sys};

/// The line before a failed test's reason.
pub const FAILURE_MARK: &str = "--- the test failed:";

/// How a guest dies of an interrupt that QEMU delivers twice, see `tests/testbed/l1`. The second comes although the
/// guest has disabled interrupts: on entry to a system call it finds the user's stack, at the start of a handler the
/// user's GS. The VMM tells of a triple fault, whether that is the guest's end or it starts again; the guest's kernel of
/// a double fault, or of a stack that was filled by page faults in page faults.
const DOUBLE_DELIVERY: [&str; 3] = [
    "triple fault on vCPU",
    "PANIC: double fault",
    "stack guard page was hit",
];

/// Whether this text, of a VMM and its guest in an emulated L1, may be of a guest that died of that.
pub fn tells_of_double_delivery(text: &str) -> bool {
    in_emulated_l1() && DOUBLE_DELIVERY.iter().any(|mark| text.contains(mark))
}

/// How a test ended.
#[derive(Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// Why it failed, if it did.
    pub failure: Option<String>,
    /// All that the test and its VMMs said, shortened in the middle if it is very long.
    pub log: String,
    /// It failed, maybe by what an emulated L1 has done to its guest.
    pub may_be_l1s: bool,
}

impl Outcome {
    fn passed(log: String) -> Self {
        Outcome {
            failure: None,
            log,
            may_be_l1s: false,
        }
    }

    /// Not by L1.
    pub fn failed(reason: String, log: String) -> Self {
        Outcome {
            failure: Some(reason),
            log,
            may_be_l1s: false,
        }
    }

    /// Writes the log to a file named after the test, and says how that went.
    pub fn keep_log(&self, test: &str) -> String {
        let path = log_of(test);
        let end = self.failure.as_deref().unwrap_or("passed");
        match std::fs::write(&path, format!("{}\n--- {end}\n", self.log)) {
            Ok(()) => format!("whole log: {}", path.display()),
            Err(error) => format!("the log could not be kept: {error}"),
        }
    }
}

/// Where the log of the test with that name is kept.
pub fn log_of(test: &str) -> PathBuf {
    paths::logs().join(format!("{}.log", test.replace("::", ".")))
}

/// Runs `test` in a process of its own.
pub fn run(test: &E2eTest) -> Outcome {
    let ended = start_and_wait(&test.name, test.limit);
    let mut outcome = ended.unwrap_or_else(|error| {
        Outcome::failed(format!("cannot run the test: {error}"), String::new())
    });
    outcome.may_be_l1s =
        outcome.failure.is_some() && !test.triple_faults && tells_of_double_delivery(&outcome.log);
    outcome
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
        Outcome::passed(log)
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
