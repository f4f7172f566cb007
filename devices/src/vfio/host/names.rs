//! Names from the PCI ID repository, as the build has written them: see `build.rs`.

const NAMES: &str = include_str!(concat!(env!("OUT_DIR"), "/pci-names"));

/// Of a vendor.
pub fn vendor(id: u16) -> Option<&'static str> {
    find(&format!("v{id:04x}"))
}

/// Of a vendor's device.
pub fn device(vendor: u16, id: u16) -> Option<&'static str> {
    find(&format!("d{vendor:04x}{id:04x}"))
}

/// Of a subclass.
pub fn subclass(class: u8, id: u8) -> Option<&'static str> {
    find(&format!("c{class:02x}{id:02x}"))
}

fn find(key: &str) -> Option<&'static str> {
    let mut lines = NAMES.lines();
    lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_by_their_whole_number() {
        assert_eq!(vendor(0x8086), Some("Intel Corporation"));
        assert_eq!(
            device(0x8086, 0x100e),
            Some("82540EM Gigabit Ethernet Controller")
        );
        assert_eq!(subclass(2, 0), Some("Ethernet controller"));
        assert_eq!(device(0x8086, 0xffff), None);
        assert_eq!(vendor(0x0bad), None);
    }
}
