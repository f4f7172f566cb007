//! Characters that are sent without an exit each.
//!
//! A write to the transmitter only stores: it has no effect that the guest could miss before it accesses the port
//! again, but for the interrupt that asks for more. So while much is sent, such writes are posted. Where a driver looks
//! at the line status before every character, that halves its exits; where it fills the FIFO, only the look remains.
//!
//! The zone is open for a burst only. Each tick of a timer delivers what a guest has sent and then left alone, and
//! closes the zone when nothing was sent: a quiet guest has no timer and costs nothing.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use super::chip::FIFO_BYTES;
use crate::posted::{PostedWrites, PostedZone, Space};

/// So many characters sent within [`BURST_TIME`] are a burst.
const BURST_CHARACTERS: u32 = 32;
const BURST_TIME: Duration = Duration::from_millis(50);
/// How long a posted character waits at most.
const TICK: Duration = Duration::from_millis(10);
/// Ticks in a row at which a driver has been found waiting for its interrupt after a FIFO's worth. Then its characters
/// are not posted any more: it is one that looks at nothing until the interrupt comes, and would send no more than that
/// each tick.
const MAX_WAITS: u32 = 3;

/// The transmitter's zone of posted writes.
pub(super) struct Posting {
    writes: Arc<dyn PostedWrites>,
    zone: PostedZone,
    timer: OwnedFd,
    open: bool,
    /// Never again, until a reset.
    refused: bool,
    /// Characters since `burst_start`, while the zone is closed.
    burst: u32,
    burst_start: Option<Instant>,
    /// Characters sent since the last tick.
    sent: usize,
    /// A character was the last thing that the guest wrote, and nothing was read since.
    unanswered: bool,
    waits: u32,
}

impl Posting {
    /// For the transmitter at port `start`. The zone is closed.
    ///
    /// # Errors
    /// No timerfd is to be had.
    pub fn new(writes: Arc<dyn PostedWrites>, start: u64) -> io::Result<Self> {
        let timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
        )?;
        Ok(Self {
            writes,
            zone: PostedZone {
                space: Space::Io,
                start,
                len_bytes: 1,
            },
            timer,
            open: false,
            refused: false,
            burst: 0,
            burst_start: None,
            sent: 0,
            unanswered: false,
            waits: 0,
        })
    }

    /// Readable when [`Posting::tick`] is to be called.
    pub fn timer_fd(&self) -> RawFd {
        self.timer.as_raw_fd()
    }

    /// A character was sent, posted or not.
    pub fn sent(&mut self) {
        self.sent = self.sent.saturating_add(1);
        self.unanswered = true;
        if self.open || self.refused {
            return;
        }
        self.burst += 1;
        let start = *self.burst_start.get_or_insert_with(Instant::now);
        if self.burst < BURST_CHARACTERS {
            return;
        }
        self.forget_burst();
        if start.elapsed() <= BURST_TIME {
            self.open();
        }
    }

    /// The guest has made another access to the port.
    pub fn accessed(&mut self) {
        self.unanswered = false;
    }

    /// The timer has expired. `wants_interrupt`: the guest has the interrupt enabled that asks for more.
    pub fn tick(&mut self, wants_interrupt: bool) {
        let mut expirations = [0; 8];
        if rustix::io::read(&self.timer, &mut expirations).is_err() || !self.open {
            return;
        }
        let waited = (1..=FIFO_BYTES).contains(&self.sent) && self.unanswered && wants_interrupt;
        self.waits = if waited { self.waits + 1 } else { 0 };
        self.refused = self.waits >= MAX_WAITS;
        if self.refused || self.sent == 0 {
            self.close();
        }
        self.sent = 0;
    }

    /// Characters must exit from now on, until the next burst. Those that wait still come.
    pub fn close(&mut self) {
        self.forget_burst();
        if !std::mem::take(&mut self.open) {
            return;
        }
        if let Err(error) = self.writes.close(self.zone) {
            // Not in order as the guest sees it, but all of it comes.
            log::warn!("characters cannot be kept from being posted: {error}");
        }
        self.set_timer(Duration::ZERO);
    }

    /// As after power-on.
    pub fn reset(&mut self) {
        self.close();
        self.refused = false;
        self.waits = 0;
    }

    fn open(&mut self) {
        match self.writes.open(self.zone) {
            Ok(()) if self.set_timer(TICK) => {
                self.open = true;
                self.sent = 1;
            }
            Ok(()) => {
                self.refused = true;
                // Nothing would deliver what waits.
                let _ = self.writes.close(self.zone);
            }
            Err(error) => {
                log::debug!("characters are not posted: {error}");
                self.refused = true;
            }
        }
    }

    #[cfg(test)]
    pub fn is_ticking(&self) -> bool {
        let rest = rustix::time::timerfd_gettime(&self.timer).unwrap().it_value;
        rest.tv_sec != 0 || rest.tv_nsec != 0
    }

    fn forget_burst(&mut self) {
        self.burst = 0;
        self.burst_start = None;
    }

    /// Starts the timer with that period, or stops it for 0; false if the host refuses.
    fn set_timer(&self, period: Duration) -> bool {
        let period = Timespec {
            tv_sec: 0,
            tv_nsec: period.subsec_nanos().into(),
        };
        let value = Itimerspec {
            it_interval: period,
            it_value: period,
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &value).is_ok()
    }
}
