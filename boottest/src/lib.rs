//! Boot tests: a guest is booted, its consoles are read, and there is a verdict.
#![cfg_attr(test, allow(clippy::cast_possible_truncation, clippy::unwrap_used))]

pub mod guest;
