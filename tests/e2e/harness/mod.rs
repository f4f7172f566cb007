//! What runs the tests, and what they are written with.

pub mod agent;
pub mod cpio;
pub mod dhcp;
pub mod front;
pub mod host;
pub mod in_place;
pub mod iso;
pub mod l1;
pub mod measure;
pub mod paths;
pub mod runner;
pub mod sys;
pub mod tap;
pub mod vm;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use l1::Flavour;

type TestFn = dyn Fn(&Ctx) -> Result<()> + Send + Sync;

/// One end-to-end test.
pub struct E2eTest {
    name: String,
    run: Box<TestFn>,
    limit: Duration,
    alone: bool,
    own_network: bool,
    triple_faults: bool,
    flavour: Flavour,
}

/// A test called `name`, with the usual time limit.
pub fn test(
    name: impl Into<String>,
    run: impl Fn(&Ctx) -> Result<()> + Send + Sync + 'static,
) -> E2eTest {
    E2eTest {
        name: name.into(),
        run: Box::new(run),
        limit: Duration::from_secs(120),
        alone: false,
        own_network: false,
        triple_faults: false,
        flavour: Flavour::Plain,
    }
}

impl E2eTest {
    /// Another time limit than two minutes.
    pub fn limit(mut self, seconds: u64) -> Self {
        self.limit = Duration::from_secs(seconds);
        self
    }

    /// Never runs beside another test: it measures.
    pub fn alone(mut self) -> Self {
        self.alone = true;
        self
    }

    /// Runs in a network namespace of its own, in which it may make TAPs; they vanish with it.
    pub fn own_network(mut self) -> Self {
        self.own_network = true;
        self
    }

    /// Whether its guest has a triple fault on purpose, which is then not L1's fault.
    pub fn triple_faults(mut self, on_purpose: bool) -> Self {
        self.triple_faults = on_purpose;
        self
    }

    /// Needs the devices that L1 has with `--passthrough`, and so runs there even where the host could run guests.
    pub fn passthrough(mut self) -> Self {
        self.flavour = Flavour::Passthrough;
        self
    }

    /// Runs where time is a count of instructions, whatever else the host does: in an emulated L1, even where the host
    /// could run guests. The limit is in that time, which passes more slowly than the world's.
    pub fn counted(mut self) -> Self {
        self.flavour = Flavour::Counted;
        self
    }

    /// The machine that the test needs; a plain one may be the host.
    pub fn flavour(&self) -> Flavour {
        self.flavour
    }

    /// Whether the test runs beside no other.
    pub fn is_alone(&self) -> bool {
        self.alone
    }
}

/// What a test is given: the program under test, a folder of its own, and the guests' files.
pub struct Ctx {
    /// The VMM.
    pub binary: PathBuf,
    /// The test's scratch folder, empty at first and removed at the end.
    pub folder: PathBuf,
    /// The folder that `tests/testbed/setup` fills.
    pub testbed: PathBuf,
}

impl Ctx {
    /// A path in the scratch folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A file of zeros in the scratch folder, for a disk.
    pub fn disk(&self, name: &str, size_mib: u64) -> Result<PathBuf> {
        let path = self.path(name);
        let file = std::fs::File::create(&path).with_context(|| format!("{}", path.display()))?;
        file.set_len(size_mib << 20)?;
        Ok(path)
    }

    /// A stock kernel's file.
    pub fn kernel(&self, kernel: Kernel) -> PathBuf {
        self.testbed.join(match kernel {
            Kernel::Cloud61 => "cloud61/vmlinuz",
            Kernel::Cloud61Elf => "cloud61/vmlinux",
            Kernel::Generic612 => "generic612/vmlinuz",
        })
    }

    /// The initramfs with that kernel's virtio and other modules, without busybox.
    pub fn modules(&self, kernel: Kernel) -> PathBuf {
        self.testbed.join(match kernel {
            Kernel::Cloud61 | Kernel::Cloud61Elf => "cloud61/modules.cpio.gz",
            Kernel::Generic612 => "generic612/modules.cpio.gz",
        })
    }
}

/// The stock kernels that guests boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Debian's 6.1 for clouds, a bzImage.
    Cloud61,
    /// The ELF file from inside the same bzImage.
    Cloud61Elf,
    /// Debian's 6.12 for any machine, a bzImage.
    Generic612,
}
