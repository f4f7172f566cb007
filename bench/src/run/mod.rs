//! The benchmark of I/O paths: rounds, in each of which every variant is measured once.
//!
//! All children are started by the calling thread, and end with it: the guest of each round, the baselines and the
//! peers. What is made on the host is of the kind that ends with a process: files without names, TAPs, a network pair
//! whose one end is in a network of its own. Only control groups are not, for which there is a janitor.

mod baseline;
mod guest;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use boottest::guest::{GuestCommand, GuestPlan, ModuleSource, Rootfs, prepare};
use thiserror::Error;
use tripath_load::spec::{Load, LoadSpec};
use vmm_core::config::CpuAffinity;
use vmm_core::exit_cost::CPUS;

use crate::environment::Environment;
use crate::exits::{ExitCost, ExitOptions, measure as measure_exits};
use crate::guest::machine::GuestMachine;
use crate::guest::protocol::GuestSpec;
use crate::guest::worker::modules_of;
use crate::host::agent::{AgentError, Peer};
use crate::host::cgroup::ControlGroup;
use crate::host::files::{BackingFile, FileError};
use crate::host::functions::Functions;
use crate::host::process::{Interrupt, TalkError};
use crate::plan::{PlanOptions, Runner, Target, Variant, order, plan};
use crate::program::{LoadProgram, load_program};
use crate::results::{BenchReport, GuestFacts, Sample, VERSION};

/// Rounds and length of the measurement of exits.
const EXIT_ROUNDS: u32 = 3;
const EXIT_SAMPLE: Duration = Duration::from_millis(10);

/// Starts this program again as one of its hidden commands.
pub type CommandMaker = Box<dyn Fn() -> Command>;

/// Where threads run; anywhere where a list is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pins {
    /// Host CPUs of the vCPUs.
    pub vcpu: Vec<u32>,
    /// Those of the guest's process otherwise.
    pub io: Vec<u32>,
    /// Those of load programs on the host: baselines and peers.
    pub load: Vec<u32>,
}

impl Pins {
    /// The guest of [`measure_exits`] has two vCPUs.
    fn of_exit_guest(&self) -> Vec<CpuAffinity> {
        if self.vcpu.is_empty() {
            return Vec::new();
        }
        let pin = |vcpu| CpuAffinity {
            vcpu,
            host_cpus: self.vcpu.clone(),
        };
        (0..CPUS).map(pin).collect()
    }

    /// Those that say something, as in `vcpu=2+3`.
    fn written(&self) -> Vec<String> {
        [("vcpu", &self.vcpu), ("io", &self.io), ("load", &self.load)]
            .into_iter()
            .filter(|(_, cpus)| !cpus.is_empty())
            .map(|(name, cpus)| {
                let cpus: Vec<String> = cpus.iter().map(u32::to_string).collect();
                format!("{name}={}", cpus.join("+"))
            })
            .collect()
    }
}

/// What is measured, and how.
pub struct IoOptions {
    /// The variants.
    pub plan: PlanOptions,
    /// How many rounds.
    pub rounds: u32,
    /// How long all of it may take: a round that would not end in that time is not begun, but for the first. For ever
    /// if none.
    pub budget: Option<Duration>,
    /// For the orders, and the loads' own choices.
    pub seed: u64,
    /// The guest.
    pub guest: GuestMachine,
    /// Where the kernel's modules are.
    pub modules: ModuleSource,
    /// The functions that the guest gets.
    pub functions: Functions,
    /// Where threads run.
    pub pins: Pins,
    /// Where the files of disks are made.
    pub disk_folder: PathBuf,
    /// Bytes of each disk.
    pub disk_bytes: u64,
    /// What the user has to know of the numbers.
    pub notes: Vec<String>,
    /// Starts [`serve`](crate::guest::worker::serve).
    pub worker: CommandMaker,
    /// Starts [`clean_up`](crate::host::cgroup::clean_up) with the folders that follow as arguments.
    pub janitor: CommandMaker,
}

/// Why there is no result.
#[derive(Debug, Error)]
pub enum IoBenchError {
    /// Nothing is to be measured.
    #[error("no variant has such a name: see --list")]
    Nothing,
    /// The guest cannot be made.
    #[error(transparent)]
    Guest(#[from] boottest::guest::GuestError),
    /// Its machine contradicts itself.
    #[error(transparent)]
    Config(#[from] vmm_core::config::ConfigError),
    /// The files of disks.
    #[error(transparent)]
    File(#[from] FileError),
    /// The load program.
    #[error("cannot make the load program: {0}")]
    Program(std::io::Error),
    /// The user ended it.
    #[error("interrupted")]
    Interrupted,
}

impl IoBenchError {
    /// Whether the user can change it.
    #[must_use]
    pub fn is_users(&self) -> bool {
        match self {
            Self::Nothing | Self::Config(_) | Self::File(_) => true,
            Self::Guest(error) => error.is_users(),
            Self::Program(_) | Self::Interrupted => false,
        }
    }
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Measurements that are over, failed ones included.
    pub done: u64,
    /// All there are to be.
    pub all: u64,
    /// How long the rest takes, going by the pace so far.
    pub left: Option<Duration>,
}

/// What happens.
#[derive(Debug, Clone, PartialEq)]
pub enum Event<'a> {
    /// Something that takes a while and is no measurement.
    Preparing(&'a str),
    /// A round begins, counted from 0.
    Round(u32),
    /// A variant is being measured.
    Started(&'a str, Progress),
    /// A variant was measured.
    Measured(&'a str, Progress),
    /// A variant is given up, and why.
    Failed(&'a str, String),
}

/// Hears of what happens, on the calling thread.
pub type EventSink<'a> = &'a mut dyn FnMut(Event<'_>, &BenchReport);

/// Finds out whether the guest could be booted: its kernel's modules, its configuration. Nothing is made.
///
/// # Errors
/// [`IoBenchError`], the user's.
pub fn check(options: &IoOptions) -> Result<Vec<Variant>, IoBenchError> {
    let variants = plan(&options.plan);
    if variants.is_empty() {
        return Err(IoBenchError::Nothing);
    }
    if guest_targets(&variants).is_empty() {
        return Ok(variants);
    }
    // They are not opened, but each is to be another one.
    let spec = guest_spec(options, &variants, |target| format!("/{target:?}").into());
    spec.machine.validate()?;
    let guest_plan = GuestPlan {
        modules: modules_of(&spec),
        rootfs: Rootfs::Initramfs,
        command: GuestCommand::Exec(String::new()),
        drivers: options.functions.drivers(),
    };
    prepare(&guest_plan, &spec.machine)?;
    Ok(variants)
}

/// Measures all rounds. If the user ends it in between, what was measured is in the report, and so is that.
///
/// # Errors
/// [`IoBenchError`]; what goes wrong with one variant is in the report.
pub fn measure(
    options: &IoOptions,
    interrupt: &Interrupt,
    on_event: EventSink<'_>,
) -> Result<BenchReport, IoBenchError> {
    let variants = check(options)?;
    let program = load_program().map_err(IoBenchError::Program)?;
    let mut session = Session::new(options, interrupt, program, variants, on_event);
    session.measure_exits()?;
    session.make_files()?;
    session.make_group();
    let mut random = fastrand::Rng::with_seed(options.seed);
    session.begun = Instant::now();
    let mut longest = Duration::ZERO;
    for round in 0..options.rounds {
        let before = Instant::now();
        if round > 0 && session.is_late(longest) {
            session.end_early(round);
            break;
        }
        session.tell(Event::Round(round));
        for (runner, indices) in order(&session.variants, &mut random) {
            let seeds = indices.iter().map(|_| random.u64(..)).collect();
            let turn = Turn {
                round,
                runner,
                indices,
                seeds,
            };
            match session.take_turn(turn) {
                Err(IoBenchError::Interrupted) if session.has_samples() => {
                    return Ok(session.into_interrupted(round));
                }
                result => result?,
            }
        }
        longest = longest.max(before.elapsed());
    }
    Ok(session.into_report())
}

/// One runner's part of a round.
struct Turn {
    round: u32,
    runner: Runner,
    /// Of variants, in their order.
    indices: Vec<usize>,
    /// For each of them.
    seeds: Vec<u64>,
}

/// Why a variant was not measured.
#[derive(Clone)]
enum Trouble {
    /// It cannot be; the others can.
    Failed(String),
    /// It has its turn in the next round.
    NotNow(String),
    /// All is to end.
    Interrupted,
}

impl From<AgentError> for Trouble {
    fn from(error: AgentError) -> Self {
        if error.is_interrupt() {
            Self::Interrupted
        } else {
            Self::Failed(error.to_string())
        }
    }
}

impl From<TalkError> for Trouble {
    fn from(error: TalkError) -> Self {
        match error {
            TalkError::Interrupted => Self::Interrupted,
            other => Self::Failed(other.to_string()),
        }
    }
}

fn failed(error: impl fmt::Display) -> Trouble {
    Trouble::Failed(error.to_string())
}

struct Session<'a> {
    options: &'a IoOptions,
    interrupt: &'a Interrupt,
    program: LoadProgram,
    variants: Vec<Variant>,
    on_event: EventSink<'a>,
    report: BenchReport,
    files: BTreeMap<Target, BackingFile>,
    group: Option<ControlGroup>,
    loopback: Option<Peer>,
    /// Variants that had no turn in some round, and why.
    passed_over: BTreeMap<usize, String>,
    done: u64,
    /// When preparations began, and the rounds.
    started: Instant,
    begun: Instant,
}

impl<'a> Session<'a> {
    fn new(
        options: &'a IoOptions,
        interrupt: &'a Interrupt,
        program: LoadProgram,
        variants: Vec<Variant>,
        on_event: EventSink<'a>,
    ) -> Self {
        let report = BenchReport {
            version: VERSION,
            benchmark: "io".to_owned(),
            date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            environment: Environment::of_host(),
            guest: GuestFacts {
                kernel: String::new(),
                cmdline: String::new(),
                cpus: options.guest.cpus,
                memory_bytes: options.guest.memory.size_bytes,
                backends: backends(options, &variants),
                pins: options.pins.written(),
            },
            seed: options.seed,
            rounds: options.rounds,
            notes: options.notes.clone(),
            interrupted: false,
            exit_cost_ns: BTreeMap::new(),
            variants: variants.iter().map(|one| one.result.clone()).collect(),
        };
        Self {
            options,
            interrupt,
            program,
            variants,
            on_event,
            report,
            files: BTreeMap::new(),
            group: None,
            loopback: None,
            passed_over: BTreeMap::new(),
            done: 0,
            started: Instant::now(),
            begun: Instant::now(),
        }
    }

    fn tell(&mut self, event: Event<'_>) {
        (self.on_event)(event, &self.report);
    }

    fn note(&mut self, note: String) {
        if !self.report.notes.contains(&note) {
            self.report.notes.push(note);
        }
    }

    fn progress(&self) -> Progress {
        let all = self.variants.len() as u64 * u64::from(self.options.rounds);
        let each = u32::try_from(self.done)
            .ok()
            .and_then(|done| self.begun.elapsed().checked_div(done));
        let rest = u32::try_from(all.saturating_sub(self.done)).unwrap_or(u32::MAX);
        Progress {
            done: self.done,
            all,
            left: each.map(|each| each.saturating_mul(rest)),
        }
    }

    /// Whether a round that takes so long would not end in time.
    fn is_late(&self, round: Duration) -> bool {
        is_late(self.options.budget, self.started.elapsed(), round)
    }

    /// There are no more than so many rounds.
    fn end_early(&mut self, rounds: u32) {
        let wanted = self.options.rounds;
        self.note(format!(
            "only {rounds} of {wanted} rounds: more would not have ended within the time of a quick run; give --rounds N \
             to measure them all the same"
        ));
        self.report.rounds = rounds;
    }

    /// What an exit costs, for what the plain model predicts.
    fn measure_exits(&mut self) -> Result<(), IoBenchError> {
        if guest_targets(&self.variants).is_empty() {
            return Ok(());
        }
        self.tell(Event::Preparing("what an exit costs"));
        let options = ExitOptions {
            rounds: EXIT_ROUNDS,
            seed: self.options.seed,
            sample: EXIT_SAMPLE,
            affinity: self.options.pins.of_exit_guest(),
            counted: true,
        };
        match measure_exits(&options, &mut |_, _| {}) {
            Ok(report) => {
                let medians = report.results.iter().filter_map(|(name, cost)| match cost {
                    ExitCost::Measured { ns, .. } => Some(((*name).to_owned(), ns.median)),
                    ExitCost::Failed { .. } => None,
                });
                self.report.exit_cost_ns = medians.collect();
            }
            Err(error) => self.note(error.to_string()),
        }
        self.check_interrupt()
    }

    fn check_interrupt(&self) -> Result<(), IoBenchError> {
        if self.interrupt.is_raised() {
            return Err(IoBenchError::Interrupted);
        }
        Ok(())
    }

    /// A file for each disk that the guest has, alike in all. The baselines' is the virtio disk's.
    fn make_files(&mut self) -> Result<(), IoBenchError> {
        let wanted = file_targets(&self.variants);
        if wanted.is_empty() {
            return Ok(());
        }
        self.tell(Event::Preparing("the files of disks"));
        for target in wanted {
            let folder = &self.options.disk_folder;
            let file = BackingFile::make(folder, self.options.disk_bytes, self.options.seed)?;
            if target == Target::VirtioBlk {
                self.set_path(Target::File, &file.path_for_heir());
            }
            self.files.insert(target, file);
            self.check_interrupt()?;
        }
        Ok(())
    }

    fn set_path(&mut self, target: Target, to: &std::path::Path) {
        let all = self.variants.iter_mut().zip(&mut self.report.variants);
        for (variant, result) in all.filter(|(variant, _)| variant.target == target) {
            if let Load::Block { path, .. } = &mut variant.result.spec.load {
                *path = to.to_owned();
            }
            result.spec = variant.result.spec.clone();
        }
    }

    fn make_group(&mut self) {
        if !self
            .variants
            .iter()
            .any(|one| one.runner == Runner::Container)
        {
            return;
        }
        let name = format!("tripath-bench-{}", std::process::id());
        match ControlGroup::make(&name, &*self.options.janitor) {
            Ok(Some(group)) => self.group = Some(group),
            Ok(None) => self.note(
                "no control groups are mounted: the container has namespaces only".to_owned(),
            ),
            Err(error) => self.note(format!(
                "the container has namespaces only: its control group cannot be made: {error}"
            )),
        }
    }

    fn take_turn(&mut self, mut turn: Turn) -> Result<(), IoBenchError> {
        self.check_interrupt()?;
        // One that has failed is not tried again.
        let results = &self.report.variants;
        let given_up: Vec<bool> = turn
            .indices
            .iter()
            .map(|index| results[*index].failure.is_some())
            .collect();
        let skipped = given_up.iter().filter(|one| **one).count();
        self.done += skipped as u64;
        let mut keep = given_up.iter();
        turn.seeds.retain(|_| keep.next() == Some(&false));
        let mut keep = given_up.iter();
        turn.indices.retain(|_| keep.next() == Some(&false));
        match turn.runner {
            Runner::Guest => self.guest_turn(&turn),
            _ => self.baseline_turn(&turn),
        }
    }

    /// Measures one variant by `run`, and keeps what comes of it.
    fn sample(
        &mut self,
        turn: &Turn,
        place: usize,
        run: &mut dyn FnMut(&mut Self, &Variant, &LoadSpec) -> Result<Sample, Trouble>,
    ) -> Result<(), IoBenchError> {
        self.check_interrupt()?;
        let index = turn.indices[place];
        let variant = self.variants[index].clone();
        let name = variant.result.name.clone();
        self.tell(Event::Started(&name, self.progress()));
        let mut spec = variant.result.spec.clone();
        spec.seed = turn.seeds[place];
        let outcome = run(self, &variant, &spec);
        self.done += 1;
        match outcome {
            Ok(mut sample) => {
                sample.round = turn.round;
                self.report.variants[index].samples.push(sample);
                let progress = self.progress();
                self.tell(Event::Measured(&name, progress));
                Ok(())
            }
            Err(Trouble::Failed(error)) => {
                self.report.variants[index].failure = Some(error.clone());
                self.tell(Event::Failed(&name, error));
                Ok(())
            }
            Err(Trouble::NotNow(reason)) => {
                self.passed_over.insert(index, reason);
                Ok(())
            }
            Err(Trouble::Interrupted) => Err(IoBenchError::Interrupted),
        }
    }

    /// Where a variant's peer is this time, for the report.
    fn keep_peer(&mut self, name: &str, spec: &LoadSpec) {
        if let Some(result) = self.report.variants.iter_mut().find(|one| one.name == name) {
            result.spec.load = spec.load.clone();
        }
    }

    fn loopback(&mut self) -> Result<SocketAddr, Trouble> {
        if self.loopback.is_none() {
            self.loopback = Some(self.peer_at(Ipv4Addr::LOCALHOST)?);
        }
        self.loopback
            .as_ref()
            .map(Peer::address)
            .ok_or_else(|| failed("there is no peer"))
    }

    fn peer_at(&self, address: Ipv4Addr) -> Result<Peer, Trouble> {
        let cpus = &self.options.pins.load;
        Ok(Peer::start(&self.program, address, cpus, self.interrupt)?)
    }

    fn has_samples(&self) -> bool {
        let mut variants = self.report.variants.iter();
        variants.any(|one| !one.samples.is_empty())
    }

    fn into_interrupted(mut self, round: u32) -> BenchReport {
        let wanted = self.options.rounds;
        self.note(format!("interrupted in round {} of {wanted}", round + 1));
        self.report.rounds = round + 1;
        self.report.interrupted = true;
        self.into_report()
    }

    /// What was passed over in each round has failed.
    fn into_report(mut self) -> BenchReport {
        for (index, reason) in self.passed_over {
            let variant = &mut self.report.variants[index];
            if variant.samples.is_empty() {
                variant.failure.get_or_insert(reason);
            }
        }
        self.report
    }
}

/// Whether, after `spent`, a round that takes as long as the longest so far would not end within `budget`.
fn is_late(budget: Option<Duration>, spent: Duration, longest: Duration) -> bool {
    // No round takes exactly as long as another.
    let round = longest + longest / 4;
    budget.is_some_and(|budget| spent + round > budget)
}

/// What the guest is to have.
fn guest_targets(variants: &[Variant]) -> Vec<Target> {
    let of_guest = variants.iter().filter(|one| one.runner == Runner::Guest);
    let mut targets: Vec<Target> = of_guest.map(|one| one.target).collect();
    targets.sort_unstable();
    targets.dedup();
    targets
}

/// Disks with a file behind them. The baselines use that of the virtio disk.
fn file_targets(variants: &[Variant]) -> Vec<Target> {
    let mut targets: Vec<Target> = variants
        .iter()
        .filter_map(|one| match one.target {
            Target::File | Target::VirtioBlk => Some(Target::VirtioBlk),
            Target::Ide => Some(Target::Ide),
            _ => None,
        })
        .collect();
    targets.sort_unstable();
    targets.dedup();
    targets
}

/// What the guest's process is told.
fn guest_spec(
    options: &IoOptions,
    variants: &[Variant],
    disk: impl Fn(Target) -> PathBuf,
) -> GuestSpec {
    let targets = guest_targets(variants);
    let modules = match &options.modules {
        ModuleSource::Folder(folder) => Some(folder.clone()),
        ModuleSource::Search | ModuleSource::BuiltIn => None,
    };
    let drivers = options.functions.drivers();
    GuestSpec {
        machine: options.guest.config(&targets, disk),
        modules,
        built_in: options.modules == ModuleSource::BuiltIn,
        drivers: drivers.into_iter().map(str::to_owned).collect(),
        io_cpus: options.pins.io.clone(),
    }
}

/// What disks and networks lead to, a line each.
fn backends(options: &IoOptions, variants: &[Variant]) -> Vec<String> {
    let has = |target: Target| variants.iter().any(|one| one.target == target);
    let mut lines = Vec::new();
    if !file_targets(variants).is_empty() {
        lines.push(format!(
            "disks: a file of {} MiB each in {}, {} the host's page cache",
            options.disk_bytes >> 20,
            options.disk_folder.display(),
            if options.guest.direct { "past" } else { "in" },
        ));
    }
    if has(Target::VirtioNet) || has(Target::E1000) {
        lines.push("networks: a TAP each; the peer is a process on this host".to_owned());
    }
    if has(Target::Nic)
        && let Some(nic) = &options.functions.nic
    {
        let (function, pf) = (&nic.address, &nic.pf_interface);
        lines.push(format!(
            "{}: virtual function {function}; the peer is a process on this host, behind {pf}",
            nic.driver
        ));
    }
    if has(Target::Uart) || has(Target::VirtioConsole) {
        lines.push("consoles: what is written is thrown away".to_owned());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_round_begins_that_would_not_end_in_time() {
        let seconds = Duration::from_secs;
        let budget = Some(seconds(110));
        assert!(!is_late(budget, seconds(60), seconds(40)));
        assert!(is_late(budget, seconds(61), seconds(40)));
        assert!(!is_late(None, seconds(1000), seconds(40)));
    }

    #[test]
    fn pins_are_written_and_are_those_of_both_vcpus_of_the_exit_guest() {
        let pins = Pins {
            vcpu: vec![2, 3],
            io: Vec::new(),
            load: vec![0],
        };
        assert_eq!(pins.written(), ["vcpu=2+3", "load=0"]);
        let exit_guest = pins.of_exit_guest();
        assert_eq!(exit_guest.len(), 2);
        assert!(exit_guest.iter().all(|one| one.host_cpus == [2, 3]));
        assert!(Pins::default().of_exit_guest().is_empty());
    }
}
