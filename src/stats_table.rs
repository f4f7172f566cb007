//! The tables that `--stats` and `tripath ctl stats` print.

use comfy_table::{CellAlignment, Row, Table, presets};
use vmm_core::stats::{RegisterRow, Report};

/// How many registers are shown, of those that cost the most.
const REGISTERS_SHOWN: usize = 20;

/// All tables, the costliest rows first.
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
        "device", "path", "reads", "writes", "posted", "accesses", "total us", "mean us",
    ];
    let mut device_table = new_table(&columns, 2);
    for row in &devices {
        let names = [row.device.as_str(), &row.path.to_string()];
        let counts = [row.reads, row.writes, row.posted, row.accesses()];
        device_table.add_row(figures(&names, &counts, row.accesses(), row.user_space_ns));
    }
    if devices.is_empty() {
        format!("{}\n", table.trim_fmt())
    } else {
        format!(
            "{}\n\n{}\n\n{}",
            table.trim_fmt(),
            device_table.trim_fmt(),
            registers(&report.registers)
        )
    }
}

/// The table by register and queue, and what it leaves out.
fn registers(rows: &[RegisterRow]) -> String {
    let mut rows: Vec<&RegisterRow> = rows.iter().collect();
    rows.sort_by(|a, b| {
        let name = |row: &RegisterRow| (row.device.clone(), row.register.clone(), row.action);
        (b.user_space_ns.cmp(&a.user_space_ns))
            .then_with(|| b.posted.cmp(&a.posted))
            .then_with(|| name(a).cmp(&name(b)))
    });
    let columns = [
        "device",
        "register or queue",
        "access",
        "count",
        "posted",
        "total us",
        "p50 us",
        "p99 us",
        "max us",
    ];
    let mut table = new_table(&columns, 3);
    for row in rows.iter().take(REGISTERS_SHOWN) {
        let names = [&row.device, &row.register, &row.action.to_string()];
        let counts = [row.count.to_string(), row.posted.to_string()];
        let times = [
            row.user_space_ns,
            row.times.percentile_ns(50.0),
            row.times.percentile_ns(99.0),
            row.times.max_ns(),
        ];
        let names = names.into_iter().cloned();
        let cells = names.chain(counts).chain(times.map(microseconds));
        table.add_row(Row::from(cells.collect::<Vec<_>>()));
    }
    let left_out = rows.get(REGISTERS_SHOWN..).unwrap_or_default();
    let note = match left_out.len() {
        0 => String::new(),
        count => {
            let ns = (left_out.iter()).fold(0_u64, |ns, row| ns.saturating_add(row.user_space_ns));
            let time = microseconds(ns);
            format!("({count} more, of {time} us together, are not shown)\n")
        }
    };
    format!("{}\n{note}", table.trim_fmt())
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
    use vmm_core::stats::{Action, DevicePath, DeviceRow, ExitRow, Times};

    fn exit(reason: &str, count: u64, user_space_ns: u64) -> ExitRow {
        ExitRow {
            reason: reason.into(),
            count,
            user_space_ns,
            ..ExitRow::default()
        }
    }

    fn device(
        device: &str,
        path: DevicePath,
        [reads, writes, posted]: [u64; 3],
        user_space_ns: u64,
    ) -> DeviceRow {
        DeviceRow {
            device: device.into(),
            path,
            reads,
            writes,
            posted,
            user_space_ns,
        }
    }

    fn register(device: &str, register: &str, posted: u64, list: &[u64]) -> RegisterRow {
        let mut times = Times::default();
        for ns in list {
            times.record(*ns);
        }
        RegisterRow {
            device: device.into(),
            path: DevicePath::Pio,
            register: register.into(),
            action: Action::Write,
            count: times.count(),
            posted,
            user_space_ns: times.total_ns(),
            times,
        }
    }

    fn words(text: &str) -> Vec<Vec<&str>> {
        text.lines()
            .map(|line| line.split_whitespace().collect())
            .collect()
    }

    #[test]
    fn costliest_first_with_totals_and_means() {
        let report = Report {
            exits: vec![exit("mmio", 3, 1_000), exit("io-out", 100, 250_000)],
            devices: vec![
                device("virtio-blk 0", DevicePath::Event, [0, 4, 0], 8_000),
                device("COM1", DevicePath::Pio, [20, 80, 7], 90_050),
            ],
            registers: vec![
                register("COM1", "pio+0x1", 0, &[1000]),
                register("COM1", "pio+0x0", 7, &[2000, 2000, 4000]),
            ],
            ..Report::default()
        };
        assert_eq!(
            words(&render(&report)),
            [
                vec!["exit", "reason", "exits", "total", "us", "mean", "us"],
                vec!["io-out", "100", "250.0", "2.5"],
                vec!["mmio", "3", "1.0", "0.3"],
                vec!["all", "103", "251.0", "2.4"],
                vec![],
                vec![
                    "device", "path", "reads", "writes", "posted", "accesses", "total", "us",
                    "mean", "us"
                ],
                vec!["COM1", "pio", "20", "80", "7", "100", "90.1", "0.9"],
                vec!["virtio-blk", "0", "event", "0", "4", "0", "4", "8.0", "2.0"],
                vec![],
                vec![
                    "device", "register", "or", "queue", "access", "count", "posted", "total",
                    "us", "p50", "us", "p99", "us", "max", "us"
                ],
                vec![
                    "COM1", "pio+0x0", "write", "3", "7", "8.0", "2.0", "4.0", "4.0"
                ],
                vec![
                    "COM1", "pio+0x1", "write", "1", "0", "1.0", "1.0", "1.0", "1.0"
                ],
            ]
        );
    }

    #[test]
    fn registers_beyond_the_costliest_are_told_in_a_line() {
        let of = |count: u64| {
            let rows = (1..=count).map(|n| register("nic", &format!("r{n}"), 0, &[n * 1000]));
            registers(&rows.collect::<Vec<_>>())
        };
        let all = of(20);
        assert_eq!(words(&all).len(), 21, "{all}");
        let most = of(22);
        let lines = words(&most);
        assert_eq!(lines.len(), 22, "{most}");
        assert_eq!((lines[1][1], lines[20][1]), ("r22", "r3"));
        assert_eq!(
            most.lines().last(),
            Some("(2 more, of 3.0 us together, are not shown)")
        );
    }

    #[test]
    fn numbers_line_up_on_the_right() {
        let text = render(&Report {
            exits: vec![exit("a", 1, 0), exit("b", 1000, 0)],
            ..Report::default()
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
            devices: vec![device("d", DevicePath::Mmio, [u64::MAX; 3], u64::MAX)],
            ..Report::default()
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
