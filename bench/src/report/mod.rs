//! A benchmark's results as one HTML page that loads nothing and runs nothing: charts, how to read them, all figures.

mod bars;
mod canvas;
mod charts;
mod curves;
mod page;
mod palette;
mod sections;

use thiserror::Error;

use crate::analysis::analyse;
use crate::analysis::significance::Verdict;
use crate::results::{BenchReport, Subject};

/// The page cannot be made.
#[derive(Debug, Error)]
#[error("a chart cannot be drawn: {0}")]
pub struct ReportError(String);

impl From<canvas::DrawError> for ReportError {
    fn from(error: canvas::DrawError) -> Self {
        Self(error.to_string())
    }
}

/// The whole page. Texts from the report are shown as texts, whatever is in them.
///
/// # Errors
/// A chart cannot be drawn.
pub fn html(report: &BenchReport) -> Result<String, ReportError> {
    let all = analyse(report);
    let mut body = sections::head(report, &all);
    body.push_str(&sections::at_a_glance(&all));
    for subject in Subject::ALL {
        body.push_str(&sections::subject(subject, &all)?);
    }
    body.push_str(&sections::model(report, &all));
    body.push_str(&sections::figures(&all));
    body.push_str(&sections::accesses(&all));
    body.push_str(&sections::method(report));
    let title = "tripath: what each I/O path costs";
    Ok(page::page(title, &palette::style_sheet(), &body))
}

/// What stands beside a figure that is not told apart from the direct path's.
fn mark_of(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Faster | Verdict::Slower => "",
        Verdict::Same => " ≈",
        Verdict::Undecided => " ?",
    }
}

#[cfg(test)]
mod tests;
