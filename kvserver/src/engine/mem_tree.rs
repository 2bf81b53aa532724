//! A persistent ordered map: a clone costs nothing and never changes afterwards.
//!
//! Owns the nodes of a treap: ordered by key, and each node's priority, a hash of its key, is above those of
//! its children. The shape depends only on the set of keys, so runs repeat exactly. Changes copy the path to
//! the node unless nobody else holds it. The memory engine builds snapshots and crashes on this.

use std::sync::Arc;

use bytes::Bytes;

type Link = Option<Arc<Node>>;

#[derive(Clone, Debug)]
struct Node {
    key: Bytes,
    value: Bytes,
    priority: u32,
    /// Of this subtree.
    count: u64,
    bytes: u64,
    left: Link,
    right: Link,
}

/// The map. Cloning shares all nodes.
#[derive(Clone, Debug, Default)]
pub(super) struct Tree {
    root: Link,
}

impl Tree {
    pub(super) fn len(&self) -> u64 {
        count(&self.root)
    }

    /// Bytes of keys and values.
    pub(super) fn bytes(&self) -> u64 {
        bytes(&self.root)
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<&Bytes> {
        self.at_or_before(key).filter(|(found, _)| found[..] == *key).map(|(_, value)| value)
    }

    pub(super) fn insert(&mut self, key: Bytes, value: Bytes) {
        // The bits of a CRC of similar keys are related; a multiplication spreads them.
        let priority = crc32c::crc32c(&key).wrapping_mul(0x9e37_79b1).rotate_right(13);
        let bytes = (key.len() + value.len()) as u64;
        insert(&mut self.root, Node { key, value, priority, count: 1, bytes, left: None, right: None });
    }

    pub(super) fn remove(&mut self, key: &[u8]) {
        if self.get(key).is_some() {
            remove(&mut self.root, key);
        }
    }

    /// Removes `[start, end)`; an empty `end` is open. Costs the same for any number of keys.
    pub(super) fn remove_range(&mut self, start: &[u8], end: &[u8]) {
        if !end.is_empty() && start >= end {
            return;
        }
        let (before, rest) = split(self.root.take(), start);
        let after = if end.is_empty() { None } else { split(rest, end).1 };
        self.root = merge(before, after);
    }

    /// The part in `[start, end)`; an empty `end` is open.
    pub(super) fn range(&self, start: &[u8], end: &[u8]) -> Tree {
        let (_, rest) = split(self.root.clone(), start);
        let root = if end.is_empty() { rest } else { split(rest, end).0 };
        Tree { root }
    }

    pub(super) fn last(&self) -> Option<(&Bytes, &Bytes)> {
        self.find(|_| true, false)
    }

    pub(super) fn at_or_after(&self, key: &[u8]) -> Option<(&Bytes, &Bytes)> {
        self.find(|k| k >= key, true)
    }

    pub(super) fn after(&self, key: &[u8]) -> Option<(&Bytes, &Bytes)> {
        self.find(|k| k > key, true)
    }

    pub(super) fn at_or_before(&self, key: &[u8]) -> Option<(&Bytes, &Bytes)> {
        self.find(|k| k <= key, false)
    }

    pub(super) fn before(&self, key: &[u8]) -> Option<(&Bytes, &Bytes)> {
        self.find(|k| k < key, false)
    }

    /// The smallest (or largest) key that qualifies, when the qualifying keys are the upper (lower) ones.
    fn find(&self, qualifies: impl Fn(&[u8]) -> bool, smallest: bool) -> Option<(&Bytes, &Bytes)> {
        let mut best = None;
        let mut at = &self.root;
        while let Some(node) = at {
            let fits = qualifies(&node.key);
            if fits {
                best = Some((&node.key, &node.value));
            }
            at = if fits == smallest { &node.left } else { &node.right };
        }
        best
    }
}

impl Node {
    /// Recounts after a child changed.
    fn recount(&mut self) {
        self.count = 1 + count(&self.left) + count(&self.right);
        let own = (self.key.len() + self.value.len()) as u64;
        self.bytes = own + bytes(&self.left) + bytes(&self.right);
    }

    /// Heap order; the key makes it total.
    fn is_above(&self, other: &Node) -> bool {
        (self.priority, &self.key) > (other.priority, &other.key)
    }
}

fn count(link: &Link) -> u64 {
    link.as_ref().map_or(0, |node| node.count)
}

fn bytes(link: &Link) -> u64 {
    link.as_ref().map_or(0, |node| node.bytes)
}

fn insert(link: &mut Link, mut new: Node) {
    let Some(arc) = link else {
        *link = Some(Arc::new(new));
        return;
    };
    // A node with the same key has the same rank, so it is met before any node that ranks below.
    if arc.key != new.key && new.is_above(arc) {
        (new.left, new.right) = split(link.take(), &new.key.clone());
        new.recount();
        *link = Some(Arc::new(new));
        return;
    }
    let node = Arc::make_mut(arc);
    match new.key.cmp(&node.key) {
        std::cmp::Ordering::Equal => node.value = new.value,
        std::cmp::Ordering::Less => insert(&mut node.left, new),
        std::cmp::Ordering::Greater => insert(&mut node.right, new),
    }
    node.recount();
}

fn remove(link: &mut Link, key: &[u8]) {
    let Some(arc) = link else { return };
    let node = Arc::make_mut(arc);
    match key.cmp(&node.key[..]) {
        std::cmp::Ordering::Equal => {
            *link = merge(node.left.take(), node.right.take());
            return;
        }
        std::cmp::Ordering::Less => remove(&mut node.left, key),
        std::cmp::Ordering::Greater => remove(&mut node.right, key),
    }
    node.recount();
}

/// Keys below `key`, and the others.
fn split(link: Link, key: &[u8]) -> (Link, Link) {
    let Some(mut arc) = link else { return (None, None) };
    let node = Arc::make_mut(&mut arc);
    if node.key[..] < *key {
        let (low, high) = split(node.right.take(), key);
        node.right = low;
        node.recount();
        (Some(arc), high)
    } else {
        let (low, high) = split(node.left.take(), key);
        node.left = high;
        node.recount();
        (low, Some(arc))
    }
}

/// Joins two trees, all keys of `low` being below those of `high`.
fn merge(low: Link, high: Link) -> Link {
    match (low, high) {
        (None, tree) | (tree, None) => tree,
        (Some(mut low), Some(mut high)) => {
            if low.is_above(&high) {
                let node = Arc::make_mut(&mut low);
                node.right = merge(node.right.take(), Some(high));
                node.recount();
                Some(low)
            } else {
                let node = Arc::make_mut(&mut high);
                node.left = merge(Some(low), node.left.take());
                node.recount();
                Some(high)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn contents(tree: &Tree) -> Vec<(Bytes, Bytes)> {
        let mut found = Vec::new();
        let mut at = tree.at_or_after(&[]);
        while let Some((key, value)) = at {
            found.push((key.clone(), value.clone()));
            at = tree.after(key);
        }
        found
    }

    fn depth(link: &Link) -> usize {
        link.as_ref().map_or(0, |n| 1 + depth(&n.left).max(depth(&n.right)))
    }

    #[test]
    fn sequential_keys_stay_balanced() {
        let mut tree = Tree::default();
        for n in 0..10_000u64 {
            tree.insert(Bytes::copy_from_slice(&n.to_be_bytes()), Bytes::new());
        }
        assert_eq!((tree.len(), tree.bytes()), (10_000, 80_000));
        assert!(depth(&tree.root) < 50, "depth {}", depth(&tree.root));
    }

    proptest! {
        #[test]
        fn a_tree_equals_an_ordered_map_and_clones_never_change(
            ops in prop::collection::vec((0u8..3, 0u8..24, 0u8..24), 0..80),
        ) {
            let key = |n: u8| Bytes::from(vec![n; 1 + n as usize % 3]);
            let (mut tree, mut map) = (Tree::default(), BTreeMap::new());
            let mut kept = Vec::new();
            for (kind, a, b) in ops {
                kept.push((tree.clone(), contents(&tree)));
                match kind {
                    0 => {
                        tree.insert(key(a), key(b));
                        map.insert(key(a), key(b));
                    }
                    1 => {
                        tree.remove(&key(a));
                        map.remove(&key(a));
                    }
                    _ => {
                        tree.remove_range(&key(a), &key(b));
                        map.retain(|k, _| *k < key(a) || *k >= key(b).max(key(a)));
                    }
                }
                prop_assert_eq!(contents(&tree), map.clone().into_iter().collect::<Vec<_>>());
                prop_assert_eq!(tree.len(), map.len() as u64);
                prop_assert_eq!(tree.at_or_before(&key(b)), map.range(..=key(b)).next_back());
                prop_assert_eq!(tree.before(&key(b)), map.range(..key(b)).next_back());
                prop_assert_eq!(tree.at_or_after(&key(b)), map.range(key(b)..).next());
                prop_assert_eq!(tree.range(&key(a), &[]).len(), map.range(key(a)..).count() as u64);
            }
            for (clone, then) in kept {
                prop_assert_eq!(contents(&clone), then);
            }
        }
    }
}
