//! The turn of a baseline: the load program on the host.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use tripath_load::spec::{Load, LoadResult, LoadSpec};

use super::{IoBenchError, Session, Trouble, Turn, failed};
use crate::host::agent::{Agent, Peer, limit_of};
use crate::host::cgroup::ControlGroup;
use crate::host::functions::NicOnHost;
use crate::host::links::{self, Network};
use crate::host::process::Start;
use crate::plan::{Runner, Target, Variant, set_peer};
use crate::results::{CpuTime, Sample};

/// Which of a process's networks is which, see [`Network::of_process`].
pub(super) const VETH: u32 = 0;
pub(super) const FUNCTION: u32 = 1;
pub(super) const FIRST_TAP: u32 = 2;

/// The container's end of its pair.
const VETH_MAC: [u8; 6] = [0x02, 0x54, 0x52, 0x49, 0x00, 0x10];
/// How long a disk or an interface may take to be back with the host's driver.
const RETURN: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);
/// How much longer than a measurement an address of ours stays on an interface that is not.
const LEASE: Duration = Duration::from_secs(30);

/// The processes of a turn: of each kind one, as long as it serves.
#[derive(Default)]
struct Agents {
    plain: Option<Placed>,
    /// In a network of its own, with the host's interface of a function.
    nic: Option<Placed>,
}

/// A load program, and who it speaks with.
struct Placed {
    agent: Agent,
    peer: Option<Peer>,
    /// Removed when the agent is no more.
    veth: Option<Veth>,
}

/// A pair of interfaces that we have made.
struct Veth(String);

impl Drop for Veth {
    fn drop(&mut self) {
        // The end of the network that the other end was in may have removed it.
        let _ = links::remove(&self.0);
    }
}

impl Session<'_> {
    pub(super) fn baseline_turn(&mut self, turn: &Turn) -> Result<(), IoBenchError> {
        let mut agents = Agents::default();
        let result = (0..turn.indices.len()).try_for_each(|place| {
            self.sample(turn, place, &mut |session, variant, spec| {
                session.baseline(&mut agents, turn, variant, spec)
            })
        });
        let had_nic = agents.nic.is_some();
        drop(agents);
        if had_nic && let Some(nic) = &self.options.functions.nic {
            wait_for_interface(nic);
        }
        self.leave_function();
        result
    }

    fn baseline(
        &mut self,
        agents: &mut Agents,
        turn: &Turn,
        variant: &Variant,
        spec: &LoadSpec,
    ) -> Result<Sample, Trouble> {
        let mut spec = spec.clone();
        if let (Target::HostDisk, Load::Block { path, .. }) = (variant.target, &spec.load) {
            wait_for(|| path.exists());
        }
        let slot = match variant.target {
            Target::HostNic => &mut agents.nic,
            _ => &mut agents.plain,
        };
        let mut placed = match slot.take() {
            Some(placed) => placed,
            None if variant.target == Target::HostNic => self.nic_agent(turn.runner)?,
            None => Placed {
                agent: self.start_agent(turn.runner, false)?,
                peer: None,
                veth: None,
            },
        };
        if (turn.runner, variant.target) == (Runner::Container, Target::Loopback)
            && placed.peer.is_none()
            && let Err(trouble) = self.connect_container(&mut placed)
        {
            *slot = Some(placed);
            return Err(trouble);
        }
        if variant.target == Target::HostNic {
            self.lease_address(&spec)?;
        }
        if matches!(variant.target, Target::Loopback | Target::HostNic) {
            let peer = self.peer_of(&placed)?;
            set_peer(&mut spec.load, peer);
            self.keep_peer(&variant.result.name, &spec);
        }
        let measured = placed.agent.measure(&spec, self.interrupt);
        if measured
            .as_ref()
            .err()
            .is_none_or(|error| error.leaves_agent())
        {
            *slot = Some(placed);
        }
        Ok(sample_of(measured?))
    }

    fn peer_of(&mut self, placed: &Placed) -> Result<SocketAddr, Trouble> {
        match &placed.peer {
            Some(peer) => Ok(peer.address()),
            None => self.loopback(),
        }
    }

    fn start_agent(&self, runner: Runner, own_network: bool) -> Result<Agent, Trouble> {
        let group = self.group.as_ref().filter(|_| runner == Runner::Container);
        let groups = group.map(ControlGroup::members).unwrap_or_default();
        let start = Start {
            inherited: self
                .files
                .values()
                .map(|file| file.file().as_fd())
                .collect(),
            cpus: self.options.pins.load.clone(),
            own_network,
            groups: groups.iter().map(AsFd::as_fd).collect(),
            ..Start::default()
        };
        Ok(Agent::start(&self.program, runner, &start, self.interrupt)?)
    }

    /// In a container, the loopback's place is taken by a pair of interfaces.
    fn connect_container(&self, placed: &mut Placed) -> Result<(), Trouble> {
        let us = std::process::id();
        let name = format!("tripathv{us}");
        let network = Network::of_process(us, VETH);
        links::create_veth(&name, "eth0", VETH_MAC, placed.agent.pid()).map_err(failed)?;
        let veth = placed.veth.insert(Veth(name));
        links::add_address(&veth.0, network.host, None).map_err(failed)?;
        let mac = text_of(VETH_MAC);
        let address = network.other_with_prefix();
        placed.agent.address(&mac, &address, self.interrupt)?;
        placed.peer = Some(self.peer_at(network.host)?);
        Ok(())
    }

    /// One that has the host's interface of the network function to itself: within one network, what it sends to the
    /// physical function would not leave the host's loopback.
    fn nic_agent(&self, runner: Runner) -> Result<Placed, Trouble> {
        let functions = &self.options.functions;
        let nic = functions
            .nic
            .as_ref()
            .ok_or_else(|| failed("no function"))?;
        let mut agent = self.start_agent(runner, runner != Runner::Container)?;
        wait_for_interface(nic);
        let interface = nic.interface();
        let (name, mac) = interface.ok_or_else(|| failed("the host has no interface for it"))?;
        links::move_to(&name, agent.pid()).map_err(failed)?;
        let network = Network::of_process(std::process::id(), FUNCTION);
        agent.address(&mac, &network.other_with_prefix(), self.interrupt)?;
        self.lease_on(nic, LEASE)?;
        let peer = self.peer_at(network.host)?;
        Ok(Placed {
            agent,
            peer: Some(peer),
            veth: None,
        })
    }

    /// The address behind the physical function, for as long as a measurement takes. The interface is the user's, and is
    /// left as it was also if we are killed.
    pub(super) fn lease_address(&self, spec: &LoadSpec) -> Result<(), Trouble> {
        match &self.options.functions.nic {
            Some(nic) => self.lease_on(nic, limit_of(spec) + LEASE),
            None => Ok(()),
        }
    }

    /// The address on the physical function's interface goes.
    pub(super) fn leave_function(&self) {
        if let Some(nic) = &self.options.functions.nic {
            let network = Network::of_process(std::process::id(), FUNCTION);
            // There may be none; and if there is, it goes by itself.
            let _ = links::remove_address(&nic.pf_interface, network.host);
        }
    }

    fn lease_on(&self, nic: &NicOnHost, lifetime: Duration) -> Result<(), Trouble> {
        let host = Network::of_process(std::process::id(), FUNCTION).host;
        links::add_address(&nic.pf_interface, host, Some(lifetime)).map_err(failed)
    }
}

/// The network of a process that has ended is taken apart some time later, and a driver needs some time for a function
/// that it has again.
fn wait_for_interface(nic: &NicOnHost) {
    wait_for(|| !nic.on_host || nic.interface().is_some());
}

/// Waits until that is so, but not for ever: what needs it says what it lacks.
fn wait_for(is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + RETURN;
    while !is_so() && Instant::now() < deadline {
        std::thread::sleep(PAUSE);
    }
}

fn sample_of(load: LoadResult) -> Sample {
    let cpu = CpuTime {
        guest_ns: 0,
        kernel_ns: load.cpu.kernel_ns,
        user_ns: BTreeMap::from([("load".to_owned(), load.cpu.user_ns)]),
    };
    Sample {
        round: 0,
        load,
        guest: None,
        cpu,
    }
}

fn text_of(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
