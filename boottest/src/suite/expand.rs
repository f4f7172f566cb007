//! From a suite's tables to its tests.

use std::collections::BTreeSet;
use std::path::Path;

use vmm_core::config::{CpuConfig, MemoryConfig};

use super::Wrong;
use super::file::{Exclusion, Layer, Matrix, SuiteFile, TestTable};
use super::variables::list;
use crate::run::TestMachine;
use crate::spec::{Asked, GuestSpec, TestSpec};

/// More are a mistake in the matrix.
const MOST_TESTS: usize = 10_000;

/// One point of the matrix.
#[derive(Debug, Clone, Copy, Default)]
struct Point<'a> {
    kernel: Option<&'a Layer>,
    machine: Option<&'a Layer>,
    cpus: Option<u32>,
    memory: Option<&'a MemoryConfig>,
}

/// All tests at all points. Relative paths are relative to `folder`.
pub(super) fn tests(file: &SuiteFile, folder: &Path) -> Result<Vec<TestSpec>, Wrong> {
    check_names(file)?;
    let mut names = BTreeSet::new();
    let mut tests = Vec::new();
    for test in &file.tests {
        for point in points(file, test)? {
            let excluded = |one: &Exclusion| excludes(one, &test.layer.name, &point);
            if file.matrix.exclude.iter().any(excluded) {
                continue;
            }
            let spec = spec(file, test, &point, folder);
            let place = || format!("test {:?}: ", spec.name);
            TestMachine::of(&spec).map_err(|error| (place(), error.to_string()))?;
            if !names.insert(spec.name.clone()) {
                return Err((place(), "there are two of that name".into()));
            }
            tests.push(spec);
            if tests.len() > MOST_TESTS {
                let message = format!("more than {MOST_TESTS} tests: the matrix is too large");
                return Err((String::new(), message));
            }
        }
    }
    if tests.is_empty() {
        let message = "there is no test: add [[test]] with a name".to_owned();
        return Err((String::new(), message));
    }
    Ok(tests)
}

/// What is named must be there.
fn check_names(file: &SuiteFile) -> Result<(), Wrong> {
    let names = |layers: &[Layer]| -> Vec<String> {
        layers.iter().map(|layer| layer.name.clone()).collect()
    };
    let known = [
        ("kernel", names(&file.kernels)),
        ("machine", names(&file.machines)),
        (
            "test",
            file.tests
                .iter()
                .map(|test| test.layer.name.clone())
                .collect(),
        ),
    ];
    for (kind, names) in &known {
        let mut seen = BTreeSet::new();
        if let Some(name) = names.iter().find(|name| !seen.insert(*name)) {
            return Err((
                format!("{kind} {name:?}: "),
                "there are two of that name".into(),
            ));
        }
    }
    let check = |place: &str, kind: usize, name: &String| {
        let (kind, names) = &known[kind];
        if names.contains(name) {
            return Ok(());
        }
        let there = list(names.iter());
        let message = format!("there is no {kind} {name:?}; there are: {there}");
        Err((place.to_owned(), message))
    };
    for test in &file.tests {
        let place = |key: &str| format!("test {:?}: {key}: ", test.layer.name);
        for name in test.kernels.iter().flatten() {
            check(&place("kernels"), 0, name)?;
        }
        for name in test.machines.iter().flatten() {
            check(&place("machines"), 1, name)?;
        }
    }
    for one in &file.matrix.exclude {
        for (kind, name) in [&one.kernel, &one.machine, &one.test]
            .into_iter()
            .enumerate()
        {
            if let Some(name) = name {
                check("[matrix]: exclude: ", kind, name)?;
            }
        }
    }
    Ok(())
}

fn points<'a>(file: &'a SuiteFile, test: &TestTable) -> Result<Vec<Point<'a>>, Wrong> {
    let Matrix { cpus, memory, .. } = &file.matrix;
    let chosen = |layers: &'a [Layer], only: &Option<Vec<String>>| -> Vec<Option<&'a Layer>> {
        if layers.is_empty() {
            return vec![None];
        }
        let wanted = |layer: &&Layer| only.as_ref().is_none_or(|only| only.contains(&layer.name));
        layers.iter().filter(wanted).map(Some).collect()
    };
    // What a test says of itself it does not vary in.
    let cpus: Vec<Option<u32>> = match cpus[..] {
        [] => vec![None],
        _ if test.layer.machine.cpus.is_some() => vec![None],
        _ => cpus.iter().copied().map(Some).collect(),
    };
    let memory: Vec<Option<&MemoryConfig>> = match memory[..] {
        [] => vec![None],
        _ if test.layer.machine.memory.is_some() => vec![None],
        _ => memory.iter().map(Some).collect(),
    };
    let mut points = Vec::new();
    for kernel in chosen(&file.kernels, &test.kernels) {
        for machine in chosen(&file.machines, &test.machines) {
            for &cpus in &cpus {
                for &memory in &memory {
                    points.push(Point {
                        kernel,
                        machine,
                        cpus,
                        memory,
                    });
                }
            }
        }
    }
    if points.is_empty() {
        let place = format!("test {:?}: ", test.layer.name);
        return Err((place, "kernels or machines is empty".into()));
    }
    Ok(points)
}

fn excludes(one: &Exclusion, test: &str, point: &Point<'_>) -> bool {
    fn holds<T: PartialEq + ?Sized>(said: Option<&T>, is: Option<&T>) -> bool {
        said.is_none() || said == is
    }
    let name_of = |layer: Option<&Layer>| layer.map(|layer| layer.name.clone());
    holds(one.test.as_deref(), Some(test))
        && holds(one.kernel.as_ref(), name_of(point.kernel).as_ref())
        && holds(one.machine.as_ref(), name_of(point.machine).as_ref())
        && holds(one.cpus.as_ref(), point.cpus.as_ref())
        && holds(one.memory.as_ref(), point.memory)
}

fn spec(file: &SuiteFile, test: &TestTable, point: &Point<'_>, folder: &Path) -> TestSpec {
    let layers = [
        Some(&file.defaults),
        point.kernel,
        point.machine,
        Some(&test.layer),
    ];
    let mut spec = TestSpec {
        name: name_at(&test.layer.name, point),
        ..TestSpec::default()
    };
    for layer in layers.into_iter().flatten() {
        spec.machine = spec.machine.overridden_by(layer.machine.clone());
        spec.asked = asked(spec.asked, layer.asked.clone());
        spec.guest = guest(spec.guest, layer.guest.clone());
    }
    if let Some(count) = point.cpus {
        spec.machine.cpus = Some(CpuConfig {
            count,
            affinity: Vec::new(),
        });
    }
    if let Some(memory) = point.memory {
        spec.machine.memory = Some(memory.clone());
    }
    spec.machine.resolve_paths(folder);
    spec.guest.resolve_paths(folder);
    spec
}

/// `disk/6.1-cloud/virtio/2cpu`.
fn name_at(test: &str, point: &Point<'_>) -> String {
    let mut name = test.to_owned();
    for layer in [point.kernel, point.machine].into_iter().flatten() {
        name.push('/');
        name.push_str(&layer.name);
    }
    if let Some(cpus) = point.cpus {
        name.push_str(&format!("/{cpus}cpu"));
    }
    if let Some(memory) = point.memory {
        name.push_str(&format!("/{}M", memory.size_bytes >> 20));
    }
    name
}

fn asked(base: Asked, winner: Asked) -> Asked {
    fn list<T>(base: Vec<T>, winner: Vec<T>) -> Vec<T> {
        if winner.is_empty() { base } else { winner }
    }
    Asked {
        steps: list(base.steps, winner.steps),
        expect: list(base.expect, winner.expect),
        reject: list(base.reject, winner.reject),
        ignore: list(base.ignore, winner.ignore),
        end: winner.end.or(base.end),
        timeout: winner.timeout.or(base.timeout),
        quiet_timeout: winner.quiet_timeout.or(base.quiet_timeout),
        resets: winner.resets.or(base.resets),
    }
}

/// A command replaces a script and the other way round.
fn guest(base: GuestSpec, winner: GuestSpec) -> GuestSpec {
    let (exec, script) = if winner.has_command() {
        (winner.exec, winner.script)
    } else {
        (base.exec, base.script)
    };
    GuestSpec {
        exec,
        script,
        rootfs: winner.rootfs.or(base.rootfs),
        modules: winner.modules.or(base.modules),
    }
}
