//! The guest's turn: one that is booted anew, with all devices at once.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use tripath_load::spec::LoadSpec;

use super::baseline::{FIRST_TAP, FUNCTION};
use super::{Event, IoBenchError, Session, Trouble, Turn, failed, guest_spec};
use crate::guest::handle::{Guest, GuestTrouble};
use crate::guest::machine::{NETS, mac_of};
use crate::host::agent::Peer;
use crate::host::links::{self, Network};
use crate::plan::{Target, Variant, set_peer};
use crate::results::Sample;

/// How often a round's guest is booted: one that is lost takes the load with it that it was lost by.
const BOOTS: u32 = 3;

/// The guest of a turn and its networks.
struct Placed {
    guest: Guest,
    /// What the guest lacks for a target.
    lacks: BTreeMap<Target, String>,
    peers: BTreeMap<Target, Peer>,
}

impl From<GuestTrouble> for Trouble {
    fn from(trouble: GuestTrouble) -> Self {
        match trouble {
            GuestTrouble::Interrupted => Self::Interrupted,
            other => Self::Failed(other.to_string()),
        }
    }
}

impl Session<'_> {
    pub(super) fn guest_turn(&mut self, turn: &Turn) -> Result<(), IoBenchError> {
        let result = self.in_guests(turn);
        self.leave_function();
        result
    }

    fn in_guests(&mut self, turn: &Turn) -> Result<(), IoBenchError> {
        let mut placed = None;
        let mut boots = 0;
        // Why there is no guest, once there is to be none.
        let mut reason = None;
        for place in 0..turn.indices.len() {
            while placed.is_none() && reason.is_none() {
                boots += 1;
                self.tell(Event::Preparing("the guest"));
                match self.boot() {
                    Ok(guest) => placed = Some(guest),
                    Err(Trouble::Interrupted) => return Err(IoBenchError::Interrupted),
                    Err(trouble) => reason = self.why_no_more(turn, boots, trouble),
                }
            }
            self.sample(turn, place, &mut |session, variant, spec| {
                let Some(mut alive) = placed.take() else {
                    return Err(reason
                        .clone()
                        .unwrap_or_else(|| failed("there is no guest")));
                };
                let measured = session.in_guest(&mut alive, variant, spec);
                match measured {
                    Err(Lost(trouble, true)) => {
                        drop(alive);
                        if boots >= BOOTS {
                            reason = session.why_no_more(turn, boots, trouble.clone());
                        }
                        Err(trouble)
                    }
                    Err(Lost(trouble, false)) => {
                        placed = Some(alive);
                        Err(trouble)
                    }
                    Ok(sample) => {
                        placed = Some(alive);
                        Ok(sample)
                    }
                }
            })?;
        }
        if let Some(alive) = placed {
            alive.guest.quit();
        }
        Ok(())
    }

    /// After a boot or a guest that failed: why there is no other in this turn, if there is to be none. What was not
    /// measured for that has its turn in the next round, unless there never was a guest.
    fn why_no_more(&mut self, turn: &Turn, boots: u32, trouble: Trouble) -> Option<Trouble> {
        let Trouble::Failed(error) = trouble else {
            return Some(trouble);
        };
        if self.report.guest.kernel.is_empty() {
            return Some(Trouble::Failed(error));
        }
        let round = turn.round + 1;
        if boots < BOOTS {
            self.note(format!("round {round} lost a guest: {error}"));
            return None;
        }
        let text =
            format!("round {round} has no guest any more: it was lost {boots} times: {error}");
        self.note(text.clone());
        Some(Trouble::NotNow(text))
    }

    fn boot(&mut self) -> Result<Placed, Trouble> {
        let files = &self.files;
        let spec = guest_spec(self.options, &self.variants, |target| {
            let file = files.get(&target);
            file.map(|file| file.path_for_heir()).unwrap_or_default()
        });
        let inherited = files.values().map(|file| file.file().as_fd()).collect();
        let command = (self.options.worker)();
        let guest = Guest::start(command, &spec, inherited, self.interrupt)?;
        let facts = &mut self.report.guest;
        (facts.kernel, facts.cmdline) = (guest.kernel.clone(), guest.cmdline.clone());
        let mut placed = Placed {
            guest,
            lacks: BTreeMap::new(),
            peers: BTreeMap::new(),
        };
        self.find_lacks(&mut placed);
        self.connect(&mut placed)?;
        Ok(placed)
    }

    /// Which targets the guest's kernel has no driver for.
    fn find_lacks(&self, placed: &mut Placed) {
        for target in super::guest_targets(&self.variants) {
            let nic = self.options.functions.nic.as_ref();
            let of_function = nic.filter(|_| target == Target::Nic).map(|nic| nic.driver);
            let mut drivers = target.drivers().iter().copied().chain(of_function);
            let missing = &placed.guest.missing_drivers;
            if let Some(driver) = drivers.find(|name| missing.iter().any(|one| one == name)) {
                let text = format!("the guest's kernel has no driver {driver}");
                placed.lacks.insert(target, text);
            }
        }
    }

    /// Addresses and peers for the guest's networks. What cannot be connected is lacking.
    fn connect(&mut self, placed: &mut Placed) -> Result<(), Trouble> {
        let targets = super::guest_targets(&self.variants);
        let us = std::process::id();
        let taps = placed.guest.taps.clone();
        let on_taps = NETS.into_iter().filter(|target| targets.contains(target));
        let mut networks: Vec<(Target, String, Network)> = (FIRST_TAP..)
            .zip(on_taps.zip(taps))
            .map(|(index, (target, tap))| (target, tap, Network::of_process(us, index)))
            .collect();
        if let Some(nic) = &self.options.functions.nic
            && targets.contains(&Target::Nic)
        {
            let network = Network::of_process(us, FUNCTION);
            networks.push((Target::Nic, nic.pf_interface.clone(), network));
        }
        for (target, interface, network) in networks {
            if placed.lacks.contains_key(&target) {
                continue;
            }
            match self.connect_one(placed, target, &interface, network) {
                Ok(peer) => drop(placed.peers.insert(target, peer)),
                Err(Trouble::Failed(error)) => drop(placed.lacks.insert(target, error)),
                Err(trouble) => return Err(trouble),
            }
        }
        Ok(())
    }

    fn connect_one(
        &self,
        placed: &mut Placed,
        target: Target,
        interface: &str,
        network: Network,
    ) -> Result<Peer, Trouble> {
        let mac = match (mac_of(target), &self.options.functions.nic) {
            (Some(mac), _) => mac,
            (None, Some(nic)) => {
                self.lease_address(&self.variants[0].result.spec)?;
                &nic.mac
            }
            (None, None) => return Err(failed("its address is not known")),
        };
        if target != Target::Nic {
            links::add_address(interface, network.host, None).map_err(failed)?;
        }
        let other = network.other_with_prefix();
        placed.guest.address(mac, &other, self.interrupt)?;
        self.peer_at(network.host)
    }

    fn in_guest(
        &mut self,
        placed: &mut Placed,
        variant: &Variant,
        spec: &LoadSpec,
    ) -> Result<Sample, Lost> {
        let mut spec = spec.clone();
        if let Some(reason) = placed.lacks.get(&variant.target) {
            return Err(Lost(failed(reason), false));
        }
        let peer: Option<SocketAddr> = placed.peers.get(&variant.target).map(Peer::address);
        if let Some(peer) = peer {
            set_peer(&mut spec.load, peer);
            self.keep_peer(&variant.result.name, &spec);
        }
        if variant.target == Target::Nic {
            self.lease_address(&spec)
                .map_err(|trouble| Lost(trouble, false))?;
        }
        match placed.guest.measure(&spec, self.interrupt) {
            Ok((load, guest, cpu)) => Ok(Sample {
                round: 0,
                load,
                guest: Some(guest),
                cpu,
            }),
            Err(trouble) => {
                let lost = matches!(trouble, GuestTrouble::Lost(_));
                Err(Lost(trouble.into(), lost))
            }
        }
    }
}

/// What went wrong, and whether the guest is gone with it.
struct Lost(Trouble, bool);
