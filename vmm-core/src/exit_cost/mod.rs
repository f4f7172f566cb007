//! What exits cost: a small machine whose guest does one thing over and over.
//!
//! Its vCPUs run in the same loop as those of any guest, with the same buses, so that what is measured is what a device's
//! register costs, less the device. The guest is code of ours, without a kernel, and runs wherever KVM runs.

mod control;
// SAFETY: the assembly is data, which the host never runs.
#[allow(unsafe_code)]
mod guest;

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use devices::bus::Bus;
use devices::dma::GuestRam;
use devices::irq::{Doorbell, MsiMessage, MsiSink, MsiVector};
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::arch::cpuid::{self, Topology};
use crate::arch::regs;
use crate::boot::{BootError, EntryPoint, write_long_mode_tables};
use crate::config::{CpuAffinity, CpuConfig, MemoryConfig};
use crate::kvm::{KvmCounters, KvmError, KvmSystem, KvmVcpu, KvmVm, install_kick_handler};
use crate::memory::{self, MemoryError};
use crate::stats::StatsHandle;
use crate::vcpu::{Buses, Next, PostedQueue, StopReport, StopSink, VcpuGate, VcpuThreads};
use crate::{layout, machine};
use control::{Command, Control, Nothing};
use guest::Order;

/// vCPUs of an [`ExitMachine`]. The second is for interrupts between CPUs, and halted otherwise.
pub const CPUS: u32 = 2;
const RAM_BYTES: u64 = 64 << 20;
/// How long the guest may take to answer at the most.
const LIMIT: Duration = Duration::from_secs(5);
/// Between two interrupts: the guest is back where it waits, and has ended the last.
const PAUSE_SPINNING: Duration = Duration::from_micros(50);
/// The same for a guest that halts: KVM has stopped polling for it, and its thread sleeps.
const PAUSE_HALTED: Duration = Duration::from_millis(2);
/// Destination and vector of an MSI for the first CPU (Intel SDM, volume 3A, 11.11.1).
const MSI_ADDRESS: u64 = 0xfee0_0000;

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ExitKind {
    /// A byte read from a port that user space answers.
    PioRead,
    /// A byte written to a port that user space answers.
    PioWrite,
    /// Four bytes loaded from a register that user space answers.
    MmioRead,
    /// Four bytes stored to a register that user space answers.
    MmioWrite,
    /// Four bytes stored to a doorbell, which signals an eventfd and stays in the kernel.
    Ioeventfd,
    /// A call of KVM that it does not know, and answers in the kernel.
    Hypercall,
    /// CPUID, which the kernel answers.
    Cpuid,
    /// From an irqfd's signal to the handler in a guest whose vCPU has halted, so that its thread sleeps.
    Hlt,
    /// From an irqfd's signal to the handler in a guest that runs.
    Irqfd,
    /// From a CPU's interrupt command to the handler on another, which runs, and back by way of memory.
    Ipi,
}

impl ExitKind {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::PioRead,
        Self::PioWrite,
        Self::MmioRead,
        Self::MmioWrite,
        Self::Ioeventfd,
        Self::Hypercall,
        Self::Cpuid,
        Self::Hlt,
        Self::Irqfd,
        Self::Ipi,
    ];

    /// The name in tables and files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::PioRead => "pio-read",
            Self::PioWrite => "pio-write",
            Self::MmioRead => "mmio-read",
            Self::MmioWrite => "mmio-write",
            Self::Ioeventfd => "ioeventfd",
            Self::Hypercall => "hypercall",
            Self::Cpuid => "cpuid",
            Self::Hlt => "hlt",
            Self::Irqfd => "irqfd",
            Self::Ipi => "ipi",
        }
    }

    /// Whether each operation is timed by itself, from outside the guest.
    #[must_use]
    pub fn is_latency(self) -> bool {
        matches!(self, Self::Hlt | Self::Irqfd)
    }
}

/// The measurement cannot be made.
#[derive(Debug, Error)]
pub enum ExitCostError {
    /// KVM's side.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The guest's memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Its tables.
    #[error(transparent)]
    Tables(#[from] BootError),
    /// The host's side.
    #[error("cannot {what}: {source}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// What the host said.
        source: io::Error,
    },
    /// The guest came to an end: this KVM cannot do what it was told to do.
    #[error("the guest stopped: {0}")]
    Stopped(String),
    /// The guest does not answer.
    #[error("the guest did not answer within {} s", LIMIT.as_secs())]
    Silent,
}

/// A machine for measuring. Dropping it ends it.
pub struct ExitMachine {
    /// Gone first, so that a guest that waits for a command gets none.
    commands: Option<Sender<Command>>,
    answers: Receiver<Duration>,
    stopped: Receiver<String>,
    _threads: VcpuThreads,
    vector: Box<dyn MsiVector>,
    ram: Arc<GuestRam>,
    is_amd: bool,
    /// The host has no second CPU to wait on.
    one_cpu: bool,
    _doorbell: EventFd,
}

impl ExitMachine {
    /// Builds it and starts its guest, whose two vCPUs run where `affinity` says. With `stats`, exits are counted there,
    /// which has its own cost.
    ///
    /// # Errors
    /// [`ExitCostError`].
    pub fn start(
        affinity: &[CpuAffinity],
        stats: Option<&StatsHandle>,
    ) -> Result<Self, ExitCostError> {
        let kvm = KvmSystem::open()?;
        let vm = kvm.create_vm()?;
        let memory = MemoryConfig {
            thp: false,
            ..MemoryConfig::of_size(RAM_BYTES)
        };
        let ram = memory::create(&memory)?;
        vm.set_memory(&ram)?;
        load(&ram)?;
        let (command, commands) = channel();
        let (done, answers) = channel();
        let buses = buses(&vm, Control::new(commands, done))?;
        let doorbell = EventFd::new(EFD_NONBLOCK).map_err(host("create an event"))?;
        vm.bind(guest::DOORBELL, &doorbell)
            .map_err(host("bind a doorbell"))?;
        let vector = vm.interrupts().vector().map_err(host("get an interrupt"))?;
        let message = MsiMessage {
            address: MSI_ADDRESS,
            data: guest::INTERRUPT_VECTOR.into(),
        };
        vector
            .route(Some(message))
            .map_err(host("route an interrupt"))?;
        install_kick_handler()?;
        let vcpus = vcpus(&kvm, &vm)?;
        buses.1.attach(vcpus[0].write_ring()?);
        if let Some(stats) = stats {
            stats.attach_kvm(KvmCounters::open(&vm, &vcpus)?);
        }
        let gate = Arc::new(VcpuGate::default());
        let (on_stop, stopped) = stop_sink(&gate);
        let cpus = CpuConfig {
            count: CPUS,
            affinity: affinity.to_vec(),
        };
        let threads = VcpuThreads::start(
            vcpus,
            Arc::clone(&gate),
            &buses.0,
            &machine::affinity(&cpus),
            stats,
            &on_stop,
        )
        .map_err(host("start vCPU threads"))?;
        gate.open();
        Ok(Self {
            commands: Some(command),
            answers,
            stopped,
            _threads: threads,
            vector,
            ram,
            is_amd: cpuid::is_amd(&kvm.supported_cpuid()?),
            one_cpu: std::thread::available_parallelism().is_ok_and(|count| count.get() == 1),
            _doorbell: doorbell,
        })
    }

    /// Has the guest do `kind` so often, and returns the time of one, in nanoseconds: of each by itself if
    /// [`ExitKind::is_latency`], their mean otherwise.
    ///
    /// # Errors
    /// [`ExitCostError::Stopped`] or [`ExitCostError::Silent`]; the machine is of no use afterwards.
    pub fn measure(&self, kind: ExitKind, count: u32) -> Result<Vec<f64>, ExitCostError> {
        let count = count.max(1);
        let order = match kind {
            ExitKind::PioRead => Order::PioRead,
            ExitKind::PioWrite => Order::PioWrite,
            ExitKind::MmioRead => Order::MmioRead,
            ExitKind::MmioWrite => Order::MmioWrite,
            ExitKind::Ioeventfd => Order::Doorbell,
            ExitKind::Hypercall if self.is_amd => Order::Vmmcall,
            ExitKind::Hypercall => Order::Vmcall,
            ExitKind::Cpuid => Order::Cpuid,
            ExitKind::Hlt => Order::WaitHalted,
            ExitKind::Irqfd => Order::WaitSpinning,
            ExitKind::Ipi => Order::Ipi,
        };
        if let Some(commands) = &self.commands {
            // If the guest has stopped, that is found below.
            let _ = commands.send(Command { order, count });
        }
        let times = match kind {
            ExitKind::Hlt => self.interrupt(count, PAUSE_HALTED)?,
            ExitKind::Irqfd => self.interrupt(count, PAUSE_SPINNING)?,
            _ => Vec::new(),
        };
        let total = self.answer()?;
        if kind.is_latency() {
            return Ok(times);
        }
        Ok(vec![total.as_secs_f64() * 1e9 / f64::from(count)])
    }

    /// Interrupts the guest and waits for its handler, so often, and then once more to end its waiting.
    fn interrupt(&self, count: u32, pause: Duration) -> Result<Vec<f64>, ExitCostError> {
        self.spin(|| self.load32(guest::READY) == 1)?;
        let mut times = Vec::new();
        for _ in 0..count {
            let resume = Instant::now() + pause;
            self.spin(|| Instant::now() >= resume)?;
            let before = self.handled();
            let start = Instant::now();
            self.send()?;
            self.spin(|| self.handled() != before)?;
            times.push(start.elapsed().as_secs_f64() * 1e9);
        }
        self.store32(guest::READY, 0);
        self.store32(guest::STOP, 1);
        self.send()?;
        Ok(times)
    }

    fn send(&self) -> Result<(), ExitCostError> {
        let trigger = self.vector.trigger();
        trigger.write(1).map_err(host("send an interrupt"))
    }

    fn answer(&self) -> Result<Duration, ExitCostError> {
        let deadline = Instant::now() + LIMIT;
        loop {
            match self.answers.recv_timeout(Duration::from_millis(100)) {
                Ok(time) => {
                    self.store32(guest::STOP, 0);
                    return Ok(time);
                }
                Err(RecvTimeoutError::Timeout) => self.check(deadline)?,
                Err(RecvTimeoutError::Disconnected) => return Err(ExitCostError::Silent),
            }
        }
    }

    fn check(&self, deadline: Instant) -> Result<(), ExitCostError> {
        if let Ok(why) = self.stopped.try_recv() {
            return Err(ExitCostError::Stopped(why));
        }
        if Instant::now() >= deadline {
            return Err(ExitCostError::Silent);
        }
        Ok(())
    }

    /// Waits without giving the CPU away, unless there is only one: to be woken would take longer than what is measured.
    fn spin(&self, mut until: impl FnMut() -> bool) -> Result<(), ExitCostError> {
        const LOOKS: u32 = 1 << 12;
        let deadline = Instant::now() + LIMIT;
        loop {
            for _ in 0..LOOKS {
                if until() {
                    return Ok(());
                }
                if self.one_cpu {
                    std::thread::yield_now();
                } else {
                    std::hint::spin_loop();
                }
            }
            self.check(deadline)?;
        }
    }

    fn handled(&self) -> u64 {
        let address = GuestAddress(guest::HANDLED);
        self.ram.load(address, Ordering::Acquire).unwrap_or(0)
    }

    fn load32(&self, address: u64) -> u32 {
        self.ram
            .load(GuestAddress(address), Ordering::Acquire)
            .unwrap_or(0)
    }

    fn store32(&self, address: u64, value: u32) {
        // The address is in RAM.
        let _ = self
            .ram
            .store(value, GuestAddress(address), Ordering::Release);
    }
}

impl Drop for ExitMachine {
    fn drop(&mut self) {
        self.commands = None;
        // A guest that waits for interrupts is to see that.
        self.store32(guest::STOP, 1);
    }
}

/// Puts the guest into its memory.
fn load(ram: &GuestRam) -> Result<(), ExitCostError> {
    write_long_mode_tables(ram)?;
    for (address, bytes) in [(guest::CODE, guest::code()), (guest::IDT, &guest::idt())] {
        ram.write_slice(bytes, GuestAddress(address))
            .map_err(|error| host("write the guest")(io::Error::other(error)))?;
    }
    Ok(())
}

fn buses(vm: &KvmVm, control: Control) -> Result<(Buses, Arc<PostedQueue>), ExitCostError> {
    let (pio, mmio) = (Arc::new(Bus::new("pio")), Arc::new(Bus::new("mmio")));
    let put = |bus: &Bus, start, len, device| {
        bus.insert(start, len, device)
            .map_err(|error| host("place a device")(io::Error::other(error)))
    };
    put(&pio, guest::CONTROL_PORT, 4, Arc::new(control))?;
    put(&pio, guest::TEST_PORT, 4, Arc::new(Nothing))?;
    put(&mmio, guest::TEST_REGISTER, 0x2000, Arc::new(Nothing))?;
    let posted = PostedQueue::new(vm.clone(), &pio, &mmio, None);
    let buses = Buses {
        pio,
        mmio,
        posted: posted.clone(),
    };
    Ok((buses, posted))
}

fn vcpus(kvm: &KvmSystem, vm: &KvmVm) -> Result<Vec<KvmVcpu>, ExitCostError> {
    let supported = kvm.supported_cpuid()?;
    let tsc_deadline = kvm.tsc_deadline_timer();
    let mut vcpus = Vec::new();
    for apic_id in 0..CPUS {
        let vcpu = vm.create_vcpu(apic_id)?;
        let topology = Topology {
            apic_id,
            count: CPUS,
        };
        vcpu.set_cpuid(&cpuid::for_vcpu(&supported, topology, tsc_deadline))?;
        let (rip, rsp) = match apic_id {
            0 => (guest::CODE, layout::BOOT_STACK),
            _ => (guest::second_entry(), guest::SECOND_STACK),
        };
        let entry = EntryPoint::Linux64 { rip, zero_page: 0 };
        let mut special = regs::special(&entry, vcpu.sregs()?);
        special.idt.base = guest::IDT;
        special.idt.limit = u16::try_from(guest::idt().len() - 1).unwrap_or(u16::MAX);
        vcpu.set_sregs(&special)?;
        let mut general = regs::general(&entry);
        general.rsp = rsp;
        vcpu.set_regs(&general)?;
        vcpu.set_runnable()?;
        vcpus.push(vcpu);
    }
    Ok(vcpus)
}

fn stop_sink(gate: &Arc<VcpuGate>) -> (StopSink, Receiver<String>) {
    let (stop, stopped) = channel();
    let gate = Arc::clone(gate);
    let sink = move |report: StopReport| {
        gate.close();
        let why = match report.next {
            Next::Broken(why) | Next::Failed(why) => why,
            other => format!("{other:?}"),
        };
        // Nobody asks when the machine goes.
        let _ = stop.send(why);
    };
    (Arc::new(sink), stopped)
}

fn host(what: &'static str) -> impl Fn(io::Error) -> ExitCostError {
    move |source| ExitCostError::Host { what, source }
}
