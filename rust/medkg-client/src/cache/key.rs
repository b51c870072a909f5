//! What makes two embeddings the same: tenant, model digest, element type, prompt, dimensions, truncation and text.

use std::fmt::Write as _;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

/// Names one embedding. The parts beside tenant and model are in a SHA-256, so texts are not kept here.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    of: Arc<(String, String)>,
    hash: [u8; 32],
}

/// Makes the keys of one call.
#[derive(Debug)]
pub(crate) struct Keys {
    of: Arc<(String, String)>,
    /// Has taken in all but the text.
    how: Sha256,
}

impl Keys {
    /// `how` has what the texts of the call have in common; each part is taken in with its length, so that none runs into the
    /// next.
    pub(crate) fn new(tenant: &str, digest: &str, how: &[&[u8]]) -> Self {
        let mut hash = Sha256::new();
        for part in how {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Self {
            of: Arc::new((tenant.to_owned(), digest.to_owned())),
            how: hash,
        }
    }

    pub(crate) fn of(&self, text: &str) -> Key {
        let mut hash = self.how.clone();
        hash.update(text.as_bytes());
        Key {
            of: Arc::clone(&self.of),
            hash: hash.finalize().into(),
        }
    }
}

impl Key {
    /// Whether it is the tenant's, and of this model if one is given.
    pub(crate) fn is_of(&self, tenant: &str, digest: Option<&str>) -> bool {
        self.of.0 == tenant && digest.is_none_or(|digest| self.of.1 == digest)
    }

    /// Its name in Redis.
    pub(crate) fn name(&self) -> String {
        let mut name = prefix(&self.of.0, Some(&self.of.1));
        for byte in self.hash {
            // Writing to a String cannot fail.
            let _ = write!(name, "{byte:02x}");
        }
        name
    }
}

/// What the names of a tenant's keys begin with. Neither part has a colon, or a character that a pattern of Redis knows: tenants
/// are letters, digits, `.`, `_` and `-`, digests are hex.
pub(crate) fn prefix(tenant: &str, digest: Option<&str>) -> String {
    let digest = digest.map(|digest| format!("{digest}:"));
    format!("medkg:embedding:1:{tenant}:{}", digest.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_makes_another_key() {
        let keys = [
            Keys::new("a", "1", &[b"x", b"y"]).of("t"),
            Keys::new("b", "1", &[b"x", b"y"]).of("t"),
            Keys::new("a", "2", &[b"x", b"y"]).of("t"),
            Keys::new("a", "1", &[b"xy", b""]).of("t"),
            Keys::new("a", "1", &[b"x", b"y"]).of("T"),
        ];
        for (at, key) in keys.iter().enumerate() {
            assert!(
                keys[at + 1..]
                    .iter()
                    .all(|other| other != key && other.name() != key.name())
            );
            assert!(key.name().starts_with(&prefix(&key.of.0, Some(&key.of.1))));
        }
        assert_eq!(keys[0], Keys::new("a", "1", &[b"x", b"y"]).of("t"));
        assert!(keys[0].is_of("a", None) && keys[0].is_of("a", Some("1")));
        assert!(!keys[0].is_of("b", None) && !keys[0].is_of("a", Some("2")));
    }
}
