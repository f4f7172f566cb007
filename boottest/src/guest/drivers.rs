//! Which drivers the guest needs.

use vmm_core::config::{DiskInterface, DiskMedia, MachineConfig, NetInterface};

use super::image::FileSystem;
use super::modules::Needed;

/// What the guest's root is made of.
pub(super) enum RootKind {
    /// The initramfs.
    Initramfs,
    /// A folder of the host.
    Share,
    /// A file system on a disk, with a layer over it or without.
    Disk {
        file_system: FileSystem,
        layer: bool,
    },
}

/// Modules by what they are for, first those without which there is no guest, in the order in which they are loaded.
/// `further` are wanted as well.
pub(super) fn needed(
    machine: &MachineConfig,
    root: &RootKind,
    further: &[&'static str],
) -> Vec<Needed> {
    let mut needed = Vec::new();
    let mut require = |needed_for, names: &[&'static str]| {
        needed.extend(names.iter().map(|&name| Needed {
            name,
            needed_for: Some(needed_for),
        }));
    };
    require(
        "the channel to the guest",
        &["virtio_pci", "virtio_console"],
    );
    match root {
        RootKind::Initramfs => {}
        RootKind::Share => require("the shared root", &["virtiofs", "overlay"]),
        RootKind::Disk { file_system, layer } => {
            require("the root's disk", &["virtio_blk", file_system.name()]);
            if *layer {
                require("the layer over the root", &["overlay"]);
            }
        }
    }
    let wanted = of_machine(machine).into_iter();
    needed.extend(wanted.chain(further.iter().copied()).map(|name| Needed {
        name,
        needed_for: None,
    }));
    needed
}

/// Drivers of the machine's devices. A kernel may lack some, as those for clouds lack e1000.
fn of_machine(machine: &MachineConfig) -> Vec<&'static str> {
    let mut names = Vec::new();
    let disks = &machine.disks;
    let has_disk = |interface, media| {
        disks
            .iter()
            .any(|disk| disk.interface == interface && disk.media == media)
    };
    let has_net = |interface| machine.nets.iter().any(|net| net.interface == interface);
    if disks
        .iter()
        .any(|disk| disk.interface == DiskInterface::Virtio)
    {
        names.push("virtio_blk");
    }
    if disks
        .iter()
        .any(|disk| disk.interface == DiskInterface::Ide)
    {
        names.push("ata_piix");
    }
    if has_disk(DiskInterface::Ide, DiskMedia::Disk) {
        names.push("sd_mod");
    }
    if has_disk(DiskInterface::Ide, DiskMedia::Cdrom) {
        names.push("sr_mod");
    }
    if has_net(NetInterface::Virtio) {
        names.push("virtio_net");
    }
    if has_net(NetInterface::E1000) {
        names.push("e1000");
    }
    if !machine.nets.is_empty() {
        // DHCP clients and ping's kin; often built in.
        names.push("af_packet");
    }
    if machine.rng {
        names.push("virtio_rng");
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(text: &str) -> MachineConfig {
        toml::from_str(&format!("kernel = \"k\"\n{text}")).unwrap()
    }

    fn names(machine: &MachineConfig, root: &RootKind) -> Vec<&'static str> {
        let needed = needed(machine, root, &[]);
        needed.into_iter().map(|needed| needed.name).collect()
    }

    #[test]
    fn the_channel_comes_first_and_the_root_next() {
        let plain = machine("rng = false");
        assert_eq!(
            names(&plain, &RootKind::Initramfs),
            ["virtio_pci", "virtio_console"]
        );
        assert_eq!(
            names(&plain, &RootKind::Share),
            ["virtio_pci", "virtio_console", "virtiofs", "overlay"]
        );
        let disk = RootKind::Disk {
            file_system: FileSystem::Xfs,
            layer: false,
        };
        assert_eq!(names(&plain, &disk)[2..], ["virtio_blk", "xfs"]);
    }

    #[test]
    fn only_drivers_of_what_the_machine_has_are_asked_for() {
        let emulated = machine(
            "rng = true\n[[disk]]\npath = \"a\"\nif = \"ide\"\n[[disk]]\npath = \"b\"\nif = \"ide\"\nmedia = \"cdrom\"\n\
             [[net]]\ntap = \"t\"\nif = \"e1000\"\n",
        );
        let needed = needed(&emulated, &RootKind::Initramfs, &["nvme"]);
        let wanted: Vec<_> = needed
            .iter()
            .filter(|needed| needed.needed_for.is_none())
            .map(|needed| needed.name)
            .collect();
        assert_eq!(
            wanted,
            [
                "ata_piix",
                "sd_mod",
                "sr_mod",
                "e1000",
                "af_packet",
                "virtio_rng",
                "nvme"
            ]
        );
    }
}
