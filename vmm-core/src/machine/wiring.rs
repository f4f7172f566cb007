//! The only place that joins configuration to devices: one function per kind.

use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use devices::block::{BlockBackend, RawFile, RawOptions};
use devices::bus::BusDevice;
use devices::console::{
    CharBackend, CharError, EscapeFilter, FileBackend, NullBackend, OutputGauge, PanicWatch,
    PanicWitness, Port, PtyBackend, SocketBackend, StdioBackend,
};
use devices::dma::GuestRam;
use devices::ide::{Ide, IdeDrive, IdeDriveKind, IdeSubscriber};
use devices::irq::{Doorbell, IrqLine, MsiSink};
use devices::legacy::{
    Cmos, I8042, MemorySizes, Pm, PowerControl, PowerEvent, Pvpanic, Reset, ResetSource, Uart16550,
    UartEvents,
};
use devices::net::{MacAddr, NetBackend, StreamNet, Tap};
use devices::pci::{
    CONFIG_PORT_COUNT, E1000, E1000Subscriber, Ecam, HostBridge, PciConfigPorts, PciDevice,
    PciWindows, RootBus, RootBusError, intx_line,
};
use devices::posted::{PostedWrites, PostedZone, Space};
use devices::recall::Recall;
use devices::vfio::host::PciAddress;
use devices::vfio::{GuestDma, HostFunction, VfioFunction, VfioOptions};
use devices::virtio::{
    Blk, Console, Fs, Net, Rng, SharedDirectory, VirtioDevice, VirtioPci, VirtioSubscriber,
};

use super::assigned::Assigned;
use super::events::{EventQueue, MachineEvent};
use super::passt::Passt;
use super::{ConsolePort, MachineError};
use crate::config::{
    CharTarget, DiskConfig, DiskInterface, DiskMedia, MachineConfig, NetConfig, NetInterface,
    Network, ShareConfig,
};
use crate::event_loop::EventLoop;
use crate::kvm::KvmVm;
use crate::vcpu::Buses;
use crate::{layout, memory};

/// What an Ethernet interface transfers by default, in bytes.
const ETHERNET_MTU: u16 = 1500;

/// The ports that are connected to our caller.
pub struct Streams {
    ports: Vec<(ConsolePort, UnixStream)>,
    channels: Vec<UnixStream>,
}

impl Streams {
    pub fn new(ports: Vec<(ConsolePort, UnixStream)>, channels: Vec<UnixStream>) -> Self {
        Self { ports, channels }
    }

    fn take(&mut self, port: ConsolePort) -> Option<UnixStream> {
        let index = self.ports.iter().position(|(one, _)| *one == port)?;
        Some(self.ports.swap_remove(index).1)
    }
}

/// What the user's files, interfaces and terminals became when they were opened.
pub struct Backends {
    disks: Vec<RawFile>,
    shares: Vec<SharedDirectory>,
    nets: Vec<(Box<dyn NetBackend>, MacAddr)>,
    passts: Vec<Passt>,
    serials: Vec<Port>,
    /// The virtio consoles, in the order in which the guest numbers them.
    consoles: Vec<Port>,
    /// `(network interface, name)` of each TAP created.
    pub new_taps: Vec<(String, String)>,
    /// As [`Machine::endpoints`](super::Machine::endpoints).
    pub endpoints: Vec<(String, String)>,
}

impl Backends {
    /// Opens everything that `config` names. What must exist is opened first, what is created comes last, so that
    /// a mistake leaves nothing behind. `streams` take the place of what `config` says of their ports. `witness` hears of
    /// the output to serial ports and console.
    pub fn open(
        config: &MachineConfig,
        mut streams: Streams,
        queue: &Arc<EventQueue>,
        witness: &Arc<dyn PanicWitness>,
    ) -> Result<Self, MachineError> {
        let disks = config
            .disks
            .iter()
            .map(open_disk)
            .collect::<Result<_, _>>()?;
        let shares = config
            .shares
            .iter()
            .map(|share| SharedDirectory::open(&share.path))
            .collect::<Result<_, _>>()?;
        let (mut new_taps, mut passts) = (Vec::new(), Vec::new());
        let nets = config
            .nets
            .iter()
            .enumerate()
            .map(|(index, net)| {
                let backend = open_net(index, net, &mut new_taps, &mut passts)?;
                Ok((backend, mac_of(net)?))
            })
            .collect::<Result<_, MachineError>>()?;
        let mut endpoints = Vec::new();
        let mut open = |name: String, port: ConsolePort, target: &CharTarget| {
            let backend = match streams.take(port) {
                Some(stream) => stream_backend(stream)?,
                None => open_char(&name, target, queue, &mut endpoints)?,
            };
            let watch = PanicWatch::new(Arc::clone(witness));
            Ok::<_, CharError>(Port::new(name, backend).watched_by(watch))
        };
        let mut consoles: Vec<Port> = config
            .console
            .iter()
            .map(|target| open("console".into(), ConsolePort::Virtio, target))
            .collect::<Result<_, _>>()?;
        let serials = (config.serials.iter().enumerate())
            .map(|(index, target)| {
                let name = format!("com{}", index + 1);
                open(name, ConsolePort::Serial(index), target)
            })
            .collect::<Result<_, _>>()?;
        // Behind the user's, so that their numbers say which they are.
        for stream in streams.channels {
            consoles.push(Port::new("channel", stream_backend(stream)?));
        }
        Ok(Self {
            disks,
            shares,
            nets,
            passts,
            serials,
            consoles,
            new_taps,
            endpoints,
        })
    }
}

fn stream_backend(stream: UnixStream) -> Result<Box<dyn CharBackend>, CharError> {
    let input = stream.try_clone().map_err(CharError::Stdio)?;
    let backend = StdioBackend::from_fds(input.into(), stream.into())?;
    Ok(Box::new(backend))
}

fn open_disk(disk: &DiskConfig) -> Result<RawFile, MachineError> {
    let options = RawOptions {
        read_only: disk.is_read_only(),
        direct: disk.direct,
    };
    let file = RawFile::open(&disk.path, options)?;
    if disk.interface == DiskInterface::Ide {
        let medium = ide_kind(disk).check(file.info());
        medium.map_err(|source| MachineError::IdeMedium {
            path: disk.path.clone(),
            source,
        })?;
    }
    Ok(file)
}

fn ide_kind(disk: &DiskConfig) -> IdeDriveKind {
    match disk.media {
        DiskMedia::Disk => IdeDriveKind::Disk,
        DiskMedia::Cdrom => IdeDriveKind::Cdrom,
    }
}

fn open_net(
    index: usize,
    net: &NetConfig,
    new_taps: &mut Vec<(String, String)>,
    passts: &mut Vec<Passt>,
) -> Result<Box<dyn NetBackend>, MachineError> {
    let name = format!("net{index}");
    Ok(match &net.network {
        Network::Tap(tap) => Box::new(Tap::open(tap)?),
        Network::NewTap { bridge } => {
            let tap = Tap::create(bridge.as_deref())?;
            new_taps.push((name, tap.name().to_owned()));
            Box::new(tap)
        }
        Network::User { hostfwd } => {
            // It offers the guest an MTU of 64 KiB, with which it is fastest, but which is not for real hardware.
            let mtu = (net.interface != NetInterface::Virtio).then_some(ETHERNET_MTU);
            let (socket, passt) = Passt::start(hostfwd, mtu)?;
            passts.push(passt);
            let backend = StreamNet::new(socket, format!("passt of {name}"));
            Box::new(backend.map_err(host("set up a socket"))?)
        }
    })
}

fn mac_of(net: &NetConfig) -> Result<MacAddr, MachineError> {
    Ok(match &net.mac {
        Some(text) => text.parse()?,
        None => MacAddr::random_local(),
    })
}

fn open_char(
    name: &str,
    target: &CharTarget,
    queue: &Arc<EventQueue>,
    endpoints: &mut Vec<(String, String)>,
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
            endpoints.push((name.to_string(), pty.path().display().to_string()));
            Box::new(pty)
        }
        CharTarget::File(path) => Box::new(FileBackend::create(path)?),
        CharTarget::Socket(path) => Box::new(SocketBackend::listen(path)?),
        CharTarget::Tcp(address) => {
            let (backend, local) = SocketBackend::listen_tcp(address)?;
            if address.ends_with(":0") {
                endpoints.push((name.to_string(), local.to_string()));
            }
            Box::new(backend)
        }
    })
}

/// The devices of a machine, as its lifecycle needs them.
pub struct Devices {
    vm: KvmVm,
    root: Arc<RootBus>,
    pm: Arc<Pm>,
    resettable: Vec<Arc<dyn Reset>>,
    config_ports: Arc<PciConfigPorts>,
    posted: Arc<dyn PostedWrites>,
    virtio: Vec<Arc<VirtioPci>>,
    ide: Option<Arc<Ide>>,
    assigned: Vec<Arc<VfioFunction>>,
    dma: Option<GuestDma>,
    slots: Vec<u8>,
    outputs: Vec<OutputGauge>,
    passts: Vec<Passt>,
}

impl Devices {
    /// Whether there is an IDE controller, with its fixed ports.
    pub fn has_ide(&self) -> bool {
        self.ide.is_some()
    }

    /// The PCI slots that are taken.
    pub fn pci_slots(&self) -> &[u8] {
        &self.slots
    }

    /// Back to power-on. All vCPUs are parked.
    pub fn reset(&self) -> Result<(), MachineError> {
        // They were written before the reset.
        self.posted.deliver();
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

    /// Output of serial ports and console that waits to be taken, in bytes.
    pub fn output_waiting(&self) -> usize {
        self.outputs.iter().map(OutputGauge::waiting_bytes).sum()
    }

    /// Finishes what is in flight. All vCPU threads have ended.
    pub fn shut_down(self) {
        for device in &self.virtio {
            device.shutdown();
        }
        if let Some(ide) = &self.ide {
            ide.shutdown();
        }
        for function in &self.assigned {
            function.shutdown();
        }
        // They are stopped: nothing reaches RAM or their registers any more.
        drop(self.dma);
        self.root.close();
        for passt in self.passts {
            passt.end();
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
    recall: Arc<Recall>,
    root: Arc<RootBus>,
    config_ports: Arc<PciConfigPorts>,
    resettable: Vec<Arc<dyn Reset>>,
    virtio: Vec<Arc<VirtioPci>>,
    assigned: Vec<Arc<VfioFunction>>,
    slots: Vec<u8>,
}

impl<'a> Wiring<'a> {
    /// The PCI root bus with its 64-bit window and its configuration ports, and nothing else yet.
    pub fn new(
        pci_window: Range<u64>,
        vm: &'a KvmVm,
        buses: &'a Buses,
        ram: &'a Arc<GuestRam>,
        events: &'a mut EventLoop,
        power: Arc<dyn PowerControl>,
        recall: Arc<Recall>,
    ) -> Result<Self, MachineError> {
        let windows = PciWindows {
            mmio32: layout::PCI_MMIO32,
            mmio64: pci_window,
            io: layout::PCI_IO,
        };
        let doorbell: Arc<dyn Doorbell> = Arc::new(vm.clone());
        let posted = Arc::clone(&buses.posted);
        let root = RootBus::new(&buses.mmio, &buses.pio, doorbell, posted, windows);
        let root = Arc::new(root.with_mapper(vm.bar_mapper()));
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
            recall,
            root,
            config_ports,
            resettable: Vec::new(),
            virtio: Vec::new(),
            assigned: Vec::new(),
            slots: vec![slot],
        })
    }

    /// Adds everything that `config` and `backends` say.
    pub fn add_all(
        mut self,
        config: &MachineConfig,
        backends: Backends,
        assigned: Assigned,
        queue: &Arc<EventQueue>,
    ) -> Result<Devices, MachineError> {
        let Backends {
            disks,
            shares,
            nets,
            passts,
            serials,
            consoles,
            new_taps: _,
            endpoints: _,
        } = backends;
        let outputs = serials.iter().chain(&consoles).map(Port::gauge).collect();
        let pm = self.add_legacy(config.memory.size_bytes)?;
        for (index, port) in serials.into_iter().enumerate() {
            self.add_serial(index, port)?;
        }
        let mut ide_drives = Vec::new();
        for (index, (disk, config)) in disks.into_iter().zip(&config.disks).enumerate() {
            match config.interface {
                DiskInterface::Virtio => self.add_disk(index, disk, config)?,
                DiskInterface::Ide => ide_drives.push(ide_drive(ide_drives.len(), disk, config)),
            }
        }
        let ide = self.add_ide(ide_drives)?;
        for (index, ((backend, mac), config)) in nets.into_iter().zip(&config.nets).enumerate() {
            match config.interface {
                NetInterface::Virtio => self.add_net(index, backend, mac)?,
                NetInterface::E1000 => self.add_e1000(index, backend, mac)?,
            }
        }
        for (index, (share, config)) in shares.into_iter().zip(&config.shares).enumerate() {
            self.add_share(index, share, config)?;
        }
        for (index, port) in consoles.into_iter().enumerate() {
            self.add_console(index, port)?;
        }
        if config.rng {
            let device = Rng::new("virtio-rng0".into()).map_err(host("create a virtio device"))?;
            self.add_virtio(Box::new(device))?;
        }
        let Assigned { dma, functions } = assigned;
        for (address, host, options) in functions {
            self.add_assigned(address, host, &options, queue)?;
        }
        self.root.assign_resources()?;
        Ok(Devices {
            vm: self.vm.clone(),
            root: self.root,
            pm,
            resettable: self.resettable,
            config_ports: self.config_ports,
            posted: Arc::clone(&self.buses.posted),
            virtio: self.virtio,
            ide,
            assigned: self.assigned,
            dma,
            slots: self.slots,
            outputs,
            passts,
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

    fn add_serial(&mut self, index: usize, port: Port) -> Result<(), MachineError> {
        let name = format!("com{}", index + 1);
        let line = self.vm.interrupts().line(layout::COM_GSIS[index]);
        let recall = Arc::clone(&self.recall);
        let posted = Arc::clone(&self.buses.posted);
        let uart = Uart16550::new(name.clone(), line, port, recall)
            .with_posting(posted, layout::COM_PORTS[index])
            .map_err(host("create a serial port"))?;
        let uart = Arc::new(uart);
        self.add_legacy_device(
            layout::COM_PORTS[index],
            Uart16550::PORT_COUNT,
            Arc::clone(&uart),
        )?;
        self.events
            .add_told_apart(&name, UartEvents::source, Box::new(uart.subscriber()));
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

    /// The IDE controller, if there are drives, in their order: primary master, primary slave, secondary master,
    /// secondary slave.
    fn add_ide(&mut self, drives: Vec<IdeDrive>) -> Result<Option<Arc<Ide>>, MachineError> {
        if drives.is_empty() {
            return Ok(None);
        }
        let mut places = [const { None }; Ide::MAX_DRIVES];
        for (place, drive) in places.iter_mut().zip(drives) {
            *place = Some(drive);
        }
        let lines = layout::IDE_GSIS.map(|gsi| self.vm.interrupts().line(gsi));
        let ide = Ide::new("ide".into(), places, Arc::clone(self.ram), lines)?;
        let blocks = layout::IDE_COMMAND_PORTS
            .into_iter()
            .zip(layout::IDE_CONTROL_PORTS);
        for (channel, (command, control)) in blocks.enumerate() {
            let pio = &self.buses.pio;
            pio.insert(command, Ide::COMMAND_PORTS, ide.command_block(channel))?;
            pio.insert(control, Ide::CONTROL_PORTS, ide.control_block(channel))?;
            let stores = Ide::POSTED_PORTS;
            let zone = PostedZone {
                space: Space::Io,
                start: command + u64::from(stores.start),
                len_bytes: stores.end - stores.start,
            };
            self.buses
                .posted
                .open(zone)
                .map_err(host("post writes to IDE"))?;
            for (offset, value, event) in ide.doorbells(channel) {
                self.vm
                    .bind_port(command + offset, value, event)
                    .map_err(host("bind a doorbell of IDE"))?;
            }
        }
        self.events
            .add_told_apart("ide", IdeSubscriber::source, Box::new(ide.subscriber()));
        let slot = self
            .root
            .insert(Arc::clone(&ide) as Arc<dyn PciDevice>, None)?;
        self.slots.push(slot);
        Ok(Some(ide))
    }

    fn add_net(
        &mut self,
        index: usize,
        backend: Box<dyn NetBackend>,
        mac: MacAddr,
    ) -> Result<(), MachineError> {
        let name = format!("virtio-net{index}");
        let device = Net::new(name, backend, mac).map_err(host("create a network interface"))?;
        self.add_virtio(Box::new(device))
    }

    fn add_e1000(
        &mut self,
        index: usize,
        backend: Box<dyn NetBackend>,
        mac: MacAddr,
    ) -> Result<(), MachineError> {
        let name = format!("e1000-{index}");
        let (slot, line) = self.next_slot(&name)?;
        let nic = E1000::new(name.clone(), backend, mac, Arc::clone(self.ram), line)?;
        self.events
            .add_told_apart(&name, E1000Subscriber::source, Box::new(nic.subscriber()));
        self.insert(nic, slot)
    }

    fn add_share(
        &mut self,
        index: usize,
        share: SharedDirectory,
        config: &ShareConfig,
    ) -> Result<(), MachineError> {
        let device = Fs::new(format!("virtio-fs{index}"), share, &config.tag)
            .map_err(host("share a directory"))?;
        self.add_virtio(Box::new(device))
    }

    /// The guest numbers its consoles (`hvc0`, ...) in the order in which they are added.
    fn add_console(&mut self, index: usize, port: Port) -> Result<(), MachineError> {
        let device = Console::new(format!("virtio-console{index}"), port)
            .map_err(host("create a virtio console"))?;
        self.add_virtio(Box::new(device))
    }

    fn add_virtio(&mut self, device: Box<dyn VirtioDevice>) -> Result<(), MachineError> {
        let name = device.info().name;
        let (slot, line) = self.next_slot(&name)?;
        let msi: Arc<dyn MsiSink> = Arc::new(self.vm.interrupts().clone());
        let function = VirtioPci::new(device, Arc::clone(self.ram), msi, line)?;
        let events = Box::new(function.subscriber());
        self.events
            .add_told_apart(&name, VirtioSubscriber::source, events);
        self.insert(Arc::clone(&function) as Arc<dyn PciDevice>, slot)?;
        self.virtio.push(function);
        Ok(())
    }

    /// A function of the host's.
    fn add_assigned(
        &mut self,
        address: PciAddress,
        host: Arc<dyn HostFunction>,
        options: &VfioOptions,
        queue: &Arc<EventQueue>,
    ) -> Result<(), MachineError> {
        let name = format!("vfio-{address}");
        let (slot, line) = self.next_slot(&name)?;
        let msi: Arc<dyn MsiSink> = Arc::new(self.vm.interrupts().clone());
        let function = VfioFunction::new(name.clone(), host, options, msi, line)?;
        let queue = Arc::clone(queue);
        let on_loss = Box::new(move |loss| {
            let device = address.to_string();
            queue.push(MachineEvent::FunctionLost { device, loss });
        });
        self.events
            .add(&name, Box::new(function.subscriber(on_loss)));
        self.insert(Arc::clone(&function) as Arc<dyn PciDevice>, slot)?;
        self.assigned.push(function);
        Ok(())
    }

    /// The PCI slot for the next device, and the wire of its pin INTA#.
    fn next_slot(&self, name: &str) -> Result<(u8, IrqLine), MachineError> {
        let slot = self.root.next_slot().ok_or_else(|| RootBusError::Full {
            name: name.to_string(),
        })?;
        let gsi = layout::PCI_INTX_GSI + u32::from(intx_line(slot, 0));
        Ok((slot, self.vm.interrupts().line(gsi)))
    }

    fn insert(&mut self, device: Arc<dyn PciDevice>, slot: u8) -> Result<(), MachineError> {
        self.root.insert(device, Some(slot))?;
        self.slots.push(slot);
        Ok(())
    }
}

fn ide_drive(index: usize, disk: RawFile, config: &DiskConfig) -> IdeDrive {
    let default = || format!("TRIPATH-IDE{index}");
    IdeDrive {
        kind: ide_kind(config),
        backend: Box::new(disk),
        serial: config.serial.clone().unwrap_or_else(default),
    }
}

fn host(what: &'static str) -> impl Fn(std::io::Error) -> MachineError {
    move |source| MachineError::Host { what, source }
}
