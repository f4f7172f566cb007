//! virtio-console with one port (virtio 1.3, 5.3).
//!
//! Output that the port has no room for stays in the driver's queue.

use std::io;
use std::os::fd::RawFd;

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::epoll::EventSet;

use super::device::{Activation, DeviceFailed, DeviceInfo, VirtioDevice};
use super::queue::{Chain, VirtQueue};
use crate::console::Port;
use crate::dma::{DmaMem, GuestRam};
use crate::ratelimit::RateLimiter;
use crate::rerun::Rerun;

/// Console device (5.3.1).
const DEVICE_ID: u16 = 3;
const QUEUE_SIZE: u16 = 128;
/// `struct virtio_console_config` (5.3.4). No feature is offered that gives a field a meaning.
const CONFIG_BYTES: u16 = 12;

/// `receiveq(port0)` and `transmitq(port0)` (5.3.2).
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

/// Most bytes copied at a time.
const CHUNK_BYTES: usize = 4096;
/// Most work in one call, in bytes; then the other devices have their turn.
const WORK_PER_CALL: usize = 64 << 10;
/// What a descriptor costs at least, so that short and empty ones are counted too.
const MIN_WORK: usize = 64;

/// A virtio console.
pub struct Console {
    line: Line,
    rerun: Rerun,
    active: Option<Active>,
}

/// What a driver has set up.
struct Active {
    dma: DmaMem,
    receive: VirtQueue,
    transmit: VirtQueue,
    output: Option<Output>,
}

/// What there is, driver or not.
struct Line {
    name: String,
    port: Port,
    limiter: RateLimiter,
}

/// A chain of output that is being written.
struct Output {
    head: u16,
    /// The descriptors that follow.
    chain: Chain,
    /// What is left of the present one.
    addr: GuestAddress,
    rest: usize,
}

impl Line {
    /// Gives the driver what has come, as far as there are buffers; true if there is more to do.
    fn receive(&mut self, queue: &mut VirtQueue, ram: &GuestRam) -> Result<bool, DeviceFailed> {
        let mut chunk = [0; CHUNK_BYTES];
        let mut work = WORK_PER_CALL;
        queue.disable_notification()?;
        while self.port.has_input() && work > 0 {
            work = work.saturating_sub(MIN_WORK);
            let Some(chain) = queue.pop()? else {
                if queue.enable_notification()? {
                    continue;
                }
                break;
            };
            let head = chain.head_index();
            // No more is taken than the driver has room for.
            let room = writable_bytes(chain.clone()).min(CHUNK_BYTES);
            let len = self.port.receive(&mut chunk[..room]);
            work = work.saturating_sub(len);
            let written = scatter(ram, chain, &chunk[..len]);
            queue.add_used(head, written)?;
        }
        queue.notify()?;
        Ok(self.port.has_input() && work == 0)
    }

    /// Sends what the driver made available, going on with `output`, while the port has room; true if there is more
    /// to do at once.
    fn transmit(
        &mut self,
        queue: &mut VirtQueue,
        output: &mut Option<Output>,
        ram: &GuestRam,
    ) -> Result<bool, DeviceFailed> {
        let mut chunk = [0; CHUNK_BYTES];
        let mut work = WORK_PER_CALL;
        let mut idle = false;
        queue.disable_notification()?;
        while work > 0 && !self.port.is_full() {
            work = work.saturating_sub(MIN_WORK);
            let Some(current) = output else {
                *output = queue.pop()?.map(Output::new);
                if output.is_none() && !queue.enable_notification()? {
                    idle = true;
                    break;
                }
                continue;
            };
            if current.rest == 0 {
                if !current.next_descriptor() {
                    queue.add_used(current.head, 0)?;
                    *output = None;
                }
                continue;
            }
            let len = current.rest.min(CHUNK_BYTES);
            work = work.saturating_sub(len);
            let data = &mut chunk[..len];
            if let Err(error) = ram.read_slice(data, current.addr) {
                self.complain("output", &error);
                current.rest = 0;
                continue;
            }
            // All of it, but for a port that has become full in the meantime.
            let sent = self.port.send(data).min(len);
            current.addr.0 += sent as u64;
            current.rest -= sent;
        }
        queue.notify()?;
        Ok(!idle && !self.port.is_full())
    }

    fn complain(&self, what: &str, error: &dyn std::fmt::Display) {
        if self.limiter.allow() {
            log::warn!("{}: {what}: {error}", self.name);
        }
    }
}

impl Output {
    fn new(chain: Chain) -> Self {
        Self {
            head: chain.head_index(),
            chain,
            addr: GuestAddress(0),
            rest: 0,
        }
    }

    /// Goes on to the next descriptor, of which nothing is left if it is not readable; false at the end.
    fn next_descriptor(&mut self) -> bool {
        let Some(descriptor) = self.chain.next() else {
            return false;
        };
        if !descriptor.is_write_only() {
            self.addr = descriptor.addr();
            self.rest = descriptor.len() as usize;
        }
        true
    }
}

/// How much can be written to a chain.
fn writable_bytes(chain: Chain) -> usize {
    chain
        .take(QUEUE_SIZE.into())
        .filter(|descriptor| descriptor.is_write_only())
        .map(|descriptor| descriptor.len() as usize)
        .fold(0, usize::saturating_add)
}

/// Writes `data` to the writable buffers of `chain`; returns how much came to lie in RAM, without a gap.
fn scatter(ram: &GuestRam, chain: Chain, mut data: &[u8]) -> u32 {
    let mut written = 0;
    for descriptor in chain.take(QUEUE_SIZE.into()) {
        if data.is_empty() {
            break;
        }
        if !descriptor.is_write_only() {
            continue;
        }
        let len = data.len().min(descriptor.len() as usize);
        let (part, rest) = data.split_at(len);
        if ram.write_slice(part, descriptor.addr()).is_err() {
            break;
        }
        written += len;
        data = rest;
    }
    // Cannot fail: at most `CHUNK_BYTES`.
    u32::try_from(written).unwrap_or(0)
}

impl Console {
    /// A console device `name` between a driver and `port`.
    ///
    /// # Errors
    /// The host has no eventfd left.
    pub fn new(name: String, port: Port) -> io::Result<Self> {
        Ok(Self {
            line: Line {
                name,
                port,
                limiter: RateLimiter::default(),
            },
            rerun: Rerun::new()?,
            active: None,
        })
    }

    fn receive(&mut self) -> Result<(), DeviceFailed> {
        if self.line.port.has_input()
            && let Some(active) = &mut self.active
            && let Ok(ram) = active.dma.ram()
            && self.line.receive(&mut active.receive, ram)?
        {
            self.rerun.ask();
        }
        Ok(())
    }

    fn transmit(&mut self) -> Result<(), DeviceFailed> {
        if let Some(active) = &mut self.active
            && let Ok(ram) = active.dma.ram()
            && self
                .line
                .transmit(&mut active.transmit, &mut active.output, ram)?
        {
            self.rerun.ask();
        }
        Ok(())
    }
}

impl VirtioDevice for Console {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            device_id: DEVICE_ID,
            name: self.line.name.clone(),
            features: 0,
            queue_sizes: vec![QUEUE_SIZE, QUEUE_SIZE],
            config_len: CONFIG_BYTES,
        }
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceFailed> {
        let Ok([receive, transmit]) = <[_; 2]>::try_from(activation.queues) else {
            return Err(DeviceFailed("not two queues".to_string()));
        };
        self.active = Some(Active {
            dma: activation.dma,
            receive,
            transmit,
            output: None,
        });
        // Input may have come before the driver, which may have filled its queues already.
        self.rerun.ask();
        Ok(())
    }

    fn deactivate(&mut self) {
        self.active = None;
    }

    fn process_queue(&mut self, index: u16) -> Result<(), DeviceFailed> {
        match index {
            RECEIVE => self.receive(),
            TRANSMIT => self.transmit(),
            _ => Ok(()),
        }
    }

    fn backend_events(&self) -> Vec<(RawFd, EventSet)> {
        let mut events = vec![self.rerun.event()];
        if let Some(fd) = self.line.port.poll_fd() {
            events.push((fd, EventSet::IN));
        }
        events
    }

    fn process_backend(&mut self, fd: RawFd, _events: EventSet) -> Result<(), DeviceFailed> {
        let output_held = self.line.port.is_full();
        let more = self.rerun.clear(fd);
        if !more {
            self.line.port.serve();
        }
        if more || (output_held && !self.line.port.is_full()) {
            self.transmit()?;
        }
        self.receive()
    }
}

#[cfg(test)]
mod tests;
