//! Keeps a guest from flooding the log.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::sync::lock;

const WINDOW: Duration = Duration::from_secs(5);
const BURST: u32 = 10;

struct State {
    window_start: Option<Instant>,
    used: u32,
    suppressed: u64,
}

/// Lets through at most ten messages in five seconds, and says how many it held back.
pub struct RateLimiter(Mutex<State>);

impl Default for RateLimiter {
    fn default() -> Self {
        Self(Mutex::new(State {
            window_start: None,
            used: 0,
            suppressed: 0,
        }))
    }
}

impl RateLimiter {
    /// Whether one more message may be logged now. Any thread.
    pub fn allow(&self) -> bool {
        self.allow_at(Instant::now())
    }

    fn allow_at(&self, now: Instant) -> bool {
        let mut state = lock(&self.0);
        if state
            .window_start
            .is_none_or(|start| now.duration_since(start) >= WINDOW)
        {
            if state.suppressed > 0 {
                log::warn!("{} messages of this kind were held back", state.suppressed);
            }
            *state = State {
                window_start: Some(now),
                used: 0,
                suppressed: 0,
            };
        }
        if state.used < BURST {
            state.used += 1;
            true
        } else {
            state.suppressed += 1;
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_then_silence_until_the_next_window() {
        let limiter = RateLimiter::default();
        let start = Instant::now();
        let passed = (0..100).filter(|_| limiter.allow_at(start)).count();
        assert_eq!(passed, BURST as usize);
        assert!(!limiter.allow_at(start + WINDOW / 2));
        assert!(limiter.allow_at(start + WINDOW));
    }
}
