//! Giving back: at the end of a run, and in place of a run that was killed.
//!
//! Every step looks at how things are and moves them to how they were, so that it does not matter after which of its
//! changes a run ended, nor whether an earlier recovery was cut short.

use thiserror::Error;

use super::address::PciAddress;
use super::bind::{self, ActionError};
use super::check::Check;
use super::function::{PciFunction, folder, is_vfio_driver};
use super::netlink::VfSettings;
use super::root::Host;
use super::sriov;
use super::state::{Claim, Lock, PfChange, StateError, StateFolder};

/// Something could not be put back.
#[derive(Debug, Error)]
pub enum Problem {
    /// A change did not work.
    #[error(transparent)]
    Action(#[from] ActionError),
    /// The state files.
    #[error(transparent)]
    State(#[from] StateError),
}

/// What a recovery did.
#[derive(Debug, Default)]
pub struct Recovered {
    /// One line for each thing that was put back.
    pub done: Vec<String>,
    /// What is still not as it was.
    pub problems: Vec<Problem>,
    /// Functions that runs have which live.
    pub in_use: Vec<PciAddress>,
}

/// Undoes what runs that do not live any more have left.
///
/// # Errors
/// The state files cannot be read.
pub fn recover(host: &Host, state: &StateFolder, lock: &Lock) -> Result<Recovered, StateError> {
    let mut recovered = Recovered::default();
    for claim in state.claims()?.0 {
        if claim.owner.lives(host) {
            recovered.in_use.push(claim.function);
            continue;
        }
        match undo(host, state, lock, &claim) {
            Ok(()) => recovered.done.push(told(&claim)),
            Err(problem) => recovered.problems.push(problem),
        }
    }
    // Those of VFs above are undone with the last claim; these are of runs that came no further.
    for change in state.changes()? {
        match undo_change(host, state, lock, change.pf) {
            Ok(true) => recovered.done.push(format!(
                "{}: as it was before its virtual functions were used",
                change.pf
            )),
            Ok(false) => {}
            Err(problem) => recovered.problems.push(problem),
        }
    }
    Ok(recovered)
}

/// [`recover`] for a start that needs nothing of it: it waits for nobody unless there is something to undo, and what
/// does not work is logged.
pub fn recover_in_passing(host: &Host, state: &StateFolder) {
    let recovered = match is_needed(host, state) {
        Ok(false) => return,
        Ok(true) => state.lock().and_then(|lock| recover(host, state, &lock)),
        Err(error) => Err(error),
    };
    match recovered {
        Ok(recovered) => {
            for problem in recovered.problems {
                log::warn!("what a killed run left: {problem}");
            }
        }
        Err(error) => log::warn!("what a killed run left: {error}"),
    }
}

/// Whether a run that was killed has left something, or one is at this moment taking its functions.
fn is_needed(host: &Host, state: &StateFolder) -> Result<bool, StateError> {
    let claims = state.claims()?.0;
    if claims.iter().any(|claim| !claim.owner.lives(host)) {
        return Ok(true);
    }
    let in_use = |pf| claims.iter().any(|claim| claim.is_below(pf));
    let changes = state.changes()?;
    Ok(changes
        .iter()
        .any(|change| !in_use(change.pf) && !change.is_held(host)))
}

fn told(claim: &Claim) -> String {
    let Claim {
        function,
        owner,
        driver,
        keep,
        ..
    } = claim;
    let pid = owner.pid;
    match driver {
        _ if *keep => format!("{function}: stays on vfio-pci, as process {pid} was told"),
        Some(driver) => format!("{function}: back on {driver}, from process {pid}"),
        None => format!("{function}: without a driver, as process {pid} found it"),
    }
}

/// Gives one function back, and forgets it. The lock is held, and the function's guest has ended.
pub(super) fn undo(
    host: &Host,
    state: &StateFolder,
    lock: &Lock,
    claim: &Claim,
) -> Result<(), Problem> {
    // A VF may have gone together with its PF's driver.
    if !claim.keep && bind::is_there(host, claim.function) {
        give_back(host, claim)?;
    }
    state.forget_claim(lock, claim.function)?;
    if let Some(vf) = &claim.vf {
        undo_change(host, state, lock, vf.pf)?;
    }
    Ok(())
}

fn give_back(host: &Host, claim: &Claim) -> Result<(), ActionError> {
    let function = claim.function;
    let was_on_vfio = claim.driver.as_deref().is_some_and(is_vfio_driver);
    if !was_on_vfio {
        let now = bind::driver(host, function);
        if now.as_deref().is_some_and(is_vfio_driver) {
            bind::wait_for_group(host, function, claim.group)?;
            bind::unbind(host, function)?;
        }
        bind::set_override(host, function, claim.driver_override.as_deref())?;
    }
    let settings = claim
        .vf
        .as_ref()
        .map(|vf| restore_vf(host, vf.pf, vf.index, &vf.before));
    if let Some(driver) = claim.driver.as_deref().filter(|_| !was_on_vfio)
        && bind::driver(host, function).is_none()
    {
        bind::bind_to(host, function, driver)?;
    }
    settings.unwrap_or(Ok(()))
}

/// Puts a VF's settings back. Some drivers do not take the address of zeros that a VF has at first; it is left then.
fn restore_vf(
    host: &Host,
    pf: PciAddress,
    index: u32,
    before: &VfSettings,
) -> Result<(), ActionError> {
    let Err(error) = set_vf(host, pf, index, before) else {
        return Ok(());
    };
    if before.mac != Some([0; 6]) {
        return Err(error);
    }
    log::warn!("{error}: it keeps the one it was given");
    set_vf(
        host,
        pf,
        index,
        &VfSettings {
            mac: None,
            ..*before
        },
    )
}

/// Sets a VF up through its PF, one setting at a time, so that the one that fails can be named.
pub(super) fn set_vf(
    host: &Host,
    pf: PciAddress,
    vf: u32,
    settings: &VfSettings,
) -> Result<(), ActionError> {
    let Some((_, interface)) = bind::interface_of(host, pf) else {
        return Ok(());
    };
    for (what, one) in settings.one_by_one() {
        let set = host.kernel().set_vf(interface, vf, &one);
        set.map_err(|source| ActionError::Setting {
            pf,
            vf,
            what,
            source,
        })?;
    }
    Ok(())
}

/// Undoes what was changed on a PF, unless one of its VFs is in use. True if there was something, and it is undone.
pub(super) fn undo_change(
    host: &Host,
    state: &StateFolder,
    lock: &Lock,
    pf: PciAddress,
) -> Result<bool, Problem> {
    let Some(change) = state.change(pf)? else {
        return Ok(false);
    };
    if change.is_held(host) {
        return Ok(false);
    }
    let claims = state.claims()?;
    let taken = claims.0.iter().any(|claim| claim.is_below(pf));
    let Some(function) = PciFunction::read(host, pf) else {
        state.forget_change(lock, pf)?;
        return Ok(true);
    };
    let vfs = function.sriov.as_ref().map_or(&[][..], |sriov| &sriov.vfs);
    if taken || (change.made_vfs && !Check::new(host, claims).used_vfs(vfs).is_empty()) {
        return Ok(false);
    }
    put_back(host, &change, vfs)?;
    state.forget_change(lock, pf)?;
    Ok(true)
}

fn put_back(host: &Host, change: &PfChange, vfs: &[PciAddress]) -> Result<(), ActionError> {
    if change.made_vfs && !vfs.is_empty() {
        sriov::write_count(host, change.pf, 0)?;
    }
    if change.autoprobe_off {
        bind::write(
            host,
            &format!("{}/sriov_drivers_autoprobe", folder(change.pf)),
            "1",
        )?;
    }
    if let Some(interface) = change
        .interface_up
        .as_ref()
        .filter(|name| is_up(host, name))
        && let Some(index) = bind::interface_index(host, interface)
    {
        let set = host.kernel().set_link(index, false);
        set.map_err(|source| ActionError::Interface {
            interface: interface.clone(),
            source,
        })?;
    }
    Ok(())
}

/// Whether an interface is up (`IFF_UP`).
pub(super) fn is_up(host: &Host, interface: &str) -> bool {
    let flags = host.read(&format!("sys/class/net/{interface}/flags"));
    let flags =
        flags.and_then(|flags| u32::from_str_radix(flags.trim_start_matches("0x"), 16).ok());
    flags.is_some_and(|flags| flags & 1 != 0)
}
