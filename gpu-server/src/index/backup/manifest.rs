//! What a backup says of itself. It is believed only if its own digest fits, and every file's.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::Summary;
use crate::index::store::Properties;

/// What this version writes and reads.
const FORMAT: u32 = 1;

/// `manifest.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    format: u32,
    /// Of the gpu-server that wrote it.
    server_version: String,
    /// When it was begun.
    created_unix_seconds: u64,
    /// In the order of tenant and name.
    pub(super) collections: Vec<Copied>,
    /// As TENANT/NAME: those that were damaged, and are not in it.
    pub(super) damaged: Vec<String>,
}

/// One collection of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Copied {
    pub(super) tenant: String,
    pub(super) collection: String,
    pub(super) properties: Properties,
    pub(super) points: u64,
    /// Of the file.
    pub(super) bytes: u64,
    /// Of the file, in lower-case hex.
    pub(super) sha256: String,
}

impl Manifest {
    /// Of a backup that begins now.
    pub(super) fn new(damaged: Vec<String>) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            format: FORMAT,
            server_version: env!("CARGO_PKG_VERSION").to_owned(),
            created_unix_seconds: now.map_or(0, |since| since.as_secs()),
            collections: Vec::new(),
            damaged,
        }
    }

    /// Reads what was written; the error is in words.
    pub(super) fn parse(json: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Versioned {
            format: u32,
        }
        let unreadable = |error: serde_json::Error| format!("its manifest.json cannot be read ({error})");
        let Versioned { format } = serde_json::from_slice(json).map_err(unreadable)?;
        if format != FORMAT {
            return Err(format!(
                "its format is {format}, and this gpu-server reads {FORMAT}; restore it with the version that wrote it"
            ));
        }
        serde_json::from_slice(json).map_err(unreadable)
    }

    /// In numbers.
    pub(super) fn summary(&self) -> Summary {
        let mut summary = summary(&self.collections);
        summary.damaged.clone_from(&self.damaged);
        summary
    }
}

/// Some collections of a backup, in numbers.
pub(super) fn summary(copied: &[Copied]) -> Summary {
    Summary {
        collections: copied.len(),
        points: copied.iter().map(|one| one.points).sum(),
        bytes: copied.iter().map(|one| one.bytes).sum(),
        damaged: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::store::{Metric, Storage};

    #[test]
    fn what_is_written_is_read_and_what_is_newer_is_refused() {
        let mut manifest = Manifest::new(vec!["t/gone".to_owned()]);
        manifest.collections.push(Copied {
            tenant: "t".to_owned(),
            collection: "c".to_owned(),
            properties: Properties {
                sparse_dimension: 0,
                dimension: 3,
                metric: Metric::L2,
                storage: Storage::Bf16,
            },
            points: 7,
            bytes: 9,
            sha256: "00".to_owned(),
        });
        let json = serde_json::to_vec(&manifest).unwrap();
        let read = Manifest::parse(&json).unwrap();
        assert_eq!(read.collections, manifest.collections);
        assert_eq!((read.summary().points, read.summary().bytes), (7, 9));
        assert_eq!(read.summary().damaged, ["t/gone"]);
        manifest.format = 2;
        let refused = Manifest::parse(&serde_json::to_vec(&manifest).unwrap()).unwrap_err();
        assert!(refused.contains("format is 2"), "{refused}");
        assert!(Manifest::parse(b"{}").is_err() && Manifest::parse(b"").is_err());
    }
}
