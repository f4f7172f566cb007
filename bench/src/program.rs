//! The load program as this binary carries it: the same bytes for guests and for the host.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::Errno;

/// The program: a static ELF, which is also what a guest's init is given to run.
pub static LOAD: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/tripath-load"));

/// The load program in a file without a name, which nobody can change. It is gone when this and all that run it are.
#[derive(Debug)]
pub struct LoadProgram {
    file: File,
}

impl LoadProgram {
    /// What to execute; good for all processes of this machine as long as `self` is there.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        use std::os::fd::AsRawFd;
        let fd = self.file.as_raw_fd();
        format!("/proc/{}/fd/{fd}", std::process::id()).into()
    }
}

/// Puts the load program where it can be executed. Called once by a benchmark, before anything is measured.
///
/// # Errors
/// There is no memory for it, or this machine executes nothing from there (`vm.memfd_noexec`).
pub fn load_program() -> io::Result<LoadProgram> {
    const NAME: &str = "tripath-load";
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Linux before 6.3 does not know that flag, and needs none.
    let fd = match memfd_create(NAME, flags | MemfdFlags::EXEC) {
        Err(Errno::INVAL) => memfd_create(NAME, flags)?,
        created => created?,
    };
    let mut file = File::from(fd);
    file.write_all(LOAD)?;
    let all = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    fcntl_add_seals(&file, all)?;
    Ok(LoadProgram { file })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::process::{Command, Stdio};

    use tripath_load::spec::Answer;

    #[test]
    fn it_runs_and_says_hello() {
        let program = load_program().unwrap();
        let output = Command::new(program.path())
            .arg("agent")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let hello: Answer = serde_json::from_slice(&output.stdout).unwrap();
        assert!(matches!(hello, Answer::Hello { .. }), "{hello:?}");
    }

    #[test]
    fn it_runs_in_namespaces_of_its_own() {
        let program = load_program().unwrap();
        let output = Command::new(program.path())
            .args(["agent", "--isolate", "container"])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(output.stdout.starts_with(b"{\"answer\":\"hello\""));
    }

    #[test]
    fn nobody_can_change_it() {
        let program = load_program().unwrap();
        assert_eq!(fs::read(program.path()).unwrap(), LOAD);
        let error = (&program.file).write_all(b"x").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert!(program.file.set_len(1).is_err());
    }

    #[test]
    fn it_needs_no_loader() {
        // No program header of type PT_INTERP (3): the initramfs has no libraries.
        let number = |at: usize, len: usize| {
            let mut bytes = [0; 8];
            bytes[..len].copy_from_slice(&LOAD[at..at + len]);
            usize::try_from(u64::from_le_bytes(bytes)).unwrap()
        };
        assert_eq!(&LOAD[..4], b"\x7fELF");
        let (start, size, count) = (number(32, 8), number(54, 2), number(56, 2));
        assert!(count > 0);
        for header in 0..count {
            assert_ne!(number(start + header * size, 4), 3);
        }
    }
}
