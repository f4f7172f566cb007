//! Figures as people read them: three digits that count, and a prefix.

/// A rate or count with a prefix of thousands, as in `12.3 k` or `1.20 M`; what follows is the unit.
#[must_use]
pub fn si(value: f64) -> String {
    const PREFIXES: [&str; 5] = ["", "k", "M", "G", "T"];
    let mut scaled = value;
    let mut prefix = 0;
    // Not 1000: what would be rounded up to it has the next prefix.
    while scaled.abs() >= 999.5 && prefix + 1 < PREFIXES.len() {
        scaled /= 1000.0;
        prefix += 1;
    }
    format!("{} {}", digits(scaled), PREFIXES[prefix])
        .trim_end()
        .to_owned()
}

/// A rate with its unit, as in `12.3 kop/s` or `1.20 MB/s`.
#[must_use]
pub fn rate(value: f64, unit: &str) -> String {
    let text = si(value);
    // A word gets a space of its own, a symbol none: "12.3 k packets/s", "12.3 MB/s".
    let joined = text.contains(' ') && unit == "B/s";
    format!("{text}{}{unit}", if joined { "" } else { " " })
}

/// Nanoseconds as `850 ns`, `12.3 µs`, `4.56 ms` or `1.20 s`.
#[must_use]
pub fn time(ns: f64) -> String {
    let (scaled, unit) = match ns.abs() {
        size if size < 999.5 => (ns, "ns"),
        size if size < 999.5e3 => (ns / 1e3, "µs"),
        size if size < 999.5e6 => (ns / 1e6, "ms"),
        _ => (ns / 1e9, "s"),
    };
    format!("{} {unit}", digits(scaled))
}

/// A part as a percentage: `37 %`, or `1.2 %` below 10.
#[must_use]
pub fn percent(part: f64) -> String {
    let percent = part * 100.0;
    let text = if percent.abs() < 9.95 {
        format!("{percent:.1} %")
    } else {
        format!("{percent:.0} %")
    };
    without_sign_of_zero(text).replace('-', "\u{2212}")
}

/// How many times as much: `×0.52`, `×14`.
#[must_use]
pub fn times(factor: f64) -> String {
    match factor.abs() {
        // Not ×0 for what is only slow.
        small if (0.0005..0.005).contains(&small) => format!("×{factor:.3}"),
        _ => format!("×{}", digits(factor)),
    }
}

/// Three digits that count, none after the point from 100 on; a plain 0 for less than 0.005.
#[must_use]
pub fn digits(value: f64) -> String {
    let text = match value.abs() {
        size if size < 0.005 => "0".to_owned(),
        size if size < 9.995 => format!("{value:.2}"),
        size if size < 99.95 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    };
    without_sign_of_zero(text)
}

fn without_sign_of_zero(text: String) -> String {
    match text.strip_prefix('-') {
        Some(rest) if !rest.contains(|c: char| ('1'..='9').contains(&c)) => rest.to_owned(),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures() {
        assert_eq!(
            [0.0, 3.0, 12.345, 999.4, 999.6, 12_345.0, 1.2e9].map(si),
            ["0", "3.00", "12.3", "999", "1.00 k", "12.3 k", "1.20 G"]
        );
        assert_eq!(rate(2.5e6, "B/s"), "2.50 MB/s");
        assert_eq!(rate(25.0, "B/s"), "25.0 B/s");
        assert_eq!(rate(2500.0, "packets/s"), "2.50 k packets/s");
        assert_eq!(
            [850.0, 12_300.0, 999_600.0, 1.2e9].map(time),
            ["850 ns", "12.3 µs", "1.00 ms", "1.20 s"]
        );
        assert_eq!(
            [0.0123, 0.37, -0.5, -0.0001, 14.0].map(percent),
            ["1.2 %", "37 %", "\u{2212}50 %", "0.0 %", "1400 %"]
        );
        assert_eq!(times(0.5), "×0.50");
    }
}
