//! The shared event loop: one epoll set, one thread, which the machine's owner runs.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::posted::PostedWrites;
use event_manager::{EventManager, EventOps, Events, MutEventSubscriber, SubscriberOps};
use thiserror::Error;

/// The epoll set cannot be made or waited for.
#[derive(Debug, Error)]
#[error("event loop: {0}")]
pub struct EventLoopError(String);

impl From<event_manager::Error> for EventLoopError {
    fn from(error: event_manager::Error) -> Self {
        Self(error.to_string())
    }
}

/// How often a subscriber was called, and for how long.
type Usage = Rc<RefCell<(u64, Duration)>>;

/// All subscribers of a machine, served on the thread that calls [`EventLoop::run_once`].
pub struct EventLoop {
    manager: EventManager<Box<dyn MutEventSubscriber>>,
    posted: Arc<dyn PostedWrites>,
    measure: bool,
    usage: Vec<(String, Usage)>,
}

impl EventLoop {
    /// An empty loop. Before each event what waits in `posted` is delivered. With `measure`, each subscriber's
    /// events and time are counted.
    ///
    /// # Errors
    /// [`EventLoopError`].
    pub fn new(posted: Arc<dyn PostedWrites>, measure: bool) -> Result<Self, EventLoopError> {
        Ok(Self {
            manager: EventManager::new()?,
            posted,
            measure,
            usage: Vec::new(),
        })
    }

    /// Adds a subscriber under the name of its device.
    pub fn add(&mut self, name: &str, subscriber: Box<dyn MutEventSubscriber>) {
        let usage = self.measure.then(|| {
            let usage = Usage::default();
            self.usage.push((name.to_string(), Rc::clone(&usage)));
            usage
        });
        self.manager.add_subscriber(Box::new(Served {
            subscriber,
            posted: Arc::clone(&self.posted),
            usage,
        }));
    }

    /// Waits for events and serves them.
    ///
    /// # Errors
    /// [`EventLoopError`].
    pub fn run_once(&mut self) -> Result<(), EventLoopError> {
        self.manager.run()?;
        Ok(())
    }

    /// Waits for events for some time, which is cut to milliseconds, and serves them; how many there were.
    ///
    /// # Errors
    /// [`EventLoopError`].
    pub fn run_for(&mut self, time: Duration) -> Result<usize, EventLoopError> {
        let millis = i32::try_from(time.as_millis()).unwrap_or(i32::MAX);
        Ok(self.manager.run_with_timeout(millis)?)
    }

    /// `(name, events, time)` of each subscriber; empty without `measure`.
    #[must_use]
    pub fn usage(&self) -> Vec<(String, u64, Duration)> {
        self.usage
            .iter()
            .map(|(name, usage)| {
                let (count, time) = *usage.borrow();
                (name.clone(), count, time)
            })
            .collect()
    }
}

/// A subscriber as the loop calls it.
struct Served {
    subscriber: Box<dyn MutEventSubscriber>,
    posted: Arc<dyn PostedWrites>,
    usage: Option<Usage>,
}

impl MutEventSubscriber for Served {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        self.posted.deliver();
        let Some(usage) = &self.usage else {
            return self.subscriber.process(events, ops);
        };
        let start = Instant::now();
        self.subscriber.process(events, ops);
        let mut usage = usage.borrow_mut();
        usage.0 += 1;
        usage.1 += start.elapsed();
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        self.subscriber.init(ops);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use devices::testing::FakePosted;
    use vmm_sys_util::epoll::EventSet;
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    struct Counter(EventFd, Rc<RefCell<u64>>);

    impl MutEventSubscriber for Counter {
        fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
            *self.1.borrow_mut() += self.0.read().unwrap();
        }
        fn init(&mut self, ops: &mut EventOps<'_>) {
            ops.add(Events::new(&self.0, EventSet::IN)).unwrap();
        }
    }

    #[test]
    fn events_reach_their_subscriber_and_are_counted() {
        let mut events = EventLoop::new(Arc::new(FakePosted::default()), true).unwrap();
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let seen = Rc::new(RefCell::new(0));
        events.add(
            "counter",
            Box::new(Counter(event.try_clone().unwrap(), Rc::clone(&seen))),
        );
        event.write(3).unwrap();
        events.run_once().unwrap();
        assert_eq!(*seen.borrow(), 3);
        let usage = events.usage();
        assert_eq!((usage[0].0.as_str(), usage[0].1), ("counter", 1));
    }
}
