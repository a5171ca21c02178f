//! Which slab a page belongs to, for pages that a zone's own supply gave: they are not the heap's and have no word.
//!
//! A hash table with open addressing and backward-shift deletion, at most half full. Its memory comes from its owner.

use super::slab::ZoneSlab;

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Slot {
    /// Page number plus one; 0 for an empty slot.
    key: usize,
    slab: *mut ZoneSlab,
}

pub(crate) struct PageTable {
    slots: *mut Slot,
    /// A power of two, or 0.
    len: usize,
    used: usize,
}

// SAFETY: reached under the owner's lock only.
unsafe impl Send for PageTable {}

impl PageTable {
    pub(crate) const fn new() -> Self {
        Self { slots: core::ptr::null_mut(), len: 0, used: 0 }
    }

    /// How many slots a table for `more` further pages has; `None` when this one does.
    pub(crate) fn wanted(&self, more: usize) -> Option<usize> {
        let need = ((self.used + more) * 2).next_power_of_two().max(64);
        (need > self.len).then_some(need)
    }

    /// Moves to a larger table. Returns the old one.
    ///
    /// # Safety
    /// 1. `slots` is zeroed memory for `len` slots, a power of two, more than twice what is in use.
    pub(crate) unsafe fn grow(&mut self, slots: *mut Slot, len: usize) -> (*mut Slot, usize) {
        let old = core::mem::replace(self, Self { slots, len, used: 0 });
        for index in 0..old.len {
            // SAFETY: 1. of the call that gave the old table.
            let slot = unsafe { *old.slots.add(index) };
            if slot.key != 0 {
                self.insert(slot.key - 1, slot.slab);
            }
        }
        (old.slots, old.len)
    }

    fn home(&self, key: usize) -> usize {
        // Fibonacci hashing: pages come in runs, and the golden ratio spreads them.
        ((key as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize & (self.len - 1)
    }

    fn at(&self, index: usize) -> Slot {
        // SAFETY: `index` is masked by every caller; the memory is the table's own.
        unsafe { *self.slots.add(index) }
    }

    fn set(&mut self, index: usize, slot: Slot) {
        // SAFETY: as in `at`.
        unsafe { *self.slots.add(index) = slot };
    }

    /// The slot of a key, or the empty one where it would be.
    fn find(&self, key: usize) -> usize {
        let mut index = self.home(key);
        while self.at(index).key != 0 && self.at(index).key != key {
            index = (index + 1) & (self.len - 1);
        }
        index
    }

    /// There is room: see [`wanted`](Self::wanted).
    pub(crate) fn insert(&mut self, page: usize, slab: *mut ZoneSlab) {
        let key = page + 1;
        let index = self.find(key);
        debug_assert!(self.at(index).key == 0 && (self.used + 1) * 2 <= self.len);
        self.set(index, Slot { key, slab });
        self.used += 1;
    }

    pub(crate) fn get(&self, page: usize) -> Option<*mut ZoneSlab> {
        if self.len == 0 {
            return None;
        }
        let slot = self.at(self.find(page + 1));
        (slot.key != 0).then_some(slot.slab)
    }

    pub(crate) fn remove(&mut self, page: usize) {
        let mut hole = self.find(page + 1);
        debug_assert!(self.at(hole).key != 0);
        let mut index = hole;
        loop {
            index = (index + 1) & (self.len - 1);
            let slot = self.at(index);
            if slot.key == 0 {
                break;
            }
            // What stands behind the hole moves into it unless its home lies after the hole.
            let from_home = index.wrapping_sub(self.home(slot.key)) & (self.len - 1);
            let from_hole = index.wrapping_sub(hole) & (self.len - 1);
            if from_home >= from_hole {
                self.set(hole, slot);
                hole = index;
            }
        }
        self.set(hole, Slot { key: 0, slab: core::ptr::null_mut() });
        self.used -= 1;
    }

    /// Forgets everything. Returns the memory.
    pub(crate) fn take(&mut self) -> (*mut Slot, usize) {
        let old = core::mem::replace(self, Self::new());
        (old.slots, old.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::vec;

    #[test]
    fn agrees_with_a_map() {
        let mut table = PageTable::new();
        let mut model = BTreeMap::new();
        let mut memory = vec::Vec::new();
        let mut seed = 1usize;
        for step in 0..20_000usize {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let page = seed >> 40 & 0x3ff;
            if let Some(len) = table.wanted(1) {
                let mut slots = vec![Slot { key: 0, slab: core::ptr::null_mut() }; len];
                // SAFETY: 1. as long as wanted; kept to the end of the test.
                unsafe { table.grow(slots.as_mut_ptr(), len) };
                memory.push(slots);
            }
            if model.remove(&page).is_some() {
                table.remove(page);
            } else {
                model.insert(page, step);
                table.insert(page, step as *mut ZoneSlab);
            }
            for probe in [page, page ^ 1, seed >> 50] {
                assert_eq!(table.get(probe).map(|slab| slab as usize), model.get(&probe).copied());
            }
        }
        assert_eq!(table.used, model.len());
    }
}
