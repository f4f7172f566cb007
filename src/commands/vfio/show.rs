//! `tripath vfio show`: one function, and why it can or cannot be assigned.

use std::fmt::Write;

use devices::vfio::host::config_space::Vectors;
use devices::vfio::host::iommu::{Group, InterruptBypass, Iommu};
use devices::vfio::host::isolation::{self, Step};
use devices::vfio::host::reason::Reason;
use devices::vfio::host::{Bar, Host, Interrupts, PciAddress, PciFunction, Sriov, memory};
use serde::Serialize;

use super::{look, new_table, print, print_json};
use crate::exit_code::{Exit, UserError};

/// Everything there is to say.
#[derive(Debug, Serialize)]
struct Shown {
    address: PciAddress,
    vendor_id: u16,
    device_id: u16,
    name: String,
    class: String,
    driver: Option<String>,
    driver_override: Option<String>,
    numa_node: Option<u32>,
    interfaces: Vec<String>,
    sriov: Option<Sriov>,
    physical_function: Option<PciAddress>,
    vf_index: Option<u32>,
    group: Option<Group>,
    path: Vec<Step>,
    bars: Vec<Bar>,
    interrupts: Interrupts,
    reset_methods: Option<Vec<String>>,
    function_level_reset: bool,
    capabilities_readable: bool,
    iommu: Iommu,
    locked_memory_bytes: u64,
    locked_memory_limit_bytes: Option<u64>,
    assignable: bool,
    reasons: Vec<Reason>,
}

pub fn run(host: &Host, name: &str, guest_bytes: u64, json: bool) -> anyhow::Result<Exit> {
    let address = name.parse::<PciAddress>().map_err(UserError::new)?;
    let function = PciFunction::read(host, address).ok_or_else(|| {
        UserError::from_text(format!(
            "there is no PCI function {address}: 'tripath vfio list' shows them"
        ))
    })?;
    let check = look(host)?;
    let mut reasons = check.function(&function, &[address]);
    reasons.extend(memory::check(host, guest_bytes));
    let caller = host.kernel().caller();
    let shown = Shown {
        address,
        vendor_id: function.vendor,
        device_id: function.device,
        name: function.name(),
        class: function.class_name(),
        vf_index: function.vf_index(host),
        group: function.group.map(|number| Group::read(host, number)),
        path: isolation::path(host, &function),
        interrupts: function.interrupts(),
        function_level_reset: function.config.has_flr(),
        capabilities_readable: function.config.is_whole(),
        iommu: check.iommu().clone(),
        locked_memory_bytes: guest_bytes,
        locked_memory_limit_bytes: caller.memlock_bytes.filter(|_| !caller.ipc_lock),
        assignable: reasons.is_empty(),
        reasons,
        driver: function.driver,
        driver_override: function.driver_override,
        numa_node: function.numa_node,
        interfaces: function.interfaces,
        sriov: function.sriov,
        physical_function: function.physical_function,
        bars: function.bars,
        reset_methods: function.reset_methods,
    };
    if json {
        print_json(&shown)?;
    } else {
        print(&render(&shown))?;
    }
    Ok(Exit::Success)
}

fn render(shown: &Shown) -> String {
    let mut table = new_table(&[]);
    for (name, value) in lines(shown) {
        table.add_row([name.to_owned(), value]);
    }
    let mut text = format!("{}  {}\n{}\n", shown.address, shown.name, table.trim_fmt());
    if shown.assignable {
        text.push_str("\nIt can be assigned now.\n");
        return text;
    }
    text.push_str("\nIt cannot be assigned now:\n");
    for reason in &shown.reasons {
        // Writing into a string does not fail.
        let _ = writeln!(text, "* {reason}");
        for line in reason.remedy() {
            let _ = writeln!(text, "    {line}");
        }
        if reason.yields_to_force() {
            text.push_str("    or take it all the same with force=on\n");
        }
    }
    text
}

fn lines(shown: &Shown) -> Vec<(&'static str, String)> {
    let none = || "none".to_owned();
    let mut lines = vec![
        ("class", shown.class.clone()),
        ("driver", shown.driver.clone().unwrap_or_else(none)),
    ];
    if let Some(node) = shown.numa_node {
        lines.push(("NUMA node", node.to_string()));
    }
    if !shown.interfaces.is_empty() {
        lines.push(("interfaces", shown.interfaces.join(", ")));
    }
    if let Some(sriov) = &shown.sriov {
        lines.push((
            "SR-IOV",
            format!(
                "{} of {} virtual functions",
                sriov.vfs.len(),
                sriov.total_vfs
            ),
        ));
    }
    if let Some(pf) = shown.physical_function {
        let index = shown
            .vf_index
            .map_or_else(String::new, |index| format!(" {index}"));
        lines.push(("SR-IOV", format!("virtual function{index} of {pf}")));
    }
    lines.extend(shown.bars.iter().map(|bar| ("BAR", bar_line(bar))));
    lines.push(("interrupts", interrupts(shown)));
    lines.push((
        "reset",
        match &shown.reset_methods {
            Some(methods) if methods.is_empty() => {
                "none: its state stays when it changes hands".to_owned()
            }
            Some(methods) => methods.join(", "),
            None if shown.function_level_reset => "flr".to_owned(),
            None => "unknown to this kernel".to_owned(),
        },
    ));
    lines.extend(group(shown));
    lines.extend(iommu(&shown.iommu));
    let limit = match shown.locked_memory_limit_bytes {
        Some(limit) => format!("this user's limit is {} KiB", limit >> 10),
        None => "no limit for this user".to_owned(),
    };
    let needed = shown.locked_memory_bytes >> 20;
    lines.push((
        "locked memory",
        format!("all of the guest's RAM: {needed} MiB ({limit})"),
    ));
    lines
}

fn bar_line(bar: &Bar) -> String {
    let size = match bar.size_bytes {
        size if size >= 1 << 20 => format!("{} MiB", size >> 20),
        size if size >= 1 << 10 => format!("{} KiB", size >> 10),
        size => format!("{size} bytes"),
    };
    let mut text = match bar.kind {
        "rom" => format!("ROM, {size}"),
        kind => format!("{} {kind}, {size}", bar.index),
    };
    if bar.is_64_bit {
        text.push_str(", 64-bit");
    }
    if bar.prefetchable {
        text.push_str(", prefetchable");
    }
    text
}

fn interrupts(shown: &Shown) -> String {
    let Interrupts { intx, msi, msix } = shown.interrupts;
    let mut kinds = Vec::new();
    if let Some(Vectors { count, .. }) = msix {
        kinds.push(format!("MSI-X with {count} vectors"));
    }
    if let Some(Vectors { count, maskable }) = msi {
        let mask = if maskable { ", maskable" } else { "" };
        kinds.push(format!("MSI with {count}{mask}"));
    }
    if let Some(pin) = intx {
        kinds.push(format!("INT{pin}"));
    }
    if !shown.capabilities_readable {
        kinds.push("others that only root can see".to_owned());
    }
    if kinds.is_empty() {
        kinds.push("none".to_owned());
    }
    kinds.join("; ")
}

/// The group, its members, and what makes it as large as it is.
fn group(shown: &Shown) -> Vec<(&'static str, String)> {
    let Some(group) = &shown.group else {
        return vec![("IOMMU group", "none".to_owned())];
    };
    let mut lines = vec![("IOMMU group", group.number.to_string())];
    for member in &group.members {
        let own = member.name.parse() == Ok(shown.address);
        let driver = member.driver.as_deref().unwrap_or("no driver");
        let note = match member {
            _ if own => "this function",
            member if member.blocks => "stands in the way",
            member if member.bridge => "a bridge, tolerated",
            _ => "tolerated",
        };
        lines.push(("  member", format!("{} on {driver}: {note}", member.name)));
    }
    lines.extend(shown.path.iter().map(|step| ("  path", step.to_string())));
    let gaps = shown
        .path
        .iter()
        .filter(|step| step.isolation.is_gap())
        .count();
    let size = match (gaps, group.members.len()) {
        (_, 1) => "the function is alone in its group",
        (0, _) => "the path does not say why the group has several members",
        _ => "the group is so large because of what the path lacks",
    };
    lines.push(("  so", size.to_owned()));
    lines
}

fn iommu(iommu: &Iommu) -> Vec<(&'static str, String)> {
    let units = match iommu.units.as_slice() {
        [] if iommu.in_firmware => "off".to_owned(),
        [] => "none".to_owned(),
        units => units.join(", "),
    };
    let remapping = match (iommu.interrupt_remapping, iommu.unsafe_interrupts) {
        (true, _) => "on",
        (false, true) => "off, and VFIO does without (allow_unsafe_interrupts)",
        (false, false) => "off",
    };
    let bypass = match iommu.interrupt_bypass {
        InterruptBypass::Posted => "yes: posted interrupts",
        InterruptBypass::Avic => "yes: AVIC",
        InterruptBypass::OffInKvm => {
            "no: the IOMMU could, and it is off in KVM (kvm_intel.enable_apicv, kvm_amd.avic)"
        }
        InterruptBypass::None => "no: an interrupt of the device goes through the host",
    };
    vec![
        ("IOMMU", units),
        ("interrupt remapping", remapping.to_owned()),
        ("interrupt bypass", bypass.to_owned()),
    ]
}
