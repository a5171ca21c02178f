//! How many items a depot needs: the estimate by which zones are trimmed, as uma(9) has it.
//!
//! A depot's content falls while its users take more than they give, and what they took in one such *batch* they will want again. So the working set
//! is the largest fall of late: from the most items that there were to the fewest since. A depot that is only given to has no working set.
#![forbid(unsafe_code)]

/// A working-set estimate is made anew every so often (FreeBSD: 20 s, for which a process that has shrunk would wait too long).
pub(super) const PERIOD_NS: u64 = 1_000_000_000;
/// Periods after which items that were never needed are not going to be: a quarter of an hour (FreeBSD's `900 / UMA_TIMEOUT`).
const IDLE_PERIODS: usize = (900_000_000_000 / PERIOD_NS) as usize;
/// The longtime minimum follows a greater one slowly, by a part of so many: over hours in FreeBSD, over minutes here.
const LONG_AVERAGE: usize = 256;

/// What is remembered of a depot in one domain. All are items but for `idle_periods`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct WorkingSet {
    /// Most and fewest in this period. `uzd_imax`, `uzd_imin`.
    pub(crate) most: usize,
    pub(crate) least: usize,
    /// Fewest since there were most: where the batch is that is being taken now. `uzd_bimin`.
    pub(crate) batch_least: usize,
    /// The estimate. `uzd_wss`.
    pub(crate) estimate: usize,
    /// How many were never needed beyond the working set, over a long time. `uzd_limin`.
    pub(crate) long_least: usize,
    /// Periods since that was none. `uzd_timin`.
    pub(crate) idle_periods: usize,
}

impl WorkingSet {
    pub(crate) const NONE: Self =
        Self { most: 0, least: 0, batch_least: 0, estimate: 0, long_least: 0, idle_periods: 0 };

    /// Items came; there are `items` now.
    pub(crate) fn given(&mut self, items: usize) {
        if items > self.most {
            // A new greatest ends the batch that was taken from the one before.
            self.estimate = self.estimate.max(self.most - self.batch_least);
            self.most = items;
            self.batch_least = items;
        }
    }

    /// Items were taken for use; there are `items` left.
    pub(crate) fn taken(&mut self, items: usize) {
        self.batch_least = self.batch_least.min(items);
        self.least = self.least.min(items);
    }

    /// `count` items were given back to where they came from: nobody wanted them, and the measure moves along.
    pub(crate) fn reclaimed(&mut self, count: usize, items: usize) {
        self.most = self.most.saturating_sub(count).max(items);
        self.least = self.least.saturating_sub(count).min(items);
        self.batch_least = self.batch_least.saturating_sub(count).clamp(self.least, items);
    }

    /// A period is over, with `items` in the depot. Returns how many of them it may lose.
    pub(crate) fn end_period(&mut self, items: usize) -> usize {
        self.estimate = (self.estimate * 3 / 4).max(self.most - self.batch_least);
        match self.least.checked_sub(self.estimate) {
            Some(unneeded) => {
                self.long_least = if self.long_least >= unneeded {
                    unneeded
                } else {
                    (unneeded + self.long_least * (LONG_AVERAGE - 1)) / LONG_AVERAGE
                };
                self.idle_periods += 1;
            }
            None => (self.long_least, self.idle_periods) = (0, 0),
        }
        // Half of the greatest stays, so that a batch that lies across the end of a period is not two small ones.
        self.most -= (self.most - items).div_ceil(2);
        (self.least, self.batch_least) = (items, items);
        items.saturating_sub(self.estimate)
    }

    /// How many of `items` go also where nothing else is to be trimmed: a quarter of what was not needed for a long time, a part so that it does
    /// not have to come back as one.
    pub(crate) fn idle_excess(&self, items: usize) -> usize {
        if self.idle_periods > IDLE_PERIODS { (self.long_least / 4).min(items) } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use std::vec;
    use std::vec::Vec;

    use super::*;

    /// What happens to a depot, and how many items that makes or takes.
    enum Op {
        Give(usize),
        Take(usize),
        Reclaim(usize),
        Period,
    }
    use Op::{Give, Period, Reclaim, Take};

    fn after(ops: &[Op]) -> (usize, WorkingSet) {
        let (mut items, mut set) = (0, WorkingSet::NONE);
        for op in ops {
            match *op {
                Give(count) => {
                    items += count;
                    set.given(items);
                }
                Take(count) => {
                    items -= count;
                    set.taken(items);
                }
                Reclaim(count) => {
                    items -= count;
                    set.reclaimed(count, items);
                }
                Period => _ = set.end_period(items),
            }
            assert!(set.least <= set.batch_least && set.batch_least <= items && items <= set.most, "{items} {set:?}");
        }
        (items, set)
    }

    fn estimate(ops: &[Op]) -> usize {
        after(ops).1.estimate
    }

    #[test]
    fn the_working_set_is_the_largest_batch_taken() {
        assert_eq!(estimate(&[Give(100), Period]), 0, "given only: nobody needs it");
        assert_eq!(estimate(&[Give(100), Take(60), Period]), 60);
        assert_eq!(estimate(&[Give(100), Take(60), Give(60), Take(30), Period]), 60);
        // Not the rise to the greatest, which was no need; the batch before it as one of the period before.
        assert_eq!(estimate(&[Give(100), Take(20), Give(500), Take(10), Period]), 15);
        assert_eq!(estimate(&[Give(100), Take(20), Give(500), Take(90), Period]), 90);
    }

    #[test]
    fn it_falls_by_a_quarter_when_less_is_wanted() {
        let quiet = |periods: usize| {
            let mut ops: Vec<Op> = [Give(100), Take(80), Period].into_iter().chain([Give(80), Period]).collect();
            ops.extend((0..periods).map(|_| Period));
            estimate(&ops)
        };
        assert_eq!(estimate(&[Give(100), Take(80), Period]), 80);
        assert_eq!([0, 1, 2, 3].map(quiet), [60, 45, 33, 24]);
    }

    #[test]
    fn what_is_reclaimed_was_not_needed() {
        assert_eq!(estimate(&[Give(100), Period, Reclaim(70), Period]), 0);
        let (items, set) = after(&[Give(100), Take(10), Reclaim(50), Take(10), Period]);
        assert_eq!((items, set.estimate), (30, 20));
    }

    #[test]
    fn what_is_never_needed_for_long_is_known_and_goes_by_quarters() {
        let mut ops = vec![Give(1000), Take(100), Period];
        ops.extend((0..IDLE_PERIODS).map(|_| Period));
        let (items, set) = after(&ops);
        assert_eq!(set.idle_periods, IDLE_PERIODS);
        assert_eq!(set.idle_excess(items), 0);
        ops.push(Period);
        let (items, set) = after(&ops);
        assert!(set.long_least > 600 && set.long_least <= 900, "{set:?}");
        assert_eq!(set.idle_excess(items), set.long_least / 4);
        // Nearly empty once: it was needed.
        ops.extend([Take(900), Give(900), Period]);
        let (items, set) = after(&ops);
        assert_eq!((set.long_least, set.idle_periods, set.idle_excess(items)), (0, 0, 0));
    }
}
