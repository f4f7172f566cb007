//! Taking functions for a guest.
//!
//! [`take`] checks everything first, then writes down what it will change, then changes it. A [`Lease`] gives back what
//! it stands for when it is dropped; what a killed process had is given back by [`recover`](super::recover::recover),
//! which `take` runs before anything else.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use thiserror::Error;

use super::address::PciAddress;
use super::bind::{self, ActionError};
use super::check::{Check, described, refusals};
use super::function::{PciFunction, Sriov, folder};
use super::hold::take_up;
use super::memory;
use super::netlink::VfSettings;
use super::reason::{Reason, Refusal};
use super::recover::{self, Problem};
use super::root::Host;
use super::sriov::{self, SriovError};
use super::state::{Claim, Lock, Owner, PfChange, StateError, StateFolder, VERSION, VfClaim};

/// How many VFs are made on a PF that has none, if it can have so many: other runs want some, too, and their number
/// cannot be raised while one is in use.
const USUAL_VFS: u16 = 8;

/// What a guest is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// That function.
    Function {
        /// Which.
        address: PciAddress,
        /// It stays with vfio-pci afterwards.
        keep: bool,
    },
    /// A virtual function.
    Vf {
        /// The PF, by its network interface or its address.
        pf: String,
        /// The VF's number; none for any that is free.
        vf: Option<u32>,
        /// What the PF is to set for it.
        settings: VfSettings,
    },
}

/// One function for a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Which.
    pub target: Target,
    /// Take it even if the host uses it.
    pub force: bool,
}

/// A guest does not get its functions.
#[derive(Debug, Error)]
pub enum ClaimError {
    /// The host has to be changed first; nothing was changed. One line for each reason.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Refused(Vec<Refusal>),
    /// The same function twice.
    #[error("{0} is given twice: a function goes to a guest once")]
    Twice(PciAddress),
    /// A PF whole, and a VF of it.
    #[error(
        "{0} cannot go to a guest together with its virtual functions: they would vanish with its driver"
    )]
    WithItsVfs(PciAddress),
    /// No such PF, and the like.
    #[error(transparent)]
    Sriov(SriovError),
    /// The PF has no VF of that number.
    #[error("{pf} has {count} virtual functions, and no number {vf}: 'tripath vfio sriov {pf} --vfs {}' makes more", vf + 1)]
    NoSuchVf {
        /// The PF.
        pf: PciAddress,
        /// How many it has.
        count: usize,
        /// The one that was asked for, counted from 0.
        vf: u32,
    },
    /// None of the PF's VFs is free.
    #[error("{pf} has no free virtual function: {}", used.join(", "))]
    NoneFree {
        /// The PF.
        pf: PciAddress,
        /// For each VF, why it is not.
        used: Vec<String>,
    },
    /// The PF sets its VFs up through a network interface, and has none.
    #[error("{0} has no network interface: it takes no mac=, vlan=, spoofchk= or trust=")]
    NoInterface(PciAddress),
    /// The state files.
    #[error(transparent)]
    State(#[from] StateError),
    /// A change did not work; what was changed has been put back.
    #[error(transparent)]
    Action(#[from] ActionError),
}

impl ClaimError {
    /// Whether the user can change it before another try, and nothing was changed meanwhile.
    #[must_use]
    pub fn is_users_mistake(&self) -> bool {
        !matches!(
            self,
            Self::State(_) | Self::Action(_) | Self::Sriov(SriovError::Action(_))
        )
    }
}

impl From<SriovError> for ClaimError {
    fn from(error: SriovError) -> Self {
        match error {
            SriovError::Action(error) => Self::Action(error),
            error => Self::Sriov(error),
        }
    }
}

/// A function that this process has, on vfio-pci. Dropping it gives the function back; the files of VFIO must be
/// closed before.
#[derive(Debug)]
pub struct Lease {
    host: Arc<Host>,
    state: StateFolder,
    claim: Claim,
    given_back: bool,
}

impl Lease {
    /// The function.
    #[must_use]
    pub fn address(&self) -> PciAddress {
        self.claim.function
    }

    /// Its IOMMU group.
    #[must_use]
    pub fn group(&self) -> u32 {
        self.claim.group
    }

    /// Gives the function back.
    ///
    /// # Errors
    /// Something is not as it was; the rest is, and `recover` tries again.
    pub fn give_back(mut self) -> Result<(), Problem> {
        self.given_back = true;
        self.undo()
    }

    fn undo(&self) -> Result<(), Problem> {
        let lock = self.state.lock()?;
        recover::undo(&self.host, &self.state, &lock, &self.claim)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.given_back
            && let Err(problem) = self.undo()
        {
            log::error!("{}: {problem}", self.claim.function);
        }
    }
}

/// A request after it was looked up.
struct Choice {
    function: PciFunction,
    keep: bool,
    vf: Option<(PciAddress, u32, VfSettings)>,
}

/// Takes all functions of one guest, or none. `guest_bytes` is its RAM.
///
/// # Errors
/// See [`ClaimError`].
pub fn take(
    host: &Arc<Host>,
    state: &StateFolder,
    requests: &[Request],
    guest_bytes: u64,
) -> Result<Vec<Lease>, ClaimError> {
    let lock = state.lock()?;
    for problem in recover::recover(host, state, &lock)?.problems {
        log::warn!("what a killed run left: {problem}");
    }
    let mut taker = Taker::new(host, state, &lock)?;
    taker.look(requests, guest_bytes)?;
    let taken = taker.take(requests);
    if taken.is_err() {
        taker.undo_made();
    }
    taken
}

/// Finds out whether [`take`] would do it, as far as that is known before anything is changed.
///
/// # Errors
/// As for [`take`].
pub fn check(
    host: &Arc<Host>,
    state: &StateFolder,
    requests: &[Request],
    guest_bytes: u64,
) -> Result<(), ClaimError> {
    let lock = state.lock()?;
    Taker::new(host, state, &lock)?.look(requests, guest_bytes)
}

/// The VFs that requests need on one PF.
#[derive(Debug, Clone, Copy, Default)]
struct Needed {
    count: u32,
    /// The highest number that is asked for, plus 1.
    numbers: u32,
}

/// The work of [`take`].
struct Taker<'a> {
    host: &'a Arc<Host>,
    state: &'a StateFolder,
    lock: &'a Lock,
    check: Check<'a>,
    /// How many VFs the requests need on each PF that has none.
    needed: BTreeMap<PciAddress, Needed>,
    /// PFs that were changed.
    made: Vec<PciAddress>,
}

impl<'a> Taker<'a> {
    fn new(
        host: &'a Arc<Host>,
        state: &'a StateFolder,
        lock: &'a Lock,
    ) -> Result<Self, ClaimError> {
        Ok(Self {
            host,
            state,
            lock,
            check: Check::new(host, state.live_claims(host)?),
            needed: BTreeMap::new(),
            made: Vec::new(),
        })
    }

    /// Everything that can be said before anything is changed.
    fn look(&mut self, requests: &[Request], guest_bytes: u64) -> Result<(), ClaimError> {
        let mut refused: Vec<Refusal> = self.look_at_memory(guest_bytes);
        let wanted = addresses(requests);
        if let Some(twice) = wanted
            .iter()
            .enumerate()
            .find(|(index, address)| wanted[..*index].contains(address))
        {
            return Err(ClaimError::Twice(*twice.1));
        }
        let mut chosen = wanted.clone();
        for (_, request) in numbered_first(requests) {
            match &request.target {
                Target::Function { address, .. } => match PciFunction::read(self.host, *address) {
                    Some(function) => refused.extend(self.refusals(&function, request, &wanted)),
                    None => refused.push(Refusal {
                        function: None,
                        reason: Reason::NoSuchFunction(*address),
                    }),
                },
                Target::Vf { pf, vf, settings } => {
                    let (pf, sriov) = sriov::find_pf(self.host, pf)?;
                    if wanted.contains(&pf.address) {
                        return Err(ClaimError::WithItsVfs(pf.address));
                    }
                    if sriov.vfs.is_empty() {
                        refused.extend(self.look_at_pf(&pf, &sriov, *vf)?);
                    } else {
                        let function = self.choose(&pf, &sriov, *vf, request, &chosen);
                        match function {
                            Ok(function) => chosen.push(function.address),
                            Err(ClaimError::Refused(reasons)) => refused.extend(reasons),
                            Err(error) => return Err(error),
                        }
                    }
                    if !settings.is_empty() && bind::interface_of(self.host, pf.address).is_none() {
                        return Err(ClaimError::NoInterface(pf.address));
                    }
                }
            }
        }
        if refused.is_empty() {
            Ok(())
        } else {
            Err(ClaimError::Refused(refused))
        }
    }

    fn look_at_memory(&self, guest_bytes: u64) -> Vec<Refusal> {
        let reasons = memory::check(self.host, guest_bytes).into_iter();
        reasons
            .map(|reason| Refusal {
                function: None,
                reason,
            })
            .collect()
    }

    fn refusals(
        &self,
        function: &PciFunction,
        request: &Request,
        wanted: &[PciAddress],
    ) -> Vec<Refusal> {
        let mut reasons = self.check.function(function, wanted);
        reasons.retain(|reason| !(request.force && reason.yields_to_force()));
        refusals(function, reasons).collect()
    }

    /// What can be said of VFs that are still to be made.
    fn look_at_pf(
        &mut self,
        pf: &PciFunction,
        sriov: &Sriov,
        vf: Option<u32>,
    ) -> Result<Vec<Refusal>, ClaimError> {
        if pf.driver.is_none() || pf.is_on_vfio() {
            return Err(SriovError::NoDriver {
                pf: pf.address,
                described: described(pf),
            }
            .into());
        }
        let needed = self.needed.entry(pf.address).or_default();
        needed.count += 1;
        needed.numbers = needed.numbers.max(vf.map_or(0, |vf| vf.saturating_add(1)));
        let needed = needed.count.max(needed.numbers);
        if needed > u32::from(sriov.total_vfs) {
            return Err(SriovError::TooMany {
                pf: pf.address,
                most: sriov.total_vfs,
                wanted: needed,
            }
            .into());
        }
        let mut reasons = self.check.platform(Some(pf));
        reasons.extend(self.check.vfio_pci());
        let count = format!("{}/sriov_numvfs", folder(pf.address));
        if !self.host.kernel().writable(&self.host.path(&count)) {
            let uid = self.host.kernel().caller().uid;
            reasons.push(Reason::NoPermission {
                path: format!("/{count}"),
                uid,
            });
        }
        Ok(refusals(pf, reasons).collect())
    }

    /// The VF of that number, or the first that is free.
    fn choose(
        &self,
        pf: &PciFunction,
        sriov: &Sriov,
        vf: Option<u32>,
        request: &Request,
        taken: &[PciAddress],
    ) -> Result<PciFunction, ClaimError> {
        let found = |address: &PciAddress| PciFunction::read(self.host, *address);
        let Some(index) = vf else {
            let mut used = Vec::new();
            for function in sriov.vfs.iter().filter_map(found) {
                // What the host uses is not free, whatever force says: another one may be.
                let reason = self
                    .check
                    .function(&function, &[function.address])
                    .into_iter()
                    .next();
                match reason {
                    None if !taken.contains(&function.address) => return Ok(function),
                    None => used.push(format!("{} goes to this guest already", function.address)),
                    Some(reason) => used.push(format!("{}: {reason}", function.address)),
                }
            }
            return Err(ClaimError::NoneFree {
                pf: pf.address,
                used,
            });
        };
        let none = ClaimError::NoSuchVf {
            pf: pf.address,
            count: sriov.vfs.len(),
            vf: index,
        };
        let function = sriov
            .vfs
            .iter()
            .filter_map(found)
            .find(|vf| vf.vf_index(self.host) == Some(index));
        let function = function.ok_or(none)?;
        if taken.contains(&function.address) {
            return Err(ClaimError::Twice(function.address));
        }
        match self.refusals(&function, request, &[function.address]) {
            refused if refused.is_empty() => Ok(function),
            refused => Err(ClaimError::Refused(refused)),
        }
    }

    /// Makes the changes. The leases taken so far undo theirs if one fails.
    fn take(&mut self, requests: &[Request]) -> Result<Vec<Lease>, ClaimError> {
        bind::load_vfio_pci(self.host)?;
        let mut chosen: BTreeSet<PciAddress> = addresses(requests).into_iter().collect();
        let mut choices = Vec::new();
        for (index, request) in numbered_first(requests) {
            let choice = self.resolve(request, &chosen)?;
            chosen.insert(choice.function.address);
            choices.push((index, choice));
        }
        choices.sort_by_key(|(index, _)| *index);
        let mut claims = Vec::new();
        for (_, choice) in choices {
            let claim = self.record(&choice)?;
            let bound = self.bind(&claim, &choice);
            claims.push(claim);
            if let Err(error) = bound {
                for claim in claims.iter().rev() {
                    self.undo(claim);
                }
                return Err(error.into());
            }
        }
        let lease = |claim| Lease {
            host: self.host.clone(),
            state: self.state.clone(),
            claim,
            given_back: false,
        };
        Ok(claims.into_iter().map(lease).collect())
    }

    fn undo(&self, claim: &Claim) {
        if let Err(problem) = recover::undo(self.host, self.state, self.lock, claim) {
            log::error!("{}: {problem}", claim.function);
        }
    }

    fn undo_made(&self) {
        for pf in &self.made {
            if let Err(problem) = recover::undo_change(self.host, self.state, self.lock, *pf) {
                log::error!("{pf}: {problem}");
            }
        }
    }

    fn resolve(
        &mut self,
        request: &Request,
        chosen: &BTreeSet<PciAddress>,
    ) -> Result<Choice, ClaimError> {
        match &request.target {
            Target::Function { address, keep } => {
                let gone = || {
                    ClaimError::Refused(vec![Refusal {
                        function: None,
                        reason: Reason::NoSuchFunction(*address),
                    }])
                };
                let function = PciFunction::read(self.host, *address).ok_or_else(gone)?;
                Ok(Choice {
                    function,
                    keep: *keep,
                    vf: None,
                })
            }
            Target::Vf { pf, vf, settings } => {
                let (pf, sriov) = sriov::find_pf(self.host, pf)?;
                let sriov = self.prepare_pf(&pf, sriov)?;
                let taken: Vec<PciAddress> = chosen.iter().copied().collect();
                let function = self.choose(&pf, &sriov, *vf, request, &taken)?;
                let index = function.vf_index(self.host).unwrap_or(0);
                Ok(Choice {
                    function,
                    keep: false,
                    vf: Some((pf.address, index, *settings)),
                })
            }
        }
    }

    /// Takes the PF's interface up, and makes VFs if there are none.
    fn prepare_pf(&mut self, pf: &PciFunction, sriov: Sriov) -> Result<Sriov, ClaimError> {
        let interface = bind::interface_of(self.host, pf.address);
        let down = interface.filter(|(name, _)| !recover::is_up(self.host, name));
        if down.is_none() && !sriov.vfs.is_empty() {
            return Ok(sriov);
        }
        let mut change = self
            .state
            .change(pf.address)?
            .unwrap_or_else(|| PfChange::none(pf.address));
        if let Some((name, _)) = &down {
            change.interface_up = Some(name.clone());
        }
        if sriov.vfs.is_empty() {
            change.made_vfs = true;
            change.autoprobe_off = sriov.drivers_autoprobe;
        }
        self.state.write_change(self.lock, &change)?;
        self.made.push(pf.address);
        if let Some((interface, index)) = down {
            take_up(self.host, &interface, index)?;
        }
        if !sriov.vfs.is_empty() {
            return Ok(sriov);
        }
        self.make_vfs(pf, &sriov, &mut change)
    }

    fn make_vfs(
        &self,
        pf: &PciFunction,
        sriov: &Sriov,
        change: &mut PfChange,
    ) -> Result<Sriov, ClaimError> {
        let Needed { count, numbers } = self.needed.get(&pf.address).copied().unwrap_or_default();
        let least = u16::try_from(count.max(numbers)).unwrap_or(u16::MAX);
        let count = sriov.total_vfs.min(USUAL_VFS).max(least);
        // What we make is for guests: the host's drivers need not see it.
        let autoprobe = format!("{}/sriov_drivers_autoprobe", folder(pf.address));
        if change.autoprobe_off {
            bind::write(self.host, &autoprobe, "0")?;
        }
        sriov::write_count(self.host, pf.address, count)?;
        if change.autoprobe_off {
            bind::write(self.host, &autoprobe, "1")?;
            change.autoprobe_off = false;
            self.state.write_change(self.lock, change)?;
        }
        log::info!("{}: made {count} virtual functions", pf.address);
        let pf = PciFunction::read(self.host, pf.address).and_then(|function| function.sriov);
        Ok(pf.unwrap_or_else(|| sriov.clone()))
    }

    /// Writes down how a function is.
    fn record(&self, choice: &Choice) -> Result<Claim, ClaimError> {
        let function = &choice.function;
        let vf = match &choice.vf {
            Some((pf, index, settings)) => {
                let before = self.settings_before(*pf, *index, settings)?;
                Some(VfClaim {
                    pf: *pf,
                    index: *index,
                    before,
                })
            }
            None => None,
        };
        let claim = Claim {
            version: VERSION,
            owner: Owner::this(self.host),
            function: function.address,
            group: function.group.unwrap_or(0),
            driver: function.driver.clone(),
            driver_override: function.driver_override.clone(),
            keep: choice.keep,
            vf,
        };
        self.state.write_claim(self.lock, &claim)?;
        Ok(claim)
    }

    fn settings_before(
        &self,
        pf: PciAddress,
        index: u32,
        settings: &VfSettings,
    ) -> Result<VfSettings, ClaimError> {
        if settings.is_empty() {
            return Ok(VfSettings::default());
        }
        let (interface, number) =
            bind::interface_of(self.host, pf).ok_or(ClaimError::NoInterface(pf))?;
        let all = self.host.kernel().vf_settings(number);
        let all = all.map_err(|source| ActionError::Interface { interface, source })?;
        let own = usize::try_from(index)
            .ok()
            .and_then(|index| all.get(index).copied());
        Ok(own.unwrap_or_default().of_those_in(settings))
    }

    fn bind(&self, claim: &Claim, choice: &Choice) -> Result<(), ActionError> {
        if !choice.function.is_on_vfio() {
            bind::unbind(self.host, claim.function)?;
        }
        if let Some((pf, index, settings)) = &choice.vf {
            recover::set_vf(self.host, *pf, *index, settings)?;
        }
        bind::bind_to_vfio(self.host, claim.function)
    }
}

/// The requests with their places, those for any VF last: they take what the others leave.
fn numbered_first(requests: &[Request]) -> Vec<(usize, &Request)> {
    let mut all: Vec<(usize, &Request)> = requests.iter().enumerate().collect();
    all.sort_by_key(|(_, request)| matches!(request.target, Target::Vf { vf: None, .. }));
    all
}

/// The functions that are asked for by their address.
fn addresses(requests: &[Request]) -> Vec<PciAddress> {
    let address = |request: &Request| match request.target {
        Target::Function { address, .. } => Some(address),
        Target::Vf { .. } => None,
    };
    requests.iter().filter_map(address).collect()
}
