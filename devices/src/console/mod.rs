//! Character backends: where the bytes of a serial port or a console go.

mod backend;
mod backlog;
mod error;
mod escape;
mod file;
mod null;
mod panic_watch;
mod pty;
mod socket;
mod stdio;

pub use backend::CharBackend;
pub use error::CharError;
pub use escape::EscapeFilter;
pub use file::FileBackend;
pub use null::NullBackend;
pub use panic_watch::{KernelMessage, PanicWatch, PanicWitness};
pub use pty::PtyBackend;
pub use socket::SocketBackend;
pub use stdio::StdioBackend;
