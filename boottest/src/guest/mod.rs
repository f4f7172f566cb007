//! The guest of a test that runs a command: what it boots from, and what comes out of it.
