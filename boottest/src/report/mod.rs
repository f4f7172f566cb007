//! What came of tests: facts for people and programs.

mod junit;
mod result;

pub use junit::junit;
pub use result::{
    CommandOutput, Console, DeviceFigures, ExitFigures, MachineSummary, Moment, Report, Stats,
    TestResult,
};
