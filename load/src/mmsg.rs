//! Many datagrams by one system call.
#![allow(unsafe_code)]

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

/// Datagrams of one call.
const BATCH: usize = 32;

/// Datagrams as the kernel takes or gives them. The pointers lead into `memory`, which is never moved or resized.
pub struct Batch {
    headers: Vec<libc::mmsghdr>,
    _vectors: Vec<libc::iovec>,
    _memory: Vec<u8>,
}

impl Batch {
    /// For sending `content` over and over.
    pub fn to_send(content: Vec<u8>) -> Self {
        let len = content.len();
        Self::over(content, len, 0)
    }

    /// For receiving datagrams of up to `size` bytes.
    pub fn to_receive(size: usize) -> Self {
        Self::over(vec![0; size * BATCH], size, size)
    }

    /// Each datagram `step` bytes after the one before.
    fn over(mut memory: Vec<u8>, len: usize, step: usize) -> Self {
        let mut parts = if step == 0 {
            Vec::new()
        } else {
            memory.chunks_mut(step).map(<[u8]>::as_mut_ptr).collect()
        };
        parts.resize(BATCH, memory.as_mut_ptr());
        let mut vectors: Vec<libc::iovec> = parts
            .into_iter()
            .map(|part| libc::iovec {
                iov_base: part.cast(),
                iov_len: len,
            })
            .collect();
        let headers = vectors.iter_mut().map(|vector| {
            // SAFETY: numbers and pointers, of which zeros are values.
            let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            header
        });
        Self {
            headers: headers.collect(),
            _vectors: vectors,
            _memory: memory,
        }
    }

    /// Sends them to whom the socket is connected to; how many went.
    pub fn send(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        let count = u32::try_from(self.headers.len()).unwrap_or(u32::MAX);
        // SAFETY: the headers lead to vectors and memory of this batch, which outlive the call; they are only read.
        let sent =
            unsafe { libc::sendmmsg(socket.as_raw_fd(), self.headers.as_mut_ptr(), count, 0) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    /// Waits for one and takes what else is there: how many, and their bytes.
    pub fn receive(&mut self, socket: &UdpSocket) -> io::Result<(u64, u64)> {
        let count = u32::try_from(self.headers.len()).unwrap_or(u32::MAX);
        let (flags, forever) = (libc::MSG_WAITFORONE, std::ptr::null_mut());
        // SAFETY: the headers lead to vectors and memory of this batch, which outlive the call and are each as large as
        // they say; nothing else refers to that memory.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                count,
                flags,
                forever,
            )
        };
        let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
        let lengths = self.headers[..received].iter();
        let bytes = lengths.map(|header| u64::from(header.msg_len)).sum();
        Ok((received as u64, bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn datagrams_arrive_whole_and_are_counted() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.connect(receiver.local_addr().unwrap()).unwrap();
        receiver
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let sent = Batch::to_send(vec![7; 100]).send(&sender).unwrap();
        assert_eq!(sent, BATCH);
        sender.send(&[9; 50]).unwrap();
        let mut batch = Batch::to_receive(100);
        let mut total = (0, 0);
        while total.0 < BATCH as u64 + 1 {
            let (count, bytes) = batch.receive(&receiver).unwrap();
            total = (total.0 + count, total.1 + bytes);
        }
        assert_eq!(total.1, 100 * BATCH as u64 + 50);
        assert!(batch._memory.iter().all(|byte| [7, 9, 0].contains(byte)));
    }
}
