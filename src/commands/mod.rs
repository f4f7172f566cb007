//! One file per subcommand.

pub mod bench;
pub mod doctor;
pub mod run;
pub mod test;
pub mod vfio;
