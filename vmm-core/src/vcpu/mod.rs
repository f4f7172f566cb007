//! Running vCPUs: what one exit means (`exit`), and the threads that run them (`thread`).

mod exit;
mod posted;
mod thread;

pub use exit::{BusViews, Buses, Exit, ExitReason, Handled, Next, handle_exit};
pub use posted::PostedQueue;
pub use thread::{StopReport, StopSink, VcpuGate, VcpuThreads};
