//! Which models leave memory so that another fits. Pure: no clock, no tensors.
//!
//! The rule: those go that were asked for longest ago, as few of them as make enough room. A model that computes right
//! now stays, because its memory would not become free; so does the default of a role, because it was named for the calls
//! that name nobody.

/// A model in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Bytes of its weights.
    pub bytes: u64,
    /// When it was asked for last; larger is later.
    pub used: u64,
    /// Whether it may never go.
    pub pinned: bool,
    /// Whether a call computes with it.
    pub busy: bool,
}

/// How room is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Room {
    /// These go, by their place in the list; none, if it fits as it is.
    Evict(Vec<usize>),
    /// It would fit if models that compute right now had ended.
    Later,
    /// It does not fit beside those that may never go.
    Never,
}

/// Makes room for `wanted` bytes where all models together may hold `limit`.
pub fn plan(limit: u64, wanted: u64, held: &[Held]) -> Room {
    let all: u64 = held.iter().fold(wanted, |sum, model| sum.saturating_add(model.bytes));
    let mut excess = all.saturating_sub(limit);
    let mut chosen: Vec<usize> = (0..held.len())
        .filter(|&at| !held[at].pinned && !held[at].busy)
        .collect();
    chosen.sort_by_key(|&at| held[at].used);
    let mut going = Vec::new();
    for at in chosen {
        if excess == 0 {
            break;
        }
        excess = excess.saturating_sub(held[at].bytes);
        going.push(at);
    }
    if excess > 0 {
        let fixed = held
            .iter()
            .filter(|model| model.pinned)
            .fold(wanted, |sum, m| sum.saturating_add(m.bytes));
        return if fixed > limit { Room::Never } else { Room::Later };
    }
    // An old small one need not go where a younger large one has to anyway.
    let mut left: u64 = going.iter().fold(all, |sum, &at| sum.saturating_sub(held[at].bytes));
    let mut kept = Vec::new();
    for &at in going.iter().rev() {
        if left.saturating_add(held[at].bytes) <= limit {
            left += held[at].bytes;
            kept.push(at);
        }
    }
    going.retain(|at| !kept.contains(at));
    Room::Evict(going)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn idle(bytes: u64, used: u64) -> Held {
        Held {
            bytes,
            used,
            pinned: false,
            busy: false,
        }
    }

    #[test]
    fn what_fits_evicts_nobody() {
        assert_eq!(plan(10, 4, &[idle(3, 1), idle(3, 2)]), Room::Evict(vec![]));
    }

    #[test]
    fn the_one_asked_for_longest_ago_goes_first() {
        assert_eq!(plan(10, 5, &[idle(4, 7), idle(4, 3)]), Room::Evict(vec![1]));
    }

    #[test]
    fn a_small_old_one_stays_where_a_large_one_has_to_go() {
        assert_eq!(plan(10, 8, &[idle(1, 1), idle(8, 2)]), Room::Evict(vec![1]));
    }

    #[test]
    fn pinned_and_busy_ones_stay() {
        let pinned = Held {
            pinned: true,
            ..idle(6, 1)
        };
        let busy = Held {
            busy: true,
            ..idle(6, 1)
        };
        assert_eq!(plan(10, 5, &[pinned]), Room::Never);
        assert_eq!(plan(10, 5, &[busy]), Room::Later);
        assert_eq!(plan(10, 11, &[]), Room::Never);
    }

    proptest! {
        #[test]
        fn a_plan_makes_room_and_nobody_goes_in_vain(
            limit in 0..100_u64,
            wanted in 0..100_u64,
            models in proptest::collection::vec((0..50_u64, any::<bool>(), any::<bool>()), 0..8)
        ) {
            let held: Vec<Held> = (0..).zip(&models).map(|(used, &(bytes, pinned, busy))| Held { bytes, used, pinned, busy }).collect();
            let sum = |keep: &dyn Fn(usize) -> bool| -> u64 {
                (0..held.len()).filter(|&at| keep(at)).map(|at| held[at].bytes).sum()
            };
            match plan(limit, wanted, &held) {
                Room::Evict(going) => {
                    prop_assert!(going.iter().all(|&at| !held[at].pinned && !held[at].busy));
                    prop_assert!(wanted + sum(&|at| !going.contains(&at)) <= limit);
                    for &spared in &going {
                        prop_assert!(wanted + sum(&|at| !going.contains(&at) || at == spared) > limit);
                    }
                }
                Room::Later => {
                    prop_assert!(wanted + sum(&|at| held[at].pinned) <= limit);
                    prop_assert!(wanted + sum(&|at| held[at].pinned || held[at].busy) > limit);
                }
                Room::Never => prop_assert!(wanted + sum(&|at| held[at].pinned) > limit),
            }
        }
    }
}
