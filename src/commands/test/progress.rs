//! How far a suite is: a moving line on a terminal, a line for each test elsewhere.

use std::io::{self, IsTerminal};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use boottest::report::TestResult;
use boottest::suite::Event;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::tell_failure;
use crate::logging;

/// How often the line on a terminal moves.
const TICK: Duration = Duration::from_millis(200);

/// Tells the user of a suite's progress.
pub struct Progress {
    bar: ProgressBar,
    count: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    running: Vec<String>,
    ended: usize,
}

impl Progress {
    /// Of `count` tests.
    pub fn new(count: usize) -> Self {
        let bar = if io::stderr().is_terminal() {
            ProgressBar::new(count as u64)
        } else {
            ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden())
        };
        if !bar.is_hidden() {
            let style = ProgressStyle::with_template("{pos}/{len} {elapsed} {wide_msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.enable_steady_tick(TICK);
        }
        Self {
            bar,
            count,
            state: Mutex::default(),
        }
    }

    /// Something happened. Any thread.
    pub fn on_event(&self, event: Event<'_>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Started(test) => state.running.push(test.name.clone()),
            Event::Ended(result) => {
                state.running.retain(|name| *name != result.name);
                state.ended += 1;
                let place = format!("[{}/{}]", state.ended, self.count);
                self.bar.suspend(|| tell(&place, result));
                self.bar.inc(1);
            }
        }
        self.bar.set_message(state.running.join(", "));
    }

    /// All is over: the line goes.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

fn tell(place: &str, result: &TestResult) {
    logging::tell(&format!("{place} {}: {}", result.name, result.headline()));
    tell_failure(result);
    if let Some(rerun) = &result.rerun {
        logging::tell(&format!("  run it again: {rerun}"));
    }
    if let Some(logs) = result.logs.as_ref().filter(|_| !result.passed) {
        logging::tell(&format!("  its logs: {}", logs.display()));
    }
}
