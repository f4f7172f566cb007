//! The event-loop side of an assigned function: what the host's kernel has to say about it.

use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};

use super::function::{FunctionLoss, VfioFunction};
use crate::pci::PciDevice;

/// Hears of errors of a function, and of the host's wish to have it back.
pub struct VfioSubscriber {
    function: Arc<VfioFunction>,
    on_loss: Box<dyn Fn(FunctionLoss) + Send>,
}

impl VfioSubscriber {
    pub(super) fn new(
        function: Arc<VfioFunction>,
        on_loss: Box<dyn Fn(FunctionLoss) + Send>,
    ) -> Self {
        Self { function, on_loss }
    }
}

impl MutEventSubscriber for VfioSubscriber {
    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        for (index, (event, loss)) in (0..).zip(self.function.loss_events()) {
            if events.data() == index && event.read().is_ok() {
                (self.on_loss)(loss);
            }
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        for (index, (event, _)) in (0..).zip(self.function.loss_events()) {
            if let Err(error) = ops.add(Events::with_data(event, index, EventSet::IN)) {
                log::error!("{}: cannot watch for errors: {error}", self.function.name());
            }
        }
    }
}
