//! The machine that a round's guest is: a device of each kind that is measured.

use std::path::{Path, PathBuf};

use vmm_core::config::{
    BootConfig, CharTarget, CpuAffinity, CpuConfig, DeviceConfig, DiskConfig, DiskInterface,
    DiskMedia, MachineConfig, MemoryConfig, NetConfig, NetInterface, Network, OnPanic, OnReboot,
};

use crate::plan::Target;

/// The kernel's messages go to COM1; warnings, and what a kernel dies of, are printed all the same.
const CMDLINE: &str = "console=ttyS0 quiet";

/// What of it the user decides.
#[derive(Debug, Clone)]
pub struct GuestMachine {
    /// The kernel.
    pub kernel: PathBuf,
    /// vCPUs.
    pub cpus: u32,
    /// Host CPUs for all of them; any if empty.
    pub vcpu_cpus: Vec<u32>,
    /// RAM.
    pub memory: MemoryConfig,
    /// Disks bypass the host's page cache.
    pub direct: bool,
    /// Functions of the host.
    pub devices: Vec<DeviceConfig>,
}

/// The Ethernet address of the guest's interface on a network that is made for it.
#[must_use]
pub fn mac_of(target: Target) -> Option<&'static str> {
    match target {
        Target::VirtioNet => Some("02:54:52:49:00:01"),
        Target::E1000 => Some("02:54:52:49:00:02"),
        _ => None,
    }
}

/// The kinds of network interface on a TAP, in the order in which the machine has them.
pub const NETS: [Target; 2] = [Target::VirtioNet, Target::E1000];

impl GuestMachine {
    /// With the devices for `targets`; `disk` says where the files of disks are. Disks, networks and consoles for which
    /// there is no target are left out.
    #[must_use]
    pub fn config(&self, targets: &[Target], disk: impl Fn(Target) -> PathBuf) -> MachineConfig {
        let has = |target: Target| targets.contains(&target);
        let disks = [
            (Target::VirtioBlk, DiskInterface::Virtio),
            (Target::Ide, DiskInterface::Ide),
        ];
        let nets = NETS
            .into_iter()
            .zip([NetInterface::Virtio, NetInterface::E1000]);
        MachineConfig {
            boot: BootConfig {
                kernel: self.kernel.clone(),
                initrd: None,
                cmdline: CMDLINE.to_owned(),
                kernel_cache: true,
            },
            cpus: self.cpus(),
            memory: self.memory.clone(),
            disks: disks
                .into_iter()
                .filter(|(target, _)| has(*target))
                .map(|(target, interface)| self.disk(&disk(target), interface))
                .collect(),
            nets: nets
                .filter(|(target, _)| has(*target))
                .map(|(target, interface)| NetConfig {
                    network: Network::NewTap { bridge: None },
                    interface,
                    mac: mac_of(target).map(str::to_owned),
                })
                .collect(),
            shares: Vec::new(),
            devices: self.devices.clone(),
            // COM1 is the kernel's; the measured one is COM2.
            serials: vec![CharTarget::Null, CharTarget::Null],
            console: Some(CharTarget::Null),
            rng: false,
            on_reboot: OnReboot::Exit,
            on_panic: OnPanic::Exit,
        }
    }

    fn cpus(&self) -> CpuConfig {
        let pin = |vcpu| CpuAffinity {
            vcpu,
            host_cpus: self.vcpu_cpus.clone(),
        };
        let affinity = if self.vcpu_cpus.is_empty() {
            Vec::new()
        } else {
            (0..self.cpus).map(pin).collect()
        };
        CpuConfig {
            count: self.cpus,
            affinity,
        }
    }

    fn disk(&self, path: &Path, interface: DiskInterface) -> DiskConfig {
        DiskConfig {
            path: path.to_owned(),
            interface,
            media: DiskMedia::Disk,
            readonly: false,
            direct: self.direct,
            serial: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> GuestMachine {
        GuestMachine {
            kernel: "/k".into(),
            cpus: 2,
            vcpu_cpus: vec![3],
            memory: MemoryConfig::default(),
            direct: true,
            devices: Vec::new(),
        }
    }

    #[test]
    fn only_what_is_measured_is_there() {
        let path = |target| PathBuf::from(format!("/{target:?}"));
        let all = [
            Target::Ide,
            Target::VirtioBlk,
            Target::E1000,
            Target::VirtioNet,
        ];
        let config = machine().config(&all, path);
        assert_eq!(config.validate(), Ok(()));
        assert_eq!(config.disks.len(), 2);
        assert_eq!(config.disks[1].path, Path::new("/Ide"));
        assert_eq!(config.nets[1].interface, NetInterface::E1000);
        assert_ne!(config.nets[0].mac, config.nets[1].mac);
        assert_eq!(config.cpus.affinity.len(), 2);
        let few = machine().config(&[Target::Uart], path);
        assert!(few.disks.is_empty() && few.nets.is_empty());
        assert_eq!(few.validate(), Ok(()));
    }
}
