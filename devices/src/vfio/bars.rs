//! Which parts of a BAR the guest reaches without an exit.

use std::ops::Range;

use super::host_function::RegionInfo;

/// A range of a BAR that the user wants trapped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trap {
    /// BAR, 0 to 5.
    pub bar: u8,
    /// Offsets in it, in bytes; none is all of it.
    pub range: Option<Range<u64>>,
}

/// The ranges of a region that can be mapped once those in `trapped` are taken out, in whole pages. A page is
/// trapped if any byte of it is.
#[must_use]
pub fn mappable(region: &RegionInfo, trapped: &[Range<u64>], page: u64) -> Vec<Range<u64>> {
    let mut free: Vec<Range<u64>> = region
        .areas
        .iter()
        .filter_map(|(offset, len)| {
            let end = offset.checked_add(*len)?.min(region.size);
            Some(offset.checked_next_multiple_of(page)?..end - end % page)
        })
        .collect();
    for trap in trapped.iter().filter(|trap| !trap.is_empty()) {
        let start = trap.start - trap.start % page;
        let end = trap.end.checked_next_multiple_of(page).unwrap_or(u64::MAX);
        free = free
            .into_iter()
            .flat_map(|range| {
                let below = range.start..range.end.min(start);
                let above = range.start.max(end)..range.end;
                [below, above]
            })
            .collect();
        free.retain(|range| range.start < range.end);
    }
    free.retain(|range| range.start < range.end);
    free.sort_by_key(|range| range.start);
    free
}

#[cfg(test)]
// One range is a list of ranges, too.
#[allow(clippy::single_range_in_vec_init)]
mod tests {
    use super::*;

    const PAGE: u64 = 0x1000;

    fn region(size: u64, areas: &[(u64, u64)]) -> RegionInfo {
        RegionInfo {
            size,
            readable: true,
            writable: true,
            areas: areas.to_vec(),
        }
    }

    #[test]
    fn whole_pages_but_the_trapped_ones() {
        let all = region(0x4000, &[(0, 0x4000)]);
        assert_eq!(mappable(&all, &[], PAGE), [0..0x4000]);
        // A table in the middle, one byte into the next page.
        assert_eq!(
            mappable(&all, &[0x1800..0x2001], PAGE),
            [0..0x1000, 0x3000..0x4000]
        );
        assert_eq!(
            mappable(&all, &[0..1, 0x3fff..0x4000], PAGE),
            [0x1000..0x3000]
        );
        assert_eq!(mappable(&all, &[0..u64::MAX], PAGE), []);
        assert_eq!(mappable(&all, &[5..5], PAGE), [0..0x4000]);
        assert_eq!(mappable(&all, &[0x5000..0x6000], PAGE), [0..0x4000]);
    }

    #[test]
    fn only_what_the_host_offers() {
        assert_eq!(mappable(&region(0x4000, &[]), &[], PAGE), []);
        // Less than a page, and not on its boundaries.
        assert_eq!(mappable(&region(0x80, &[(0, 0x80)]), &[], PAGE), []);
        assert_eq!(
            mappable(
                &region(0x8000, &[(0x800, 0x1900), (0x4000, 0x10_0000)]),
                &[],
                PAGE
            ),
            [0x1000..0x2000, 0x4000..0x8000]
        );
        assert_eq!(mappable(&region(0x4000, &[(u64::MAX, 2)]), &[], PAGE), []);
    }
}
