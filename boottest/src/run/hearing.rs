//! The thread that hears the consoles: bytes in, to the judge, the log and whoever else listens.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::guest::{Channel, CommandEvent};
use super::{CommandSink, LineSink, RunError};
use crate::console::{ConsoleLog, LineReader, LogTotals, Piece};
use crate::judge::{Input, Judge};
use crate::report::CommandOutput;

/// Bytes read at a time. As much as a stream holds, or less.
const READ_BYTES: usize = 64 << 10;
/// What is kept of each output of the guest's command.
const COMMAND_OUTPUT_BYTES: usize = 1 << 20;

/// What hears a stream of the guest's.
enum Listener {
    Console {
        name: String,
        reader: Box<LineReader>,
        /// When the line at hand began.
        began: Option<Duration>,
    },
    Channel(Channel),
}

/// Our end of a stream.
pub(super) struct Ear {
    stream: UnixStream,
    listener: Listener,
    input: VecDeque<u8>,
    open: bool,
}

impl Ear {
    pub(super) fn console(stream: UnixStream, name: String) -> Self {
        Self::new(
            stream,
            Listener::Console {
                name,
                reader: Box::default(),
                began: None,
            },
        )
    }

    pub(super) fn channel(stream: UnixStream, channel: Channel) -> Self {
        Self::new(stream, Listener::Channel(channel))
    }

    fn new(stream: UnixStream, listener: Listener) -> Self {
        Self {
            stream,
            listener,
            input: VecDeque::new(),
            open: true,
        }
    }

    /// Types what waits to be typed, as far as the guest's port takes it.
    fn type_input(&mut self) {
        while !self.input.is_empty() {
            match self.stream.write(self.input.as_slices().0) {
                Ok(len) => drop(self.input.drain(..len)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The guest is gone; the stream's end will tell.
                Err(_) => self.input.clear(),
            }
        }
    }
}

/// Where what is heard goes.
pub(super) struct Outlets {
    pub(super) log: Option<ConsoleLog>,
    pub(super) on_line: Option<LineSink>,
    pub(super) on_command_output: Option<CommandSink>,
}

impl Outlets {
    fn line(&mut self, time: Duration, line: &str) {
        if let Some(log) = &mut self.log {
            log.add(time, line);
        }
        if let Some(on_line) = &mut self.on_line {
            on_line(line);
        }
    }
}

/// What was heard.
pub(super) struct Heard {
    pub(super) judge: Judge,
    pub(super) totals: LogTotals,
    pub(super) console_bytes: u64,
    pub(super) command: CommandOutput,
    /// When the verdict was there, if it was before the guest's end.
    pub(super) decided: Option<Duration>,
    /// When the last byte came.
    pub(super) last_output: Option<Duration>,
}

pub(super) struct Hearing {
    ears: Vec<Ear>,
    outlets: Outlets,
    started: Instant,
    heard: Heard,
    buffer: Vec<u8>,
}

impl Hearing {
    pub(super) fn new(ears: Vec<Ear>, judge: Judge, outlets: Outlets, started: Instant) -> Self {
        Self {
            ears,
            outlets,
            started,
            heard: Heard {
                judge,
                totals: LogTotals::default(),
                console_bytes: 0,
                command: CommandOutput::default(),
                decided: None,
                last_output: None,
            },
            buffer: vec![0; READ_BYTES],
        }
    }

    /// Hears until all streams have ended. `stop` is called once, when there is a verdict.
    pub(super) fn run(mut self, stop: &dyn Fn()) -> Result<Heard, RunError> {
        for ear in &self.ears {
            let set = ear.stream.set_nonblocking(true);
            set.map_err(host("set up a socket"))?;
        }
        self.stop_if_decided(stop);
        while self.ears.iter().any(|ear| ear.open) {
            let ready = self.wait()?;
            for index in ready {
                self.hear(index)?;
            }
            self.type_inputs();
            let now = self.started.elapsed();
            self.heard.judge.tick(now);
            self.stop_if_decided(stop);
        }
        self.finish()
    }

    fn stop_if_decided(&mut self, stop: &dyn Fn()) {
        if self.heard.decided.is_none() && self.heard.judge.is_decided() {
            self.heard.decided = Some(self.started.elapsed());
            stop();
        }
    }

    /// Waits until there is something to hear or to type, or it is time for the judge; which ears there is something for.
    fn wait(&self) -> Result<Vec<usize>, RunError> {
        let deadline = self.heard.judge.deadline();
        let left = deadline.map(|deadline| deadline.saturating_sub(self.started.elapsed()));
        let timeout = left.map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        });
        let open: Vec<usize> = (0..self.ears.len())
            .filter(|index| self.ears[*index].open)
            .collect();
        let mut fds: Vec<PollFd<'_>> = open
            .iter()
            .map(|index| {
                let ear = &self.ears[*index];
                let typing = if ear.input.is_empty() {
                    PollFlags::empty()
                } else {
                    PollFlags::OUT
                };
                PollFd::from_borrowed_fd(ear.stream.as_fd(), PollFlags::IN | typing)
            })
            .collect();
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(host("wait for the consoles")(errno.into())),
        }
        let ready = open.iter().zip(&fds);
        Ok(ready
            .filter(|(_, fd)| !fd.revents().is_empty())
            .map(|(index, _)| *index)
            .collect())
    }

    fn hear(&mut self, index: usize) -> Result<(), RunError> {
        let ear = &mut self.ears[index];
        let len = match ear.stream.read(&mut self.buffer) {
            Ok(len) => len,
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => return Ok(()),
                // The other end is gone with input that nobody has read.
                io::ErrorKind::ConnectionReset => 0,
                _ => return Err(host("hear a console")(error)),
            },
        };
        let now = self.started.elapsed();
        if len == 0 {
            ear.open = false;
            ear.input.clear();
        } else {
            self.heard.last_output = Some(now);
        }
        let bytes = std::mem::take(&mut self.buffer);
        self.take(index, now, &bytes[..len]);
        self.buffer = bytes;
        Ok(())
    }

    /// Bytes of a stream; none at its end.
    fn take(&mut self, index: usize, now: Duration, bytes: &[u8]) {
        let several = self.ears.iter().filter(|ear| ear.is_console()).count() > 1;
        let (heard, outlets) = (&mut self.heard, &mut self.outlets);
        match &mut self.ears[index].listener {
            Listener::Console {
                name,
                reader,
                began,
            } => {
                heard.console_bytes += bytes.len() as u64;
                let mut sink = |piece: Piece<'_>| {
                    heard.judge.see(now, index, piece);
                    let began_at = *began.get_or_insert(now);
                    if let Piece::Complete(line) = piece {
                        *began = None;
                        if several {
                            outlets.line(began_at, &format!("{name}: {line}"));
                        } else {
                            outlets.line(began_at, line);
                        }
                    }
                };
                if bytes.is_empty() {
                    reader.finish(&mut sink);
                } else {
                    reader.feed(bytes, &mut sink);
                }
            }
            Listener::Channel(channel) => {
                for event in channel(bytes) {
                    match event {
                        CommandEvent::Started => heard.judge.command_started(now),
                        CommandEvent::Output { is_error, bytes } => {
                            heard.command.add(is_error, &bytes, COMMAND_OUTPUT_BYTES);
                            if let Some(on_output) = &mut outlets.on_command_output {
                                on_output(is_error, &bytes);
                            }
                        }
                        CommandEvent::Ended(end) => {
                            heard.command.end = Some(end.to_string());
                            heard.judge.command_ended(now, end);
                        }
                    }
                }
            }
        }
    }

    fn type_inputs(&mut self) {
        for Input { console, bytes } in self.heard.judge.take_inputs() {
            self.ears[console].input.extend(bytes);
        }
        for ear in &mut self.ears {
            ear.type_input();
        }
    }

    fn finish(mut self) -> Result<Heard, RunError> {
        if let Some(log) = self.outlets.log {
            self.heard.totals = log.finish().map_err(RunError::LogLost)?;
        }
        Ok(self.heard)
    }
}

impl Ear {
    fn is_console(&self) -> bool {
        matches!(self.listener, Listener::Console { .. })
    }
}

fn host(what: &'static str) -> impl Fn(io::Error) -> RunError {
    move |source| RunError::Host { what, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::{End, GuestEnd, Verdict};
    use crate::spec::{Asked, Span, StepSpec};
    use std::sync::atomic::{AtomicU32, Ordering};

    fn asked() -> Asked {
        Asked {
            timeout: Some(Span(Duration::from_secs(30))),
            ..Asked::default()
        }
    }

    fn hearing(asked: &Asked, ears: Vec<Ear>) -> Hearing {
        let judge = Judge::new(asked.criteria(false).unwrap(), Duration::ZERO);
        let outlets = Outlets {
            log: None,
            on_line: None,
            on_command_output: None,
        };
        Hearing::new(ears, judge, outlets, Instant::now())
    }

    #[test]
    fn a_dialogue_over_a_stream() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let step = |expect: &str, send: &str| StepSpec {
            expect: expect.into(),
            send: Some(send.into()),
        };
        let asked = Asked {
            steps: vec![step("login: ", "root\n"), step("# ", "poweroff\n")],
            end: Some(End::PowerOff),
            ..asked()
        };
        let hearing = hearing(&asked, vec![Ear::console(near, "ttyS0".into())]);
        let guest = std::thread::spawn(move || {
            let mut line = [0; 5];
            far.write_all(b"debian login: ").unwrap();
            far.read_exact(&mut line).unwrap();
            assert_eq!(&line, b"root\n");
            far.write_all(b"\r\n# ").unwrap();
            let mut line = [0; 9];
            far.read_exact(&mut line).unwrap();
            assert_eq!(&line, b"poweroff\n");
        });
        let mut heard = hearing.run(&|| {}).unwrap();
        guest.join().unwrap();
        heard.judge.guest_ended(&GuestEnd::PoweredOff);
        assert_eq!(heard.judge.into_verdict().0, Verdict::Passed);
    }

    #[test]
    fn the_machine_is_stopped_once_when_there_is_a_verdict() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let asked = Asked {
            expect: vec!["up".into()],
            ..asked()
        };
        let stops = AtomicU32::new(0);
        far.write_all(b"it is up\nand on\n").unwrap();
        let far = std::sync::Mutex::new(Some(far));
        let heard = hearing(&asked, vec![Ear::console(near, "ttyS0".into())]).run(&|| {
            stops.fetch_add(1, Ordering::SeqCst);
            // As the machine does when it is stopped.
            drop(far.lock().unwrap().take());
        });
        let heard = heard.unwrap();
        assert_eq!(stops.load(Ordering::SeqCst), 1);
        assert!(heard.decided.is_some() && heard.last_output.is_some());
        assert_eq!(heard.console_bytes, 16);
    }

    #[test]
    fn silence_ends_the_run() {
        let (near, far) = UnixStream::pair().unwrap();
        let asked = Asked {
            quiet_timeout: Some(Span(Duration::from_millis(20))),
            ..asked()
        };
        let far = std::sync::Mutex::new(Some(far));
        let hearing = hearing(&asked, vec![Ear::console(near, "ttyS0".into())]);
        let heard = hearing.run(&|| drop(far.lock().unwrap().take())).unwrap();
        assert_eq!(heard.judge.into_verdict().0.exit_code(), 21);
    }

    #[test]
    fn a_command_is_heard_by_its_channel() {
        let (near, mut far) = UnixStream::pair().unwrap();
        far.write_all(b"7").unwrap();
        drop(far);
        let channel: Channel = Box::new(|bytes| match bytes {
            [] => vec![],
            [status, ..] => vec![
                CommandEvent::Output {
                    is_error: false,
                    bytes: b"out".to_vec(),
                },
                CommandEvent::Ended(crate::judge::CommandEnd::Exited(status - b'0')),
            ],
        });
        let judge = Judge::new(asked().criteria(true).unwrap(), Duration::ZERO);
        let outlets = Outlets {
            log: None,
            on_line: None,
            on_command_output: None,
        };
        let ears = vec![Ear::channel(near, channel)];
        let heard = Hearing::new(ears, judge, outlets, Instant::now()).run(&|| {});
        let heard = heard.unwrap();
        assert_eq!(heard.command.stdout, "out");
        assert_eq!(heard.judge.into_verdict().0.exit_code(), 23);
    }
}
