//! Devices at fixed ports: what a PC has had since before PCI.
