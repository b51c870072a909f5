//! A configuration out of arguments, the environment and a file: each option from the strongest source that has it, in
//! that order, and the default where none has.
//!
//! Every problem is found in one pass and told where it was written: a variable's name, or the file and the key.

use std::collections::BTreeMap;
use std::fs::File as OpenFile;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::environment::{CONFIG, Environment};
use super::reader::{File, Origin, Reader};
use super::{ClientConfig, ClientOptions, ConfigError, Problem, document, options};

/// Far more than every option takes; a file that is larger is another one.
const FILE_BYTES: u64 = 1024 * 1024;

/// Where options are looked for.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// What the program says itself; stronger than all else.
    pub arguments: ClientOptions,
    /// Variables; an empty environment says nothing.
    pub environment: Environment,
    /// A TOML or YAML file, by its extension. None: the one that `MEDKG_CONFIG` names, if it does.
    pub file: Option<PathBuf>,
}

/// What the sources say.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Loaded {
    /// As a user could have written them in one place.
    pub options: ClientOptions,
    /// The options, checked.
    pub config: ClientConfig,
    /// Where each option that is not the default comes from.
    pub origins: BTreeMap<String, Origin>,
}

impl Sources {
    /// The file that is read, if one is.
    pub fn file(&self) -> Option<&Path> {
        let named = || self.environment.get(CONFIG).map(Path::new);
        self.file.as_deref().or_else(named)
    }

    /// Reads them all; the error lists every problem.
    pub fn load(&self) -> Result<Loaded, ConfigError> {
        self.load_text(self.file().map(read))
    }

    /// As [`Self::load`], with what reading the file gave.
    pub(super) fn load_text(&self, text: Option<io::Result<Vec<u8>>>) -> Result<Loaded, ConfigError> {
        let mut unread = None;
        let file = self.file().zip(text).and_then(|(path, text)| {
            let table = text
                .map_err(|error| format!("cannot be read: {error}"))
                .and_then(|text| document::parse(path, &text));
            match table {
                Ok(table) => Some(File { path, table }),
                Err(description) => {
                    let field = path.display().to_string();
                    unread = Some(Problem { field, description });
                    None
                }
            }
        });
        let mut reader = Reader::new(&self.environment, file);
        reader.problems.extend(unread);
        let options = options::read(&mut reader, self.arguments.clone());
        reader.tell_unknown();
        let checked = ClientConfig::try_new(&options);
        let origins = reader.origins.clone();
        match checked {
            Ok(config) if reader.problems.is_empty() => Ok(Loaded {
                options,
                config,
                origins,
            }),
            checked => {
                let wrong = checked.err().map_or_else(Vec::new, |error| error.problems);
                let mut problems = std::mem::take(&mut reader.problems);
                for Problem { field, description } in wrong {
                    let field = reader.place(&field);
                    // What could not be read is missing now; that is no second problem.
                    if !problems.iter().any(|problem| problem.field == field) {
                        problems.push(Problem { field, description });
                    }
                }
                Err(ConfigError { problems })
            }
        }
    }
}

/// The whole file.
pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    OpenFile::open(path)?.take(FILE_BYTES + 1).read_to_end(&mut text)?;
    if text.len() as u64 > FILE_BYTES {
        return Err(io::Error::other("is larger than 1 MiB"));
    }
    Ok(text)
}

#[cfg(test)]
#[path = "loading_tests.rs"]
mod tests;
