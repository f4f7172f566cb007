//! The event-loop side of the function.

use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::{CHANNELS, Ide};
use crate::pci::PciDevice;

/// Brings commands, work and completions to the channels. What it watches never changes.
pub struct IdeSubscriber(Arc<Ide>);

impl IdeSubscriber {
    pub(super) fn new(ide: Arc<Ide>) -> Self {
        Self(ide)
    }
}

impl MutEventSubscriber for IdeSubscriber {
    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        if let Some(channel) = usize::try_from(events.data())
            .ok()
            .filter(|channel| *channel < CHANNELS)
        {
            self.0.run(channel);
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        let ide = &self.0;
        for (data, channel) in (0..).zip(0..CHANNELS) {
            // Every signal to an eventfd is an edge, read or not.
            let edges = EventSet::IN | EventSet::EDGE_TRIGGERED;
            // A command is looked at by the next access; but that need not come, if the engine was started first.
            let signals = ide.dma_reads[channel]
                .iter()
                .chain([&ide.work[channel]])
                .map(|event| Events::with_data(event, data, edges));
            let fds: Vec<_> = ide
                .unit(channel)
                .backends
                .iter()
                .flatten()
                .filter_map(|backend| backend.completion_fd())
                .collect();
            let completions = fds
                .into_iter()
                .map(|fd| Events::with_data_raw(fd, data, EventSet::IN));
            for events in signals.chain(completions) {
                if let Err(error) = ops.add(events) {
                    log::error!("{}: cannot watch fd {}: {error}", ide.name(), events.fd());
                }
            }
        }
    }
}
