//! The network backend trait.

use std::io;
use std::os::fd::RawFd;

use bitflags::bitflags;
use vm_memory::VolatileSlice;

/// Length of the header before each frame: `struct virtio_net_hdr_v1` (virtio 1.3, 5.1.6), little-endian.
pub const VNET_HEADER_BYTES: usize = 12;

bitflags! {
    /// What the guest's driver can receive beyond plain frames (virtio 1.3, 5.1.3: the `GUEST_` features).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct NetOffloads: u32 {
        /// Frames with a partial checksum.
        const CSUM = 1;
        /// TCP/IPv4 segments larger than the MTU.
        const TSO4 = 2;
        /// TCP/IPv6 segments larger than the MTU.
        const TSO6 = 4;
        /// ECN bits in those.
        const ECN = 8;
        /// UDP datagrams larger than the MTU.
        const UFO = 16;
    }
}

/// Frames in, frames out, each behind a header of [`VNET_HEADER_BYTES`]. One call at a time; they come on the event loop,
/// and [`NetBackend::send`] on vCPU threads too, so none of them may block.
pub trait NetBackend: Send {
    /// Sends one frame, header first. The slices may be in guest RAM, so their bytes may change under the call.
    /// Some may be empty.
    ///
    /// # Errors
    /// `WouldBlock` when the host takes no more now: [`NetBackend::poll_fd`] becomes writable when it does again, and
    /// the same frame is to be offered then, since a part of it may be on its way.
    /// Anything else loses this frame only.
    fn send(&mut self, frame: &[VolatileSlice<'_>]) -> io::Result<usize>;

    /// Receives one frame, header first, into the slices; returns its length with the header. A frame longer than
    /// the slices is cut; callers offer enough.
    ///
    /// # Errors
    /// `WouldBlock` when none waits.
    fn recv(&mut self, frame: &[VolatileSlice<'_>]) -> io::Result<usize>;

    /// What frames the driver can receive from now on.
    ///
    /// # Errors
    /// What the host said.
    fn set_offloads(&mut self, offloads: NetOffloads) -> io::Result<()>;

    /// Readable when a frame waits, writable when one can be sent; one fd for life, to be watched edge-triggered: it
    /// stays readable for good once its other end is gone. None if nothing ever comes and sending never blocks.
    fn poll_fd(&self) -> Option<RawFd>;
}
