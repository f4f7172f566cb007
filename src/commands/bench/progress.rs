//! How far the benchmark is: a moving line and the table so far on a terminal, a line for each round elsewhere.

use std::io::{self, IsTerminal};
use std::time::Duration;

use bench::results::BenchReport;
use bench::run::{Event, Progress as Measured};
use bench::text;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::logging;

/// How often the line on a terminal moves.
const TICK: Duration = Duration::from_millis(200);

/// Tells the user of a benchmark's progress.
pub struct Progress {
    bar: ProgressBar,
    rounds: u32,
}

impl Progress {
    /// Of so many rounds.
    pub fn new(rounds: u32) -> Self {
        let bar = if io::stderr().is_terminal() {
            ProgressBar::new(1)
        } else {
            ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden())
        };
        if !bar.is_hidden() {
            let style = ProgressStyle::with_template("{pos}/{len} {elapsed} {wide_msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.enable_steady_tick(TICK);
        }
        Self { bar, rounds }
    }

    /// Something happened.
    pub fn on_event(&mut self, event: &Event<'_>, report: &BenchReport) {
        match event {
            Event::Preparing(what) => self.bar.set_message((*what).to_owned()),
            Event::Round(round) => self.round(*round, report),
            Event::Started(name, progress) => self.show(name, *progress),
            Event::Measured(name, progress) => self.show(name, *progress),
            Event::Failed(name, error) => self
                .bar
                .suspend(|| logging::tell(&format!("{name}: {error}"))),
        }
    }

    fn round(&self, round: u32, report: &BenchReport) {
        let begins = format!("round {} of {}", round + 1, self.rounds);
        if self.bar.is_hidden() {
            logging::tell(&begins);
        } else if round > 0 {
            // To the terminal, beside the moving line; the last one goes to standard output.
            self.bar
                .suspend(|| eprintln!("{}\nso far; {begins}", text::table(report)));
        }
    }

    fn show(&self, name: &str, Measured { done, all, left }: Measured) {
        self.bar.set_length(all);
        self.bar.set_position(done);
        let left = left.map(|left| format!("{} left, ", rough(left)));
        self.bar.set_message(left.unwrap_or_default() + name);
    }

    /// All is over: the line goes.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// In seconds, or in minutes if they are several.
fn rough(time: Duration) -> String {
    match time.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds => format!("{} min", seconds.div_ceil(60)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rough() {
        let of = |seconds| rough(Duration::from_secs(seconds));
        assert_eq!((of(0), of(119)), ("0 s".to_owned(), "119 s".to_owned()));
        assert_eq!((of(120), of(121)), ("2 min".to_owned(), "3 min".to_owned()));
    }
}
