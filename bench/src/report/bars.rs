//! Horizontal bars, one a path, each with its figure written beside it.

use super::canvas::{Anchor, Canvas, DrawError, draw};
use super::palette::{Colour, GRID, INK, MUTED};

/// Of all charts, in pixels of a small screen.
pub(super) const WIDTH: f64 = 460.0;
pub(super) const WIDTH_U32: u32 = 460;
const LEFT: f64 = 136.0;
const RIGHT: f64 = 112.0;
const TOP: f64 = 6.0;
const ROW: f64 = 25.0;
const ROW_U32: u32 = 25;
const BAR: f64 = 15.0;
/// What is above the rows and, for the axis, below them.
const AROUND_U32: u32 = 44;
const FONT: f64 = 13.0;
const SMALL: f64 = 11.5;
const LONGEST_LABEL: usize = 20;
/// How much of a bar is seen whose figure is unsteady.
const FAINT: f64 = 0.5;
/// Ticks of an axis, about.
const TICKS: f64 = 4.0;

/// One of them.
#[derive(Debug, Clone)]
pub(super) struct Bar {
    /// What it is of.
    pub label: String,
    /// From the left to the right.
    pub segments: Vec<(f64, Colour)>,
    /// How far the figure may be off, on either side.
    pub error: Option<f64>,
    /// The figure.
    pub text: String,
    /// It is not to be relied on.
    pub faint: bool,
}

impl Bar {
    fn end(&self) -> f64 {
        self.segments.iter().map(|(length, _)| length).sum()
    }
}

/// Bars on one axis.
#[derive(Debug, Clone)]
pub(super) struct Bars {
    /// From the top down.
    pub bars: Vec<Bar>,
    /// The least of the axis, at most 0.
    pub least: f64,
    /// The most of the axis; what the bars need if it is none.
    pub most: Option<f64>,
    /// How numbers at the axis are written.
    pub tick: fn(f64) -> String,
    /// What the axis is of.
    pub axis: String,
}

struct Scale {
    least: f64,
    most: f64,
}

impl Scale {
    fn x(&self, value: f64) -> f64 {
        let part = (value.clamp(self.least, self.most) - self.least) / (self.most - self.least);
        LEFT + part * (WIDTH - LEFT - RIGHT)
    }
}

impl Bars {
    /// As an SVG element.
    pub fn draw(&self, id: &str, title: &str) -> Result<String, DrawError> {
        let figures = self
            .bars
            .iter()
            .map(|bar| format!("{} {}", bar.label, bar.text));
        let label = format!("{title}: {}", figures.collect::<Vec<_>>().join("; "));
        let rows = u32::try_from(self.bars.len()).unwrap_or(u32::MAX);
        let height = rows.saturating_mul(ROW_U32).saturating_add(AROUND_U32);
        draw((WIDTH_U32, height), id, &label, |canvas| {
            self.content(canvas)
        })
    }

    fn content(&self, canvas: &Canvas<'_>) -> Result<(), DrawError> {
        let scale = self.scale();
        let bottom = TOP + ROW * self.bars.len() as f64 + 3.0;
        for tick in ticks(scale.least, scale.most) {
            let x = scale.x(tick);
            canvas.line((x, TOP - 3.0), (x, bottom), GRID)?;
            canvas.text(
                (x, bottom + 9.0),
                Anchor::Middle,
                SMALL,
                MUTED,
                &(self.tick)(tick),
            )?;
        }
        canvas.text(
            (scale.x(scale.least), bottom + 24.0),
            Anchor::Start,
            SMALL,
            MUTED,
            &self.axis,
        )?;
        for (index, bar) in self.bars.iter().enumerate() {
            let middle = TOP + ROW * (index as f64 + 0.5);
            draw_bar(canvas, &scale, bar, middle)?;
        }
        let zero = scale.x(0.0);
        canvas.line((zero, TOP - 3.0), (zero, bottom), MUTED)
    }

    fn scale(&self) -> Scale {
        let ends = self
            .bars
            .iter()
            .map(|bar| bar.end() + bar.error.unwrap_or(0.0));
        let most = self.most.unwrap_or_else(|| ends.fold(0.0, f64::max));
        Scale {
            least: self.least,
            most: if most > self.least {
                most
            } else {
                self.least + 1.0
            },
        }
    }
}

fn draw_bar(canvas: &Canvas<'_>, scale: &Scale, bar: &Bar, middle: f64) -> Result<(), DrawError> {
    let label = shortened(&bar.label);
    canvas.text((LEFT - 8.0, middle), Anchor::End, FONT, INK, &label)?;
    let opacity = if bar.faint { FAINT } else { 1.0 };
    let mut from = 0.0;
    for (length, colour) in &bar.segments {
        let (a, b) = (scale.x(from), scale.x(from + length));
        let (top, bottom) = (middle - BAR / 2.0, middle + BAR / 2.0);
        canvas.rect((a.min(b), top), (a.max(b), bottom), *colour, opacity)?;
        from += length;
    }
    let mut end = scale.x(from).max(scale.x(0.0));
    if let Some(error) = bar.error {
        let (low, high) = (scale.x(from - error), scale.x(from + error));
        canvas.line((low, middle), (high, middle), INK)?;
        for x in [low, high] {
            canvas.line((x, middle - 4.0), (x, middle + 4.0), INK)?;
        }
        end = end.max(high);
    }
    let colour = if bar.segments.is_empty() { MUTED } else { INK };
    canvas.text((end + 6.0, middle), Anchor::Start, SMALL, colour, &bar.text)
}

/// A text that fits to the left of a chart.
pub(super) fn shortened(label: &str) -> String {
    if label.chars().count() <= LONGEST_LABEL {
        return label.to_owned();
    }
    let mut text: String = label.chars().take(LONGEST_LABEL - 1).collect();
    text.push('…');
    text
}

/// Round numbers between two.
fn ticks(least: f64, most: f64) -> Vec<f64> {
    let rough = (most - least) / TICKS;
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power);
    let step = step.into_iter().find(|step| *step >= rough);
    let Some(step) = step.filter(|step| step.is_finite() && *step > 0.0) else {
        return Vec::new();
    };
    let first = (least / step).ceil();
    (0_u32..20)
        .map(|index| (first + f64::from(index)) * step)
        .take_while(|tick| *tick <= most * (1.0 + 1e-9))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round() {
        assert_eq!(ticks(0.0, 47.0), [0.0, 20.0, 40.0]);
        assert_eq!(ticks(-0.5, 1.0), [-0.5, 0.0, 0.5, 1.0]);
        assert_eq!(ticks(0.0, 0.0).len(), 0);
        assert_eq!(ticks(0.0, f64::INFINITY).len(), 0);
    }

    #[test]
    fn a_long_label_is_cut() {
        assert_eq!(shortened("direct: loopback"), "direct: loopback");
        assert_eq!(shortened(&"ä".repeat(30)), format!("{}…", "ä".repeat(19)));
    }
}
