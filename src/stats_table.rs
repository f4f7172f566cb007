//! The table that `--stats` prints.

use comfy_table::{CellAlignment, Row, Table, presets};
use vmm_core::stats::Report;

/// Both tables, the costliest rows first.
pub fn render(report: &Report) -> String {
    let mut exits = report.exits.clone();
    exits.sort_by(|a, b| {
        b.user_space_ns
            .cmp(&a.user_space_ns)
            .then(a.reason.cmp(&b.reason))
    });
    let mut table = new_table(&["exit reason", "exits", "total us", "mean us"], 1);
    let mut total = (0_u64, 0_u64);
    for row in &exits {
        total = (
            total.0.saturating_add(row.count),
            total.1.saturating_add(row.user_space_ns),
        );
        table.add_row(figures(
            &[&row.reason],
            &[row.count],
            row.count,
            row.user_space_ns,
        ));
    }
    table.add_row(figures(&["all"], &[total.0], total.0, total.1));

    let mut devices = report.devices.clone();
    devices.sort_by(|a, b| {
        let by_name = || (&a.device, a.path).cmp(&(&b.device, b.path));
        b.user_space_ns.cmp(&a.user_space_ns).then_with(by_name)
    });
    let columns = [
        "device", "path", "reads", "writes", "accesses", "total us", "mean us",
    ];
    let mut device_table = new_table(&columns, 2);
    for row in &devices {
        let names = [row.device.as_str(), &row.path.to_string()];
        let counts = [row.reads, row.writes, row.accesses()];
        device_table.add_row(figures(&names, &counts, row.accesses(), row.user_space_ns));
    }
    if devices.is_empty() {
        format!("{}\n", table.trim_fmt())
    } else {
        format!("{}\n\n{}\n", table.trim_fmt(), device_table.trim_fmt())
    }
}

/// A table whose columns from `first_number` on are numbers.
fn new_table(header: &[&str], first_number: usize) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(header.iter().copied());
    for column in table.column_iter_mut().skip(first_number) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// Names, counts, then the time in total and per access.
fn figures(names: &[&str], counts: &[u64], accesses: u64, total_ns: u64) -> Row {
    let names = names.iter().map(|name| (*name).to_owned());
    let counts = counts.iter().map(u64::to_string);
    let times = [
        microseconds(total_ns),
        microseconds(total_ns / accesses.max(1)),
    ];
    Row::from(names.chain(counts).chain(times).collect::<Vec<_>>())
}

/// Nanoseconds as microseconds with one decimal.
fn microseconds(ns: u64) -> String {
    let tenths = ns / 100 + u64::from(ns % 100 >= 50);
    format!("{}.{}", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_core::stats::{DevicePath, DeviceRow, ExitRow};

    fn exit(reason: &str, count: u64, user_space_ns: u64) -> ExitRow {
        ExitRow {
            reason: reason.into(),
            count,
            user_space_ns,
        }
    }

    fn device(
        device: &str,
        path: DevicePath,
        [reads, writes]: [u64; 2],
        user_space_ns: u64,
    ) -> DeviceRow {
        DeviceRow {
            device: device.into(),
            path,
            reads,
            writes,
            user_space_ns,
        }
    }

    #[test]
    fn costliest_first_with_totals_and_means() {
        let report = Report {
            exits: vec![exit("mmio", 3, 1_000), exit("io-out", 100, 250_000)],
            devices: vec![
                device("virtio-blk 0", DevicePath::Event, [0, 4], 8_000),
                device("COM1", DevicePath::Pio, [20, 80], 90_050),
            ],
        };
        let text = render(&report);
        let words: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(
            words,
            [
                vec!["exit", "reason", "exits", "total", "us", "mean", "us"],
                vec!["io-out", "100", "250.0", "2.5"],
                vec!["mmio", "3", "1.0", "0.3"],
                vec!["all", "103", "251.0", "2.4"],
                vec![],
                vec![
                    "device", "path", "reads", "writes", "accesses", "total", "us", "mean", "us"
                ],
                vec!["COM1", "pio", "20", "80", "100", "90.1", "0.9"],
                vec!["virtio-blk", "0", "event", "0", "4", "4", "8.0", "2.0"],
            ]
        );
    }

    #[test]
    fn numbers_line_up_on_the_right() {
        let text = render(&Report {
            exits: vec![exit("a", 1, 0), exit("b", 1000, 0)],
            devices: vec![],
        });
        let ends: Vec<_> = text.lines().map(str::len).collect();
        assert_eq!(ends.iter().min(), ends.iter().max(), "{text}");
    }

    #[test]
    fn an_empty_report_is_a_table_of_nothing() {
        let text = render(&Report::default());
        assert!(text.contains("all") && !text.contains("device"), "{text}");
    }

    #[test]
    fn figures_at_their_limits() {
        let text = render(&Report {
            exits: vec![exit("a", u64::MAX, u64::MAX), exit("b", u64::MAX, u64::MAX)],
            devices: vec![device("d", DevicePath::Mmio, [u64::MAX; 2], u64::MAX)],
        });
        assert!(text.contains("18446744073709551.6"), "{text}");
    }

    #[test]
    fn microseconds_are_rounded() {
        for (ns, text) in [
            (0, "0.0"),
            (49, "0.0"),
            (50, "0.1"),
            (149, "0.1"),
            (999, "1.0"),
            (12_345, "12.3"),
        ] {
            assert_eq!(microseconds(ns), text);
        }
    }
}
