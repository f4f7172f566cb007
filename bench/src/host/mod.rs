//! The host's side: the load program as a process, and what it runs on.

pub mod agent;
pub mod cgroup;
pub mod files;
pub mod functions;
pub mod links;
pub mod process;
