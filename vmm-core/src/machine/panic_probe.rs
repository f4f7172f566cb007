//! Whether a guest's kernel has panicked, when no panic notifier says so.
//!
//! The notifier's driver is a module in stock kernels, and the most common panics (no root, no init) come before it is
//! loaded. Such a kernel says what happened on its console, and spins. But the text alone is a suspicion: a user who
//! prints an old log must not lose his guest. The proof is what the vCPUs do, looked at some times after the text.
//!
//! `panic()` of Linux never returns, sleeps or halts. After its last message it calls `mdelay()` for ever, or for the
//! seconds of `panic=N`, with the other CPUs stopped in HLT. So of a panicked guest, each sample shows
//!
//! - one and the same vCPU in kernel mode, most times in a delay loop (now and then in an interrupt's handler, and
//!   the interval is no multiple of a tick's, so that not every sample hits one);
//! - no vCPU in user mode. In kernel mode there may be others, that could not be stopped or panicked as well.
//!
//! A guest that lives fails this soon. When it is idle, all vCPUs are halted; when it works, some are in user mode,
//! or it prints more. Busy in the kernel throughout all samples (a long copy, `idle=poll`), it is not found in a delay
//! loop: kernels sleep where they have long to wait, and a driver that does spin for so long right after somebody
//! printed a whole panic is what remains to be mistaken. A guest's guest that panics on the same console spins as well,
//! but KVM tells its registers from the guest's own.
//!
//! With `panic=-1` the kernel resets the machine right after the first text. So a reset under suspicion is a panic's,
//! unless the kernel announced it ("reboot: Restarting system") or a sample showed no vCPU in the kernel, where the one
//! that panics must be.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use devices::console::{KernelMessage, PanicWitness};
use devices::sync::lock;

use super::crash::code_at;
use super::events::{Countdown, EventQueue, MachineEvent};
use super::{Machine, MachineError, Outcome};
use crate::config::OnPanic;
use crate::kvm::{Activity, KvmError, KvmVcpu};

/// From one sample to the next. No multiple of a tick at 100, 250, 300 or 1000 Hz.
const INTERVAL: Duration = Duration::from_micros(31_300);
/// Samples in a row that prove a panic.
const PROOF_SAMPLES: u32 = 6;
/// How many of them must be in a delay loop. A handler may be hit, above all where ticks are slow (nested guests).
const PROOF_DELAYS: u32 = 4;
/// Samples after which a suspicion that was neither proved nor refuted is dropped; some 10 s.
const MAX_SAMPLES: u32 = 320;
/// How long a vCPU may take to stop for a sample. Many times what a working one takes.
const PAUSE_LIMIT: Duration = Duration::from_millis(20);
/// Bytes of code looked at on either side of the next instruction: the loop of `delay_tsc()` is shorter.
const CODE_REACH: usize = 96;
/// One of these is in the loop that `mdelay()` spends its time in (arch/x86/lib/delay.c).
const DELAY_CODE: [&[u8]; 5] = [
    &[0x0f, 0x31],                   // rdtsc
    &[0x0f, 0x01, 0xf9],             // rdtscp
    &[0x66, 0x0f, 0xae, 0xf1],       // tpause ecx
    &[0x0f, 0x01, 0xfb],             // mwaitx
    &[0x48, 0xff, 0xc8, 0x75, 0xfb], // 1: dec rax; jnz 1b
];

/// How far the texts on the consoles accuse the guest.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Stage {
    #[default]
    Clear,
    /// A panic began.
    Suspected,
    /// A panic is through: from now on the kernel spins.
    Settled,
}

#[derive(Default)]
struct Accusation {
    stage: Stage,
    /// There was a message of a panic since the last sample.
    renewed: bool,
    /// [`MachineEvent::PanicSuspected`] was pushed, and what it started has not ended.
    announced: bool,
}

/// What the texts on all consoles of a machine add up to.
pub struct Suspicion {
    queue: Arc<EventQueue>,
    accusation: Mutex<Accusation>,
    /// Writes to the consoles.
    prints: AtomicU64,
}

impl Suspicion {
    /// No suspicion. The first will be told to `queue`.
    pub fn new(queue: Arc<EventQueue>) -> Arc<Self> {
        Arc::new(Self {
            queue,
            accusation: Mutex::default(),
            prints: AtomicU64::new(0),
        })
    }

    /// Forgets what was said.
    fn clear(&self) {
        *lock(&self.accusation) = Accusation::default();
    }

    fn stands(&self) -> bool {
        lock(&self.accusation).stage != Stage::Clear
    }

    /// The stage, and whether it was renewed since the last call. None if there is nothing to look into any longer:
    /// the next message will be announced again.
    fn take(&self) -> Option<(Stage, bool)> {
        let mut accusation = lock(&self.accusation);
        if accusation.stage == Stage::Clear {
            *accusation = Accusation::default();
            return None;
        }
        Some((accusation.stage, std::mem::take(&mut accusation.renewed)))
    }
}

impl PanicWitness for Suspicion {
    fn printed(&self) {
        self.prints.fetch_add(1, Ordering::Relaxed);
    }

    fn said(&self, message: KernelMessage) {
        let mut accusation = lock(&self.accusation);
        accusation.stage = match (message, accusation.stage) {
            (KernelMessage::Shutdown, _) => Stage::Clear,
            (KernelMessage::PanicEnd, _) => Stage::Settled,
            // User programs say so as well.
            (KernelMessage::PanicDelay, Stage::Clear) => Stage::Clear,
            (KernelMessage::PanicDelay, _) => Stage::Settled,
            (KernelMessage::Panic, Stage::Clear) => Stage::Suspected,
            (KernelMessage::Panic, stage) => stage,
        };
        if accusation.stage == Stage::Clear {
            return;
        }
        accusation.renewed = true;
        if !accusation.announced {
            accusation.announced = true;
            self.queue.push(MachineEvent::PanicSuspected);
        }
    }
}

/// What a sample shows of one vCPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Waiting,
    User,
    Kernel { delaying: bool },
}

/// All vCPUs at one moment.
#[derive(Debug)]
struct Sample {
    vcpus: Vec<Seen>,
    /// Nothing was printed since the sample before.
    quiet: bool,
    /// The kernel's last message is out.
    settled: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// More samples are needed.
    Open,
    /// The guest lives, or does not behave like a panicked one.
    Innocent,
    /// The kernel has panicked.
    Panicked,
}

/// Samples of one vCPU in kernel mode, in a row.
#[derive(Debug, Default, Clone, Copy)]
struct Streak {
    samples: u32,
    /// A bit per sample, the last one lowest: it was in a delay loop.
    delays: u32,
}

impl Streak {
    fn is_proof(self) -> bool {
        let recent = self.delays & ((1 << PROOF_SAMPLES) - 1);
        self.samples >= PROOF_SAMPLES && recent.count_ones() >= PROOF_DELAYS
    }
}

/// Samples in, verdict out.
#[derive(Debug, Default)]
struct Judge {
    taken: u32,
    streaks: Vec<Streak>,
}

impl Judge {
    /// Adds a sample; none could be taken when it is `None`.
    fn add(&mut self, sample: Option<&Sample>) -> Verdict {
        self.taken += 1;
        match sample {
            Some(sample) if !sample.vcpus.iter().any(|seen| seen.in_kernel()) => {
                return Verdict::Innocent;
            }
            Some(sample) if sample.may_be_panicked() => self.extend(&sample.vcpus),
            // Other CPUs may still run while the kernel prints, and a late one be stopped only after it: not panicked
            // yet is not innocent.
            _ => self.streaks.clear(),
        }
        if self.streaks.iter().any(|streak| streak.is_proof()) {
            Verdict::Panicked
        } else if self.taken >= MAX_SAMPLES {
            Verdict::Innocent
        } else {
            Verdict::Open
        }
    }

    fn extend(&mut self, vcpus: &[Seen]) {
        self.streaks.resize(vcpus.len(), Streak::default());
        for (streak, seen) in self.streaks.iter_mut().zip(vcpus) {
            *streak = match seen {
                Seen::Kernel { delaying } => Streak {
                    samples: streak.samples + 1,
                    delays: streak.delays << 1 | u32::from(*delaying),
                },
                Seen::Waiting | Seen::User => Streak::default(),
            };
        }
    }
}

impl Seen {
    fn in_kernel(self) -> bool {
        matches!(self, Self::Kernel { .. })
    }
}

impl Sample {
    fn may_be_panicked(&self) -> bool {
        self.settled && self.quiet && !self.vcpus.contains(&Seen::User)
    }
}

/// Looks into a suspicion, from its announcement to the verdict. Event loop only.
pub struct PanicProbe {
    suspicion: Arc<Suspicion>,
    timer: Countdown,
    judge: Judge,
    /// [`Suspicion::prints`] at the last sample.
    prints: u64,
}

impl PanicProbe {
    /// `timer` pushes [`MachineEvent::PanicSample`].
    pub fn new(suspicion: Arc<Suspicion>, timer: Countdown) -> Self {
        Self {
            suspicion,
            timer,
            judge: Judge::default(),
            prints: 0,
        }
    }

    /// Whether a reset now is a panic's.
    pub fn is_suspected(&self) -> bool {
        self.suspicion.stands()
    }

    /// Drops the suspicion.
    pub fn clear(&self) {
        self.suspicion.clear();
    }

    /// Has the next sample taken in time.
    ///
    /// # Errors
    /// What the kernel said to a timer.
    pub fn schedule(&self) -> io::Result<()> {
        self.timer.start(INTERVAL)
    }

    /// Judges the vCPUs, or that they could not be seen. They are parked until what follows from it is done, so that
    /// no message falls in between. None: there is nothing to judge.
    fn judge(&mut self, vcpus: Option<Vec<Seen>>) -> Option<Verdict> {
        let (stage, renewed) = self.suspicion.take()?;
        if renewed {
            self.judge = Judge::default();
        }
        let prints = self.suspicion.prints.load(Ordering::Relaxed);
        let quiet = std::mem::replace(&mut self.prints, prints) == prints;
        let sample = vcpus.map(|vcpus| Sample {
            vcpus,
            quiet,
            settled: stage == Stage::Settled,
        });
        Some(self.judge.add(sample.as_ref()))
    }
}

impl Machine {
    /// Stops the guest for a look at its vCPUs, and lets it go on unless it has panicked.
    pub(super) fn on_panic_sample(&mut self) -> Result<Option<Outcome>, MachineError> {
        let vcpus = if self.vcpus.pause_within(PAUSE_LIMIT) {
            Some(self.see_vcpus()?)
        } else {
            None
        };
        let verdict = self.panic.judge(vcpus);
        log::debug!("panic probe: {verdict:?}");
        match verdict {
            Some(Verdict::Panicked) if self.on_panic == OnPanic::Exit => {
                return Ok(Some(Outcome::Panicked));
            }
            Some(Verdict::Panicked) => {
                log::warn!("the guest's kernel has panicked");
                self.panic.clear();
            }
            Some(Verdict::Innocent) => self.panic.clear(),
            Some(Verdict::Open) => self.schedule_panic_sample()?,
            None => {}
        }
        self.queue.resume_guest();
        Ok(None)
    }

    /// The first sample after a suspicion came up, or the next.
    pub(super) fn schedule_panic_sample(&self) -> Result<(), MachineError> {
        self.panic.schedule().map_err(|source| MachineError::Host {
            what: "start a timer",
            source,
        })
    }

    fn see_vcpus(&self) -> Result<Vec<Seen>, KvmError> {
        let see = |vcpu: &Arc<Mutex<KvmVcpu>>| {
            let vcpu = lock(vcpu);
            Ok(match vcpu.activity()? {
                Activity::Waiting => Seen::Waiting,
                Activity::User => Seen::User,
                Activity::Kernel { linear_rip } => {
                    let start = linear_rip.wrapping_sub(CODE_REACH as u64);
                    let translate = |linear| vcpu.translate(linear);
                    let code = code_at(start, 2 * CODE_REACH, &translate, &self.ram);
                    Seen::Kernel {
                        delaying: is_delay_loop(&code),
                    }
                }
            })
        };
        self.vcpus.vcpus().iter().map(see).collect()
    }
}

fn is_delay_loop(code: &[u8]) -> bool {
    DELAY_CODE
        .iter()
        .any(|wanted| code.windows(wanted.len()).any(|bytes| bytes == *wanted))
}

#[cfg(test)]
mod tests {
    use super::*;
    use KernelMessage::{Panic, PanicDelay, PanicEnd, Shutdown};
    use Seen::{User, Waiting};
    use devices::testing::test_ram;
    use vm_memory::{Bytes, GuestAddress};

    const DELAY: Seen = Seen::Kernel { delaying: true };
    const KERNEL: Seen = Seen::Kernel { delaying: false };

    fn sample(vcpus: &[Seen]) -> Sample {
        Sample {
            vcpus: vcpus.to_vec(),
            quiet: true,
            settled: true,
        }
    }

    /// The verdict on samples that are all quiet and after the kernel's last message, and how many it took.
    fn verdict<'a>(samples: impl IntoIterator<Item = &'a [Seen]>) -> (Verdict, u32) {
        let mut judge = Judge::default();
        for vcpus in samples {
            let verdict = judge.add(Some(&sample(vcpus)));
            if verdict != Verdict::Open {
                return (verdict, judge.taken);
            }
        }
        (Verdict::Open, judge.taken)
    }

    #[test]
    fn a_kernel_that_spins_has_panicked_within_a_quarter_of_a_second() {
        let panicked = (Verdict::Panicked, PROOF_SAMPLES);
        assert_eq!(verdict([&[DELAY][..]; 9]), panicked);
        assert_eq!(verdict([&[Waiting, Waiting, DELAY][..]; 9]), panicked);
        // Another that could not be stopped.
        assert_eq!(verdict([&[KERNEL, DELAY][..]; 9]), panicked);
        // One more: the first after the last message sees that there was output.
        assert!(INTERVAL * (PROOF_SAMPLES + 1) < Duration::from_millis(250));
    }

    #[test]
    fn interrupts_of_the_panicked_cpu_are_borne() {
        let seen = [KERNEL, DELAY, DELAY, KERNEL, DELAY, DELAY];
        assert_eq!(verdict(seen.chunks(1)), (Verdict::Panicked, PROOF_SAMPLES));
    }

    #[test]
    fn a_guest_is_innocent_when_no_vcpu_is_in_the_kernel() {
        for idle in [
            &[Waiting][..],
            &[Waiting, Waiting],
            &[User, Waiting],
            &[User],
        ] {
            let samples = [&[DELAY, DELAY][..idle.len()], idle];
            assert_eq!(verdict(samples), (Verdict::Innocent, 2), "{idle:?}");
        }
    }

    #[test]
    fn a_kernel_that_is_busy_has_not_panicked() {
        assert_eq!(
            verdict([&[KERNEL][..]; 500]),
            (Verdict::Innocent, MAX_SAMPLES)
        );
        // Delays half of the time, but of two vCPUs in turn: none of them is stuck in one.
        let turns = [&[DELAY, KERNEL][..], &[KERNEL, DELAY]].into_iter().cycle();
        let seldom = turns.flat_map(|turn| [turn, &[KERNEL, KERNEL]]);
        assert_eq!(verdict(seldom.take(100)), (Verdict::Open, 100));
        // Never enough in a row.
        let halts = [&[DELAY, KERNEL][..]; PROOF_SAMPLES as usize - 1]
            .into_iter()
            .chain([&[Waiting, KERNEL][..]]);
        assert_eq!(verdict(halts.cycle().take(100)), (Verdict::Open, 100));
    }

    #[test]
    fn user_mode_output_and_missed_samples_begin_anew() {
        let all = sample(&[DELAY, DELAY]);
        let interruptions = [
            Some(sample(&[DELAY, User])),
            Some(Sample {
                quiet: false,
                ..sample(&[DELAY, DELAY])
            }),
            Some(Sample {
                settled: false,
                ..sample(&[DELAY, DELAY])
            }),
            None,
        ];
        for interruption in interruptions {
            let mut judge = Judge::default();
            for _ in 1..PROOF_SAMPLES {
                assert_eq!(judge.add(Some(&all)), Verdict::Open);
            }
            assert_eq!(judge.add(interruption.as_ref()), Verdict::Open);
            for _ in 1..PROOF_SAMPLES {
                assert_eq!(judge.add(Some(&all)), Verdict::Open, "{interruption:?}");
            }
            assert_eq!(judge.add(Some(&all)), Verdict::Panicked);
        }
    }

    #[test]
    fn a_suspicion_ends_some_time() {
        let mut judge = Judge::default();
        for _ in 1..MAX_SAMPLES {
            assert_eq!(judge.add(None), Verdict::Open);
        }
        assert_eq!(judge.add(None), Verdict::Innocent);
    }

    struct Fixture {
        probe: PanicProbe,
        queue: Arc<EventQueue>,
    }

    impl Fixture {
        fn new() -> Self {
            let queue = EventQueue::new(Arc::default()).unwrap();
            let timer = Countdown::new(Arc::clone(&queue), || MachineEvent::PanicSample).unwrap();
            let suspicion = Suspicion::new(Arc::clone(&queue));
            Self {
                probe: PanicProbe::new(suspicion, timer),
                queue,
            }
        }

        fn says(&self, message: KernelMessage) {
            self.probe.suspicion.said(message);
            self.probe.suspicion.printed();
        }

        fn announced(&self) -> usize {
            std::iter::from_fn(|| self.queue.pop())
                .inspect(|event| assert!(matches!(event, MachineEvent::PanicSuspected)))
                .count()
        }

        fn sees(&mut self, seen: Seen) -> Option<Verdict> {
            self.probe.judge(Some(vec![seen]))
        }
    }

    #[test]
    fn texts_accuse_and_clear() {
        for (messages, stage) in [
            (&[PanicDelay][..], Stage::Clear),
            (&[Panic], Stage::Suspected),
            (&[PanicEnd], Stage::Settled),
            (&[PanicEnd, Panic], Stage::Settled),
            (&[Panic, PanicDelay], Stage::Settled),
            (&[Panic, Shutdown], Stage::Clear),
            (&[PanicEnd, Shutdown], Stage::Clear),
            (&[Panic, Shutdown, PanicDelay], Stage::Clear),
            (&[Panic, Shutdown, Panic], Stage::Suspected),
        ] {
            let mut f = Fixture::new();
            for message in messages {
                f.says(*message);
            }
            let found = f
                .probe
                .suspicion
                .take()
                .map_or(Stage::Clear, |(stage, _)| stage);
            assert_eq!(found, stage, "{messages:?}");
            assert_eq!(f.probe.is_suspected(), stage != Stage::Clear);
            let accuses = messages.iter().any(|m| matches!(m, Panic | PanicEnd));
            assert_eq!(f.announced(), usize::from(accuses), "{messages:?}");
            assert_eq!(
                f.sees(Waiting),
                (stage != Stage::Clear).then_some(Verdict::Innocent)
            );
        }
    }

    #[test]
    fn a_panic_is_proved_only_after_its_last_message() {
        let mut f = Fixture::new();
        f.says(Panic);
        for _ in 0..2 * PROOF_SAMPLES {
            assert_eq!(f.sees(DELAY), Some(Verdict::Open));
        }
        f.says(PanicEnd);
        // The first sample sees that there was output.
        for _ in 0..PROOF_SAMPLES {
            assert_eq!(f.sees(DELAY), Some(Verdict::Open));
        }
        assert_eq!(f.sees(DELAY), Some(Verdict::Panicked));
    }

    #[test]
    fn any_output_begins_anew() {
        let mut f = Fixture::new();
        f.says(PanicEnd);
        for _ in 0..10 * PROOF_SAMPLES {
            assert_eq!(f.sees(DELAY), Some(Verdict::Open));
            f.probe.suspicion.printed();
        }
    }

    #[test]
    fn each_message_of_a_panic_gives_the_probe_its_full_time() {
        let mut f = Fixture::new();
        f.says(Panic);
        for _ in 1..MAX_SAMPLES {
            assert_eq!(f.sees(KERNEL), Some(Verdict::Open));
        }
        f.says(Panic);
        for _ in 1..MAX_SAMPLES {
            assert_eq!(f.sees(KERNEL), Some(Verdict::Open));
        }
        assert_eq!(f.sees(KERNEL), Some(Verdict::Innocent));
    }

    #[test]
    fn a_suspicion_is_announced_once_until_it_is_dropped() {
        let mut f = Fixture::new();
        for message in [Panic, PanicEnd, Shutdown, Panic] {
            f.says(message);
        }
        assert_eq!(f.announced(), 1);
        f.probe.clear();
        assert!(!f.probe.is_suspected());
        f.says(Panic);
        assert_eq!(f.announced(), 1);
        f.says(Shutdown);
        assert_eq!(f.sees(DELAY), None);
        f.says(Panic);
        assert_eq!(f.announced(), 1);
    }

    #[test]
    fn a_reset_forgets_the_announcement_but_not_the_users_wish() {
        let f = Fixture::new();
        f.says(Panic);
        f.queue.push(MachineEvent::PanicSample);
        f.queue.push(MachineEvent::Terminate);
        f.queue
            .push(MachineEvent::Power(devices::legacy::PowerEvent::PowerOff));
        f.queue.forget_guest();
        assert!(matches!(f.queue.pop(), Some(MachineEvent::Terminate)));
        assert!(f.queue.pop().is_none());
    }

    #[test]
    fn delay_loops_are_known_by_their_code() {
        // As compilers make delay_tsc(): lfence; rdtsc … pause.
        let tsc = [
            0x90, 0x0f, 0xae, 0xe8, 0x0f, 0x31, 0x48, 0xc1, 0xe2, 0x20, 0xf3, 0x90,
        ];
        assert!(is_delay_loop(&tsc));
        assert!(!is_delay_loop(&tsc[..5]));
        for code in DELAY_CODE {
            assert!(is_delay_loop(code));
            assert!(!is_delay_loop(&code[1..]));
        }
        // Idle polling: pause; test; jz.
        assert!(!is_delay_loop(&[
            0xf3, 0x90, 0x48, 0xf7, 0x00, 0x08, 0x00, 0x74, 0xf5
        ]));
        // Clearing a page.
        assert!(!is_delay_loop(&[
            0xb9, 0x00, 0x10, 0x00, 0x00, 0x31, 0xc0, 0xf3, 0xaa, 0xc3
        ]));
        assert!(!is_delay_loop(&[]));
    }

    #[test]
    fn code_is_read_on_either_side_of_the_instruction_pointer() {
        let ram = test_ram(0x2000);
        let rdtsc = |at| ram.write_slice(&[0x0f, 0x31], GuestAddress(at)).unwrap();
        let delays = |rip: u64| {
            is_delay_loop(&code_at(
                rip - CODE_REACH as u64,
                2 * CODE_REACH,
                &Some,
                &ram,
            ))
        };
        assert!(!delays(0x1000));
        rdtsc(0x1000 - CODE_REACH as u64);
        assert!(delays(0x1000));
        assert!(!delays(0x1001));
        assert!(delays(0x1000 - 2 * CODE_REACH as u64 + 2));
        assert!(!delays(0x1000 - 2 * CODE_REACH as u64 + 1));
    }
}
