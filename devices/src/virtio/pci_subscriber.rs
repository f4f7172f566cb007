//! The event-loop side of a virtio PCI function.

use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::pci::VirtioPci;
use crate::pci::PciDevice;

/// Marks the events of a device's backend; lower numbers are queues.
const BACKEND: u32 = u32::MAX;

/// Brings queue notifications and backend events to a device. What it watches never changes.
pub struct VirtioSubscriber {
    pci: Arc<VirtioPci>,
}

impl VirtioSubscriber {
    pub(super) fn new(pci: Arc<VirtioPci>) -> Self {
        Self { pci }
    }

    /// What statistics call the source of events with this number. Any thread.
    #[must_use]
    pub fn source(data: u32) -> String {
        match data {
            BACKEND => "backend".into(),
            queue => format!("queue {queue}"),
        }
    }
}

impl MutEventSubscriber for VirtioSubscriber {
    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        match u16::try_from(events.data()) {
            Ok(queue) => self.pci.process_queue_event(queue),
            Err(_) => self
                .pci
                .process_backend_event(events.fd(), events.event_set()),
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        // Every signal to an eventfd is an edge, read or not: edge-triggered, it need never be read, which saves a
        // system call for each notification.
        let queues = (0..).zip(self.pci.queue_events()).map(|(index, event)| {
            Events::with_data(event, index, EventSet::IN | EventSet::EDGE_TRIGGERED)
        });
        let backend = self
            .pci
            .backend_events()
            .into_iter()
            .map(|(fd, events)| Events::with_data_raw(fd, BACKEND, events));
        for events in queues.chain(backend) {
            if let Err(error) = ops.add(events) {
                log::error!(
                    "{}: cannot watch fd {}: {error}",
                    self.pci.name(),
                    events.fd()
                );
            }
        }
    }
}
