//! The written form of a part of a BAR.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::text::ValueError;

/// BAR registers in a function's header.
const BARS: u8 = 6;

/// Part of a BAR whose accesses exit. Written as `BAR[:OFFSET+LEN]`, `0:0x1000+0x100` for example.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrapRange {
    /// BAR, 0 to 5.
    pub bar: u8,
    /// Offsets in it, in bytes; all of it if there are none.
    pub range: Option<Range<u64>>,
}

impl FromStr for TrapRange {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        parse_trap(text).ok_or_else(|| ValueError::NotATrap(text.into()))
    }
}

fn parse_trap(text: &str) -> Option<TrapRange> {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    let (bar, range) = match text.split_once(':') {
        None => (text, None),
        Some((bar, range)) => {
            let (offset, len) = range.split_once('+')?;
            let (offset, len) = (number(offset)?, number(len)?);
            let end = offset.checked_add(len).filter(|end| *end > offset)?;
            (bar, Some(offset..end))
        }
    };
    let bar = bar.parse().ok().filter(|bar| *bar < BARS)?;
    Some(TrapRange { bar, range })
}

impl fmt::Display for TrapRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.bar)?;
        match &self.range {
            None => Ok(()),
            Some(range) => write!(f, ":{:#x}+{:#x}", range.start, range.end - range.start),
        }
    }
}

impl TryFrom<String> for TrapRange {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        text.parse()
    }
}

impl From<TrapRange> for String {
    fn from(trap: TrapRange) -> Self {
        trap.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traps_are_read_and_written() {
        for (text, bar, range) in [
            ("0", 0, None),
            ("5:0x1000+0x20", 5, Some(0x1000..0x1020)),
            ("2:0x0+0x4", 2, Some(0..4)),
        ] {
            let trap: TrapRange = text.parse().unwrap();
            assert_eq!((trap.bar, &trap.range), (bar, &range));
            assert_eq!(trap.to_string(), text);
        }
        let decimal: TrapRange = "1:4096+16".parse().unwrap();
        assert_eq!(decimal.range, Some(4096..4112));
    }

    #[test]
    fn what_is_no_trap_is_refused() {
        for text in [
            "",
            "6",
            "-1",
            "0:",
            "0:1",
            "0:1+0",
            "0:+",
            "x",
            "0:0x+1",
            "0:1+18446744073709551615",
        ] {
            let error = text.parse::<TrapRange>().unwrap_err();
            assert_eq!(error, ValueError::NotATrap(text.into()));
        }
    }
}
