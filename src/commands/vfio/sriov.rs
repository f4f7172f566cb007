//! `tripath vfio sriov`: makes, lists and removes virtual functions.

use devices::vfio::host::netlink::VfSettings;
use devices::vfio::host::sriov::{self, SriovError, VfInfo};
use devices::vfio::host::state::StateFolder;
use devices::vfio::host::{Host, PciAddress, recover};
use serde::Serialize;

use super::{look, new_table, print, print_json};
use crate::exit_code::{Exit, UserError};

#[derive(Debug, Serialize)]
struct Listed {
    physical_function: PciAddress,
    interfaces: Vec<String>,
    total_vfs: u16,
    vfs: Vec<VfInfo>,
}

pub fn run(host: &Host, name: &str, wanted: Option<u32>, json: bool) -> anyhow::Result<Exit> {
    if let Some(wanted) = wanted {
        set(host, name, wanted)?;
    }
    let (pf, sriov) = sriov::find_pf(host, name).map_err(UserError::new)?;
    let listed = Listed {
        physical_function: pf.address,
        interfaces: pf.interfaces.clone(),
        total_vfs: sriov.total_vfs,
        vfs: sriov::vfs(host, &look(host)?, &pf, &sriov),
    };
    if json {
        print_json(&listed)?;
    } else {
        print(&render(&listed))?;
    }
    Ok(Exit::Success)
}

/// No run takes or gives back a VF meanwhile.
fn set(host: &Host, name: &str, wanted: u32) -> anyhow::Result<()> {
    let state = StateFolder::of_caller(host);
    let lock = state.lock()?;
    for problem in recover::recover(host, &state, &lock)?.problems {
        log::warn!("what a killed run left: {problem}");
    }
    let told = |error| match error {
        SriovError::Action(error) => anyhow::Error::new(error),
        error => UserError::new(error).into(),
    };
    let (pf, sriov) = sriov::find_pf(host, name).map_err(told)?;
    sriov::set_vfs(host, &look(host)?, &pf, &sriov, wanted).map_err(told)
}

fn render(listed: &Listed) -> String {
    let Listed {
        physical_function,
        interfaces,
        total_vfs,
        vfs,
    } = listed;
    let mut text = format!("{physical_function}");
    if !interfaces.is_empty() {
        text = format!("{text} ({})", interfaces.join(", "));
    }
    text = format!("{text}: {} of {total_vfs} virtual functions\n", vfs.len());
    if vfs.is_empty() {
        return text;
    }
    let mut table = new_table(&[
        "vf", "address", "group", "driver", "mac", "vlan", "spoofchk", "trust", "used",
    ]);
    let on_off = |value: Option<bool>| match value {
        Some(true) => "on".to_owned(),
        Some(false) => "off".to_owned(),
        None => "-".to_owned(),
    };
    for vf in vfs {
        let VfSettings {
            mac,
            vlan,
            spoofchk,
            trust,
        } = vf.settings;
        table.add_row([
            vf.index.to_string(),
            vf.address.to_string(),
            vf.group
                .map_or_else(|| "-".to_owned(), |group| group.to_string()),
            vf.driver.clone().unwrap_or_else(|| "-".to_owned()),
            mac.map_or_else(
                || "-".to_owned(),
                |mac| mac.map(|byte| format!("{byte:02x}")).join(":"),
            ),
            vlan.map_or_else(|| "-".to_owned(), |vlan| vlan.to_string()),
            on_off(spoofchk),
            on_off(trust),
            vf.used
                .as_ref()
                .map_or_else(|| "no".to_owned(), ToString::to_string),
        ]);
    }
    format!("{text}{}\n", table.trim_fmt())
}
