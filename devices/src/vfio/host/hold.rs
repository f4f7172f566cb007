//! A PF that is kept ready for one guest after another: each takes its VF and gives it back, and the VFs stay.

use std::sync::Arc;
use std::time::Duration;

use super::address::PciAddress;
use super::bind::{self, ActionError};
use super::check::{Check, described};
use super::claim::ClaimError;
use super::function::{PciFunction, Sriov};
use super::recover::{self, Problem};
use super::root::Host;
use super::sriov::{self, SriovError};
use super::state::{Claims, Owner, PfChange, StateFolder};

/// How long a PF's interface that was down may take to have a link; VFs work without, but some drivers' only later.
const LINK_LIMIT: Duration = Duration::from_secs(5);

/// What this process has changed on a PF. Dropping it undoes that; if the process is killed, the next start does.
#[derive(Debug)]
pub struct Hold {
    host: Arc<Host>,
    state: StateFolder,
    pf: PciAddress,
}

impl Hold {
    fn undo(&self) -> Result<(), Problem> {
        let lock = self.state.lock()?;
        if let Some(mut change) = self.state.change(self.pf)? {
            change.holder = None;
            self.state.write_change(&lock, &change)?;
        }
        recover::undo_change(&self.host, &self.state, &lock, self.pf)?;
        Ok(())
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Err(problem) = self.undo() {
            log::error!("{}: {problem}", self.pf);
        }
    }
}

/// Takes the PF's interface up if it is down, and makes `count` VFs if there are none, with the host's drivers on them.
/// None if there was nothing to do.
///
/// # Errors
/// [`ClaimError`]; nothing is changed then.
pub fn hold(
    host: &Arc<Host>,
    state: &StateFolder,
    pf: PciAddress,
    count: u16,
) -> Result<Option<Hold>, ClaimError> {
    let lock = state.lock()?;
    for problem in recover::recover(host, state, &lock)?.problems {
        log::warn!("what a killed run left: {problem}");
    }
    let (function, sriov) = sriov::find_pf(host, &pf.to_string())?;
    let down = bind::interface_of(host, pf).filter(|(name, _)| !recover::is_up(host, name));
    let makes = sriov.vfs.is_empty();
    if down.is_none() && !makes {
        return Ok(None);
    }
    if makes && (function.driver.is_none() || function.is_on_vfio()) {
        let described = described(&function);
        return Err(SriovError::NoDriver { pf, described }.into());
    }
    let earlier = state.change(pf)?;
    let mut change = earlier.unwrap_or_else(|| PfChange::none(pf));
    change.holder = Some(Owner::this(host));
    change.made_vfs |= makes;
    if let Some((name, _)) = &down {
        change.interface_up = Some(name.clone());
    }
    state.write_change(&lock, &change)?;
    // Dropped after the lock, which it takes: an error below undoes all.
    let hold = Hold {
        host: host.clone(),
        state: state.clone(),
        pf,
    };
    let changed = change_pf(host, &function, &sriov, down, makes.then_some(count));
    drop(lock);
    changed?;
    Ok(Some(hold))
}

fn change_pf(
    host: &Host,
    pf: &PciFunction,
    sriov: &Sriov,
    down: Option<(String, u32)>,
    count: Option<u16>,
) -> Result<(), ClaimError> {
    if let Some((interface, index)) = down {
        take_up(host, &interface, index)?;
    }
    if let Some(count) = count {
        let check = Check::new(host, Claims::default());
        sriov::set_vfs(host, &check, pf, sriov, u32::from(count))?;
    }
    Ok(())
}

/// Takes an interface up, and waits some time for its link.
pub(super) fn take_up(host: &Host, interface: &str, index: u32) -> Result<(), ActionError> {
    let set = host.kernel().set_link(index, true);
    set.map_err(|source| ActionError::Interface {
        interface: interface.to_owned(),
        source,
    })?;
    let carrier = format!("sys/class/net/{interface}/carrier");
    bind::wait_until(LINK_LIMIT, || host.read(&carrier).as_deref() == Some("1"));
    Ok(())
}
