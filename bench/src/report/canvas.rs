//! Drawing SVG in units that are pixels of a small chart.

use std::io;

use plotters::coord::Shift;
use plotters::coord::cartesian::Cartesian2d;
use plotters::coord::types::RangedCoordf64;
use plotters::element::DashedPathElement;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::page::escape;
use super::palette::Colour;

/// plotters rounds to whole units: there are this many of its units in one of ours.
const FINE: f64 = 4.0;
/// The same for its sizes.
const FINE_U32: u32 = 4;
/// plotters writes sizes of fonts divided by this.
const FONT_FACTOR: f64 = 1.24;
const FONT: &str = "system-ui, sans-serif";

/// A chart could not be drawn.
pub(super) type DrawError = DrawingAreaErrorKind<io::Error>;

type Area<'a> = DrawingArea<SVGBackend<'a>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

/// What a chart is drawn on; x to the right and y down, from 0.
pub(super) struct Canvas<'a> {
    area: Area<'a>,
}

/// Where a text stands beside its point.
#[derive(Debug, Clone, Copy)]
pub(super) enum Anchor {
    /// It begins there.
    Start,
    /// Its middle is there.
    Middle,
    /// It ends there.
    End,
}

/// Draws an SVG element with this `id`, and with `label` as what is read to those who do not see it.
pub(super) fn draw(
    (width, height): (u32, u32),
    id: &str,
    label: &str,
    content: impl FnOnce(&Canvas<'_>) -> Result<(), DrawError>,
) -> Result<String, DrawError> {
    let size = (
        width.saturating_mul(FINE_U32),
        height.saturating_mul(FINE_U32),
    );
    let mut text = String::new();
    {
        let whole: DrawingArea<SVGBackend<'_>, Shift> =
            SVGBackend::with_string(&mut text, size).into_drawing_area();
        let (x, y) = whole.get_pixel_range();
        let coordinates = Cartesian2d::new(0.0..f64::from(width), 0.0..f64::from(height), (x, y));
        let canvas = Canvas {
            area: whole.apply_coord_spec(coordinates),
        };
        content(&canvas)?;
        canvas.area.present()?;
    }
    // The page says how large it is.
    let fixed = format!("<svg width=\"{}\" height=\"{}\"", size.0, size.1);
    let ours = format!(
        "<svg id=\"{}\" role=\"img\" aria-label=\"{}\"",
        escape(id),
        escape(label)
    );
    Ok(text.replacen(&fixed, &ours, 1))
}

impl Canvas<'_> {
    /// A line.
    pub fn line(&self, from: (f64, f64), to: (f64, f64), colour: Colour) -> Result<(), DrawError> {
        self.path(vec![from, to], colour, 1)
    }

    /// Several, one after the other.
    pub fn path(
        &self,
        points: Vec<(f64, f64)>,
        colour: Colour,
        width: u32,
    ) -> Result<(), DrawError> {
        let style = colour.light.stroke_width(width.saturating_mul(FINE_U32));
        self.area.draw(&PathElement::new(points, style))
    }

    /// The same with gaps.
    pub fn dashes(
        &self,
        points: Vec<(f64, f64)>,
        colour: Colour,
        width: u32,
    ) -> Result<(), DrawError> {
        let style = colour.light.stroke_width(width.saturating_mul(FINE_U32));
        let (dash, gap) = (FINE_U32.saturating_mul(5), FINE_U32.saturating_mul(4));
        self.area
            .draw(&DashedPathElement::new(points, dash, gap, style))
    }

    /// A filled rectangle, of which `opacity` is seen.
    pub fn rect(
        &self,
        from: (f64, f64),
        to: (f64, f64),
        colour: Colour,
        opacity: f64,
    ) -> Result<(), DrawError> {
        let style = colour.light.mix(opacity).filled();
        self.area.draw(&Rectangle::new([from, to], style))
    }

    /// A filled circle.
    pub fn dot(&self, at: (f64, f64), radius: u32, colour: Colour) -> Result<(), DrawError> {
        let radius = radius.saturating_mul(FINE_U32);
        self.area
            .draw(&Circle::new(at, radius, colour.light.filled()))
    }

    /// A line of text, around `at` in height.
    pub fn text(
        &self,
        at: (f64, f64),
        anchor: Anchor,
        size: f64,
        colour: Colour,
        text: &str,
    ) -> Result<(), DrawError> {
        let horizontal = match anchor {
            Anchor::Start => HPos::Left,
            Anchor::Middle => HPos::Center,
            Anchor::End => HPos::Right,
        };
        let style = (FONT, size * FINE * FONT_FACTOR)
            .into_font()
            .color(&colour.light)
            .pos(Pos::new(horizontal, VPos::Center));
        self.area.draw(&Text::new(text.to_owned(), at, style))
    }
}
