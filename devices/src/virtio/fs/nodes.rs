//! The files that the guest's kernel knows, by the numbers that it knows them by.
//!
//! A node keeps the path by which it was last found and no descriptor, so that a guest may know as many files as there
//! is room in the table without using up the descriptors of the process. When the node is used, the path is looked up
//! again; another file in its place is told by its [`Identity`].

use std::collections::HashMap;

use fuse_abi::linux::FUSE_ROOT_ID;
use rustix::io::Errno;

use super::share::Identity;

/// Most nodes: some 200 bytes each, so 200 MiB for a guest that does its worst, and a guest of 1 GiB with an honest
/// kernel has fewer.
pub(super) const MAX_NODES: usize = 1 << 20;
/// Longest path, in components. The chain of parents may be a circle, if the host moved directories between two
/// look-ups of the guest.
const MAX_DEPTH: usize = 4096;

/// A file that the guest knows.
#[derive(Debug)]
pub(super) struct Node {
    /// Which file of the host it is.
    pub identity: Identity,
    /// In a file system that shows the kernel: it appears as an empty directory.
    pub hollow: bool,
    /// How often the guest has it open.
    pub opens: u32,
    parent: u64,
    name: Box<[u8]>,
    /// How often the guest was given it and has not forgotten it.
    lookups: u64,
    /// Nodes that have it as their parent.
    children: u32,
}

/// The table of nodes. The root is always in it.
#[derive(Debug)]
pub(super) struct Nodes {
    by_id: HashMap<u64, Node>,
    by_identity: HashMap<Identity, u64>,
    /// The number of the next one; none is used twice, so all are of generation 0.
    next_id: u64,
    most: usize,
}

impl Nodes {
    /// A table of at most `most` nodes with the root alone.
    pub fn new(root: Identity, most: usize) -> Self {
        let node = Node {
            identity: root,
            hollow: false,
            opens: 0,
            parent: FUSE_ROOT_ID,
            name: Box::default(),
            lookups: 1,
            children: 0,
        };
        Self {
            by_id: HashMap::from([(FUSE_ROOT_ID, node)]),
            by_identity: HashMap::from([(root, FUSE_ROOT_ID)]),
            next_id: FUSE_ROOT_ID + 1,
            most,
        }
    }

    /// The node of that number.
    ///
    /// # Errors
    /// `ESTALE`: the guest has forgotten it, or made it up.
    pub fn get(&self, id: u64) -> Result<&Node, Errno> {
        self.by_id.get(&id).ok_or(Errno::STALE)
    }

    /// As [`Nodes::get`].
    pub fn get_mut(&mut self, id: u64) -> Result<&mut Node, Errno> {
        self.by_id.get_mut(&id).ok_or(Errno::STALE)
    }

    /// The components of the path of node `id`, from the root on.
    ///
    /// # Errors
    /// `ESTALE`, as [`Nodes::get`].
    pub fn path(&self, id: u64) -> Result<Vec<&[u8]>, Errno> {
        let mut components = Vec::new();
        let mut at = id;
        while at != FUSE_ROOT_ID {
            let node = self.get(at)?;
            if components.len() == MAX_DEPTH {
                return Err(Errno::STALE);
            }
            components.push(&*node.name);
            at = node.parent;
        }
        components.reverse();
        Ok(components)
    }

    /// The guest is given the file `identity`, found as `name` in node `parent`; returns its number.
    ///
    /// # Errors
    /// `ENFILE`: the table is full. `ESTALE`: there is no such parent.
    pub fn enter(
        &mut self,
        parent: u64,
        name: &[u8],
        identity: Identity,
        hollow: bool,
    ) -> Result<u64, Errno> {
        self.get(parent)?;
        if let Some(&id) = self.by_identity.get(&identity) {
            self.found_again(id, parent, name)?;
            return Ok(id);
        }
        if self.by_id.len() >= self.most {
            return Err(Errno::NFILE);
        }
        let id = self.next_id;
        self.next_id += 1;
        self.by_identity.insert(identity, id);
        let node = Node {
            identity,
            hollow,
            opens: 0,
            parent,
            name: name.into(),
            lookups: 1,
            children: 0,
        };
        self.by_id.insert(id, node);
        self.adopt(parent);
        Ok(id)
    }

    fn found_again(&mut self, id: u64, parent: u64, name: &[u8]) -> Result<(), Errno> {
        let node = self.get_mut(id)?;
        node.lookups = node.lookups.saturating_add(1);
        if id == FUSE_ROOT_ID || (node.parent == parent && *node.name == *name) {
            return Ok(());
        }
        // Moved on the host, or another link to it.
        let old = std::mem::replace(&mut node.parent, parent);
        node.name = name.into();
        self.adopt(parent);
        self.disown(old);
        Ok(())
    }

    /// The guest has forgotten node `id` `count` times.
    pub fn forget(&mut self, id: u64, count: u64) {
        if let Some(node) = self.by_id.get_mut(&id)
            && id != FUSE_ROOT_ID
        {
            node.lookups = node.lookups.saturating_sub(count);
            self.drop_unused(id);
        }
    }

    /// Forgets all but the root. The numbers of the others are not used again.
    pub fn clear(&mut self) {
        self.by_id.retain(|id, _| *id == FUSE_ROOT_ID);
        self.by_identity.retain(|_, id| *id == FUSE_ROOT_ID);
        for root in self.by_id.values_mut() {
            (root.opens, root.children) = (0, 0);
        }
        self.by_id.shrink_to_fit();
        self.by_identity.shrink_to_fit();
    }

    /// How many there are, the root included.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    fn adopt(&mut self, parent: u64) {
        if let Some(node) = self.by_id.get_mut(&parent) {
            // No more than MAX_NODES in all.
            node.children += 1;
        }
    }

    fn disown(&mut self, parent: u64) {
        if let Some(node) = self.by_id.get_mut(&parent) {
            node.children = node.children.saturating_sub(1);
            self.drop_unused(parent);
        }
    }

    /// Drops node `id` if neither the guest nor another node needs it, and then its parent likewise.
    fn drop_unused(&mut self, id: u64) {
        let mut at = id;
        while at != FUSE_ROOT_ID
            && let Some(node) = self.by_id.get(&at)
            && node.lookups == 0
            && node.children == 0
        {
            let (identity, parent) = (node.identity, node.parent);
            self.by_id.remove(&at);
            self.by_identity.remove(&identity);
            if let Some(node) = self.by_id.get_mut(&parent) {
                node.children = node.children.saturating_sub(1);
            }
            at = parent;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(inode: u64) -> Identity {
        Identity::numbered(inode)
    }

    fn path(nodes: &Nodes, id: u64) -> Result<String, Errno> {
        let path = nodes.path(id)?.join(&b'/');
        Ok(String::from_utf8(path).unwrap())
    }

    #[test]
    fn paths_lead_from_the_root_to_the_node() {
        let mut nodes = Nodes::new(file(1), 10);
        let a = nodes.enter(FUSE_ROOT_ID, b"a", file(2), false).unwrap();
        let b = nodes.enter(a, b"b", file(3), false).unwrap();
        assert_eq!(path(&nodes, FUSE_ROOT_ID).unwrap(), "");
        assert_eq!(path(&nodes, b).unwrap(), "a/b");
        assert_eq!(nodes.path(99), Err(Errno::STALE));
        assert_eq!(nodes.path(0), Err(Errno::STALE));
    }

    #[test]
    fn a_node_stays_until_it_is_forgotten_as_often_as_it_was_given() {
        let mut nodes = Nodes::new(file(1), 10);
        let a = nodes.enter(FUSE_ROOT_ID, b"a", file(2), false).unwrap();
        assert_eq!(nodes.enter(FUSE_ROOT_ID, b"a", file(2), false), Ok(a));
        nodes.forget(a, 1);
        assert!(nodes.get(a).is_ok());
        nodes.forget(a, 1);
        assert!(nodes.get(a).is_err());
        nodes.forget(a, 1);
        let again = nodes.enter(FUSE_ROOT_ID, b"a", file(2), false).unwrap();
        assert_ne!(again, a);
        nodes.forget(again, u64::MAX);
        nodes.forget(FUSE_ROOT_ID, u64::MAX);
        assert_eq!(nodes.len(), 1);
    }

    #[test]
    fn parents_stay_while_they_have_children() {
        let mut nodes = Nodes::new(file(1), 10);
        let a = nodes.enter(FUSE_ROOT_ID, b"a", file(2), false).unwrap();
        let b = nodes.enter(a, b"b", file(3), false).unwrap();
        let c = nodes.enter(b, b"c", file(4), false).unwrap();
        nodes.forget(a, 1);
        nodes.forget(b, 1);
        assert_eq!(path(&nodes, c).unwrap(), "a/b/c");
        nodes.forget(c, 1);
        assert_eq!(nodes.len(), 1);
    }

    #[test]
    fn what_was_moved_has_its_new_path() {
        let mut nodes = Nodes::new(file(1), 10);
        let a = nodes.enter(FUSE_ROOT_ID, b"a", file(2), false).unwrap();
        let c = nodes.enter(a, b"c", file(3), false).unwrap();
        let b = nodes.enter(FUSE_ROOT_ID, b"b", file(4), false).unwrap();
        assert_eq!(nodes.enter(b, b"d", file(3), false), Ok(c));
        assert_eq!(path(&nodes, c).unwrap(), "b/d");
        nodes.forget(a, 1);
        assert!(nodes.get(a).is_err());
        nodes.forget(b, 1);
        nodes.forget(c, 2);
        assert_eq!(nodes.len(), 1);
    }

    #[test]
    fn a_circle_of_parents_has_no_path() {
        let mut nodes = Nodes::new(file(1), 10);
        let a = nodes.enter(FUSE_ROOT_ID, b"a", file(2), false).unwrap();
        let b = nodes.enter(a, b"b", file(3), false).unwrap();
        nodes.enter(b, b"a", file(2), false).unwrap();
        assert_eq!(nodes.path(b), Err(Errno::STALE));
        nodes.forget(a, 9);
        nodes.forget(b, 9);
        // The root found below itself stays where it is.
        nodes.enter(b, b"root", file(1), false).unwrap();
        assert_eq!(path(&nodes, FUSE_ROOT_ID).unwrap(), "");
    }

    #[test]
    fn a_full_table_takes_no_more() {
        let mut nodes = Nodes::new(file(1), 2);
        let a = nodes.enter(FUSE_ROOT_ID, b"a", file(2), false).unwrap();
        assert_eq!(
            nodes.enter(FUSE_ROOT_ID, b"b", file(3), false),
            Err(Errno::NFILE)
        );
        assert_eq!(nodes.enter(FUSE_ROOT_ID, b"a", file(2), false), Ok(a));
        nodes.forget(a, 2);
        assert!(nodes.enter(FUSE_ROOT_ID, b"b", file(3), false).is_ok());
    }

    #[test]
    fn parents_that_do_not_exist_are_refused() {
        let mut nodes = Nodes::new(file(1), 10);
        assert_eq!(nodes.enter(7, b"a", file(2), false), Err(Errno::STALE));
        assert_eq!(nodes.len(), 1);
    }
}
