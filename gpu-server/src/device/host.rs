//! What Linux says about the machine.

/// The processor's name, or "unknown".
pub fn cpu_name() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| "unknown".to_owned(), |(_, name)| name.trim().to_owned())
}

/// Bytes of memory, or 0 where it cannot be read.
pub fn total_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kibibytes = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse().ok());
    kibibytes.map_or(0, |value: u64| value * 1024)
}

#[cfg(test)]
mod tests {
    #[test]
    fn linux_tells_its_memory() {
        assert!(super::total_memory() > 64 * 1024 * 1024);
        assert!(!super::cpu_name().is_empty());
    }
}
