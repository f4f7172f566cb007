//! Interrupt causes, their mask, and what holds an interrupt back (manual, 3.2.7, 3.4.3, 13.4.17 to 13.4.21).
//!
//! Two kinds of timer moderate interrupts. The delay timers (TIDV and TADV, RDTR and RADV) hold a *cause* back: it
//! shows in ICR when frames stop coming for the one time, or at the latest after the other. ITR holds the *wire* back:
//! it does not rise again before that long after it last rose. The timers run in the guest's real time, as on hardware.
//!
//! Two liberties. The transmit delays are written for a wire on which frames follow one another within a microsecond.
//! Here they follow at the pace of exits, and a delay shorter than the time from one frame to the next would report each
//! frame by an interrupt of its own, whatever the driver meant. So the delay is stretched to twice that time, within
//! bounds of time and of frames; a driver that wants no delay does not set IDE. Where each frame is answered by another
//! before that, the reports go with the interrupts for the answers, and the timer, which would wake the event loop for
//! nothing once for each, is set to a longer time until it has to tell of a frame itself.
//!
//! And when an interrupt is up and the driver reads ICR, causes that a delay timer still holds back are told
//! with it. Their descriptors were written back already, the driver looks at them now in any case, and a second
//! interrupt a few microseconds later would only cost it another round of register accesses.

use super::registers::{ICR_ALL, ICR_RXT0, ICR_TXDW};

/// What the delay timers count in, in nanoseconds.
const DELAY_UNIT_NS: u64 = 1_024;
/// The transmit delays are stretched to at most so much, in nanoseconds: from the last frame, and from the first.
const LONGEST_PACKET_NS: u64 = 2_000_000;
const LONGEST_ABSOLUTE_NS: u64 = 4_000_000;
/// After so many reports in a row that went with another interrupt, and until one does not, a report may wait so much
/// for the next, in nanoseconds.
const ANSWERS_TO_TRUST: u8 = 8;
const TRUSTING_NS: u64 = 8_000_000;
/// So many frames' reports are held back at most.
const MOST_HELD_BACK: u32 = 16;
/// What ITR counts in, in nanoseconds.
const ITR_UNIT_NS: u64 = 256;

/// A packet timer, which each frame starts anew, and an absolute one, which the first frame starts.
#[derive(Debug, Default)]
struct DelayTimer {
    packet_ns: Option<u64>,
    absolute_ns: Option<u64>,
}

impl DelayTimer {
    /// A frame at `now_ns`, and the delays from it. An absolute delay of 0 is none.
    fn start(&mut self, now_ns: u64, packet_ns: u64, absolute_ns: u64) {
        self.packet_ns = Some(now_ns.saturating_add(packet_ns));
        if absolute_ns != 0 && self.absolute_ns.is_none() {
            self.absolute_ns = Some(now_ns.saturating_add(absolute_ns));
        }
    }

    fn deadline_ns(&self) -> Option<u64> {
        earlier(self.packet_ns, self.absolute_ns)
    }

    /// Stops it; says whether it ran.
    fn stop(&mut self) -> bool {
        self.absolute_ns = None;
        self.packet_ns.take().is_some()
    }

    fn expired(&self, now_ns: u64) -> bool {
        self.deadline_ns().is_some_and(|at| at <= now_ns)
    }
}

/// The earlier of two moments that may never come.
fn earlier(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// The interrupt block of the chip. All times are nanoseconds of one monotonic clock.
#[derive(Debug, Default)]
pub struct Interrupts {
    icr: u32,
    ims: u32,
    itr: u16,
    /// The delays, in units of 1.024 µs.
    pub rdtr: u16,
    /// As `rdtr`.
    pub radv: u16,
    /// As `rdtr`.
    pub tidv: u16,
    /// As `rdtr`.
    pub tadv: u16,
    tx: DelayTimer,
    rx: DelayTimer,
    /// When a frame was last sent, and how long after the one before, on average; at most the longest delay.
    sent_ns: u64,
    pace_ns: u64,
    /// Frames whose report the transmit timer holds back.
    held_back: u32,
    /// Reports in a row that went with another interrupt; counted to [`ANSWERS_TO_TRUST`].
    answers: u8,
    asserted: bool,
    /// ITR keeps the wire low until then.
    quiet_until_ns: u64,
}

impl Interrupts {
    /// Causes have come.
    pub fn raise(&mut self, causes: u32) {
        self.icr |= causes & ICR_ALL;
    }

    /// `frames` transmit descriptors that asked for a report were written back. `delayed` when all of them allow its
    /// delay (IDE). The ring has `ring` descriptors; reports do not wait for more than a quarter of them.
    pub fn transmitted(&mut self, now_ns: u64, frames: u32, delayed: bool, ring: u32) {
        let gap_ns = now_ns.saturating_sub(self.sent_ns).min(LONGEST_PACKET_NS);
        self.sent_ns = now_ns;
        self.pace_ns = (3 * self.pace_ns + gap_ns) / 4;
        self.held_back = self.held_back.saturating_add(frames);
        if !delayed || self.tidv == 0 || self.held_back >= MOST_HELD_BACK.min(ring / 4) {
            return self.report_transmitted();
        }
        if self.answers == ANSWERS_TO_TRUST {
            return self.tx.start(now_ns, TRUSTING_NS, TRUSTING_NS);
        }
        let packet_ns = (2 * self.pace_ns).min(LONGEST_PACKET_NS);
        let absolute_ns = match self.tadv {
            0 => 0,
            units => (u64::from(MOST_HELD_BACK) * self.pace_ns)
                .min(LONGEST_ABSOLUTE_NS)
                .max(u64::from(units) * DELAY_UNIT_NS),
        };
        let packet_ns = packet_ns.max(u64::from(self.tidv) * DELAY_UNIT_NS);
        self.tx.start(now_ns, packet_ns, absolute_ns);
    }

    fn report_transmitted(&mut self) {
        self.tx.stop();
        self.held_back = 0;
        self.raise(ICR_TXDW);
    }

    /// Frames were received.
    pub fn received(&mut self, now_ns: u64) {
        if self.rdtr != 0 {
            let ns = |units: u16| u64::from(units) * DELAY_UNIT_NS;
            self.rx.start(now_ns, ns(self.rdtr), ns(self.radv));
        } else {
            self.rx.stop();
            self.raise(ICR_RXT0);
        }
    }

    /// RDTR was written with FPD: what the receive timer holds back comes now.
    pub fn flush_received(&mut self) {
        if self.rx.stop() {
            self.raise(ICR_RXT0);
        }
    }

    /// Reads ICR, which clears it.
    pub fn take_icr(&mut self) -> u32 {
        if self.icr & self.ims != 0 {
            if self.tx.deadline_ns().is_some() {
                self.answers = ANSWERS_TO_TRUST.min(self.answers + 1);
                self.report_transmitted();
            }
            self.flush_received();
        }
        std::mem::take(&mut self.icr)
    }

    /// The causes, without clearing them: what ICS reads as.
    pub fn causes(&self) -> u32 {
        self.icr
    }

    /// Writes ICR: ones clear.
    pub fn clear_causes(&mut self, causes: u32) {
        self.icr &= !causes;
    }

    /// IMS.
    pub fn mask(&self) -> u32 {
        self.ims
    }

    /// Writes IMS: ones enable.
    pub fn unmask(&mut self, causes: u32) {
        self.ims |= causes & ICR_ALL;
    }

    /// Writes IMC: ones disable.
    pub fn mask_off(&mut self, causes: u32) {
        self.ims &= !causes;
    }

    /// ITR.
    pub fn itr(&self) -> u16 {
        self.itr
    }

    /// Writes ITR, in units of 256 ns. A shorter interval than before counts from now on.
    pub fn set_itr(&mut self, units: u16) {
        let was_ns = u64::from(std::mem::replace(&mut self.itr, units)) * ITR_UNIT_NS;
        let risen_ns = self.quiet_until_ns.saturating_sub(was_ns);
        if self.quiet_until_ns != 0 {
            self.quiet_until_ns = risen_ns.saturating_add(u64::from(units) * ITR_UNIT_NS);
        }
    }

    /// Whether [`Interrupts::sync`] needs to know the time.
    pub fn needs_time(&self) -> bool {
        self.tx.deadline_ns().is_some()
            || self.rx.deadline_ns().is_some()
            || (self.itr != 0 && !self.asserted && self.icr & self.ims != 0)
    }

    /// Follows the timers and recomputes the wire: its level.
    pub fn sync(&mut self, now_ns: u64) -> bool {
        if self.tx.expired(now_ns) {
            self.answers = 0;
            self.report_transmitted();
        }
        if self.rx.expired(now_ns) {
            self.flush_received();
        }
        if self.icr & self.ims == 0 {
            self.asserted = false;
        } else if !self.asserted && (self.itr == 0 || now_ns >= self.quiet_until_ns) {
            self.asserted = true;
            self.quiet_until_ns = now_ns.saturating_add(u64::from(self.itr) * ITR_UNIT_NS);
        }
        self.asserted
    }

    /// The level of the wire, as it was last computed.
    pub fn asserted(&self) -> bool {
        self.asserted
    }

    /// When [`Interrupts::sync`] must be called again at the latest, if nothing else happens.
    pub fn deadline_ns(&self) -> Option<u64> {
        let throttled = (!self.asserted && self.icr & self.ims != 0).then_some(self.quiet_until_ns);
        let delayed = earlier(self.tx.deadline_ns(), self.rx.deadline_ns());
        earlier(throttled, delayed)
    }
}
