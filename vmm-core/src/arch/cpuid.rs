//! CPUID: the host's leaves as KVM offers them, with this machine's topology.
//!
//! Leaves are those of the Intel SDM (volume 2A, CPUID) and the AMD APM (volume 3, appendix E). The topology is one
//! package of `count` cores with one thread each; APIC ids count from 0.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

const ECX_X2APIC: u32 = 1 << 21;
const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_HTT: u32 = 1 << 28;
/// AMD: the legacy flag for more than one core in the package.
const ECX_CMP_LEGACY: u32 = 1 << 1;
const LEAF_EXTENDED_TOPOLOGY: u32 = 0xb;
const LEAF_V2_EXTENDED_TOPOLOGY: u32 = 0x1f;
const LEAF_AMD_EXTENDED_TOPOLOGY: u32 = 0x8000_0026;

/// Where one vCPU stands in the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    /// The vCPU's APIC id.
    pub apic_id: u32,
    /// Cores in the package.
    pub count: u32,
}

impl Topology {
    /// Bits of an APIC id that number the cores.
    fn core_bits(self) -> u32 {
        self.count.next_power_of_two().trailing_zeros()
    }
}

/// Whether the CPU is AMD's, or one of Hygon's, which are made after it: their call of the hypervisor is VMMCALL.
#[must_use]
pub fn is_amd(supported: &CpuId) -> bool {
    let mut entries = supported.as_slice().iter();
    // "AuthenticAMD" and "HygonGenuine", of which EBX has the beginning.
    let names = [*b"Auth", *b"Hygo"].map(u32::from_le_bytes);
    entries.any(|entry| entry.function == 0 && names.contains(&entry.ebx))
}

/// `supported`, as vCPU `topology.apic_id` is to see it.
///
/// # Panics
/// Never: the number of entries only shrinks or grows by less than KVM's limit leaves.
#[must_use]
pub fn for_vcpu(
    supported: &CpuId,
    topology: Topology,
    tsc_deadline: bool,
) -> Vec<kvm_cpuid_entry2> {
    let mut entries: Vec<_> = supported
        .as_slice()
        .iter()
        .copied()
        .filter(|e| {
            !matches!(
                e.function,
                LEAF_EXTENDED_TOPOLOGY | LEAF_V2_EXTENDED_TOPOLOGY | LEAF_AMD_EXTENDED_TOPOLOGY
            )
        })
        .collect();
    for entry in &mut entries {
        adapt(entry, topology, tsc_deadline);
    }
    entries.extend(extended_topology(topology));
    entries
}

/// Bits of a guest-physical address.
#[must_use]
pub fn physical_bits(supported: &CpuId) -> u32 {
    supported
        .as_slice()
        .iter()
        .find(|e| e.function == 0x8000_0008)
        .map_or(36, |e| {
            let guest_bits = (e.eax >> 16) & 0xff;
            if guest_bits == 0 {
                e.eax & 0xff
            } else {
                guest_bits
            }
        })
}

fn adapt(entry: &mut kvm_cpuid_entry2, topology: Topology, tsc_deadline: bool) {
    let Topology { apic_id, count } = topology;
    match entry.function {
        0 => entry.eax = entry.eax.max(LEAF_EXTENDED_TOPOLOGY),
        1 => {
            entry.ebx =
                (entry.ebx & 0x0000_ffff) | (count.min(255) << 16) | ((apic_id & 0xff) << 24);
            entry.ecx |= ECX_HYPERVISOR;
            // One CPU sends no interrupts to others, and Linux saves, masks and restores all IOAPIC entries to enter
            // x2APIC mode: 190 exits at boot for nothing.
            set(&mut entry.ecx, ECX_X2APIC, count > 1);
            set(&mut entry.ecx, ECX_TSC_DEADLINE, tsc_deadline);
            set(&mut entry.edx, EDX_HTT, count > 1);
        }
        // Deterministic cache parameters, Intel's and AMD's: the last level is shared by all, the others by none.
        4 | 0x8000_001d if entry.eax & 0x1f != 0 => {
            let level = (entry.eax >> 5) & 7;
            let sharing = if level >= 3 {
                count.next_power_of_two() - 1
            } else {
                0
            };
            entry.eax = (entry.eax & 0x3fff) | (sharing.min(0xfff) << 14);
            if entry.function == 4 {
                entry.eax |= (count.next_power_of_two() - 1).min(0x3f) << 26;
            }
        }
        0x8000_0001 if count == 1 => set(&mut entry.ecx, ECX_CMP_LEGACY, false),
        0x8000_0008 => {
            entry.ecx = (entry.ecx & !0xf0ff)
                | (count - 1).min(0xff)
                | (topology.core_bits().min(0xf) << 12);
        }
        0x8000_001e => {
            entry.eax = apic_id;
            entry.ebx = apic_id & 0xff;
            entry.ecx = 0;
        }
        _ => {}
    }
}

/// Extended topology enumeration: level 0 the threads of a core, level 1 the cores of the package, level 2 the end.
fn extended_topology(topology: Topology) -> [kvm_cpuid_entry2; 3] {
    const SMT: u32 = 1;
    const CORE: u32 = 2;
    [
        (0, 1, SMT),
        (topology.core_bits(), topology.count, CORE),
        (0, 0, 0),
    ]
    .map(|(shift, processors, kind)| {
        let index = if kind == 0 { 2 } else { kind - 1 };
        kvm_cpuid_entry2 {
            function: LEAF_EXTENDED_TOPOLOGY,
            index,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: shift,
            ebx: processors,
            ecx: index | (kind << 8),
            edx: topology.apic_id,
            ..Default::default()
        }
    })
}

fn set(register: &mut u32, bits: u32, on: bool) {
    if on {
        *register |= bits;
    } else {
        *register &= !bits;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn supported() -> CpuId {
        let leaf = |function, index, eax| kvm_cpuid_entry2 {
            function,
            index,
            eax,
            ..Default::default()
        };
        CpuId::from_entries(&[
            leaf(0, 0, 0x7),
            kvm_cpuid_entry2 {
                edx: EDX_HTT,
                ebx: 0x1234_0800,
                ..leaf(1, 0, 0)
            },
            leaf(4, 0, 0x121 | 7 << 14),
            leaf(4, 3, 0x163 | 63 << 14),
            leaf(0xb, 0, 0xdead),
            leaf(0x1f, 0, 0xdead),
            leaf(0x8000_0008, 0, 0x3028),
        ])
        .unwrap()
    }

    fn leaf(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        *entries
            .iter()
            .find(|e| e.function == function && e.index == index)
            .unwrap()
    }

    #[test]
    fn each_vcpu_has_its_apic_id_and_the_package_its_count() {
        for (apic_id, count) in [(0, 1), (2, 4), (5, 6), (254, 255)] {
            let entries = for_vcpu(&supported(), Topology { apic_id, count }, true);
            let one = leaf(&entries, 1, 0);
            assert_eq!(one.ebx >> 24, apic_id);
            assert_eq!((one.ebx >> 16) & 0xff, count);
            assert_eq!(one.ebx & 0xffff, 0x0800, "CLFLUSH size stays");
            assert_eq!(one.edx & EDX_HTT != 0, count > 1);
            assert_ne!(one.ecx & ECX_TSC_DEADLINE, 0);
            assert_eq!(one.ecx & ECX_X2APIC != 0, count > 1);
            let cores = leaf(&entries, 0xb, 1);
            assert_eq!((cores.ebx, cores.edx, cores.ecx), (count, apic_id, 0x201));
            assert!(1 << cores.eax >= count && (count == 1 || 1 << (cores.eax - 1) < count));
            assert_eq!(leaf(&entries, 0xb, 2).ebx, 0);
            assert!(
                entries
                    .iter()
                    .all(|e| e.function != 0x1f && e.eax != 0xdead)
            );
            assert!(leaf(&entries, 0, 0).eax >= 0xb);
        }
    }

    #[test]
    fn only_the_last_level_cache_is_shared() {
        let entries = for_vcpu(
            &supported(),
            Topology {
                apic_id: 0,
                count: 4,
            },
            false,
        );
        assert_eq!((leaf(&entries, 4, 0).eax >> 14) & 0xfff, 0);
        assert_eq!((leaf(&entries, 4, 3).eax >> 14) & 0xfff, 3);
        assert_eq!(leaf(&entries, 1, 0).ecx & ECX_TSC_DEADLINE, 0);
    }

    #[test]
    fn physical_bits_are_the_guests_where_they_are_given() {
        assert_eq!(physical_bits(&supported()), 0x28);
    }
}
