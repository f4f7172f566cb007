//! One descriptor that stands for several.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use rustix::event::epoll;
use rustix::io::Errno;

pub(crate) use rustix::event::epoll::EventFlags;

/// An epoll set, itself readable when one of its members is ready: what a backend shows to the event loop.
#[derive(Debug)]
pub(crate) struct PollSet(OwnedFd);

/// How a descriptor is watched at present; not at all by default. Even with no flags, a hang-up is reported.
#[derive(Debug, Default)]
pub(crate) struct Watched(Option<EventFlags>);

impl PollSet {
    /// # Errors
    /// No descriptors left.
    pub fn new() -> io::Result<Self> {
        Ok(Self(epoll::create(epoll::CreateFlags::CLOEXEC)?))
    }

    /// Watches `fd` for `wanted`, or not at all.
    ///
    /// # Errors
    /// `PermissionDenied` for a descriptor that is always ready, such as a regular file.
    pub fn watch(
        &self,
        fd: impl AsFd,
        watched: &mut Watched,
        wanted: Option<EventFlags>,
    ) -> io::Result<()> {
        // There is but one member that matters at a time, so it is not looked up.
        let data = epoll::EventData::new_u64(0);
        match (watched.0, wanted) {
            (now, wanted) if now == wanted => {}
            (None, Some(flags)) => epoll::add(&self.0, fd, data, flags)?,
            (Some(_), Some(flags)) => epoll::modify(&self.0, fd, data, flags)?,
            (Some(_), None) => epoll::delete(&self.0, fd)?,
            (None, None) => {}
        }
        watched.0 = wanted;
        Ok(())
    }

    /// For the event loop.
    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Whether epoll takes `fd`; what it does not take is always ready.
///
/// # Errors
/// What the host said.
pub(crate) fn can_be_watched(fd: impl AsFd) -> io::Result<bool> {
    let probe = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    match epoll::add(
        &probe,
        fd,
        epoll::EventData::new_u64(0),
        EventFlags::empty(),
    ) {
        Ok(()) => Ok(true),
        Err(Errno::PERM) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}
