//! From how the machine ended and what was heard to the result.

use std::thread::JoinHandle;
use std::time::Instant;

use vmm_core::config::MachineConfig;
use vmm_core::machine::{Finished, Outcome};

use super::RunError;
use super::hearing::Heard;
use crate::judge::{GuestEnd, Milestone};
use crate::report::{Console, MachineSummary, TestResult};
use crate::spec::TestSpec;

pub(super) fn result_of(
    spec: &TestSpec,
    config: &MachineConfig,
    finished: Finished,
    heard: Heard,
    started: &Instant,
) -> Result<(TestResult, Option<JoinHandle<()>>), RunError> {
    let Heard {
        mut judge,
        totals,
        console_bytes,
        command,
        decided,
        last_output,
    } = heard;
    let end = guest_end(&finished);
    judge.guest_ended(&end);
    let (verdict, mut milestones, last_lines) = judge.into_verdict();
    let ended = finished.ended_at.duration_since(*started);
    let add = |list: &mut Vec<Milestone>, name: &str, time| {
        let name = name.to_owned();
        list.push(Milestone { name, time });
    };
    if let Some(time) = last_output {
        add(&mut milestones, "last-output", time);
    }
    add(&mut milestones, "guest-ended", ended);
    // The verdict of a run that the guest itself has ended is there when all of its output was heard.
    let now = started.elapsed();
    add(&mut milestones, "verdict", decided.unwrap_or(now));
    milestones.sort_by_key(|one| one.time);
    let result = TestResult {
        guest_end: end.to_string(),
        resets: finished.resets,
        milestones: milestones.into_iter().map(Into::into).collect(),
        duration_s: now.as_secs_f64(),
        console: Console {
            bytes: console_bytes,
            lines: totals.lines,
            left_out_lines: totals.left_out_lines,
            last_lines,
        },
        machine: Some(MachineSummary::of(config)),
        command: spec.guest.has_command().then_some(command),
        stats: finished.report.as_ref().map(Into::into),
        ..TestResult::of_verdict(&spec.name, verdict)
    };
    Ok((result, finished.cache_filler))
}

fn guest_end(finished: &Finished) -> GuestEnd {
    match &finished.outcome {
        Outcome::PoweredOff => GuestEnd::PoweredOff,
        Outcome::Reset => GuestEnd::Reset {
            resets: finished.resets,
        },
        Outcome::Ended => GuestEnd::Stopped,
        Outcome::Panicked => GuestEnd::Panicked,
        Outcome::Crashed(report) => GuestEnd::Crashed(report.to_string()),
        Outcome::DeviceLost { device, .. } => GuestEnd::DeviceLost(device.clone()),
    }
}
