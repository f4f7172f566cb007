//! What of the host lives on a function: mounted file systems, swap, network interfaces.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::Path;

use serde::Serialize;

use super::function::{PciFunction, folder};
use super::root::{Host, link_name, list, read};

/// Bit of an interface's `flags` (`linux/if.h`).
const IFF_UP: u32 = 1;
/// How deep holders may be stacked: a partition, encryption, volumes, a RAID over them.
const HOLDERS_DEPTH: u32 = 8;

/// One way in which the host uses a function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "use")]
pub enum Usage {
    /// A file system.
    Mounted {
        /// The block device.
        device: String,
        /// Where.
        at: String,
    },
    /// Swap space.
    Swap {
        /// The block device.
        device: String,
    },
    /// A block device that someone holds exclusively.
    Held {
        /// The block device.
        device: String,
    },
    /// A network interface with the default route.
    DefaultRoute {
        /// Its name.
        interface: String,
    },
    /// A network interface in a bridge or a bond.
    Enslaved {
        /// Its name.
        interface: String,
        /// The bridge.
        master: String,
    },
    /// A network interface that is up.
    Up {
        /// Its name.
        interface: String,
    },
}

impl Usage {
    /// The command that ends it.
    #[must_use]
    pub fn remedy(&self) -> String {
        match self {
            Self::Mounted { at, .. } => format!("umount {at}"),
            Self::Swap { device } => format!("swapoff /dev/{device}"),
            Self::Held { device } => format!("lsblk /dev/{device}   # shows who holds it"),
            Self::DefaultRoute { interface } | Self::Up { interface } => {
                format!("ip link set {interface} down")
            }
            Self::Enslaved { interface, .. } => {
                format!("ip link set {interface} nomaster && ip link set {interface} down")
            }
        }
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mounted { device, at } => write!(f, "{device} is mounted on {at}"),
            Self::Swap { device } => write!(f, "{device} is swap space"),
            Self::Held { device } => write!(
                f,
                "{device} is held by a device mapping, a RAID or a program"
            ),
            Self::DefaultRoute { interface } => {
                write!(f, "its network interface {interface} has the default route")
            }
            Self::Enslaved { interface, master } => {
                write!(f, "its network interface {interface} is part of {master}")
            }
            Self::Up { interface } => write!(f, "its network interface {interface} is up"),
        }
    }
}

/// How the host uses a function, the weightiest first for each disk and interface.
#[must_use]
pub fn of(host: &Host, function: &PciFunction) -> Vec<Usage> {
    let mut usages: Vec<Usage> = function
        .interfaces
        .iter()
        .filter_map(|interface| of_interface(host, interface))
        .collect();
    let mounts = mounts(host);
    let swaps = swaps(host);
    for disk in disks(host, function) {
        let devices = stack(host, &disk);
        let before = usages.len();
        for device in &devices {
            let number = host.read(&format!("sys/class/block/{device}/dev"));
            for (mount, source, at) in &mounts {
                if number.as_ref() == Some(mount) || source == device {
                    usages.push(Usage::Mounted {
                        device: device.clone(),
                        at: at.clone(),
                    });
                    break;
                }
            }
            if swaps.contains(device) {
                usages.push(Usage::Swap {
                    device: device.clone(),
                });
            }
        }
        if usages.len() == before {
            let held = devices.iter().find(|device| {
                host.kernel()
                    .block_is_held(&host.path(&format!("dev/{device}")))
            });
            usages.extend(held.map(|device| Usage::Held {
                device: device.clone(),
            }));
        }
    }
    usages
}

fn of_interface(host: &Host, name: &str) -> Option<Usage> {
    let at = format!("sys/class/net/{name}");
    let interface = name.to_owned();
    if has_default_route(host, name) {
        return Some(Usage::DefaultRoute { interface });
    }
    if let Some(master) = link_name(&host.path(&at).join("master")) {
        return Some(Usage::Enslaved { interface, master });
    }
    let flags = host.read(&format!("{at}/flags"))?;
    let flags = u32::from_str_radix(flags.trim_start_matches("0x"), 16).ok()?;
    (flags & IFF_UP != 0).then_some(Usage::Up { interface })
}

/// A route to everywhere, IPv4 or IPv6 (proc_net(5)).
fn has_default_route(host: &Host, interface: &str) -> bool {
    let lines = |path: &str| host.read(path).unwrap_or_default();
    let v4 = lines("proc/net/route").lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.first() == Some(&interface)
            && fields.get(1) == Some(&"00000000")
            && fields.get(7) == Some(&"00000000")
    });
    v4 || lines("proc/net/ipv6_route").lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.last() == Some(&interface)
            && fields
                .first()
                .is_some_and(|to| to.bytes().all(|byte| byte == b'0'))
            && fields.get(1) == Some(&"00")
    })
}

/// The whole disks that a function's driver has made.
fn disks(host: &Host, function: &PciFunction) -> Vec<String> {
    let Ok(device) = fs::canonicalize(host.path(&folder(function.address))) else {
        return Vec::new();
    };
    let mut found = BTreeSet::new();
    for name in host.list("sys/block") {
        let Ok(at) = fs::canonicalize(host.path(&format!("sys/block/{name}"))) else {
            continue;
        };
        // The next PCI function on the way is another device, behind this one.
        let below = at.strip_prefix(&device).ok();
        if below.is_some_and(|below| !below.iter().any(|part| is_address(Path::new(part)))) {
            found.insert(name);
        }
    }
    found.extend(nvme_heads(&device));
    found.into_iter().collect()
}

fn is_address(part: &Path) -> bool {
    let text = part.to_str().unwrap_or_default();
    text.parse::<super::PciAddress>().is_ok()
}

/// NVMe namespaces that several controllers may share (`nvme_core.multipath`): their disks are not below a controller,
/// only the paths to them are. `nvme0c1n2` is the path of controller 1 to namespace 2 of subsystem 0.
fn nvme_heads(device: &Path) -> Vec<String> {
    let mut heads = Vec::new();
    for controller in list(&device.join("nvme")) {
        for path in list(&device.join("nvme").join(&controller)) {
            let head = path.strip_prefix("nvme").and_then(|rest| {
                let (subsystem, rest) = rest.split_once('c')?;
                let (_, namespace) = rest.split_once('n')?;
                Some(format!("nvme{subsystem}n{namespace}"))
            });
            heads.extend(head);
        }
    }
    heads
}

/// A disk, its partitions, and what is built upon them.
fn stack(host: &Host, disk: &str) -> Vec<String> {
    let mut found = vec![disk.to_owned()];
    let at = host.path(&format!("sys/class/block/{disk}"));
    let partitions = list(&at)
        .into_iter()
        .filter(|name| read(&at.join(name).join("partition")).is_some());
    found.extend(partitions);
    let mut newest = found.clone();
    for _ in 0..HOLDERS_DEPTH {
        let mut holders = Vec::new();
        for device in &newest {
            holders.extend(host.list(&format!("sys/class/block/{device}/holders")));
        }
        holders.retain(|holder| !found.contains(holder));
        found.extend(holders.iter().cloned());
        newest = holders;
    }
    found
}

/// Device number, the source's name in `/dev`, and mount point, of every mount that this process sees (proc(5)).
fn mounts(host: &Host) -> Vec<(String, String, String)> {
    let text = host.read("proc/self/mountinfo").unwrap_or_default();
    let mount = |line: &str| {
        let (first, second) = line.split_once(" - ")?;
        let mut first = first.split(' ').skip(2);
        let number = first.next()?.to_owned();
        let at = first.nth(1)?.replace("\\040", " ");
        let source = second.split(' ').nth(1)?;
        Some((number, device_name(host, source), at))
    };
    text.lines().filter_map(mount).collect()
}

fn swaps(host: &Host) -> BTreeSet<String> {
    let text = host.read("proc/swaps").unwrap_or_default();
    let names = text
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().next());
    names.map(|name| device_name(host, name)).collect()
}

/// The kernel's name of a block device, behind a link such as `/dev/mapper/…`.
fn device_name(host: &Host, path: &str) -> String {
    let Some(below) = path.strip_prefix("/dev/") else {
        return String::new();
    };
    let real = fs::canonicalize(host.path(&format!("dev/{below}")));
    let name = real
        .ok()
        .and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
    name.unwrap_or_else(|| below.to_owned())
}
