//! A machine as its user says it: in a machine file, in options, or in both.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{
    BootConfig, CMDLINE_FOR_CONSOLE, CMDLINE_FOR_SERIAL, CharTarget, CpuConfig, DeviceConfig,
    DiskConfig, DiskInterface, MachineConfig, MemoryConfig, NetConfig, NetInterface, OnPanic,
    OnReboot, ShareConfig,
};

/// What was said about a machine; nothing is required here. The keys are those of the command line's options.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct MachineFile {
    /// See [`BootConfig::kernel`].
    pub kernel: Option<PathBuf>,
    /// See [`BootConfig::initrd`].
    pub initrd: Option<PathBuf>,
    /// See [`BootConfig::cmdline`].
    pub cmdline: Option<String>,
    /// See [`BootConfig::kernel_cache`].
    pub kernel_cache: Option<bool>,
    /// What a reset by the guest does.
    pub on_reboot: Option<OnReboot>,
    /// What a panic of the guest does.
    pub on_panic: Option<OnPanic>,
    /// COM1 to COM4.
    pub serial: Option<Vec<CharTarget>>,
    /// The virtio console.
    pub console: Option<CharTarget>,
    /// A virtio entropy device. When nothing is said there is one if there is another virtio device: a guest that has
    /// none is not made to look for one.
    pub rng: Option<bool>,
    /// Virtual CPUs.
    pub cpus: Option<CpuConfig>,
    /// Guest RAM.
    pub memory: Option<MemoryConfig>,
    /// Disks.
    pub disk: Option<Vec<DiskConfig>>,
    /// Network interfaces.
    pub net: Option<Vec<NetConfig>>,
    /// Directories of the host.
    pub share: Option<Vec<ShareConfig>>,
    /// Functions of the host.
    pub device: Option<Vec<DeviceConfig>>,
}

/// Nothing said what to boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("no kernel is given: give --kernel PATH, or kernel = \"PATH\" in the machine file")]
pub struct NoKernel;

impl MachineFile {
    /// `self` where `winner` says nothing, `winner` where it says something: each key as a whole, lists too.
    #[must_use]
    pub fn overridden_by(self, winner: Self) -> Self {
        Self {
            kernel: winner.kernel.or(self.kernel),
            initrd: winner.initrd.or(self.initrd),
            cmdline: winner.cmdline.or(self.cmdline),
            kernel_cache: winner.kernel_cache.or(self.kernel_cache),
            on_reboot: winner.on_reboot.or(self.on_reboot),
            on_panic: winner.on_panic.or(self.on_panic),
            serial: winner.serial.or(self.serial),
            console: winner.console.or(self.console),
            rng: winner.rng.or(self.rng),
            cpus: winner.cpus.or(self.cpus),
            memory: winner.memory.or(self.memory),
            disk: winner.disk.or(self.disk),
            net: winner.net.or(self.net),
            share: winner.share.or(self.share),
            device: winner.device.or(self.device),
        }
    }

    /// Makes relative paths relative to `folder`. Opens nothing.
    pub fn resolve_paths(&mut self, folder: &Path) {
        let targets = self.serial.iter_mut().flatten().chain(&mut self.console);
        let target_paths = targets.filter_map(|target| match target {
            CharTarget::File(path) | CharTarget::Socket(path) => Some(path),
            CharTarget::Stdio | CharTarget::Null | CharTarget::Pty | CharTarget::Tcp(_) => None,
        });
        let disk_paths = self.disk.iter_mut().flatten().map(|disk| &mut disk.path);
        let share_paths = self.share.iter_mut().flatten().map(|share| &mut share.path);
        let boot_paths = self.kernel.iter_mut().chain(&mut self.initrd);
        let paths = boot_paths.chain(disk_paths).chain(share_paths);
        for path in paths.chain(target_paths) {
            // An empty path stays empty, for validation to find.
            if !path.as_os_str().is_empty() {
                *path = folder.join(&*path);
            }
        }
    }

    /// The machine, with the defaults for what was not said.
    ///
    /// COM1 goes to stdio, or to nowhere if the console has taken stdio. The kernel's console is COM1, or the virtio
    /// console if COM1 goes nowhere.
    ///
    /// # Errors
    /// [`NoKernel`]: everything else has a default.
    pub fn complete(self) -> Result<MachineConfig, NoKernel> {
        let kernel = self.kernel.ok_or(NoKernel)?;
        let serials = self.serial.unwrap_or_else(|| match self.console {
            Some(CharTarget::Stdio) => vec![CharTarget::Null],
            _ => vec![CharTarget::Stdio],
        });
        let com1_is_heard = serials
            .first()
            .is_some_and(|target| *target != CharTarget::Null);
        let default_cmdline = || match self.console {
            Some(_) if !com1_is_heard => CMDLINE_FOR_CONSOLE,
            _ => CMDLINE_FOR_SERIAL,
        };
        let disks = self.disk.unwrap_or_default();
        let nets = self.net.unwrap_or_default();
        let shares = self.share.unwrap_or_default();
        let virtio_disk = |disk: &DiskConfig| disk.interface == DiskInterface::Virtio;
        let virtio_net = |net: &NetConfig| net.interface == NetInterface::Virtio;
        let other_virtio = disks.iter().any(virtio_disk)
            || nets.iter().any(virtio_net)
            || !shares.is_empty()
            || self.console.is_some();
        Ok(MachineConfig {
            boot: BootConfig {
                kernel,
                initrd: self.initrd,
                cmdline: self.cmdline.unwrap_or_else(|| default_cmdline().to_owned()),
                kernel_cache: self.kernel_cache.unwrap_or(true),
            },
            cpus: self.cpus.unwrap_or_default(),
            memory: self.memory.unwrap_or_default(),
            disks,
            nets,
            shares,
            devices: self.device.unwrap_or_default(),
            serials,
            console: self.console,
            rng: self.rng.unwrap_or(other_virtio),
            on_reboot: self.on_reboot.unwrap_or_default(),
            on_panic: self.on_panic.unwrap_or_default(),
        })
    }
}

impl TryFrom<MachineFile> for MachineConfig {
    type Error = NoKernel;

    fn try_from(file: MachineFile) -> Result<Self, NoKernel> {
        file.complete()
    }
}

impl From<MachineConfig> for MachineFile {
    /// Says everything, defaults included, except for what the machine does not have.
    fn from(config: MachineConfig) -> Self {
        let MachineConfig {
            boot:
                BootConfig {
                    kernel,
                    initrd,
                    cmdline,
                    kernel_cache,
                },
            cpus,
            memory,
            disks,
            nets,
            shares,
            devices,
            serials,
            console,
            rng,
            on_reboot,
            on_panic,
        } = config;
        Self {
            kernel: Some(kernel),
            initrd,
            cmdline: Some(cmdline),
            kernel_cache: Some(kernel_cache),
            on_reboot: Some(on_reboot),
            on_panic: Some(on_panic),
            serial: Some(serials),
            console,
            rng: Some(rng),
            cpus: Some(cpus),
            memory: Some(memory),
            disk: (!disks.is_empty()).then_some(disks),
            net: (!nets.is_empty()).then_some(nets),
            share: (!shares.is_empty()).then_some(shares),
            device: (!devices.is_empty()).then_some(devices),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        CpuAffinity, DeviceSource, DiskInterface, DiskMedia, NetInterface, Network,
    };
    use super::*;

    const EVERYTHING: &str = r#"
        kernel = "vmlinuz"
        initrd = "/boot/initrd.img"
        cmdline = "console=ttyS0 quiet"
        kernel-cache = false
        on-reboot = "exit"
        on-panic = "hang"
        serial = ["stdio", "file=com2.log", "pty", "socket=/run/com4"]
        console = "socket=hvc"
        rng = false
        cpus = { count = 2, affinity = ["0@2-3", "1@4+6"] }
        memory = { size = "1G", memfd = true, thp = false }

        [[disk]]
        path = "root.img"

        [[disk]]
        path = "/dev/vdb"
        if = "virtio"
        readonly = true
        direct = true
        serial = "DATA"

        [[net]]
        tap = "tap0"
        if = "virtio"
        mac = "02:00:00:00:00:01"

        [[share]]
        path = "tree"
        tag = "data"

        [[device]]
        host = "01:00.0"

        [[device]]
        host = "0000:02:00.1"
        keep = true
        rombar = false
        trap = ["1", "0:0x1000+0x100"]
    "#;

    fn everything() -> MachineConfig {
        MachineConfig {
            boot: BootConfig {
                kernel: "vmlinuz".into(),
                initrd: Some("/boot/initrd.img".into()),
                cmdline: "console=ttyS0 quiet".into(),
                kernel_cache: false,
            },
            cpus: CpuConfig {
                count: 2,
                affinity: vec![
                    CpuAffinity {
                        vcpu: 0,
                        host_cpus: vec![2, 3],
                    },
                    CpuAffinity {
                        vcpu: 1,
                        host_cpus: vec![4, 6],
                    },
                ],
            },
            memory: MemoryConfig {
                size_bytes: 1 << 30,
                memfd: true,
                thp: false,
            },
            disks: vec![
                DiskConfig {
                    path: "root.img".into(),
                    interface: DiskInterface::Virtio,
                    media: DiskMedia::Disk,
                    readonly: false,
                    direct: false,
                    serial: None,
                },
                DiskConfig {
                    path: "/dev/vdb".into(),
                    interface: DiskInterface::Virtio,
                    media: DiskMedia::Disk,
                    readonly: true,
                    direct: true,
                    serial: Some("DATA".into()),
                },
            ],
            nets: vec![NetConfig {
                network: Network::Tap("tap0".into()),
                interface: NetInterface::Virtio,
                mac: Some("02:00:00:00:00:01".into()),
            }],
            shares: vec![ShareConfig {
                path: "tree".into(),
                tag: "data".into(),
            }],
            devices: vec![
                DeviceConfig {
                    source: DeviceSource::Function {
                        address: "01:00.0".into(),
                        keep: false,
                    },
                    force: false,
                    rombar: true,
                    trap: Vec::new(),
                },
                DeviceConfig {
                    source: DeviceSource::Function {
                        address: "0000:02:00.1".into(),
                        keep: true,
                    },
                    force: false,
                    rombar: false,
                    trap: vec!["1".parse().unwrap(), "0:0x1000+0x100".parse().unwrap()],
                },
            ],
            serials: vec![
                CharTarget::Stdio,
                CharTarget::File("com2.log".into()),
                CharTarget::Pty,
                CharTarget::Socket("/run/com4".into()),
            ],
            console: Some(CharTarget::Socket("hvc".into())),
            rng: false,
            on_reboot: OnReboot::Exit,
            on_panic: OnPanic::Hang,
        }
    }

    fn minimal() -> MachineFile {
        MachineFile {
            kernel: Some("k".into()),
            ..MachineFile::default()
        }
    }

    #[test]
    fn every_key_is_read() {
        let config: MachineConfig = toml::from_str(EVERYTHING).unwrap();
        assert_eq!(config, everything());
    }

    #[test]
    fn what_is_written_reads_the_same() {
        for config in [everything(), minimal().complete().unwrap()] {
            let text = toml::to_string(&config).unwrap();
            assert_eq!(
                toml::from_str::<MachineConfig>(&text).unwrap(),
                config,
                "{text}"
            );
        }
    }

    #[test]
    fn short_forms_of_cpus_and_memory() {
        let file: MachineFile = toml::from_str("cpus = 4\nmemory = \"2G\"").unwrap();
        assert_eq!(
            file.cpus,
            Some(CpuConfig {
                count: 4,
                affinity: vec![]
            })
        );
        assert_eq!(file.memory, Some(MemoryConfig::of_size(2 << 30)));
        let file: MachineFile = toml::from_str("memory = 536870912").unwrap();
        assert_eq!(file.memory, Some(MemoryConfig::of_size(512 << 20)));
    }

    #[test]
    fn bad_values_are_named() {
        for (text, message) in [
            (
                "dsk = 1",
                "unknown field `dsk`, expected one of `kernel`, `initrd`, `cmdline`",
            ),
            (
                "[[disk]]\npath = \"a\"\nrw = true",
                "unknown field `rw`, expected one of `path`, `if`",
            ),
            ("[[disk]]\nserial = \"a\"", "missing field `path`"),
            ("[[share]]\npath = \"a\"", "missing field `tag`"),
            (
                "[[disk]]\npath = \"a\"\nif = \"scsi\"",
                "unknown variant `scsi`, expected `virtio` or `ide`",
            ),
            (
                "on-reboot = \"stop\"",
                "unknown variant `stop`, expected `restart` or `exit`",
            ),
            ("cpus = -1", "-1 CPUs cannot be had"),
            ("cpus = \"two\"", "expected a number of CPUs, or a table"),
            (
                "cpus = { cores = 1 }",
                "unknown field `cores`, expected `count` or `affinity`",
            ),
            (
                "cpus = { count = 1, affinity = [\"0\"] }",
                "\"0\" is not an affinity",
            ),
            ("memory = \"1.5G\"", "\"1.5G\" is not a size"),
            (
                "memory = true",
                "expected a size such as \"512M\", or a table",
            ),
            ("memory = { size = \"0\" }", "size \"0\" is zero"),
            ("serial = [\"tty\"]", "\"tty\" is not a target"),
            ("console = \"file=\"", "\"file=\" lacks the path"),
        ] {
            let error = toml::from_str::<MachineFile>(text).unwrap_err();
            assert!(
                error.message().contains(message),
                "{text}: {}",
                error.message()
            );
        }
    }

    #[test]
    fn a_key_that_is_given_replaces_the_other_whole() {
        let file: MachineFile = toml::from_str(EVERYTHING).unwrap();
        let options: MachineFile =
            toml::from_str("kernel = \"k2\"\ncpus = 1\nserial = [\"null\"]").unwrap();
        let config = file.overridden_by(options).complete().unwrap();
        let mut expected = everything();
        expected.boot.kernel = "k2".into();
        expected.cpus = CpuConfig::default();
        expected.serials = vec![CharTarget::Null];
        assert_eq!(config, expected);
    }

    #[test]
    fn a_file_that_says_nothing_changes_nothing() {
        let file: MachineFile = toml::from_str(EVERYTHING).unwrap();
        assert_eq!(file.clone().overridden_by(MachineFile::default()), file);
        assert_eq!(MachineFile::default().overridden_by(file.clone()), file);
    }

    #[test]
    fn relative_paths_follow_the_folder() {
        let mut file: MachineFile = toml::from_str(EVERYTHING).unwrap();
        file.resolve_paths(Path::new("/vm"));
        let config = file.complete().unwrap();
        assert_eq!(config.boot.kernel, Path::new("/vm/vmlinuz"));
        assert_eq!(
            config.boot.initrd.as_deref(),
            Some(Path::new("/boot/initrd.img"))
        );
        assert_eq!(config.disks[0].path, Path::new("/vm/root.img"));
        assert_eq!(config.disks[1].path, Path::new("/dev/vdb"));
        assert_eq!(config.shares[0].path, Path::new("/vm/tree"));
        assert_eq!(config.serials[1], CharTarget::File("/vm/com2.log".into()));
        assert_eq!(config.serials[3], CharTarget::Socket("/run/com4".into()));
        assert_eq!(config.console, Some(CharTarget::Socket("/vm/hvc".into())));
    }

    #[test]
    fn defaults() {
        let config = minimal().complete().unwrap();
        assert_eq!(config.cpus.count, 1);
        assert_eq!(config.memory.size_bytes, 512 << 20);
        assert!(config.memory.thp && !config.memory.memfd && config.boot.kernel_cache);
        assert_eq!(config.serials, [CharTarget::Stdio]);
        assert_eq!(config.console, None);
        assert!(!config.rng);
        assert_eq!(config.boot.cmdline, "console=ttyS0");
        assert_eq!(
            (config.on_reboot, config.on_panic),
            (OnReboot::Restart, OnPanic::Exit)
        );
    }

    #[test]
    fn a_console_on_stdio_takes_it_from_com1() {
        let file = MachineFile {
            console: Some(CharTarget::Stdio),
            ..minimal()
        };
        let config = file.complete().unwrap();
        assert_eq!(config.serials, [CharTarget::Null]);
        assert_eq!(config.boot.cmdline, "console=hvc0");
    }

    #[test]
    fn no_serial_port_can_be_asked_for() {
        let file: MachineFile = toml::from_str("kernel = \"k\"\nserial = []").unwrap();
        assert_eq!(file.complete().unwrap().serials, []);
    }

    #[test]
    fn a_kernel_is_needed() {
        assert_eq!(MachineFile::default().complete(), Err(NoKernel));
        assert_eq!(
            NoKernel.to_string(),
            "no kernel is given: give --kernel PATH, or kernel = \"PATH\" in the machine file"
        );
    }

    #[test]
    fn an_entropy_device_comes_with_other_virtio_devices() {
        let rng = |text: &str| {
            let text = format!("kernel = \"k\"\n{text}");
            toml::from_str::<MachineConfig>(&text).unwrap().rng
        };
        for (text, expected) in [
            ("", false),
            ("rng = true", true),
            ("disk = [{ path = \"d\" }]", true),
            ("disk = [{ path = \"d\", if = \"ide\" }]", false),
            ("net = [{ tap = \"t\" }]", true),
            ("share = [{ path = \"d\", tag = \"t\" }]", true),
            ("console = \"pty\"", true),
            ("console = \"pty\"\nrng = false", false),
        ] {
            assert_eq!(rng(text), expected, "{text}");
        }
    }
}
