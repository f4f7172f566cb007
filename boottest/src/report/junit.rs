//! JUnit XML, by quick-junit, which escapes text. It follows Jenkins's schema, `junit-10.xsd` of its xunit plugin.

use std::fmt::Write;
use std::time::Duration;

use quick_junit::{NonSuccessKind, SerializeError, TestCase, TestCaseStatus, TestSuite};

use super::{Report, TestResult};
use crate::judge::FailureKind;

/// A report as JUnit XML. A test that could not be run is an error, any other that did not pass a failure.
///
/// # Errors
/// Those of the serializer.
pub fn junit(report: &Report) -> Result<String, SerializeError> {
    let mut suite = TestSuite::new(xml(&report.name));
    suite.set_time(Duration::try_from_secs_f64(report.duration_s).unwrap_or_default());
    suite.add_test_cases(report.tests.iter().map(|test| case(&report.name, test)));
    let mut all = quick_junit::Report::new("tripath test");
    all.set_time(Duration::try_from_secs_f64(report.duration_s).unwrap_or_default());
    all.add_test_suite(suite);
    // Its one attribute that the schema does not have there; nothing of ours is skipped.
    Ok(all.to_string()?.replacen(" skipped=\"0\"", "", 1))
}

fn case(suite: &str, test: &TestResult) -> TestCase {
    let status = match &test.failure {
        None => TestCaseStatus::success(),
        Some(failure) => {
            let kind = match failure.kind {
                FailureKind::Ours => NonSuccessKind::Error,
                _ => NonSuccessKind::Failure,
            };
            let mut status = TestCaseStatus::non_success(kind);
            status
                .set_type(format!("exit-{}", test.exit_code))
                .set_message(xml(&failure.reason))
                .set_description(xml(&failure.quote.join("\n")));
            status
        }
    };
    let mut case = TestCase::new(xml(&test.name), status);
    case.set_classname(xml(suite));
    case.set_time(Duration::try_from_secs_f64(test.duration_s).unwrap_or_default());
    case.set_system_out(xml(&system_out(test)));
    if let Some(command) = test.command.as_ref().filter(|one| !one.stderr.is_empty()) {
        case.set_system_err(xml(&command.stderr));
    }
    case
}

/// `text` with what XML 1.0 cannot hold (section 2.2, Char) replaced.
fn xml(text: &str) -> String {
    let is_char = |c: &char| matches!(c, '\t' | '\n' | '\r' | ' '..='\u{fffd}' | '\u{10000}'..);
    let replaced = |c: char| {
        if is_char(&c) {
            c
        } else {
            char::REPLACEMENT_CHARACTER
        }
    };
    text.chars().map(replaced).collect()
}

fn system_out(test: &TestResult) -> String {
    let mut text = String::new();
    let mut line = |line: &str| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{line}");
    };
    if let Some(command) = &test.command {
        line(&command.stdout);
    }
    for moment in &test.milestones {
        line(&format!("{:10.3} s  {}", moment.time_s, moment.name));
    }
    if let Some(logs) = &test.logs {
        line(&format!("logs: {}", logs.display()));
    }
    if let Some(rerun) = &test.rerun {
        line(&format!("run again: {rerun}"));
    }
    if !test.passed {
        for last in &test.console.last_lines {
            line(last);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::{Failure, Verdict};
    use crate::report::CommandOutput;

    fn failed(kind: FailureKind, reason: &str) -> TestResult {
        let quote = vec!["<&>\"]]> \u{1}\u{1b}[31m\u{fffe}é".to_owned()];
        let failure = Failure {
            kind,
            reason: reason.into(),
            quote,
        };
        TestResult::of_verdict("bad\u{0}name", Verdict::Failed(failure))
    }

    #[test]
    fn whatever_a_guest_prints_the_xml_is_valid() {
        let everything: String = (0..=0x2fff).filter_map(char::from_u32).collect();
        let mut test = failed(FailureKind::Rejected, &everything);
        test.command = Some(CommandOutput {
            stdout: everything.clone(),
            stderr: everything,
            ..CommandOutput::default()
        });
        let report = Report {
            name: "suite".into(),
            duration_s: 1.5,
            tests: vec![
                TestResult::of_verdict("good", Verdict::Passed),
                test,
                failed(FailureKind::Ours, "gone"),
            ],
        };
        let xml = junit(&report).unwrap();
        let allowed = |c: char| matches!(c, '\t' | '\n' | '\r' | ' '..='\u{fffd}' | '\u{10000}'..);
        assert!(xml.chars().all(allowed));
        let root = xml
            .lines()
            .find(|line| line.contains("<testsuites"))
            .unwrap();
        assert!(!root.contains("skipped"), "{root}");
        let read = quick_junit::Report::deserialize_from_str(&xml).unwrap();
        let suite = &read.test_suites[0];
        assert_eq!((suite.tests, suite.failures, suite.errors), (3, 1, 1));
    }
}
