//! The conversation with the benchmark. Each load has a thread of its own, so that one that hangs does not silence the
//! program.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use tripath_load::spec::{Answer, Latency, LoadCpu, LoadResult, LoadSpec, Request};

use crate::address;
use crate::cpu;
use crate::error::{LoadError, io as failed};
use crate::interrupts;
use crate::isolate::{Isolation, sandbox};
use crate::lines::{Lines, send};
use crate::loads;
use crate::terminal;

/// How much longer than it is told a load may take, with all that is slow: a connection, a flush, an emulated machine.
const GRACE: Duration = Duration::from_secs(60);

/// How loads are run here.
#[derive(Clone, Copy)]
struct Terms {
    /// [`GRACE`].
    grace: Duration,
    /// The kernel is there for the load alone: its interrupts are the load's.
    own_kernel: bool,
}

/// Talks until it is told to end, or the other side has.
pub fn run(terminal: Option<&str>, isolation: Isolation) -> Result<(), LoadError> {
    if isolation == Isolation::InContainer {
        crate::isolate::container::finish()?;
    }
    let (reader, writer) = channel_files(terminal)?;
    if isolation == Isolation::Sandbox {
        sandbox::enter()?;
    }
    let terms = Terms {
        grace: GRACE,
        // Who has a terminal to talk through is the guest's only program.
        own_kernel: terminal.is_some(),
    };
    converse(reader, writer, terms)
}

fn channel_files(terminal: Option<&str>) -> Result<(File, File), LoadError> {
    let duplicate = |file: &dyn AsFdObject| file.duplicate().map_err(failed("duplicate", "a file"));
    let Some(path) = terminal else {
        return Ok((duplicate(&io::stdin())?, duplicate(&io::stdout())?));
    };
    let path = match path {
        terminal::AUTO => terminal::auto()?,
        path => path.to_owned(),
    };
    let terminal = terminal::open(path.as_ref())?;
    Ok((duplicate(&terminal)?, terminal))
}

/// Anything with a descriptor.
trait AsFdObject {
    fn duplicate(&self) -> io::Result<File>;
}

impl<T: AsFd> AsFdObject for T {
    fn duplicate(&self) -> io::Result<File> {
        Ok(self.as_fd().try_clone_to_owned()?.into())
    }
}

fn hello() -> Answer {
    let release = rustix::system::uname();
    let cmdline = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    Answer::Hello {
        kernel: release.release().to_string_lossy().into_owned(),
        cmdline: cmdline.trim().to_owned(),
    }
}

fn lost(error: io::Error) -> LoadError {
    failed("talk to", "the benchmark")(error)
}

fn converse(reader: impl Read, mut writer: impl Write, terms: Terms) -> Result<(), LoadError> {
    let mut lines = Lines::new(reader);
    send(&mut writer, &hello()).map_err(lost)?;
    let mut prepared = None;
    while let Some(request) = lines.next().map_err(lost)? {
        let answer = match request {
            Ok(Request::Quit) => break,
            Ok(request) => respond(request, &mut prepared, &mut writer, terms),
            Err(error) => Err(LoadError::Malformed(error)),
        };
        let answer = answer.unwrap_or_else(|error| Answer::Failed {
            error: error.to_string(),
        });
        send(&mut writer, &answer).map_err(lost)?;
    }
    Ok(())
}

fn respond(
    request: Request,
    prepared: &mut Option<Running>,
    writer: &mut impl Write,
    terms: Terms,
) -> Result<Answer, LoadError> {
    match request {
        Request::Address { mac, address, mtu } => {
            let interface = address::configure(&mac, &address, mtu)?;
            Ok(Answer::Addressed { interface })
        }
        Request::Prepare { spec } => {
            // The one before lets go of its files first.
            if let Some(before) = prepared.take() {
                before.give_up(terms.grace);
            }
            *prepared = Some(Running::prepare(spec, terms)?);
            Ok(Answer::Ready)
        }
        Request::Go => {
            let running = prepared.take().ok_or(LoadError::Unexpected(
                "nothing has been prepared that could go",
            ))?;
            let interrupts = running.go(terms.grace)?;
            send(writer, &Answer::Over { interrupts }).map_err(lost)?;
            let result = running.result(terms.grace)?;
            Ok(Answer::Done { result })
        }
        Request::Quit => Err(LoadError::Unexpected("the end is not for here")),
    }
}

/// What a load's thread says.
enum Said {
    Ready,
    /// With the interrupts.
    Over(Option<u64>),
    Done(Box<LoadResult>),
}

/// A load on its thread, warm.
struct Running {
    go: Sender<()>,
    said: Receiver<Result<Said, LoadError>>,
    time: Duration,
}

impl Running {
    /// Opens and warms up.
    fn prepare(spec: LoadSpec, terms: Terms) -> Result<Self, LoadError> {
        let (go, told) = channel();
        let (say, said) = channel();
        let warm_up = Duration::from_millis(spec.warm_up_ms);
        let time = Duration::from_millis(spec.time_ms);
        let work = move || {
            if let Err(error) = one_load(&spec, terms, &told, &say) {
                // Nobody listens any more if the load was given up.
                let _ = say.send(Err(error));
            }
        };
        thread::Builder::new()
            .spawn(work)
            .map_err(failed("start", "a thread"))?;
        let running = Self { go, said, time };
        running.wait(warm_up + terms.grace)?;
        Ok(running)
    }

    fn wait(&self, at_most: Duration) -> Result<Said, LoadError> {
        match self.said.recv_timeout(at_most) {
            Ok(said) => said,
            Err(RecvTimeoutError::Timeout) => Err(LoadError::Stuck(at_most)),
            Err(RecvTimeoutError::Disconnected) => {
                Err(LoadError::Unexpected("the load's thread has ended early"))
            }
        }
    }

    /// To the end of the measured time; the interrupts in it.
    fn go(&self, grace: Duration) -> Result<Option<u64>, LoadError> {
        // A thread that is gone is found by the waiting.
        let _ = self.go.send(());
        match self.wait(self.time + grace)? {
            Said::Over(interrupts) => Ok(interrupts),
            Said::Ready | Said::Done(_) => Err(LoadError::Unexpected("the load is not over")),
        }
    }

    /// After that, when all has been read that the load has cost: this costs, too.
    fn result(self, grace: Duration) -> Result<LoadResult, LoadError> {
        let _ = self.go.send(());
        match self.wait(grace)? {
            Said::Done(result) => Ok(*result),
            Said::Ready | Said::Over(_) => Err(LoadError::Unexpected("the load has no result")),
        }
    }

    /// Ends it without measuring.
    fn give_up(self, grace: Duration) {
        drop(self.go);
        let _ = self.said.recv_timeout(grace);
    }
}

fn one_load(
    spec: &LoadSpec,
    terms: Terms,
    told: &Receiver<()>,
    say: &Sender<Result<Said, LoadError>>,
) -> Result<(), LoadError> {
    let mut load = loads::open(spec)?;
    if spec.warm_up_ms > 0 {
        load.run(Duration::from_millis(spec.warm_up_ms))?;
    }
    let _ = say.send(Ok(Said::Ready));
    if told.recv().is_err() {
        return Ok(());
    }
    let used = || cpu::used().map_err(failed("ask for", "CPU times"));
    let served = || {
        let count = terms.own_kernel.then(interrupts::served).transpose();
        count.map_err(failed("count", "interrupts"))
    };
    let served_before = served()?;
    let before = used()?;
    let outcome = load.run(Duration::from_millis(spec.time_ms))?;
    let after = used()?;
    let served = served()?.zip(served_before);
    let interrupts = served.map(|(after, before)| after.saturating_sub(before));
    let _ = say.send(Ok(Said::Over(interrupts)));
    if told.recv().is_err() {
        return Ok(());
    }
    let latency = outcome.latency.as_ref().map(Latency::of).transpose()?;
    let result = LoadResult {
        operations: outcome.operations,
        bytes: outcome.bytes,
        elapsed_ns: loads::nanoseconds(outcome.elapsed),
        lost: outcome.lost,
        latency,
        cpu: LoadCpu {
            user_ns: after.user_ns.saturating_sub(before.user_ns),
            kernel_ns: after.kernel_ns.saturating_sub(before.kernel_ns),
        },
    };
    // Before the answer, so that the next load finds the files free.
    drop(load);
    let _ = say.send(Ok(Said::Done(Box::new(result))));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tripath_load::spec::Load;

    const TERMS: Terms = Terms {
        grace: GRACE,
        own_kernel: false,
    };

    fn talk(text: &str) -> Vec<Answer> {
        let mut output = Vec::new();
        converse(text.as_bytes(), &mut output, TERMS).unwrap();
        let mut lines = Lines::new(output.as_slice());
        let next = || lines.next().unwrap().map(Result::unwrap);
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn malformed_requests_are_answered_and_the_conversation_goes_on() {
        let text = "nonsense\n{\"request\":\"dance\"}\n{\"request\":\"prepare\",\"spec\":{}}\n{\"request\":\"go\"}\n";
        let answers = talk(text);
        assert!(matches!(&answers[0], Answer::Hello { kernel, cmdline }
            if kernel.contains('.') && !cmdline.is_empty()));
        assert_eq!(answers.len(), 5, "{answers:?}");
        for answer in &answers[1..] {
            assert!(matches!(answer, Answer::Failed { error } if !error.contains('\n')));
        }
    }

    #[test]
    fn quit_is_the_end() {
        assert_eq!(talk("{\"request\":\"quit\"}\nnonsense\n").len(), 1);
    }

    #[test]
    fn a_load_that_cannot_be_opened_has_failed() {
        let spec = LoadSpec {
            load: Load::Console {
                path: "/dev/tty-that-is-not-there".into(),
            },
            warm_up_ms: 0,
            time_ms: 1,
            seed: 0,
        };
        let prepare = serde_json::to_string(&Request::Prepare { spec }).unwrap();
        let answers = talk(&format!("{prepare}\n"));
        let expected = "cannot open /dev/tty-that-is-not-there";
        assert!(matches!(&answers[1], Answer::Failed { error } if error.starts_with(expected)));
    }

    #[test]
    fn a_load_that_hangs_is_said_to() {
        // A terminal that nobody takes anything from.
        let flags = rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY;
        let main = rustix::pty::openpt(flags).unwrap();
        rustix::pty::grantpt(&main).unwrap();
        rustix::pty::unlockpt(&main).unwrap();
        let path = rustix::pty::ptsname(&main, Vec::new()).unwrap();
        let path = path.to_str().unwrap().into();
        let spec = LoadSpec {
            load: Load::Console { path },
            warm_up_ms: 1,
            time_ms: 1,
            seed: 0,
        };
        let error = Running::prepare(
            LoadSpec {
                warm_up_ms: 200,
                ..spec
            },
            Terms {
                grace: Duration::from_millis(100),
                ..TERMS
            },
        )
        .err()
        .unwrap();
        assert!(matches!(error, LoadError::Stuck(_)), "{error}");
    }
}
