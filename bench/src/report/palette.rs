//! Colours, each with one meaning in all charts.
//!
//! The paths have those of Okabe and Ito, which people who see fewer colours can tell apart; parts of stacked bars have
//! others, of Paul Tol's muted set. Charts are drawn in the colours for a light page; the style sheet replaces them on a
//! dark one, which it can because no two are equal.

use std::fmt::Write as _;

use plotters::style::RGBColor;

use crate::results::PathKind;

/// One meaning's colour.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Colour {
    /// Of the style sheet's variable.
    pub name: &'static str,
    /// On a light page.
    pub light: RGBColor,
    /// On a dark one.
    pub dark: RGBColor,
}

const fn colour(name: &'static str, light: [u8; 3], dark: [u8; 3]) -> Colour {
    Colour {
        name,
        light: RGBColor(light[0], light[1], light[2]),
        dark: RGBColor(dark[0], dark[1], dark[2]),
    }
}

/// Text.
pub(super) const INK: Colour = colour("ink", [0x1F, 0x23, 0x28], [0xE6, 0xED, 0xF3]);
/// Text of less weight.
pub(super) const MUTED: Colour = colour("muted", [0x5A, 0x62, 0x6B], [0x9D, 0xA5, 0xAE]);
/// Lines behind the data.
pub(super) const GRID: Colour = colour("grid", [0xDD, 0xE1, 0xE6], [0x33, 0x3A, 0x42]);

const DIRECT: Colour = colour("direct", [0x6B, 0x6B, 0x6B], [0xB8, 0xB8, 0xB8]);
const CONTAINER: Colour = colour("container", [0x00, 0x72, 0xB2], [0x3D, 0x9F, 0xDD]);
const SANDBOX: Colour = colour("sandbox", [0x56, 0xB4, 0xE9], [0x9B, 0xD6, 0xF7]);
const PASSTHROUGH: Colour = colour("passthrough", [0x00, 0x9E, 0x73], [0x22, 0xC0, 0x92]);
const PARAVIRTUAL: Colour = colour("paravirtual", [0xE6, 0x9F, 0x00], [0xF2, 0xB7, 0x35]);
const EMULATED: Colour = colour("emulated", [0xD5, 0x5E, 0x00], [0xEE, 0x7A, 0x29]);

/// Of exits that KVM answers itself, and of CPU time in the host's kernel: neither is user space.
pub(super) const IN_KERNEL: Colour = colour("in-kernel", [0xB4, 0xBA, 0xC1], [0x70, 0x78, 0x81]);
/// CPU time that the guest has for itself.
pub(super) const IN_GUEST: Colour = colour("in-guest", [0xDD, 0xCC, 0x77], [0xCF, 0xBC, 0x5E]);
/// What shares one colour, for want of more.
pub(super) const OTHERS: Colour = colour("others", [0x99, 0x99, 0x33], [0xB0, 0xB0, 0x50]);
/// Of parts that are known by name only, in the order in which they are seen first.
pub(super) const PARTS: [Colour; 6] = [
    colour("part-0", [0x33, 0x22, 0x88], [0x8C, 0x7F, 0xE0]),
    colour("part-1", [0x88, 0xCC, 0xEE], [0x6F, 0xB9, 0xDF]),
    colour("part-2", [0x88, 0x22, 0x55], [0xC4, 0x4D, 0x86]),
    colour("part-3", [0xCC, 0x66, 0x77], [0xE0, 0x86, 0x96]),
    colour("part-4", [0x44, 0xAA, 0x99], [0x5B, 0xC4, 0xB2]),
    colour("part-5", [0xAA, 0x44, 0x99], [0xC8, 0x6B, 0xB8]),
];

const SINGLE: [Colour; 12] = [
    INK,
    MUTED,
    GRID,
    DIRECT,
    CONTAINER,
    SANDBOX,
    PASSTHROUGH,
    PARAVIRTUAL,
    EMULATED,
    IN_KERNEL,
    IN_GUEST,
    OTHERS,
];

/// The colour of a path.
pub(super) fn of_path(path: PathKind) -> Colour {
    match path {
        PathKind::Direct => DIRECT,
        PathKind::Container => CONTAINER,
        PathKind::Sandbox => SANDBOX,
        PathKind::Passthrough => PASSTHROUGH,
        PathKind::Paravirtual => PARAVIRTUAL,
        PathKind::Emulated => EMULATED,
    }
}

/// The part of the style sheet that has all colours.
pub(super) fn style_sheet() -> String {
    let all = || SINGLE.iter().chain(&PARTS);
    let variables = |pick: fn(&Colour) -> RGBColor| {
        all().fold(String::new(), |mut text, colour| {
            let _ = write!(text, "--{}:{};", colour.name, hex(pick(colour)));
            text
        })
    };
    let light = variables(|colour| colour.light);
    let dark = variables(|colour| colour.dark);
    let mut text = format!(":root{{{light}}}\n");
    let _ = writeln!(
        text,
        "@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"
    );
    for colour in all() {
        let (name, hex) = (colour.name, hex(colour.light));
        let _ = writeln!(
            text,
            "svg [fill=\"{hex}\"]{{fill:var(--{name})}}svg [stroke=\"{hex}\"]{{stroke:var(--{name})}}"
        );
    }
    text
}

/// As plotters writes it.
fn hex(colour: RGBColor) -> String {
    format!("#{:02X}{:02X}{:02X}", colour.0, colour.1, colour.2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_are_equal() {
        let mut seen: Vec<String> = SINGLE
            .iter()
            .chain(&PARTS)
            .map(|colour| hex(colour.light))
            .collect();
        let all = seen.len();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), all);
    }
}
