//! Percentile curves of latency: both axes logarithmic, the right end of each curve named.

use super::bars::{WIDTH, WIDTH_U32, shortened};
use super::canvas::{Anchor, Canvas, DrawError, draw};
use super::palette::{Colour, GRID, INK, MUTED};
use crate::analysis::latency::CurvePoint;
use crate::format::time;

const HEIGHT: f64 = 270.0;
const HEIGHT_U32: u32 = 270;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 136.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 40.0;
const SMALL: f64 = 11.5;
/// Between two names at the right.
const LINE: f64 = 15.0;
const TICKS: [(f64, &str); 7] = [
    (0.5, "50 %"),
    (0.1, "90 %"),
    (1e-2, "99 %"),
    (1e-3, "99.9 %"),
    (1e-4, "99.99 %"),
    (1e-5, "99.999 %"),
    (1e-6, "99.9999 %"),
];

/// One curve.
#[derive(Debug, Clone)]
pub(super) struct Curve {
    /// What it is of.
    pub label: String,
    /// Of its path.
    pub colour: Colour,
    /// There is another of the same colour.
    pub dashed: bool,
    /// From the fastest to the slowest; at least one.
    pub points: Vec<CurvePoint>,
}

impl Curve {
    fn last(&self) -> Option<&CurvePoint> {
        self.points.last()
    }
}

struct Scale {
    /// log10 of the smallest and largest nanoseconds.
    low: f64,
    high: f64,
    /// -log10 of the smallest part.
    nines: f64,
}

impl Scale {
    fn of(curves: &[Curve]) -> Self {
        let points = || curves.iter().flat_map(|curve| &curve.points);
        let logs = || points().map(|point| point.ns.max(1.0).log10());
        // Some space, so that no curve runs along the border.
        let low = logs().fold(f64::INFINITY, f64::min) - 0.06;
        let high = logs().fold(f64::NEG_INFINITY, f64::max) + 0.06;
        let nines = points().map(|point| -point.slower.log10());
        Self {
            low,
            high,
            nines: nines.fold(1.0, f64::max),
        }
    }

    fn at(&self, slower: f64, ns: f64) -> (f64, f64) {
        let x = LEFT + -slower.log10() / self.nines * (WIDTH - LEFT - RIGHT);
        let part = (ns.max(1.0).log10() - self.low) / (self.high - self.low);
        (x, HEIGHT - BOTTOM - part * (HEIGHT - BOTTOM - TOP))
    }

    /// Round times within the axis: with one, two or three for each factor of ten, as there is space for.
    fn times(&self) -> Vec<f64> {
        let factors: &[f64] = match self.high - self.low {
            decades if decades < 0.4 => &[1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0],
            decades if decades < 3.4 => &[1.0, 2.0, 5.0],
            _ => &[1.0],
        };
        (0..12)
            .flat_map(|power| {
                factors
                    .iter()
                    .map(move |factor| factor * 10_f64.powi(power))
            })
            .filter(|ns| (self.low..=self.high).contains(&ns.log10()))
            .collect()
    }
}

/// Draws curves, of which there is at least one, as an SVG element.
pub(super) fn curves(id: &str, title: &str, curves: &[Curve]) -> Result<String, DrawError> {
    let ends = curves.iter().filter_map(|curve| {
        let last = curve.last()?;
        Some(format!("{} at most {}", curve.label, time(last.ns)))
    });
    let label = format!("{title}: {}", ends.collect::<Vec<_>>().join("; "));
    draw((WIDTH_U32, HEIGHT_U32), id, &label, |canvas| {
        let scale = Scale::of(curves);
        axes(canvas, &scale)?;
        for curve in curves {
            let points = curve.points.iter();
            let path: Vec<_> = points
                .map(|point| scale.at(point.slower, point.ns))
                .collect();
            if curve.dashed {
                canvas.dashes(path, curve.colour, 2)?;
            } else {
                canvas.path(path, curve.colour, 2)?;
            }
        }
        names(canvas, &scale, curves)
    })
}

fn axes(canvas: &Canvas<'_>, scale: &Scale) -> Result<(), DrawError> {
    let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
    for ns in scale.times() {
        let (_, y) = scale.at(1.0, ns);
        canvas.line((LEFT, y), (right, y), GRID)?;
        canvas.text((LEFT - 6.0, y), Anchor::End, SMALL, MUTED, &short_time(ns))?;
    }
    for (slower, name) in TICKS {
        if -slower.log10() > scale.nines + 1e-9 {
            break;
        }
        let (x, _) = scale.at(slower, 1.0);
        canvas.line((x, TOP), (x, bottom), GRID)?;
        canvas.text((x, bottom + 10.0), Anchor::Middle, SMALL, MUTED, name)?;
    }
    canvas.line((LEFT, bottom), (right, bottom), MUTED)?;
    let axis = "this part of all operations is at least as fast";
    canvas.text((LEFT, bottom + 28.0), Anchor::Start, SMALL, MUTED, axis)
}

/// `20 µs`, where a figure would be `20.0 µs`.
fn short_time(ns: f64) -> String {
    let text = time(ns);
    match text.split_once(' ') {
        Some((number, unit)) if number.contains('.') => {
            let number = number.trim_end_matches('0').trim_end_matches('.');
            format!("{number} {unit}")
        }
        _ => text,
    }
}

/// The names at the right, moved apart where curves end close together.
fn names(canvas: &Canvas<'_>, scale: &Scale, curves: &[Curve]) -> Result<(), DrawError> {
    let mut ends: Vec<((f64, f64), &Curve)> = curves
        .iter()
        .filter_map(|curve| Some((scale.at(curve.last()?.slower, curve.last()?.ns), curve)))
        .collect();
    ends.sort_by(|((_, a), _), ((_, b), _)| a.total_cmp(b));
    let wanted: Vec<f64> = ends.iter().map(|((_, y), _)| *y).collect();
    let places = apart(&wanted, TOP, HEIGHT - BOTTOM);
    let x = WIDTH - RIGHT + 16.0;
    for (((end, y), curve), place) in ends.into_iter().zip(places) {
        canvas.dot((end, y), 3, curve.colour)?;
        canvas.path(vec![(end, y), (x - 4.0, place)], curve.colour, 1)?;
        canvas.text(
            (x, place),
            Anchor::Start,
            SMALL,
            INK,
            &shortened(&curve.label),
        )?;
    }
    Ok(())
}

/// Places in ascending order as close to the wanted ones as can be, with [`LINE`] between them, within the limits if
/// they fit at all.
fn apart(wanted: &[f64], top: f64, bottom: f64) -> Vec<f64> {
    let mut places = Vec::new();
    let mut least = top;
    for y in wanted {
        let place = y.max(least);
        places.push(place);
        least = place + LINE;
    }
    let mut most = bottom;
    for place in places.iter_mut().rev() {
        *place = place.min(most);
        most = *place - LINE;
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_overlap() {
        assert_eq!(apart(&[10.0, 100.0], 0.0, 200.0), [10.0, 100.0]);
        assert_eq!(apart(&[10.0, 11.0, 12.0], 0.0, 200.0), [10.0, 25.0, 40.0]);
        assert_eq!(apart(&[198.0, 199.0], 0.0, 200.0), [185.0, 200.0]);
    }

    #[test]
    fn times_at_an_axis() {
        assert_eq!(short_time(20_000.0), "20 µs");
        assert_eq!(short_time(1_500.0), "1.5 µs");
        assert_eq!(short_time(100.0), "100 ns");
    }
}
