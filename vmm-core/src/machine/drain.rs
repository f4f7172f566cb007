//! The end of a run: what the guest has printed still gets out.

use std::time::{Duration, Instant};

use super::MachineError;
use super::events::{EventQueue, MachineEvent};
use super::wiring::Devices;
use crate::event_loop::EventLoop;

/// How long nobody may take any output, after a guest has ended by itself: a log is to be complete. A signal or
/// Ctrl-A x ends the wait.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// How long, after the user has asked for the end.
pub const HASTE: Duration = Duration::from_millis(500);

/// How often it is looked whether the output moves.
const STEP: Duration = Duration::from_millis(50);
/// Rounds of events served after the last output has gone: a device may be about to send more.
const LAST_ROUNDS: u32 = 16;

/// Serves events until no output of serial ports and console waits, no reader has taken anything for `patience`, or
/// the user wants no more. All vCPU threads have ended.
///
/// # Errors
/// Those of the event loop.
pub fn output(
    devices: &Devices,
    events: &mut EventLoop,
    queue: &EventQueue,
    patience: Duration,
) -> Result<(), MachineError> {
    let mut rounds = 0;
    let mut waiting = devices.output_waiting();
    let mut moved = Instant::now();
    loop {
        let step = if waiting > 0 { STEP } else { Duration::ZERO };
        let served = events.run_for(step)?;
        let before = std::mem::replace(&mut waiting, devices.output_waiting());
        if waiting == 0 {
            rounds += 1;
            if served == 0 || rounds == LAST_ROUNDS {
                return Ok(());
            }
        } else if waiting != before {
            moved = Instant::now();
        }
        if (waiting > 0 && moved.elapsed() >= patience) || is_unwanted(queue) {
            break;
        }
    }
    if waiting > 0 {
        log::warn!("{waiting} bytes of the guest's output are lost: nobody reads them");
    }
    Ok(())
}

/// Whether the user asks for the end, once more or for the first time. What the guest did is of no interest any more.
fn is_unwanted(queue: &EventQueue) -> bool {
    std::iter::from_fn(|| queue.pop())
        .any(|event| matches!(event, MachineEvent::Quit | MachineEvent::Terminate))
}
