//! The verdict: what was asked for, against what the guest does. Pure: times and text go in, decisions come out.

mod context;
mod criteria;
mod death;
mod verdict;

use std::time::Duration;

use crate::console::{Pattern, Piece, Text};

pub use criteria::{Criteria, End, Step};
pub use death::DeathKind;
pub use verdict::{CommandEnd, Failure, FailureKind, GuestEnd, Verdict};

use context::{Context, Mark};
use death::{Deaths, Signs};

/// How long after the line of a death more is waited for, at most.
const AFTERMATH_LIMIT: Duration = Duration::from_secs(1);
/// How long after the last line of a death's aftermath the next may take.
const AFTERMATH_PAUSE: Duration = Duration::from_millis(250);
/// How long the rest of a rejected line is waited for.
const REST_OF_LINE: Duration = Duration::from_millis(100);

/// What is to be typed into a console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// The console, by the number it was [seen](Judge::see) under.
    pub console: usize,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// A moment that the report tells, since the start of the run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Milestone {
    /// What was reached.
    pub name: String,
    /// When.
    pub time: Duration,
}

/// Where a run stands.
#[derive(Debug)]
enum State {
    Watching,
    /// The guest is dead or dying; what it still says about that is collected.
    Dying(Dying),
    /// A rejected line is there; its end is waited for.
    Rejected {
        pattern: String,
        mark: Mark,
        until: Duration,
    },
    Decided(Verdict),
}

#[derive(Debug)]
struct Dying {
    kind: DeathKind,
    mark: Mark,
    /// The kernel's panic itself was seen, not only what leads to one.
    panicked: bool,
    /// Its last line is there.
    told: bool,
    limit: Duration,
    pause_ends: Duration,
}

/// Follows one run. All times are since the start of the run, and never go back.
#[derive(Debug)]
pub struct Judge {
    criteria: Criteria,
    deaths: &'static Deaths,
    /// Found where any other is; none if they are too large together.
    any: Option<Pattern>,
    state: State,
    /// Steps whose expectation was met.
    met: usize,
    command: Option<CommandEnd>,
    /// Where in the line at hand of each console the next expectation may begin, in bytes.
    from: Vec<usize>,
    context: Context,
    entered: Duration,
    last_output: Duration,
    spoke: bool,
    inputs: Vec<Input>,
    milestones: Vec<Milestone>,
}

impl Judge {
    /// Nothing has happened yet; the kernel is entered at `entered`.
    #[must_use]
    pub fn new(criteria: Criteria, entered: Duration) -> Self {
        let deaths = Deaths::built_in();
        let expectations = criteria.steps.iter().map(|step| &step.expect);
        let any = Pattern::any_of(
            expectations
                .chain(&criteria.rejects)
                .chain(deaths.patterns()),
        );
        let milestone = |name: &str, time| Milestone {
            name: name.to_owned(),
            time,
        };
        let mut judge = Self {
            criteria,
            deaths,
            any,
            state: State::Watching,
            met: 0,
            command: None,
            from: Vec::new(),
            context: Context::default(),
            entered,
            last_output: entered,
            spoke: false,
            inputs: Vec::new(),
            milestones: vec![milestone("kernel-entered", entered)],
        };
        judge.decide_if_met();
        judge
    }

    /// A console has printed a piece of a line.
    pub fn see(&mut self, now: Duration, console: usize, piece: Piece<'_>) {
        if !self.spoke {
            self.spoke = true;
            self.reach("first-output", now);
        }
        self.last_output = now;
        if self.from.len() <= console {
            self.from.resize(console + 1, 0);
        }
        let (text, complete) = match piece {
            Piece::Growing(line) => (Text::growing(line), false),
            Piece::Complete(line) => (Text::complete(line), true),
        };
        if !matches!(self.state, State::Decided(_)) {
            self.look_at(now, console, &text);
        }
        if complete {
            self.context.add(text.line());
            self.from[console] = 0;
        } else {
            self.context.growing(console, text.line());
        }
        let over = match &self.state {
            State::Rejected { .. } => complete,
            // The prompt of a shell stays as it is.
            State::Dying(dying) => dying.told && (complete || dying.kind.is_one_line()),
            State::Watching | State::Decided(_) => false,
        };
        if over {
            self.close();
        }
    }

    fn look_at(&mut self, now: Duration, console: usize, text: &Text) {
        if let Some(any) = &self.any
            && !any.is_in(text, 0)
        {
            return self.after_death(now, Signs::default());
        }
        let signs = self.deaths.signs(text);
        if signs.init && !self.has_reached("init-started") {
            self.reach("init-started", now);
        }
        match self.state {
            State::Watching => self.search(now, console, text, &signs),
            State::Dying(_) => {
                self.meet_expectations(now, console, text, text.line().len());
                self.after_death(now, signs);
            }
            State::Rejected { .. } | State::Decided(_) => {}
        }
    }

    /// Whatever ends first in the line happens first, so that it does not matter how much of it came at once.
    fn search(&mut self, now: Duration, console: usize, text: &Text, signs: &Signs) {
        let earliest = |pattern: &Pattern| pattern.earliest_end(text, 0);
        let rejected = (self.criteria.rejects.iter())
            .filter_map(|pattern| Some((earliest(pattern)?, pattern.source().to_owned())))
            .min_by_key(|(end, _)| *end);
        let ignored = || self.criteria.ignored.iter().any(|one| one.is_in(text, 0));
        let death = signs.death.filter(|_| !ignored());
        let rejected_at = rejected.as_ref().map_or(usize::MAX, |(end, _)| *end);
        let died_at = death.map_or(usize::MAX, |(end, _)| end);
        let limit = rejected_at.min(died_at).min(text.line().len());
        self.meet_expectations(now, console, text, limit);
        if matches!(self.state, State::Decided(_)) {
            return;
        }
        match (rejected, death) {
            (Some((_, pattern)), _) if rejected_at <= died_at => {
                self.state = State::Rejected {
                    pattern,
                    mark: self.context.mark(),
                    until: now + REST_OF_LINE,
                };
            }
            (_, Some((_, kind))) => {
                self.reach("death", now);
                self.state = State::Dying(Dying {
                    kind,
                    mark: self.context.mark(),
                    panicked: false,
                    told: false,
                    limit: now + AFTERMATH_LIMIT,
                    pause_ends: now + AFTERMATH_PAUSE,
                });
                self.after_death(now, *signs);
            }
            _ => {}
        }
    }

    /// The expectations whose matches end at the byte `limit` of the line or before.
    fn meet_expectations(&mut self, now: Duration, console: usize, text: &Text, limit: usize) {
        while let Some(step) = self.criteria.steps.get(self.met) {
            let end = step.expect.earliest_end(text, self.from[console]);
            let Some(end) = end.filter(|end| *end <= limit) else {
                return;
            };
            if let Some(bytes) = step.send.clone() {
                self.inputs.push(Input { console, bytes });
            }
            self.from[console] = end;
            self.met += 1;
            self.reach(&format!("expectation-{}", self.met), now);
            self.decide_if_met();
        }
    }

    /// A run that has no end to wait for is over when all that was asked for is there.
    fn decide_if_met(&mut self) {
        let asked_for = !self.criteria.steps.is_empty() || self.criteria.has_command;
        let watching = matches!(self.state, State::Watching);
        if self.criteria.end == End::None && asked_for && watching && self.unmet().is_none() {
            self.state = State::Decided(Verdict::Passed);
        }
    }

    fn after_death(&mut self, now: Duration, signs: Signs) {
        let State::Dying(dying) = &mut self.state else {
            return;
        };
        dying.pause_ends = now + AFTERMATH_PAUSE;
        // The rest of a line tells more of what its beginning said.
        if let Some((_, kind)) = signs.death.filter(|_| dying.mark == self.context.mark()) {
            dying.kind = kind;
        }
        dying.panicked |= signs.death.is_some_and(|(_, kind)| kind.is_panic());
        dying.told |= if dying.panicked || self.criteria.end == End::Panic {
            signs.panic_end
        } else {
            signs.trace_end || dying.kind.is_one_line()
        };
    }

    /// The guest's command runs.
    pub fn command_started(&mut self, now: Duration) {
        self.reach("command-started", now);
    }

    /// What the guest's command came to.
    pub fn command_ended(&mut self, now: Duration, end: CommandEnd) {
        if self.command.is_some() {
            return;
        }
        self.reach("command-ended", now);
        let failed = end != CommandEnd::Exited(0);
        self.command = Some(end.clone());
        if failed && matches!(self.state, State::Watching) {
            self.fail(FailureKind::Command, end.to_string(), None);
        }
        self.decide_if_met();
    }

    /// The guest has ended, or was stopped; all that it printed was seen.
    pub fn guest_ended(&mut self, end: &GuestEnd) {
        match self.state {
            State::Decided(_) => return,
            State::Rejected { .. } => return self.close(),
            State::Dying(ref mut dying) => {
                dying.panicked |= matches!(end, GuestEnd::Panicked);
                return self.close();
            }
            State::Watching => {}
        }
        match (end, self.criteria.end) {
            (GuestEnd::PoweredOff, End::PowerOff | End::None)
            | (GuestEnd::Reset { .. }, End::Reboot)
            | (GuestEnd::Panicked, End::Panic) => match self.unmet() {
                None => self.state = State::Decided(Verdict::Passed),
                Some(unmet) => self.fail(
                    FailureKind::Expectation,
                    format!("the guest {end}, and {unmet}"),
                    None,
                ),
            },
            (GuestEnd::Panicked | GuestEnd::Crashed(_), _) => {
                let kind = if *end == GuestEnd::Panicked {
                    FailureKind::Panicked
                } else {
                    FailureKind::Crashed
                };
                // What is known of a crash is more than a line.
                let told = format!("the guest {end}");
                let (reason, details) = told.split_once('\n').unwrap_or((&told, ""));
                self.fail(kind, reason.to_owned(), None);
                if let State::Decided(Verdict::Failed(failure)) = &mut self.state {
                    failure.quote.extend(details.lines().map(str::to_owned));
                }
            }
            (GuestEnd::Reset { resets }, _) if *resets > 1 => {
                let reason = format!("the guest is in a reset loop: it was reset {resets} times");
                self.fail(FailureKind::Crashed, reason, None);
            }
            (GuestEnd::DeviceLost(_), _) => {
                self.fail(FailureKind::Ours, format!("the guest {end}"), None);
            }
            (GuestEnd::Stopped, _) => {
                self.fail(FailureKind::Ours, "the run was interrupted".into(), None);
            }
            (GuestEnd::PoweredOff | GuestEnd::Reset { .. }, wanted) => {
                let also = self.unmet().map(|unmet| format!("; {unmet}"));
                let reason = format!(
                    "the guest {end}, and was to {wanted}{}",
                    also.unwrap_or_default()
                );
                self.fail(FailureKind::Expectation, reason, None);
            }
        }
    }

    /// When [`Judge::tick`] is to be called unless something happens before; none when there is nothing to wait for.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        match &self.state {
            State::Watching => {
                let quiet = self
                    .criteria
                    .quiet_timeout
                    .map(|time| self.last_output + time);
                let all = self.entered + self.criteria.timeout;
                Some(quiet.map_or(all, |quiet| quiet.min(all)))
            }
            State::Dying(dying) => Some(dying.limit.min(dying.pause_ends)),
            State::Rejected { until, .. } => Some(*until),
            State::Decided(_) => None,
        }
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Duration) {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return;
        }
        if !matches!(self.state, State::Watching) {
            return self.close();
        }
        let waiting_for = match (self.unmet(), self.criteria.end) {
            (Some(unmet), _) => unmet,
            (None, end) => format!("the guest did not {end}"),
        };
        let timed_out = now >= self.entered + self.criteria.timeout;
        let reason = if timed_out {
            let seconds = self.criteria.timeout.as_secs_f64();
            format!("time ran out after {seconds} s: {waiting_for}")
        } else {
            let seconds = self
                .criteria
                .quiet_timeout
                .unwrap_or_default()
                .as_secs_f64();
            let since = if self.spoke {
                ""
            } else {
                " since it was started"
            };
            format!("the guest printed nothing for {seconds} s{since}: {waiting_for}")
        };
        self.fail(FailureKind::Timeout, reason, None);
    }

    /// Whether the run is over.
    #[must_use]
    pub fn is_decided(&self) -> bool {
        matches!(self.state, State::Decided(_))
    }

    /// The verdict. Without one the run is our failure: nobody told how the guest ended.
    #[must_use]
    pub fn into_verdict(self) -> (Verdict, Vec<Milestone>, Vec<String>) {
        let last_lines = self.context.all();
        let verdict = match self.state {
            State::Decided(verdict) => verdict,
            _ => Verdict::Failed(Failure {
                kind: FailureKind::Ours,
                reason: "the run ended without a verdict".into(),
                quote: Vec::new(),
            }),
        };
        (verdict, self.milestones, last_lines)
    }

    /// What is to be typed now.
    pub fn take_inputs(&mut self) -> Vec<Input> {
        std::mem::take(&mut self.inputs)
    }

    /// Ends the wait for the rest of what was found.
    fn close(&mut self) {
        let state = std::mem::replace(&mut self.state, State::Watching);
        match state {
            State::Dying(dying) if dying.panicked && self.criteria.end == End::Panic => {
                match self.unmet() {
                    None => self.state = State::Decided(Verdict::Passed),
                    Some(unmet) => {
                        let reason = format!("the guest panicked, and {unmet}");
                        self.fail(FailureKind::Expectation, reason, Some(dying.mark));
                    }
                }
            }
            State::Dying(dying) => {
                let reason = dying.kind.to_string();
                self.fail(FailureKind::Panicked, reason, Some(dying.mark));
            }
            State::Rejected { pattern, mark, .. } => {
                let reason = format!("rejected: /{pattern}/ was seen");
                self.fail(FailureKind::Rejected, reason, Some(mark));
            }
            other => self.state = other,
        }
    }

    /// With the lines around `mark`, or else the last ones.
    fn fail(&mut self, kind: FailureKind, reason: String, mark: Option<Mark>) {
        let mark = mark.or_else(|| self.context.last());
        let quote = mark.map_or_else(Vec::new, |mark| self.context.around(mark));
        self.state = State::Decided(Verdict::Failed(Failure {
            kind,
            reason,
            quote,
        }));
    }

    /// What is still missing, if anything is.
    fn unmet(&self) -> Option<String> {
        let count = self.criteria.steps.len();
        if let Some(step) = self.criteria.steps.get(self.met) {
            let pattern = step.expect.source();
            let number = self.met + 1;
            return Some(match count {
                1 => format!("the expectation /{pattern}/ was not met"),
                _ => format!("expectation {number} of {count}, /{pattern}/, was not met"),
            });
        }
        (self.criteria.has_command && self.command.is_none())
            .then(|| "the guest's command did not end".to_owned())
    }

    fn reach(&mut self, name: &str, time: Duration) {
        let name = name.to_owned();
        self.milestones.push(Milestone { name, time });
    }

    fn has_reached(&self, name: &str) -> bool {
        self.milestones.iter().any(|one| one.name == name)
    }
}

#[cfg(test)]
mod tests;
