//! The files that are open on the host on behalf of the guest.

use std::collections::HashMap;
use std::fs::File;

use rustix::process::{Resource, getrlimit};

/// Most files open at a time, and what part of the process's limit that may be.
const MAX_OPEN: usize = 256;
const PART_OF_LIMIT: u64 = 4;

/// Open files by the number of their node. There may be fewer than the guest has open: one that was closed to make room
/// is opened again when it is read.
#[derive(Debug)]
pub(super) struct OpenFiles {
    by_node: HashMap<u64, Open>,
    most: usize,
    /// Counts uses, to tell which is the longest ago.
    clock: u64,
}

#[derive(Debug)]
struct Open {
    file: File,
    used_at: u64,
}

impl OpenFiles {
    /// As many files as this process may well have open (`RLIMIT_NOFILE`).
    pub fn new() -> Self {
        let limit = getrlimit(Resource::Nofile).current;
        let part = limit.map_or(MAX_OPEN as u64, |limit| limit / PART_OF_LIMIT);
        Self::with_room_for(usize::try_from(part).map_or(MAX_OPEN, |part| part.min(MAX_OPEN)))
    }

    fn with_room_for(most: usize) -> Self {
        Self {
            by_node: HashMap::new(),
            most: most.max(1),
            clock: 0,
        }
    }

    /// The open file of node `id`.
    pub fn get(&mut self, id: u64) -> Option<&File> {
        self.clock += 1;
        let open = self.by_node.get_mut(&id)?;
        open.used_at = self.clock;
        Some(&open.file)
    }

    /// Keeps `file` open for node `id`, and closes the one that was not used for longest if there is no room.
    pub fn insert(&mut self, id: u64, file: File) {
        if self.by_node.len() >= self.most && !self.by_node.contains_key(&id) {
            let oldest = self.by_node.iter().min_by_key(|(_, open)| open.used_at);
            if let Some(oldest) = oldest.map(|(id, _)| *id) {
                self.by_node.remove(&oldest);
            }
        }
        self.clock += 1;
        let used_at = self.clock;
        self.by_node.insert(id, Open { file, used_at });
    }

    /// Takes the open file of node `id` out, to be put back.
    pub fn take(&mut self, id: u64) -> Option<File> {
        Some(self.by_node.remove(&id)?.file)
    }

    /// Closes the file of node `id`.
    pub fn close(&mut self, id: u64) {
        self.by_node.remove(&id);
    }

    /// Closes all of them.
    pub fn clear(&mut self) {
        self.by_node.clear();
    }

    /// How many there are.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.by_node.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_not_used_for_longest_makes_room() {
        let file = || File::open("/dev/null").unwrap();
        let mut files = OpenFiles::with_room_for(2);
        files.insert(1, file());
        files.insert(2, file());
        assert!(files.get(1).is_some());
        files.insert(3, file());
        assert!(files.get(2).is_none());
        assert!(files.get(1).is_some() && files.get(3).is_some());
        files.close(1);
        assert_eq!(files.len(), 1);
        files.clear();
        assert_eq!(files.len(), 0);
    }

    #[test]
    fn a_part_of_the_limit_is_used() {
        assert!((1..=MAX_OPEN).contains(&OpenFiles::new().most));
    }
}
