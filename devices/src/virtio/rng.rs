//! The entropy device (virtio 1.3, 5.4).

use std::io;
use std::os::fd::RawFd;

use vm_memory::{GuestAddress, GuestMemoryBackend};
use vmm_sys_util::epoll::EventSet;

use super::queue::{Chain, VirtQueue};
use super::{Activation, DeviceFailed, DeviceInfo, VirtioDevice};
use crate::dma::{DmaMem, GuestRam};
use crate::rerun::Rerun;

/// `VIRTIO_ID_RNG` (virtio 1.3, 5).
const DEVICE_ID: u16 = 4;
const QUEUE_SIZE: u16 = 64;
/// What one chain gets at most; drivers ask for far less.
const MAX_CHAIN_BYTES: usize = 64 << 10;
/// Buffers looked at in one chain.
const MAX_CHAIN_BUFFERS: usize = 64;
/// What one turn hands out before the other devices have theirs.
const MAX_TURN_BYTES: usize = 256 << 10;
/// A driver whose rings overlap can make each look at the queue find something new and nothing to take.
const MAX_ROUNDS: u32 = 16;
/// Chains served in one turn, empty ones included.
const MAX_TURN_CHAINS: usize = 4 * QUEUE_SIZE as usize;

/// The host's random numbers (`getrandom(2)`), for the guest.
pub struct Rng {
    name: String,
    active: Option<(DmaMem, VirtQueue)>,
    rerun: Rerun,
}

impl Rng {
    /// An entropy device.
    ///
    /// # Errors
    /// The host has no file descriptors left.
    pub fn new(name: String) -> io::Result<Self> {
        Ok(Self {
            name,
            active: None,
            rerun: Rerun::new()?,
        })
    }

    fn run(&mut self) -> Result<(), DeviceFailed> {
        let Some((dma, queue)) = &mut self.active else {
            return Ok(());
        };
        let (mut turn_bytes, mut turn_chains) = (0, 0);
        let mut more = true;
        for _ in 0..MAX_ROUNDS {
            queue.disable_notification()?;
            while turn_bytes < MAX_TURN_BYTES
                && turn_chains < MAX_TURN_CHAINS
                && let Some(chain) = queue.pop()?
            {
                let head = chain.head_index();
                let bytes = fill_chain(dma, chain);
                turn_bytes += bytes;
                turn_chains += 1;
                let len = u32::try_from(bytes).unwrap_or(0);
                queue.add_used(head, len)?;
            }
            more = queue.enable_notification()?;
            if !more || turn_bytes >= MAX_TURN_BYTES || turn_chains >= MAX_TURN_CHAINS {
                break;
            }
        }
        if more {
            self.rerun.ask();
        }
        if turn_chains > 0 {
            queue.notify()?;
        }
        Ok(())
    }
}

/// Fills the writable buffers of `chain`, from the first on; returns how many bytes were written. It stops at a
/// buffer that is not in RAM: the device must say no more than it has written in order (5.4.6.2).
fn fill_chain(dma: &DmaMem, chain: Chain) -> usize {
    let mut written = 0;
    for descriptor in chain.take(MAX_CHAIN_BUFFERS) {
        if !descriptor.is_write_only() {
            continue;
        }
        let wanted = (descriptor.len() as usize).min(MAX_CHAIN_BYTES - written);
        let filled = match dma.ram() {
            Ok(ram) => fill(ram, descriptor.addr(), wanted),
            Err(_) => 0,
        };
        written += filled;
        if filled < descriptor.len() as usize {
            break;
        }
    }
    written
}

/// Fills `len` bytes of guest RAM at `addr`; returns how many were.
#[allow(unsafe_code)]
fn fill(ram: &GuestRam, addr: GuestAddress, len: usize) -> usize {
    let Ok(slice) = GuestMemoryBackend::get_slice(ram, addr, len) else {
        return 0;
    };
    let guard = slice.ptr_guard_mut();
    let mut filled = 0;
    while filled < len {
        // SAFETY: `slice` is `len` bytes of mapped guest RAM, `filled` is less than that, and the kernel writes no
        // more than the rest. No Rust reference to guest RAM exists.
        let result = unsafe { libc::getrandom(guard.as_ptr().add(filled).cast(), len - filled, 0) };
        match usize::try_from(result) {
            Ok(more) => filled += more,
            Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    filled
}

impl VirtioDevice for Rng {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            device_id: DEVICE_ID,
            name: self.name.clone(),
            features: 0,
            queue_sizes: vec![QUEUE_SIZE],
            config_len: 0,
        }
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {
        // There is none.
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceFailed> {
        let Some(queue) = activation.queues.into_iter().next() else {
            return Err(DeviceFailed("no queue".into()));
        };
        self.active = Some((activation.dma, queue));
        Ok(())
    }

    fn deactivate(&mut self) {
        self.active = None;
    }

    fn process_queue(&mut self, _index: u16) -> Result<(), DeviceFailed> {
        self.run()
    }

    fn backend_events(&self) -> Vec<(RawFd, EventSet)> {
        vec![self.rerun.event()]
    }

    fn process_backend(&mut self, fd: RawFd, _events: EventSet) -> Result<(), DeviceFailed> {
        self.rerun.clear(fd);
        self.run()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use virtio_queue::{Queue, QueueT};
    use vm_memory::Bytes;

    use super::*;
    use crate::testing::test_ram;
    use crate::virtio::test_driver::{
        Buffer, DriverQueue, FakeInterrupts, NEXT, WRITE, readable, writable,
    };

    const RAM_BYTES: usize = 0x100000;
    const DATA: u64 = 0x10000;

    struct Bench {
        ram: Arc<GuestRam>,
        rng: Rng,
        driver: DriverQueue,
        interrupts: Arc<FakeInterrupts>,
    }

    impl Bench {
        fn new() -> Self {
            let ram = test_ram(RAM_BYTES);
            let driver = DriverQueue::new(&ram, 0x1000, 64);
            let interrupts = Arc::default();
            let dma = DmaMem::always_on(ram.clone());
            let mut rng = Rng::new("virtio-rng0".into()).unwrap();
            rng.activate(Activation {
                queues: vec![driver.device_side(0, &dma, &interrupts, false)],
                dma,
                features: 0,
            })
            .unwrap();
            Self {
                ram,
                rng,
                driver,
                interrupts,
            }
        }

        fn used_len(&mut self, buffers: &[Buffer]) -> u32 {
            let head = self.driver.add(buffers);
            self.rng.process_queue(0).unwrap();
            let (used_head, len) = self.driver.next_used().unwrap();
            assert_eq!(used_head, head);
            assert_eq!(self.interrupts.take(0), 1);
            len
        }

        fn bytes(&self, addr: u64, len: usize) -> Vec<u8> {
            let mut bytes = vec![0; len];
            self.ram.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
            bytes
        }
    }

    #[test]
    fn rings_that_overlap_do_not_keep_the_device_at_work() {
        const USED: u32 = 0x4000;
        let dma = DmaMem::always_on(test_ram(RAM_BYTES));
        // The available index is the used ring's flags: asking for no notification makes a chain available, and
        // asking for them takes it back.
        let mut queue = Queue::new(64).unwrap();
        queue.set_desc_table_address(Some(0x1000), None);
        queue.set_avail_ring_address(Some(USED - 2), None);
        queue.set_used_ring_address(Some(USED), None);
        queue.set_ready(true);
        let interrupts: Arc<FakeInterrupts> = Arc::default();
        let mut rng = Rng::new("virtio-rng0".into()).unwrap();
        rng.activate(Activation {
            queues: vec![VirtQueue::new(0, queue, dma.clone(), interrupts)],
            dma,
            features: 0,
        })
        .unwrap();
        rng.process_queue(0).unwrap();
        assert!(rng.rerun.is_asked());
    }

    #[test]
    fn buffers_are_filled_and_nothing_beyond() {
        let mut bench = Bench::new();
        let len = bench.used_len(&[writable(DATA, 64), writable(DATA + 0x1000, 64)]);
        assert_eq!(len, 128);
        let (first, second) = (bench.bytes(DATA, 64), bench.bytes(DATA + 0x1000, 64));
        assert_ne!(first, second);
        assert_ne!(first, [0; 64]);
        assert_eq!(bench.bytes(DATA + 64, 64), [0; 64]);
    }

    #[test]
    fn bad_buffers_end_the_answer() {
        let mut bench = Bench::new();
        let far = RAM_BYTES as u64;
        assert_eq!(bench.used_len(&[readable(DATA, 64)]), 0);
        assert_eq!(bench.used_len(&[writable(far - 8, 16)]), 0);
        assert_eq!(bench.used_len(&[writable(u64::MAX, 16)]), 0);
        let cut = [writable(DATA, 8), writable(far, 8), writable(DATA, 8)];
        assert_eq!(bench.used_len(&cut), 8);
        bench.driver.write_desc(60, DATA, 1, WRITE | NEXT, 60);
        bench.driver.make_available(60);
        bench.rng.process_queue(0).unwrap();
        assert_eq!(bench.driver.next_used(), Some((60, 64)));
    }

    #[test]
    fn a_greedy_driver_gets_its_turn_and_no_more() {
        let mut bench = Bench::new();
        let greedy = [writable(DATA, 0x80000)];
        let share = u32::try_from(MAX_CHAIN_BYTES).unwrap();
        assert_eq!(bench.used_len(&greedy), share);
        for _ in 0..6 {
            bench.driver.add(&greedy);
        }
        bench.rng.process_queue(0).unwrap();
        assert_eq!(bench.driver.used_idx(), 1 + 4);
        let (fd, _) = bench.rng.backend_events()[0];
        bench.rng.process_backend(fd, EventSet::IN).unwrap();
        assert_eq!(bench.driver.used_idx(), 1 + 6);
    }

    #[test]
    fn after_a_reset_the_driver_is_not_touched() {
        let mut bench = Bench::new();
        bench.driver.add(&[writable(DATA, 64)]);
        bench.rng.deactivate();
        bench.rng.process_queue(0).unwrap();
        assert_eq!(bench.driver.next_used(), None);
    }
}
