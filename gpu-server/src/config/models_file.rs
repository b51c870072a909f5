//! The models file: which models are served, in JSON, so that they can be changed while the server runs.
//!
//! A file is read whole or not at all: the first version decides whether the server starts, and a later one with a mistake
//! changes nothing. Every mistake is told, each with its field (`models[2].sha256`). Fields that are not known are
//! refused, because a misspelt `sha265` would pin nothing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::ValueEnum as _;
use serde_json::{Map, Value};

use super::ComputeType;
use super::models::{ModelSpec, Purpose, check_name, check_revision, check_sha256};
use crate::model::pooling::PoolingKind;

const FIELDS: [&str; 10] = [
    "role",
    "name",
    "directory",
    "default",
    "revision",
    "sha256",
    "pooling",
    "normalize",
    "dtype",
    "golden",
];

const POOLINGS: [(&str, PoolingKind); 6] = [
    ("mean", PoolingKind::Mean),
    ("cls", PoolingKind::Cls),
    ("last_token", PoolingKind::LastToken),
    ("weighted_mean", PoolingKind::WeightedMean),
    ("max", PoolingKind::Max),
    ("mean_sqrt_length", PoolingKind::MeanSqrtLength),
];

/// What a models file says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listed {
    /// The models, in the order of the file.
    pub models: Vec<ModelSpec>,
    /// Those that are marked as the default of their purpose.
    pub defaults: Vec<(Purpose, String)>,
}

/// Where the models file is, and what a name in it must not be.
#[derive(Debug, Clone)]
pub struct ModelsFile {
    /// The file.
    pub path: PathBuf,
    /// Names that flags have given away.
    pub taken: BTreeSet<(Purpose, String)>,
    /// The purposes that this process serves; models of others are left out.
    pub purposes: BTreeSet<Purpose>,
}

impl ModelsFile {
    /// Reads the text of the file. Folders in it are relative to its own.
    ///
    /// # Errors
    /// Every mistake, each as one line that names the field.
    pub fn parse(&self, text: &[u8]) -> Result<Listed, Vec<String>> {
        let root: Value = serde_json::from_slice(text).map_err(|error| vec![format!("not JSON: {error}")])?;
        let Some(root) = root.as_object() else {
            return Err(vec!["expected an object {\"models\": [...]}".to_owned()]);
        };
        let mut problems: Vec<String> = root
            .keys()
            .filter(|key| *key != "models")
            .map(|key| format!("{key}: not a field; the only one is models"))
            .collect();
        let Some(entries) = root.get("models").and_then(Value::as_array) else {
            problems.push("models: expected a list".to_owned());
            return Err(problems);
        };
        let mut listed = Listed::default();
        let mut names = BTreeSet::new();
        for (index, entry) in entries.iter().enumerate() {
            let mut fields = Fields {
                path: format!("models[{index}]"),
                entry: entry.as_object(),
                problems: &mut problems,
            };
            let Some((spec, default)) = fields.model(self.path.parent().unwrap_or(Path::new(""))) else {
                continue;
            };
            let key = (spec.purpose, spec.name.clone());
            if self.taken.contains(&key) {
                let flag = spec.purpose.name();
                fields.refuse(
                    "name",
                    format_args!("{:?} is given by --{flag}-model already", spec.name),
                );
            } else if !names.insert(key.clone()) {
                fields.refuse("name", format_args!("{:?} is there twice", spec.name));
            } else if default && listed.defaults.iter().any(|(purpose, _)| *purpose == spec.purpose) {
                fields.refuse(
                    "default",
                    format_args!("another {} model is the default", spec.purpose.name()),
                );
            } else if self.purposes.contains(&spec.purpose) {
                if default {
                    listed.defaults.push(key);
                }
                listed.models.push(spec);
            }
        }
        if problems.is_empty() { Ok(listed) } else { Err(problems) }
    }
}

/// The fields of one entry.
struct Fields<'a> {
    path: String,
    entry: Option<&'a Map<String, Value>>,
    problems: &'a mut Vec<String>,
}

impl Fields<'_> {
    /// The model, and whether it is the default; none if something about it is wrong.
    fn model(&mut self, folder: &Path) -> Option<(ModelSpec, bool)> {
        let Some(entry) = self.entry else {
            self.problems.push(format!("{}: expected an object", self.path));
            return None;
        };
        let before = self.problems.len();
        for key in entry.keys().filter(|key| !FIELDS.contains(&key.as_str())) {
            self.refuse(key, format_args!("not a field; there are {}", FIELDS.join(", ")));
        }
        let purpose = self.choice("role", &Purpose::ALL.map(|purpose| (purpose.name(), purpose)));
        let name = self.checked("name", |name| check_name(name).map(|()| name.to_owned()));
        let directory = self.checked("directory", |text| {
            let directory = folder.join(text);
            if text.is_empty() {
                Err("is empty".to_owned())
            } else {
                Ok(directory)
            }
        });
        for (field, missing) in [
            ("role", purpose.is_none()),
            ("name", name.is_none()),
            ("directory", directory.is_none()),
        ] {
            if missing && !entry.contains_key(field) {
                self.refuse(field, "is missing");
            }
        }
        let default = self.flag("default").unwrap_or(false);
        let revision = self.checked("revision", |text| check_revision(text).map(|()| text.to_owned()));
        let sha256 = self.checked("sha256", check_sha256);
        let pooling = self.choice("pooling", &POOLINGS);
        let normalize = self.flag("normalize");
        let types: Vec<(&str, ComputeType)> = ComputeType::value_variants()
            .iter()
            .map(|kind| (kind.name(), *kind))
            .collect();
        let compute_type = self.choice("dtype", &types);
        let golden = self.checked("golden", |text| Ok(PathBuf::from(text)));
        if purpose == Some(Purpose::Reranking) {
            for (field, given) in [("pooling", pooling.is_some()), ("normalize", normalize.is_some())] {
                if given {
                    self.refuse(field, "a reranking model has none");
                }
            }
        }
        let (Some(purpose), Some(name), Some(directory), true) =
            (purpose, name, directory, self.problems.len() == before)
        else {
            return None;
        };
        let spec = ModelSpec {
            revision: revision.unwrap_or_default(),
            sha256,
            pooling,
            normalize,
            compute_type,
            golden: golden.map(|golden| directory.join(golden)),
            ..ModelSpec::new(purpose, name, directory)
        };
        Some((spec, default))
    }

    fn refuse(&mut self, field: &str, problem: impl std::fmt::Display) {
        self.problems.push(format!("{}.{field}: {problem}", self.path));
    }

    fn get(&self, field: &str) -> Option<&Value> {
        self.entry.and_then(|entry| entry.get(field))
    }

    fn checked<T>(&mut self, field: &str, check: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let checked = match self.get(field)? {
            Value::String(text) => check(text),
            _ => Err("expected a text".to_owned()),
        };
        checked.map_err(|problem| self.refuse(field, problem)).ok()
    }

    fn flag(&mut self, field: &str) -> Option<bool> {
        let flag = self.get(field)?.as_bool();
        if flag.is_none() {
            self.refuse(field, "expected true or false");
        }
        flag
    }

    fn choice<T: Copy>(&mut self, field: &str, choices: &[(&str, T)]) -> Option<T> {
        self.checked(field, |text| {
            let found = choices.iter().find(|(name, _)| *name == text);
            found.map(|(_, value)| *value).ok_or_else(|| {
                let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
                format!("{text:?} is not one of {}", names.join(", "))
            })
        })
    }
}

/// What has to happen to get from one version of the file to the next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// New or different: to be loaded.
    pub load: Vec<ModelSpec>,
    /// No longer there.
    pub remove: Vec<(Purpose, String)>,
    /// The new order and the new defaults.
    pub listed: Listed,
}

impl Change {
    /// From `old` to `new`.
    pub fn between(old: &Listed, new: Listed) -> Self {
        let same = |a: &ModelSpec, b: &ModelSpec| a.purpose == b.purpose && a.name == b.name;
        let gone = old
            .models
            .iter()
            .filter(|was| !new.models.iter().any(|is| same(was, is)));
        Self {
            load: new
                .models
                .iter()
                .filter(|is| !old.models.contains(is))
                .cloned()
                .collect(),
            remove: gone.map(|was| (was.purpose, was.name.clone())).collect(),
            listed: new,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn file() -> ModelsFile {
        ModelsFile {
            path: "/etc/medkg/models.json".into(),
            taken: BTreeSet::from([(Purpose::Embedding, "flag".to_owned())]),
            purposes: BTreeSet::from(Purpose::ALL),
        }
    }

    fn parse(value: &Value) -> Result<Listed, Vec<String>> {
        file().parse(value.to_string().as_bytes())
    }

    #[test]
    fn a_full_entry_is_read_whole() {
        let listed = parse(&json!({"models": [
            {"role": "embedding", "name": "a", "directory": "a", "default": true, "revision": "r1",
             "sha256": "AB".repeat(32), "pooling": "cls", "normalize": true, "dtype": "bf16", "golden": "g.json"},
            {"role": "reranking", "name": "a", "directory": "/models/r"},
        ]}))
        .unwrap();
        let [a, r] = &listed.models[..] else {
            panic!("{listed:?}")
        };
        assert_eq!(a.directory, Path::new("/etc/medkg/a"));
        assert_eq!(a.golden.as_deref(), Some(Path::new("/etc/medkg/a/g.json")));
        assert_eq!((a.revision.as_str(), a.sha256.clone()), ("r1", Some("ab".repeat(32))));
        assert_eq!((a.pooling, a.normalize), (Some(PoolingKind::Cls), Some(true)));
        assert_eq!(a.compute_type, Some(ComputeType::Bf16));
        assert_eq!(
            *r,
            ModelSpec::new(Purpose::Reranking, "a".to_owned(), "/models/r".into())
        );
        assert_eq!(listed.defaults, [(Purpose::Embedding, "a".to_owned())]);
    }

    #[test]
    fn every_mistake_is_told_with_its_field() {
        let problems = parse(&json!({"model": 1, "models": [
            {"role": "vector", "name": "a b", "sha265": "x"},
            {"role": "embedding", "name": "flag", "directory": "d"},
            {"role": "embedding", "name": "x", "directory": "d", "default": true},
            {"role": "embedding", "name": "x", "directory": "d"},
            {"role": "embedding", "name": "y", "directory": "d", "default": true},
            {"role": "embedding", "name": "z", "directory": 3, "normalize": "yes", "dtype": "int4", "sha256": "00"},
            {"role": "reranking", "name": "r", "directory": "d", "pooling": "mean"},
            "text",
        ]}))
        .unwrap_err();
        for field in [
            "model:",
            "models[0].role:",
            "models[0].name:",
            "models[0].sha265:",
            "models[0].directory: is missing",
            "models[1].name: \"flag\" is given by --embedding-model",
            "models[3].name: \"x\" is there twice",
            "models[4].default:",
            "models[5].directory: expected a text",
            "models[5].normalize:",
            "models[5].dtype:",
            "models[5].sha256:",
            "models[6].pooling:",
            "models[7]: expected an object",
        ] {
            assert!(
                problems.iter().any(|p| p.starts_with(field)),
                "{field} is not in {problems:#?}"
            );
        }
        assert_eq!(problems.len(), 14, "{problems:#?}");
    }

    #[test]
    fn what_is_no_list_of_models_is_refused() {
        for text in ["", "[]", "{}", "{\"models\": {}}", "{\"models\": [}"] {
            assert!(file().parse(text.as_bytes()).is_err(), "{text}");
        }
        assert_eq!(file().parse(b"{\"models\": []}"), Ok(Listed::default()));
    }

    #[test]
    fn models_of_a_role_that_is_not_served_are_left_out() {
        let mut file = file();
        file.purposes.remove(&Purpose::Reranking);
        let text = json!({"models": [{"role": "reranking", "name": "r", "directory": "r", "default": true}]});
        assert_eq!(file.parse(text.to_string().as_bytes()), Ok(Listed::default()));
    }

    fn models() -> impl Strategy<Value = Listed> {
        let one = (0..6_usize, 0..3_usize).prop_map(|(name, folder)| {
            ModelSpec::new(Purpose::Embedding, format!("m{name}"), format!("/d{folder}").into())
        });
        proptest::collection::vec(one, 0..6).prop_map(|mut models| {
            let mut seen = BTreeSet::new();
            models.retain(|model| seen.insert(model.name.clone()));
            Listed {
                models,
                defaults: Vec::new(),
            }
        })
    }

    proptest! {
        #[test]
        fn a_change_leads_from_the_old_file_to_the_new_one(old in models(), new in models()) {
            let change = Change::between(&old, new.clone());
            let mut reached = old.models.clone();
            reached.retain(|model| !change.remove.contains(&(model.purpose, model.name.clone())));
            for spec in &change.load {
                reached.retain(|model| model.name != spec.name);
                reached.push(spec.clone());
            }
            reached.sort_by(|a, b| a.name.cmp(&b.name));
            let mut wanted = new.models.clone();
            wanted.sort_by(|a, b| a.name.cmp(&b.name));
            prop_assert_eq!(reached, wanted);
            // What is the same in both is left alone.
            prop_assert!(change.load.iter().all(|spec| !old.models.contains(spec)));
            let unchanged = Change::between(&new, new.clone());
            prop_assert!(unchanged.load.is_empty() && unchanged.remove.is_empty());
        }
    }
}
