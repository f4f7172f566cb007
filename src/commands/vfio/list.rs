//! `tripath vfio list`: the host's functions by IOMMU group, and whether each could be assigned now.

use devices::vfio::host::check::Check;
use devices::vfio::host::iommu::Iommu;
use devices::vfio::host::reason::Reason;
use devices::vfio::host::{Host, PciAddress, PciFunction};
use serde::Serialize;

use super::{look, new_table, print, print_json};
use crate::exit_code::Exit;

/// One function.
#[derive(Debug, Serialize)]
pub struct Row {
    group: Option<u32>,
    address: PciAddress,
    vendor_id: u16,
    device_id: u16,
    name: String,
    class: String,
    driver: Option<String>,
    numa_node: Option<u32>,
    interfaces: Vec<String>,
    sriov: Option<SriovColumn>,
    physical_function: Option<PciAddress>,
    bridge: bool,
    assignable: bool,
    reasons: Vec<Reason>,
}

/// VFs of a PF.
#[derive(Debug, Serialize)]
struct SriovColumn {
    total_vfs: u16,
    vfs: usize,
    vfs_in_use: usize,
}

#[derive(Debug, Serialize)]
struct List<'a> {
    iommu: &'a Iommu,
    functions: Vec<Row>,
}

pub fn run(host: &Host, json: bool) -> anyhow::Result<Exit> {
    let check = look(host)?;
    let rows = rows(&check, host);
    if json {
        print_json(&List {
            iommu: check.iommu(),
            functions: rows,
        })?;
    } else {
        print(&render(&rows))?;
        for reason in check.platform(None) {
            print(&format!("\n{reason}\n"))?;
            for line in reason.remedy() {
                print(&format!("  {line}\n"))?;
            }
        }
    }
    Ok(Exit::Success)
}

/// Every function, by group.
pub fn rows(check: &Check<'_>, host: &Host) -> Vec<Row> {
    let mut rows: Vec<Row> = PciFunction::all(host)
        .into_iter()
        .map(|function| {
            let reasons = check.function(&function, &[function.address]);
            Row {
                group: function.group,
                address: function.address,
                vendor_id: function.vendor,
                device_id: function.device,
                name: function.name(),
                class: function.class_name(),
                sriov: function.sriov.as_ref().map(|sriov| SriovColumn {
                    total_vfs: sriov.total_vfs,
                    vfs: sriov.vfs.len(),
                    vfs_in_use: check.used_vfs(&sriov.vfs).len(),
                }),
                bridge: function.config.is_bridge(),
                assignable: reasons.is_empty(),
                reasons,
                driver: function.driver,
                numa_node: function.numa_node,
                interfaces: function.interfaces,
                physical_function: function.physical_function,
            }
        })
        .collect();
    rows.sort_by_key(|row| (row.group.unwrap_or(u32::MAX), row.address));
    rows
}

/// The table.
pub fn render(rows: &[Row]) -> String {
    let header = [
        "group",
        "address",
        "device",
        "driver",
        "numa",
        "vfs",
        "assignable",
    ];
    let mut table = new_table(&header);
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    for row in rows {
        let mut driver = or_dash(row.driver.clone());
        if !row.interfaces.is_empty() {
            driver = format!("{driver} ({})", row.interfaces.join(", "));
        }
        table.add_row([
            or_dash(row.group.map(|group| group.to_string())),
            row.address.to_string(),
            row.name.clone(),
            driver,
            or_dash(row.numa_node.map(|node| node.to_string())),
            sriov(row),
            verdict(row),
        ]);
    }
    format!("{}\n", table.trim_fmt())
}

fn sriov(row: &Row) -> String {
    match (&row.sriov, row.physical_function) {
        (
            Some(SriovColumn {
                total_vfs,
                vfs,
                vfs_in_use,
            }),
            _,
        ) => {
            format!("{vfs} of {total_vfs}, {vfs_in_use} in use")
        }
        (None, Some(pf)) => format!("of {pf}"),
        (None, None) => "-".to_owned(),
    }
}

/// In a word or two; `tripath vfio show` has the rest.
fn verdict(row: &Row) -> String {
    let Some(first) = row.reasons.first() else {
        return "yes".to_owned();
    };
    let why = match first {
        Reason::Bridge => return "-".to_owned(),
        Reason::NoSuchFunction(_) => "gone".to_owned(),
        Reason::NoIommu { .. } => "no IOMMU".to_owned(),
        Reason::NoGroup => "not covered by the IOMMU".to_owned(),
        Reason::NoInterruptRemapping { .. } => "no interrupt remapping".to_owned(),
        Reason::MemberOnHostDriver { member, driver, .. } => format!("{member} is on {driver}"),
        Reason::GroupInUse { .. } => "in use by a guest".to_owned(),
        Reason::ClaimedBy { pid, .. } => format!("in use by process {pid}"),
        Reason::InUse(usage) => usage.to_string(),
        Reason::NoVfioPci { .. } => "no vfio-pci".to_owned(),
        Reason::MayNotBind { .. } | Reason::NoPermission { .. } => "no permission".to_owned(),
        Reason::HasVfs { .. } => "has VFs".to_owned(),
        Reason::PfWithoutDriver { .. } => "its PF has no driver".to_owned(),
        Reason::LockedMemory { .. } | Reason::GroupMemory { .. } => "memory limit".to_owned(),
    };
    let more = row.reasons.len() - 1;
    let forced = row.reasons.iter().all(Reason::yields_to_force);
    let by = if forced { "only with force" } else { "no" };
    if more == 0 {
        format!("{by}: {why}")
    } else {
        format!("{by}: {why}, and {more} more")
    }
}
