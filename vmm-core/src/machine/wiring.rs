//! The only place that joins configuration to devices: one function per kind.

use std::path::PathBuf;
use std::sync::Arc;

use devices::block::{RawFile, RawOptions};
use devices::bus::BusDevice;
use devices::console::{
    CharBackend, CharError, EscapeFilter, FileBackend, NullBackend, PanicWatch, PanicWitness,
    PtyBackend, SocketBackend, StdioBackend,
};
use devices::dma::GuestRam;
use devices::irq::{Doorbell, MsiSink};
use devices::legacy::{
    Cmos, I8042, MemorySizes, Pm, PowerControl, PowerEvent, Pvpanic, Reset, ResetSource, Uart16550,
};
use devices::net::{MacAddr, Tap};
use devices::pci::{
    CONFIG_PORT_COUNT, Ecam, HostBridge, PciConfigPorts, PciDevice, PciWindows, RootBus,
    RootBusError, intx_line,
};
use devices::virtio::{Blk, Console, Net, Rng, VirtioDevice, VirtioPci};

use super::MachineError;
use super::events::{EventQueue, MachineEvent};
use crate::config::{CharTarget, DiskConfig, MachineConfig, NetConfig};
use crate::event_loop::EventLoop;
use crate::kvm::KvmVm;
use crate::vcpu::Buses;
use crate::{layout, memory};

/// What the user's files, interfaces and terminals became when they were opened.
pub struct Backends {
    disks: Vec<RawFile>,
    taps: Vec<(Tap, MacAddr)>,
    serials: Vec<Box<dyn CharBackend>>,
    console: Option<Box<dyn CharBackend>>,
    /// `(what it is for, path)` of each pseudo-terminal made.
    pub ptys: Vec<(String, PathBuf)>,
}

impl Backends {
    /// Opens everything that `config` names. What must exist is opened first, what is created comes last, so that
    /// a mistake leaves nothing behind. `witness` hears of the output to serial ports and console.
    pub fn open(
        config: &MachineConfig,
        queue: &Arc<EventQueue>,
        witness: &Arc<dyn PanicWitness>,
    ) -> Result<Self, MachineError> {
        let disks = config
            .disks
            .iter()
            .map(open_disk)
            .collect::<Result<_, _>>()?;
        let taps = config
            .nets
            .iter()
            .map(open_tap)
            .collect::<Result<_, MachineError>>()?;
        let mut ptys = Vec::new();
        let mut open = |name: String, target: &CharTarget| {
            let backend = open_char(name, target, queue, &mut ptys)?;
            let watch = PanicWatch::new(backend, Arc::clone(witness));
            Ok::<Box<dyn CharBackend>, CharError>(Box::new(watch))
        };
        let console = config
            .console
            .as_ref()
            .map(|target| open("console".into(), target))
            .transpose()?;
        let serials = (1..)
            .zip(&config.serials)
            .map(|(number, target)| open(format!("com{number}"), target))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            disks,
            taps,
            serials,
            console,
            ptys,
        })
    }
}

fn open_disk(disk: &DiskConfig) -> Result<RawFile, MachineError> {
    let options = RawOptions {
        read_only: disk.readonly,
        direct: disk.direct,
    };
    Ok(RawFile::open(&disk.path, options)?)
}

fn open_tap(net: &NetConfig) -> Result<(Tap, MacAddr), MachineError> {
    let mac = match &net.mac {
        Some(text) => text.parse()?,
        None => MacAddr::random_local(),
    };
    Ok((Tap::open(&net.tap)?, mac))
}

fn open_char(
    name: String,
    target: &CharTarget,
    queue: &Arc<EventQueue>,
    ptys: &mut Vec<(String, PathBuf)>,
) -> Result<Box<dyn CharBackend>, CharError> {
    Ok(match target {
        CharTarget::Stdio => {
            let queue = Arc::clone(queue);
            let quit = Box::new(move || queue.push(MachineEvent::Quit));
            Box::new(EscapeFilter::new(Box::new(StdioBackend::new()?), quit))
        }
        CharTarget::Null => Box::new(NullBackend),
        CharTarget::Pty => {
            let pty = PtyBackend::open()?;
            ptys.push((name, pty.path().to_path_buf()));
            Box::new(pty)
        }
        CharTarget::File(path) => Box::new(FileBackend::create(path)?),
        CharTarget::Socket(path) => Box::new(SocketBackend::listen(path)?),
    })
}

/// The devices of a machine, as its lifecycle needs them.
pub struct Devices {
    vm: KvmVm,
    root: Arc<RootBus>,
    pm: Arc<Pm>,
    resettable: Vec<Arc<dyn Reset>>,
    config_ports: Arc<PciConfigPorts>,
    virtio: Vec<Arc<VirtioPci>>,
    slots: Vec<u8>,
}

impl Devices {
    /// The PCI slots that are taken.
    pub fn pci_slots(&self) -> &[u8] {
        &self.slots
    }

    /// Back to power-on. All vCPUs are parked.
    pub fn reset(&self) -> Result<(), MachineError> {
        self.root.reset()?;
        self.config_ports.reset();
        for device in &self.resettable {
            device.reset();
        }
        Ok(())
    }

    /// The VM that holds the in-kernel interrupt controllers.
    pub fn interrupt_controller(&self) -> &KvmVm {
        &self.vm
    }

    /// Asks the guest to power off; false when it does not listen.
    pub fn press_power_button(&self) -> bool {
        self.pm.press_power_button()
    }

    /// Finishes what is in flight. All vCPU threads have ended.
    pub fn shut_down(&self) {
        for device in &self.virtio {
            device.shutdown();
        }
    }
}

/// Puts devices into a machine.
pub struct Wiring<'a> {
    vm: &'a KvmVm,
    buses: &'a Buses,
    ram: &'a Arc<GuestRam>,
    events: &'a mut EventLoop,
    power: Arc<dyn PowerControl>,
    root: Arc<RootBus>,
    config_ports: Arc<PciConfigPorts>,
    resettable: Vec<Arc<dyn Reset>>,
    virtio: Vec<Arc<VirtioPci>>,
    slots: Vec<u8>,
}

impl<'a> Wiring<'a> {
    /// The PCI root bus and its configuration ports, and nothing else yet.
    pub fn new(
        config: &MachineConfig,
        vm: &'a KvmVm,
        buses: &'a Buses,
        ram: &'a Arc<GuestRam>,
        events: &'a mut EventLoop,
        power: Arc<dyn PowerControl>,
    ) -> Result<Self, MachineError> {
        let windows = PciWindows {
            mmio32: layout::PCI_MMIO32,
            mmio64: memory::pci_window(config.memory.size_bytes),
            io: layout::PCI_IO,
        };
        let doorbell: Arc<dyn Doorbell> = Arc::new(vm.clone());
        let root = Arc::new(RootBus::new(&buses.mmio, &buses.pio, doorbell, windows));
        let on_reset = {
            let power = Arc::clone(&power);
            Box::new(move || power.request(PowerEvent::Reset(ResetSource::ResetControl)))
        };
        let config_ports = Arc::new(PciConfigPorts::new(Arc::clone(&root), on_reset));
        buses.pio.insert(
            layout::PCI_CONFIG_ADDRESS,
            CONFIG_PORT_COUNT,
            config_ports.clone(),
        )?;
        buses.mmio.insert(
            layout::ECAM,
            layout::ECAM_BYTES,
            Arc::new(Ecam::new(Arc::clone(&root))),
        )?;
        let slot = root.insert(Arc::new(HostBridge::default()), None)?;
        Ok(Self {
            vm,
            buses,
            ram,
            events,
            power,
            root,
            config_ports,
            resettable: Vec::new(),
            virtio: Vec::new(),
            slots: vec![slot],
        })
    }

    /// Adds everything that `config` and `backends` say.
    pub fn add_all(
        mut self,
        config: &MachineConfig,
        backends: Backends,
    ) -> Result<Devices, MachineError> {
        let Backends {
            disks,
            taps,
            serials,
            console,
            ptys: _,
        } = backends;
        let pm = self.add_legacy(config.memory.size_bytes)?;
        for (index, backend) in serials.into_iter().enumerate() {
            self.add_serial(index, backend)?;
        }
        for (index, (disk, config)) in disks.into_iter().zip(&config.disks).enumerate() {
            self.add_disk(index, disk, config)?;
        }
        for (index, (tap, mac)) in taps.into_iter().enumerate() {
            self.add_net(index, tap, mac)?;
        }
        if let Some(backend) = console {
            let device = Console::new("virtio-console0".into(), backend)
                .map_err(host("create a virtio device"))?;
            self.add_virtio(Box::new(device))?;
        }
        if config.rng {
            let device = Rng::new("virtio-rng0".into()).map_err(host("create a virtio device"))?;
            self.add_virtio(Box::new(device))?;
        }
        self.root.assign_resources()?;
        Ok(Devices {
            vm: self.vm.clone(),
            root: self.root,
            pm,
            resettable: self.resettable,
            config_ports: self.config_ports,
            virtio: self.virtio,
            slots: self.slots,
        })
    }

    fn add_legacy(&mut self, ram_bytes: u64) -> Result<Arc<Pm>, MachineError> {
        let line = |gsi| self.vm.interrupts().line(gsi);
        let pm = Arc::new(Pm::new(line(layout::SCI_GSI), Arc::clone(&self.power)));
        let i8042 = Arc::new(I8042::new(line(layout::I8042_GSI), Arc::clone(&self.power)));
        let sizes = memory::ranges(ram_bytes);
        let below_4g = sizes.first().map_or(0, |(_, len)| *len);
        let cmos = Arc::new(Cmos::new(MemorySizes {
            below_4g_bytes: below_4g,
            above_4g_bytes: ram_bytes - below_4g,
        }));
        let pvpanic = Arc::new(Pvpanic::new(Arc::clone(&self.power)));
        self.add_legacy_device(layout::PM1A_EVENT, Pm::PORT_COUNT, pm.clone())?;
        self.add_legacy_device(layout::I8042_DATA, I8042::PORT_COUNT, i8042)?;
        self.add_legacy_device(layout::CMOS, Cmos::PORT_COUNT, cmos)?;
        self.add_legacy_device(layout::PVPANIC, 1, pvpanic)?;
        Ok(pm)
    }

    fn add_legacy_device<D: BusDevice + Reset + 'static>(
        &mut self,
        port: u64,
        ports: u64,
        device: Arc<D>,
    ) -> Result<(), MachineError> {
        self.buses.pio.insert(port, ports, device.clone())?;
        self.resettable.push(device);
        Ok(())
    }

    fn add_serial(
        &mut self,
        index: usize,
        backend: Box<dyn CharBackend>,
    ) -> Result<(), MachineError> {
        let name = format!("com{}", index + 1);
        let line = self.vm.interrupts().line(layout::COM_GSIS[index]);
        let uart = Arc::new(
            Uart16550::new(name.clone(), line, backend).map_err(host("create a serial port"))?,
        );
        self.add_legacy_device(
            layout::COM_PORTS[index],
            Uart16550::PORT_COUNT,
            Arc::clone(&uart),
        )?;
        self.events.add(&name, Box::new(uart.subscriber()));
        Ok(())
    }

    fn add_disk(
        &mut self,
        index: usize,
        disk: RawFile,
        config: &DiskConfig,
    ) -> Result<(), MachineError> {
        let name = format!("virtio-blk{index}");
        let device = Blk::new(name, Box::new(disk), config.serial.as_deref())
            .map_err(host("create a disk"))?;
        self.add_virtio(Box::new(device))
    }

    fn add_net(&mut self, index: usize, tap: Tap, mac: MacAddr) -> Result<(), MachineError> {
        let name = format!("virtio-net{index}");
        let device =
            Net::new(name, Box::new(tap), mac).map_err(host("create a network interface"))?;
        self.add_virtio(Box::new(device))
    }

    fn add_virtio(&mut self, device: Box<dyn VirtioDevice>) -> Result<(), MachineError> {
        let name = device.info().name;
        let slot = self
            .root
            .next_slot()
            .ok_or_else(|| RootBusError::Full { name: name.clone() })?;
        let line = self
            .vm
            .interrupts()
            .line(layout::PCI_INTX_GSI + u32::from(intx_line(slot, 0)));
        let msi: Arc<dyn MsiSink> = Arc::new(self.vm.interrupts().clone());
        let function = VirtioPci::new(device, Arc::clone(self.ram), msi, line)?;
        self.events.add(&name, Box::new(function.subscriber()));
        self.root
            .insert(Arc::clone(&function) as Arc<dyn PciDevice>, Some(slot))?;
        self.slots.push(slot);
        self.virtio.push(function);
        Ok(())
    }
}

fn host(what: &'static str) -> impl Fn(std::io::Error) -> MachineError {
    move |source| MachineError::Host { what, source }
}
