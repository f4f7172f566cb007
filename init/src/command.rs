//! The command: what it is given, what it writes, how it ends.
#![allow(unsafe_code)]

use std::fs::{self, Permissions};
use std::io::{self, ErrorKind, PipeReader, Read, pipe};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, WaitStatus, wait};
use signal_hook::consts::SIGCHLD;
use tripath_init::config::GuestCommand;
use tripath_init::protocol::{MAX_PAYLOAD_BYTES, Message, Stream, push_output};

use crate::channel::Channel;
use crate::error::{InitError, io as failed};

const SHELL: &str = "/bin/sh";

const ENVIRONMENT: [(&str, &str); 7] = [
    (
        "PATH",
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    ),
    ("HOME", "/root"),
    ("USER", "root"),
    ("LOGNAME", "root"),
    ("SHELL", SHELL),
    ("TERM", "dumb"),
    ("LANG", "C.UTF-8"),
];

/// What is executed.
pub struct Program {
    path: String,
    arguments: Vec<String>,
    /// Of a script: what its first line asks for.
    interpreter: Option<String>,
}

impl Program {
    /// Prepares it; a script is put into a file.
    pub fn new(command: &GuestCommand, script: &[u8]) -> Result<Self, InitError> {
        match command {
            GuestCommand::Shell(text) => Ok(Self {
                path: SHELL.to_owned(),
                arguments: vec!["-c".to_owned(), text.clone()],
                interpreter: None,
            }),
            GuestCommand::Script(name) => Self::of_script(name, script),
        }
    }

    fn of_script(name: &str, content: &[u8]) -> Result<Self, InitError> {
        let folder = "/run/tripath";
        let path = format!("{folder}/{name}");
        fs::create_dir_all(folder).map_err(failed("make", folder))?;
        fs::write(&path, content).map_err(failed("write", &path))?;
        fs::set_permissions(&path, Permissions::from_mode(0o755))
            .map_err(failed("make executable", &path))?;
        // As a shell does with what the kernel cannot execute.
        if !content.starts_with(b"#!") && !content.starts_with(b"\x7fELF") {
            return Ok(Self {
                path: SHELL.to_owned(),
                arguments: vec![path],
                interpreter: None,
            });
        }
        Ok(Self {
            path,
            arguments: Vec::new(),
            interpreter: interpreter(content),
        })
    }

    fn cannot_start(&self, error: io::Error) -> InitError {
        let is_missing = |path: &String| !Path::new(path).exists();
        if error.kind() == ErrorKind::NotFound {
            if let Some(interpreter) = self.interpreter.as_ref().filter(|path| is_missing(path)) {
                return InitError::NoInterpreter {
                    interpreter: interpreter.clone(),
                    script: self.path.clone(),
                };
            }
            if is_missing(&self.path) {
                return InitError::NoProgram(self.path.clone());
            }
        }
        failed("execute", &self.path)(error)
    }
}

/// What the first line of a script asks for.
fn interpreter(script: &[u8]) -> Option<String> {
    let line = script
        .strip_prefix(b"#!")?
        .split(|&byte| byte == b'\n')
        .next()?;
    let line = String::from_utf8_lossy(line);
    Some(line.split_whitespace().next()?.to_owned())
}

/// Runs it to its end. Then every other process is ended, and what they have all written is out.
pub fn run(program: &Program, channel: &Channel) -> Result<Message, InitError> {
    let (mut child_ends, child_ended) = UnixStream::pair().map_err(failed("make", "a socket"))?;
    child_ends
        .set_nonblocking(true)
        .map_err(failed("set up", "a socket"))?;
    signal_hook::low_level::pipe::register(SIGCHLD, child_ended)
        .map_err(failed("watch", "processes"))?;

    let (stdout, stdout_writer) = pipe().map_err(failed("make", "a pipe"))?;
    let (stderr, stderr_writer) = pipe().map_err(failed("make", "a pipe"))?;
    let mut command = Command::new(&program.path);
    command
        .args(&program.arguments)
        .env_clear()
        .envs(ENVIRONMENT)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(stdout_writer)
        .stderr(stderr_writer);
    let child = command
        .spawn()
        .map_err(|error| program.cannot_start(error))?;
    // It holds the writing ends, too.
    drop(command);
    let child = Pid::from_child(&child);
    let lost = |error| failed("write to", "the channel")(error);
    channel.send(&Message::Started).map_err(lost)?;

    let mut outputs = Outputs::new(stdout, stderr);
    let mut end = None;
    loop {
        if let Some(end) = end.take_if(|_| !outputs.are_open()) {
            return Ok(end);
        }
        outputs.wait_also_for(&child_ends);
        outputs.forward(channel).map_err(lost)?;
        // A byte for each signal; several processes may have ended for one.
        while matches!(child_ends.read(&mut [0; 64]), Ok(1..)) {}
        if let Some(ended) = reap(child) {
            end = Some(ended);
            // Whoever is left may hold the pipes open for ever.
            end_all_others();
        }
    }
}

/// Reaps what has ended, as the first process has to. How `child` ended, if it has.
fn reap(child: Pid) -> Option<Message> {
    let mut end = None;
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        if pid == child {
            end = ended(status);
        }
    }
    end
}

fn ended(status: WaitStatus) -> Option<Message> {
    let byte = |number: i32| u8::try_from(number).unwrap_or(u8::MAX);
    if let Some(code) = status.exit_status() {
        return Some(Message::Exited { code: byte(code) });
    }
    let signal = byte(status.terminating_signal()?);
    Some(Message::Signalled { signal })
}

fn end_all_others() {
    // SAFETY: no memory is involved. The first process is not among those that -1 stands for.
    unsafe { libc::kill(-1, libc::SIGKILL) };
}

/// The two pipes, each gone once nobody can write to it.
struct Outputs {
    pipes: [(Stream, Option<PipeReader>); 2],
    buffer: Vec<u8>,
    frames: Vec<u8>,
}

impl Outputs {
    fn new(stdout: PipeReader, stderr: PipeReader) -> Self {
        Self {
            pipes: [
                (Stream::Stdout, Some(stdout)),
                (Stream::Stderr, Some(stderr)),
            ],
            buffer: vec![0; MAX_PAYLOAD_BYTES],
            frames: Vec::new(),
        }
    }

    fn are_open(&self) -> bool {
        self.pipes.iter().any(|(_, pipe)| pipe.is_some())
    }

    /// Waits until there is output, or `other` can be read.
    fn wait_also_for(&self, other: &impl AsFd) {
        let mut fds = vec![PollFd::new(other, PollFlags::IN)];
        let pipes = self.pipes.iter().filter_map(|(_, pipe)| pipe.as_ref());
        fds.extend(pipes.map(|pipe| PollFd::new(pipe, PollFlags::IN)));
        // An error would be EINTR, with a signal that is seen afterwards.
        let _ = poll(&mut fds, None);
    }

    /// Sends what there is, at most one buffer of each.
    fn forward(&mut self, channel: &Channel) -> io::Result<()> {
        for (stream, slot) in &mut self.pipes {
            let Some(pipe) = slot.as_mut().filter(|pipe| is_readable(pipe)) else {
                continue;
            };
            match pipe.read(&mut self.buffer) {
                Ok(0) => *slot = None,
                Ok(len) => {
                    self.frames.clear();
                    push_output(&mut self.frames, *stream, &self.buffer[..len]);
                    channel.write(&self.frames)?;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Whether reading would give something now, or the end.
fn is_readable(pipe: &PipeReader) -> bool {
    let mut fds = [PollFd::new(pipe, PollFlags::IN)];
    let now = rustix::event::Timespec::default();
    loop {
        match poll(&mut fds, Some(&now)) {
            Err(Errno::INTR) => {}
            ready => return ready.is_ok_and(|ready| ready > 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::waitpid;

    #[test]
    fn a_scripts_first_line_names_its_interpreter() {
        let name = |script: &[u8]| interpreter(script);
        assert_eq!(name(b"#!/bin/sh\nexit 7\n").unwrap(), "/bin/sh");
        assert_eq!(name(b"#! /usr/bin/env python3 -u").unwrap(), "/usr/bin/env");
        for script in [&b"exit 7\n"[..], b"#!\n/bin/sh", b"#! ", b""] {
            assert_eq!(name(script), None);
        }
    }

    #[test]
    fn a_process_ends_with_a_code_or_by_a_signal() {
        let message = |script: &str| {
            let child = Command::new("/bin/sh").args(["-c", script]).spawn();
            let child = Pid::from_child(&child.unwrap());
            let waited = waitpid(Some(child), WaitOptions::empty()).unwrap();
            ended(waited.unwrap().1)
        };
        for code in [0, 7, 255] {
            let exited = Message::Exited { code };
            assert_eq!(message(&format!("exit {code}")), Some(exited));
        }
        for signal in [9, 15] {
            let signalled = Message::Signalled { signal };
            assert_eq!(message(&format!("kill -{signal} $$")), Some(signalled));
        }
    }
}
