//! What a guest prints: bytes to lines, lines to matches and to a log.

mod lines;
mod log_file;
mod pattern;

pub use lines::{LINE_LIMIT_CHARS, LineReader, Piece};
pub use log_file::{ConsoleLog, LogTotals};
pub use pattern::{Pattern, PatternError, Text};
