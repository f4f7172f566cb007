//! The last lines of all consoles, for quotations.

use std::collections::VecDeque;

/// Lines kept.
const KEPT_LINES: usize = 64;
/// Lines quoted from before the one in question.
const LINES_BEFORE: usize = 8;
/// Lines quoted from after it.
const LINES_AFTER: usize = 24;
/// Characters quoted of a line.
const QUOTED_CHARS: usize = 400;

/// A line's place among all that were printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark(u64);

#[derive(Debug, Default)]
pub(super) struct Context {
    lines: VecDeque<String>,
    /// Lines that were complete before the first of `lines`.
    dropped: u64,
    /// The last line of a console that is not complete, and which console's.
    growing: Option<(usize, String)>,
}

impl Context {
    pub(super) fn add(&mut self, line: &str) {
        self.growing = None;
        self.lines.push_back(shortened(line));
        if self.lines.len() > KEPT_LINES {
            self.lines.pop_front();
            self.dropped += 1;
        }
    }

    pub(super) fn growing(&mut self, console: usize, line: &str) {
        self.growing = Some((console, shortened(line)));
    }

    /// The line that is complete next.
    pub(super) fn mark(&self) -> Mark {
        Mark(self.dropped + self.lines.len() as u64)
    }

    /// The last line, if there is any.
    pub(super) fn last(&self) -> Option<Mark> {
        let Mark(next) = self.mark();
        match self.growing {
            Some(_) => Some(Mark(next)),
            None => next.checked_sub(1).map(Mark),
        }
    }

    /// The lines around one.
    pub(super) fn around(&self, mark: Mark) -> Vec<String> {
        let at = usize::try_from(mark.0.saturating_sub(self.dropped)).unwrap_or(usize::MAX);
        let all = self
            .lines
            .iter()
            .chain(self.growing.iter().map(|(_, line)| line));
        let first = at.saturating_sub(LINES_BEFORE);
        let last = at.saturating_add(LINES_AFTER);
        all.enumerate()
            .filter(|(index, _)| (first..=last).contains(index))
            .map(|(_, line)| line.clone())
            .collect()
    }

    /// All that are kept.
    pub(super) fn all(&self) -> Vec<String> {
        let growing = self.growing.iter().map(|(_, line)| line);
        self.lines.iter().chain(growing).cloned().collect()
    }
}

fn shortened(line: &str) -> String {
    match line.char_indices().nth(QUOTED_CHARS) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line.to_owned(),
    }
}
