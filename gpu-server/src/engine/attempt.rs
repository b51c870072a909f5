//! One batch to one result per input, whatever happens to its neighbours. Pure: what computes is passed in.
//!
//! | what happens | what follows |
//! |---|---|
//! | a row that is not finite | that input once more, alone and in fp32; then it fails by index |
//! | the pass fails or panics, the device is well | each input once more, alone |
//! | out of memory | the batch is split once; the inputs of a half that does not fit either, alone; then by index |
//! | the device is lost | nothing: every input fails with it |

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::Error;

/// What computes: rows one after another for the inputs at these positions of the batch.
pub trait Compute {
    /// As the model is served.
    ///
    /// # Errors
    /// What the device says.
    fn rows(&self, positions: &[usize]) -> Result<Vec<f32>, Error>;

    /// One input in fp32.
    ///
    /// # Errors
    /// What the device says.
    fn precise(&self, position: usize) -> Result<Vec<f32>, Error>;

    /// Tokens of an input: of two, the one with more needs more memory.
    fn tokens(&self, position: usize) -> usize;
}

/// What became of an input.
pub type Outcome = Result<Vec<f32>, Error>;

/// Computes a batch of `count` inputs, with `width` values per row; one outcome per input, in order.
pub fn outcomes(compute: &impl Compute, count: usize, width: usize) -> Vec<Outcome> {
    let positions: Vec<usize> = (0..count).collect();
    match pass(compute, &positions, width) {
        Ok(rows) => rows,
        Err(error) if error.is_sticky() => vec![Err(error); count],
        Err(error @ Error::GpuOutOfMemory { .. }) if count == 1 => vec![Err(error)],
        Err(Error::GpuOutOfMemory { detail }) => {
            tracing::warn!(detail, inputs = count, "out of memory; the batch is split once");
            let (first, second) = positions.split_at(count / 2);
            let mut outcomes = half(compute, first, width);
            let mut failed = outcomes.iter().filter_map(|outcome| outcome.as_ref().err());
            let lost = failed.find(|error| error.is_sticky()).cloned();
            outcomes.extend(match lost {
                Some(error) => vec![Err(error); second.len()],
                None => half(compute, second, width),
            });
            outcomes
        }
        Err(error) => {
            tracing::error!(%error, inputs = count, "a forward pass failed; its inputs are computed one by one");
            one_by_one(compute, &positions, width)
        }
    }
}

/// Half of a batch that did not fit into memory. Whoever shares it with a large input must not fail with that.
fn half(compute: &impl Compute, positions: &[usize], width: usize) -> Vec<Outcome> {
    match pass(compute, positions, width) {
        Ok(rows) => rows,
        Err(error) if error.is_sticky() || positions.len() == 1 => vec![Err(error); positions.len()],
        Err(_) => one_by_one(compute, positions, width),
    }
}

/// Each input alone, short ones first. What cannot end better is not tried: what is as long as an input that did not fit, and
/// anything on a lost device. So a full device costs one pass that fails, not one for each input.
fn one_by_one(compute: &impl Compute, positions: &[usize], width: usize) -> Vec<Outcome> {
    let mut order = positions.to_vec();
    order.sort_by_key(|&position| compute.tokens(position));
    let mut end = None;
    let alone = order.into_iter().map(|position| {
        let outcome = match &end {
            Some(error) => Err(Error::clone(error)),
            None => pass(compute, &[position], width).and_then(|mut rows| rows.swap_remove(0)),
        };
        if let Err(error) = &outcome
            && (error.is_sticky() || matches!(error, Error::GpuOutOfMemory { .. }))
        {
            end = Some(error.clone());
        }
        (position, outcome)
    });
    let mut outcomes: Vec<(usize, Outcome)> = alone.collect();
    outcomes.sort_by_key(|&(position, _)| position);
    outcomes.into_iter().map(|(_, outcome)| outcome).collect()
}

/// One forward pass, and what has to be repeated of it in fp32.
fn pass(compute: &impl Compute, positions: &[usize], width: usize) -> Result<Vec<Outcome>, Error> {
    let rows = guarded(|| compute.rows(positions))?;
    if rows.len() != positions.len() * width {
        return Err(Error::internal(format!(
            "{} values for {} rows",
            rows.len(),
            positions.len()
        )));
    }
    let rows = positions.iter().zip(rows.chunks_exact(width));
    let outcomes = rows.map(|(&position, row)| {
        if is_finite(row) {
            return Ok(row.to_vec());
        }
        let again = guarded(|| compute.precise(position));
        match again {
            Ok(row) if is_finite(&row) && row.len() == width => Ok(row),
            Err(error) if error.is_sticky() => Err(error),
            other => {
                if let Err(error) = other {
                    tracing::error!(%error, "an input with a result that is not finite could not be computed in fp32");
                }
                Err(Error::NonFinite)
            }
        }
    });
    Ok(outcomes.collect())
}

fn guarded(work: impl FnOnce() -> Result<Vec<f32>, Error>) -> Result<Vec<f32>, Error> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(Error::internal("the forward pass panicked")))
}

fn is_finite(row: &[f32]) -> bool {
    row.iter().all(|value| value.is_finite())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use proptest::prelude::*;

    use super::*;

    /// Answers each input with its position, but for what the test says.
    struct Scripted<F: Fn(&[usize]) -> Result<Vec<f32>, Error>> {
        rows: F,
        precise: Option<f32>,
        tokens: Vec<usize>,
        passes: RefCell<Vec<Vec<usize>>>,
    }

    impl<F: Fn(&[usize]) -> Result<Vec<f32>, Error>> Compute for Scripted<F> {
        fn rows(&self, positions: &[usize]) -> Result<Vec<f32>, Error> {
            self.passes.borrow_mut().push(positions.to_vec());
            (self.rows)(positions)
        }

        fn precise(&self, position: usize) -> Result<Vec<f32>, Error> {
            self.passes.borrow_mut().push(vec![1_000 + position]);
            self.precise
                .map_or_else(|| Err(Error::internal("no twin")), |value| Ok(vec![value]))
        }

        fn tokens(&self, position: usize) -> usize {
            self.tokens[position]
        }
    }

    fn plain(positions: &[usize]) -> Vec<f32> {
        positions.iter().map(|&position| position as f32).collect()
    }

    fn full() -> Error {
        Error::GpuOutOfMemory { detail: "full".into() }
    }

    fn lost() -> Error {
        Error::GpuLost {
            detail: "Xid 79".into(),
        }
    }

    /// Four inputs of 1, 9, 2 and 3 tokens.
    fn run<F: Fn(&[usize]) -> Result<Vec<f32>, Error>>(
        rows: F,
        precise: Option<f32>,
    ) -> (Vec<Outcome>, Vec<Vec<usize>>) {
        let compute = Scripted {
            rows,
            precise,
            tokens: vec![1, 9, 2, 3],
            passes: RefCell::default(),
        };
        let outcomes = outcomes(&compute, 4, 1);
        (outcomes, compute.passes.into_inner())
    }

    fn values(outcomes: &[Outcome]) -> Vec<Option<f32>> {
        outcomes
            .iter()
            .map(|outcome| outcome.as_ref().ok().map(|row| row[0]))
            .collect()
    }

    #[test]
    fn a_row_that_is_not_finite_is_computed_once_more_in_fp32() {
        let rows = |positions: &[usize]| {
            let mut rows = plain(positions);
            rows[2] = f32::NAN;
            Ok(rows)
        };
        let (outcomes, passes) = run(rows, Some(7.0));
        assert_eq!(values(&outcomes), [Some(0.0), Some(1.0), Some(7.0), Some(3.0)]);
        assert_eq!(passes, [vec![0, 1, 2, 3], vec![1_002]]);
        for bad in [Some(f32::INFINITY), None] {
            let (outcomes, passes) = run(rows, bad);
            assert_eq!(values(&outcomes), [Some(0.0), Some(1.0), None, Some(3.0)]);
            assert!(matches!(&outcomes[2], Err(Error::NonFinite)));
            assert_eq!(passes.len(), 2, "it is repeated once");
        }
    }

    #[test]
    fn an_input_that_fails_or_panics_takes_no_neighbour_down() {
        let failing = |positions: &[usize]| {
            if positions.contains(&1) {
                return Err(Error::internal("index out of range"));
            }
            assert!(!positions.contains(&3), "a bug in a kernel");
            Ok(plain(positions))
        };
        let (outcomes, passes) = run(failing, None);
        assert_eq!(values(&outcomes), [Some(0.0), None, Some(2.0), None]);
        assert_eq!(passes.len(), 5);
    }

    #[test]
    fn out_of_memory_splits_the_batch_once() {
        let rows = |positions: &[usize]| {
            if positions.len() > 2 {
                return Err(full());
            }
            Ok(plain(positions))
        };
        let (outcomes, passes) = run(rows, None);
        assert_eq!(values(&outcomes), [Some(0.0), Some(1.0), Some(2.0), Some(3.0)]);
        assert_eq!(passes, [vec![0, 1, 2, 3], vec![0, 1], vec![2, 3]]);
    }

    #[test]
    fn an_input_that_does_not_fit_alone_fails_alone() {
        let rows = |positions: &[usize]| {
            if positions.contains(&1) {
                return Err(full());
            }
            Ok(plain(positions))
        };
        let (outcomes, passes) = run(rows, None);
        assert_eq!(values(&outcomes), [Some(0.0), None, Some(2.0), Some(3.0)]);
        assert!(matches!(&outcomes[1], Err(Error::GpuOutOfMemory { .. })));
        assert_eq!(passes, [vec![0, 1, 2, 3], vec![0, 1], vec![0], vec![1], vec![2, 3]]);
    }

    #[test]
    fn what_is_longer_than_an_input_that_did_not_fit_is_not_tried() {
        let (outcomes, passes) = run(|_| Err(full()), None);
        let is_full = |outcome: &Outcome| matches!(outcome, Err(Error::GpuOutOfMemory { .. }));
        assert!(outcomes.iter().all(is_full));
        assert_eq!(passes, [vec![0, 1, 2, 3], vec![0, 1], vec![0], vec![2, 3], vec![2]]);
    }

    #[test]
    fn a_lost_device_is_not_tried_again() {
        let (outcomes, passes) = run(|_| Err(lost()), None);
        assert!(
            outcomes
                .iter()
                .all(|outcome| matches!(outcome, Err(Error::GpuLost { .. })))
        );
        assert_eq!(passes.len(), 1);
        // Lost while inputs are computed one by one: the rest is not tried.
        let later = |positions: &[usize]| match positions {
            [0] => Ok(plain(positions)),
            [_] => Err(lost()),
            _ => Err(Error::internal("first")),
        };
        let (outcomes, passes) = run(later, None);
        assert_eq!(values(&outcomes), [Some(0.0), None, None, None]);
        assert_eq!(passes.len(), 3);
        // Lost in the first half of a batch: the second one is not tried.
        let half = |positions: &[usize]| Err(if positions.len() > 2 { full() } else { lost() });
        let (outcomes, passes) = run(half, None);
        assert!(
            outcomes
                .iter()
                .all(|outcome| matches!(outcome, Err(Error::GpuLost { .. })))
        );
        assert_eq!(passes, [vec![0, 1, 2, 3], vec![0, 1]]);
    }

    /// What is wrong with an input.
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Fault {
        None,
        /// Not finite as served, finite in fp32.
        Imprecise,
        /// Not finite in fp32 either.
        NonFinite,
        /// Every pass that holds it fails.
        Failing,
        /// Every pass that holds it panics.
        Panicking,
        /// Does not fit into memory even alone.
        Large,
    }

    /// A device that has room for so many tokens at a time.
    struct Device {
        inputs: Vec<(Fault, usize)>,
        room: usize,
        passes: RefCell<usize>,
    }

    impl Compute for Device {
        fn rows(&self, positions: &[usize]) -> Result<Vec<f32>, Error> {
            *self.passes.borrow_mut() += 1;
            if positions.iter().map(|&position| self.tokens(position)).sum::<usize>() > self.room {
                return Err(full());
            }
            let rows = positions.iter().map(|&position| match self.inputs[position].0 {
                Fault::Imprecise | Fault::NonFinite => Ok(f32::NAN),
                Fault::Failing => Err(Error::internal("a kernel refused")),
                Fault::Panicking => panic!("a bug in a kernel"),
                Fault::None | Fault::Large => Ok(position as f32),
            });
            rows.collect()
        }

        fn precise(&self, position: usize) -> Result<Vec<f32>, Error> {
            Ok(vec![match self.inputs[position].0 {
                Fault::Imprecise => position as f32,
                _ => f32::INFINITY,
            }])
        }

        fn tokens(&self, position: usize) -> usize {
            match self.inputs[position] {
                (Fault::Large, tokens) => self.room + tokens,
                (_, tokens) => tokens,
            }
        }
    }

    fn input() -> impl Strategy<Value = (Fault, usize)> {
        let fault = prop_oneof![
            4 => Just(Fault::None),
            1 => Just(Fault::Imprecise),
            1 => Just(Fault::NonFinite),
            1 => Just(Fault::Failing),
            1 => Just(Fault::Panicking),
            1 => Just(Fault::Large),
        ];
        (fault, 1_usize..10)
    }

    proptest! {
        #[test]
        fn exactly_the_bad_inputs_fail_each_with_its_own_error(
            inputs in proptest::collection::vec(input(), 1..24),
            room in 10_usize..150,
        ) {
            let count = inputs.len();
            let device = Device { inputs, room, passes: RefCell::default() };
            let outcomes = outcomes(&device, count, 1);
            prop_assert_eq!(outcomes.len(), count);
            for (position, (outcome, (fault, _))) in outcomes.iter().zip(&device.inputs).enumerate() {
                let as_expected = match (fault, outcome) {
                    (Fault::None | Fault::Imprecise, Ok(row)) => *row == [position as f32],
                    (Fault::NonFinite, Err(Error::NonFinite))
                    | (Fault::Failing | Fault::Panicking, Err(Error::Internal { .. }))
                    | (Fault::Large, Err(Error::GpuOutOfMemory { .. })) => true,
                    _ => false,
                };
                prop_assert!(as_expected, "{position}, {fault:?}: {outcome:?}");
            }
            prop_assert!(device.passes.into_inner() <= 3 + count);
        }
    }
}
