//! L1 as the harness sees it: one machine for all tests of a lane, started when the first test needs it.
//!
//! A machine that hangs or dies is replaced, and the tests it took with it run again. A test that failed is never run
//! again, but for one reason: a guest in an emulated L1 that died as one dies of an interrupt that QEMU delivers twice,
//! see `tests/testbed/l1`, which is rare with one CPU but not impossible. It is said aloud. A test runs twice at the
//! most, whatever the reasons.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::agent::{Message, Request};
use super::runner::{Outcome, log_of};
use super::{paths, sys};

/// From QEMU's start to the agent's first word; 6 s on an idle machine.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
/// What the agent may take beyond a test's own time limit, which it enforces itself.
const GRACE: Duration = Duration::from_secs(60);
/// No L1 lives longer, whatever happens to the harness.
const LIFETIME: Duration = Duration::from_secs(3600);
/// An agent that has said nothing for so long is taken for hung: it has something to say every 5 s.
const SILENCE_LIMIT: Duration = Duration::from_secs(45);
/// How many times a machine may be replaced in one run.
const REPLACEMENTS: u32 = 2;
const CONSOLE_TAIL_LINES: usize = 40;

/// What kind of machine L1 is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Flavour {
    /// The usual one.
    Plain,
    /// With an IOMMU and devices to give away.
    Passthrough,
    /// Emulated, with a clock that counts instructions.
    Counted,
}

impl Flavour {
    fn name(self) -> &'static str {
        match self {
            Self::Plain => "l1",
            Self::Passthrough => "l1-passthrough",
            Self::Counted => "l1-counted",
        }
    }

    /// What `tests/testbed/l1` is told.
    fn options(self) -> &'static [&'static str] {
        match self {
            Self::Plain => &[],
            Self::Passthrough => &["--passthrough"],
            // Timers finer than a tick, for devices of known speed. They fail where the clock is the host's only.
            Self::Counted => &["--icount", "--append", "highres=on"],
        }
    }

    /// How long what takes `time` there may take here.
    fn here(self, time: Duration) -> Duration {
        match self {
            Self::Plain | Self::Passthrough => time,
            // 2.5 on an idle host.
            Self::Counted => time * 8,
        }
    }
}

/// The machine, or the prospect of one.
pub struct L1 {
    flavour: Flavour,
    /// Tells it from its likes in other lanes.
    number: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    session: Option<Arc<Session>>,
    /// Numbers the logs: it counts also what was closed to make room for another.
    started: u32,
    /// How often it died, hung or did not start.
    lost: u32,
    /// Why there will be no more machines.
    given_up: Option<String>,
    /// Whether a test has shown the whole of that.
    told: bool,
}

impl L1 {
    /// A machine that is not started yet.
    pub fn new(flavour: Flavour, number: usize) -> Self {
        L1 {
            flavour,
            number,
            state: Mutex::default(),
        }
    }

    /// What kind of machine it is.
    pub fn flavour(&self) -> Flavour {
        self.flavour
    }

    /// Runs the test of that name there. An error is L1's, not the test's.
    pub fn run(&self, name: &str, limit: Duration) -> Result<Outcome> {
        let first = format!("{name}.first");
        let _ = std::fs::remove_file(log_of(&first));
        for last_try in [false, true] {
            let session = self.session()?;
            let answer = session.ask(name);
            match answer
                .and_then(|answer| Ok(answer.recv_timeout(self.flavour.here(limit + GRACE))?))
            {
                Ok(outcome) if last_try || !outcome.may_be_l1s => return Ok(outcome),
                Ok(outcome) => {
                    let kept = outcome.keep_log(&first);
                    eprintln!(
                        "e2e: a guest of {name} may have had an interrupt twice: once more ({kept})"
                    );
                }
                Err(error) => {
                    let hung = error.downcast_ref() == Some(&RecvTimeoutError::Timeout);
                    let what = if hung {
                        "does not answer"
                    } else {
                        "has ended or hangs"
                    };
                    self.replace(&session, &format!("L1 {what} ({name} was running)"));
                }
            }
        }
        bail!("L1 was lost while this test was running for the second time");
    }

    /// Ends the machine. Nothing in it is worth a clean shutdown.
    pub fn close(&self) {
        if let Some(session) = self.lock().session.take() {
            session.end();
        }
    }

    /// The same from a signal's thread, which must not wait while a machine is being started. That one ends with
    /// this process.
    pub fn close_now(&self) {
        if let Ok(mut state) = self.state.try_lock()
            && let Some(session) = state.session.take()
        {
            session.end();
            let _ = std::fs::remove_dir_all(session.folder.path());
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The running machine; the first test that asks starts it, and the others wait meanwhile.
    fn session(&self) -> Result<Arc<Session>> {
        let mut state = self.lock();
        loop {
            if let Some(reason) = state.given_up.clone() {
                // One test shows L1's console; the others need not repeat it.
                let all = !std::mem::replace(&mut state.told, true);
                let first_line = reason.lines().next().unwrap_or_default();
                bail!("{}", if all { &reason } else { first_line });
            }
            if let Some(session) = &state.session {
                return Ok(session.clone());
            }
            state.started += 1;
            let name = format!("{}-{}-{}", self.flavour.name(), self.number, state.started);
            match Session::start(self.flavour, &name) {
                Ok(session) => state.session = Some(session),
                Err(error) => state.machine_lost(&format!("L1 did not start: {error:#}")),
            }
        }
    }

    /// Gives up `session`, unless another test has done so already.
    fn replace(&self, session: &Arc<Session>, reason: &str) {
        let mut state = self.lock();
        if state
            .session
            .as_ref()
            .is_some_and(|current| Arc::ptr_eq(current, session))
        {
            session.end_after_last_words();
            state.session = None;
            let console = session.console_tail();
            state.machine_lost(&format!("{reason}; the end of its console:\n{console}"));
        }
    }
}

impl State {
    fn machine_lost(&mut self, reason: &str) {
        self.lost += 1;
        if self.lost > REPLACEMENTS {
            self.given_up = Some(format!(
                "{reason}\n(L1 was lost or did not start {} times)",
                self.lost
            ));
        } else {
            eprintln!("e2e: {reason}\ne2e: starting L1 once more");
        }
    }
}

/// One running machine.
struct Session {
    process: Pid,
    ended: Mutex<Receiver<()>>,
    channel: Mutex<UnixStream>,
    waiting: Arc<Mutex<Waiting>>,
    console: Arc<Mutex<VecDeque<String>>>,
    folder: tempfile::TempDir,
}

/// Who waits for which answer; `None` once no more will come.
type Waiting = Option<HashMap<u64, Sender<Outcome>>>;

impl Session {
    /// `name` is that of its log.
    fn start(flavour: Flavour, name: &str) -> Result<Arc<Self>> {
        let begun = Instant::now();
        let boot_limit = flavour.here(BOOT_LIMIT);
        let deadline = begun + boot_limit;
        let folder = tempfile::Builder::new().prefix("tripath-e2e.").tempdir()?;
        let socket = folder.path().join("channel");
        let listener = UnixListener::bind(&socket)?;
        let console = Arc::new(Mutex::new(VecDeque::new()));
        let (process, ended) = spawn(flavour, &socket, name, console.clone())?;
        let connect = || -> Result<UnixStream> {
            // A QEMU that never starts would leave an accept waiting for ever.
            if !sys::wait_readable(listener.as_fd(), deadline)? {
                bail!("QEMU did not connect");
            }
            let stream = listener.accept()?.0;
            stream.set_read_timeout(Some(boot_limit))?;
            Ok(stream)
        };
        let waiting = Arc::new(Mutex::new(Some(HashMap::new())));
        let session = connect().and_then(|stream| {
            let mut reader = BufReader::new(stream.try_clone()?);
            match read_message(&mut reader).context("no word from the agent")? {
                Some(Message::Ready) => {}
                other => bail!("the agent did not report: {other:?}"),
            }
            stream.set_read_timeout(Some(flavour.here(SILENCE_LIMIT)))?;
            let answers = waiting.clone();
            std::thread::spawn(move || deliver(reader, &answers));
            Ok(stream)
        });
        match session {
            Ok(stream) => {
                let seconds = begun.elapsed().as_secs_f64();
                eprintln!("e2e: {name} is up after {seconds:.1} s");
                Ok(Arc::new(Session {
                    process,
                    ended: Mutex::new(ended),
                    channel: Mutex::new(stream),
                    waiting,
                    console,
                    folder,
                }))
            }
            Err(error) => {
                end_process(process, &ended);
                let tail = tail_of(&console);
                Err(anyhow!("{error:#}; the end of its console:\n{tail}"))
            }
        }
    }

    /// Sends the request; the answer comes through the receiver, which is closed when the machine dies.
    fn ask(&self, name: &str) -> Result<Receiver<Outcome>> {
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let id = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (sender, receiver) = channel();
        lock(&self.waiting)
            .as_mut()
            .context("L1 has ended")?
            .insert(id, sender);
        let mut line = serde_json::to_string(&Request {
            id,
            name: name.to_owned(),
        })?;
        line.push('\n');
        lock(&self.channel).write_all(line.as_bytes())?;
        Ok(receiver)
    }

    fn end(&self) {
        end_process(self.process, &lock(&self.ended));
    }

    /// A machine that died ends by itself, and its script says how.
    fn end_after_last_words(&self) {
        if lock(&self.waiting).is_none() {
            let _ = lock(&self.ended).recv_timeout(Duration::from_secs(5));
        }
        self.end();
    }

    fn console_tail(&self) -> String {
        tail_of(&self.console)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts the machine, with threads that keep its console and that wait for its end.
fn spawn(
    flavour: Flavour,
    socket: &std::path::Path,
    name: &str,
    console: Arc<Mutex<VecDeque<String>>>,
) -> Result<(Pid, Receiver<()>)> {
    let (output, writer) = std::io::pipe()?;
    let mut command = Command::new(paths::source("tests/testbed/l1"));
    command
        .args(["--verbose", "--timeout"])
        .arg(LIFETIME.as_secs().to_string())
        .arg("--channel")
        .arg(socket)
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .process_group(0)
        .args(flavour.options());
    for name in ["TRIPATH_BIN", "RUST_BACKTRACE", "RUST_LOG"] {
        if let Ok(value) = std::env::var(name) {
            command.args(["--env", &format!("{name}={value}")]);
        }
    }
    command
        .arg("--")
        .arg(std::env::current_exe()?)
        .arg("--agent");
    // The script ends QEMU when it is asked to end.
    sys::die_with_parent(&mut command, Signal::TERM);
    let mut log = File::create(paths::logs().join(format!("{name}.log")))?;
    std::thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            let _ = writeln!(log, "{line}");
            let mut lines = lock(&console);
            lines.push_back(line);
            if lines.len() > CONSOLE_TAIL_LINES {
                lines.pop_front();
            }
        }
    });
    let (pid_sender, pid) = channel();
    let (end_sender, ended) = channel();
    // The machine lives as long as the thread that started it, so that thread waits for its end.
    std::thread::spawn(move || {
        let child = command.spawn().map_err(anyhow::Error::from);
        drop(command);
        let _ = match child {
            Ok(mut child) => {
                let sent = pid_sender.send(sys::pid_of(&child).map_err(anyhow::Error::from));
                let _ = child.wait();
                drop(end_sender);
                sent
            }
            Err(error) => pid_sender.send(Err(error)),
        };
    });
    let process = pid.recv()?.context("tests/testbed/l1")?;
    Ok((process, ended))
}

fn end_process(process: Pid, ended: &Receiver<()>) {
    let _ = kill_process(process, Signal::TERM);
    // The channel closes when the process has been waited for.
    if ended.recv_timeout(Duration::from_secs(10)) == Err(RecvTimeoutError::Timeout) {
        let _ = kill_process(process, Signal::KILL);
    }
}

fn read_message(reader: &mut impl BufRead) -> Result<Option<Message>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    Ok(Some(
        serde_json::from_str(&line).with_context(|| format!("the agent said {line:?}"))?,
    ))
}

/// Hands each answer to the test that waits for it, until the agent falls silent.
fn deliver(mut reader: BufReader<UnixStream>, waiting: &Mutex<Waiting>) {
    while let Ok(Some(message)) = read_message(&mut reader) {
        if let Message::Done { id, outcome } = message
            && let Some(sender) = lock(waiting).as_mut().and_then(|map| map.remove(&id))
        {
            let _ = sender.send(outcome);
        }
    }
    // Dropping the senders tells those who wait.
    *lock(waiting) = None;
}

fn tail_of(console: &Mutex<VecDeque<String>>) -> String {
    lock(console)
        .iter()
        .map(|line| format!("  L1| {line}\n"))
        .collect()
}
