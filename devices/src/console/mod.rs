//! Character backends: where the bytes of a serial port or a console go.
//!
//! A device has a [`Port`], which has a [`CharBackend`].

mod backend;
mod backlog;
mod error;
mod escape;
mod file;
mod null;
mod outlet;
mod panic_watch;
pub(crate) mod poll_set;
mod port;
mod pty;
mod socket;
mod stdio;

pub use backend::{CharBackend, Interest};
pub use error::CharError;
pub use escape::EscapeFilter;
pub use file::FileBackend;
pub use null::NullBackend;
pub use panic_watch::{KernelMessage, PanicWatch, PanicWitness};
pub use port::{OUTPUT_BYTES, OUTPUT_SLACK_BYTES, OutputGauge, Port, READ_AHEAD_BYTES};
pub use pty::PtyBackend;
pub use socket::{SocketAccess, SocketBackend, SocketFile, listen_unix};
pub use stdio::StdioBackend;
