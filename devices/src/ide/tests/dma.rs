//! Transfers by the bus-master engine.

use super::bus_master::START;
use super::*;

const END: u32 = 1 << 31;

#[test]
fn a_read_by_dma_as_linux_does_it() {
    let rig = Rig::new();
    let data = pattern(4096, 4);
    rig.disks[0].put(8 * 512, &data);
    rig.prepare(0, &[(0x8000, 0x600), (0x1_0000, END | 0xa00)], true);
    rig.issue(0, 0xc8, 8, 8);
    assert_eq!(rig.alternate(0) & BUSY, BUSY);
    assert_eq!(rig.bm_status(0), 0x60, "nothing before the start");
    rig.disks[0].stall(true);
    rig.start(0, true);
    assert_eq!(rig.bm_status(0), 0x61);
    rig.disks[0].stall(false);
    rig.turn();
    assert!(rig.pins[0].level());
    assert_eq!(rig.bm_status(0), 0x64, "interrupt, no longer active");
    rig.bm_out(0, 0, &[TO_MEMORY]);
    assert_eq!(rig.served(0), READY);
    rig.bm_out(0, 2, &[0x64]);
    assert_eq!(rig.bm_status(0), 0x60);
    assert_eq!(rig.memory(0x8000, 0x600), data[..0x600]);
    assert_eq!(rig.memory(0x1_0000, 0xa00), data[0x600..]);
}

#[test]
fn a_write_by_dma_and_a_start_before_the_command() {
    let rig = Rig::new();
    let data = pattern(1024, 5);
    rig.ram.write(0x8000, &data).unwrap();
    rig.prepare(0, &[(0x8000, END | 0x800)], false);
    rig.bm_out(0, 0, &[START]);
    rig.issue_ext(0x35, 2, 77);
    assert_eq!(rig.bm_status(0), 0x65, "the table had room for more");
    assert_eq!(rig.served(0), READY);
    assert_eq!(rig.disks[0].data()[77 * 512..79 * 512], data);
}

#[test]
fn data_in_memory_is_there_when_the_start_returns() {
    let rig = Rig::new();
    let data = pattern(4096, 6);
    rig.disks[0].put(8 * 512, &data);
    rig.disks[0].set_cached(true);
    rig.prepare(0, &[(0x8000, END | 0x1000)], true);
    rig.ring_read(8, 8);
    assert_eq!(rig.alternate(0) & BUSY, BUSY);
    rig.bm_out(0, 0, &[START | TO_MEMORY]);
    // No turn of the event loop.
    assert_eq!(rig.memory(0x8000, 4096), data);
    assert_eq!(rig.bm_status(0), 0x64);
    assert_eq!(rig.served(0), READY);
    assert!(rig.ide.work[0].read().is_err(), "nothing is left to do");
}

#[test]
fn long_reads_and_writes_are_not_made_on_the_vcpu_thread() {
    for (command, to_memory, prds) in [
        (0x25, true, 3),
        (0x35, false, 1),
        // 129 KiB in three regions, and a write of one sector.
    ] {
        let rig = Rig::new();
        rig.disks[0].set_cached(true);
        let mut table = vec![(0x1_0000, 0); prds];
        table[prds - 1].1 |= END;
        rig.prepare(0, &table, to_memory);
        rig.issue_ext(command, if to_memory { 258 } else { 1 }, 0);
        let direction = if to_memory { TO_MEMORY } else { 0 };
        rig.bm_out(0, 0, &[START | direction]);
        assert!(!rig.pins[0].level());
        rig.turn();
        assert_eq!(rig.served(0), READY);
    }
}

#[test]
fn a_command_that_rang_comes_before_every_later_access() {
    // The start, before any other access.
    let rig = Rig::new();
    rig.disks[0].put(0, b"data");
    rig.prepare(0, &[(0x8000, END | 0x200)], true);
    rig.ring_read(1, 0);
    rig.start(0, true);
    assert_eq!(rig.served(0), READY);
    assert_eq!(rig.memory(0x8000, 4), b"data");
    // The end of decoding.
    rig.prepare(0, &[(0x8000, END | 0x200)], true);
    rig.ring_read(1, 0);
    rig.set_command(COMMAND_BUS_MASTER);
    rig.set_command(COMMAND_IO_SPACE | COMMAND_BUS_MASTER);
    assert_eq!(rig.alternate(0) & BUSY, BUSY);
    rig.start(0, true);
    assert_eq!(rig.served(0), READY);
    // A reset: nothing of it is left.
    rig.ring_read(1, 0);
    rig.ide.reset();
    rig.set_command(COMMAND_IO_SPACE | COMMAND_BUS_MASTER);
    assert_eq!(rig.alternate(0), READY);
}

#[test]
fn a_command_that_rings_where_no_ports_are_decoded_is_lost() {
    let rig = Rig::new();
    rig.set_command(COMMAND_BUS_MASTER);
    rig.ring_read(1, 0);
    rig.set_command(COMMAND_IO_SPACE | COMMAND_BUS_MASTER);
    assert_eq!(rig.alternate(0), READY);
}

#[test]
fn a_command_that_rings_after_the_start_needs_no_other_access() {
    let rig = Rig::new();
    let watched = || rig.ide.watch_reads[0].load(Ordering::Acquire);
    rig.prepare(0, &[(0x8000, END | 0x200)], true);
    rig.ring_read(1, 0);
    rig.start(0, true);
    assert_eq!(rig.served(0), READY);
    assert!(!watched(), "the start looked at it");
    rig.bm_out(0, 0, &[0]);
    rig.start(0, true);
    assert!(watched());
    rig.ring_read(1, 0);
    rig.turn();
    assert_eq!(rig.served(0), READY);
}

#[test]
fn a_stop_that_rang_comes_before_the_next_start() {
    let rig = Rig::new();
    rig.prepare(0, &[(0x8000, END | 0x200)], true);
    rig.ring_read(1, 0);
    rig.start(0, true);
    assert_eq!(rig.served(0), READY);
    rig.ide.bells[0].ring(Bell::Stop(TO_MEMORY));
    let mut command = [0];
    rig.ide.bar_read(BAR, 0, &mut command).unwrap();
    assert_eq!(command, [TO_MEMORY]);
    rig.ring_read(1, 0);
    rig.ide.bells[0].ring(Bell::Stop(TO_MEMORY));
    rig.start(0, true);
    assert_eq!(rig.served(0), READY);
}

#[test]
fn a_table_too_short_stops_the_engine_and_can_be_mended() {
    let rig = Rig::new();
    rig.disks[0].put(0, b"data");
    rig.prepare(0, &[(0x8000, END | 0x200)], true);
    rig.issue(0, 0xc8, 2, 0);
    rig.start(0, true);
    assert!(!rig.pins[0].level());
    assert_eq!(rig.bm_status(0), 0x60);
    assert_eq!(rig.memory(0x8000, 4), [0; 4]);
    rig.prepare(0, &[(0x8000, END | 0x400)], true);
    rig.start(0, true);
    assert_eq!(rig.served(0), READY);
    assert_eq!(rig.memory(0x8000, 4), b"data");
}

#[test]
fn a_table_without_end_ends() {
    let rig = Rig::new();
    let prds = vec![(0x20_0000, 2); 0x4000];
    rig.prepare(0, &prds, true);
    rig.issue(0, 0xc8, 64, 0);
    rig.start(0, true);
    assert_eq!(rig.bm_status(0), 0x60);
    assert!(!rig.pins[0].level());
}

#[test]
fn regions_outside_ram_are_the_engines_error() {
    let rig = Rig::new();
    let end = u32::try_from(RAM_BYTES).unwrap();
    for prds in [
        &[(end, END | 0x200)][..],
        &[(end - 0x100, END | 0x200)],
        &[(0x8000, 0x100), (0xffff_fffe, END | 0x100)],
    ] {
        for (command, to_memory) in [(0xc8, true), (0xca, false)] {
            rig.prepare(0, prds, to_memory);
            rig.issue(0, command, 1, 0);
            rig.start(0, to_memory);
            assert_eq!(rig.bm_status(0), 0x66, "error and interrupt, not active");
            assert_eq!(rig.served(0), FAILED);
            assert_eq!(rig.get(0, registers::ERROR), registers::ABRT);
        }
    }
    // The table itself.
    rig.prepare(0, &[], true);
    rig.bm_out(0, bus_master::TABLE, &0xffff_fffcu32.to_le_bytes());
    rig.issue(0, 0xc8, 1, 0);
    rig.start(0, true);
    assert_eq!(rig.bm_status(0), 0x66);
}

#[test]
fn nothing_moves_against_the_engines_direction() {
    let rig = Rig::new();
    rig.prepare(0, &[(0x8000, END | 0x200)], false);
    rig.ram.write(0x8000, &[9; 512]).unwrap();
    rig.issue(0, 0xc8, 1, 0);
    rig.start(0, false);
    assert!(!rig.pins[0].level());
    assert_eq!(rig.memory(0x8000, 512), [9; 512]);
    assert_eq!(rig.disks[0].data()[..512], [0; 512]);
}

#[test]
fn without_bus_mastering_nothing_moves_until_it_is_on() {
    let rig = Rig::new();
    rig.disks[0].put(0, b"data");
    rig.set_command(COMMAND_IO_SPACE);
    rig.prepare(0, &[(0x8000, END | 0x200)], true);
    rig.issue(0, 0xc8, 1, 0);
    rig.start(0, true);
    assert!(!rig.pins[0].level());
    assert_eq!(rig.memory(0x8000, 4), [0; 4]);
    rig.set_command(COMMAND_IO_SPACE | COMMAND_BUS_MASTER);
    rig.turn();
    assert_eq!(rig.served(0), READY);
    assert_eq!(rig.memory(0x8000, 4), b"data");
}

#[test]
fn a_command_and_registers_are_ignored_while_one_runs() {
    let rig = Rig::new();
    rig.ram.write(0x8000, &[1; 512]).unwrap();
    rig.prepare(0, &[(0x8000, END | 0x200)], false);
    rig.issue(0, 0xca, 1, 5);
    rig.disks[0].stall(true);
    rig.start(0, false);
    rig.issue(1, 0x30, 1, 9);
    rig.out(0, registers::STATUS, 0x90);
    assert_eq!(rig.alternate(0) & BUSY, BUSY);
    rig.disks[0].stall(false);
    rig.turn();
    assert_eq!(rig.served(0), READY);
    assert_eq!(rig.disks[0].data()[5 * 512..6 * 512], [1; 512]);
    assert_eq!(rig.disks[1].data(), vec![0; 8 << 10]);
}

/// A write in flight, and something that puts an end to it: afterwards it has been done, once, and nothing touches
/// memory or disk any more.
fn ended_by(end: impl Fn(&Rig)) -> Rig {
    ended_by_after(|rig| rig.start(0, false), end)
}

fn ended_by_after(start: impl Fn(&Rig), end: impl Fn(&Rig)) -> Rig {
    let rig = Rig::new();
    rig.ram.write(0x8000, &[7; 512]).unwrap();
    rig.prepare(0, &[(0x8000, END | 0x200)], false);
    rig.issue(0, 0xca, 1, 5);
    rig.disks[0].stall(true);
    start(&rig);
    end(&rig);
    assert_eq!(rig.disks[0].data()[5 * 512..6 * 512], [7; 512]);
    rig.disks[0].put(5 * 512, &[0; 512]);
    rig.disks[0].stall(false);
    rig.turn();
    assert_eq!(
        rig.disks[0].data()[5 * 512..6 * 512],
        [0; 512],
        "written twice"
    );
    rig
}

#[test]
fn what_ends_a_transfer_waits_for_it() {
    let rig = ended_by(|rig| rig.bm_out(0, 0, &[0]));
    assert_eq!(rig.bm_status(0), 0x64);
    assert_eq!(rig.served(0), READY);

    let rig = ended_by(|rig| rig.set_control(0, registers::SRST));
    assert_eq!(rig.alternate(0), BUSY);
    rig.set_control(0, 0);
    assert_eq!(rig.get(0, registers::STATUS), READY);
    assert!(!rig.pins[0].level());

    let rig = ended_by(|rig| rig.set_command(COMMAND_IO_SPACE));
    assert_eq!(rig.served(0), READY);

    let rig = ended_by(|rig| rig.ide.reset());
    assert_eq!(rig.bm_status(0), 0);
    assert!(!rig.pins[0].level());

    ended_by(|rig| rig.ide.shutdown());
}

#[test]
fn a_stop_before_the_event_loop_has_begun_waits_too() {
    let rig = ended_by_after(
        |rig| rig.bm_out(0, 0, &[START]),
        |rig| rig.bm_out(0, 0, &[0]),
    );
    assert_eq!(rig.served(0), READY);
    // One that rings takes effect with the next access.
    let rig = ended_by(|rig| {
        rig.ide.bells[0].ring(Bell::Stop(0));
        assert_eq!(rig.bm_status(0), 0x64);
    });
    assert_eq!(rig.served(0), READY);
}

#[test]
fn host_errors_in_dma() {
    let rig = Rig::new();
    for (command, to_memory, status, error) in [
        (0xc8, true, FAILED, registers::UNC),
        (0xca, false, FAILED | registers::DF, registers::ABRT),
    ] {
        rig.prepare(0, &[(0x8000, END | 0x200)], to_memory);
        rig.issue(0, command, 1, 0);
        rig.disks[0].fail_next(5);
        rig.start(0, to_memory);
        assert_eq!(rig.served(0), status);
        assert_eq!(rig.get(0, registers::ERROR), error);
    }
}

#[test]
fn the_two_channels_and_two_drives_do_not_mix() {
    let rig = Rig::new();
    rig.disks[1].put(512, b"slave");
    rig.prepare(0, &[(0x8000, END | 0x200)], true);
    rig.issue(1, 0xc8, 1, 1);
    rig.start(1, true);
    assert!(!rig.pins[0].level() && !rig.pins[1].level());
    rig.start(0, true);
    assert_eq!(rig.served(0), READY);
    assert_eq!(rig.memory(0x8000, 5), b"slave");
    assert!(!rig.pins[1].level());
}

#[test]
fn decoding_follows_command_register_and_timing_register() {
    let rig = Rig::new();
    let mut data = [0; 2];
    rig.ide.config_read(IDETIM, &mut data);
    assert_eq!(data, [0, 0x80]);
    let _ = rig.ide.config_write(IDETIM, &[0, 0]);
    assert_eq!(rig.get(0, registers::STATUS), 0xff);
    assert_eq!(rig.alternate(0), 0xff);
    assert_eq!(rig.get(1, registers::STATUS), 0, "the other still is");
    let _ = rig.ide.config_write(IDETIM, &[0, 0x80]);
    assert_eq!(rig.get(0, registers::STATUS), READY);
    rig.set_command(COMMAND_BUS_MASTER);
    assert_eq!(rig.get(0, registers::STATUS), 0xff);
    rig.ide.reset();
    rig.ide.config_read(IDETIM, &mut data);
    assert_eq!(data, [0, 0x80]);
}
