//! Where vCPU threads wait for a device, and how they are called back.

use std::sync::{Condvar, Mutex};
use std::time::Duration;

use crate::sync::{lock, wait, wait_while_for};

/// A place for vCPU threads to wait in while the host has no room for what the guest sends. Whoever stops the vCPUs
/// calls them back first; a device that was called back finishes the access without what it waited for.
#[derive(Debug, Default)]
pub struct Recall {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    called: bool,
    news: u64,
}

/// A point in the sequence of [`Recall::tell`]s.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Since(u64);

impl Recall {
    /// From now on no one waits. Any thread.
    pub fn call(&self) {
        lock(&self.state).called = true;
        self.changed.notify_all();
    }

    /// Undoes [`Recall::call`]. Any thread.
    pub fn release(&self) {
        lock(&self.state).called = false;
    }

    /// The present, to be taken before the device looks whether it has to wait.
    #[must_use]
    pub fn now(&self) -> Since {
        Since(lock(&self.state).news)
    }

    /// Something has changed for those who wait. Any thread, with any lock of a device held.
    pub fn tell(&self) {
        let mut state = lock(&self.state);
        state.news = state.news.wrapping_add(1);
        self.changed.notify_all();
    }

    /// As [`Recall::wait`], but for so long at most.
    pub fn wait_for(&self, since: Since, limit: Duration) {
        let state = lock(&self.state);
        drop(wait_while_for(&self.changed, state, limit, |state| {
            !state.called && state.news == since.0
        }));
    }

    /// Waits until something has changed since then; false when called back. vCPU thread, with no lock of a device
    /// held.
    #[must_use]
    pub fn wait(&self, since: Since) -> bool {
        let mut state = lock(&self.state);
        while !state.called && state.news == since.0 {
            state = wait(&self.changed, state);
        }
        !state.called
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn news_since_then_are_not_waited_for() {
        let recall = Recall::default();
        let since = recall.now();
        recall.tell();
        assert!(recall.wait(since));
    }

    #[test]
    fn a_call_ends_a_wait_and_prevents_others() {
        let recall = Arc::new(Recall::default());
        let since = recall.now();
        let waiter = {
            let recall = Arc::clone(&recall);
            std::thread::spawn(move || recall.wait(since))
        };
        recall.call();
        assert!(!waiter.join().unwrap());
        assert!(!recall.wait(since));
        recall.release();
        recall.tell();
        assert!(recall.wait(since));
    }
}
