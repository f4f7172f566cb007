//! The sections of the page.

use std::collections::BTreeSet;

use tripath_load::spec::{BlockOperation, Load, Pattern};

use super::charts::{self, Chart, Parts};
use super::page::{Table, definitions, escape, list, paragraph};
use super::palette::{self, Colour, IN_GUEST, IN_KERNEL};
use super::{ReportError, mark_of};
use crate::analysis::significance::{ALPHA, MINIMAL_EFFECT};
use crate::analysis::{Analysed, Workload, workloads};
use crate::format::{digits, percent, rate, time, times};
use crate::results::{BenchReport, PathKind, Subject};
use crate::stats::UNSTEADY;
use crate::text::marks;

const NONE: &str = "–";
/// Registers and queues of a variant that are shown.
const MOST_ACCESSES: usize = 6;
/// Unsteady variants that are named.
const MOST_NAMED: usize = 8;

/// Title, where it was measured, and what to know before reading on.
pub(super) fn head(report: &BenchReport, all: &[Analysed<'_>]) -> String {
    let environment = &report.environment;
    let cpu = environment.cpu.as_deref().unwrap_or("an unknown CPU");
    let place = if environment.is_guest {
        ", itself a guest"
    } else {
        ""
    };
    let mut html = format!(
        "<h1>What each I/O path costs</h1>\n<p class=\"sub\">On {} with {} CPU{}, Linux {}{place} · {} · {} rounds</p>\n",
        escape(cpu),
        environment.cpus,
        if environment.cpus == 1 { "" } else { "s" },
        escape(&environment.kernel),
        escape(&report.date),
        report.rounds
    );
    html.push_str(&warnings(report, all));
    let mut links = vec![("glance", "At a glance")];
    for subject in Subject::ALL {
        if !workloads(all, subject).is_empty() {
            links.push((subject.name(), title_of(subject)));
        }
    }
    links.extend([
        ("model", "The plain model"),
        ("figures", "All figures"),
        ("accesses", "Registers"),
        ("method", "How it was measured"),
    ]);
    let links = links
        .iter()
        .map(|(id, name)| format!("<a href=\"#{id}\">{name}</a>\n"));
    html.push_str(&format!("<nav>\n{}</nav>\n", links.collect::<String>()));
    html
}

fn warnings(report: &BenchReport, all: &[Analysed<'_>]) -> String {
    let mut told: Vec<String> = report.notes.clone();
    if report.environment.build != "release" {
        told.push(format!(
            "This was a {} build: its figures say little.",
            report.environment.build
        ));
    }
    if report.environment.is_guest {
        told.push(
            "The host was a guest itself. An exit from a nested guest passes through the hypervisor below, so exits cost \
             several times what they cost on hardware, and paths with many exits look worse than they are."
                .to_owned(),
        );
    }
    let unsteady: Vec<&str> = all
        .iter()
        .filter(|one| one.is_unsteady())
        .map(|one| one.variant.name.as_str())
        .collect();
    if unsteady.len() > MOST_NAMED {
        told.push(format!(
            "{} of {} variants are unsteady: their bars are pale, and All figures marks them. Do not rely on them.",
            unsteady.len(),
            all.len()
        ));
    } else if !unsteady.is_empty() {
        let names = unsteady.join(", ");
        told.push(format!("Unsteady, do not rely on them: {names}."));
    }
    for one in all {
        if let Some(failure) = &one.variant.failure {
            let rounds = one.variant.samples.len();
            told.push(format!(
                "{} failed after {rounds} rounds: {failure}",
                one.variant.name
            ));
        }
    }
    if told.is_empty() {
        return String::new();
    }
    format!(
        "<div class=\"call\" id=\"notes\">\n<p><strong>Before you read the figures</strong></p>\n{}</div>\n",
        list(&told)
    )
}

fn title_of(subject: Subject) -> &'static str {
    match subject {
        Subject::Block => "Disks",
        Subject::Net => "Networks",
        Subject::Console => "Consoles",
    }
}

/// All paths against the direct one, in one table for each subject.
pub(super) fn at_a_glance(all: &[Analysed<'_>]) -> String {
    let mut html = String::from("<h2 id=\"glance\">At a glance</h2>\n");
    html.push_str(&paragraph(
        "Throughput as a multiple of the direct path's on the same backend: ×1.00 costs nothing, ×0.50 is half as fast. \
         ≈: the test finds no difference; ?: too few rounds for it to find one. Where there is no direct path to compare \
         with, the throughput itself.",
    ));
    for subject in Subject::ALL {
        let found = workloads(all, subject);
        let columns: BTreeSet<(PathKind, String)> = found
            .iter()
            .flat_map(|workload| &workload.variants)
            .filter(|one| one.variant.path != PathKind::Direct)
            .map(|one| (one.variant.path, one.label()))
            .collect();
        let mut head = vec![title_of(subject).to_owned()];
        head.extend(columns.iter().map(|(_, label)| label.clone()));
        let mut table = Table::new(&head, 1);
        for workload in &found {
            let mut row = vec![workload.name.to_owned()];
            row.extend(
                columns
                    .iter()
                    .map(|(_, label)| glance_cell(workload, label)),
            );
            table.row(&row);
        }
        html.push_str(&table.html());
    }
    html
}

fn glance_cell(workload: &Workload<'_, '_>, label: &str) -> String {
    let Some(one) = workload.variants.iter().find(|one| one.label() == label) else {
        return String::new();
    };
    match (one.against_direct, one.rate) {
        (Some(it), _) => format!("{}{}", times(1.0 - it.overhead), mark_of(it.verdict)),
        (None, Some(it)) => rate(it.median, one.counts.unit()),
        (None, None) if one.variant.failure.is_some() => "failed".to_owned(),
        (None, None) => NONE.to_owned(),
    }
}

/// All charts of a subject; nothing if it was not measured.
pub(super) fn subject(subject: Subject, all: &[Analysed<'_>]) -> Result<String, ReportError> {
    let found = workloads(all, subject);
    if found.is_empty() {
        return Ok(String::new());
    }
    let mut html = format!("<h2 id=\"{}\">{}</h2>\n", subject.name(), title_of(subject));
    for chart in Chart::ALL {
        let parts = Parts::of_chart(chart, all.iter());
        let mut figures = String::new();
        for workload in &found {
            if let Some(drawn) = charts::draw(chart, subject, workload, &parts)? {
                figures.push_str(&figure(workload, &drawn));
            }
        }
        if figures.is_empty() {
            continue;
        }
        html.push_str(&format!(
            "<h3>{}</h3>\n{}",
            chart.title(),
            legend(chart, &found, &parts)
        ));
        html.push_str(&format!("<div class=\"charts\">\n{figures}</div>\n"));
        html.push_str(&format!(
            "<p class=\"explained\">{}</p>\n",
            escape(chart.explained())
        ));
    }
    Ok(html)
}

fn figure(workload: &Workload<'_, '_>, drawn: &charts::Drawn) -> String {
    let load = workload
        .variants
        .first()
        .map(|one| describe(&one.variant.spec.load));
    let remark = if drawn.remark.is_empty() {
        String::new()
    } else {
        format!("<p class=\"remark\">{}</p>\n", escape(&drawn.remark))
    };
    format!(
        "<figure>\n<figcaption>{} <span>{}</span></figcaption>\n{}{remark}</figure>\n",
        escape(workload.name),
        escape(&load.unwrap_or_default()),
        drawn.svg
    )
}

fn legend(chart: Chart, found: &[Workload<'_, '_>], parts: &Parts) -> String {
    let mut entries: Vec<(String, Colour)> = match chart {
        Chart::Throughput | Chart::Latency | Chart::Overhead => {
            let variants = found.iter().flat_map(|workload| &workload.variants);
            let paths: BTreeSet<PathKind> = variants
                .filter(|one| chart != Chart::Overhead || one.against_direct.is_some())
                .map(|one| one.variant.path)
                .collect();
            let paths = paths.into_iter();
            paths
                .map(|path| (path.name().to_owned(), palette::of_path(path)))
                .collect()
        }
        Chart::Exits => vec![("stays in the host's kernel".to_owned(), IN_KERNEL)],
        Chart::Cpu => vec![
            ("guest".to_owned(), IN_GUEST),
            ("host's kernel".to_owned(), IN_KERNEL),
        ],
    };
    let variants = found.iter().flat_map(|workload| &workload.variants);
    let shown = Parts::of_chart(chart, variants.copied());
    let kind = if chart == Chart::Exits {
        "to user space: "
    } else {
        "user space: "
    };
    entries.extend(
        parts
            .legend(&shown)
            .into_iter()
            .map(|(name, colour)| (format!("{kind}{name}"), colour)),
    );
    let items = entries.iter().map(|(name, colour)| {
        format!(
            "<li><i style=\"background:var(--{})\"></i>{}</li>\n",
            colour.name,
            escape(name)
        )
    });
    format!(
        "<ul class=\"legend\">\n{}</ul>\n",
        items.collect::<String>()
    )
}

/// What a load does, in words.
fn describe(load: &Load) -> String {
    match load {
        Load::Block {
            operation,
            pattern,
            size_bytes,
            depth,
            ..
        } => {
            let what = match operation {
                BlockOperation::Read => "reads",
                BlockOperation::Write => "writes",
                BlockOperation::Flush => "flushed writes",
            };
            let order = match pattern {
                Pattern::Random => "random",
                Pattern::Sequential => "sequential",
            };
            let at_once = if *depth == 1 {
                "one at a time".to_owned()
            } else {
                format!("{depth} at once")
            };
            format!("{order} {what} of {}, {at_once}", size(*size_bytes))
        }
        Load::UdpRoundTrip { size_bytes, .. } => {
            format!("datagrams of {} there and back", size(*size_bytes))
        }
        Load::UdpSend { size_bytes, .. } => format!("datagrams of {} sent", size(*size_bytes)),
        Load::UdpReceive { size_bytes, .. } => {
            format!("datagrams of {} received", size(*size_bytes))
        }
        Load::TcpSend { .. } => "one TCP stream sent".to_owned(),
        Load::TcpReceive { .. } => "one TCP stream received".to_owned(),
        Load::Console { .. } => "text written to a terminal device".to_owned(),
    }
}

fn size(bytes: u32) -> String {
    match bytes {
        1 => "1 byte".to_owned(),
        kib if kib >= 1024 && kib % 1024 == 0 => format!("{} KiB", kib / 1024),
        _ => format!("{bytes} bytes"),
    }
}

/// Exits times their cost, beside what was measured.
pub(super) fn model(report: &BenchReport, all: &[Analysed<'_>]) -> String {
    let mut table = Table::new(
        &[
            "variant",
            "predicted",
            "measured above direct",
            "predicted/measured",
            "exits without a price",
        ],
        1,
    );
    for one in all {
        let Some(model) = one.model else { continue };
        let measured = one.against_direct.map(|it| it.time_above_ns);
        let part = measured
            .filter(|ns| *ns > 0.0)
            .map(|ns| percent(model.predicted_ns / ns));
        table.row(&[
            one.variant.name.clone(),
            time(model.predicted_ns),
            measured.map_or(NONE.to_owned(), time),
            part.unwrap_or_else(|| NONE.to_owned()),
            digits(model.unpriced),
        ]);
    }
    let table = table.html();
    let mut html =
        String::from("<h2 id=\"model\">The plain model: exits × the cost of an exit</h2>\n");
    if table.is_empty() {
        html.push_str(&paragraph(
            "The cost of an exit was not measured, or there was no guest.",
        ));
        return html;
    }
    html.push_str(&paragraph(
        "If a path cost nothing but its exits, this is what an operation would take beyond the direct path: exits to user \
         space by reason, and doorbells and posted writes, which stay in the kernel, each times the median cost measured \
         just before; whatever else KVM handles by itself costs as much as a hypercall. The last column counts exits \
         without a price: halts, whose time is waiting. Where \
         predicted and measured are close, exits are the cost, and fewer exits are the cure. Where much more is measured, the \
         rest goes to interrupts, copies, wake-ups of threads, and caches that the exits have emptied. Where more is \
         predicted than measured, exits overlap with waiting that the direct path has, too.",
    ));
    let mut costs = Table::new(&["one exit", "median cost"], 1);
    for (kind, ns) in &report.exit_cost_ns {
        costs.row(&[kind.clone(), time(*ns)]);
    }
    html.push_str(&costs.html());
    html.push_str(&table);
    html
}

/// Everything in one table.
pub(super) fn figures(all: &[Analysed<'_>]) -> String {
    let head = [
        "variant",
        "path",
        "median",
        "MAD",
        "rounds",
        "overhead",
        "η",
        "p50",
        "p90",
        "p99",
        "p99.9",
        "max",
        "lost",
        "exits",
        "to user space",
        "interrupts",
        "CPU: guest",
        "CPU: kernel",
        "CPU: user",
        "",
    ];
    let mut table = Table::new(&head, 2);
    for one in all {
        table.row(&figures_row(one));
    }
    let mut html = String::from("<h2 id=\"figures\">All figures</h2>\n");
    html.push_str(&paragraph(
        "Exits, interrupts and CPU time are for each operation; for TCP streams, whose reads and writes have no fixed size, \
         for each MiB. Interrupts are those that the guest has served. η = work / (work + overhead) in CPU time of the \
         host: work is what an operation takes on the direct path, overhead what it takes beyond that. Above 100 %, the \
         variant takes less than the direct path. Latencies are medians over the rounds, but for the longest, which is \
         that of all.",
    ));
    html.push_str(&table.html());
    html
}

fn figures_row(one: &Analysed<'_>) -> Vec<String> {
    let or_none = |figure: Option<String>| figure.unwrap_or_else(|| NONE.to_owned());
    let costs = one.costs.as_ref();
    let guest = costs.and_then(|costs| costs.guest.as_ref());
    let against = one.against_direct.as_ref();
    let mut row = vec![
        one.variant.name.clone(),
        one.variant.path.name().to_owned(),
        or_none(one.rate.map(|it| rate(it.median, one.counts.unit()))),
        or_none(one.rate.and_then(|it| it.spread()).map(percent)),
        one.rates.len().to_string(),
        or_none(against.map(|it| format!("{}{}", percent(it.overhead), mark_of(it.verdict)))),
        or_none(against.and_then(|it| it.efficiency).map(percent)),
    ];
    let latency = one
        .latency
        .map(|it| [it.p50, it.p90, it.p99, it.p999, it.max].map(time));
    row.extend(latency.unwrap_or_else(|| [NONE; 5].map(str::to_owned)));
    row.extend([
        or_none(one.lost.map(percent)),
        or_none(guest.and_then(|it| it.kvm_exits).map(digits)),
        or_none(guest.map(|it| digits(it.user_exits()))),
        or_none(guest.and_then(|it| it.interrupts).map(digits)),
        or_none(costs.map(|it| time(it.cpu.guest_ns))),
        or_none(costs.map(|it| time(it.cpu.kernel_ns))),
        or_none(costs.map(|it| time(it.cpu.user_ns.values().sum()))),
        marks(one),
    ]);
    row
}

/// Which registers and queues are used most.
pub(super) fn accesses(all: &[Analysed<'_>]) -> String {
    let mut table = Table::new(
        &[
            "variant",
            "device",
            "register or queue",
            "per operation",
            "posted",
            "in user space",
        ],
        3,
    );
    for one in all {
        let guest = one.costs.as_ref().and_then(|costs| costs.guest.as_ref());
        let used = guest.map_or(&[][..], |guest| &guest.accesses);
        for access in used
            .iter()
            .filter(|it| it.count + it.posted >= 0.005)
            .take(MOST_ACCESSES)
        {
            table.row(&[
                one.variant.name.clone(),
                access.device.clone(),
                access.what.clone(),
                digits(access.count),
                digits(access.posted),
                time(access.user_space_ns),
            ]);
        }
    }
    let mut html = String::from("<h2 id=\"accesses\">Which registers</h2>\n");
    html.push_str(&paragraph(&format!(
        "The registers and queues that each guest uses most, at most {MOST_ACCESSES} a variant, and the time that the VMM's \
         user space takes for them for each operation. Posted writes are kept by KVM until user space looks, without an exit \
         to it. What is missing here has no exit to user space: a passed-through \
         function's registers, or a doorbell that the kernel takes.",
    )));
    html.push_str(&table.html());
    html
}

/// How it was measured, and where.
pub(super) fn method(report: &BenchReport) -> String {
    let mut html = String::from("<h2 id=\"method\">How it was measured</h2>\n");
    html.push_str(&paragraph(&format!(
        "In each of {} rounds every variant was measured once, in an order shuffled by the seed {}, so that what \
         changes over time meets all of them alike. Each measurement began with a warm-up. Figures are medians over the \
         rounds; their spread is the median absolute deviation (MAD), and a variant is called unsteady when that is more \
         than {} of the median.",
        report.rounds,
        report.seed,
        percent(UNSTEADY)
    )));
    html.push_str(&paragraph(&format!(
        "Two variants are called different when a two-sided Mann-Whitney U test of their rates has p ≤ {ALPHA} and their \
         medians differ by {} or more. It is exact for up to 20 rounds. With fewer than four rounds on each side it can never find a \
         difference, and says so. Where many variants are compared, one in twenty of those that are the same may pass \
         the test by chance; the least difference keeps most of these out.",
        percent(MINIMAL_EFFECT)
    )));
    html.push_str(&definitions(&environment(report)));
    html
}

fn environment(report: &BenchReport) -> Vec<(&'static str, String)> {
    let (host, guest) = (&report.environment, &report.guest);
    let known = |it: &Option<String>| it.clone().unwrap_or_else(|| "unknown".to_owned());
    vec![
        ("CPU", format!("{}, {} online", known(&host.cpu), host.cpus)),
        ("Kernel", host.kernel.clone()),
        ("KVM", known(&host.kvm_module)),
        ("Parameters of KVM", host.kvm_parameters.join(", ")),
        (
            "Nested",
            if host.is_guest { "yes" } else { "no" }.to_owned(),
        ),
        ("Frequency governor", known(&host.governor)),
        ("Mitigations", host.mitigations.join("; ")),
        ("tripath", format!("{}, {} build", host.tripath, host.build)),
        (
            "Guest",
            format!(
                "Linux {}, {} vCPUs, {} MiB",
                guest.kernel,
                guest.cpus,
                guest.memory_bytes >> 20
            ),
        ),
        ("Guest's command line", guest.cmdline.clone()),
        ("Backends", guest.backends.join("; ")),
        (
            "Threads pinned",
            if guest.pins.is_empty() {
                "no".to_owned()
            } else {
                guest.pins.join("; ")
            },
        ),
    ]
}
