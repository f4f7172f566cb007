//! The functions that the guest gets, as the host has them before: what they are, and what of the host's runs on them.

use std::fs;
use std::path::{Path, PathBuf};

use thiserror::Error;
use vmm_core::config::{DeviceConfig, DeviceSource, VfChoice};

/// PCI class codes (PCI Code and ID Assignment Specification): an NVM Express controller, and any network controller.
const CLASS_NVME: &str = "0x0108";
const CLASS_NETWORK: &str = "0x02";
const VFIO_DRIVER: &str = "vfio-pci";

/// Drivers that a guest's kernel can be asked for.
const DRIVERS: [&str; 8] = [
    "nvme",
    "igbvf",
    "ixgbevf",
    "iavf",
    "mlx5_core",
    "bnxt_en",
    "ena",
    "mlx4_core",
];
/// Drivers of physical functions, and of their virtual ones.
const VF_DRIVERS: [(&str, &str); 6] = [
    ("igb", "igbvf"),
    ("ixgbe", "ixgbevf"),
    ("i40e", "iavf"),
    ("ice", "iavf"),
    ("mlx5_core", "mlx5_core"),
    ("bnxt_en", "bnxt_en"),
];

/// Why functions cannot be measured.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FunctionError {
    /// There is none.
    #[error("--device {0}: the host has no such PCI function: see 'tripath vfio list'")]
    Missing(String),
    /// Neither disk nor network.
    #[error(
        "--device {address}: its class is {class}: what can be measured are NVMe controllers (class 0x0108) and virtual \
         functions of network cards (class 0x02)"
    )]
    Class {
        /// The function.
        address: String,
        /// As sysfs has it.
        class: String,
    },
    /// More than one of a kind.
    #[error(
        "--device: {0} are two of a kind: the benchmark takes one disk and one network function"
    )]
    Two(String),
    /// A network card of its own.
    #[error(
        "--device {0}: a network card that is no virtual function: what it sends leaves the host, where there is nobody \
         to answer; give a virtual function, with pf=PF"
    )]
    NoPf(String),
    /// The physical function has no interface.
    #[error(
        "--device pf={0}: no physical function with a network interface: see 'tripath vfio sriov PF'"
    )]
    NoInterface(String),
    /// No virtual function is free.
    #[error(
        "--device pf={0}: no virtual function is free, or none has that number: see 'tripath vfio sriov {0}'"
    )]
    NoVf(String),
    /// The guest's driver is not known.
    #[error("--device {address}: the driver that a guest needs for it is not known (known are {})", DRIVERS.join(", "))]
    Driver {
        /// The function.
        address: String,
    },
}

/// A disk controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskOnHost {
    /// Its disk, if the host has its driver on it.
    pub path: Option<PathBuf>,
    /// Bytes that the disk has, if the host has its driver on it.
    pub size_bytes: Option<u64>,
}

/// A virtual function of a network card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NicOnHost {
    /// Its PCI address; empty if it is still to be made.
    pub address: String,
    /// The PCI address of its physical function.
    pub pf: String,
    /// Its number there.
    pub number: u32,
    /// The guest's driver.
    pub driver: &'static str,
    /// The network interface of its physical function, which the peer is behind.
    pub pf_interface: String,
    /// The Ethernet address that the guest's interface gets.
    pub mac: String,
    /// Whether the host has its own driver on it.
    pub on_host: bool,
}

impl NicOnHost {
    /// The host's interface for it, and its Ethernet address, as long as the host has it.
    #[must_use]
    pub fn interface(&self) -> Option<(String, String)> {
        let name = entry(&functions(Path::new("/")).join(&self.address).join("net"))?;
        let mac = read(&Path::new("/sys/class/net").join(&name).join("address"))?;
        Some((name, mac))
    }
}

/// What the guest gets of the host's functions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Functions {
    /// What the machine is configured with: a virtual function of any number has one here.
    pub devices: Vec<DeviceConfig>,
    /// The disk controller among them.
    pub disk: Option<DiskOnHost>,
    /// The network function among them.
    pub nic: Option<NicOnHost>,
}

impl Functions {
    /// Modules that the guest needs for them.
    #[must_use]
    pub fn drivers(&self) -> Vec<&'static str> {
        let disk = self.disk.iter().map(|_| "nvme");
        disk.chain(self.nic.iter().map(|nic| nic.driver)).collect()
    }

    fn add_nic(&mut self, nic: NicOnHost) -> Result<(), FunctionError> {
        match self.nic.replace(nic) {
            Some(_) => Err(FunctionError::Two("network functions".to_owned())),
            None => Ok(()),
        }
    }
}

/// The name of a driver that a guest's kernel can be asked for.
#[must_use]
pub fn known_driver(name: &str) -> Option<&'static str> {
    DRIVERS.into_iter().find(|driver| *driver == name)
}

/// Finds out what the user's functions are.
///
/// # Errors
/// [`FunctionError`].
pub fn find(devices: &[DeviceConfig]) -> Result<Functions, FunctionError> {
    find_below(Path::new("/"), devices)
}

fn find_below(root: &Path, devices: &[DeviceConfig]) -> Result<Functions, FunctionError> {
    let mut found = Functions::default();
    for device in devices {
        let mut device = device.clone();
        let address = match &device.source {
            DeviceSource::Function { address, .. } => full(address),
            DeviceSource::Vf { pf, vf, .. } if has_none(root, pf) => {
                let (pf, vf) = (pf.clone(), *vf);
                found.add_nic(nic_to_be(root, &pf, vf, &mut device)?)?;
                found.devices.push(device);
                continue;
            }
            DeviceSource::Vf { pf, vf, .. } => vf_address(root, pf, *vf)?,
        };
        let folder = functions(root).join(&address);
        let class = read(&folder.join("class"));
        let class = class.ok_or_else(|| FunctionError::Missing(address.clone()))?;
        if class.starts_with(CLASS_NVME) {
            let disk = disk_of(&folder);
            let size_bytes = disk.as_deref().and_then(|name| size_of(root, name));
            let path = disk.map(|name| Path::new("/dev").join(name));
            if found
                .disk
                .replace(DiskOnHost { path, size_bytes })
                .is_some()
            {
                return Err(FunctionError::Two("NVMe controllers".to_owned()));
            }
        } else if class.starts_with(CLASS_NETWORK) {
            found.add_nic(nic(root, &address, &mut device)?)?;
        } else {
            return Err(FunctionError::Class { address, class });
        }
        found.devices.push(device);
    }
    Ok(found)
}

fn functions(root: &Path) -> PathBuf {
    root.join("sys/bus/pci/devices")
}

/// With the domain, which users leave out.
fn full(address: &str) -> String {
    if address.matches(':').count() == 1 {
        format!("0000:{address}")
    } else {
        address.to_owned()
    }
}

/// The folder of a physical function, by its address or by its interface.
fn pf_folder(root: &Path, pf: &str) -> PathBuf {
    if pf.contains(':') {
        functions(root).join(full(pf))
    } else {
        root.join("sys/class/net").join(pf).join("device")
    }
}

fn vf_address(root: &Path, pf: &str, vf: VfChoice) -> Result<String, FunctionError> {
    let folder = pf_folder(root, pf);
    let numbered = |number: u32| target(&folder.join(format!("virtfn{number}")));
    let free = |address: &String| {
        let folder = functions(root).join(address);
        let in_use = entry(&folder.join("net")).is_some_and(|name| {
            let state = root.join("sys/class/net").join(name).join("operstate");
            read(&state).is_some_and(|state| state == "up")
        });
        target(&folder.join("driver")).as_deref() != Some(VFIO_DRIVER) && !in_use
    };
    match vf {
        VfChoice::Number(number) => numbered(number),
        VfChoice::Auto => (0..).map_while(numbered).find(free),
    }
    .ok_or_else(|| FunctionError::NoVf(pf.to_owned()))
}

/// Whether a physical function that can have virtual functions has none.
fn has_none(root: &Path, pf: &str) -> bool {
    let folder = pf_folder(root, pf);
    folder.join("sriov_totalvfs").exists() && !folder.join("virtfn0").exists()
}

/// A network function, which `device` gets by its number and with an address of its own.
fn nic(root: &Path, address: &str, device: &mut DeviceConfig) -> Result<NicOnHost, FunctionError> {
    let folder = functions(root).join(address);
    let pf = target(&folder.join("physfn")).ok_or_else(|| FunctionError::NoPf(address.into()))?;
    let pf_folder = functions(root).join(&pf);
    let number = (0..)
        .map_while(|number| target(&pf_folder.join(format!("virtfn{number}"))))
        .position(|one| one == address)
        .and_then(|number| u32::try_from(number).ok())
        .ok_or_else(|| FunctionError::NoVf(pf.clone()))?;
    let own_driver = target(&folder.join("driver")).filter(|name| name != VFIO_DRIVER);
    let driver = own_driver
        .as_deref()
        .or_else(|| usual_driver(&pf_folder))
        .and_then(known_driver);
    let driver = driver.ok_or_else(|| FunctionError::Driver {
        address: address.to_owned(),
    })?;
    let nic = NicOnHost {
        address: address.to_owned(),
        driver,
        pf_interface: interface_of(root, &pf)?,
        mac: mac_for(device),
        on_host: own_driver.is_some(),
        pf,
        number,
    };
    name_function(device, &nic);
    Ok(nic)
}

/// The same for one that is still to be made, as far as that can be foreseen.
fn nic_to_be(
    root: &Path,
    pf: &str,
    vf: VfChoice,
    device: &mut DeviceConfig,
) -> Result<NicOnHost, FunctionError> {
    let folder = fs::canonicalize(pf_folder(root, pf)).ok();
    let name = folder.as_ref().and_then(|folder| folder.file_name());
    let name = name.map(|name| name.to_string_lossy().into_owned());
    let pf = name.ok_or_else(|| FunctionError::NoInterface(pf.to_owned()))?;
    let folder = functions(root).join(&pf);
    let driver = usual_driver(&folder).and_then(known_driver);
    let driver = driver.ok_or_else(|| FunctionError::Driver {
        address: format!("pf={pf}"),
    })?;
    let is_bound = read(&folder.join("sriov_drivers_autoprobe")).as_deref() != Some("0");
    let nic = NicOnHost {
        address: String::new(),
        driver,
        pf_interface: interface_of(root, &pf)?,
        mac: mac_for(device),
        on_host: is_bound && root.join("sys/bus/pci/drivers").join(driver).exists(),
        pf,
        number: match vf {
            VfChoice::Auto => 0,
            VfChoice::Number(number) => number,
        },
    };
    name_function(device, &nic);
    Ok(nic)
}

/// What a virtual function of that physical function needs.
fn usual_driver(pf_folder: &Path) -> Option<&'static str> {
    let pf_driver = target(&pf_folder.join("driver"))?;
    let known = VF_DRIVERS.iter().find(|(of_pf, _)| *of_pf == pf_driver);
    known.map(|(_, name)| *name)
}

fn interface_of(root: &Path, pf: &str) -> Result<String, FunctionError> {
    let found = entry(&functions(root).join(pf).join("net"));
    found.ok_or_else(|| FunctionError::NoInterface(pf.to_owned()))
}

fn mac_for(device: &DeviceConfig) -> String {
    let given = match &device.source {
        DeviceSource::Vf { mac, .. } => mac.clone(),
        DeviceSource::Function { .. } => None,
    };
    given.unwrap_or_else(any_mac)
}

/// The user's function, by its number.
fn name_function(device: &mut DeviceConfig, nic: &NicOnHost) {
    let (vlan, spoofchk, trust) = match device.source {
        DeviceSource::Vf {
            vlan,
            spoofchk,
            trust,
            ..
        } => (vlan, spoofchk, trust),
        DeviceSource::Function { .. } => (None, None, None),
    };
    device.source = DeviceSource::Vf {
        pf: nic.pf.clone(),
        vf: VfChoice::Number(nic.number),
        mac: Some(nic.mac.clone()),
        vlan,
        spoofchk,
        trust,
    };
}

/// An address that nobody was given by a maker.
fn any_mac() -> String {
    let bytes = fastrand::u32(..).to_be_bytes();
    let [a, b, c, d] = bytes;
    format!("02:54:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

/// The first namespace of an NVMe controller that has the host's driver, as block devices are named.
fn disk_of(folder: &Path) -> Option<String> {
    let controller = entry(&folder.join("nvme"))?;
    let disks = fs::read_dir(folder.join("nvme").join(&controller)).ok()?;
    let first = disks
        .flatten()
        .filter_map(|entry| namespace(&entry.file_name().to_string_lossy()))
        .min()?;
    Some(format!("nvme{}n{}", first.0, first.1))
}

/// Bytes of a block device.
fn size_of(root: &Path, name: &str) -> Option<u64> {
    const SECTOR_BYTES: u64 = 512;
    let sectors: u64 = read(&root.join("sys/class/block").join(name).join("size"))?
        .parse()
        .ok()?;
    sectors.checked_mul(SECTOR_BYTES)
}

/// The numbers of `nvme0n1`, and those of `nvme0c2n1`: the kernel's name for the way to it by one of several controllers
/// (`nvme_core.multipath`).
fn namespace(name: &str) -> Option<(u32, u32)> {
    let (subsystem, number) = name.strip_prefix("nvme")?.split_once('n')?;
    let subsystem = match subsystem.split_once('c') {
        Some((subsystem, controller)) => {
            controller.parse::<u32>().ok()?;
            subsystem
        }
        None => subsystem,
    };
    Some((subsystem.parse().ok()?, number.parse().ok()?))
}

fn read(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

/// The last part of what a link points to.
fn target(link: &Path) -> Option<String> {
    let target = fs::read_link(link).ok()?;
    Some(target.file_name()?.to_string_lossy().into_owned())
}

/// The first entry of a folder, by name.
fn entry(folder: &Path) -> Option<String> {
    let entries = fs::read_dir(folder).ok()?.flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .min()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const PF: &str = "0000:01:00.0";
    const VFS: [&str; 2] = ["0000:01:10.0", "0000:01:10.2"];
    const DISK: &str = "0000:02:00.0";

    fn host() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        let put = |name: &str, text: &str| {
            fs::create_dir_all(path(name).parent().unwrap()).unwrap();
            fs::write(path(name), text).unwrap();
        };
        let link = |name: &str, to: &str| {
            fs::create_dir_all(path(name).parent().unwrap()).unwrap();
            symlink(to, path(name)).unwrap();
        };
        let function = |address: &str, rest: &str| format!("sys/bus/pci/devices/{address}/{rest}");
        put(&function(PF, "class"), "0x020000\n");
        link(&function(PF, "driver"), "../../drivers/igb");
        fs::create_dir_all(path(&function(PF, "net/eth7"))).unwrap();
        for (number, (vf, state)) in VFS.into_iter().zip(["up", "down"]).enumerate() {
            put(&function(vf, "class"), "0x020000\n");
            link(&function(vf, "physfn"), &format!("../{PF}"));
            link(
                &function(PF, &format!("virtfn{number}")),
                &format!("../{vf}"),
            );
            link(&function(vf, "driver"), "../../drivers/igbvf");
            let name = format!("vf{number}");
            fs::create_dir_all(path(&function(vf, &format!("net/{name}")))).unwrap();
            put(&format!("sys/class/net/{name}/operstate"), state);
        }
        link(
            "sys/class/net/eth7/device",
            &format!("../../../bus/pci/devices/{PF}"),
        );
        put(&function(DISK, "class"), "0x010802\n");
        for name in ["nvme0c0n1", "nvme0c0n2", "hwmon1", "power"] {
            fs::create_dir_all(path(&function(DISK, &format!("nvme/nvme0/{name}")))).unwrap();
        }
        put("sys/class/block/nvme0n1/size", "262144\n");
        put(&function("0000:03:00.0", "class"), "0x030000\n");
        root
    }

    fn device(text: &str) -> DeviceConfig {
        let (key, value) = text.split_once('=').unwrap();
        serde_json::from_value(serde_json::json!({ key: value })).unwrap()
    }

    fn found(devices: &[&str]) -> Result<Functions, FunctionError> {
        let root = host();
        let devices: Vec<_> = devices.iter().map(|text| device(text)).collect();
        find_below(root.path(), &devices)
    }

    #[test]
    fn a_disk_and_a_free_virtual_function() {
        let found = found(&["host=02:00.0", "pf=eth7"]).unwrap();
        let disk = DiskOnHost {
            path: Some("/dev/nvme0n1".into()),
            size_bytes: Some(128 << 20),
        };
        assert_eq!(found.disk, Some(disk));
        assert_eq!(found.drivers(), ["nvme", "igbvf"]);
        let nic = found.nic.unwrap();
        assert_eq!((nic.address.as_str(), nic.on_host), (VFS[1], true));
        assert_eq!(nic.pf_interface, "eth7");
        let DeviceSource::Vf { pf, vf, mac, .. } = &found.devices[1].source else {
            panic!()
        };
        assert_eq!((pf.as_str(), *vf), (PF, VfChoice::Number(1)));
        assert_eq!(*mac, Some(nic.mac));
    }

    #[test]
    fn a_disk_by_one_way_or_by_several() {
        assert_eq!(namespace("nvme1n2"), Some((1, 2)));
        assert_eq!(namespace("nvme1c3n2"), Some((1, 2)));
        for other in ["nvme0", "hwmon1", "ng0n1", "nvme0n1p1", "nvmecn1"] {
            assert_eq!(namespace(other), None, "{other}");
        }
    }

    #[test]
    fn a_virtual_function_may_be_named_by_its_address() {
        let found = found(&["host=01:10.0"]).unwrap();
        assert_eq!(found.nic.unwrap().address, VFS[0]);
        assert!(matches!(
            found.devices[0].source,
            DeviceSource::Vf {
                vf: VfChoice::Number(0),
                ..
            }
        ));
    }

    #[test]
    fn a_virtual_function_may_be_still_to_be_made() {
        let root = host();
        let path = |name: &str| root.path().join(name);
        for number in 0..VFS.len() {
            fs::remove_file(path(&format!("sys/bus/pci/devices/{PF}/virtfn{number}"))).unwrap();
        }
        fs::write(
            path(&format!("sys/bus/pci/devices/{PF}/sriov_totalvfs")),
            "7",
        )
        .unwrap();
        let found = || find_below(root.path(), &[device("pf=eth7")]).unwrap();
        let nic = found().nic.unwrap();
        assert_eq!((nic.address.as_str(), nic.on_host), ("", false));
        assert_eq!((nic.pf.as_str(), nic.number, nic.driver), (PF, 0, "igbvf"));
        fs::create_dir_all(path("sys/bus/pci/drivers/igbvf")).unwrap();
        assert!(found().nic.unwrap().on_host);
    }

    #[test]
    fn what_cannot_be_measured_is_told() {
        for (devices, message) in [
            (&["host=0f:00.0"][..], "the host has no such PCI function"),
            (&["host=03:00.0"], "its class is 0x030000"),
            (
                &["host=01:00.0"],
                "a network card that is no virtual function",
            ),
            (&["host=01:10.0", "host=01:10.2"], "two of a kind"),
            (&["pf=eth9"], "no virtual function is free"),
        ] {
            let error = found(devices).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
