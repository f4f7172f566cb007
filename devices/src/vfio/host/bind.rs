//! Moving a function from one driver to another (`Documentation/ABI/testing/sysfs-bus-pci`: `driver_override`,
//! `unbind`, `drivers_probe`).

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use thiserror::Error;

use super::address::PciAddress;
use super::function::{PciFunction, folder, is_vfio_driver};
use super::netlink::NetlinkError;
use super::root::Host;

/// The driver that hands a function to a guest.
pub(super) const VFIO_PCI: &str = "vfio-pci";
/// A killed run's files are closed soon after; a device's reset belongs to that.
const GROUP_FREE_LIMIT: Duration = Duration::from_secs(10);
/// Between two looks at what sends no event.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A change that did not work.
#[derive(Debug, Error)]
pub enum ActionError {
    /// An attribute did not take its value.
    #[error("cannot write {value:?} to {path}: {source}")]
    Write {
        /// Which.
        path: PathBuf,
        /// What.
        value: String,
        /// Why.
        source: io::Error,
    },
    /// The module is there and cannot be loaded.
    #[error("cannot load the module {name}: {source}")]
    Module {
        /// Which.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// No driver, or another one, came of it.
    #[error("{function} did not come to the driver {wanted} (it has {}): 'dmesg' says why", now.as_deref().unwrap_or("none"))]
    NotBound {
        /// Which.
        function: PciAddress,
        /// Whose it was to be.
        wanted: String,
        /// Whose it is.
        now: Option<String>,
    },
    /// It cannot be taken from a guest that still has it.
    #[error(
        "{function} cannot be given back: its IOMMU group {group} is still in use ('fuser -v /dev/vfio/{group}' says by whom)"
    )]
    StillInUse {
        /// Which.
        function: PciAddress,
        /// Its group.
        group: u32,
    },
    /// The PF does not take a setting.
    #[error("{pf} does not set the {what} of its VF {vf}: {source}")]
    Setting {
        /// The PF.
        pf: PciAddress,
        /// Which VF.
        vf: u32,
        /// What.
        what: &'static str,
        /// Why.
        source: NetlinkError,
    },
    /// The PF's interface cannot be asked or changed.
    #[error("the network interface {interface}: {source}")]
    Interface {
        /// Its name.
        interface: String,
        /// Why.
        source: NetlinkError,
    },
    /// VFs are not there after they were made.
    #[error("{pf} has {found} virtual functions, not {wanted}: 'dmesg' says why")]
    VfCount {
        /// The PF.
        pf: PciAddress,
        /// How many there were to be.
        wanted: u32,
        /// How many there are.
        found: usize,
    },
}

/// Writes an attribute of sysfs, whose path is from the root of the host.
pub(super) fn write(host: &Host, path: &str, value: &str) -> Result<(), ActionError> {
    let whole = host.path(path);
    host.kernel()
        .write(&whole, value)
        .map_err(|source| ActionError::Write {
            path: whole,
            value: value.trim().to_owned(),
            source,
        })
}

/// The driver of a function now.
pub(super) fn driver(host: &Host, function: PciAddress) -> Option<String> {
    super::root::link_name(&host.path(&folder(function)).join("driver"))
}

/// Whether the function is still there.
pub(super) fn is_there(host: &Host, function: PciAddress) -> bool {
    host.has(&folder(function))
}

/// Loads vfio-pci unless it is there.
pub(super) fn load_vfio_pci(host: &Host) -> Result<(), ActionError> {
    for (there, module) in [
        ("sys/bus/pci/drivers/vfio-pci", "vfio-pci"),
        ("sys/module/vfio_iommu_type1", "vfio_iommu_type1"),
    ] {
        if !host.has(there) {
            let name = module.to_owned();
            host.kernel()
                .load_module(module)
                .map_err(|source| ActionError::Module { name, source })?;
        }
    }
    Ok(())
}

/// Takes a function from the driver it has, whichever that is.
pub(super) fn unbind(host: &Host, function: PciAddress) -> Result<(), ActionError> {
    if driver(host, function).is_none() {
        return Ok(());
    }
    let path = format!("{}/driver/unbind", folder(function));
    write(host, &path, &function.to_string())
}

/// Binds a function without a driver to vfio-pci.
pub(super) fn bind_to_vfio(host: &Host, function: PciAddress) -> Result<(), ActionError> {
    if driver(host, function)
        .as_deref()
        .is_some_and(is_vfio_driver)
    {
        return Ok(());
    }
    set_override(host, function, Some(VFIO_PCI))?;
    write(host, "sys/bus/pci/drivers_probe", &function.to_string())?;
    match driver(host, function) {
        Some(driver) if driver == VFIO_PCI => Ok(()),
        now => Err(ActionError::NotBound {
            function,
            wanted: VFIO_PCI.to_owned(),
            now,
        }),
    }
}

/// Sets or clears which driver alone may take a function.
pub(super) fn set_override(
    host: &Host,
    function: PciAddress,
    driver: Option<&str>,
) -> Result<(), ActionError> {
    // A line feed alone clears it.
    write(
        host,
        &format!("{}/driver_override", folder(function)),
        driver.unwrap_or("\n"),
    )
}

/// Binds a function without a driver to the one it had.
pub(super) fn bind_to(host: &Host, function: PciAddress, wanted: &str) -> Result<(), ActionError> {
    let at = format!("sys/bus/pci/drivers/{wanted}");
    if !host.has(&at) {
        // The file is named as the driver is, in most cases; if not, the check below tells.
        let loaded = host.kernel().load_module(wanted);
        loaded.unwrap_or_else(|error| log::debug!("modprobe {wanted}: {error}"));
    }
    let bound = write(host, &format!("{at}/bind"), &function.to_string());
    match (driver(host, function), bound) {
        (Some(now), _) if now == wanted => Ok(()),
        (_, Err(error)) => Err(error),
        (now, Ok(())) => Err(ActionError::NotBound {
            function,
            wanted: wanted.to_owned(),
            now,
        }),
    }
}

/// Waits until nobody has the group open: unbinding would wait for that in the kernel, where no signal reaches it.
pub(super) fn wait_for_group(
    host: &Host,
    function: PciAddress,
    group: u32,
) -> Result<(), ActionError> {
    let path = host.path(&format!("dev/vfio/{group}"));
    let is_busy = || {
        let opened = host.kernel().try_open(&path);
        opened.is_err_and(|error| error.raw_os_error() == Some(Errno::BUSY.raw_os_error()))
    };
    if wait_until(GROUP_FREE_LIMIT, || !is_busy()) {
        Ok(())
    } else {
        Err(ActionError::StillInUse { function, group })
    }
}

/// Looks again and again at what sends no event; false when the time is over.
pub(super) fn wait_until(limit: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while !is_so() {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    true
}

/// The number by which netlink knows an interface.
pub(super) fn interface_index(host: &Host, name: &str) -> Option<u32> {
    host.read(&format!("sys/class/net/{name}/ifindex"))?
        .parse()
        .ok()
}

/// The interface through which a PF sets its VFs up, and its number.
pub(super) fn interface_of(host: &Host, pf: PciAddress) -> Option<(String, u32)> {
    let interfaces = PciFunction::read(host, pf)?.interfaces;
    let name = interfaces.into_iter().next()?;
    let index = interface_index(host, &name)?;
    Some((name, index))
}
