//! Why a function cannot be assigned now, and what changes that.

use std::fmt;

use serde::Serialize;
use serde::ser::{SerializeStruct, Serializer};

use super::address::PciAddress;
use super::iommu::CpuVendor;
use super::usage::Usage;

/// One reason. Its text is a clause without a subject of its own, to stand behind the function's name and a colon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// Not there.
    NoSuchFunction(PciAddress),
    /// A bridge, whose driver cannot be VFIO's.
    Bridge,
    /// No IOMMU is on.
    NoIommu {
        /// The firmware describes one, so the kernel has it off.
        in_firmware: bool,
        /// Decides on the kernel's parameter.
        vendor: CpuVendor,
    },
    /// An IOMMU is on, and does not cover this function.
    NoGroup,
    /// Interrupts are not remapped, and VFIO is not told to do without.
    NoInterruptRemapping {
        /// By the kernel's command line.
        switched_off: bool,
        /// `vfio_iommu_type1` is loaded, so its parameter is a file.
        module_loaded: bool,
    },
    /// Another function of the group is on a driver of the host's.
    MemberOnHostDriver {
        /// The group.
        group: u32,
        /// The other function.
        member: String,
        /// What that is.
        name: Option<String>,
        /// Its driver.
        driver: String,
    },
    /// Another process has the group open.
    GroupInUse {
        /// The group.
        group: u32,
    },
    /// A run of ours has it.
    ClaimedBy {
        /// The function.
        function: PciAddress,
        /// The run's process.
        pid: u32,
    },
    /// The host uses it.
    InUse(Usage),
    /// Neither the driver nor a module with it is there.
    NoVfioPci {
        /// The running kernel's release.
        release: String,
    },
    /// This user may not take it from its driver.
    MayNotBind {
        /// The function.
        function: PciAddress,
        /// Its group.
        group: Option<u32>,
        /// Its driver.
        driver: Option<String>,
        /// The user.
        uid: u32,
    },
    /// This user may not open a file of VFIO's.
    NoPermission {
        /// The file.
        path: String,
        /// The user.
        uid: u32,
    },
    /// It has VFs, which would vanish with its driver.
    HasVfs {
        /// The PF.
        function: PciAddress,
        /// How many.
        count: usize,
        /// Those that someone uses.
        used: Vec<PciAddress>,
    },
    /// A VF whose PF no driver serves.
    PfWithoutDriver {
        /// The PF.
        pf: PciAddress,
        /// It is for a guest itself.
        on_vfio: bool,
    },
    /// `RLIMIT_MEMLOCK` is too low.
    LockedMemory {
        /// What a run needs, in bytes: the guest's RAM and what the process has locked already.
        needed_bytes: u64,
        /// The limit, in bytes.
        limit_bytes: u64,
        /// The user.
        uid: u32,
    },
    /// The control group does not allow so much.
    GroupMemory {
        /// What a run needs, in bytes.
        needed_bytes: u64,
        /// What the limit leaves, in bytes.
        limit_bytes: u64,
        /// The file with the limit.
        path: String,
    },
}

fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchFunction(address) => write!(f, "there is no PCI function {address}"),
            Self::Bridge => f.write_str("it is a bridge: only what is behind it can be assigned"),
            Self::NoIommu {
                in_firmware: true, ..
            } => f.write_str(
                "the IOMMU is off: the firmware describes one, and the kernel does not use it",
            ),
            Self::NoIommu { .. } => f.write_str("the host has no IOMMU, or its firmware hides it"),
            Self::NoGroup => f.write_str("it is in no IOMMU group: no IOMMU covers it"),
            Self::NoInterruptRemapping { .. } => f.write_str(
                "the IOMMU does not remap interrupts: a guest could send the host any interrupt",
            ),
            Self::MemberOnHostDriver {
                group,
                member,
                name,
                driver,
            } => {
                write!(f, "{member}")?;
                if let Some(name) = name {
                    write!(f, " ({name})")?;
                }
                write!(
                    f,
                    " is in the same IOMMU group {group} and on the host's driver {driver}"
                )
            }
            Self::GroupInUse { group } => {
                write!(
                    f,
                    "its IOMMU group {group} is used by another guest or program"
                )
            }
            Self::ClaimedBy { function, pid } => {
                write!(
                    f,
                    "{function} is used by another tripath run, process {pid}"
                )
            }
            Self::InUse(usage) => write!(f, "the host uses it: {usage}"),
            Self::NoVfioPci { release } => {
                write!(
                    f,
                    "the driver vfio-pci is missing, and kernel {release} has no module of that name"
                )
            }
            Self::MayNotBind { driver, uid, .. } => match driver {
                Some(driver) => write!(f, "user {uid} may not take it from its driver {driver}"),
                None => write!(f, "user {uid} may not bind it to vfio-pci"),
            },
            Self::NoPermission { path, uid } => write!(f, "user {uid} may not open {path}"),
            Self::HasVfs { count, used, .. } if used.is_empty() => {
                let functions = if *count == 1 { "function" } else { "functions" };
                write!(
                    f,
                    "it has {count} virtual {functions}, which would vanish with its driver"
                )
            }
            Self::HasVfs { used, .. } => {
                let used: Vec<String> = used.iter().map(ToString::to_string).collect();
                write!(f, "its virtual functions {} are in use", used.join(", "))
            }
            Self::PfWithoutDriver { pf, on_vfio: false } => {
                write!(
                    f,
                    "its physical function {pf} has no driver, and a VF does nothing without"
                )
            }
            Self::PfWithoutDriver { pf, .. } => {
                write!(
                    f,
                    "its physical function {pf} is on vfio-pci, for a guest that could end it at any time"
                )
            }
            Self::LockedMemory {
                needed_bytes,
                limit_bytes,
                ..
            } => write!(
                f,
                "{} MiB of memory have to be locked, and the limit is {} KiB",
                mib(*needed_bytes),
                limit_bytes >> 10
            ),
            Self::GroupMemory {
                needed_bytes,
                limit_bytes,
                path,
            } => write!(
                f,
                "{} MiB of memory have to be locked, and {path} leaves {} MiB",
                mib(*needed_bytes),
                limit_bytes >> 20
            ),
        }
    }
}

impl Reason {
    /// The commands that change it, in order; a line may be what has to be done by hand.
    #[must_use]
    pub fn remedy(&self) -> Vec<String> {
        match self {
            Self::NoSuchFunction(_) => vec!["tripath vfio list".into()],
            Self::Bridge => Vec::new(),
            Self::NoIommu {
                in_firmware,
                vendor,
            } => no_iommu(*in_firmware, *vendor),
            Self::NoGroup => vec!["dmesg | grep -i -e DMAR -e AMD-Vi".into()],
            Self::NoInterruptRemapping {
                switched_off,
                module_loaded,
            } => no_remapping(*switched_off, *module_loaded),
            Self::MemberOnHostDriver { group, member, .. } => vec![format!(
                "echo {member} > /sys/kernel/iommu_groups/{group}/devices/{member}/driver/unbind"
            )],
            Self::GroupInUse { group } => vec![format!("fuser -v /dev/vfio/{group}")],
            Self::ClaimedBy { pid, .. } => vec![format!("kill {pid}")],
            Self::InUse(usage) => vec![usage.remedy()],
            Self::NoVfioPci { .. } => {
                vec!["boot a kernel with CONFIG_VFIO_PCI and its modules installed".into()]
            }
            Self::MayNotBind {
                function,
                group,
                driver,
                uid,
            } => may_not_bind(*function, *group, driver.is_some(), *uid),
            Self::NoPermission { path, uid } => vec![format!("chown {uid} {path}")],
            Self::HasVfs { function, used, .. } if used.is_empty() => {
                vec![format!("tripath vfio sriov {function} --vfs 0")]
            }
            Self::HasVfs { function, .. } => {
                vec![format!("tripath vfio sriov {function}   # shows by whom")]
            }
            Self::PfWithoutDriver { pf, on_vfio: false } => {
                vec![format!("echo {pf} > /sys/bus/pci/drivers_probe")]
            }
            Self::PfWithoutDriver { pf, .. } => vec![
                format!("echo > /sys/bus/pci/devices/{pf}/driver_override"),
                format!("echo {pf} > /sys/bus/pci/drivers/vfio-pci/unbind"),
                format!("echo {pf} > /sys/bus/pci/drivers_probe"),
            ],
            Self::LockedMemory {
                needed_bytes, uid, ..
            } => {
                let needed = mib(*needed_bytes) << 10;
                vec![format!(
                    "ulimit -l {needed}   # or, in /etc/security/limits.conf, for the next login: :{uid} - memlock {needed}"
                )]
            }
            Self::GroupMemory {
                needed_bytes,
                limit_bytes,
                path,
            } => {
                let more = mib(needed_bytes.saturating_sub(*limit_bytes));
                vec![format!(
                    "raise {path} by at least {more} MiB, or give the guest less memory"
                )]
            }
        }
    }

    /// Whether `force` goes over it.
    #[must_use]
    pub fn yields_to_force(&self) -> bool {
        matches!(self, Self::InUse(_))
    }

    /// A word for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoSuchFunction(_) => "no-such-function",
            Self::Bridge => "bridge",
            Self::NoIommu { .. } => "no-iommu",
            Self::NoGroup => "no-group",
            Self::NoInterruptRemapping { .. } => "no-interrupt-remapping",
            Self::MemberOnHostDriver { .. } => "member-on-host-driver",
            Self::GroupInUse { .. } => "group-in-use",
            Self::ClaimedBy { .. } => "claimed",
            Self::InUse(_) => "in-use",
            Self::NoVfioPci { .. } => "no-vfio-pci",
            Self::MayNotBind { .. } => "may-not-bind",
            Self::NoPermission { .. } => "no-permission",
            Self::HasVfs { .. } => "has-vfs",
            Self::PfWithoutDriver { .. } => "pf-without-driver",
            Self::LockedMemory { .. } => "locked-memory",
            Self::GroupMemory { .. } => "cgroup-memory",
        }
    }
}

fn no_iommu(in_firmware: bool, vendor: CpuVendor) -> Vec<String> {
    let mut lines = Vec::new();
    let (name, parameter) = match vendor {
        CpuVendor::Intel => ("VT-d", "intel_iommu=on"),
        CpuVendor::Amd => ("AMD-Vi (IOMMU)", "amd_iommu=on"),
        CpuVendor::Other => ("the IOMMU", "intel_iommu=on amd_iommu=on"),
    };
    if !in_firmware {
        lines.push(format!("switch {name} on in the firmware's settings"));
    }
    lines.push(format!(
        "add {parameter} to GRUB_CMDLINE_LINUX in /etc/default/grub, then update-grub && reboot"
    ));
    lines
}

fn no_remapping(switched_off: bool, module_loaded: bool) -> Vec<String> {
    let remap = if switched_off {
        "remove intremap=off from the kernel's command line and reboot"
    } else {
        "switch interrupt remapping on in the firmware's settings"
    };
    let do_without = if module_loaded {
        "echo Y > /sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"
    } else {
        "modprobe vfio_iommu_type1 allow_unsafe_interrupts=1"
    };
    vec![format!(
        "{remap}, or, for guests that you trust: {do_without}"
    )]
}

fn may_not_bind(function: PciAddress, group: Option<u32>, bound: bool, uid: u32) -> Vec<String> {
    let at = format!("/sys/bus/pci/devices/{function}");
    let mut lines = vec![
        "modprobe vfio-pci".to_owned(),
        format!("echo vfio-pci > {at}/driver_override"),
    ];
    if bound {
        lines.push(format!("echo {function} > {at}/driver/unbind"));
    }
    lines.push(format!("echo {function} > /sys/bus/pci/drivers_probe"));
    if let Some(group) = group {
        lines.push(format!("chown {uid} /dev/vfio/{group}"));
    }
    lines
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut out = serializer.serialize_struct("Reason", 4)?;
        out.serialize_field("code", self.code())?;
        out.serialize_field("text", &self.to_string())?;
        out.serialize_field("remedy", &self.remedy())?;
        out.serialize_field("force", &self.yields_to_force())?;
        out.end()
    }
}

/// A function that cannot be assigned, with one of the reasons; its text is one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The function, with what it is and its driver; none for what concerns the whole run.
    pub function: Option<String>,
    /// Why.
    pub reason: Reason,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.function {
            Some(function) => write!(f, "{function} cannot be assigned: {}", self.reason)?,
            None => write!(f, "{}", self.reason)?,
        }
        let remedy = self.reason.remedy();
        if !remedy.is_empty() {
            write!(f, "; to change that: {}", remedy.join(" && "))?;
        }
        if self.reason.yields_to_force() {
            f.write_str("; or take it all the same with force=on")?;
        }
        Ok(())
    }
}
