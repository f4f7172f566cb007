//! A benchmark's results for a terminal.

use comfy_table::{CellAlignment, Table, presets};

use crate::analysis::{Analysed, Workload, analyse, workloads};
use crate::format::{digits, percent, rate, time, times};
use crate::results::{BenchReport, Subject};

/// What is shown where there is no figure.
const NONE: &str = "-";

/// One table for each workload, a path a row, then what failed and the notes. Ends with a newline, unless it is empty.
#[must_use]
pub fn table(report: &BenchReport) -> String {
    let all = analyse(report);
    let mut text = String::new();
    for subject in Subject::ALL {
        for workload in workloads(&all, subject) {
            text.push_str(&workload_table(subject, &workload));
            text.push('\n');
        }
    }
    for one in &report.variants {
        if let Some(failure) = &one.failure {
            text.push_str(&format!("failed: {}: {}\n", one.name, plain(failure)));
        }
    }
    for note in &report.notes {
        text.push_str(&format!("note: {}\n", plain(note)));
    }
    text
}

/// A text from a file or a guest: on a terminal, what controls it is not obeyed.
pub(crate) fn plain(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

fn workload_table(subject: Subject, workload: &Workload<'_, '_>) -> String {
    let work = workload
        .variants
        .first()
        .map_or("op", |one| one.work.short());
    let columns = [
        "path".to_owned(),
        "device".to_owned(),
        "median".to_owned(),
        "MAD".to_owned(),
        "vs direct".to_owned(),
        "p50".to_owned(),
        "p99".to_owned(),
        format!("exits/{work}"),
        format!("irq/{work}"),
        format!("CPU/{work}"),
        "η".to_owned(),
        String::new(),
    ];
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(columns);
    for column in table.column_iter_mut().skip(2).take(9) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for one in &workload.variants {
        table.add_row(row(one));
    }
    let name = plain(workload.name);
    format!("{} {name}\n{}\n", subject.name(), table.trim_fmt())
}

fn row(one: &Analysed<'_>) -> Vec<String> {
    let or_none = |figure: Option<String>| figure.unwrap_or_else(|| NONE.to_owned());
    let guest = one.costs.as_ref().and_then(|costs| costs.guest.as_ref());
    let against = one.against_direct.as_ref();
    vec![
        one.variant.path.name().to_owned(),
        plain(&one.variant.device),
        or_none(one.rate.map(|it| rate(it.median, one.counts.unit()))),
        or_none(
            one.rate
                .and_then(|it| it.spread())
                .map(|spread| format!("±{}", percent(spread))),
        ),
        or_none(against.map(|it| times(1.0 - it.overhead))),
        or_none(one.latency.map(|it| time(it.p50))),
        or_none(one.latency.map(|it| time(it.p99))),
        or_none(guest.map(|it| digits(it.kvm_exits.unwrap_or_else(|| it.user_exits())))),
        or_none(guest.and_then(|it| it.interrupts).map(digits)),
        or_none(one.costs.as_ref().map(|it| time(it.cpu.total_ns()))),
        or_none(against.and_then(|it| it.efficiency).map(percent)),
        marks(one),
    ]
}

/// What is to be known before a figure is used.
pub(crate) fn marks(one: &Analysed<'_>) -> String {
    let mut marks = Vec::new();
    if one.is_unsteady() {
        marks.push("unsteady");
    }
    if one.variant.failure.is_some() {
        marks.push("failed");
    }
    marks.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic;

    #[test]
    fn a_row_for_each_path() {
        let mut report = synthetic::report();
        report.notes.push("a\x1b[31mred\nnote".to_owned());
        let text = table(&report);
        let lines: Vec<&str> = text.lines().collect();
        let start = lines
            .iter()
            .position(|line| *line == "block rand-read-4k-d1")
            .unwrap();
        assert!(lines[start + 1].contains("vs direct") && lines[start + 1].contains("exits/op"));
        assert!(
            lines[start + 2].trim_start().starts_with("direct"),
            "{text}"
        );
        let virtio = lines.iter().find(|l| l.contains("virtio-blk")).unwrap();
        assert!(virtio.contains("op/s") && virtio.contains('×'), "{virtio}");
        assert!(text.contains("irq/MiB"), "{text}");
        assert!(text.contains("failed: net/udp-rtt-1/igbvf"), "{text}");
        assert!(text.contains("note: a [31mred note\n"), "{text}");
    }

    #[test]
    fn nothing_measured_is_no_table() {
        let mut report = synthetic::report();
        report.variants.clear();
        report.notes.clear();
        assert_eq!(table(&report), "");
    }
}
