//! Boot tests: a guest is booted, its consoles are read, and there is a verdict.
//!
//! - [`console`]: bytes of a console become lines, which are matched while they grow, and kept in a log of bounded size.
//! - [`judge`]: what is expected, what is a death, and the [`judge::Verdict`]. No clock, no descriptor: times go in.
//! - [`spec`]: one test as data.
//! - [`run`]: one test run in this process, on a `vmm_core` machine.
//! - [`report`]: its result, for people, as JSON and as JUnit XML.
//! - [`suite`]: many tests from a TOML file, each in a process of its own.
//! - [`guest`]: what runs in the guest when a test is a command: modules, initramfs, root, channel.
#![cfg_attr(test, allow(clippy::cast_possible_truncation, clippy::unwrap_used))]

pub mod console;
pub mod guest;
pub mod judge;
pub mod report;
pub mod run;
pub mod spec;
pub mod suite;
