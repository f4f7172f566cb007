//! The process of a guest: the calling thread runs the machine, another one speaks with the benchmark and with the load
//! program in the guest.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use boottest::guest::{
    Channel, ChannelEvent, GuestCommand, GuestPlan, ModuleSource, Prepared, Rootfs, prepare,
};
use rustix::thread::{CpuSet, sched_setaffinity};
use serde::Serialize;
use thiserror::Error;
use tripath_load::spec::{Answer, LoadSpec, Request};
use vmm_core::config::MachineConfig;
use vmm_core::machine::{ConsolePort, Finished, Machine, Options, Outcome, StopHandle};

use super::cost::Meter;
use super::protocol::{GuestAnswer, GuestRequest, GuestSpec};
use crate::host::agent::{SLACK, address_request, limit_of};
use crate::host::functions::known_driver;
use crate::program::load_program;

/// How long a guest may take until its load program speaks.
const BOOT: Duration = Duration::from_secs(180);
/// The longest line that the guest may say, in bytes.
const MAX_LINE_BYTES: u64 = 4 << 20;
/// How much of the serial port is kept for a guest that dies, in bytes.
const TAIL_BYTES: usize = 2 << 10;

/// Why there is no guest. The text is told to the benchmark.
#[derive(Debug, Error)]
enum WorkerError {
    #[error("the guest's process was not told what to boot: {0}")]
    Spec(String),
    #[error(transparent)]
    Guest(#[from] boottest::guest::GuestError),
    #[error(transparent)]
    Machine(#[from] vmm_core::machine::MachineError),
    #[error("cannot {what}: {source}")]
    Host {
        what: &'static str,
        source: io::Error,
    },
}

fn host(what: &'static str) -> impl FnOnce(io::Error) -> WorkerError {
    move |source| WorkerError::Host { what, source }
}

/// Serves the benchmark on standard input and output to the end of the guest. False if there was none, or it was lost.
#[must_use]
pub fn serve() -> bool {
    let voice = Voice::default();
    match work(&voice) {
        Ok(asked_for) => asked_for,
        Err(error) => {
            voice.lost(error.to_string());
            false
        }
    }
}

/// Our standard output, and whether the last word was said.
#[derive(Debug, Clone, Default)]
struct Voice(Arc<Mutex<bool>>);

impl Voice {
    fn say(&self, answer: &GuestAnswer) {
        let over = lock(&self.0);
        if !*over {
            say(answer);
        }
    }

    /// The last word. What is said later is not heard.
    fn lost(&self, error: String) {
        let mut over = lock(&self.0);
        if !*over {
            say(&GuestAnswer::Lost { error });
        }
        *over = true;
    }

    fn silence(&self) {
        *lock(&self.0) = true;
    }
}

fn say(message: &impl Serialize) {
    let Ok(mut line) = serde_json::to_vec(message) else {
        return;
    };
    line.push(b'\n');
    let mut output = io::stdout().lock();
    // Who does not hear us any more has ended, and our input with it.
    let _ = output.write_all(&line).and_then(|()| output.flush());
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn work(voice: &Voice) -> Result<bool, WorkerError> {
    let mut line = String::new();
    io::stdin().read_line(&mut line).map_err(host("hear"))?;
    let spec: GuestSpec =
        serde_json::from_str(&line).map_err(|error| WorkerError::Spec(error.to_string()))?;
    pin(&spec.io_cpus).map_err(host("pin threads"))?;
    let mut config = spec.machine.clone();
    let prepared = attach(&spec, &mut config)?;

    let pair = || UnixStream::pair().map_err(host("create a socket"));
    let (serial, serial_far) = pair()?;
    let (agent, agent_far) = pair()?;
    let (init, init_far) = pair()?;
    let options = Options {
        stats: true,
        streams: vec![(ConsolePort::Serial(0), serial_far)],
        channels: vec![agent_far, init_far],
        restarts: Some(0),
        triple_fault_ends: true,
        signals_end: true,
        control: None,
    };
    let machine = Machine::build(&config, options)?;
    let taps = machine.taps().iter().map(|(_, name)| name.clone());
    let conversation = Conversation {
        voice: voice.clone(),
        agent: BufReader::new(agent),
        meter: Meter::new(&machine),
        taps: taps.collect(),
        missing: prepared.missing_drivers.clone(),
    };
    let tail = Arc::new(Mutex::new(VecDeque::new()));
    let hearing = [
        spawn("serial", {
            let tail = Arc::clone(&tail);
            move || keep_tail(serial, &tail)
        })?,
        spawn("init", {
            let (voice, stop) = (voice.clone(), machine.stop_handle());
            move || hear_init(init, &voice, &stop)
        })?,
    ];
    let stop = machine.stop_handle();
    // It is not waited for: it may be waiting for a line that never comes.
    spawn("talk", move || {
        conversation.run();
        stop.stop();
    })?;
    let finished = machine.run()?;
    for thread in hearing {
        // A panic of one was told by its hook.
        let _ = thread.join();
    }
    drop(prepared);
    let asked_for = matches!(finished.outcome, Outcome::Ended);
    if !asked_for {
        voice.lost(obituary(&finished, &lock(&tail)));
    }
    Ok(asked_for)
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, WorkerError> {
    let thread = std::thread::Builder::new().name(name.into());
    thread.spawn(run).map_err(host("start a thread"))
}

/// Before there are other threads, which do as we do.
fn pin(cpus: &[u32]) -> io::Result<()> {
    if cpus.is_empty() {
        return Ok(());
    }
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu as usize);
    }
    Ok(sched_setaffinity(None, &set)?)
}

/// Where the modules are, as a spec says it.
#[must_use]
pub fn modules_of(spec: &GuestSpec) -> ModuleSource {
    match &spec.modules {
        _ if spec.built_in => ModuleSource::BuiltIn,
        Some(folder) => ModuleSource::Folder(folder.clone()),
        None => ModuleSource::Search,
    }
}

/// Makes the guest's initramfs, with the load program as what its init runs.
fn attach(spec: &GuestSpec, config: &mut MachineConfig) -> Result<Prepared, WorkerError> {
    let program = load_program().map_err(host("make the load program"))?;
    let plan = GuestPlan {
        modules: modules_of(spec),
        rootfs: Rootfs::Initramfs,
        command: GuestCommand::Script(program.path()),
        drivers: spec
            .drivers
            .iter()
            .filter_map(|name| known_driver(name))
            .collect(),
    };
    let prepared = prepare(&plan, config)?;
    config.boot.initrd = Some(prepared.initrd());
    for word in &prepared.cmdline {
        config.boot.cmdline.push(' ');
        config.boot.cmdline.push_str(word);
    }
    Ok(prepared)
}

/// What a guest that was not asked to end has died of.
fn obituary(finished: &Finished, tail: &VecDeque<u8>) -> String {
    let what = match &finished.outcome {
        Outcome::PoweredOff => "the guest powered off".to_owned(),
        Outcome::Reset => "the guest was reset".to_owned(),
        Outcome::Ended => "the guest was ended".to_owned(),
        Outcome::Panicked => "the guest's kernel panicked".to_owned(),
        Outcome::Crashed(report) => {
            let text = report.to_string();
            let first = text.lines().next().unwrap_or_default();
            format!("the guest crashed: {first}")
        }
        Outcome::DeviceLost { device, loss } => format!("function {device} is lost: {loss:?}"),
    };
    match last_line(tail) {
        Some(line) => format!("{what}; its last line: {line}"),
        None => what,
    }
}

fn keep_tail(mut serial: UnixStream, tail: &Mutex<VecDeque<u8>>) {
    let mut piece = [0; 4096];
    while let Ok(len @ 1..) = serial.read(&mut piece) {
        push_tail(&mut lock(tail), &piece[..len]);
    }
}

fn push_tail(tail: &mut VecDeque<u8>, bytes: &[u8]) {
    tail.extend(bytes);
    let excess = tail.len().saturating_sub(TAIL_BYTES);
    tail.drain(..excess);
}

fn last_line(tail: &VecDeque<u8>) -> Option<String> {
    let tail: Vec<u8> = tail.iter().copied().collect();
    let text = String::from_utf8_lossy(&tail);
    let line = text.lines().rfind(|line| !line.trim().is_empty())?;
    Some(line.trim().to_owned())
}

/// What the guest's init says of the load program: nothing but its start, if all is well.
fn hear_init(mut stream: UnixStream, voice: &Voice, stop: &StopHandle) {
    let mut channel = Channel::default();
    let mut said = VecDeque::new();
    let mut piece = [0; 4096];
    while let Ok(len @ 1..) = stream.read(&mut piece) {
        for event in channel.feed(&piece[..len]) {
            let end = match event {
                ChannelEvent::Started => continue,
                ChannelEvent::Output { bytes, .. } => {
                    push_tail(&mut said, &bytes);
                    continue;
                }
                ChannelEvent::Exited { code } => format!("the load program ended with {code}"),
                ChannelEvent::Signalled { signal } => {
                    format!("the load program was ended by signal {signal}")
                }
                ChannelEvent::Refused(reason) => format!("the guest's init: {reason}"),
                ChannelEvent::Malformed => "the guest's init is not understood".to_owned(),
            };
            let last = last_line(&said).map(|line| format!(": {line}"));
            voice.lost(end + &last.unwrap_or_default());
            stop.stop();
        }
    }
}

/// Between the benchmark and the load program.
struct Conversation {
    voice: Voice,
    agent: BufReader<UnixStream>,
    meter: Meter,
    taps: Vec<String>,
    missing: Vec<&'static str>,
}

/// Why a request was not served.
enum Trouble {
    /// The load program could not do it.
    Failed(String),
    /// There is nobody to ask.
    Lost(String),
}

impl Conversation {
    fn run(mut self) {
        if let Err(Trouble::Failed(error) | Trouble::Lost(error)) = self.greet() {
            return self.voice.lost(error);
        }
        for line in io::stdin().lock().lines() {
            let request = line.map(|line| serde_json::from_str(&line));
            let served = match request {
                Ok(Ok(GuestRequest::Measure { spec })) => self.measure(spec),
                Ok(Ok(GuestRequest::Address { mac, address })) => self.address(&mac, &address),
                Ok(Ok(GuestRequest::Quit)) | Err(_) => break,
                Ok(Err(error)) => Err(Trouble::Lost(format!("a request makes no sense: {error}"))),
            };
            match served {
                Ok(()) => {}
                Err(Trouble::Failed(error)) => self.voice.say(&GuestAnswer::Failed { error }),
                Err(Trouble::Lost(error)) => return self.voice.lost(error),
            }
        }
        self.voice.silence();
    }

    fn greet(&mut self) -> Result<(), Trouble> {
        let answer = self.receive(BOOT)?;
        let Answer::Hello { kernel, cmdline } = answer else {
            return Err(unexpected(&answer));
        };
        self.voice.say(&GuestAnswer::Up {
            kernel,
            cmdline,
            taps: std::mem::take(&mut self.taps),
            missing_drivers: self.missing.iter().map(|&name| name.to_owned()).collect(),
        });
        Ok(())
    }

    fn address(&mut self, mac: &str, address: &str) -> Result<(), Trouble> {
        self.send(&address_request(mac, address))?;
        match self.receive(SLACK)? {
            Answer::Addressed { .. } => {
                self.voice.say(&GuestAnswer::Addressed);
                Ok(())
            }
            other => Err(unexpected(&other)),
        }
    }

    fn measure(&mut self, spec: LoadSpec) -> Result<(), Trouble> {
        let limit = limit_of(&spec);
        self.send(&Request::Prepare { spec })?;
        match self.receive(limit)? {
            Answer::Ready => {}
            other => return Err(unexpected(&other)),
        }
        let before = self.meter.read();
        self.send(&Request::Go)?;
        let answer = self.receive(limit)?;
        let (mut guest, cpu) = self.meter.read().since(&before);
        let Answer::Over { interrupts } = answer else {
            return Err(unexpected(&answer));
        };
        guest.interrupts = interrupts;
        let result = match self.receive(limit)? {
            Answer::Done { result } => result,
            other => return Err(unexpected(&other)),
        };
        self.voice.say(&GuestAnswer::Measured {
            load: result,
            guest,
            cpu,
        });
        Ok(())
    }

    fn send(&mut self, request: &Request) -> Result<(), Trouble> {
        let line = serde_json::to_vec(request).map_err(|error| lost(&error))?;
        let stream = self.agent.get_mut();
        stream
            .write_all(&line)
            .and_then(|()| stream.write_all(b"\n"))
            .map_err(|error| lost(&error))
    }

    fn receive(&mut self, limit: Duration) -> Result<Answer, Trouble> {
        let stream = self.agent.get_ref();
        stream
            .set_read_timeout(Some(limit))
            .map_err(|error| lost(&error))?;
        let mut line = Vec::new();
        let read = (&mut self.agent)
            .take(MAX_LINE_BYTES)
            .read_until(b'\n', &mut line);
        match read {
            Ok(0) => return Err(Trouble::Lost("the guest has ended".to_owned())),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let text = format!(
                    "the load program in the guest does not answer within {} s",
                    limit.as_secs()
                );
                return Err(Trouble::Lost(text));
            }
            Err(error) => return Err(lost(&error)),
            Ok(_) => {}
        }
        serde_json::from_slice(&line).map_err(|_| {
            let text = String::from_utf8_lossy(&line);
            let start: String = text.trim_end().chars().take(200).collect();
            Trouble::Lost(format!(
                "the load program in the guest says what is not understood: {start:?}"
            ))
        })
    }
}

fn lost(error: &dyn std::error::Error) -> Trouble {
    Trouble::Lost(format!("the guest cannot be spoken with: {error}"))
}

fn unexpected(answer: &Answer) -> Trouble {
    match answer {
        Answer::Failed { error } => Trouble::Failed(error.clone()),
        other => {
            let text: String = format!("{other:?}").chars().take(100).collect();
            Trouble::Lost(format!(
                "the load program in the guest answers {text}, which was not asked for"
            ))
        }
    }
}
