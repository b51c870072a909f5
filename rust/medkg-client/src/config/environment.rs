//! The environment as a source of options: `MEDKG_` and the option's name in capitals, a group's name before it
//! (`timeout`: `MEDKG_TIMEOUT`, `tls.ca_file`: `MEDKG_TLS_CA_FILE`).
//!
//! The variables are handed in, never read here: a program decides whether it wants them, and tests need none of the
//! process. Others use the prefix too (gpu-server, set-up scripts, Kubernetes for a service named `medkg`), so only a
//! variable that resembles one of the client's is taken for a misspelling.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;

/// What every variable begins with.
const PREFIX: &str = "MEDKG_";
/// The variable that names the file.
pub(super) const CONFIG: &str = "MEDKG_CONFIG";
/// Variables of gpu-server and of the set-up scripts that resemble the client's.
const OTHERS: [&str; 5] = [
    "MEDKG_CACHE",
    "MEDKG_REGISTRY",
    "MEDKG_TLS_CERT",
    "MEDKG_TLS_KEY",
    "MEDKG_TLS_CLIENT_CA",
];
/// What Kubernetes makes of the name of a service: `MEDKG_CACHE_PORT_6379_TCP` and more.
const LINKS: [&str; 2] = ["_PORT", "_SERVICE_HOST"];

/// Environment variables that may hold options; those that are empty count as unset.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Environment(BTreeMap<String, String>);

impl fmt::Debug for Environment {
    /// A value may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Environment {
    /// Takes those that begin with `MEDKG_`; bytes that are no UTF-8 become U+FFFD.
    pub fn new(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let ours = variables.into_iter().filter_map(|(name, value)| {
            let name = name.into_string().ok()?;
            let ours = name.starts_with(PREFIX) && !value.is_empty();
            ours.then(|| (name, value.to_string_lossy().into_owned()))
        });
        Self(ours.collect())
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Variables that are none of `known`, but meant to be one.
    pub(super) fn misspelt(&self, known: &[String]) -> impl Iterator<Item = &str> {
        // The groups: nothing else begins with them.
        let groups = [
            "MEDKG_TLS_",
            "MEDKG_CACHE_",
            "MEDKG_REGISTRY_",
            "MEDKG_FALLBACK_",
            "MEDKG_COALESCE_",
        ];
        let names = self.0.keys().map(String::as_str);
        names.filter(move |name| {
            let other = OTHERS.contains(name) || LINKS.iter().any(|part| name.contains(part));
            let resembles = groups.iter().any(|group| name.starts_with(group))
                || known.iter().any(|known| strsim::damerau_levenshtein(known, name) <= 2);
            !other && resembles && !known.iter().any(|known| known == name)
        })
    }
}

/// The variable of an option.
pub fn variable(option: &str) -> String {
    format!("{PREFIX}{}", option.replace('.', "_").to_uppercase())
}

/// The name that was probably meant.
pub(super) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let far = |known: &str| match known.strip_prefix(name) {
        Some(_) => 0, // it was cut short
        None => strsim::damerau_levenshtein(known, name),
    };
    let (distance, known) = known.map(|known| (far(known), known)).min()?;
    (distance <= name.len() / 2).then_some(known)
}
