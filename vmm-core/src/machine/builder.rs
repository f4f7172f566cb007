//! Building a machine, in numbered steps. The user's mistakes show in the first ones, before anything is created.

use std::ops::Range;
use std::sync::Arc;

use devices::bus::Bus;
use devices::console::{PanicWitness, SocketAccess, listen_unix};
use devices::legacy::SLP_TYP_S5;
use rustix::thread::sched_getaffinity;

use super::assigned::{self, Claimed};
use super::events::{Countdown, EventQueue, MachineEvent, PowerSwitch, QueueWaker, Signals};
use super::lifecycle::start_at;
use super::panic_probe::{PanicProbe, Suspicion};
use super::wiring::{Backends, Devices, Streams, Wiring};
use super::{AtReset, Machine, MachineError, Options};
use crate::arch::acpi::{self, AcpiConfig, AcpiTables};
use crate::arch::cpuid::{self, Topology};
use crate::arch::regs;
use crate::boot::{BootSource, RamState};
use crate::config::{CpuAffinity, CpuConfig, MachineConfig};
use crate::control::Control;
use crate::event_loop::EventLoop;
use crate::kvm::{KvmCounters, KvmSystem, KvmVcpu, KvmVm, install_kick_handler};
use crate::memory;
use crate::stats::StatsHandle;
use crate::vcpu::{Buses, PostedQueue, StopSink, VcpuGate, VcpuThreads};

/// The IOAPIC's id, as KVM has it.
const IOAPIC_ID: u8 = 0;

impl Machine {
    /// Opens what `config` names and builds the machine. Nothing of the guest runs yet.
    ///
    /// # Errors
    /// [`MachineError`]; [`MachineError::is_users`] tells the user's mistakes from our failures.
    pub fn build(config: &MachineConfig, options: Options) -> Result<Self, MachineError> {
        // 1. The configuration in itself, then against what KVM and this host can do.
        config.validate()?;
        let boot = Arc::new(BootSource::open(&config.boot, config.memory.size_bytes)?);
        let kvm = KvmSystem::open()?;
        let supported = kvm.supported_cpuid()?;
        check_cpus(&config.cpus, kvm.max_vcpus())?;
        let claimed = assigned::claim(&config.devices, config.memory.size_bytes)?;
        let physical_bits = cpuid::physical_bits(&supported);
        let pci_window = pci_window(config.memory.size_bytes, &claimed, physical_bits)?;

        // 2. The user's files, interfaces and terminals.
        let gate = Arc::new(VcpuGate::default());
        let queue = EventQueue::new(Arc::clone(&gate)).map_err(host("create an event"))?;
        let suspicion = Suspicion::new(Arc::clone(&queue));
        let witness: Arc<dyn PanicWitness> = suspicion.clone();
        let control = (options.control.as_deref())
            .map(|path| listen_unix(path, SocketAccess::Owner))
            .transpose()?;
        let streams = Streams::new(options.streams, options.channels);
        let mut backends = Backends::open(config, streams, &queue, &witness)?;
        let endpoints = std::mem::take(&mut backends.endpoints);
        let taps = std::mem::take(&mut backends.new_taps);

        // 3. The VM, its memory and address spaces, and the loop that serves it.
        let vm = kvm.create_vm()?;
        let ram = memory::create(&config.memory)?;
        vm.set_memory(&ram)?;
        let assigned = assigned::open(&claimed, &vm, &ram)?;
        let (pio, mmio) = (Arc::new(Bus::new("pio")), Arc::new(Bus::new("mmio")));
        let counts = options.stats || control.is_some();
        let stats = counts.then(StatsHandle::default);
        let recorder = || stats.as_ref().map(StatsHandle::recorder);
        let posted = PostedQueue::new(vm.clone(), &pio, &mmio, recorder());
        let buses = Buses {
            pio,
            mmio,
            posted: posted.clone(),
        };
        let mut events = EventLoop::new(posted.clone(), recorder())?;
        watch_machine(&mut events, &queue)?;
        if let (Some((listener, file)), Some(stats)) = (control, &stats) {
            let control = Control::new(listener, file, stats.clone());
            events.add("control", Box::new(control));
        }
        let mut timer = |name, event| countdown(&mut events, &queue, name, event);
        let grace = timer("grace timer", || MachineEvent::GraceOver)?;
        let sample = timer("panic probe", || MachineEvent::PanicSample)?;
        let panic = PanicProbe::new(suspicion, sample);

        // 4. The devices.
        let power = Arc::new(PowerSwitch(Arc::clone(&queue)));
        let recall = gate.recall();
        let window = pci_window.clone();
        let wiring = Wiring::new(window, &vm, &buses, &ram, &mut events, power, recall)?;
        let devices = wiring.add_all(config, backends, assigned, &queue)?;

        // 5. The vCPUs, as they are to be after each reset.
        install_kick_handler()?;
        let vcpus = create_vcpus(&kvm, &vm, config.cpus.count)?;
        posted.attach(vcpus[0].write_ring()?);
        if let Some(stats) = &stats {
            stats.attach_kvm(KvmCounters::open(&vm, &vcpus)?);
        }
        let at_reset = AtReset::of(&kvm, &vm, &vcpus)?;

        // 6. Tables and kernel in memory, the boot processor at its entry.
        let acpi = acpi_tables(config, &devices, pci_window)?;
        acpi.write(&ram)?;
        let entry = boot.load(&ram, acpi.rsdp, RamState::Fresh)?;
        start_at(&vcpus[0], &entry)?;

        // 7. The threads, parked.
        let on_stop = stop_sink(&queue);
        let affinity = affinity(&config.cpus);
        let vcpus = VcpuThreads::start(vcpus, gate, &buses, &affinity, stats.as_ref(), &on_stop)
            .map_err(host("start vCPU threads"))?;
        Ok(Self {
            vcpus,
            devices,
            events,
            queue,
            grace,
            panic,
            ram,
            boot,
            acpi,
            at_reset,
            on_reboot: config.on_reboot,
            on_panic: config.on_panic,
            stats,
            restarts: options.restarts,
            triple_fault_ends: options.triple_fault_ends,
            signals_end: options.signals_end,
            resets: 0,
            endpoints,
            taps,
            claimed,
        })
    }
}

impl AtReset {
    fn of(kvm: &KvmSystem, vm: &KvmVm, vcpus: &[KvmVcpu]) -> Result<Self, MachineError> {
        let msrs = kvm.msr_indices()?;
        let vcpus = vcpus
            .iter()
            .map(|vcpu| vcpu.reset_state(&msrs))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            irqchip: vm.irqchip_state()?,
            vcpus,
        })
    }
}

/// The 64-bit PCI window, with room for the BARs of what the guest gets.
fn pci_window(
    ram_bytes: u64,
    claimed: &[Claimed],
    physical_bits: u32,
) -> Result<Range<u64>, MachineError> {
    let bars_bytes = claimed
        .iter()
        .map(|one| one.bars_bytes)
        .fold(0, u64::saturating_add);
    memory::check_fits(ram_bytes, bars_bytes, physical_bits)?;
    Ok(memory::pci_window(ram_bytes, bars_bytes))
}

fn stop_sink(queue: &Arc<EventQueue>) -> StopSink {
    let queue = Arc::clone(queue);
    Arc::new(move |report| queue.push(MachineEvent::VcpuStopped(report)))
}

fn check_cpus(cpus: &CpuConfig, limit: u32) -> Result<(), MachineError> {
    if cpus.count > limit {
        return Err(MachineError::TooManyCpus {
            asked: cpus.count,
            limit,
        });
    }
    check_affinity(&cpus.affinity)
}

/// Finds out whether this process may run on the host CPUs that vCPUs are to run on.
///
/// # Errors
/// [`MachineError::NoSuchHostCpu`].
pub fn check_affinity(affinity: &[CpuAffinity]) -> Result<(), MachineError> {
    if affinity.is_empty() {
        return Ok(());
    }
    let available = sched_getaffinity(None).map_err(|e| host("read the CPU affinity")(e.into()))?;
    for pin in affinity {
        if let Some(&cpu) = pin
            .host_cpus
            .iter()
            .find(|cpu| !available.is_set(**cpu as usize))
        {
            let all: Vec<String> = (0..rustix::thread::CpuSet::MAX_CPU)
                .filter(|cpu| available.is_set(*cpu))
                .map(|cpu| cpu.to_string())
                .collect();
            return Err(MachineError::NoSuchHostCpu {
                vcpu: pin.vcpu,
                cpu,
                available: all.join(", "),
            });
        }
    }
    Ok(())
}

/// The host CPUs of each of `count` vCPUs; none for anywhere.
pub(crate) fn affinity(cpus: &CpuConfig) -> Vec<Vec<u32>> {
    let of = |vcpu| {
        cpus.affinity
            .iter()
            .find(|pin| pin.vcpu == vcpu)
            .map(|pin| pin.host_cpus.clone())
    };
    (0..cpus.count)
        .map(|vcpu| of(vcpu).unwrap_or_default())
        .collect()
}

fn watch_machine(events: &mut EventLoop, queue: &Arc<EventQueue>) -> Result<(), MachineError> {
    events.add("machine", Box::new(QueueWaker(Arc::clone(queue))));
    let signals = Signals::new(Arc::clone(queue)).map_err(host("watch signals"))?;
    events.add("signals", Box::new(signals));
    Ok(())
}

fn countdown(
    events: &mut EventLoop,
    queue: &Arc<EventQueue>,
    name: &str,
    event: fn() -> MachineEvent,
) -> Result<Countdown, MachineError> {
    let timer = Countdown::new(Arc::clone(queue), event).map_err(host("create a timer"))?;
    events.add(name, Box::new(timer.handle()));
    Ok(timer)
}

fn create_vcpus(kvm: &KvmSystem, vm: &KvmVm, count: u32) -> Result<Vec<KvmVcpu>, MachineError> {
    let supported = kvm.supported_cpuid()?;
    let tsc_deadline = kvm.tsc_deadline_timer();
    let mut vcpus = Vec::new();
    for apic_id in 0..count {
        let vcpu = vm.create_vcpu(apic_id)?;
        vcpu.set_cpuid(&cpuid::for_vcpu(
            &supported,
            Topology { apic_id, count },
            tsc_deadline,
        ))?;
        vcpu.set_msrs(&regs::msrs())?;
        vcpu.set_lapic(&regs::local_apic(vcpu.lapic()?))?;
        vcpus.push(vcpu);
    }
    Ok(vcpus)
}

fn acpi_tables(
    config: &MachineConfig,
    devices: &Devices,
    pci_mmio64: Range<u64>,
) -> Result<AcpiTables, MachineError> {
    let com_ports = std::array::from_fn(|i| i < config.serials.len());
    Ok(acpi::build(&AcpiConfig {
        apic_ids: (0..config.cpus.count).collect(),
        ioapic_id: IOAPIC_ID,
        com_ports,
        // There is a controller, for resets, but no keyboard yet: probing for one would only take time.
        i8042: false,
        cmos_rtc: true,
        pvpanic: true,
        ide: devices.has_ide(),
        pci_slots: devices.pci_slots().to_vec(),
        pci_mmio64,
        s5_sleep_type: SLP_TYP_S5,
    })?)
}

fn host(what: &'static str) -> impl Fn(std::io::Error) -> MachineError {
    move |source| MachineError::Host { what, source }
}
