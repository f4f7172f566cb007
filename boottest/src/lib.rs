//! Boot tests: a guest is booted, its consoles are read, and there is a verdict.
#![cfg_attr(test, allow(clippy::unwrap_used))]
