//! The configuration space that the guest sees, bit by bit.

use super::fake::{
    AER, ARI, Call, DVSEC, EXPRESS, FakeHost, HIDDEN, MSI, MSIX, PM, SERIAL_NUMBER, SRIOV, VENDOR,
};
use super::overlay::{Overlay, OverlayError};
use crate::pci::config::{
    CAPABILITIES_POINTER, COMMAND, HEADER_TYPE, INTERRUPT_LINE, INTERRUPT_PIN, STATUS,
};

struct Guest {
    host: FakeHost,
    overlay: Overlay,
}

impl Guest {
    fn of(host: FakeHost) -> Self {
        let overlay = Overlay::new("nic", &host, true).unwrap();
        overlay.start(&host).unwrap();
        host.take_calls();
        Self { host, overlay }
    }

    fn nic() -> Self {
        Self::of(FakeHost::nic())
    }

    fn read<const N: usize>(&self, offset: u16) -> [u8; N] {
        let mut data = [0; N];
        self.overlay.read(&self.host, offset, &mut data);
        data
    }

    fn u16(&self, offset: u16) -> u16 {
        u16::from_le_bytes(self.read(offset))
    }

    fn u32(&self, offset: u16) -> u32 {
        u32::from_le_bytes(self.read(offset))
    }

    fn write(&mut self, offset: u16, data: &[u8]) {
        let _ = self.overlay.write(&self.host, offset, data);
    }

    /// Writes and returns what reached the hardware.
    fn written(&mut self, offset: u16, data: &[u8]) -> Vec<(u16, Vec<u8>)> {
        self.host.take_calls();
        self.write(offset, data);
        self.host
            .take_calls()
            .into_iter()
            .map(|call| match call {
                Call::ConfigWrite(offset, data) => (offset, data),
                other => panic!("{other:?}"),
            })
            .collect()
    }

    fn capabilities(&self) -> Vec<(u16, u8)> {
        let mut list = Vec::new();
        let [mut at] = self.read(CAPABILITIES_POINTER);
        while at != 0 {
            assert!(list.len() < 48);
            let [id, next] = self.read(at.into());
            list.push((u16::from(at), id));
            at = next;
        }
        list
    }
}

#[test]
fn identity_is_the_hardwares_and_cannot_be_written() {
    let mut guest = Guest::nic();
    assert_eq!(guest.u32(0x00), 0x10d3_8086);
    assert_eq!(guest.u32(0x08), 0x0200_0002);
    assert_eq!(guest.u32(0x2c), 0x5678_1234);
    // Alone in its device, and on pin A whatever it has on the host.
    assert_eq!(guest.read(HEADER_TYPE), [0]);
    assert_eq!(guest.read(INTERRUPT_PIN), [1]);
    for offset in [
        0x00,
        0x02,
        0x08,
        0x0a,
        HEADER_TYPE,
        0x2c,
        0x2e,
        INTERRUPT_PIN,
    ] {
        let before: [u8; 1] = guest.read(offset);
        assert_eq!(guest.written(offset, &[!before[0]]), [], "{offset:#x}");
        assert_eq!(guest.read(offset), before, "{offset:#x}");
    }
    // The line is the guest's note to itself.
    assert_eq!(guest.written(INTERRUPT_LINE, &[11]), []);
    assert_eq!(guest.read(INTERRUPT_LINE), [11]);
}

#[test]
fn a_bridge_is_refused() {
    let host = FakeHost::nic();
    host.put(HEADER_TYPE, &[0x81]);
    assert!(matches!(
        Overlay::new("nic", &host, true),
        Err(OverlayError::HeaderType(1))
    ));
}

#[test]
fn command_bit_by_bit() {
    let mut guest = Guest::nic();
    // Decoding is on in the hardware, off for the guest.
    assert_eq!((guest.host.u16(COMMAND), guest.u16(COMMAND)), (0b11, 0));
    for bit in 0..16 {
        let value = 1u16 << bit;
        guest.write(COMMAND, &value.to_le_bytes());
        let ours = value & 0b11;
        let passed = value & (1 << 2 | 1 << 6 | 1 << 8 | 1 << 10);
        assert_eq!(guest.u16(COMMAND), ours | passed, "bit {bit}");
        assert_eq!(guest.host.u16(COMMAND), 0b11 | passed, "bit {bit}");
    }
    // One byte of it, and the whole dword.
    guest.write(COMMAND, &[0b110]);
    assert_eq!(
        (guest.host.u16(COMMAND), guest.u16(COMMAND)),
        (0b111, 0b110)
    );
    guest.write(COMMAND + 1, &[0b100]);
    assert_eq!(guest.host.u16(COMMAND), 0x407);
    guest.write(COMMAND, &[0, 0, 0, 0xf9]);
    assert_eq!(guest.host.u16(COMMAND), 0b11);
    guest.write(COMMAND, &[0b100, 0]);
    guest.overlay.reset(&guest.host);
    assert_eq!((guest.host.u16(COMMAND), guest.u16(COMMAND)), (0b11, 0));
}

#[test]
fn status_is_the_hardwares_but_for_the_list() {
    let mut guest = Guest::nic();
    for bit in 0..16 {
        let value = 1u16 << bit;
        guest.host.put(STATUS, &value.to_le_bytes());
        assert_eq!(guest.u16(STATUS), value | 1 << 4, "bit {bit}");
    }
    assert_eq!(guest.written(STATUS, &[0, 0xf9]), [(STATUS, vec![0, 0xf9])]);
    // Without capabilities the hardware's bit does not show.
    let guest = Guest::of(FakeHost::bare());
    guest.host.put(STATUS, &[0xff, 0xff]);
    assert_eq!(guest.u16(STATUS), 0xffef);
    assert_eq!(guest.capabilities(), []);
}

#[test]
fn the_list_leads_past_what_is_hidden() {
    let mut guest = Guest::nic();
    assert_eq!(
        guest.capabilities(),
        [
            (PM, 1),
            (MSI, 5),
            (VENDOR, 9),
            (MSIX, 0x11),
            (EXPRESS, 0x10)
        ]
    );
    for offset in (HIDDEN..HIDDEN + 8).step_by(4) {
        assert_eq!(guest.u32(offset), 0);
        assert_eq!(guest.written(offset, &[0xff; 4]), []);
        assert_eq!(guest.u32(offset), 0);
    }
    // Headers are ours, what follows in a vendor's capability is the hardware's.
    assert_eq!(
        guest.written(VENDOR, &[0xff; 4]),
        [(VENDOR + 2, vec![0xff; 2])]
    );
    assert_eq!(guest.read(VENDOR + 4), [0xbb, 0xcc, 0xdd, 0xee]);
    assert_eq!(guest.capabilities().len(), 5);
}

#[test]
fn lists_that_do_not_end() {
    let host = FakeHost::nic();
    // Back to the start, and the extended one to itself.
    host.put(EXPRESS + 1, &[0x40]);
    host.put(DVSEC, &(u32::from(AER) << 20 | 0x0001_0023).to_le_bytes());
    let guest = Guest::of(host);
    assert_eq!(guest.capabilities().len(), 5);
    // To the last dword.
    let host = FakeHost::nic();
    host.put(0x34, &[0xff]);
    host.put(0xfc, &[0x05, 0xfd, 0xff, 0xff]);
    assert_eq!(Guest::of(host).capabilities(), []);
}

#[test]
fn power_states_stay_here() {
    let mut guest = Guest::nic();
    // No PME# from any state.
    assert_eq!(guest.u16(PM + 2), 0x0603);
    assert_eq!(guest.u16(PM + 4), 1 << 3);
    for state in [3, 1, 0] {
        assert_eq!(guest.written(PM + 4, &[state, 0x81, 0xff, 0xff]), []);
        assert_eq!(guest.read(PM + 4), [state | 1 << 3, 0, 0, 0]);
    }
}

#[test]
fn express_is_an_integrated_endpoint_without_a_link() {
    let mut guest = Guest::nic();
    assert_eq!(guest.u16(EXPRESS + 2), 0x0092);
    assert_eq!(guest.u32(EXPRESS + 4), 0x1000_80c1);
    for offset in [0x0c, 0x10, 0x14, 0x18, 0x1c, 0x20, 0x2c, 0x30, 0x34, 0x38] {
        assert_eq!(guest.u32(EXPRESS + offset), 0, "{offset:#x}");
        assert_eq!(guest.written(EXPRESS + offset, &[0xff; 4]), []);
    }
    // Neither LTR nor OBFF.
    assert_eq!(guest.u32(EXPRESS + 0x24), 0x1f);
    // Device control and status are the hardware's, a function-level reset by the host among them.
    let written = guest.written(EXPRESS + 8, &[0x10, 0xa8]);
    assert_eq!(written, [(EXPRESS + 8, vec![0x10, 0xa8])]);
    guest.host.put(EXPRESS + 0x0a, &[0x2a]);
    assert_eq!(guest.read(EXPRESS + 0x0a), [0x2a]);
    let written = guest.written(EXPRESS + 0x28, &[1, 0]);
    assert_eq!(written, [(EXPRESS + 0x28, vec![1, 0])]);
}

#[test]
fn a_legacy_endpoint_is_conventional() {
    let host = FakeHost::nic();
    host.put(EXPRESS + 2, &[0x12, 0]);
    let guest = Guest::of(host);
    assert!(guest.capabilities().iter().all(|(_, id)| *id != 0x10));
    assert_eq!(guest.u32(EXPRESS), 0);
    assert_eq!(guest.u32(0x100), u32::MAX);
}

#[test]
fn the_extended_list_has_what_is_passed_alone() {
    let mut guest = Guest::nic();
    // The head is hidden: a null capability leads on.
    assert_eq!(guest.u32(0x100), u32::from(SERIAL_NUMBER) << 20);
    assert_eq!(
        guest.u32(SERIAL_NUMBER),
        u32::from(DVSEC) << 20 | 0x0001_0003
    );
    assert_eq!(guest.u32(DVSEC), 0x0001_0023);
    assert_eq!(guest.u32(SERIAL_NUMBER + 4), 0x5a5a_5a5a);
    for offset in [AER + 4, ARI, ARI + 4, SRIOV, SRIOV + 4, SRIOV + 8] {
        assert_eq!(guest.u32(offset), 0, "{offset:#x}");
        assert_eq!(guest.written(offset, &[0xff; 4]), [], "{offset:#x}");
    }
    assert_eq!(guest.written(DVSEC, &[0xff; 4]), []);
    let written = guest.written(DVSEC + 8, &[1, 2]);
    assert_eq!(written, [(DVSEC + 8, vec![1, 2])]);
    // An empty list.
    let host = FakeHost::nic();
    host.put(AER, &[0; 4]);
    assert_eq!(Guest::of(host).u32(0x100), 0);
}

#[test]
fn msi_bit_by_bit() {
    let mut guest = Guest::nic();
    assert_eq!(guest.u16(MSI + 2), 0x0184);
    assert_eq!(guest.overlay.msi_control(), None);
    for (offset, mask) in [
        (MSI + 2, 0x0071_u32),
        (MSI + 4, 0xffff_fffc),
        (MSI + 8, 0xffff_ffff),
        (MSI + 0x0c, 0x0000_ffff),
        (MSI + 0x10, 0x0000_000f),
        (MSI + 0x14, 0),
    ] {
        let before = guest.u32(offset & !3);
        let shift = u32::from(offset % 4) * 8;
        for bit in 0..32 - shift {
            let value = 1u32 << bit;
            let bytes = value.to_le_bytes();
            let width = if shift == 0 { 4 } else { 2 };
            assert_eq!(guest.written(offset, &bytes[..width]), []);
            let expected = before & !(mask << shift) | (value & mask) << shift;
            assert_eq!(guest.u32(offset & !3), expected, "{offset:#x}, bit {bit}");
        }
        guest.write(offset, &[0; 2]);
        if shift == 0 {
            guest.write(offset, &[0; 4]);
        }
    }
    // 4 messages, even if 32 are asked for.
    guest.write(MSI + 4, &0xfee0_1000_u32.to_le_bytes());
    guest.write(MSI + 0x0c, &0x4040_u16.to_le_bytes());
    guest.write(MSI + 0x10, &[0b10, 0, 0, 0]);
    guest.write(MSI + 2, &[0x51, 0]);
    let control = guest.overlay.msi_control().unwrap();
    assert_eq!((control.count, control.masked), (4, 0b10));
    assert_eq!((control.address, control.data), (0xfee0_1000, 0x4040));
    guest.overlay.set_msi_pending(0b101);
    assert_eq!(guest.u32(MSI + 0x14), 0b101);
    assert!(guest.overlay.shows_msi_pending(MSI + 0x14, 1));
    assert!(!guest.overlay.shows_msi_pending(MSI + 0x10, 4));
}

#[test]
fn msix_bit_by_bit() {
    let mut guest = Guest::nic();
    assert_eq!(guest.u32(MSIX + 4), 0x2000);
    assert_eq!(guest.u32(MSIX + 8), 0x2800);
    for bit in 0..16 {
        let value = 1u16 << bit;
        assert_eq!(guest.written(MSIX + 2, &value.to_le_bytes()), []);
        assert_eq!(guest.u16(MSIX + 2), value & 0xc000 | 4, "bit {bit}");
        assert_eq!(guest.overlay.msix_control().is_some(), bit == 15);
    }
    for offset in [MSIX + 4, MSIX + 8] {
        let before = guest.u32(offset);
        assert_eq!(guest.written(offset, &[0xff; 4]), []);
        assert_eq!(guest.u32(offset), before);
    }
}

#[test]
fn bars_are_sized_here() {
    let mut guest = Guest::nic();
    let expected = [
        (0x10, 0xffff_c000),
        (0x14, 0),
        (0x18, 0xffff_ffe1),
        (0x1c, 0xffff_ff80),
        (0x20, 0xffff_000c),
        (0x24, 0xffff_ffff),
        (0x30, 0xffff_0001),
    ];
    for (offset, mask) in expected {
        assert_eq!(guest.written(offset, &[0xff; 4]), [], "{offset:#x}");
        assert_eq!(guest.u32(offset), mask, "{offset:#x}");
    }
    let host = FakeHost::nic();
    let mut overlay = Overlay::new("nic", &host, false).unwrap();
    let _ = overlay.write(&host, 0x30, &[0xff; 4]);
    let mut data = [0xff; 4];
    overlay.read(&host, 0x30, &mut data);
    assert_eq!(data, [0; 4], "rombar=off");
}

#[test]
fn the_rom_is_decoded_when_it_is_enabled() {
    let mut guest = Guest::nic();
    guest.write(0x30, &0xc100_0000_u32.to_le_bytes());
    let changes = guest.overlay.write(&guest.host, COMMAND, &[0b10, 0]);
    assert!(changes.iter().all(|change| change.bar != 6));
    let changes = guest.overlay.write(&guest.host, 0x30, &[1, 0, 0, 0xc1]);
    assert_eq!(changes.len(), 1);
    assert_eq!((changes[0].bar, changes[0].new), (6, Some(0xc100_0000)));
    let changes = guest.overlay.write(&guest.host, 0x30, &[0, 0, 0, 0xc1]);
    assert_eq!((changes[0].bar, changes[0].new), (6, None));
}

#[test]
fn registers_of_no_capability_are_the_drivers_affair() {
    let mut guest = Guest::nic();
    guest.host.put(0xf0, &[1, 2, 3, 4]);
    assert_eq!(guest.read(0xf1), [2, 3]);
    assert_eq!(guest.written(0xf0, &[9]), [(0xf0, vec![9])]);
    // What the hardware does not say.
    let guest = Guest::of(FakeHost::bare());
    assert_eq!(guest.read(0x100), [0xff; 4]);
    assert_eq!(guest.read(0xffc), [0xff; 4]);
}
