//! Named prompts: what a checkpoint wants to see before a text, as sentence-transformers writes it into
//! `config_sentence_transformers.json`. Other fields of that file are not this file's business.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::folder::Folder;
use crate::error::Error;

const FILE: &str = "config_sentence_transformers.json";

/// Prompts by name; none where the checkpoint has no such file.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Prompts {
    /// null where the checkpoint names one without saying it.
    #[serde(default, rename = "prompts")]
    by_name: BTreeMap<String, Option<String>>,
    /// The prompt of requests that name none.
    #[serde(default, rename = "default_prompt_name")]
    pub default: Option<String>,
    /// Elements of an embedding that are kept.
    #[serde(default)]
    pub truncate_dim: Option<usize>,
}

impl Prompts {
    /// Reads the checkpoint's file.
    ///
    /// # Errors
    /// [`Error::ModelLoadFailed`] that names the file; also for a default prompt that there is not.
    pub fn read(folder: &Folder) -> Result<Self, Error> {
        let found: Self = folder.optional(FILE)?;
        match &found.default {
            Some(name) if found.get(name).is_none() => {
                let problem = format!("default_prompt_name is {name:?}, which prompts does not have");
                Err(folder.failed(FILE, problem))
            }
            _ => Ok(found),
        }
    }

    /// Names and texts, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let all = self.by_name.iter();
        all.map(|(name, text)| (name.as_str(), text.as_deref().unwrap_or_default()))
    }

    /// The text of a prompt; None if there is no prompt of that name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.by_name.get(name).map(|text| text.as_deref().unwrap_or_default())
    }
}
