//! One batch to one result per input, whatever happens to its neighbours. Pure: what computes is passed in.
//!
//! | what happens | what follows |
//! |---|---|
//! | a row that is not finite | that input once more, alone and in fp32; then it fails by index |
//! | the pass fails or panics, the device is well | each input once more, alone |
//! | out of memory | each half once more; then its inputs fail |
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
}

/// What became of an input.
pub type Outcome = Result<Vec<f32>, Error>;

/// Computes a batch of `count` inputs, with `width` values per row; one outcome per input, in order.
pub fn outcomes(compute: &impl Compute, count: usize, width: usize) -> Vec<Outcome> {
    let positions: Vec<usize> = (0..count).collect();
    match pass(compute, &positions, width) {
        Ok(rows) => rows,
        Err(error) if error.is_sticky() => vec![Err(error); count],
        Err(Error::GpuOutOfMemory { detail }) if count > 1 => {
            tracing::warn!(detail, inputs = count, "out of memory; the batch is split once");
            let halves = positions.split_at(count / 2);
            let half = |part: &[usize]| pass(compute, part, width).unwrap_or_else(|error| vec![Err(error); part.len()]);
            [half(halves.0), half(halves.1)].concat()
        }
        Err(error @ Error::GpuOutOfMemory { .. }) => vec![Err(error); count],
        Err(error) => {
            tracing::error!(%error, inputs = count, "a forward pass failed; its inputs are computed one by one");
            let mut lost = None;
            let alone = positions.iter().map(|&position| {
                let outcome = match &lost {
                    Some(fault) => Err(Error::clone(fault)),
                    None => pass(compute, &[position], width).and_then(|mut rows| rows.swap_remove(0)),
                };
                if let Err(error) = &outcome
                    && error.is_sticky()
                {
                    lost = Some(error.clone());
                }
                outcome
            });
            alone.collect()
        }
    }
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
                Err(Error::non_finite(position))
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

    use super::*;

    /// Answers each input with its position, but for what the test says.
    struct Scripted<F: Fn(&[usize]) -> Result<Vec<f32>, Error>> {
        rows: F,
        precise: Option<f32>,
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
    }

    fn plain(positions: &[usize]) -> Vec<f32> {
        positions.iter().map(|&position| position as f32).collect()
    }

    fn run<F: Fn(&[usize]) -> Result<Vec<f32>, Error>>(
        rows: F,
        precise: Option<f32>,
    ) -> (Vec<Outcome>, Vec<Vec<usize>>) {
        let compute = Scripted {
            rows,
            precise,
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
            assert!(matches!(&outcomes[2], Err(Error::NonFinite { index: 2, .. })));
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
        let full = |most: usize| {
            move |positions: &[usize]| {
                if positions.len() > most {
                    return Err(Error::GpuOutOfMemory { detail: "full".into() });
                }
                Ok(plain(positions))
            }
        };
        assert_eq!(
            values(&run(full(2), None).0),
            [Some(0.0), Some(1.0), Some(2.0), Some(3.0)]
        );
        let (outcomes, passes) = run(full(1), None);
        assert!(
            outcomes
                .iter()
                .all(|outcome| matches!(outcome, Err(Error::GpuOutOfMemory { .. })))
        );
        assert_eq!(passes, [vec![0, 1, 2, 3], vec![0, 1], vec![2, 3]]);
    }

    #[test]
    fn a_lost_device_is_not_tried_again() {
        let lost = |_: &[usize]| {
            Err(Error::GpuLost {
                detail: "Xid 79".into(),
            })
        };
        let (outcomes, passes) = run(lost, None);
        assert!(
            outcomes
                .iter()
                .all(|outcome| matches!(outcome, Err(Error::GpuLost { .. })))
        );
        assert_eq!(passes.len(), 1);
        // Lost while inputs are computed one by one: the rest is not tried.
        let later = |positions: &[usize]| match positions {
            [0] => Ok(plain(positions)),
            [_] => Err(Error::GpuLost {
                detail: "Xid 79".into(),
            }),
            _ => Err(Error::internal("first")),
        };
        let (outcomes, passes) = run(later, None);
        assert_eq!(values(&outcomes), [Some(0.0), None, None, None]);
        assert_eq!(passes.len(), 3);
    }
}
