//! Suites: many tests from one TOML file, and running them.

mod expand;
mod file;
mod pool;
mod variables;

use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::spec::TestSpec;

pub use pool::{Event, Pool, PoolError, RESULT_FILE, SPEC_FILE, free_memory_bytes};
pub use variables::Variables;

/// The tests of a suite, in its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suite {
    /// Its name.
    pub name: String,
    /// Its tests, each with a name of its own.
    pub tests: Vec<TestSpec>,
}

/// What is wrong with a suite.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{}: {place}{message}", file.display())]
pub struct SuiteError {
    /// The suite.
    pub file: PathBuf,
    /// Where in it, with a colon, as in `test "disk": `; empty for the file as a whole.
    pub place: String,
    /// What is wrong.
    pub message: String,
}

impl Suite {
    /// Reads a suite and expands its matrix. Nothing that it names is opened.
    ///
    /// # Errors
    /// [`SuiteError`], the user's every one.
    pub fn load(path: &Path, variables: &Variables) -> Result<Self, SuiteError> {
        let text = std::fs::read_to_string(path).map_err(|error| SuiteError {
            file: path.to_owned(),
            place: String::new(),
            message: format!("cannot be read: {error}"),
        })?;
        Self::parse(&text, path, variables)
    }

    fn parse(text: &str, path: &Path, variables: &Variables) -> Result<Self, SuiteError> {
        let wrong = |(place, message)| SuiteError {
            file: path.to_owned(),
            place,
            message,
        };
        let file = file::parse(text, variables).map_err(wrong)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let tests = expand::tests(&file, folder).map_err(wrong)?;
        let stem = || path.file_stem().unwrap_or_default().to_string_lossy();
        Ok(Self {
            name: file.name.unwrap_or_else(|| stem().into_owned()),
            tests,
        })
    }

    /// Keeps the tests that one of `filters` names: exactly, or else by a part of their names. All, if there is none.
    pub fn keep(&mut self, filters: &[String]) {
        if filters.is_empty() {
            return;
        }
        let exact: Vec<bool> = filters
            .iter()
            .map(|filter| self.tests.iter().any(|test| test.name == *filter))
            .collect();
        self.tests.retain(|test| {
            filters.iter().zip(&exact).any(|(filter, exact)| {
                test.name == *filter || (!exact && test.name.contains(filter.as_str()))
            })
        });
    }
}

/// What is wrong, and where.
type Wrong = (String, String);

#[cfg(test)]
mod tests;
