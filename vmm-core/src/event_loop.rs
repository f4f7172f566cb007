//! The shared event loop: one epoll set, one thread, which the machine's owner runs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use devices::posted::PostedWrites;
use event_manager::{EventManager, EventOps, Events, MutEventSubscriber, SubscriberOps};
use thiserror::Error;

use crate::stats::{EventSource, Moment, Recorder};

/// The epoll set cannot be made or waited for.
#[derive(Debug, Error)]
#[error("event loop: {0}")]
pub struct EventLoopError(String);

impl From<event_manager::Error> for EventLoopError {
    fn from(error: event_manager::Error) -> Self {
        Self(error.to_string())
    }
}

/// Names the source of an event of a subscriber by the number that the subscriber has given it, as in `queue 0`.
pub type SourceNames = fn(u32) -> String;

/// All subscribers of a machine, served on the thread that calls [`EventLoop::run_once`].
pub struct EventLoop {
    manager: EventManager<Box<dyn MutEventSubscriber>>,
    posted: Arc<dyn PostedWrites>,
    recorder: Option<Arc<Recorder>>,
}

impl EventLoop {
    /// An empty loop. Before each event what waits in `posted` is delivered. With `recorder`, each subscriber's
    /// events and time are counted.
    ///
    /// # Errors
    /// [`EventLoopError`].
    pub fn new(
        posted: Arc<dyn PostedWrites>,
        recorder: Option<Recorder>,
    ) -> Result<Self, EventLoopError> {
        Ok(Self {
            manager: EventManager::new()?,
            posted,
            recorder: recorder.map(Arc::new),
        })
    }

    /// Adds a subscriber under the name of its device.
    pub fn add(&mut self, name: &str, subscriber: Box<dyn MutEventSubscriber>) {
        self.add_told_apart(name, |_| "events".into(), subscriber);
    }

    /// Adds a subscriber under the name of its device, whose events are counted by their sources.
    pub fn add_told_apart(
        &mut self,
        name: &str,
        source_names: SourceNames,
        subscriber: Box<dyn MutEventSubscriber>,
    ) {
        let meter = self.recorder.as_ref().map(|recorder| Meter {
            recorder: Arc::clone(recorder),
            device: name.to_string(),
            source_names,
            sources: BTreeMap::new(),
        });
        self.manager.add_subscriber(Box::new(Served {
            subscriber,
            posted: Arc::clone(&self.posted),
            meter,
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
}

/// Counts the events of one subscriber.
struct Meter {
    recorder: Arc<Recorder>,
    device: String,
    source_names: SourceNames,
    /// By the number that the subscriber has given the source.
    sources: BTreeMap<u32, EventSource>,
}

impl Meter {
    fn record(&mut self, data: u32, start: Moment) {
        let source = self.sources.entry(data).or_insert_with(|| {
            let name = (self.source_names)(data);
            self.recorder.source(&self.device, &name)
        });
        self.recorder.event(source, start);
    }
}

/// A subscriber as the loop calls it.
struct Served {
    subscriber: Box<dyn MutEventSubscriber>,
    posted: Arc<dyn PostedWrites>,
    meter: Option<Meter>,
}

impl MutEventSubscriber for Served {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        self.posted.deliver();
        let Some(meter) = &mut self.meter else {
            return self.subscriber.process(events, ops);
        };
        let start = meter.recorder.now();
        self.subscriber.process(events, ops);
        meter.record(events.data(), start);
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        self.subscriber.init(ops);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::StatsHandle;
    use devices::testing::FakePosted;
    use vmm_sys_util::epoll::EventSet;
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    struct Counter(EventFd, u32);

    impl MutEventSubscriber for Counter {
        fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
            assert_eq!(self.0.read().unwrap(), 3);
        }
        fn init(&mut self, ops: &mut EventOps<'_>) {
            ops.add(Events::with_data(&self.0, self.1, EventSet::IN))
                .unwrap();
        }
    }

    #[test]
    fn events_reach_their_subscriber_and_are_counted_by_source() {
        let stats = StatsHandle::default();
        let posted = Arc::new(FakePosted::default());
        let mut events = EventLoop::new(posted, Some(stats.recorder())).unwrap();
        let source = |data| format!("queue {data}");
        let mut add = |name: &str, data| {
            let event = EventFd::new(EFD_NONBLOCK).unwrap();
            let counter = Counter(event.try_clone().unwrap(), data);
            events.add_told_apart(name, source, Box::new(counter));
            event
        };
        let fds = [add("disk", 0), add("disk", 7), add("net", 7)];
        for index in [0, 1, 1, 2] {
            fds[index].write(3).unwrap();
            events.run_once().unwrap();
        }
        let report = stats.snapshot();
        let rows = report.registers.iter();
        let found: Vec<_> = rows
            .map(|row| (row.device.as_str(), row.register.as_str(), row.count))
            .collect();
        assert_eq!(
            found,
            [
                ("disk", "queue 0", 1),
                ("disk", "queue 7", 2),
                ("net", "queue 7", 1)
            ]
        );
        assert_eq!(report.devices[0].writes, 3);
    }
}
