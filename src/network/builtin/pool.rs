//! Which numbers of pods are free, and in which order they are given out: those that nobody ever had first, then the one
//! that has been back for the longest time. Pure.

use std::collections::{HashSet, VecDeque};

/// The numbers 0 to `room` - 1.
#[derive(Debug, Default)]
pub struct Pool {
    room: u32,
    held: HashSet<u32>,
    /// Numbers that were given back, the oldest first. None is in `held`, and none is twice in it.
    returned: VecDeque<u32>,
    returned_set: HashSet<u32>,
    /// Nobody ever had a number from here on; below it, all are in `held` or `returned`.
    fresh: u32,
}

impl Pool {
    /// `returned` is the order in which numbers came back in earlier lives, the oldest first; a number's last return counts.
    #[must_use]
    pub fn new(room: u32, held: impl IntoIterator<Item = u32>, returned: &[u32]) -> Self {
        let held: HashSet<u32> = held.into_iter().collect();
        let mut pool = Self { room, held, ..Self::default() };
        let mut seen = HashSet::new();
        for number in returned.iter().rev() {
            if *number < room && !pool.held.contains(number) && seen.insert(*number) {
                pool.returned.push_front(*number);
            }
        }
        pool.returned_set = seen;
        pool
    }

    /// Takes a number; `None` when all are held.
    pub fn take(&mut self) -> Option<u32> {
        while self.fresh < self.room {
            let number = self.fresh;
            self.fresh += 1;
            if !self.returned_set.contains(&number) && self.held.insert(number) {
                return Some(number);
            }
        }
        let number = self.returned.pop_front()?;
        self.returned_set.remove(&number);
        self.held.insert(number);
        Some(number)
    }

    /// Takes this very number, as a lease of an earlier life has it; false when it is held.
    pub fn take_this(&mut self, number: u32) -> bool {
        if self.returned_set.remove(&number) {
            self.returned.retain(|other| *other != number);
        }
        self.held.insert(number)
    }

    /// Gives a number back; false when it was not held.
    pub fn give_back(&mut self, number: u32) -> bool {
        if !self.held.remove(&number) {
            return false;
        }
        if number < self.room && self.returned_set.insert(number) {
            self.returned.push_back(number);
        }
        true
    }

    #[must_use]
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// The order of those that came back, the oldest first.
    pub fn returned(&self) -> impl Iterator<Item = u32> {
        self.returned.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_last_that_came_back_goes_out_last() {
        let mut pool = Pool::new(4, [], &[]);
        let taken: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(taken, [0, 1, 2, 3]);
        for number in [2, 0, 3] {
            assert!(pool.give_back(number));
        }
        assert!(!pool.give_back(0), "it is back already");
        assert_eq!([pool.take(), pool.take(), pool.take(), pool.take()], [Some(2), Some(0), Some(3), None]);
    }

    #[test]
    fn the_order_survives_a_restart() {
        let mut pool = Pool::new(6, [1], &[3, 0, 3, 1, 9]);
        let taken: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(taken, [2, 4, 5, 0, 3]);
        assert_eq!(pool.held(), 6);
    }

    #[test]
    fn a_lease_that_is_found_takes_its_number() {
        let mut pool = Pool::new(3, [], &[1]);
        assert!(pool.take_this(1));
        assert!(!pool.take_this(1));
        assert_eq!([pool.take(), pool.take(), pool.take()], [Some(0), Some(2), None]);
    }

    proptest! {
        #[test]
        fn no_number_is_held_twice_or_lost(room in 1_u32..20, steps in prop::collection::vec(any::<(bool, u8)>(), 0..200)) {
            let mut pool = Pool::new(room, [], &[]);
            let mut mine: Vec<u32> = Vec::new();
            for (take, which) in steps {
                if take {
                    match pool.take() {
                        Some(number) => {
                            prop_assert!(number < room && !mine.contains(&number));
                            mine.push(number);
                        }
                        None => prop_assert_eq!(mine.len(), room as usize),
                    }
                } else if !mine.is_empty() {
                    let number = mine.swap_remove(usize::from(which) % mine.len());
                    prop_assert!(pool.give_back(number));
                }
                prop_assert_eq!(pool.held(), mine.len());
            }
        }
    }
}
