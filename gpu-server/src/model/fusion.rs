//! Putting a first-stage score and a cross-encoder's score together.

/// `z(first) + weight * z(second)`, where z subtracts the list's mean and divides by its population standard deviation
/// (floor 1e-6, so that a list of equal scores adds nothing). Both lists have the same length.
pub fn standardized_sum(first: &[f32], second: &[f32], weight: f32) -> Vec<f32> {
    let weight = f64::from(weight);
    #[allow(clippy::cast_possible_truncation)] // the sum of two z-scores fits in an f32
    let sum = |(a, b): (f64, f64)| weight.mul_add(b, a) as f32;
    standardize(first).zip(standardize(second)).map(sum).collect()
}

fn standardize(scores: &[f32]) -> impl Iterator<Item = f64> + '_ {
    let count = scores.len().max(1) as f64;
    let mean = scores.iter().copied().map(f64::from).sum::<f64>() / count;
    let variance = scores
        .iter()
        .map(|&score| (f64::from(score) - mean).powi(2))
        .sum::<f64>()
        / count;
    let deviation = variance.sqrt().max(1e-6);
    scores.iter().map(move |&score| (f64::from(score) - mean) / deviation)
}

#[cfg(test)]
mod tests {
    use super::standardized_sum;

    #[test]
    fn both_lists_count_alike_whatever_their_scale() {
        let fused = standardized_sum(&[0.9, 0.8, 0.1], &[-300.0, 200.0, 100.0], 1.0);
        let mirrored = standardized_sum(&[-3.0, 2.0, 1.0], &[9.0, 8.0, 1.0], 1.0);
        for (a, b) in fused.iter().zip(&mirrored) {
            assert!((a - b).abs() < 1e-6);
        }
        assert!(fused[1] > fused[0] && fused[1] > fused[2]);
    }

    #[test]
    fn a_flat_list_and_a_single_document_decide_nothing() {
        assert_eq!(standardized_sum(&[0.5, 0.5], &[1.0, 2.0], 1.0), [-1.0, 1.0]);
        assert_eq!(standardized_sum(&[0.5], &[7.0], 1.0), [0.0]);
    }
}
