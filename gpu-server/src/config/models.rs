//! What an operator says about a model, wherever it is said: on the command line, in the models file, over the admin
//! address.

use std::path::PathBuf;
use std::str::FromStr;

use super::ComputeType;
use crate::model::pooling::PoolingKind;

/// What a model is configured for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Purpose {
    /// Texts to vectors.
    Embedding,
    /// Pairs to scores.
    Reranking,
}

impl Purpose {
    /// Every purpose.
    pub const ALL: [Self; 2] = [Self::Embedding, Self::Reranking];

    /// The name of its role.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::Reranking => "reranking",
        }
    }
}

/// A model as it is wanted. Two that are equal are the same model: nothing has to be loaded to get from one to the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSpec {
    /// What it is for.
    pub purpose: Purpose,
    /// What requests call it; no other model of the purpose has the name.
    pub name: String,
    /// Folder with config.json, tokenizer.json and the weights.
    pub directory: PathBuf,
    /// As the folder was named below --model-root, if it was named over the admin address. Links in it are followed anew
    /// whenever the model is loaded over the admin address again.
    pub below_root: Option<String>,
    /// The operator's own mark.
    pub revision: String,
    /// The digest that the weights must have, lower-case hex.
    pub sha256: Option<String>,
    /// Instead of what the checkpoint says.
    pub pooling: Option<PoolingKind>,
    /// Instead of what the checkpoint says.
    pub normalize: Option<bool>,
    /// Instead of --dtype.
    pub compute_type: Option<ComputeType>,
    /// Golden vectors or scores; none: `medkg-golden.json` in the folder, if it is there.
    pub golden: Option<PathBuf>,
}

impl ModelSpec {
    /// A checkpoint served as it is.
    pub const fn new(purpose: Purpose, name: String, directory: PathBuf) -> Self {
        Self {
            purpose,
            name,
            directory,
            below_root: None,
            revision: String::new(),
            sha256: None,
            pooling: None,
            normalize: None,
            compute_type: None,
            golden: None,
        }
    }
}

/// A model's name and its folder, as a flag names them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSource {
    /// What requests call it.
    pub name: String,
    /// Its folder.
    pub directory: PathBuf,
}

impl FromStr for ModelSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, directory) = text.split_once('=').ok_or("expected NAME=DIRECTORY")?;
        check_name(name).map_err(|problem| format!("expected NAME=DIRECTORY; the name {problem}"))?;
        if directory.is_empty() {
            return Err("expected NAME=DIRECTORY; the directory is empty".to_owned());
        }
        Ok(Self {
            name: name.to_owned(),
            directory: directory.into(),
        })
    }
}

/// A name that an operator may give: 1 to 127 printable ASCII characters without spaces.
///
/// # Errors
/// What is accepted.
pub fn check_name(name: &str) -> Result<(), String> {
    if !name.is_empty() && name.len() <= 127 && name.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(())
    } else {
        Err("must have 1 to 127 printable ASCII characters, none of them a space".to_owned())
    }
}

/// A SHA-256 in hex, in lower case.
///
/// # Errors
/// What is accepted.
pub fn check_sha256(text: &str) -> Result<String, String> {
    if text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err("must have 64 hexadecimal digits".to_owned())
    }
}

/// A revision: at most 128 printable ASCII characters without spaces.
///
/// # Errors
/// What is accepted.
pub fn check_revision(text: &str) -> Result<(), String> {
    if text.len() <= 128 && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(())
    } else {
        Err("must have at most 128 printable ASCII characters, none of them a space".to_owned())
    }
}

/// A number of bytes: `8589934592`, `8GiB`, `500MB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || "expected a number of bytes, e.g. 8GiB, 500MB or 0".to_owned();
        let end = text.bytes().take_while(u8::is_ascii_digit).count();
        let (digits, unit) = text.split_at(end);
        let number: u64 = digits.parse().map_err(|_| refused())?;
        let factor: u64 = match unit.trim_start().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "kb" => 1_000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            "kib" => 1 << 10,
            "mib" => 1 << 20,
            "gib" => 1 << 30,
            "tib" => 1 << 40,
            _ => return Err(refused()),
        };
        number.checked_mul(factor).map(Self).ok_or_else(refused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_read_with_their_units() {
        for (text, bytes) in [
            ("0", 0),
            ("1024", 1024),
            ("8GiB", 8 << 30),
            ("500 MB", 500_000_000),
            ("2kib", 2048),
        ] {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
        for text in ["", "GiB", "1.5GiB", "-1", "8G", "99999999999TiB"] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
    }

    #[test]
    fn digests_are_hex_in_lower_case() {
        assert_eq!(check_sha256(&"Ab".repeat(32)), Ok("ab".repeat(32)));
        assert!(check_sha256(&"g".repeat(64)).is_err());
        assert!(check_sha256("ab").is_err());
    }

    proptest! {
        #[test]
        fn a_source_keeps_its_name_and_its_folder(name in "[!-<>-~]{1,127}", directory in "[^\\x00]{1,40}") {
            let source: ModelSource = format!("{name}={directory}").parse().unwrap();
            prop_assert_eq!(source.name, name);
            prop_assert_eq!(source.directory, PathBuf::from(directory));
        }
    }
}
