//! Random bytes for ids, straight from the operating system.
//!
//! A generator that lives in the process would give forked children the same ids; Dagster forks.

/// Random bytes; from the clock and the process id on a system that has no source of randomness.
pub(crate) fn bytes<const N: usize>() -> [u8; N] {
    let mut out = [0_u8; N];
    if getrandom::fill(&mut out).is_err() {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default()
            .as_nanos();
        let seed = now ^ (u128::from(std::process::id()) << 64);
        for (target, source) in out.iter_mut().zip(seed.to_le_bytes().into_iter().cycle()) {
            *target = source;
        }
    }
    out
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|b| [b >> 4, b & 15])
        .map(|nibble| char::from(DIGITS[usize::from(nibble)]))
        .collect()
}
