//! Offsets and bits of the registers (PCI/PCI-X Family of Gigabit Ethernet Controllers Software Developer's Manual,
//! 317453, chapter 13). Names are the manual's; all registers are 32 bits wide.

/// Device control (13.4.1).
pub const CTRL: u32 = 0x0000;
/// CTRL: full duplex.
pub const CTRL_FD: u32 = 1 << 0;
/// CTRL: set link up.
pub const CTRL_SLU: u32 = 1 << 6;
/// CTRL: speed, 1000 Mb/s.
pub const CTRL_SPEED_1000: u32 = 0b10 << 8;
/// CTRL: reset everything but the PCI configuration; clears itself.
pub const CTRL_RST: u32 = 1 << 26;
/// CTRL: VLAN mode: tags are stripped on receive and may be inserted on transmit.
pub const CTRL_VME: u32 = 1 << 30;
/// CTRL: reset the PHY.
pub const CTRL_PHY_RST: u32 = 1 << 31;

/// Device status (13.4.2), RO.
pub const STATUS: u32 = 0x0008;
/// STATUS: full duplex, 1000 Mb/s in both the resolved and the sensed speed.
pub const STATUS_FD_1000: u32 = 1 << 0 | 0b10 << 6 | 0b10 << 8;
/// STATUS: the link is up.
pub const STATUS_LU: u32 = 1 << 1;

/// EEPROM/Flash control (13.4.3).
pub const EECD: u32 = 0x0010;
/// EEPROM read (13.4.4).
pub const EERD: u32 = 0x0014;
/// Extended device control (13.4.5).
pub const CTRL_EXT: u32 = 0x0018;
/// CTRL_EXT: reload the EEPROM; clears itself.
pub const CTRL_EXT_EE_RST: u32 = 1 << 13;
/// MDI control (13.4.8).
pub const MDIC: u32 = 0x0020;
/// Flow control address, low (13.4.9).
pub const FCAL: u32 = 0x0028;
/// Flow control address, high (13.4.10).
pub const FCAH: u32 = 0x002c;
/// Flow control type (13.4.11).
pub const FCT: u32 = 0x0030;
/// VLAN Ethertype (13.4.12).
pub const VET: u32 = 0x0038;
/// Flow control transmit timer value (13.4.14).
pub const FCTTV: u32 = 0x0170;
/// Transmit configuration word (13.4.15).
pub const TXCW: u32 = 0x0178;
/// LED control (13.4.13).
pub const LEDCTL: u32 = 0x0e00;
/// Packet buffer allocation (13.4.17).
pub const PBA: u32 = 0x1000;

/// Interrupt cause read (13.4.17); read clears.
pub const ICR: u32 = 0x00c0;
/// Interrupt throttling (13.4.18).
pub const ITR: u32 = 0x00c4;
/// Interrupt cause set (13.4.19).
pub const ICS: u32 = 0x00c8;
/// Interrupt mask set/read (13.4.20).
pub const IMS: u32 = 0x00d0;
/// Interrupt mask clear (13.4.21), WO.
pub const IMC: u32 = 0x00d8;

/// ICR: a transmit descriptor was written back.
pub const ICR_TXDW: u32 = 1 << 0;
/// ICR: the transmit queue is empty.
pub const ICR_TXQE: u32 = 1 << 1;
/// ICR: the link status changed.
pub const ICR_LSC: u32 = 1 << 2;
/// ICR: few receive descriptors are left.
pub const ICR_RXDMT0: u32 = 1 << 4;
/// ICR: frames had nowhere to go.
pub const ICR_RXO: u32 = 1 << 6;
/// ICR: a frame was received, and the receive timer is up.
pub const ICR_RXT0: u32 = 1 << 7;
/// ICR: an MDI access is complete.
pub const ICR_MDAC: u32 = 1 << 9;
/// ICR: few transmit descriptors wait.
pub const ICR_TXD_LOW: u32 = 1 << 15;
/// All causes of this chip.
pub const ICR_ALL: u32 = 0x0001_f6ff;

/// Receive control (13.4.22).
pub const RCTL: u32 = 0x0100;
/// RCTL: enable.
pub const RCTL_EN: u32 = 1 << 1;
/// RCTL: unicast promiscuous.
pub const RCTL_UPE: u32 = 1 << 3;
/// RCTL: multicast promiscuous.
pub const RCTL_MPE: u32 = 1 << 4;
/// RCTL: long packets, up to 16,384 bytes.
pub const RCTL_LPE: u32 = 1 << 5;
/// RCTL: loopback mode.
pub const RCTL_LBM: u32 = 0b11 << 6;
/// RCTL: shift of the receive descriptor minimum threshold size.
pub const RCTL_RDMTS_SHIFT: u32 = 8;
/// RCTL: shift of the multicast offset.
pub const RCTL_MO_SHIFT: u32 = 12;
/// RCTL: accept broadcast.
pub const RCTL_BAM: u32 = 1 << 15;
/// RCTL: shift of the buffer size.
pub const RCTL_BSIZE_SHIFT: u32 = 16;
/// RCTL: VLAN filter.
pub const RCTL_VFE: u32 = 1 << 18;
/// RCTL: compare the canonical form indicator of tags.
pub const RCTL_CFIEN: u32 = 1 << 19;
/// RCTL: its required value.
pub const RCTL_CFI: u32 = 1 << 20;
/// RCTL: buffer size extension: sizes are 16 times what they were.
pub const RCTL_BSEX: u32 = 1 << 25;
/// RCTL: strip the frame check sequence.
pub const RCTL_SECRC: u32 = 1 << 26;

/// Transmit control (13.4.33).
pub const TCTL: u32 = 0x0400;
/// TCTL: enable.
pub const TCTL_EN: u32 = 1 << 1;
/// TCTL: pad short packets.
pub const TCTL_PSP: u32 = 1 << 3;
/// Transmit inter-packet gap (13.4.34).
pub const TIPG: u32 = 0x0410;
/// Adaptive IFS throttle (13.4.35).
pub const AIFS: u32 = 0x0458;

/// Flow control receive threshold, low (13.4.23).
pub const FCRTL: u32 = 0x2160;
/// Flow control receive threshold, high (13.4.24).
pub const FCRTH: u32 = 0x2168;
/// Receive descriptor base, low (13.4.25); high, length, head and tail follow the layout of a ring.
pub const RDBAL: u32 = 0x2800;
/// Receive descriptor tail (13.4.29).
pub const RDT: u32 = 0x2818;
/// Receive delay timer, in 1.024 µs (13.4.30).
pub const RDTR: u32 = 0x2820;
/// RDTR: flush partial descriptor block: the interrupt comes now.
pub const RDTR_FPD: u32 = 1 << 31;
/// Receive descriptor control (13.4.31).
pub const RXDCTL: u32 = 0x2828;
/// Receive interrupt absolute delay, in 1.024 µs (13.4.32).
pub const RADV: u32 = 0x282c;
/// Receive small packet detect interrupt (13.4.33).
pub const RSRPD: u32 = 0x2c00;
/// Transmit DMA control (13.4.36).
pub const TXDMAC: u32 = 0x3000;
/// Transmit descriptor base, low (13.4.37).
pub const TDBAL: u32 = 0x3800;
/// Transmit descriptor tail (13.4.41).
pub const TDT: u32 = 0x3818;
/// Transmit interrupt delay, in 1.024 µs (13.4.42).
pub const TIDV: u32 = 0x3820;
/// Transmit descriptor control (13.4.43).
pub const TXDCTL: u32 = 0x3828;
/// TXDCTL: shift of the low threshold, in groups of eight descriptors.
pub const TXDCTL_LWTHRESH_SHIFT: u32 = 25;
/// Transmit absolute interrupt delay, in 1.024 µs (13.4.44).
pub const TADV: u32 = 0x382c;
/// TCP segmentation pad and minimum threshold (13.4.45).
pub const TSPMT: u32 = 0x3830;

/// First statistics register (13.7).
pub const STATISTICS: u32 = 0x4000;
/// The end of the statistics registers.
pub const STATISTICS_END: u32 = 0x4100;

/// Receive checksum control (13.5.1.1).
pub const RXCSUM: u32 = 0x5000;
/// RXCSUM: where the packet checksum starts.
pub const RXCSUM_PCSS: u32 = 0xff;
/// RXCSUM: check IP header checksums.
pub const RXCSUM_IPOFL: u32 = 1 << 8;
/// RXCSUM: check TCP and UDP checksums.
pub const RXCSUM_TUOFL: u32 = 1 << 9;
/// Multicast table array, 128 registers (13.5.2).
pub const MTA: u32 = 0x5200;
/// Receive addresses, 16 pairs of low and high (13.5.3, 13.5.4).
pub const RAL: u32 = 0x5400;
/// The end of the receive addresses.
pub const RAL_END: u32 = 0x5480;
/// RAH: the address is valid.
pub const RAH_AV: u32 = 1 << 31;
/// VLAN filter table array, 128 registers (13.5.5).
pub const VFTA: u32 = 0x5600;
/// Wake-up control (13.6.1).
pub const WUC: u32 = 0x5800;
/// Wake-up filter control (13.6.2).
pub const WUFC: u32 = 0x5808;
/// Management control (13.6.6).
pub const MANC: u32 = 0x5820;
/// IP address valid (13.6.4).
pub const IPAV: u32 = 0x5838;
/// Flexible filter length table (13.6.9).
pub const FFLT: u32 = 0x5f00;
