//! A host made of files, and a kernel that does to them what Linux does.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::io::Errno;

use super::config_space::testing::{pcie, space};
use super::kernel::{Caller, Kernel};
use super::netlink::{NetlinkError, VfSettings};
use super::root::{Host, link_name};
use super::state::StateFolder;

/// What the pretended kernel remembers.
#[derive(Debug)]
pub struct Inner {
    pub caller: Caller,
    /// Files that someone has open for himself.
    pub busy: BTreeSet<String>,
    /// Files that this user may not open or write.
    pub denied: BTreeSet<String>,
    /// Block devices that are held.
    pub held: BTreeSet<String>,
    /// The PF's settings, by the number of its interface.
    pub vfs: BTreeMap<u32, Vec<VfSettings>>,
    /// Every change that was tried, in order.
    pub changes: Vec<String>,
    /// The change after which no more work, as if the process had been killed.
    pub dies_after: Option<usize>,
    /// Modules that can be loaded.
    pub modules: BTreeSet<String>,
    /// The PF's driver takes no address of zeros.
    pub refuses_zero_mac: bool,
}

pub struct Fake {
    pub folder: tempfile::TempDir,
    pub inner: Arc<Mutex<Inner>>,
    pub host: Arc<Host>,
}

struct FakeKernel {
    root: PathBuf,
    inner: Arc<Mutex<Inner>>,
}

pub const PF: &str = "0000:01:00.0";
pub const NVME: &str = "0000:02:00.0";
pub const PAIR: [&str; 2] = ["0000:03:00.0", "0000:03:00.1"];
pub const BEHIND_BRIDGE: &str = "0000:05:01.0";

const ACS: (u16, &[u8]) = (0x000d, &[0x1d, 0, 0x1d, 0]);

impl Fake {
    /// A host with an IOMMU: an igb, an NVMe, a pair of functions in one group, and a device behind a bridge to PCI.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().to_owned();
        let inner = Arc::new(Mutex::new(Inner {
            caller: Caller {
                uid: 0,
                ipc_lock: true,
                memlock_bytes: Some(8 << 20),
            },
            busy: BTreeSet::new(),
            denied: BTreeSet::new(),
            held: BTreeSet::new(),
            vfs: BTreeMap::new(),
            changes: Vec::new(),
            dies_after: None,
            modules: ["vfio-pci", "vfio_iommu_type1"].map(str::to_owned).into(),
            refuses_zero_mac: false,
        }));
        let kernel = FakeKernel {
            root: root.clone(),
            inner: inner.clone(),
        };
        let host = Arc::new(Host::new(&root, Box::new(kernel)));
        let fake = Self {
            folder,
            inner,
            host,
        };
        fake.furnish();
        fake
    }

    fn furnish(&self) {
        self.put("proc/cpuinfo", "vendor_id : GenuineIntel");
        self.put("proc/interrupts", "  1: 9 IR-IO-APIC 1-edge i8042\n");
        self.put("proc/sys/kernel/osrelease", "6.12.0-test\n");
        self.put(
            "lib/modules/6.12.0-test/modules.dep",
            "kernel/drivers/vfio/pci/vfio-pci.ko.xz: kernel/a.ko\n",
        );
        self.put("sys/class/iommu/dmar0/intel-iommu/cap", "d2008c22260206\n");
        self.put("sys/bus/pci/drivers_probe", "");
        let pid = std::process::id();
        self.put(&format!("proc/{pid}/stat"), &stat(pid, "S", 1000));
        for driver in ["igb", "igbvf", "nvme", "e1000e", "pcieport"] {
            self.put(&format!("sys/bus/pci/drivers/{driver}/bind"), "");
        }
        let port = space(1, 0, &[(0x10, &pcie(4, false))], &[ACS]);
        for (number, device) in ["02", "03", "04", "06"].iter().enumerate() {
            let address = format!("0000:00:{device}.0");
            self.function(
                &address,
                &[],
                0x060400,
                (0x8086, 0x3420),
                &port,
                u32::try_from(number).unwrap(),
                Some("pcieport"),
            );
        }
        let net = space(
            0,
            1,
            &[(0x10, &pcie(0, true)), (0x05, &[0, 0]), (0x11, &[4, 0])],
            &[(0x0001, &[])],
        );
        self.function(
            PF,
            &["0000:00:02.0"],
            0x020000,
            (0x8086, 0x10c9),
            &net,
            10,
            Some("igb"),
        );
        self.attribute(PF, "sriov_totalvfs", "7");
        self.attribute(PF, "sriov_numvfs", "0");
        self.attribute(PF, "sriov_drivers_autoprobe", "1");
        self.interface(PF, "eth0", 2, true);
        self.function(
            NVME,
            &["0000:00:03.0"],
            0x010802,
            (0x8086, 0x5845),
            &net,
            11,
            Some("nvme"),
        );
        for function in PAIR {
            let config = [&net[..0x0e], &[0x80], &net[0x0f..]].concat();
            self.function(
                function,
                &["0000:00:04.0"],
                0x020000,
                (0x8086, 0x10d3),
                &config,
                12,
                Some("e1000e"),
            );
        }
        let bridge = space(1, 0, &[(0x10, &pcie(7, false))], &[]);
        self.function(
            "0000:04:00.0",
            &["0000:00:06.0"],
            0x060400,
            (0x1b36, 0x000e),
            &bridge,
            13,
            None,
        );
        let old = space(0, 1, &[], &[]);
        self.function(
            BEHIND_BRIDGE,
            &["0000:00:06.0", "0000:04:00.0"],
            0x020000,
            (0x8086, 0x100e),
            &old,
            13,
            None,
        );
    }

    pub fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    pub fn state(&self) -> StateFolder {
        StateFolder::new(self.folder.path().join("run/tripath/vfio"))
    }

    pub fn put(&self, path: &str, text: &str) {
        put(self.folder.path(), path, text);
    }

    pub fn remove(&self, path: &str) {
        let path = self.folder.path().join(path);
        if path.is_dir() && !path.is_symlink() {
            fs::remove_dir_all(path).unwrap();
        } else {
            fs::remove_file(path).unwrap();
        }
    }

    pub fn attribute(&self, function: &str, name: &str, value: &str) {
        self.put(&format!("sys/bus/pci/devices/{function}/{name}"), value);
    }

    pub fn driver(&self, function: &str) -> Option<String> {
        link_name(
            &self
                .folder
                .path()
                .join(format!("sys/bus/pci/devices/{function}/driver")),
        )
    }

    pub fn set_driver(&self, function: &str, driver: Option<&str>) {
        set_driver(self.folder.path(), function, driver);
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "a function has as many properties"
    )]
    pub fn function(
        &self,
        address: &str,
        above: &[&str],
        class: u32,
        ids: (u16, u16),
        config: &[u8],
        group: u32,
        driver: Option<&str>,
    ) {
        function(
            self.folder.path(),
            address,
            above,
            class,
            ids,
            config,
            group,
        );
        if let Some(driver) = driver {
            self.attribute(address, "native", driver);
            self.set_driver(address, Some(driver));
        }
    }

    pub fn interface(&self, function: &str, name: &str, index: u32, up: bool) {
        let at = format!("sys/class/net/{name}");
        self.put(&format!("{at}/ifindex"), &index.to_string());
        self.put(&format!("{at}/flags"), if up { "0x1003" } else { "0x1002" });
        self.put(&format!("{at}/carrier"), "1");
        let device = fs::canonicalize(
            self.folder
                .path()
                .join(format!("sys/bus/pci/devices/{function}")),
        )
        .unwrap();
        symlink(device, self.folder.path().join(format!("{at}/device"))).unwrap();
        self.attribute(function, &format!("net/{name}/here"), "");
    }

    /// A disk below a function.
    pub fn disk(&self, function: &str, name: &str, number: &str) {
        let device = fs::canonicalize(
            self.folder
                .path()
                .join(format!("sys/bus/pci/devices/{function}")),
        )
        .unwrap();
        let at = device.join("nvme/nvme0").join(name);
        fs::create_dir_all(at.join("holders")).unwrap();
        fs::write(at.join("dev"), number).unwrap();
        let partition = at.join(format!("{name}p1"));
        fs::create_dir_all(partition.join("holders")).unwrap();
        fs::write(partition.join("partition"), "1").unwrap();
        fs::write(partition.join("dev"), "259:9").unwrap();
        for (class, name, target) in [
            ("block", name.to_owned(), &at),
            ("class/block", name.to_owned(), &at),
            ("class/block", format!("{name}p1"), &partition),
        ] {
            let folder = self.folder.path().join("sys").join(class);
            fs::create_dir_all(&folder).unwrap();
            symlink(target, folder.join(name)).unwrap();
        }
    }
}

/// The line of `/proc/PID/stat`, as far as it is read.
pub fn stat(pid: u32, state: &str, start: u64) -> String {
    format!("{pid} (a (b) c) {state} 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 {start} 0 0")
}

fn put(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn function(
    root: &Path,
    address: &str,
    above: &[&str],
    class: u32,
    ids: (u16, u16),
    config: &[u8],
    group: u32,
) {
    let mut real = root.join("sys/devices/pci0000:00");
    real.extend(above);
    real.push(address);
    fs::create_dir_all(&real).unwrap();
    let links = [
        (
            root.join("sys/bus/pci/devices"),
            address.to_owned(),
            real.clone(),
        ),
        (
            root.join(format!("sys/kernel/iommu_groups/{group}/devices")),
            address.to_owned(),
            real.clone(),
        ),
        (
            real.clone(),
            "iommu_group".to_owned(),
            root.join(format!("sys/kernel/iommu_groups/{group}")),
        ),
    ];
    for (folder, name, target) in links {
        fs::create_dir_all(&folder).unwrap();
        symlink(target, folder.join(name)).unwrap();
    }
    for (name, value) in [
        ("vendor", format!("{:#06x}", ids.0)),
        ("device", format!("{:#06x}", ids.1)),
        ("class", format!("{class:#08x}")),
        ("numa_node", "-1".to_owned()),
        ("driver_override", "(null)".to_owned()),
        ("reset_method", "flr bus".to_owned()),
        (
            "resource",
            "0x00000000fe000000 0x00000000fe003fff 0x0000000000140204\n0x0 0x0 0x0\n".to_owned(),
        ),
    ] {
        fs::write(real.join(name), value).unwrap();
    }
    fs::write(real.join("config"), config).unwrap();
}

fn set_driver(root: &Path, function: &str, driver: Option<&str>) {
    let device = root.join("sys/bus/pci/devices").join(function);
    let link = device.join("driver");
    let group = link_name(&device.join("iommu_group")).unwrap();
    let file = root.join("dev/vfio").join(group);
    let _ = (fs::remove_file(&link), fs::remove_file(&file));
    if let Some(driver) = driver {
        symlink(root.join("sys/bus/pci/drivers").join(driver), link).unwrap();
        if driver == "vfio-pci" {
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, "").unwrap();
        }
    }
}

impl FakeKernel {
    fn relative(&self, path: &Path) -> String {
        path.strip_prefix(&self.root)
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned()
    }

    /// Counts a change; an error once the process is dead.
    fn change(&self, what: String) -> io::Result<()> {
        let mut inner = self.inner.lock().unwrap();
        if inner.dies_after == Some(inner.changes.len()) {
            return Err(io::Error::other("killed"));
        }
        inner.changes.push(what);
        Ok(())
    }

    fn probe(&self, function: &str) -> io::Result<()> {
        let read = |name: &str| {
            super::root::read(
                &self
                    .root
                    .join(format!("sys/bus/pci/devices/{function}/{name}")),
            )
        };
        let driver = match read("driver_override").unwrap().as_str() {
            "" | "(null)" => read("native"),
            name => Some(name.to_owned()),
        };
        let driver =
            driver.filter(|name| self.root.join("sys/bus/pci/drivers").join(name).exists());
        set_driver(&self.root, function, driver.as_deref());
        Ok(())
    }

    fn set_vfs(&self, pf: &str, count: usize) {
        let device = fs::canonicalize(self.root.join("sys/bus/pci/devices").join(pf)).unwrap();
        for old in 0..7 {
            let link = device.join(format!("virtfn{old}"));
            if let Some(vf) = link_name(&link) {
                fs::remove_file(link).unwrap();
                fs::remove_dir_all(device.parent().unwrap().join(&vf)).unwrap();
                fs::remove_file(self.root.join("sys/bus/pci/devices").join(&vf)).unwrap();
                fs::remove_file(
                    self.root
                        .join(format!("sys/kernel/iommu_groups/{}/devices/{vf}", 20 + old)),
                )
                .unwrap();
            }
        }
        let config = space(0, 0, &[(0x10, &pcie(0, true)), (0x11, &[2, 0])], &[]);
        for index in 0..count {
            let vf = format!("0000:01:10.{index}");
            let group = 20 + u32::try_from(index).unwrap();
            function(
                &self.root,
                &vf,
                &["0000:00:02.0"],
                0x020000,
                (0x8086, 0x10ca),
                &config,
                group,
            );
            let real = device.parent().unwrap().join(&vf);
            symlink(&device, real.join("physfn")).unwrap();
            symlink(&real, device.join(format!("virtfn{index}"))).unwrap();
            fs::write(real.join("native"), "igbvf").unwrap();
            if fs::read_to_string(device.join("sriov_drivers_autoprobe"))
                .unwrap()
                .trim()
                == "1"
            {
                self.probe(&vf).unwrap();
            }
        }
        fs::write(device.join("sriov_numvfs"), count.to_string()).unwrap();
        self.inner.lock().unwrap().vfs.insert(
            2,
            vec![
                VfSettings {
                    mac: Some([0; 6]),
                    vlan: Some(0),
                    spoofchk: Some(true),
                    trust: Some(false)
                };
                count
            ],
        );
    }
}

impl Kernel for FakeKernel {
    fn caller(&self) -> Caller {
        self.inner.lock().unwrap().caller
    }

    fn write(&self, path: &Path, value: &str) -> io::Result<()> {
        let path = self.relative(path);
        let short = path
            .trim_start_matches("sys/bus/pci/")
            .trim_start_matches("devices/")
            .to_owned();
        self.change(format!("{short} = {}", value.trim()))?;
        let parts: Vec<&str> = path.split('/').skip(3).collect();
        match parts.as_slice() {
            ["devices", function, "driver", "unbind"] => set_driver(&self.root, function, None),
            ["devices", function, "sriov_numvfs"] => self.set_vfs(function, value.parse().unwrap()),
            ["devices", _, _] => fs::write(self.root.join(&path), value)?,
            ["drivers_probe"] => self.probe(value)?,
            ["drivers", driver, "bind"] => set_driver(&self.root, value, Some(driver)),
            other => panic!("no attribute {other:?}"),
        }
        Ok(())
    }

    fn writable(&self, path: &Path) -> bool {
        !self
            .inner
            .lock()
            .unwrap()
            .denied
            .contains(&self.relative(path))
    }

    fn try_open(&self, path: &Path) -> io::Result<()> {
        let name = self.relative(path);
        let inner = self.inner.lock().unwrap();
        if inner.denied.contains(&name) {
            return Err(Errno::ACCESS.into());
        }
        if inner.busy.contains(&name) {
            return Err(Errno::BUSY.into());
        }
        fs::metadata(path).map(drop)
    }

    fn block_is_held(&self, path: &Path) -> bool {
        self.inner
            .lock()
            .unwrap()
            .held
            .contains(&self.relative(path))
    }

    fn load_module(&self, name: &str) -> io::Result<()> {
        self.change(format!("modprobe {name}"))?;
        if !self.inner.lock().unwrap().modules.contains(name) {
            return Err(io::Error::other(format!("FATAL: Module {name} not found.")));
        }
        match name {
            "vfio-pci" => put(&self.root, "sys/bus/pci/drivers/vfio-pci/bind", ""),
            name => put(
                &self.root,
                &format!("sys/module/{name}/parameters/allow_unsafe_interrupts"),
                "N",
            ),
        }
        Ok(())
    }

    fn vf_settings(&self, interface: u32) -> Result<Vec<VfSettings>, NetlinkError> {
        Ok(self
            .inner
            .lock()
            .unwrap()
            .vfs
            .get(&interface)
            .cloned()
            .unwrap_or_default())
    }

    fn set_vf(&self, interface: u32, vf: u32, settings: &VfSettings) -> Result<(), NetlinkError> {
        let told = serde_json::to_string(settings).unwrap();
        self.change(format!("vf {vf} {told}"))
            .map_err(NetlinkError::Socket)?;
        let mut inner = self.inner.lock().unwrap();
        if inner.refuses_zero_mac && settings.mac == Some([0; 6]) {
            return Err(NetlinkError::Refused(Errno::INVAL.into()));
        }
        let all = inner.vfs.get_mut(&interface).unwrap();
        let old = &mut all[vf as usize];
        *old = VfSettings {
            mac: settings.mac.or(old.mac),
            vlan: settings.vlan.or(old.vlan),
            spoofchk: settings.spoofchk.or(old.spoofchk),
            trust: settings.trust.or(old.trust),
        };
        Ok(())
    }

    fn set_link(&self, interface: u32, up: bool) -> Result<(), NetlinkError> {
        self.change(format!("link {interface} up={up}"))
            .map_err(NetlinkError::Socket)?;
        put(
            &self.root,
            "sys/class/net/eth0/flags",
            if up { "0x1003" } else { "0x1002" },
        );
        Ok(())
    }
}
