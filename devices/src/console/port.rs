//! What a device has of a backend: input read ahead, output that may wait.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{CharBackend, Interest, PanicWatch};
use crate::ratelimit::RateLimiter;

/// Input read ahead, at most, so that keys meant for us are seen while the guest reads none.
pub const READ_AHEAD_BYTES: usize = 4096;
/// From so much waiting output on, the device is asked to hold its own back. As much again as a pipe holds.
pub const OUTPUT_BYTES: usize = 64 << 10;
/// And down to so much, once it was.
const OUTPUT_RESUME_BYTES: usize = OUTPUT_BYTES / 2;
/// What is taken beyond [`OUTPUT_BYTES`]: what a device may have under way when it is asked, which is a ring of posted
/// characters (170 on KVM) and a FIFO.
pub const OUTPUT_SLACK_BYTES: usize = 256;
/// What is kept of the buffer's memory when all output is gone.
const KEPT_BYTES: usize = 4096;
/// What [`Port::force`] may add to that.
const FORCED_BYTES: usize = 4096;

/// Both directions between a device and a [`CharBackend`]. Nothing here blocks, and of output nothing is lost while
/// the backend lives: it waits here, and when much of it waits, [`Port::is_full`] asks the device to hold back more.
///
/// The device keeps it under a lock of its own, watches [`Port::poll_fd`] on the event loop, and calls
/// [`Port::serve`] when that is readable.
pub struct Port {
    name: String,
    backend: Box<dyn CharBackend>,
    watch: Option<PanicWatch>,
    read_ahead: VecDeque<u8>,
    /// Nothing is read ahead until the guest has read all.
    input_held: bool,
    input_ended: bool,
    waiting: VecDeque<u8>,
    full: bool,
    gauge: OutputGauge,
    interest: Interest,
    complaints: RateLimiter,
    fillings: RateLimiter,
}

/// How much output of a port waits. Any thread.
#[derive(Debug, Clone, Default)]
pub struct OutputGauge(Arc<AtomicUsize>);

impl OutputGauge {
    /// In bytes.
    #[must_use]
    pub fn waiting_bytes(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Port {
    /// A port called `name` (`com1`) in messages.
    #[must_use]
    pub fn new(name: impl Into<String>, backend: Box<dyn CharBackend>) -> Self {
        Self {
            name: name.into(),
            backend,
            watch: None,
            read_ahead: VecDeque::new(),
            input_held: false,
            input_ended: false,
            waiting: VecDeque::new(),
            full: false,
            gauge: OutputGauge::default(),
            interest: Interest::default(),
            complaints: RateLimiter::default(),
            fillings: RateLimiter::default(),
        }
    }

    /// Shows all output to `watch` as the guest sends it, even while it waits.
    #[must_use]
    pub fn watched_by(mut self, watch: PanicWatch) -> Self {
        self.watch = Some(watch);
        self
    }

    /// What tells how much output waits.
    #[must_use]
    pub fn gauge(&self) -> OutputGauge {
        self.gauge.clone()
    }

    /// Readable (level-triggered) when [`Port::serve`] is to be called. One for life; none if that is never needed.
    #[must_use]
    pub fn poll_fd(&self) -> Option<RawFd> {
        self.backend.poll_fd()
    }

    /// Moves output on and reads input ahead. Event loop.
    pub fn serve(&mut self) {
        self.backend.progress();
        self.flush();
        self.fill();
        self.update();
    }

    /// Takes the beginning of `data` and says how much of it: all, unless [`OUTPUT_SLACK_BYTES`] have come since the
    /// port [is full](Port::is_full). What a backend that is gone would not have counts as taken.
    pub fn send(&mut self, data: &[u8]) -> usize {
        let room = (OUTPUT_BYTES + OUTPUT_SLACK_BYTES).saturating_sub(self.waiting.len());
        let taken = self.send_within(data, room);
        self.tell(&data[..taken]);
        taken
    }

    /// Takes all of `data`, however much waits, for a vCPU that must not wait any longer. Not for use without need:
    /// beyond a limit it is lost.
    pub fn force(&mut self, data: &[u8]) {
        let limit = OUTPUT_BYTES + OUTPUT_SLACK_BYTES + FORCED_BYTES;
        let room = limit.saturating_sub(self.waiting.len());
        if self.send_within(data, room) < data.len() {
            self.complain("output is lost", &"too much waits");
        }
        self.tell(data);
    }

    /// Whether no more should be sent: much waits. It stays so until half of that is gone.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// Whether there is input.
    #[must_use]
    pub fn has_input(&self) -> bool {
        !self.read_ahead.is_empty()
    }

    /// Takes the next byte of input.
    pub fn receive_byte(&mut self) -> Option<u8> {
        let byte = self.read_ahead.pop_front();
        self.resume_input();
        byte
    }

    /// Takes input into `data`; how much.
    pub fn receive(&mut self, data: &mut [u8]) -> usize {
        let len = data.len().min(self.read_ahead.len());
        for (to, byte) in data.iter_mut().zip(self.read_ahead.drain(..len)) {
            *to = byte;
        }
        self.resume_input();
        len
    }

    fn resume_input(&mut self) {
        if self.input_held && self.read_ahead.is_empty() {
            self.input_held = false;
            self.update();
        }
    }

    /// Sends as much as the backend takes, and lets up to `room` bytes more wait.
    fn send_within(&mut self, data: &[u8], room: usize) -> usize {
        let mut sent = 0;
        while self.waiting.is_empty() && sent < data.len() {
            match offer(&mut *self.backend, &data[sent..]) {
                Offer::Taken(len) => sent += len,
                Offer::Refused => break,
                Offer::Lost(error) => {
                    sent = data.len();
                    self.complain("output is lost", &error);
                }
            }
        }
        let rest = &data[sent..];
        let rest = &rest[..rest.len().min(room)];
        if !rest.is_empty() {
            self.waiting.extend(rest);
            self.update();
        }
        sent + rest.len()
    }

    /// Sends what waits, as far as the backend takes it.
    fn flush(&mut self) {
        while !self.waiting.is_empty() {
            match offer(&mut *self.backend, self.waiting.as_slices().0) {
                Offer::Taken(len) => drop(self.waiting.drain(..len)),
                Offer::Refused => break,
                Offer::Lost(error) => {
                    self.waiting.clear();
                    self.complain("output is lost", &error);
                }
            }
        }
    }

    /// Reads ahead once.
    fn fill(&mut self) {
        if self.input_ended || self.input_held {
            return;
        }
        let mut data = [0; READ_AHEAD_BYTES];
        let space = READ_AHEAD_BYTES - self.read_ahead.len();
        match self.backend.read(&mut data[..space]) {
            Ok(0) => self.input_ended = true,
            Ok(len) => {
                self.read_ahead.extend(&data[..len.min(space)]);
                self.input_held = self.read_ahead.len() == READ_AHEAD_BYTES;
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => {}
                _ => {
                    self.complain("no more input", &error);
                    self.input_ended = true;
                }
            },
        }
    }

    /// Brings up to date what follows from what waits.
    fn update(&mut self) {
        let waiting = self.waiting.len();
        self.gauge.0.store(waiting, Ordering::SeqCst);
        if waiting == 0 {
            // What a burst needed is not kept for good.
            self.waiting.shrink_to(KEPT_BYTES);
        }
        let was_full = self.full;
        self.full = waiting >= OUTPUT_BYTES || (self.full && waiting > OUTPUT_RESUME_BYTES);
        if self.full && !was_full && self.fillings.allow() {
            log::info!(
                "{}: nobody reads the output: the guest has to wait",
                self.name
            );
        }
        let interest = Interest {
            input: !self.input_ended && !self.input_held,
            output: waiting > 0,
        };
        if interest != self.interest {
            self.interest = interest;
            if let Err(error) = self.backend.set_interest(interest) {
                self.complain("input or output may stop", &error);
            }
        }
    }

    /// First out, then told: who ends the run for a message finds it shown, or among what is still shown at the end.
    fn tell(&mut self, data: &[u8]) {
        if let Some(watch) = &mut self.watch {
            watch.saw(data);
        }
    }

    fn complain(&self, what: &str, why: &dyn std::fmt::Display) {
        if self.complaints.allow() {
            log::warn!("{}: {what}: {why}", self.name);
        }
    }
}

/// What became of a write.
enum Offer {
    Taken(usize),
    /// Later, perhaps.
    Refused,
    Lost(io::Error),
}

fn offer(backend: &mut dyn CharBackend, data: &[u8]) -> Offer {
    loop {
        return match backend.write(data) {
            Ok(len) => Offer::Taken(len.min(data.len())),
            Err(error) => match error.kind() {
                io::ErrorKind::Interrupted => continue,
                io::ErrorKind::WouldBlock => Offer::Refused,
                _ => Offer::Lost(error),
            },
        };
    }
}

#[cfg(test)]
mod tests;
