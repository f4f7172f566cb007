//! What exits cost on this host.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use thiserror::Error;
use vmm_core::config::CpuAffinity;
use vmm_core::exit_cost::{ExitCostError, ExitKind, ExitMachine};
use vmm_core::stats::StatsHandle;

use crate::environment::Environment;
use crate::rounds::Rounds;
use crate::stats::{Summary, median};

/// How many interrupts are sent for one sample: each is timed by itself, and their median is the sample.
const INTERRUPTS: u32 = 100;
/// The same for a guest that halts, which takes milliseconds each.
const WAKEUPS: u32 = 20;
/// Operations to find out how long they take.
const TRIAL: u32 = 16;
const MOST_OPERATIONS: f64 = 10_000_000.0;

/// How to measure.
#[derive(Debug, Clone)]
pub struct ExitOptions {
    /// How many samples of each kind.
    pub rounds: u32,
    /// For the order within the rounds.
    pub seed: u64,
    /// How long the operations of one sample take together.
    pub sample: Duration,
    /// Where the two vCPUs run; anywhere if it does not say.
    pub affinity: Vec<CpuAffinity>,
    /// Whether exits are counted, as they are with `--stats`.
    pub counted: bool,
}

/// The cost of one kind of exit.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum ExitCost {
    /// Measured.
    Measured {
        /// Nanoseconds an operation.
        ns: Summary,
        /// Operations in each sample.
        operations: u32,
        /// The samples, in the order they were taken.
        samples_ns: Vec<f64>,
    },
    /// This KVM cannot do it.
    Failed {
        /// What came instead.
        error: String,
    },
}

/// All of them, and where.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExitReport {
    /// Of this format.
    pub version: u32,
    /// What was measured.
    pub benchmark: &'static str,
    /// Where.
    pub environment: Environment,
    /// What is to be known about the numbers before they are used.
    pub notes: Vec<String>,
    /// See [`ExitOptions::seed`].
    pub seed: u64,
    /// See [`ExitOptions::rounds`].
    pub rounds: u32,
    /// Where vCPUs were made to run, as in `0@2-3`; empty if anywhere.
    pub pins: Vec<String>,
    /// See [`ExitOptions::counted`].
    pub counted: bool,
    /// By the name of the kind.
    pub results: BTreeMap<&'static str, ExitCost>,
}

/// Nothing can be measured.
#[derive(Debug, Error)]
#[error("exits cannot be measured: {0}")]
pub struct ExitBenchError(#[from] ExitCostError);

/// The work of [`measure`].
struct Bench<'a> {
    options: &'a ExitOptions,
    machine: Option<ExitMachine>,
    found: BTreeMap<ExitKind, Found>,
}

#[derive(Default)]
struct Found {
    operations: u32,
    samples_ns: Vec<f64>,
    error: Option<String>,
}

/// Measures all kinds of exits; `progress` is told how many of how many samples there are. A kind that this KVM cannot
/// do is in the report as such.
///
/// # Errors
/// There is no KVM, or it makes no machine.
pub fn measure(
    options: &ExitOptions,
    progress: &mut dyn FnMut(u32, u32),
) -> Result<ExitReport, ExitBenchError> {
    let mut bench = Bench {
        options,
        machine: Some(start(options)?),
        found: BTreeMap::new(),
    };
    for kind in ExitKind::ALL {
        bench.warm_up(kind)?;
    }
    let works = |kind: &ExitKind| bench.found[kind].error.is_none();
    let kinds: Vec<ExitKind> = ExitKind::ALL.into_iter().filter(works).collect();
    let all = u32::try_from(kinds.len())
        .unwrap_or(u32::MAX)
        .saturating_mul(options.rounds);
    let mut done = 0;
    for round in Rounds::new(kinds, options.rounds, options.seed) {
        for kind in round {
            bench.sample(kind)?;
            done += 1;
            progress(done, all);
        }
    }
    Ok(ExitReport {
        version: 1,
        benchmark: "exits",
        environment: Environment::of_host(),
        notes: Vec::new(),
        seed: options.seed,
        rounds: options.rounds,
        pins: options
            .affinity
            .iter()
            .map(CpuAffinity::to_string)
            .collect(),
        counted: options.counted,
        results: bench.results(),
    })
}

impl Bench<'_> {
    /// Finds out how many operations make a sample, and whether there can be any.
    fn warm_up(&mut self, kind: ExitKind) -> Result<(), ExitBenchError> {
        let operations = match kind {
            ExitKind::Irqfd => INTERRUPTS,
            ExitKind::Hlt => WAKEUPS,
            _ => {
                let mut each_ns = f64::INFINITY;
                // The first may be slow: memory is touched, threads wake up.
                for _ in 0..3 {
                    each_ns = self.try_once(kind, TRIAL)?.unwrap_or(each_ns).min(each_ns);
                }
                operations(self.options.sample, each_ns)
            }
        };
        self.found.entry(kind).or_default().operations = operations;
        if self.found[&kind].error.is_none() {
            self.try_once(kind, operations)?;
        }
        Ok(())
    }

    fn sample(&mut self, kind: ExitKind) -> Result<(), ExitBenchError> {
        let operations = self.found[&kind].operations;
        if let Some(sample) = self.try_once(kind, operations)? {
            let found = self.found.entry(kind).or_default();
            found.samples_ns.push(sample);
        }
        Ok(())
    }

    /// None if this KVM cannot do it; the machine is then a new one.
    fn try_once(&mut self, kind: ExitKind, count: u32) -> Result<Option<f64>, ExitBenchError> {
        if self.found.entry(kind).or_default().error.is_some() {
            return Ok(None);
        }
        let machine = match self.machine.take() {
            Some(machine) => machine,
            None => start(self.options)?,
        };
        match machine.measure(kind, count) {
            Ok(times) => {
                self.machine = Some(machine);
                Ok(median(&times))
            }
            Err(error) => {
                self.found.entry(kind).or_default().error = Some(error.to_string());
                Ok(None)
            }
        }
    }

    fn results(self) -> BTreeMap<&'static str, ExitCost> {
        let cost = |found: Found| match (found.error, Summary::of(&found.samples_ns)) {
            (None, Some(ns)) => ExitCost::Measured {
                ns,
                operations: found.operations,
                samples_ns: found.samples_ns,
            },
            (error, _) => ExitCost::Failed {
                error: error.unwrap_or_else(|| "there was no sample".to_owned()),
            },
        };
        self.found
            .into_iter()
            .map(|(kind, found)| (kind.name(), cost(found)))
            .collect()
    }
}

fn start(options: &ExitOptions) -> Result<ExitMachine, ExitCostError> {
    let stats = options.counted.then(StatsHandle::default);
    ExitMachine::start(&options.affinity, stats.as_ref())
}

/// How many operations of that cost take so long; at least as many as a trial.
fn operations(sample: Duration, each_ns: f64) -> u32 {
    let count = sample.as_secs_f64() * 1e9 / each_ns.max(1.0);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Within bounds.
    let count = count.clamp(f64::from(TRIAL), MOST_OPERATIONS) as u32;
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_as_long_as_it_is_to_be() {
        let sample = Duration::from_millis(20);
        assert_eq!(operations(sample, 2000.0), 10_000);
        assert_eq!(operations(sample, f64::INFINITY), TRIAL);
        assert_eq!(operations(sample, 1e9), TRIAL);
        assert_eq!(operations(sample, 0.0), 10_000_000);
    }

    #[test]
    fn what_a_kvm_cannot_do_is_in_the_report() {
        let found = |samples_ns: &[f64], error: Option<&str>| Found {
            operations: 100,
            samples_ns: samples_ns.to_vec(),
            error: error.map(str::to_owned),
        };
        let options = ExitOptions {
            rounds: 3,
            seed: 1,
            sample: Duration::from_millis(1),
            affinity: Vec::new(),
            counted: false,
        };
        let bench = Bench {
            options: &options,
            machine: None,
            found: BTreeMap::from([
                (ExitKind::Cpuid, found(&[3.0, 1.0, 2.0], None)),
                (ExitKind::Hypercall, found(&[], Some("the guest stopped"))),
            ]),
        };
        let json = serde_json::to_value(bench.results()).unwrap();
        assert_eq!(json["cpuid"]["ns"]["median"], 2.0);
        assert_eq!(json["cpuid"]["operations"], 100);
        assert_eq!(json["hypercall"]["error"], "the guest stopped");
    }
}
