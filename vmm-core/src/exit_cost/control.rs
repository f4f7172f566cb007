//! What the guest's port and registers lead to.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use devices::bus::{AccessError, BusDevice};
use devices::sync::lock;

use super::guest::Order;

/// One thing to do, so often.
#[derive(Debug, Clone, Copy)]
pub(super) struct Command {
    pub order: Order,
    pub count: u32,
}

/// No [`Order`]: the guest halts for good.
const END: u32 = u32::MAX;

/// Gives the guest its commands, and measures how long they take it: from a write to the next.
pub(super) struct Control {
    state: Mutex<State>,
    done: Sender<Duration>,
}

struct State {
    commands: Receiver<Command>,
    /// Of the last command, what the guest has not read yet.
    count: Option<u32>,
    started: Option<Instant>,
}

impl Control {
    pub(super) fn new(commands: Receiver<Command>, done: Sender<Duration>) -> Self {
        Self {
            state: Mutex::new(State {
                commands,
                count: None,
                started: None,
            }),
            done,
        }
    }
}

impl BusDevice for Control {
    fn name(&self) -> &str {
        "control"
    }

    /// Waits for a command.
    fn read(&self, _offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let mut state = lock(&self.state);
        let value = match state.count.take() {
            Some(count) => count,
            // There is none any more when the machine goes.
            None => state.commands.recv().map_or(END, |command| {
                state.count = Some(command.count);
                command.order as u32
            }),
        };
        let bytes = value.to_le_bytes();
        let len = data.len().min(bytes.len());
        data[..len].copy_from_slice(&bytes[..len]);
        Ok(())
    }

    fn write(&self, _offset: u64, _data: &[u8]) -> Result<(), AccessError> {
        let now = Instant::now();
        let mut state = lock(&self.state);
        match state.started.take() {
            None => state.started = Some(now),
            Some(started) => {
                // Nobody waits for it when the machine goes.
                let _ = self.done.send(now - started);
            }
        }
        Ok(())
    }
}

/// Registers without a meaning: what an access costs that does nothing.
pub(super) struct Nothing;

impl BusDevice for Nothing {
    fn name(&self) -> &str {
        "nothing"
    }

    /// The guest gets what it last read or wrote.
    fn read(&self, _offset: u64, _data: &mut [u8]) -> Result<(), AccessError> {
        Ok(())
    }

    fn write(&self, _offset: u64, _data: &[u8]) -> Result<(), AccessError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn commands_come_in_two_reads_and_are_timed_by_two_writes() {
        let (command, commands) = channel();
        let (done, times) = channel();
        let control = Control::new(commands, done);
        let read = || {
            let mut data = [0; 4];
            control.read(0, &mut data).unwrap();
            u32::from_le_bytes(data)
        };
        let order = Order::MmioWrite;
        command.send(Command { order, count: 77 }).unwrap();
        assert_eq!((read(), read()), (3, 77));
        control.write(0, &[0; 4]).unwrap();
        assert!(times.try_recv().is_err());
        control.write(0, &[0; 4]).unwrap();
        assert!(times.try_recv().is_ok());
        drop(command);
        assert_eq!(read(), END);
    }
}
