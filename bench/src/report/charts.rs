//! Which charts there are, and what they are made of.

use std::collections::BTreeMap;

use super::bars::{Bar, Bars};
use super::canvas::DrawError;
use super::curves::{Curve, curves};
use super::page::identifier;
use super::palette::{self, Colour, IN_GUEST, IN_KERNEL, OTHERS};
use crate::analysis::latency::curve;
use crate::analysis::{Analysed, Costs, GuestFigures, Workload};
use crate::format::{digits, percent, rate, si, time, times};
use crate::results::{PathKind, Subject};
use crate::text::plain;

/// The kinds of charts, in the order in which they are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chart {
    Throughput,
    Latency,
    Exits,
    Cpu,
    Overhead,
}

impl Chart {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Throughput,
        Self::Overhead,
        Self::Latency,
        Self::Exits,
        Self::Cpu,
    ];

    /// The first part of the `id` of each chart of the kind.
    pub fn name(self) -> &'static str {
        match self {
            Self::Throughput => "throughput",
            Self::Latency => "latency",
            Self::Exits => "exits",
            Self::Cpu => "cpu",
            Self::Overhead => "overhead",
        }
    }

    /// The heading.
    pub fn title(self) -> &'static str {
        match self {
            Self::Throughput => "Throughput by path",
            Self::Latency => "Latency by percentile",
            Self::Exits => "Exits for each operation, by reason",
            Self::Cpu => "Where the host's CPU time goes",
            Self::Overhead => "Overhead against the direct path",
        }
    }

    /// How to read it.
    pub fn explained(self) -> &'static str {
        match self {
            Self::Throughput => {
                "Longer is better. Each bar is the median over the rounds, the whisker one median absolute deviation to \
                 either side: half of all rounds lie within it. Bars whose whiskers overlap may well be the same. A pale \
                 bar is unsteady: its rounds differ by more than 5 %, so do not rely on it. Each workload has an axis of \
                 its own, so compare bars within a chart, not between charts."
            }
            Self::Latency => {
                "Lower is better. The axis below counts nines: at 99 % stands the time that 99 of 100 operations need at \
                 most, of all rounds together. Both axes are logarithmic, so the same distance is the same factor \
                 everywhere. A curve that runs level and then turns up has a few slow operations among many like ones; \
                 one that is higher by the same factor everywhere pays on each operation. A dashed curve is of a second \
                 device on the same kind of path. A curve ends where fewer than ten operations were slower. Loads that send without waiting have no latency of their own."
            }
            Self::Exits => {
                "Shorter is better. An exit is a switch from the guest to the host. The grey part never leaves the \
                 host's kernel (doorbells, timers, interrupts of the host); the coloured parts go on to the VMM's user \
                 space and cost more. The figure is KVM's own count, and in brackets how many of them \
                 came to user space. Less than one for each operation means that operations share exits."
            }
            Self::Cpu => {
                "Shorter is better. CPU time of the host for each operation: code of the guest, the host's kernel on its \
                 behalf, and each kind of thread in user space. It can be more than the time an operation takes, where \
                 several CPUs work at once, and far less, where all wait for the disk. For baselines it is the load \
                 program itself."
            }
            Self::Overhead => {
                "Further left is better; 0 is the direct path on the same backend. The bar is the part of the direct \
                 path's throughput that is lost, so 50 % is half as fast; below 0 is faster than direct. The \
                 p50 beside it says how many times as long the median operation takes. A \"≈\" says that the test finds no difference from the \
                 direct path, a \"?\" that there are too few rounds for it to find one."
            }
        }
    }
}

/// One finished chart.
#[derive(Debug, Clone)]
pub(super) struct Drawn {
    /// The SVG element.
    pub svg: String,
    /// What is to be said below it, in plain text; mostly nothing.
    pub remark: String,
}

/// The parts of stacked bars that have names, each with its colour; shared by all charts of a kind.
#[derive(Debug, Clone, Default)]
pub(super) struct Parts {
    names: Vec<String>,
}

impl Parts {
    /// Of all charts of this kind; none if their bars have no named parts.
    pub fn of_chart<'a>(chart: Chart, all: impl Iterator<Item = &'a Analysed<'a>>) -> Self {
        let mut sizes: BTreeMap<String, f64> = BTreeMap::new();
        for costs in all.filter_map(|one| one.costs.as_ref()) {
            match chart {
                Chart::Exits => {
                    for (reason, count) in costs.guest.iter().flat_map(|guest| &guest.exits) {
                        *sizes.entry(reason.clone()).or_default() += count;
                    }
                }
                Chart::Cpu => {
                    for (thread, ns) in &costs.cpu.user_ns {
                        *sizes.entry(kind_of_thread(thread)).or_default() += ns;
                    }
                }
                Chart::Throughput | Chart::Latency | Chart::Overhead => {}
            }
        }
        let mut sizes: Vec<(String, f64)> =
            sizes.into_iter().filter(|(_, size)| *size > 0.0).collect();
        // The largest have colours of their own.
        sizes.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        let mut names: Vec<String> = sizes.into_iter().map(|(name, _)| name).collect();
        let own = names.len().min(palette::PARTS.len());
        names[..own].sort_unstable();
        Self { names }
    }

    fn colour(&self, name: &str) -> Colour {
        let place = self.names.iter().position(|one| one == name);
        let colour = place.and_then(|place| palette::PARTS.get(place));
        colour.copied().unwrap_or(OTHERS)
    }

    /// Names and colours of those that are shown, those of no colour of their own as one.
    pub fn legend(&self, shown: &Self) -> Vec<(String, Colour)> {
        let own = self.names.iter().zip(palette::PARTS);
        let mut legend: Vec<(String, Colour)> = own
            .filter(|(name, _)| shown.names.contains(name))
            .map(|(name, colour)| (plain(name), colour))
            .collect();
        let others = self.names.iter().skip(palette::PARTS.len());
        if others.clone().any(|name| shown.names.contains(name)) {
            legend.push(("others".to_owned(), OTHERS));
        }
        legend
    }
}

/// What threads of several vCPUs share: `vcpu` of `vcpu0`.
fn kind_of_thread(name: &str) -> String {
    name.trim_end_matches(|c: char| c.is_ascii_digit())
        .to_owned()
}

/// One chart of a workload; none if it would be empty.
pub(super) fn draw(
    chart: Chart,
    subject: Subject,
    workload: &Workload<'_, '_>,
    parts: &Parts,
) -> Result<Option<Drawn>, DrawError> {
    let name = plain(workload.name);
    let id = identifier(&[chart.name(), subject.name(), &name]);
    let title = format!("{}, {name}", chart.title());
    if chart == Chart::Latency {
        return latency(&id, &title, workload);
    }
    let variants = workload.variants.iter();
    let bars: Vec<Bar> = variants
        .filter_map(|one| match chart {
            Chart::Throughput => Some(throughput(one)),
            Chart::Exits => exits(one, parts),
            Chart::Cpu => cpu(one, parts),
            Chart::Overhead | Chart::Latency => overhead(one),
        })
        .collect();
    if bars.is_empty() {
        return Ok(None);
    }
    let first = workload.variants.first();
    let work = first.map_or("operation", |one| one.work.name());
    let counts = first.map_or("", |one| one.counts.unit());
    let plain_number: fn(f64) -> String = |value| trimmed(si(value));
    let ends = |bar: &Bar| bar.segments.iter().map(|(length, _)| *length).sum::<f64>();
    let (least, most, tick, axis) = match chart {
        Chart::Throughput => (0.0, None, plain_number, counts.to_owned()),
        Chart::Exits => (0.0, None, plain_number, format!("exits per {work}")),
        Chart::Cpu => {
            let tick: fn(f64) -> String = |ns| {
                if ns == 0.0 {
                    "0".to_owned()
                } else {
                    trimmed(time(ns))
                }
            };
            (0.0, None, tick, format!("CPU time per {work}"))
        }
        Chart::Overhead | Chart::Latency => {
            // An axis without negative numbers, unless something is much faster than the direct path.
            let least = bars.iter().map(ends).fold(0.0, f64::min);
            let least = if least < -0.02 {
                (least * 4.0).floor() / 4.0
            } else {
                0.0
            };
            let tick: fn(f64) -> String = |part| format!("{:.0} %", part * 100.0);
            (
                least.max(-1.0),
                Some(1.0),
                tick,
                "of the direct path's throughput is lost".to_owned(),
            )
        }
    };
    let bars = Bars {
        bars,
        least,
        most,
        tick,
        axis,
    };
    let svg = bars.draw(&id, &title)?;
    Ok(Some(Drawn {
        svg,
        remark: String::new(),
    }))
}

fn trimmed(text: String) -> String {
    match text.split_once(' ') {
        Some((number, unit)) if number.contains('.') => {
            format!(
                "{} {unit}",
                number.trim_end_matches('0').trim_end_matches('.')
            )
        }
        None if text.contains('.') => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        _ => text,
    }
}

fn guest<'a>(one: &'a Analysed<'_>) -> Option<&'a GuestFigures> {
    one.costs.as_ref()?.guest.as_ref()
}

fn label(one: &Analysed<'_>) -> String {
    plain(&one.label())
}

fn throughput(one: &Analysed<'_>) -> Bar {
    let Some(found) = one.rate else {
        return Bar {
            label: label(one),
            segments: Vec::new(),
            error: None,
            text: "not measured".to_owned(),
            faint: false,
        };
    };
    // The unit is at the axis, unless it is short.
    let figure = match one.counts.unit() {
        "B/s" => rate(found.median, "B/s"),
        _ => si(found.median),
    };
    let spread = found.spread();
    Bar {
        label: label(one),
        segments: vec![(found.median, palette::of_path(one.variant.path))],
        error: spread.map(|_| found.mad),
        text: match spread {
            Some(spread) => format!("{figure} ±{}", percent(spread)),
            None => figure,
        },
        faint: found.is_unsteady(),
    }
}

fn exits(one: &Analysed<'_>, parts: &Parts) -> Option<Bar> {
    let guest = guest(one)?;
    let user = guest.user_exits();
    let all = guest.kvm_exits.unwrap_or(user).max(user);
    let reasons = guest.exits.iter();
    let mut segments: Vec<(f64, Colour)> = reasons
        .map(|(reason, count)| (*count, parts.colour(reason)))
        .collect();
    segments.push((all - user, IN_KERNEL));
    Some(Bar {
        label: label(one),
        segments,
        error: None,
        text: format!("{} ({})", digits(all), digits(user)),
        faint: one.is_unsteady(),
    })
}

fn cpu(one: &Analysed<'_>, parts: &Parts) -> Option<Bar> {
    let Costs { cpu, .. } = one.costs.as_ref()?;
    let mut segments = vec![(cpu.guest_ns, IN_GUEST), (cpu.kernel_ns, IN_KERNEL)];
    let threads = cpu.user_ns.iter();
    segments.extend(threads.map(|(name, ns)| (*ns, parts.colour(&kind_of_thread(name)))));
    Some(Bar {
        label: label(one),
        segments,
        error: None,
        text: time(cpu.total_ns()),
        faint: one.is_unsteady(),
    })
}

fn overhead(one: &Analysed<'_>) -> Option<Bar> {
    let against = one.against_direct?;
    let latency = against.latency_overhead;
    let latency = latency.map_or(String::new(), |part| {
        format!(" · p50 {}", times(1.0 + part))
    });
    let mark = super::mark_of(against.verdict);
    Some(Bar {
        label: label(one),
        segments: vec![(against.overhead, palette::of_path(one.variant.path))],
        error: None,
        text: format!("{}{mark}{latency}", percent(against.overhead)),
        faint: one.is_unsteady(),
    })
}

fn latency(id: &str, title: &str, workload: &Workload<'_, '_>) -> Result<Option<Drawn>, DrawError> {
    let mut found: Vec<Curve> = Vec::new();
    let mut remark = String::new();
    let mut seen: Vec<PathKind> = Vec::new();
    for one in &workload.variants {
        match curve(one.variant) {
            Ok(points) if points.is_empty() => {}
            Ok(points) => {
                found.push(Curve {
                    label: label(one),
                    colour: palette::of_path(one.variant.path),
                    dashed: seen.contains(&one.variant.path),
                    points,
                });
                seen.push(one.variant.path);
            }
            Err(error) => remark.push_str(&format!("{} is left out: {error}. ", label(one))),
        }
    }
    if found.is_empty() && remark.is_empty() {
        return Ok(None);
    }
    let svg = if found.is_empty() {
        String::new()
    } else {
        curves(id, title, &found)?
    };
    Ok(Some(Drawn { svg, remark }))
}
