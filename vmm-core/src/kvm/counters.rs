//! KVM's own counters (`KVM_GET_STATS_FD`, Linux `Documentation/virt/kvm/api.rst`, 4.133).

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

use kvm_bindings::{
    KVM_STATS_BASE_MASK, KVM_STATS_BASE_POW2, KVM_STATS_TYPE_CUMULATIVE, KVM_STATS_TYPE_INSTANT,
    KVM_STATS_TYPE_MASK, KVMIO, kvm_stats_desc, kvm_stats_header,
};
use vmm_sys_util::ioctl::ioctl;
use vmm_sys_util::ioctl_io_nr;

use super::{Doing, KvmError, KvmVcpu, KvmVm};

ioctl_io_nr!(KVM_GET_STATS_FD, KVMIO, 0xce);

/// Names and descriptors take a few KiB; more is no answer of KVM's.
const DESCRIPTORS_BYTES_MAX: usize = 1 << 20;

/// The counters of a VM and its vCPUs. As long as this lives, KVM keeps the VM.
pub struct KvmCounters {
    files: Vec<Counted>,
}

/// What the counters said at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KvmReading {
    /// What only grows.
    pub cumulative: BTreeMap<String, u64>,
    /// What is true for the moment.
    pub instant: BTreeMap<String, u64>,
}

impl KvmCounters {
    /// Those of `vm` and `vcpus`; none where this kernel's KVM has none.
    ///
    /// # Errors
    /// [`KvmError::Ioctl`].
    pub fn open(vm: &KvmVm, vcpus: &[KvmVcpu]) -> Result<Option<Self>, KvmError> {
        if vm
            .fd()
            .check_extension_raw(u64::from(kvm_bindings::KVM_CAP_BINARY_STATS_FD))
            <= 0
        {
            return Ok(None);
        }
        let mut files = vec![Counted::open(vm.fd())?];
        for vcpu in vcpus {
            files.push(Counted::open(vcpu.fd())?);
        }
        Ok(Some(Self { files }))
    }

    /// The sums over the VM and its vCPUs now. Any thread; no vCPU is held up.
    ///
    /// # Errors
    /// What the host said.
    pub fn read(&self) -> io::Result<KvmReading> {
        let mut reading = KvmReading::default();
        for counted in &self.files {
            counted.add_to(&mut reading)?;
        }
        Ok(reading)
    }
}

/// One file of counters.
struct Counted {
    file: File,
    counters: Vec<Counter>,
    /// Where the values are in the file, and how many bytes of them are of interest.
    data: (u64, usize),
}

/// One counter.
#[derive(Debug, PartialEq, Eq)]
struct Counter {
    name: String,
    instant: bool,
    /// From the start of the values, in bytes.
    offset: usize,
    /// What its values are multiples of.
    unit: u64,
}

impl Counted {
    #[allow(unsafe_code)]
    fn open(of: &impl AsRawFd) -> Result<Self, KvmError> {
        // SAFETY: `of` is an open descriptor of a VM or vCPU, and the ioctl has no argument.
        let fd = unsafe { ioctl(of, KVM_GET_STATS_FD()) };
        if fd < 0 {
            return Err(kvm_ioctls::Error::last()).doing("open the counters");
        }
        // SAFETY: the descriptor is new, and nobody else's.
        let file = unsafe { File::from_raw_fd(fd) };
        Self::of_file(file).map_err(|source| KvmError::Ioctl {
            what: "read the counters' names",
            source,
        })
    }

    fn of_file(file: File) -> io::Result<Self> {
        let mut header = [0; size_of::<kvm_stats_header>()];
        file.read_exact_at(&mut header, 0)?;
        let field = |offset| u32_at(&header, offset).ok_or_else(no_counters);
        let name_bytes = field(std::mem::offset_of!(kvm_stats_header, name_size))?;
        let count = field(std::mem::offset_of!(kvm_stats_header, num_desc))?;
        let start = field(std::mem::offset_of!(kvm_stats_header, desc_offset))?;
        let data = field(std::mem::offset_of!(kvm_stats_header, data_offset))?;
        let step = size_of::<kvm_stats_desc>() + name_bytes as usize;
        let bytes = step
            .checked_mul(count as usize)
            .filter(|bytes| *bytes <= DESCRIPTORS_BYTES_MAX)
            .ok_or_else(no_counters)?;
        let mut descriptors = vec![0; bytes];
        file.read_exact_at(&mut descriptors, start.into())?;
        let counters: Vec<Counter> = descriptors.chunks_exact(step).filter_map(scalar).collect();
        let ends = counters.iter().map(|one| one.offset + size_of::<u64>());
        let len = ends.max().unwrap_or(0);
        Ok(Self {
            file,
            counters,
            data: (data.into(), len),
        })
    }

    fn add_to(&self, reading: &mut KvmReading) -> io::Result<()> {
        let (start, len) = self.data;
        let mut data = vec![0; len];
        self.file.read_exact_at(&mut data, start)?;
        for counter in &self.counters {
            let bytes = data[counter.offset..].first_chunk();
            let value = bytes.map_or(0, |bytes| u64::from_ne_bytes(*bytes));
            let map = match counter.instant {
                true => &mut reading.instant,
                false => &mut reading.cumulative,
            };
            let value = value.saturating_mul(counter.unit);
            match map.get_mut(&counter.name) {
                Some(sum) => *sum = sum.saturating_add(value),
                None => {
                    map.insert(counter.name.clone(), value);
                }
            }
        }
        Ok(())
    }
}

/// The counter that a descriptor with its name is of; none if it is a histogram or a maximum.
fn scalar(descriptor: &[u8]) -> Option<Counter> {
    let flags = u32_at(descriptor, std::mem::offset_of!(kvm_stats_desc, flags))?;
    let instant = match flags & KVM_STATS_TYPE_MASK {
        KVM_STATS_TYPE_CUMULATIVE => false,
        KVM_STATS_TYPE_INSTANT => true,
        _ => return None,
    };
    let size = u16_at(descriptor, std::mem::offset_of!(kvm_stats_desc, size))?;
    let exponent = u16_at(descriptor, std::mem::offset_of!(kvm_stats_desc, exponent))?;
    let offset = u32_at(descriptor, std::mem::offset_of!(kvm_stats_desc, offset))?;
    let name = descriptor.get(size_of::<kvm_stats_desc>()..)?;
    let name = name.split(|byte| *byte == 0).next()?;
    let base: u64 = match flags & KVM_STATS_BASE_MASK {
        KVM_STATS_BASE_POW2 => 2,
        _ => 10,
    };
    // A negative one makes seconds of nanoseconds, which are what we want.
    let exponent = u32::try_from(exponent.cast_signed()).unwrap_or(0);
    (size == 1 && !name.is_empty()).then(|| Counter {
        name: String::from_utf8_lossy(name).into_owned(),
        instant,
        offset: offset as usize,
        unit: base.saturating_pow(exponent),
    })
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    let bytes = bytes.get(offset..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*bytes))
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    let bytes = bytes.get(offset..)?.first_chunk()?;
    Some(u16::from_ne_bytes(*bytes))
}

fn no_counters() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "KVM's counters make no sense")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const NAME_BYTES: usize = 16;

    fn descriptor(name: &str, flags: u32, exponent: i16, size: u16, offset: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(exponent.to_ne_bytes());
        bytes.extend(size.to_ne_bytes());
        bytes.extend(offset.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(name.as_bytes());
        bytes.resize(size_of::<kvm_stats_desc>() + NAME_BYTES, 0);
        bytes
    }

    /// A file as KVM would give it, with room for more descriptors than there are values.
    fn file(descriptors: &[Vec<u8>], values: &[u64]) -> File {
        let header = size_of::<kvm_stats_header>();
        let id = [0; NAME_BYTES];
        let start = header + id.len();
        let data = start + descriptors.iter().map(Vec::len).sum::<usize>();
        let mut file = tempfile::tempfile().unwrap();
        let fields = [0, NAME_BYTES, descriptors.len(), header, start, data];
        for field in fields {
            let field = u32::try_from(field).unwrap();
            file.write_all(&field.to_ne_bytes()).unwrap();
        }
        file.write_all(&id).unwrap();
        file.write_all(&descriptors.concat()).unwrap();
        for value in values {
            file.write_all(&value.to_ne_bytes()).unwrap();
        }
        file
    }

    #[test]
    fn scalars_are_added_up_and_nothing_else() {
        use kvm_bindings::{KVM_STATS_TYPE_LOG_HIST, KVM_STATS_TYPE_PEAK};
        let pow2 = KVM_STATS_TYPE_CUMULATIVE | KVM_STATS_BASE_POW2;
        let descriptors = [
            descriptor("exits", KVM_STATS_TYPE_CUMULATIVE, 0, 1, 0),
            descriptor("hist", KVM_STATS_TYPE_LOG_HIST, 0, 2, 8),
            descriptor("blocking", KVM_STATS_TYPE_INSTANT, 0, 1, 24),
            descriptor("peak", KVM_STATS_TYPE_PEAK, 0, 1, 32),
            descriptor("wait_ns", KVM_STATS_TYPE_CUMULATIVE, -9, 1, 40),
            descriptor("kib", pow2, 10, 1, 48),
            descriptor("sixteen_letters.", KVM_STATS_TYPE_CUMULATIVE, 1, 1, 56),
        ];
        let one = Counted::of_file(file(&descriptors, &[5, 6, 7, 1, 9, 1000, 3, 4])).unwrap();
        let two = Counted::of_file(file(&descriptors[..1], &[30])).unwrap();
        let counters = KvmCounters {
            files: vec![one, two],
        };
        let reading = counters.read().unwrap();
        let cumulative = [
            ("exits", 35),
            ("kib", 3 << 10),
            ("sixteen_letters.", 40),
            ("wait_ns", 1000),
        ];
        let named = |map: &[(&str, u64)]| map.iter().map(|(k, v)| ((*k).into(), *v)).collect();
        assert_eq!(reading.cumulative, named(&cumulative));
        assert_eq!(reading.instant, named(&[("blocking", 1)]));
    }

    #[test]
    fn nonsense_is_refused() {
        let cut = file(&[descriptor("exits", 0, 0, 1, 0)], &[]);
        let counted = Counted::of_file(cut).unwrap();
        assert!(counted.add_to(&mut KvmReading::default()).is_err());
        let mut huge = tempfile::tempfile().unwrap();
        huge.write_all(&[0xff; 64]).unwrap();
        assert!(Counted::of_file(huge).is_err());
        assert!(Counted::of_file(tempfile::tempfile().unwrap()).is_err());
    }
}
