//! pvpanic, the panic notifier (QEMU's `docs/specs/pvpanic`, ISA variant): one byte-wide port. A read gives the
//! events that the device takes, a write reports one.

use std::sync::Arc;

use bitflags::bitflags;

use super::{PowerControl, PowerEvent, Reset};
use crate::bus::{AccessError, BusDevice};

bitflags! {
    /// The events of the interface; RO when read, WO when written.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Events: u8 {
        /// The guest has panicked.
        const PANICKED = 1 << 0;
        /// The guest has panicked and starts its crash kernel.
        const CRASH_LOADED = 1 << 1;
        /// The guest wants to be switched off.
        const SHUTDOWN = 1 << 2;
    }
}

/// The device. It has no state and no interrupt.
pub struct Pvpanic {
    power: Arc<dyn PowerControl>,
}

impl Pvpanic {
    /// A notifier that reports to `power`.
    #[must_use]
    pub fn new(power: Arc<dyn PowerControl>) -> Self {
        Self { power }
    }
}

impl BusDevice for Pvpanic {
    fn name(&self) -> &str {
        "pvpanic"
    }

    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        match (offset, data) {
            (0, [byte]) => {
                *byte = Events::all().bits();
                Ok(())
            }
            (0, _) => Err(AccessError::InvalidWidth),
            _ => Err(AccessError::InvalidRegister),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        let events = match (offset, data) {
            (0, &[byte]) => Events::from_bits(byte).ok_or(AccessError::InvalidValue)?,
            (0, _) => return Err(AccessError::InvalidWidth),
            _ => return Err(AccessError::InvalidRegister),
        };
        for (event, request) in [
            (Events::PANICKED, PowerEvent::Panicked),
            (Events::CRASH_LOADED, PowerEvent::CrashLoaded),
            (Events::SHUTDOWN, PowerEvent::PowerOff),
        ] {
            if events.contains(event) {
                self.power.request(request);
            }
        }
        Ok(())
    }
}

impl Reset for Pvpanic {
    fn reset(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::FakePower;

    fn device() -> (Pvpanic, Arc<FakePower>) {
        let power = Arc::new(FakePower::default());
        (Pvpanic::new(power.clone()), power)
    }

    #[test]
    fn reads_the_supported_events() {
        let (device, _) = device();
        let mut data = [0];
        device.read(0, &mut data).unwrap();
        assert_eq!(data, [7]);
    }

    #[test]
    fn each_event_is_reported() {
        for (value, events) in [
            (0, vec![]),
            (1, vec![PowerEvent::Panicked]),
            (2, vec![PowerEvent::CrashLoaded]),
            (4, vec![PowerEvent::PowerOff]),
            (3, vec![PowerEvent::Panicked, PowerEvent::CrashLoaded]),
        ] {
            let (device, power) = device();
            device.write(0, &[value]).unwrap();
            assert_eq!(power.take(), events, "{value}");
        }
    }

    #[test]
    fn a_guest_can_do_nothing_else() {
        let (device, power) = device();
        assert_eq!(device.write(0, &[8]), Err(AccessError::InvalidValue));
        assert_eq!(device.write(0, &[0x81]), Err(AccessError::InvalidValue));
        assert_eq!(device.write(0, &[1, 0]), Err(AccessError::InvalidWidth));
        assert_eq!(device.write(0, &[]), Err(AccessError::InvalidWidth));
        assert_eq!(device.write(1, &[1]), Err(AccessError::InvalidRegister));
        assert_eq!(device.read(0, &mut [0; 4]), Err(AccessError::InvalidWidth));
        assert_eq!(device.read(1, &mut [0]), Err(AccessError::InvalidRegister));
        assert!(power.take().is_empty());
    }
}
