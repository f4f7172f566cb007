//! A child process that is spoken to in lines of JSON, and that does not outlive us.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, FdFlags, fcntl_getfd, fcntl_setfd};
use rustix::process::{
    Pid, PidfdFlags, Signal, getpid, getppid, kill_process, pidfd_open,
    set_parent_process_death_signal,
};
use rustix::thread::{CpuSet, UnshareFlags, sched_setaffinity, unshare_unsafe};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// How long a child has to end by itself once its input is closed.
const FAREWELL: Duration = Duration::from_secs(2);
/// The longest line that is taken, in bytes: an answer with its histogram is some ten thousand.
const MAX_LINE_BYTES: usize = 4 << 20;

/// Told from outside that all is to end. It stays so.
#[derive(Debug)]
pub struct Interrupt(UnixStream);

impl Interrupt {
    /// Raised when there is something to read from `stream`, which nobody else reads.
    #[must_use]
    pub fn new(stream: UnixStream) -> Self {
        Self(stream)
    }

    /// Whether it is raised.
    #[must_use]
    pub fn is_raised(&self) -> bool {
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        matches!(poll(&mut fds, Some(&Timespec::default())), Ok(1..))
    }
}

/// How a child is started.
#[derive(Debug, Default)]
pub struct Start<'a> {
    /// Files that it gets under the same numbers.
    pub inherited: Vec<BorrowedFd<'a>>,
    /// Host CPUs it may run on; all of ours if empty.
    pub cpus: Vec<u32>,
    /// The signal it gets when the thread that started it ends; SIGKILL if none.
    pub at_our_death: Option<Signal>,
    /// It begins in a network of its own, in which there is nothing.
    pub own_network: bool,
    /// Files `cgroup.procs`, open for writing, of the control groups that it begins in.
    pub groups: Vec<BorrowedFd<'a>>,
    /// How long it has to end at the end; two seconds if none.
    pub farewell: Option<Duration>,
}

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum TalkError {
    /// It could not be started.
    #[error("{name} cannot be started: {source}")]
    Start {
        /// What.
        name: String,
        /// What the host said.
        source: io::Error,
    },
    /// It has ended.
    #[error("{name} has ended{}", last(.said))]
    Ended {
        /// What.
        name: String,
        /// Its last words.
        said: Option<String>,
    },
    /// It says nothing.
    #[error("{name} does not answer within {} s{}", limit.as_secs(), last(.said))]
    Silent {
        /// What.
        name: String,
        /// How long it had.
        limit: Duration,
        /// Its last words.
        said: Option<String>,
    },
    /// It says what makes no sense.
    #[error("{name} says what is not understood: {line:?}")]
    Malformed {
        /// What.
        name: String,
        /// The beginning of what it said.
        line: String,
    },
    /// [`Interrupt`] is raised.
    #[error("interrupted")]
    Interrupted,
}

fn last(words: &Option<String>) -> String {
    words
        .as_ref()
        .map(|words| format!(": {words}"))
        .unwrap_or_default()
}

/// A child process. Dropping it closes its input, and kills it if it does not end then.
#[derive(Debug)]
pub struct Talk {
    name: String,
    child: Child,
    input: Option<ChildStdin>,
    output: ChildStdout,
    /// What it writes to its standard error.
    errors: File,
    buffer: Vec<u8>,
    farewell: Duration,
}

impl Talk {
    /// Starts `command`, which is called `name` in errors. The calling thread must live as long as the child is to.
    ///
    /// # Errors
    /// [`TalkError::Start`].
    pub fn start(name: &str, mut command: Command, start: &Start<'_>) -> Result<Self, TalkError> {
        let failed = |source| TalkError::Start {
            name: name.to_owned(),
            source,
        };
        let errors = tempfile::tempfile().map_err(failed)?;
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors.try_clone().map_err(failed)?)
            // Ctrl-C is for us, who end it in order.
            .process_group(0);
        prepare(&mut command, start);
        let mut child = command.spawn().map_err(failed)?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(failed(io::ErrorKind::BrokenPipe.into()));
        };
        Ok(Self {
            name: name.to_owned(),
            child,
            input: Some(input),
            output,
            errors,
            buffer: Vec::new(),
            farewell: start.farewell.unwrap_or(FAREWELL),
        })
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Says one line.
    ///
    /// # Errors
    /// [`TalkError::Ended`].
    pub fn send(&mut self, message: &impl Serialize) -> Result<(), TalkError> {
        let written = serde_json::to_vec(message)
            .map_err(io::Error::other)
            .and_then(|mut line| {
                line.push(b'\n');
                let input = self.input.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
                input.write_all(&line)
            });
        written.map_err(|_| self.ended())
    }

    /// Waits for one line.
    ///
    /// # Errors
    /// [`TalkError`].
    pub fn receive<T: DeserializeOwned>(
        &mut self,
        limit: Duration,
        interrupt: &Interrupt,
    ) -> Result<T, TalkError> {
        let deadline = Instant::now() + limit;
        let mut searched = 0;
        loop {
            if let Some(end) = self.buffer[searched..]
                .iter()
                .position(|&byte| byte == b'\n')
            {
                let line: Vec<u8> = self.buffer.drain(..=searched + end).collect();
                return serde_json::from_slice(&line).map_err(|_| self.malformed(&line));
            }
            searched = self.buffer.len();
            if searched > MAX_LINE_BYTES {
                return Err(self.malformed(&self.buffer));
            }
            if interrupt.is_raised() {
                return Err(TalkError::Interrupted);
            }
            match wait(self.output.as_fd(), interrupt, deadline) {
                Ok(true) => {}
                Ok(false) if Instant::now() < deadline => continue,
                _ => {
                    return Err(TalkError::Silent {
                        name: self.name.clone(),
                        limit,
                        said: self.last_words(),
                    });
                }
            }
            let mut piece = [0; 1 << 14];
            match self.output.read(&mut piece) {
                Ok(len @ 1..) => self.buffer.extend(&piece[..len]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => return Err(self.ended()),
            }
        }
    }

    fn malformed(&self, line: &[u8]) -> TalkError {
        let line = String::from_utf8_lossy(line);
        TalkError::Malformed {
            name: self.name.clone(),
            line: line.trim_end().chars().take(200).collect(),
        }
    }

    fn ended(&self) -> TalkError {
        TalkError::Ended {
            name: self.name.clone(),
            said: self.last_words(),
        }
    }

    /// The last line on its standard error.
    fn last_words(&self) -> Option<String> {
        const TAIL_BYTES: u64 = 4096;
        let mut file = &self.errors;
        let len = file.metadata().ok()?.len();
        let mut text = Vec::new();
        // The offset is shared with the child, which has said all by now or is about to be killed.
        file.seek(SeekFrom::Start(len.saturating_sub(TAIL_BYTES)))
            .ok()?;
        file.take(TAIL_BYTES).read_to_end(&mut text).ok()?;
        let text = String::from_utf8_lossy(&text);
        let line = text.lines().rfind(|line| !line.trim().is_empty())?;
        Some(line.to_owned())
    }

    /// Closes its input and waits for its end; kills it if that takes too long.
    pub fn end(&mut self) {
        drop(self.input.take());
        if !ends_within(&self.child, self.farewell) {
            // It may have ended meanwhile.
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        self.end();
    }
}

/// What the child does before it becomes `command`.
fn prepare(command: &mut Command, start: &Start<'_>) {
    let inherited: Vec<RawFd> = start.inherited.iter().map(|fd| fd.as_raw_fd()).collect();
    let mut cpus = CpuSet::new();
    for cpu in &start.cpus {
        cpus.set(*cpu as usize);
    }
    let (pinned, own_network) = (!start.cpus.is_empty(), start.own_network);
    let signal = start.at_our_death.unwrap_or(Signal::KILL);
    let groups: Vec<RawFd> = start.groups.iter().map(|fd| fd.as_raw_fd()).collect();
    let us = getpid();
    let set_up = move || -> io::Result<()> {
        set_parent_process_death_signal(Some(signal))?;
        if getppid() != Some(us) {
            // We were killed before the line above.
            let _ = kill_process(getpid(), Signal::KILL);
        }
        if pinned {
            sched_setaffinity(None, &cpus)?;
        }
        for &number in &groups {
            // SAFETY: the caller of `Talk::start` holds the files until the child was started.
            let fd = unsafe { BorrowedFd::borrow_raw(number) };
            // "0" is who writes it.
            rustix::io::write(fd, b"0")?;
        }
        if own_network {
            // SAFETY: there is but this thread, and nothing of its network is in use.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
        }
        for &number in &inherited {
            // SAFETY: the caller of `Talk::start` holds the files until the child was started.
            let fd = unsafe { BorrowedFd::borrow_raw(number) };
            let flags = fcntl_getfd(fd)?;
            fcntl_setfd(fd, flags & !FdFlags::CLOEXEC)?;
        }
        Ok(())
    };
    // SAFETY: only system calls are made, nothing is allocated and no lock is taken.
    unsafe { command.pre_exec(set_up) };
}

/// Waits until `output` can be read; false when something else was up, or it is time.
fn wait(output: BorrowedFd<'_>, interrupt: &Interrupt, deadline: Instant) -> io::Result<bool> {
    let left = deadline.saturating_duration_since(Instant::now());
    let mut fds = [
        PollFd::new(&output, PollFlags::IN),
        PollFd::new(&interrupt.0, PollFlags::IN),
    ];
    match poll(&mut fds, Some(&timespec(left))) {
        Ok(_) => Ok(!fds[0].revents().is_empty()),
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn timespec(time: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: time.subsec_nanos().into(),
    }
}

/// Whether a process ends in time.
fn ends_within(child: &Child, limit: Duration) -> bool {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let Some(process) = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else {
        return false;
    };
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::new(&process, PollFlags::IN)];
        match poll(&mut fds, Some(&timespec(left))) {
            Err(Errno::INTR) => {}
            ended => return matches!(ended, Ok(1..)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, start: &Start<'_>) -> Talk {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        Talk::start("the shell", command, start).unwrap()
    }

    /// Never raised while the second value lives.
    fn quiet() -> (Interrupt, UnixStream) {
        let (near, far) = UnixStream::pair().unwrap();
        (Interrupt::new(near), far)
    }

    const LIMIT: Duration = Duration::from_secs(20);

    #[test]
    fn a_line_is_answered_by_a_line() {
        let (interrupt, _far) = quiet();
        let mut talk = shell(
            "while read line; do echo \"[$line,\"; echo 2; done",
            &Start::default(),
        );
        talk.send(&1).unwrap();
        let error = talk.receive::<Vec<u32>>(LIMIT, &interrupt).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the shell says what is not understood: \"[1,\""
        );
        assert_eq!(talk.receive::<u32>(LIMIT, &interrupt).unwrap(), 2);
    }

    #[test]
    fn an_end_is_told_with_the_last_words() {
        let (interrupt, _far) = quiet();
        let mut talk = shell(
            "echo first >&2; echo no disk >&2; exit 3",
            &Start::default(),
        );
        let error = talk.receive::<u32>(LIMIT, &interrupt).unwrap_err();
        assert_eq!(error.to_string(), "the shell has ended: no disk");
    }

    #[test]
    fn an_interrupt_ends_the_wait_and_stays() {
        let (interrupt, mut far) = quiet();
        let mut talk = shell("read line", &Start::default());
        assert!(!interrupt.is_raised());
        far.write_all(b"x").unwrap();
        for _ in 0..2 {
            let error = talk.receive::<u32>(LIMIT, &interrupt).unwrap_err();
            assert!(matches!(error, TalkError::Interrupted), "{error}");
        }
    }

    #[test]
    fn silence_has_a_limit() {
        let (interrupt, _far) = quiet();
        let mut talk = shell("read line", &Start::default());
        let error = talk.receive::<u32>(Duration::from_millis(5), &interrupt);
        assert!(matches!(error, Err(TalkError::Silent { .. })));
    }

    #[test]
    fn a_file_is_inherited_under_its_number() {
        let (interrupt, _far) = quiet();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"42\n").unwrap();
        let start = Start {
            inherited: vec![file.as_fd()],
            ..Start::default()
        };
        let script = format!("cat /proc/self/fd/{}", file.as_raw_fd());
        let answer = shell(&script, &start).receive::<u32>(LIMIT, &interrupt);
        assert_eq!(answer.unwrap(), 42);
        let answer = shell(&script, &Start::default()).receive::<u32>(LIMIT, &interrupt);
        assert!(answer.is_err());
    }

    #[test]
    fn what_does_not_end_is_killed() {
        let start = Start {
            farewell: Some(Duration::from_millis(5)),
            ..Start::default()
        };
        let mut talk = shell("trap '' TERM; while true; do sleep 1000; done", &start);
        talk.end();
        assert!(talk.child.try_wait().unwrap().is_some());
    }
}
