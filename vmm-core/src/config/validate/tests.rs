//! Each mistake, and the line for it.

use super::super::{CpuAffinity, MachineFile, NetInterface};
use super::*;

fn machine() -> MachineConfig {
    let file = MachineFile {
        kernel: Some("/k".into()),
        initrd: Some("/i".into()),
        ..MachineFile::default()
    };
    file.complete().unwrap()
}

/// The message for the machine that `change` makes of a good one.
fn message(change: impl FnOnce(&mut MachineConfig)) -> String {
    let mut config = machine();
    assert_eq!(config.validate(), Ok(()));
    change(&mut config);
    config.validate().unwrap_err().to_string()
}

fn accepted(change: impl FnOnce(&mut MachineConfig)) {
    let mut config = machine();
    change(&mut config);
    assert_eq!(config.validate(), Ok(()));
}

fn disk(path: &str, readonly: bool) -> DiskConfig {
    DiskConfig {
        path: path.into(),
        interface: DiskInterface::Virtio,
        media: DiskMedia::Disk,
        readonly,
        direct: false,
        serial: None,
    }
}

fn disk_with_serial(serial: &str) -> Vec<DiskConfig> {
    vec![DiskConfig {
        serial: Some(serial.into()),
        ..disk("/d", false)
    }]
}

fn net(tap: &str, mac: Option<&str>) -> NetConfig {
    NetConfig {
        network: Network::Tap(tap.into()),
        interface: NetInterface::Virtio,
        mac: mac.map(Into::into),
    }
}

fn affinity(vcpu: u32, host_cpus: &[u32]) -> CpuAffinity {
    CpuAffinity {
        vcpu,
        host_cpus: host_cpus.to_vec(),
    }
}

#[test]
fn no_cpus() {
    assert_eq!(
        message(|m| m.cpus.count = 0),
        "a guest with 0 CPUs cannot run: give it at least 1"
    );
}

#[test]
fn affinity_beyond_the_last_vcpu() {
    accepted(|m| m.cpus.affinity = vec![affinity(0, &[3])]);
    assert_eq!(
        message(|m| {
            m.cpus.count = 2;
            m.cpus.affinity = vec![affinity(2, &[0])];
        }),
        "there is an affinity for vCPU 2, but the last of 2 vCPUs is number 1"
    );
}

#[test]
fn affinity_twice_or_empty() {
    assert_eq!(
        message(|m| m.cpus.affinity = vec![affinity(0, &[0]), affinity(0, &[1])]),
        "vCPU 0 has two affinities: join them, as in 0@0+2"
    );
    assert_eq!(
        message(|m| m.cpus.affinity = vec![affinity(0, &[])]),
        "the affinity of vCPU 0 names no host CPU: name at least one, or leave it out"
    );
}

#[test]
fn memory_size() {
    for mib in [64, 66, 512, 5 << 10] {
        accepted(|m| m.memory.size_bytes = mib << 20);
    }
    for (size_bytes, expected) in [
        (512, "memory of 512 bytes is too little: did you mean 512M?"),
        (1, "memory of 1 is too little: give the guest at least 64M"),
        (
            62 << 20,
            "memory of 62M is too little: give the guest at least 64M",
        ),
        (
            65 << 20,
            "memory of 65M is not a multiple of 2M: 64M and 66M are",
        ),
    ] {
        assert_eq!(message(|m| m.memory.size_bytes = size_bytes), expected);
    }
}

#[test]
fn empty_paths() {
    for (what, expected) in [
        (message(|m| m.boot.kernel = "".into()), "the kernel"),
        (message(|m| m.boot.initrd = Some("".into())), "the initrd"),
        (message(|m| m.disks = vec![disk("", false)]), "a disk"),
        (
            message(|m| m.serials = vec![CharTarget::File("".into())]),
            "serial port COM1",
        ),
        (
            message(|m| m.console = Some(CharTarget::Socket("".into()))),
            "the console",
        ),
    ] {
        assert_eq!(what, format!("the path of {expected} is empty: give one"));
    }
}

#[test]
fn command_line() {
    accepted(|m| m.boot.cmdline = "x".repeat(65535));
    assert_eq!(
        message(|m| m.boot.cmdline = "x".repeat(65536)),
        "the kernel command line has 65536 bytes: at most 65535 fit"
    );
    for bad in ["a\nb", "a\r", "a\0b"] {
        assert_eq!(
            message(|m| m.boot.cmdline = bad.into()),
            "the kernel command line contains a line break or a NUL: write it as one line"
        );
    }
}

#[test]
fn disk_serial() {
    accepted(|m| m.disks = disk_with_serial("12345678901234567890"));
    assert_eq!(
        message(|m| m.disks = disk_with_serial("123456789012345678901")),
        "disk serial \"123456789012345678901\" has 21 bytes: at most 20 fit"
    );
    assert_eq!(
        message(|m| m.disks = disk_with_serial("né")),
        "disk serial \"né\" may hold printable ASCII characters only"
    );
}

#[test]
fn disk_twice() {
    accepted(|m| m.disks = vec![disk("/a", true), disk("/a", true), disk("/b", false)]);
    for other in ["/a", "/./a", "//a"] {
        assert_eq!(
            message(|m| m.disks = vec![disk("/a", true), disk(other, false)]),
            format!("disk {other} is given twice: give it once, or readonly=on with both")
        );
    }
}

#[test]
fn ide_drives() {
    let ide = |path: &str, media| DiskConfig {
        interface: DiskInterface::Ide,
        media,
        ..disk(path, false)
    };
    let count = |count: usize| {
        let one = |i| ide(&format!("/d{i}"), DiskMedia::Disk);
        [disk("/v", false)]
            .into_iter()
            .chain((0..count).map(one))
            .collect()
    };
    accepted(|m| m.disks = count(4));
    assert_eq!(
        message(|m| m.disks = count(5)),
        "5 disks have if=ide: there are at most 4; use if=virtio for the others"
    );
    let cdrom = DiskConfig {
        interface: DiskInterface::Virtio,
        ..ide("/x.iso", DiskMedia::Cdrom)
    };
    assert_eq!(
        message(|m| m.disks = vec![cdrom]),
        "disk /x.iso is a CD-ROM, which only IDE has: add if=ide"
    );
    // Read-only by its nature, so it may be given twice.
    let cdrom = ide("/x.iso", DiskMedia::Cdrom);
    accepted(|m| m.disks = vec![cdrom.clone(), cdrom]);
}

#[test]
fn tap_name() {
    accepted(|m| m.nets = vec![net("tap0", None), net("exactly-15-char", None)]);
    for name in [
        "",
        "sixteen-chars-xx",
        "a b",
        "a/b",
        "a:b",
        "tap%d",
        ".",
        "..",
    ] {
        assert_eq!(
            message(|m| m.nets = vec![net(name, None)]),
            format!(
                "{name:?} cannot be the name of a TAP interface: names have 1 to 15 bytes without spaces, '/', \
                 ':' or '%'"
            )
        );
    }
    assert_eq!(
        message(|m| m.nets = vec![net("t", None), net("t", None)]),
        "TAP t is given twice: each network interface needs its own"
    );
}

#[test]
fn new_taps_and_bridges() {
    let new = |bridge: Option<&str>| NetConfig {
        network: Network::NewTap {
            bridge: bridge.map(Into::into),
        },
        ..net("", None)
    };
    accepted(|m| m.nets = vec![new(None), new(None), new(Some("br0")), new(Some("br0"))]);
    assert_eq!(
        message(|m| m.nets = vec![new(Some("br/0"))]),
        "\"br/0\" cannot be the name of a bridge: names have 1 to 15 bytes without spaces, '/', ':' or '%'"
    );
}

#[test]
fn forwarded_ports() {
    let user = |forwards: &[&str]| NetConfig {
        network: Network::User {
            hostfwd: forwards.iter().map(|text| text.parse().unwrap()).collect(),
        },
        ..net("", None)
    };
    accepted(|m| m.nets = vec![user(&["tcp:1-1", "udp:1-1"]), user(&["tcp:2-1"]), user(&[])]);
    for nets in [
        vec![user(&["tcp:1-1", "tcp:127.0.0.1:1-2"])],
        vec![user(&["tcp:1-1"]), user(&["tcp:127.0.0.1:1-2"])],
    ] {
        assert_eq!(
            message(|m| m.nets = nets),
            "hostfwd=tcp:127.0.0.1:1-2 listens where another one does: each needs its own port or address"
        );
    }
}

#[test]
fn mac_address() {
    accepted(|m| {
        m.nets = vec![
            net("a", Some("02:00:00:00:00:Fe")),
            net("b", None),
            net("c", None),
        ]
    });
    for mac in [
        "",
        "02:00:00:00:00",
        "02:00:00:00:00:01:02",
        "02-00-00-00-00-01",
        "2:0:0:0:0:1",
        "+2:00:00:00:00:01",
    ] {
        assert_eq!(
            message(|m| m.nets = vec![net("a", Some(mac))]),
            format!(
                "{mac:?} is not a MAC address: write six pairs of hexadecimal digits, such as 02:00:00:00:00:01"
            )
        );
    }
    for mac in [
        "01:00:5e:00:00:01",
        "ff:ff:ff:ff:ff:ff",
        "00:00:00:00:00:00",
    ] {
        assert_eq!(
            message(|m| m.nets = vec![net("a", Some(mac))]),
            format!(
                "MAC address {mac} cannot be that of one interface: make the first pair even and not all pairs \
                 zero"
            )
        );
    }
    assert_eq!(
        message(|m| m.nets = vec![
            net("a", Some("02:00:00:00:00:aa")),
            net("b", Some("02:00:00:00:00:AA"))
        ]),
        "MAC address 02:00:00:00:00:AA is given twice: each network interface needs its own"
    );
}

#[test]
fn too_many_serials() {
    accepted(|m| m.serials = vec![CharTarget::Null; 4]);
    assert_eq!(
        message(|m| m.serials = vec![CharTarget::Null; 5]),
        "5 serial ports are given: there are at most 4, COM1 to COM4"
    );
}

#[test]
fn stdio_twice() {
    assert_eq!(
        message(|m| m.console = Some(CharTarget::Stdio)),
        "stdio is wanted by serial port COM1 and by the console: give one of them null, pty, file=PATH, \
         socket=PATH or tcp=HOST:PORT"
    );
    assert!(
        message(|m| m.serials = vec![CharTarget::Stdio, CharTarget::Pty, CharTarget::Stdio])
            .starts_with("stdio is wanted by serial port COM1 and by serial port COM3: ")
    );
}

#[test]
fn path_twice() {
    let file = |path: &str| CharTarget::File(path.into());
    accepted(|m| m.serials = vec![file("/dev/null"), file("/dev/null")]);
    for (first, message) in [
        ("the kernel", message(|m| m.serials = vec![file("/k")])),
        ("the initrd", message(|m| m.serials = vec![file("/./i")])),
        (
            "a disk",
            message(|m| {
                m.disks = vec![disk("/d", true)];
                m.serials = vec![file("/d")];
            }),
        ),
    ] {
        assert!(
            message.ends_with(&format!(
                "is used by {first} and by serial port COM1: give each its own"
            )),
            "{message}"
        );
    }
    assert_eq!(
        message(|m| {
            m.serials = vec![CharTarget::Null, CharTarget::Socket("/s".into())];
            m.console = Some(file("/s"));
        }),
        "/s is used by serial port COM2 and by the console: give each its own"
    );
}

#[test]
fn address_twice() {
    let tcp = |address: &str| CharTarget::Tcp(address.into());
    accepted(|m| m.serials = vec![tcp("h:1"), tcp("h:2"), tcp("h:0"), tcp("h:0")]);
    assert_eq!(
        message(|m| {
            m.serials = vec![tcp("h:1")];
            m.console = Some(tcp("h:1"));
        }),
        "h:1 is used by serial port COM1 and by the console: give each its own"
    );
}

#[test]
fn socket_path() {
    let path = |len: usize| CharTarget::Socket(format!("/{}", "s".repeat(len - 1)).into());
    accepted(|m| m.serials = vec![path(107)]);
    assert!(message(|m| m.serials = vec![path(108)]).ends_with(" has 108 bytes: at most 107 fit"));
}

#[test]
fn shares() {
    let share = |path: &str, tag: &str| ShareConfig {
        path: path.into(),
        tag: tag.into(),
    };
    let longest = "t".repeat(36);
    accepted(|m| m.shares = vec![share("/a", "one"), share("/a", &longest)]);
    assert_eq!(
        message(|m| m.shares = vec![share("", "one")]),
        "the path of a share is empty: give one"
    );
    for tag in ["", &"t".repeat(37), "a\nb", "a\0"] {
        assert_eq!(
            message(|m| m.shares = vec![share("/a", tag)]),
            format!(
                "tag {tag:?} cannot name a share: give 1 to 36 bytes without control characters"
            )
        );
    }
    assert_eq!(
        message(|m| m.shares = vec![share("/a", "t"), share("/b", "t")]),
        "two shares have the tag \"t\": give each its own"
    );
}
