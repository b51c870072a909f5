//! `--gpu-memory-warn` and `--gpu-memory-critical`.

/// From which fraction of the GPU's memory in use on it is told to be short.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MemoryThresholds {
    /// Above 0.
    pub warn: f64,
    /// Above `warn`, 1 at most.
    pub critical: f64,
}

impl MemoryThresholds {
    /// # Errors
    /// A line that names the flags and says what to do.
    pub fn try_new(warn: f64, critical: f64) -> Result<Self, String> {
        if 0.0 < warn && warn < critical && critical <= 1.0 {
            return Ok(Self { warn, critical });
        }
        Err(format!(
            "--gpu-memory-warn {warn} and --gpu-memory-critical {critical}: expected fractions of the GPU's memory, the first \
             one above 0, the second one above the first and 1 at most"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_fractions_in_their_order() {
        assert!(MemoryThresholds::try_new(0.85, 0.95).is_ok());
        assert!(MemoryThresholds::try_new(0.5, 1.0).is_ok());
        let wrong = [
            (0.0, 0.9),
            (-0.1, 0.9),
            (0.9, 0.9),
            (0.95, 0.85),
            (0.9, 1.01),
            (85.0, 95.0),
        ];
        for (warn, critical) in wrong.into_iter().chain([(f64::NAN, 0.9), (0.5, f64::NAN)]) {
            let problem = MemoryThresholds::try_new(warn, critical).unwrap_err();
            assert!(problem.starts_with("--gpu-memory-warn"), "{problem}");
        }
    }
}
