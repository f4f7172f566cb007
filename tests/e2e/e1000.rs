//! The e1000 with Linux's own driver for it, in a network namespace of the test's own.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::harness::dhcp::{self, DhcpServer};
use crate::harness::tap::{self, GUEST_NET, HOST};
use crate::harness::vm::{BOOT, Nic, Vm};
use crate::harness::{Ctx, E2eTest, Kernel, test};
use crate::net;

const KERNEL: Kernel = Kernel::Generic612;
const RELOADS: u32 = 20;
/// The driver reads the EEPROM bit by bit, so that loading it takes thousands of exits.
const RELOADING: Duration = Duration::from_secs(240);

pub fn tests() -> Vec<E2eTest> {
    vec![
        test("e1000::ping", |ctx| net::ping(ctx, Nic::E1000, KERNEL)).own_network(),
        test("e1000::dhcp", dhcp).own_network(),
        test("e1000::tcp_both_ways", |ctx| {
            net::tcp(ctx, Nic::E1000, KERNEL, "")
        })
        .own_network()
        .limit(300),
        test("e1000::tcp_both_ways_jumbo", |ctx| {
            net::tcp(ctx, Nic::E1000, KERNEL, "9000")
        })
        .own_network()
        .limit(300),
        test("e1000::link_down_and_up", link_down_and_up).own_network(),
        test("e1000::driver_reloaded", driver_reloaded)
            .own_network()
            .limit(400),
        test("e1000::beside_virtio", beside_virtio).own_network(),
    ]
}

fn dhcp(ctx: &Ctx) -> Result<()> {
    tap::make("tap0")?;
    let _server = DhcpServer::start(ctx)?;
    let mut vm = Vm::new(ctx)
        .kernel(KERNEL)
        .nic(Nic::E1000, "tap0")
        .job(&format!(
            "echo '#!/bin/busybox sh
             [ \"$1\" != bound ] || ip addr add $ip/24 dev $interface' >/tmp/bound
             chmod +x /tmp/bound
             ip link set eth0 up
             udhcpc -i eth0 -n -q -t 10 -T 2 -s /tmp/bound >/tmp/dhcp 2>&1 || cat /tmp/dhcp
             echo ADDRESS $(ip -4 -o addr show dev eth0)
             ping -c 3 -w 20 {HOST} >/dev/null && echo ANSWERED"
        ))
        .spawn()?;
    let address = vm.value("ADDRESS", BOOT)?;
    ensure!(address.contains(dhcp::LEASE), "the guest has {address:?}");
    vm.wait_for("ANSWERED", BOOT)?;
    vm.wait_success(BOOT)?;
    Ok(())
}

fn link_down_and_up(ctx: &Ctx) -> Result<()> {
    tap::make("tap0")?;
    let mut vm = Vm::new(ctx)
        .kernel(KERNEL)
        .net_as(Nic::E1000, "tap0", GUEST_NET)
        .job(&format!(
            "check() {{ ping -c 1 -w $1 {HOST} >/dev/null; }}
             check 20 && echo BEFORE
             ip link set eth0 down
             check 2 || echo DOWN
             ip link set eth0 up
             check 20 && echo AFTER"
        ))
        .spawn()?;
    for word in ["BEFORE", "DOWN", "AFTER"] {
        vm.wait_for(word, BOOT)?;
    }
    vm.wait_success(BOOT)?;
    Ok(())
}

fn driver_reloaded(ctx: &Ctx) -> Result<()> {
    tap::make("tap0")?;
    let mut vm = Vm::new(ctx)
        .kernel(KERNEL)
        .net_as(Nic::E1000, "tap0", GUEST_NET)
        .job(&format!(
            "good=0
             for i in $(seq {RELOADS}); do
               rmmod e1000 && modprobe e1000 && ip addr add {GUEST_NET} dev eth0 && ip link set eth0 up &&
                 ping -c 1 -w 20 {HOST} >/dev/null && good=$((good + 1))
             done
             echo GOOD $good"
        ))
        .spawn()?;
    let good = vm.value("GOOD", RELOADING)?;
    ensure!(
        good == RELOADS.to_string(),
        "{good} of {RELOADS} were followed by an answer"
    );
    vm.wait_success(BOOT)?;
    Ok(())
}

fn beside_virtio(ctx: &Ctx) -> Result<()> {
    tap::make("tap0")?;
    tap::make_at("tap1", "192.168.78.1")?;
    let mut vm = Vm::new(ctx)
        .kernel(KERNEL)
        .nic(Nic::Virtio, "tap0")
        .nic(Nic::E1000, "tap1")
        .job(&format!(
            "for name in /sys/class/net/eth*; do
               driver=$(readlink $name/device/driver)
               case ${{driver##*/}} in e1000) address=192.168.78.2 ;; *) address=192.168.77.2 ;; esac
               ip addr add $address/24 dev ${{name##*/}} && ip link set ${{name##*/}} up
               echo ${{driver##*/}}-IS-THERE
             done
             ping -c 3 -w 20 192.168.78.1 >/dev/null && echo E1000-ANSWERED
             ping -c 3 -w 20 {HOST} >/dev/null && echo VIRTIO-ANSWERED"
        ))
        .spawn()?;
    for word in ["E1000-ANSWERED", "VIRTIO-ANSWERED"] {
        vm.wait_for(word, BOOT)?;
    }
    let exit = vm.wait_success(BOOT)?;
    ensure!(
        exit.says("e1000-IS-THERE") && exit.says("virtio_net-IS-THERE"),
        "a driver is missing"
    );
    Ok(())
}
