//! Two runs of the benchmark, side by side: what got slower.

use std::collections::BTreeSet;
use std::fmt;

use comfy_table::{CellAlignment, Table, presets};
use tripath_load::spec::Load;

use crate::analysis::significance::Verdict;
use crate::analysis::{Analysed, analyse};
use crate::environment::Environment;
use crate::format::{rate, times};
use crate::results::BenchReport;
use crate::text::plain;

/// What became of a variant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Its rates are compared.
    Rates(Verdict),
    /// The new run has not measured it.
    Missing,
    /// The old run has not measured it.
    New,
    /// The new run could not measure it, or not to the end, and the old one could.
    Failed,
    /// It has the same name and another load.
    OtherLoad,
}

impl Change {
    /// Worse than it was.
    #[must_use]
    pub fn is_worse(self) -> bool {
        matches!(self, Self::Rates(Verdict::Slower) | Self::Failed)
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rates(verdict) => fmt::Display::fmt(verdict, f),
            Self::Missing => f.pad("missing"),
            Self::New => f.pad("new"),
            Self::Failed => f.pad("fails now"),
            Self::OtherLoad => f.pad("not compared: another load"),
        }
    }
}

/// One variant in both runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The variant's name.
    pub name: String,
    /// What [`old`](Self::old) and [`new`](Self::new) are in, as in `op/s`.
    pub unit: &'static str,
    /// The old median rate.
    pub old: Option<f64>,
    /// The new one.
    pub new: Option<f64>,
    /// What became of it.
    pub change: Change,
}

/// What the two runs do not share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// What it is, as in `kernel`.
    pub what: String,
    /// In the old run.
    pub old: String,
    /// In the new run.
    pub new: String,
    /// The rates depend on it so much that slower and faster mean little.
    pub warned: bool,
}

/// Two runs, compared.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// In the order of the new run; what is missing comes last.
    pub rows: Vec<Row>,
    /// Of the environments.
    pub differences: Vec<Difference>,
}

/// Compares two runs, variant by variant, by name.
#[must_use]
pub fn compare(old: &BenchReport, new: &BenchReport) -> Comparison {
    let (old_all, new_all) = (analyse(old), analyse(new));
    let mut rows: Vec<Row> = new_all
        .iter()
        .map(|one| row(find(&old_all, &one.variant.name), Some(one), one))
        .collect();
    let missing = old_all
        .iter()
        .filter(|one| find(&new_all, &one.variant.name).is_none());
    rows.extend(missing.map(|one| row(Some(one), None, one)));
    Comparison {
        rows,
        differences: differences(old, new),
    }
}

impl Comparison {
    /// Something got slower, or can no longer be measured.
    #[must_use]
    pub fn is_worse(&self) -> bool {
        self.rows.iter().any(|row| row.change.is_worse())
    }

    /// For a terminal: the environments' differences, a table, and one line that sums it up.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = String::new();
        for it in &self.differences {
            let kind = if it.warned { "warning" } else { "note" };
            let values = format!("{} -> {}", plain(&it.old), plain(&it.new));
            text.push_str(&format!("{kind}: other {}: {values}\n", plain(&it.what)));
        }
        let mut table = Table::new();
        table
            .load_style(presets::NOTHING)
            .set_header(["variant", "old", "new", "", ""]);
        for column in table.column_iter_mut().skip(1).take(3) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        for row in &self.rows {
            let figure = |it: Option<f64>| it.map_or("-".to_owned(), |it| rate(it, row.unit));
            let both = row.old.zip(row.new).filter(|(old, _)| *old > 0.0);
            table.add_row([
                plain(&row.name),
                figure(row.old),
                figure(row.new),
                both.map_or(String::new(), |(old, new)| times(new / old)),
                row.change.to_string(),
            ]);
        }
        text.push_str(&format!("{}\n{}\n", table.trim_fmt(), self.summary()));
        text
    }

    /// As in "2 slower, 1 faster, 30 no difference found".
    #[must_use]
    pub fn summary(&self) -> String {
        const ORDER: [Change; 8] = [
            Change::Rates(Verdict::Slower),
            Change::Failed,
            Change::Rates(Verdict::Faster),
            Change::Rates(Verdict::Same),
            Change::Rates(Verdict::Undecided),
            Change::Missing,
            Change::New,
            Change::OtherLoad,
        ];
        let counted = ORDER.into_iter().filter_map(|change| {
            let count = self.rows.iter().filter(|row| row.change == change).count();
            (count > 0).then(|| format!("{count} {change}"))
        });
        let parts: Vec<String> = counted.collect();
        if parts.is_empty() {
            "nothing to compare".to_owned()
        } else {
            parts.join(", ")
        }
    }
}

fn find<'a, 'b>(all: &'b [Analysed<'a>], name: &str) -> Option<&'b Analysed<'a>> {
    all.iter().find(|one| one.variant.name == name)
}

fn row(old: Option<&Analysed<'_>>, new: Option<&Analysed<'_>>, either: &Analysed<'_>) -> Row {
    let median = |one: Option<&Analysed<'_>>| one?.rate.map(|rate| rate.median);
    let change = match (old, new) {
        (Some(old), Some(new)) if !same_load(&old.variant.spec.load, &new.variant.spec.load) => {
            Change::OtherLoad
        }
        (Some(old), Some(new)) if measured(old) > measured(new) => Change::Failed,
        (Some(old), Some(new)) => Change::Rates(Verdict::of(&old.rates, &new.rates)),
        (None, _) => Change::New,
        (_, None) => Change::Missing,
    };
    Row {
        name: either.variant.name.clone(),
        unit: either.counts.unit(),
        old: median(old),
        new: median(new),
        change,
    }
}

/// How far it could be measured: not at all, in some rounds, or to the end.
fn measured(one: &Analysed<'_>) -> u8 {
    match (one.rate, &one.variant.failure) {
        (None, _) => 0,
        (Some(_), Some(_)) => 1,
        (Some(_), None) => 2,
    }
}

/// Whether two loads do the same, wherever they find their file or peer.
fn same_load(old: &Load, new: &Load) -> bool {
    let mut old = old.clone();
    match (&mut old, new) {
        (Load::Block { path, .. }, Load::Block { path: new, .. })
        | (Load::Console { path }, Load::Console { path: new }) => path.clone_from(new),
        (Load::UdpRoundTrip { peer, .. }, Load::UdpRoundTrip { peer: new, .. })
        | (Load::UdpSend { peer, .. }, Load::UdpSend { peer: new, .. })
        | (Load::UdpReceive { peer, .. }, Load::UdpReceive { peer: new, .. })
        | (Load::TcpSend { peer }, Load::TcpSend { peer: new })
        | (Load::TcpReceive { peer }, Load::TcpReceive { peer: new }) => *peer = *new,
        _ => {}
    }
    old == *new
}

fn differences(old: &BenchReport, new: &BenchReport) -> Vec<Difference> {
    let mut found = Vec::new();
    let mut add = |what: &str, old: String, new: String, warned: bool| {
        if old != new {
            let what = what.to_owned();
            found.push(Difference {
                what,
                old,
                new,
                warned,
            });
        }
    };
    let (a, b): (&Environment, &Environment) = (&old.environment, &new.environment);
    let end = |report: &BenchReport| match report.interrupted {
        true => "interrupted".to_owned(),
        false => "as planned".to_owned(),
    };
    add("end of the run", end(old), end(new), true);
    let some = |it: &Option<String>| it.clone().unwrap_or_else(|| "unknown".to_owned());
    let level = |is_guest| if is_guest { "a guest" } else { "no guest" }.to_owned();
    add("build", a.build.clone(), b.build.clone(), true);
    add("CPU", some(&a.cpu), some(&b.cpu), true);
    add(
        "number of CPUs",
        a.cpus.to_string(),
        b.cpus.to_string(),
        true,
    );
    add("kernel", a.kernel.clone(), b.kernel.clone(), true);
    add("KVM module", some(&a.kvm_module), some(&b.kvm_module), true);
    add("kind of host", level(a.is_guest), level(b.is_guest), true);
    add("governor", some(&a.governor), some(&b.governor), true);
    let (mine, theirs) = only_in_one(&a.mitigations, &b.mitigations);
    add("mitigations", mine, theirs, true);
    let (mine, theirs) = only_in_one(&a.kvm_parameters, &b.kvm_parameters);
    add("parameters of KVM", mine, theirs, true);
    let (a, b) = (&old.guest, &new.guest);
    add("guest's kernel", a.kernel.clone(), b.kernel.clone(), true);
    add(
        "guest's command line",
        a.cmdline.clone(),
        b.cmdline.clone(),
        false,
    );
    add(
        "number of vCPUs",
        a.cpus.to_string(),
        b.cpus.to_string(),
        true,
    );
    let bytes = |it: u64| format!("{it} bytes");
    add(
        "guest's memory",
        bytes(a.memory_bytes),
        bytes(b.memory_bytes),
        false,
    );
    add(
        "backends",
        a.backends.join("; "),
        b.backends.join("; "),
        true,
    );
    add("pinned threads", a.pins.join("; "), b.pins.join("; "), true);
    add("length of a measurement", length(old), length(new), true);
    let versions = (&old.environment.tripath, &new.environment.tripath);
    add(
        "version of tripath",
        versions.0.clone(),
        versions.1.clone(),
        false,
    );
    found
}

/// That of all is the same.
fn length(report: &BenchReport) -> String {
    let first = report.variants.first();
    first.map_or("unknown".to_owned(), |one| {
        format!(
            "{} ms after {} ms of warm-up",
            one.spec.time_ms, one.spec.warm_up_ms
        )
    })
}

/// The lines that only the one and only the other has.
fn only_in_one(old: &[String], new: &[String]) -> (String, String) {
    let (a, b): (BTreeSet<&String>, BTreeSet<&String>) =
        (old.iter().collect(), new.iter().collect());
    let joined = |lines: Vec<&&String>| {
        let lines: Vec<&str> = lines.into_iter().map(|line| line.as_str()).collect();
        if lines.is_empty() {
            "none of these".to_owned()
        } else {
            lines.join(", ")
        }
    };
    let only_old: Vec<_> = a.difference(&b).collect();
    let only_new: Vec<_> = b.difference(&a).collect();
    (joined(only_old), joined(only_new))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::VariantResult;
    use crate::synthetic;

    const NAME: &str = "block/rand-read-4k-d1/virtio-blk";

    fn change_of(old: &BenchReport, new: &BenchReport, name: &str) -> Change {
        let comparison = compare(old, new);
        let row = comparison.rows.iter().find(|row| row.name == name);
        row.unwrap().change
    }

    fn variant(report: &mut BenchReport) -> &mut VariantResult {
        let mut variants = report.variants.iter_mut();
        variants.find(|one| one.name == NAME).unwrap()
    }

    fn scale(report: &mut BenchReport, percent: u64) {
        for sample in &mut variant(report).samples {
            sample.load.operations = sample.load.operations * percent / 100;
        }
    }

    #[test]
    fn the_same_run_twice_differs_in_nothing() {
        let report = synthetic::report();
        let comparison = compare(&report, &report);
        assert!(comparison.differences.is_empty(), "{comparison:?}");
        assert!(!comparison.is_worse());
        // One has failed in both.
        let expected = format!(
            "{} no difference found, 1 undecided: too few rounds",
            report.variants.len() - 1
        );
        assert_eq!(comparison.summary(), expected);
    }

    #[test]
    fn slower_and_faster() {
        let old = synthetic::report();
        for (percent, expected) in [(80, Verdict::Slower), (130, Verdict::Faster)] {
            let mut new = old.clone();
            scale(&mut new, percent);
            assert_eq!(change_of(&old, &new, NAME), Change::Rates(expected));
            let comparison = compare(&old, &new);
            assert_eq!(comparison.is_worse(), expected == Verdict::Slower);
            let table = comparison.table();
            let line = table.lines().find(|line| line.contains(NAME)).unwrap();
            assert!(line.trim_end().ends_with(&expected.to_string()), "{line}");
        }
    }

    #[test]
    fn too_few_rounds_are_no_regression() {
        let mut old = synthetic::report();
        variant(&mut old).samples.truncate(3);
        let mut new = old.clone();
        scale(&mut new, 10);
        assert_eq!(
            change_of(&old, &new, NAME),
            Change::Rates(Verdict::Undecided)
        );
        assert!(!compare(&old, &new).is_worse());
    }

    #[test]
    fn what_only_one_has() {
        let old = synthetic::report();
        let mut new = old.clone();
        new.variants.retain(|one| one.name != NAME);
        assert_eq!(change_of(&old, &new, NAME), Change::Missing);
        assert_eq!(change_of(&new, &old, NAME), Change::New);
        assert!(!compare(&old, &new).is_worse());
    }

    #[test]
    fn what_fails_now_is_worse() {
        let old = synthetic::report();
        let mut new = old.clone();
        variant(&mut new).samples.clear();
        assert_eq!(change_of(&old, &new, NAME), Change::Failed);
        assert!(compare(&old, &new).is_worse());
        // In the middle of the run.
        let mut new = old.clone();
        variant(&mut new).samples.truncate(2);
        variant(&mut new).failure = Some("the guest was lost".to_owned());
        assert_eq!(change_of(&old, &new, NAME), Change::Failed);
        assert_eq!(
            change_of(&new, &new, NAME),
            Change::Rates(Verdict::Undecided)
        );
        let mut newest = new.clone();
        variant(&mut newest).samples.clear();
        assert_eq!(change_of(&new, &newest, NAME), Change::Failed);
    }

    #[test]
    fn another_length_is_warned_of() {
        let old = synthetic::report();
        let mut new = old.clone();
        new.variants[0].spec.time_ms /= 5;
        let comparison = compare(&old, &new);
        let [only] = comparison.differences.as_slice() else {
            panic!("{:?}", comparison.differences)
        };
        assert!(
            only.warned && only.what == "length of a measurement",
            "{only:?}"
        );
    }

    #[test]
    fn another_load_is_not_compared_and_another_path_is() {
        let old = synthetic::report();
        let mut new = old.clone();
        scale(&mut new, 50);
        if let Load::Block { path, .. } = &mut variant(&mut new).spec.load {
            *path = "/elsewhere".into();
        }
        assert_eq!(change_of(&old, &new, NAME), Change::Rates(Verdict::Slower));
        if let Load::Block { depth, .. } = &mut variant(&mut new).spec.load {
            *depth = 7;
        }
        assert_eq!(change_of(&old, &new, NAME), Change::OtherLoad);
    }

    #[test]
    fn other_environments_are_told() {
        let old = synthetic::report();
        let mut new = old.clone();
        new.environment.cpu = None;
        new.environment.kvm_parameters[0] = "avic=Y".to_owned();
        new.guest.cmdline.push_str(" nokaslr\n");
        let comparison = compare(&old, &new);
        let told: Vec<(&str, &str, &str, bool)> = comparison
            .differences
            .iter()
            .map(|it| (&*it.what, &*it.old, &*it.new, it.warned))
            .collect();
        assert_eq!(
            told,
            [
                ("CPU", "Some CPU @ 2.40GHz", "unknown", true),
                ("parameters of KVM", "avic=N", "avic=Y", true),
                (
                    "guest's command line",
                    "console=ttyS0 quiet",
                    "console=ttyS0 quiet nokaslr\n",
                    false
                ),
            ]
        );
        let table = comparison.table();
        assert!(table.starts_with("warning: other CPU: Some CPU"), "{table}");
        assert!(
            table.contains("note: other guest's command line: "),
            "{table}"
        );
    }
}
