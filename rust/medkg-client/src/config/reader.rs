//! Asks the sources for one option after another, the strongest source first, and notes what cannot be used.
//!
//! Which options there are is known from what is asked for, so there is no second list of names: keys of the file and
//! variables that nobody asked for are told at the end, with the name that was probably meant.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::Problem;
use super::document::{Table, Value};
use super::environment::{CONFIG, Environment, nearest, variable};
use super::setting::Setting;

/// Where the value of an option comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// An argument of the program.
    Argument,
    /// This environment variable.
    Variable(String),
    /// The file.
    File,
}

/// A file that was read.
pub(super) struct File<'a> {
    pub(super) path: &'a Path,
    pub(super) table: Table,
}

/// The sources, and what is known of them so far.
pub(super) struct Reader<'a> {
    environment: &'a Environment,
    file: Option<File<'a>>,
    /// The group that is being read, with a dot; empty at the top.
    group: String,
    /// Every option that was asked for, and every group.
    asked: Vec<String>,
    groups: Vec<String>,
    /// Variables that are not looked at.
    hidden: Vec<String>,
    pub(super) origins: BTreeMap<String, Origin>,
    pub(super) problems: Vec<Problem>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(environment: &'a Environment, file: Option<File<'a>>) -> Self {
        Self {
            environment,
            file,
            group: String::new(),
            asked: Vec::new(),
            groups: Vec::new(),
            hidden: Vec::new(),
            origins: BTreeMap::new(),
            problems: Vec::new(),
        }
    }

    /// An option: the argument, the variable or the file's, whichever is there first.
    pub(super) fn option<T: Setting>(&mut self, name: &str, argument: Option<T>) -> Option<T> {
        let option = format!("{}{name}", self.group);
        self.asked.push(option.clone());
        if argument.is_some() {
            self.origins.insert(option, Origin::Argument);
            return argument;
        }
        let variable = variable(&option);
        if let Some(text) = self
            .environment
            .get(&variable)
            .filter(|_| !self.hidden.contains(&variable))
        {
            let value = T::from_text(text);
            if value.is_none() {
                self.problem(&variable, format!("cannot be read; give {}", T::WANTED));
            }
            self.origins.insert(option, Origin::Variable(variable));
            return value;
        }
        let found = self.find(&option)?;
        let (value, kind) = (T::from_value(found), found.kind());
        if value.is_none() {
            self.problem(&self.place_in_file(&option), format!("is {kind}; give {}", T::WANTED));
        }
        self.origins.insert(option, Origin::File);
        value
    }

    /// As [`Self::option`]; a relative path in a file is relative to the file's folder.
    pub(super) fn path(&mut self, name: &str, argument: Option<PathBuf>) -> Option<PathBuf> {
        let path = self.option(name, argument)?;
        let option = format!("{}{name}", self.group);
        let folder = match (self.origins.get(&option), &self.file) {
            (Some(Origin::File), Some(file)) => file.path.parent(),
            _ => None,
        };
        Some(folder.map_or_else(|| path.clone(), |folder| folder.join(&path)))
    }

    /// Options that belong together; none if no source has one, or the group itself.
    pub(super) fn group<T>(&mut self, name: &str, given: bool, read: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.groups.push(name.to_owned());
        let listed = match self.find(name).map(Value::kind) {
            None => false,
            Some("a table") => true,
            Some(kind) => {
                self.problem(&self.place_in_file(name), format!("is {kind}; give a table"));
                false
            }
        };
        let outer = std::mem::replace(&mut self.group, format!("{name}."));
        let value = read(self);
        let prefix = std::mem::replace(&mut self.group, outer);
        let any = self.origins.keys().any(|option| option.starts_with(&prefix));
        (given || listed || any).then_some(value)
    }

    /// Options that say the same in different ways: a source that has one of them hides all of them in weaker sources.
    pub(super) fn one_of(&mut self, options: &[&str], arguments: bool) {
        let variables: Vec<String> = options.iter().map(|option| variable(option)).collect();
        let any = variables.iter().any(|name| self.environment.get(name).is_some());
        if arguments {
            self.hidden = variables;
        }
        if (arguments || any)
            && let Some(file) = &mut self.file
        {
            file.table.retain(|(key, _)| !options.contains(&key.as_str()));
        }
    }

    /// Notes every key of the file and every variable that nobody asked for.
    pub(super) fn tell_unknown(&mut self) {
        let mut unknown = Vec::new();
        if let Some(file) = &self.file {
            for (key, value) in &file.table {
                match value {
                    Value::Table(inner) if self.groups.contains(key) => {
                        unknown.extend(inner.iter().map(|(name, _)| format!("{key}.{name}")));
                    }
                    // One that is no table was told already.
                    _ if self.groups.contains(key) => {}
                    _ => unknown.push(key.clone()),
                }
            }
        }
        unknown.retain(|option| !self.asked.contains(option));
        for option in unknown {
            let group = option.rfind('.').map_or("", |dot| &option[..=dot]);
            let known = self.asked.iter().chain(&self.groups).map(String::as_str);
            let meant = nearest(&option, known.filter(|known| known.starts_with(group)));
            self.problem(&self.place_in_file(&option), no_option(meant));
        }
        let mut variables: Vec<String> = self.asked.iter().map(|option| variable(option)).collect();
        variables.push(CONFIG.to_owned());
        for name in self.environment.misspelt(&variables) {
            let meant = nearest(name, variables.iter().map(String::as_str));
            self.problem(name, no_option(meant));
        }
    }

    /// Where an option that cannot be used comes from, e.g. `medkg.toml: addresses[1]` or `MEDKG_TIMEOUT`.
    pub(super) fn place(&self, field: &str) -> String {
        let (option, index) = field.split_at(field.find('[').unwrap_or(field.len()));
        let within = format!("{option}.");
        let group = || self.origins.iter().find(|(name, _)| name.starts_with(&within));
        match self.origins.get(option).or_else(|| group().map(|(_, origin)| origin)) {
            Some(Origin::Variable(name)) => format!("{name}{index}"),
            Some(Origin::File) => self.place_in_file(field),
            Some(Origin::Argument) | None => field.to_owned(),
        }
    }

    fn place_in_file(&self, field: &str) -> String {
        let path = self.file.as_ref().map(|file| file.path.display().to_string());
        format!("{}: {field}", path.unwrap_or_default())
    }

    fn problem(&mut self, field: &str, description: String) {
        self.problems.push(Problem {
            field: field.to_owned(),
            description,
        });
    }

    fn find(&self, option: &str) -> Option<&Value> {
        let mut table = &self.file.as_ref()?.table;
        let mut keys = option.split('.').peekable();
        while let Some(key) = keys.next() {
            let (_, value) = table.iter().find(|(name, _)| name == key)?;
            match value {
                Value::Null => return None,
                value if keys.peek().is_none() => return Some(value),
                Value::Table(inner) => table = inner,
                _ => return None,
            }
        }
        None
    }
}

fn no_option(meant: Option<&str>) -> String {
    match meant {
        Some(meant) => format!("is no option; did you mean {meant}?"),
        None => "is no option; remove it".to_owned(),
    }
}
