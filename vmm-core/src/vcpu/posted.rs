//! Posted writes on KVM: what waits in its ring reaches the devices in order.

use std::io;
use std::sync::{Arc, Mutex, OnceLock, Weak};

use devices::bus::{Accessed, Bus};
use devices::posted::{PostedWrites, PostedZone};
use devices::sync::lock;

use crate::kvm::{KvmVm, WriteRing};
use crate::stats::{Access, Action, DevicePath, Recorder};

/// The VM's posted writes. See [`devices::posted`].
pub struct PostedQueue {
    vm: KvmVm,
    // The buses own devices that own this.
    pio: Weak<Bus>,
    mmio: Weak<Bus>,
    ring: OnceLock<WriteRing>,
    /// Held while writes are delivered: who comes second waits until they have had their effect. Counts them.
    delivering: Mutex<Option<Recorder>>,
}

impl PostedQueue {
    /// For a VM whose devices are on these buses. Nothing is delivered before [`PostedQueue::attach`]. What is
    /// delivered is counted in `recorder`.
    #[must_use]
    pub fn new(
        vm: KvmVm,
        pio: &Arc<Bus>,
        mmio: &Arc<Bus>,
        recorder: Option<Recorder>,
    ) -> Arc<Self> {
        Arc::new(Self {
            vm,
            pio: Arc::downgrade(pio),
            mmio: Arc::downgrade(mmio),
            ring: OnceLock::new(),
            delivering: Mutex::new(recorder),
        })
    }

    /// Begins to deliver. Called once, before the first vCPU runs.
    pub fn attach(&self, ring: WriteRing) {
        // A second ring would be the same one.
        let _ = self.ring.set(ring);
    }
}

impl PostedWrites for PostedQueue {
    fn open(&self, zone: PostedZone) -> io::Result<()> {
        self.vm.coalesce(zone, true)
    }

    fn close(&self, zone: PostedZone) -> io::Result<()> {
        self.vm.coalesce(zone, false)
    }

    fn deliver(&self) -> usize {
        let Some(ring) = self.ring.get() else {
            return 0;
        };
        // An entry leaves the ring only after its write, so that an empty one has had all its effects.
        if ring.is_empty() {
            return 0;
        }
        let mut recorder = lock(&self.delivering);
        // No more than waits now: other vCPUs may post as fast as this delivers.
        let waiting = ring.waiting();
        for _ in 0..waiting {
            let Some(write) = ring.front() else {
                break;
            };
            let bus = if write.pio { &self.pio } else { &self.mmio };
            if let Some(bus) = bus.upgrade() {
                let accessed = bus.write(write.addr, write.data());
                if let Some(recorder) = recorder.as_mut() {
                    recorder.posted(Access {
                        path: if write.pio {
                            DevicePath::Pio
                        } else {
                            DevicePath::Mmio
                        },
                        action: Action::Write,
                        address: write.addr,
                        accessed: accessed.as_ref().map(Accessed::register),
                    });
                }
            }
            ring.pop();
        }
        waiting as usize
    }
}
