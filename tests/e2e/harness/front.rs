//! The front: command line, choice of the place, and what the user gets to see.

use std::fs;
use std::process::ExitCode;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};

use anyhow::{Context, Result, bail};
use libtest_mimic::{Arguments, Failed, Trial};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::l1::{Flavour, L1};
use super::measure::FIGURE_MARK;
use super::runner::{self, Outcome};
use super::{E2eTest, paths};

/// How many lines of a failing test's log are shown with it.
const TAIL_LINES: usize = 60;
/// Tests at a time. Most of their time is the guests'; an emulated L1 has one CPU, and each test one of its own.
const LANES: usize = 2;

/// Runs the tests that the command line asks for.
pub fn main(tests: Vec<E2eTest>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    let listing = arguments.list;
    let place = match if listing {
        Ok(Place::new(true))
    } else {
        choose_place()
    } {
        Ok(place) => Arc::new(place),
        Err(error) => {
            eprintln!("e2e: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    if let Err(error) = end_on_signals(place.clone()) {
        eprintln!("e2e: cannot catch signals: {error}");
        return ExitCode::FAILURE;
    }
    arguments.test_threads.get_or_insert(LANES);
    let turns = Arc::new(RwLock::new(()));
    let figures = Arc::new(Mutex::new(Vec::new()));
    let trials = tests
        .into_iter()
        .map(|test| {
            let (place, turns, figures) = (place.clone(), turns.clone(), figures.clone());
            Trial::test(test.name.clone(), move || {
                let outcome = if test.alone {
                    let _turn = turns.write().unwrap_or_else(PoisonError::into_inner);
                    place.run(&test)
                } else {
                    let _turn = turns.read().unwrap_or_else(PoisonError::into_inner);
                    place.run(&test)
                };
                figures
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .extend(figures_in(&outcome.log));
                verdict(&test.name, &outcome)
            })
        })
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    for figure in figures
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .iter()
    {
        println!("{figure}");
    }
    place.close();
    conclusion.exit_code()
}

/// Where the tests run: so many at a time, each in a lane of its own.
struct Place {
    lanes: Vec<Lane>,
    /// Those that no test is in.
    free: Mutex<Vec<usize>>,
    freed: Condvar,
}

/// Room for one test at a time.
struct Lane {
    /// The machine under QEMU; none if this machine's own KVM will do.
    plain: Option<L1>,
    /// The same with devices to give away, and with a clock that counts instructions, for the tests that need them.
    /// They come last.
    special: [L1; 2],
}

impl Place {
    fn new(on_host: bool) -> Self {
        let lane = |number| Lane {
            plain: (!on_host).then(|| L1::new(Flavour::Plain, number)),
            special: [Flavour::Passthrough, Flavour::Counted]
                .map(|flavour| L1::new(flavour, number)),
        };
        Place {
            lanes: (0..LANES).map(lane).collect(),
            free: Mutex::new((0..LANES).collect()),
            freed: Condvar::new(),
        }
    }

    fn run(&self, test: &E2eTest) -> Outcome {
        let lane = self.enter();
        let outcome = self.lanes[lane].run(test);
        self.free().push(lane);
        self.freed.notify_one();
        outcome
    }

    /// The number of a lane, which no other test gets until it is given back.
    fn enter(&self) -> usize {
        let mut free = self.free();
        loop {
            match free.pop() {
                Some(lane) => return lane,
                None => {
                    free = self
                        .freed
                        .wait(free)
                        .unwrap_or_else(PoisonError::into_inner)
                }
            }
        }
    }

    fn free(&self) -> MutexGuard<'_, Vec<usize>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn machines(&self) -> impl Iterator<Item = &L1> {
        let lanes = self.lanes.iter();
        lanes.flat_map(|lane| lane.plain.iter().chain(&lane.special))
    }

    fn close(&self) {
        self.machines().for_each(L1::close);
    }
}

impl Lane {
    fn run(&self, test: &E2eTest) -> Outcome {
        let machines = || self.plain.iter().chain(&self.special);
        let l1 = machines().find(|l1| l1.flavour() == test.flavour());
        // Two machines at once would only take each other's time.
        let others = machines().filter(|l1| l1.flavour() != test.flavour());
        others.for_each(L1::close);
        match l1 {
            None => runner::run(test),
            Some(l1) => l1
                .run(&test.name, test.limit)
                .unwrap_or_else(|error| Outcome::failed(format!("{error:#}"), String::new())),
        }
    }
}

fn choose_place() -> Result<Place> {
    fs::create_dir_all(paths::logs()).context("cannot make the folder of logs")?;
    let on_host = match std::env::var("TRIPATH_E2E").as_deref() {
        Ok("host") => true,
        Ok("l1") => false,
        Ok(other) => bail!("TRIPATH_E2E={other}: it is host or l1"),
        Err(_) => host_can_run_guests(),
    };
    if on_host {
        eprintln!("e2e: the guests run on this machine's own KVM");
        paths::set_up_testbed(&[])?;
        Ok(Place::new(true))
    } else {
        eprintln!(
            "e2e: no VT-x or AMD-V with a usable /dev/kvm: the guests run in the test bed (L1, under QEMU)"
        );
        paths::set_up_testbed(&[])?;
        Ok(Place::new(false))
    }
}

/// Ctrl-C and SIGTERM take L1 along.
fn end_on_signals(place: Arc<Place>) -> std::io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            place.machines().for_each(L1::close_now);
            std::process::exit(128 + signal);
        }
    });
    Ok(())
}

/// A `/dev/kvm` alone says little: software KVMs offer one too, and cannot run a stock kernel.
fn host_can_run_guests() -> bool {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let virtualises = cpu
        .split_whitespace()
        .any(|word| word == "vmx" || word == "svm");
    virtualises
        && fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .is_ok()
}

fn figures_in(log: &str) -> Vec<String> {
    log.lines()
        .filter_map(|line| Some(line.split_once(FIGURE_MARK)?.1.trim().to_owned()))
        .collect()
}

/// Keeps the log and turns the outcome into what the test runner wants.
fn verdict(name: &str, outcome: &Outcome) -> Result<(), Failed> {
    let kept = outcome.keep_log(name);
    let Some(reason) = &outcome.failure else {
        return Ok(());
    };
    let lines: Vec<&str> = outcome.log.lines().collect();
    let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
    Err(format!("{reason}\n--- end of the log:\n{tail}\n--- {kept}").into())
}
