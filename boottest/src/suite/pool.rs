//! Running the tests of a suite, each in a process of its own, several at once.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use thiserror::Error;

use crate::report::TestResult;
use crate::run::TestMachine;
use crate::spec::{DEFAULT_TIMEOUT, TestSpec};

/// In a test's folder: what is to be run.
pub const SPEC_FILE: &str = "test.toml";
/// In a test's folder: what came of it.
pub const RESULT_FILE: &str = "result.json";
/// In a test's folder: what its process had to say.
const OUTPUT_FILE: &str = "tripath.log";
/// What a machine takes beside its guest's RAM.
const OVERHEAD_BYTES: u64 = 48 << 20;
/// How long beyond its test's own limit a process may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A test's logs cannot be made ready.
#[derive(Debug, Error)]
#[error("cannot write {}: {source}", path.display())]
pub struct PoolError {
    /// The file or folder.
    pub path: PathBuf,
    /// What the host said.
    pub source: io::Error,
}

/// What happens while tests run.
#[derive(Debug)]
pub enum Event<'a> {
    /// A test was started.
    Started(&'a TestSpec),
    /// A test is over.
    Ended(&'a TestResult),
}

/// How the tests of a suite are run.
pub struct Pool<'a> {
    /// How many at once, at most.
    pub jobs: usize,
    /// RAM for all guests together, in bytes. A test that needs more runs alone.
    pub memory_bytes: u64,
    /// The folder for the tests' folders.
    pub logs: &'a Path,
    /// Makes the command that runs the test whose folder this is, by its [`SPEC_FILE`], leaving a [`RESULT_FILE`].
    pub command: &'a (dyn Fn(&Path) -> Command + Sync),
    /// How to run one test again, by its name.
    pub rerun: &'a (dyn Fn(&str) -> String + Sync),
    /// Hears of what happens, one event at a time.
    pub on_event: &'a (dyn Fn(Event<'_>) + Sync),
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Vec<usize>,
    results: Vec<Option<TestResult>>,
    running: Vec<(usize, OwnedFd)>,
    memory_in_use: u64,
    interrupted: bool,
}

impl<'a> Pool<'a> {
    /// See the fields.
    pub fn new(
        (jobs, memory_bytes): (usize, u64),
        logs: &'a Path,
        command: &'a (dyn Fn(&Path) -> Command + Sync),
        rerun: &'a (dyn Fn(&str) -> String + Sync),
        on_event: &'a (dyn Fn(Event<'_>) + Sync),
    ) -> Self {
        Self {
            jobs,
            memory_bytes,
            logs,
            command,
            rerun,
            on_event,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Runs `tests`; their results are in the same order.
    ///
    /// # Errors
    /// [`PoolError`] before anything has run.
    pub fn run(&self, tests: &[TestSpec]) -> Result<Vec<TestResult>, PoolError> {
        for test in tests {
            self.write_spec(test)?;
        }
        {
            let mut state = self.lock();
            state.waiting = (0..tests.len()).rev().collect();
            state.results = tests.iter().map(|_| None).collect();
        }
        let workers = self.jobs.clamp(1, tests.len().max(1));
        std::thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| self.work(tests));
            }
        });
        let results = std::mem::take(&mut self.lock().results);
        let not_run = |test: &TestSpec| TestResult::not_run(&test.name, "it was not run".into());
        Ok((results.into_iter().zip(tests))
            .map(|(result, test)| result.unwrap_or_else(|| not_run(test)))
            .collect())
    }

    /// Starts no more tests, and ends those that run. Any thread.
    pub fn interrupt(&self) {
        let mut state = self.lock();
        state.interrupted = true;
        for (_, process) in &state.running {
            // One that has ended needs no signal.
            let _ = pidfd_send_signal(process, Signal::TERM);
        }
        self.changed.notify_all();
    }

    /// The folder of a test's logs.
    fn folder(&self, test: &TestSpec) -> PathBuf {
        self.logs.join(&test.name)
    }

    fn write_spec(&self, test: &TestSpec) -> Result<(), PoolError> {
        let folder = self.folder(test);
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| PoolError { path, source }
        };
        fs::create_dir_all(&folder).map_err(failed(&folder))?;
        // What an earlier run has left must not be taken for this one's.
        let old = folder.join(RESULT_FILE);
        match fs::remove_file(&old) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(&old)(error))?,
            _ => {}
        }
        let path = folder.join(SPEC_FILE);
        let text = toml::to_string(test).map_err(io::Error::other);
        text.and_then(|text| fs::write(&path, text))
            .map_err(failed(&path))
    }

    fn work(&self, tests: &[TestSpec]) {
        while let Some((index, memory)) = self.next(tests) {
            let test = &tests[index];
            (self.on_event)(Event::Started(test));
            let mut result = self.run_one(index, test);
            result.logs = Some(self.folder(test));
            if !result.passed {
                result.rerun = Some((self.rerun)(&test.name));
            }
            (self.on_event)(Event::Ended(&result));
            let mut state = self.lock();
            state.results[index] = Some(result);
            state.memory_in_use -= memory;
            self.changed.notify_all();
        }
    }

    /// The first test that there is memory for, and how much of it; none when no test is left.
    fn next(&self, tests: &[TestSpec]) -> Option<(usize, u64)> {
        let mut state = self.lock();
        loop {
            if state.interrupted || state.waiting.is_empty() {
                return None;
            }
            let left = self.memory_bytes.saturating_sub(state.memory_in_use);
            let alone = state.memory_in_use == 0;
            let fits = |index: &usize| alone || memory_bytes(&tests[*index]) <= left;
            if let Some(place) = state.waiting.iter().rposition(fits) {
                let index = state.waiting.remove(place);
                let memory = memory_bytes(&tests[index]);
                state.memory_in_use += memory;
                return Some((index, memory));
            }
            let waited = self.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn run_one(&self, index: usize, test: &TestSpec) -> TestResult {
        let begun = Instant::now();
        let folder = self.folder(test);
        let limit = test.asked.timeout.map_or(DEFAULT_TIMEOUT, |span| span.0) + PATIENCE;
        let ended = self
            .start(index, &folder)
            .and_then(|child| self.supervise(index, child, limit));
        let mut result = match ended {
            Ok(status) => read_result(test, &folder, status),
            Err(error) => {
                TestResult::not_run(&test.name, format!("its process could not be run: {error}"))
            }
        };
        if !result.passed && self.lock().interrupted {
            result = TestResult::not_run(&test.name, "the run was interrupted".into());
        }
        if result.duration_s == 0.0 {
            result.duration_s = begun.elapsed().as_secs_f64();
        }
        result
    }

    fn start(&self, index: usize, folder: &Path) -> io::Result<Child> {
        let output = File::create(folder.join(OUTPUT_FILE))?;
        let mut state = self.lock();
        if state.interrupted {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let mut child = (self.command)(folder)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or(io::ErrorKind::InvalidData)?;
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(process) => state.running.push((index, process)),
            Err(error) => {
                // Without it, it could neither be waited for nor ended.
                let _ = child.kill();
                let _ = child.wait();
                return Err(error.into());
            }
        }
        Ok(child)
    }

    fn supervise(&self, index: usize, mut child: Child, limit: Duration) -> io::Result<ExitStatus> {
        let process = self
            .lock()
            .running
            .iter()
            .find(|(one, _)| *one == index)
            .map(|(_, process)| process.try_clone());
        if let Some(process) = process.transpose()?
            && !ends_within(&process, limit)
        {
            log::warn!("a test's process does not end: it is killed");
            child.kill()?;
        }
        let status = child.wait();
        self.lock().running.retain(|(one, _)| *one != index);
        status
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a process ends in time.
fn ends_within(process: &OwnedFd, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut fds = [PollFd::new(process, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(rustix::io::Errno::INTR) => {}
            // Nothing is known; waiting for the process itself tells.
            Err(_) => return true,
        }
    }
}

/// What a test's process has left, or what became of it.
fn read_result(test: &TestSpec, folder: &Path, status: ExitStatus) -> TestResult {
    let read = fs::read(folder.join(RESULT_FILE));
    let result = read.map(|bytes| serde_json::from_slice::<TestResult>(&bytes));
    match result {
        Ok(Ok(result)) if status.signal().is_none() => result,
        _ => {
            let what = match (status.signal(), status.code()) {
                (Some(signal), _) => format!("its process was killed by signal {signal}"),
                (None, code) => format!(
                    "its process ended with exit code {} and no result",
                    code.unwrap_or_default()
                ),
            };
            let said = last_line(&folder.join(OUTPUT_FILE));
            let said = said.map(|line| format!(": {line}"));
            TestResult::not_run(&test.name, what + &said.unwrap_or_default())
        }
    }
}

fn last_line(path: &Path) -> Option<String> {
    let lines = BufReader::new(File::open(path).ok()?).lines();
    lines
        .map_while(Result::ok)
        .filter(|line| !line.is_empty())
        .last()
}

/// What a test takes of the host's memory.
fn memory_bytes(test: &TestSpec) -> u64 {
    let ram = TestMachine::of(test).map_or(0, |machine| machine.config.memory.size_bytes);
    ram.saturating_add(OVERHEAD_BYTES)
}

/// Memory that the host has to spare, in bytes; none if it does not say.
#[must_use]
pub fn free_memory_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}
