//! What the baselines are put into, by the program itself before it says hello.

pub mod container;
pub mod sandbox;

/// In what the agent is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// In nothing.
    None,
    /// Under a filter of system calls.
    Sandbox,
    /// About to be in namespaces of its own.
    Container,
    /// The first process of those.
    InContainer,
}

impl Isolation {
    /// By its name on the command line.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "sandbox" => Some(Self::Sandbox),
            "container" => Some(Self::Container),
            container::INSIDE => Some(Self::InContainer),
            _ => None,
        }
    }
}
