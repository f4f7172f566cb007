//! An assigned function as guest and host see it: interrupts, BARs, resets, and a guest that does anything at all.

use std::sync::Arc;

use super::bars::Trap;
use super::fake::{Call, FakeHost, MSI, MSIX};
use super::function::{VfioFunction, VfioFunctionError, VfioOptions};
use super::host_function::{HostFunction, IrqKind};
use super::interrupts::Mode;
use crate::bus::Bus;
use crate::bus::BusDevice;
use crate::irq::MsiMessage;
use crate::pci::config::COMMAND;
use crate::pci::{Ecam, PciDevice, PciWindows, RootBus};
use crate::testing::{FakeDoorbell, FakeMapper, FakeMsiSink, FakePin, FakePosted, Random};

const TABLE: u64 = 0x2000;
const PBA: u64 = 0x2800;
const ADDRESS: u32 = 0xfee0_1000;

struct Bed {
    host: Arc<FakeHost>,
    sink: Arc<FakeMsiSink>,
    pin: Arc<FakePin>,
    function: Arc<VfioFunction>,
}

impl Bed {
    fn new() -> Self {
        Self::of(FakeHost::nic(), &VfioOptions::default())
    }

    fn of(host: FakeHost, options: &VfioOptions) -> Self {
        let host = Arc::new(host);
        let sink = Arc::new(FakeMsiSink::default());
        let (line, pin) = FakePin::line();
        let function =
            VfioFunction::new("nic".into(), host.clone(), options, sink.clone(), line).unwrap();
        host.take_calls();
        Self {
            host,
            sink,
            pin,
            function,
        }
    }

    fn config(&self, offset: u16, data: &[u8]) {
        let _ = self.function.config_write(offset, data);
    }

    fn msix_control(&self, control: u16) {
        self.config(MSIX + 2, &control.to_le_bytes());
    }

    fn message(&self, vector: u64, data: u32) {
        let at = TABLE + vector * 16;
        self.bar(at, &ADDRESS.to_le_bytes());
        self.bar(at + 4, &[0; 4]);
        self.bar(at + 8, &data.to_le_bytes());
    }

    fn mask(&self, vector: u64, masked: bool) {
        self.bar(TABLE + vector * 16 + 12, &u32::from(masked).to_le_bytes());
    }

    fn bar(&self, offset: u64, data: &[u8]) {
        self.function.bar_write(0, offset, data).unwrap();
    }

    fn pending(&self) -> u64 {
        let mut data = [0; 8];
        self.function.bar_read(0, PBA, &mut data).unwrap();
        u64::from_le_bytes(data)
    }

    /// What the host was asked for about interrupts.
    fn calls(&self) -> Vec<Call> {
        let mut calls = self.host.take_calls();
        calls.retain(|call| !matches!(call, Call::ConfigWrite(..)));
        calls
    }
}

fn message(data: u32) -> Option<MsiMessage> {
    Some(MsiMessage {
        address: ADDRESS.into(),
        data,
    })
}

#[test]
fn vectors_that_are_not_unmasked_cost_nothing() {
    let bed = Bed::new();
    for vector in 0..5 {
        bed.message(vector, 0x40);
    }
    bed.mask(1, false);
    assert_eq!(bed.calls(), []);
    assert_eq!(bed.sink.vectors_asked(), 0);
    // As Linux does: enabled with all masked by the function mask, which goes then.
    bed.msix_control(0xc000);
    assert_eq!(bed.calls(), [Call::Triggers(IrqKind::Msix, 0, vec![false])]);
    assert_eq!(bed.sink.vectors_asked(), 0);
    bed.msix_control(0x8000);
    assert_eq!(bed.calls(), [Call::Triggers(IrqKind::Msix, 1, vec![true])]);
    assert_eq!(bed.host.triggers(IrqKind::Msix), [1]);
    assert_eq!(bed.sink.vectors_asked(), 1);
    assert_eq!(bed.sink.vectors()[0].message(), message(0x40));
    bed.mask(4, false);
    assert_eq!(bed.calls(), [Call::Triggers(IrqKind::Msix, 4, vec![true])]);
}

#[test]
fn masking_leaves_the_host_alone_and_loses_nothing() {
    let bed = Bed::new();
    bed.msix_control(0x8000);
    bed.message(3, 0x43);
    bed.mask(3, false);
    bed.calls();
    let vector = bed.sink.vectors()[0].clone();
    assert!(bed.host.fire(IrqKind::Msix, 3));
    assert_eq!(bed.pending(), 0, "it was delivered");
    bed.mask(3, true);
    // What a kernel had left in the event was delivered, too.
    assert_eq!((vector.message(), bed.pending()), (None, 0));
    assert!(bed.host.fire(IrqKind::Msix, 3));
    assert!(bed.host.fire(IrqKind::Msix, 3));
    assert_eq!(bed.pending(), 1 << 3);
    // A new message while it is masked.
    bed.message(3, 0x53);
    assert_eq!(vector.message(), None);
    bed.mask(3, false);
    assert_eq!(vector.message(), message(0x53));
    assert_eq!(bed.pending(), 0);
    assert_eq!(vector.take_raised(), 2, "for the hypervisor to find");
    // The function mask is the same for all.
    bed.msix_control(0xc000);
    bed.host.fire(IrqKind::Msix, 3);
    assert_eq!((vector.message(), bed.pending()), (None, 1 << 3));
    bed.msix_control(0x8000);
    assert_eq!(vector.message(), message(0x53));
    assert_eq!(bed.calls(), [], "the host was asked for nothing");
    assert_eq!(bed.sink.vectors_asked(), 1);
}

#[test]
fn an_old_kernel_sets_all_up_again_for_one_more() {
    let mut host = FakeHost::nic();
    host.resizable = false;
    let bed = Bed::of(host, &VfioOptions::default());
    bed.msix_control(0x8000);
    bed.mask(0, false);
    bed.calls();
    bed.mask(3, false);
    assert_eq!(
        bed.calls(),
        [
            Call::Disable(IrqKind::Msix),
            Call::Triggers(IrqKind::Msix, 0, vec![true, false, false, true]),
        ]
    );
    // There is room for this one.
    bed.mask(2, false);
    assert_eq!(bed.calls(), [Call::Triggers(IrqKind::Msix, 2, vec![true])]);
    assert_eq!(bed.host.triggers(IrqKind::Msix), [0, 2, 3]);
}

#[test]
fn modes_follow_the_guest() {
    let bed = Bed::new();
    assert_eq!(bed.function.interrupt_mode(), Mode::Off);
    // A driver switches decoding on: it may use INTx.
    bed.config(COMMAND, &[0b110, 0]);
    assert_eq!(bed.function.interrupt_mode(), Mode::Intx);
    assert!(bed.pin.connected());
    assert_eq!(
        bed.calls(),
        [Call::Triggers(IrqKind::Intx, 0, vec![true]), Call::Resample]
    );
    // MSI, with two messages.
    bed.config(MSI + 4, &ADDRESS.to_le_bytes());
    bed.config(MSI + 0x0c, &[0x41, 0]);
    bed.config(MSI + 2, &[0x11, 0]);
    assert_eq!(bed.function.interrupt_mode(), Mode::Msi);
    assert!(!bed.pin.connected());
    assert_eq!(
        bed.calls(),
        [
            Call::Disable(IrqKind::Intx),
            Call::Triggers(IrqKind::Msi, 0, vec![true, true])
        ]
    );
    let vectors = bed.sink.vectors();
    assert_eq!(vectors[0].message(), message(0x40));
    assert_eq!(vectors[1].message(), message(0x41));
    // The second is masked, and waits.
    bed.config(MSI + 0x10, &[0b10, 0, 0, 0]);
    assert_eq!(vectors[1].message(), None);
    bed.host.fire(IrqKind::Msi, 1);
    let mut data = [0; 4];
    bed.function.config_read(MSI + 0x14, &mut data);
    assert_eq!(data, [0b10, 0, 0, 0]);
    bed.config(MSI + 0x0c, &[0x60, 0]);
    bed.config(MSI + 0x10, &[0; 4]);
    assert_eq!(vectors[1].message(), message(0x61));
    bed.function.config_read(MSI + 0x14, &mut data);
    assert_eq!(data, [0; 4]);
    // MSI-X comes before MSI.
    bed.msix_control(0x8000);
    assert_eq!(bed.function.interrupt_mode(), Mode::Msix);
    assert_eq!(
        bed.calls(),
        [
            Call::Disable(IrqKind::Msi),
            Call::Triggers(IrqKind::Msix, 0, vec![false])
        ]
    );
    bed.config(MSI + 2, &[0, 0]);
    bed.msix_control(0);
    assert_eq!(bed.function.interrupt_mode(), Mode::Intx);
    bed.config(COMMAND, &[0, 0]);
    assert_eq!(bed.function.interrupt_mode(), Mode::Off);
    assert!(!bed.pin.connected());
    assert_eq!(bed.calls().last(), Some(&Call::Disable(IrqKind::Intx)));
}

#[test]
fn fewer_messages_than_asked_for() {
    let mut host = FakeHost::nic();
    host.msi_limit = 1;
    let bed = Bed::of(host, &VfioOptions::default());
    bed.config(MSI + 2, &[0x21, 0]);
    assert_eq!(bed.calls(), [Call::Triggers(IrqKind::Msi, 0, vec![true])]);
    assert_eq!(bed.host.triggers(IrqKind::Msi), [0]);
    // More messages without switching it off.
    bed.config(MSI + 2, &[0x11, 0]);
    assert_eq!(
        bed.calls(),
        [
            Call::Disable(IrqKind::Msi),
            Call::Triggers(IrqKind::Msi, 0, vec![true])
        ]
    );
}

#[test]
fn without_a_pin_there_is_no_intx() {
    let mut host = FakeHost::nic();
    host.intx = 0;
    let bed = Bed::of(host, &VfioOptions::default());
    bed.config(COMMAND, &[0b111, 0]);
    assert_eq!(bed.function.interrupt_mode(), Mode::Off);
    assert_eq!(bed.calls(), []);
}

#[test]
fn what_is_not_mapped_is_passed_on() {
    let bed = Bed::new();
    bed.bar(0x2ff0, &[1, 2, 3, 4]);
    assert_eq!(
        bed.calls(),
        [Call::RegionWrite(0, 0x2ff0, vec![1, 2, 3, 4])]
    );
    bed.function.bar_write(2, 0x4, &[9]).unwrap();
    assert_eq!(bed.calls(), [Call::RegionWrite(2, 4, vec![9])]);
    // Pending bits and the ROM are not for writing.
    bed.bar(PBA, &[0xff; 8]);
    bed.function.bar_write(6, 0, &[1]).unwrap();
    assert_eq!(bed.calls(), []);
    let mut data = [0; 2];
    bed.function.bar_read(6, 0x21, &mut data).unwrap();
    assert_eq!(data, [0x21; 2]);
    assert!(bed.function.bar_read(2, 0x1f, &mut data).is_err());
    assert!(bed.function.bar_write(3, u64::MAX, &data).is_err());
    assert!(
        bed.function
            .bar_read(0, TABLE + 5 * 16 - 1, &mut data)
            .is_err()
    );
    assert!(
        bed.function
            .bar_write(0, TABLE + 5 * 16 - 1, &data)
            .is_err()
    );
}

#[test]
fn ranges_that_the_user_wants_trapped() {
    let trap = |bar, range| VfioOptions {
        rom: true,
        traps: vec![Trap { bar, range }],
    };
    let mapped = |options: &VfioOptions| {
        let bed = Bed::of(FakeHost::nic(), options);
        let list = bed.function.mappings(0);
        list.iter()
            .map(|one| (one.offset, one.pages.len_bytes()))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        mapped(&VfioOptions::default()),
        [(0, 0x2000), (0x3000, 0x1000)]
    );
    assert_eq!(
        mapped(&trap(0, Some(0x1004..0x1008))),
        [(0, 0x1000), (0x3000, 0x1000)]
    );
    assert_eq!(mapped(&trap(0, None)), []);
    for (bar, range) in [(0, Some(0x4000..0x4001)), (1, None), (5, Some(0..1))] {
        let host: Arc<dyn HostFunction> = Arc::new(FakeHost::nic());
        let (line, _pin) = FakePin::line();
        let sink = Arc::new(FakeMsiSink::default());
        let made = VfioFunction::new("nic".into(), host, &trap(bar, range), sink, line);
        assert!(
            matches!(made, Err(VfioFunctionError::NoSuchRange { .. })),
            "{bar}"
        );
    }
}

#[test]
fn a_function_that_cannot_be_reset_is_refused() {
    let mut host = FakeHost::nic();
    host.reset_fails = true;
    let (line, _pin) = FakePin::line();
    let sink = Arc::new(FakeMsiSink::default());
    let made = VfioFunction::new(
        "nic".into(),
        Arc::new(host),
        &VfioOptions::default(),
        sink,
        line,
    );
    assert!(matches!(made, Err(VfioFunctionError::Reset { .. })));
}

#[test]
fn interrupts_then_bus_mastering_then_the_reset() {
    let bed = Bed::new();
    bed.config(COMMAND, &[0b111, 0]);
    bed.msix_control(0x8000);
    bed.mask(0, false);
    bed.host.take_calls();
    let teardown = [
        Call::Disable(IrqKind::Msix),
        Call::ConfigWrite(COMMAND, vec![0b11, 0]),
        Call::Reset,
    ];
    // A reset of the machine: the guest finds nothing of before.
    bed.function.reset();
    assert_eq!(bed.host.take_calls(), teardown);
    assert_eq!(bed.function.interrupt_mode(), Mode::Off);
    let mut entry = [0; 16];
    bed.function.bar_read(0, TABLE, &mut entry).unwrap();
    assert_eq!(entry[12..], [1, 0, 0, 0]);
    // The end, once.
    bed.config(COMMAND, &[0b111, 0]);
    bed.msix_control(0x8000);
    bed.host.take_calls();
    bed.function.shutdown();
    let calls = bed.host.take_calls();
    assert_eq!(calls[..3], teardown);
    assert_eq!(
        calls[3..],
        [
            Call::Disable(IrqKind::Error),
            Call::Disable(IrqKind::Request)
        ]
    );
    let Bed { host, function, .. } = bed;
    drop(function);
    assert_eq!(host.take_calls(), []);
    assert!(host.triggers(IrqKind::Msix).is_empty());
}

#[test]
fn a_function_that_is_dropped_is_stopped() {
    let bed = Bed::new();
    bed.config(COMMAND, &[0b110, 0]);
    bed.host.take_calls();
    let Bed { host, function, .. } = bed;
    drop(function);
    assert_eq!(
        host.take_calls()[..3],
        [
            Call::Disable(IrqKind::Intx),
            Call::ConfigWrite(COMMAND, vec![0b11, 0]),
            Call::Reset
        ]
    );
}

struct OnBus {
    bed: Bed,
    mapper: Arc<FakeMapper>,
    mmio: Arc<Bus>,
    pio: Arc<Bus>,
    root: Arc<RootBus>,
    ecam: Ecam,
}

impl OnBus {
    fn new() -> Self {
        let bed = Bed::new();
        let (mmio, pio) = (Arc::new(Bus::new("mmio")), Arc::new(Bus::new("pio")));
        let windows = PciWindows {
            mmio32: 0xc000_0000..0xe000_0000,
            mmio64: 0x10_0000_0000..0x20_0000_0000,
            io: 0xc000..0xe000,
        };
        let mapper = Arc::new(FakeMapper::default());
        let root = RootBus::new(
            &mmio,
            &pio,
            Arc::new(FakeDoorbell::default()),
            Arc::new(FakePosted::default()),
            windows,
        );
        let root = Arc::new(root.with_mapper(mapper.clone()));
        root.insert(bed.function.clone(), Some(0)).unwrap();
        root.assign_resources().unwrap();
        let ecam = Ecam::new(root.clone());
        Self {
            bed,
            mapper,
            mmio,
            pio,
            root,
            ecam,
        }
    }

    fn config(&self, offset: u64, data: &[u8]) {
        self.ecam.write(offset, data).unwrap();
    }

    fn address(&self, offset: u64) -> u64 {
        let mut data = [0; 4];
        self.ecam.read(offset, &mut data).unwrap();
        u64::from(u32::from_le_bytes(data) & !0xf)
    }
}

#[test]
fn pages_follow_the_bar() {
    let bus = OnBus::new();
    assert_eq!(bus.mapper.mapped(), []);
    bus.config(4, &[0b10, 0]);
    let (first, high) = (bus.address(0x10), bus.address(0x20));
    let large = high | bus.address(0x24) << 32;
    assert!(large >= 0x10_0000_0000);
    let expected =
        |at: u64, large: u64| vec![(at, 0x2000), (at + 0x3000, 0x1000), (large, 0x1_0000)];
    assert_eq!(bus.mapper.mapped(), expected(first, large));
    // Moved while it is on; the table's page moves as what exits.
    bus.config(0x10, &0xd000_0000_u32.to_le_bytes());
    assert_eq!(bus.mapper.mapped(), expected(0xd000_0000, large));
    let mut control = [0; 4];
    bus.mmio.read(0xd000_0000 + TABLE + 12, &mut control);
    assert_eq!(control, [1, 0, 0, 0]);
    assert!(bus.mmio.read(first + TABLE, &mut control).is_none());
    // Off and on again.
    bus.config(4, &[0, 0]);
    assert_eq!(bus.mapper.mapped(), []);
    bus.config(4, &[0b11, 0]);
    assert_eq!(bus.mapper.mapped(), expected(0xd000_0000, large));
    let ports = bus.address(0x18);
    let mut data = [0; 1];
    assert!(bus.pio.read(ports + 3, &mut data).is_some());
    assert_eq!(data, [3]);
    // A reset places it where it was at first, and it is off.
    bus.root.reset().unwrap();
    assert_eq!(bus.mapper.mapped(), []);
    bus.config(4, &[0b10, 0]);
    assert_eq!(bus.mapper.mapped(), expected(first, large));
    bus.root.close();
    assert_eq!(bus.mapper.mapped(), []);
}

/// Configuration space and BARs at random: nothing panics, the hardware's decoding stays on, what is hidden is never
/// written, and after a reset all is as it was.
#[test]
fn a_guest_that_writes_anything_anywhere() {
    let bus = OnBus::new();
    let mut random = Random::new(0x9e37_79b9_7f4a_7c15);
    let snapshot = |bus: &OnBus| {
        let mut bytes = Vec::new();
        for offset in (0..0x100).step_by(4) {
            let mut data = [0; 4];
            bus.ecam.read(offset, &mut data).unwrap();
            bytes.push(data);
        }
        // What the driver did to the device's own registers is not ours to undo.
        bytes[..0x10].to_vec()
    };
    let before = snapshot(&bus);
    for _ in 0..20_000 {
        let value = random.number().to_le_bytes();
        let width = 1 << random.below(3);
        // Mostly where something is.
        let end = if random.below(4) == 0 { 0x1000 } else { 0x100 };
        let offset = random.below(end) & !(width - 1);
        let width = usize::try_from(width).unwrap();
        match random.below(8) {
            0..=3 => bus.config(offset, &value[..width]),
            4 => {
                let mut data = [0; 4];
                bus.ecam.read(offset, &mut data[..width]).unwrap();
            }
            5 => {
                let bar = u8::try_from(random.below(8)).unwrap();
                let _ = bus
                    .bed
                    .function
                    .bar_write(bar, random.below(0x5000), &value);
            }
            6 => {
                let vector = random.below(8);
                let at = TABLE + vector * 16 + random.below(16);
                let _ = bus.bed.function.bar_write(0, at, &value[..width]);
                let index = u32::try_from(vector).unwrap();
                bus.bed.host.fire(IrqKind::Msix, index);
                bus.bed.host.fire(IrqKind::Msi, index);
            }
            _ => {
                let mut data = [0; 8];
                let bar = u8::try_from(random.below(8)).unwrap();
                let _ = bus
                    .bed
                    .function
                    .bar_read(bar, random.below(0x5000), &mut data);
            }
        }
        assert_eq!(bus.bed.host.u16(COMMAND) & 0b11, 0b11);
    }
    for call in bus.bed.host.take_calls() {
        if let Call::ConfigWrite(offset, data) = call {
            let end = offset + u16::try_from(data.len()).unwrap();
            let hidden = |from, to| offset < to && from < end;
            assert!(
                !hidden(super::fake::HIDDEN, super::fake::HIDDEN + 8),
                "{offset:#x}"
            );
            assert!(
                !hidden(super::fake::SRIOV, super::fake::DVSEC),
                "{offset:#x}"
            );
            assert!(!hidden(0x10, 0x3e), "{offset:#x}");
            assert!(
                !hidden(MSI, MSI + 0x18) && !hidden(MSIX, MSIX + 12),
                "{offset:#x}"
            );
        }
    }
    bus.bed.host.put(0x06, &[0x10, 0]);
    bus.bed.host.put(0x0c, &[0, 0]);
    bus.bed.host.put(0x3e, &[0, 0]);
    bus.root.reset().unwrap();
    assert_eq!(snapshot(&bus), before);
    assert_eq!(bus.bed.function.interrupt_mode(), Mode::Off);
    assert_eq!(bus.mapper.mapped(), []);
}
