//! Character backends: where the bytes of a serial port or a console go.

mod backend;

pub use backend::CharBackend;
