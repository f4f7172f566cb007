//! The event-loop side of the function.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::EventFd;

use super::{CHANNEL_NAMES, CHANNELS, Ide};
use crate::pci::PciDevice;

/// Brings work, completions and, if it must, commands to the channels.
pub struct IdeSubscriber {
    ide: Arc<Ide>,
    /// The channel's commands are watched.
    watches_reads: [bool; CHANNELS],
}

impl IdeSubscriber {
    pub(super) fn new(ide: Arc<Ide>) -> Self {
        Self {
            ide,
            watches_reads: [false; CHANNELS],
        }
    }

    /// What statistics call the source of events with this number. Any thread.
    #[must_use]
    pub fn source(data: u32) -> String {
        let channel = usize::try_from(data).ok();
        let name = channel.and_then(|channel| CHANNEL_NAMES.get(channel));
        name.copied().unwrap_or("events").into()
    }

    fn watch(&self, events: Events, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(events) {
            let fd = events.fd();
            log::error!("{}: cannot watch fd {fd}: {error}", self.ide.name());
        }
    }

    /// Begins to watch for commands that nobody else would look at.
    fn watch_reads(&mut self, channel: usize, ops: &mut EventOps<'_>) {
        if !self.ide.watch_reads[channel].load(Ordering::Acquire)
            || std::mem::replace(&mut self.watches_reads[channel], true)
        {
            return;
        }
        for (_, _, event) in self.ide.doorbells(channel) {
            self.watch(edges(event, channel), ops);
        }
    }
}

/// Every signal to an eventfd is an edge, read or not.
fn edges(event: &EventFd, channel: usize) -> Events {
    let data = u32::from(channel != 0);
    Events::with_data(event, data, EventSet::IN | EventSet::EDGE_TRIGGERED)
}

impl MutEventSubscriber for IdeSubscriber {
    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if let Some(channel) = usize::try_from(events.data())
            .ok()
            .filter(|channel| *channel < CHANNELS)
        {
            self.watch_reads(channel, ops);
            self.ide.run(channel);
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        for (data, channel) in (0..).zip(0..CHANNELS) {
            self.watch(edges(&self.ide.work[channel], channel), ops);
            let fds: Vec<_> = self
                .ide
                .unit(channel)
                .backends
                .iter()
                .flatten()
                .filter_map(|backend| backend.completion_fd())
                .collect();
            for fd in fds {
                self.watch(Events::with_data_raw(fd, data, EventSet::IN), ops);
            }
        }
    }
}
