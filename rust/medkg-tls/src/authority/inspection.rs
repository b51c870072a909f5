//! What there is, and what is wrong with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;

use super::facts::Facts;
use super::folder::{FOLDER_MODE, KEY_MODE, check_closed, failed};
use super::{AuthorityError, CA, CA_KEY, DAY, NEXT_KEY};
use crate::{files, provider};

/// A certificate of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspected {
    /// The file.
    pub file: PathBuf,
    /// As text, e.g. `CN=worker`.
    pub subject: String,
    /// `authority`, `server`, `client`, both of the latter, or none.
    pub uses: Vec<&'static str>,
    /// Whom it is for: `dns:`, `ip:`, `tenant:`, `service:`, `uri:` before each.
    pub names: Vec<String>,
    /// Its first moment.
    pub not_before: SystemTime,
    /// Its last moment.
    pub not_after: SystemTime,
    /// Whole days until then; negative if it is past.
    pub days_left: i64,
    /// What is wrong, each with what to do; none if it is good for as long as was asked.
    pub problems: Vec<String>,
}

/// Certificates, and what is wrong beside them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inspection {
    /// In the order of their files.
    pub certificates: Vec<Inspected>,
    /// Files that cannot be read, folders and keys that others can read.
    pub problems: Vec<String>,
}

impl Inspection {
    /// Whether nothing is wrong.
    pub fn is_good(&self) -> bool {
        self.problems.is_empty() && self.certificates.iter().all(|found| found.problems.is_empty())
    }
}

/// Looks at the certificates of a file, or of the files `*.pem` and `*.crt` of a folder, and at the key beside each.
/// Whatever expires within so many days is a problem.
///
/// # Errors
/// The path is not there, or a folder cannot be listed. What is wrong with a file is a problem, not an error.
pub fn inspect(path: &Path, within_days: u32, now: SystemTime) -> Result<Inspection, AuthorityError> {
    let mut inspection = Inspection::default();
    let soon = now + DAY * within_days;
    if !fs::metadata(path).map_err(failed(path, "looked at"))?.is_dir() {
        look(path, &[], now, soon, &mut inspection);
        return Ok(inspection);
    }
    let mut entries = fs::read_dir(path)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>, _>>())
        .map_err(failed(path, "listed"))?;
    entries.sort();
    if entries.iter().any(|entry| is_key(entry)) {
        inspection.closed(path, FOLDER_MODE);
    }
    let roots = Facts::of_file(&path.join(CA)).map_or_else(
        |_| Vec::new(),
        |roots| roots.into_iter().map(|(_, root)| root).collect(),
    );
    for entry in &entries {
        if is_key(entry) {
            inspection.closed(entry, KEY_MODE);
        } else if entry
            .extension()
            .is_some_and(|extension| extension == "pem" || extension == "crt")
        {
            look(entry, &roots, now, soon, &mut inspection);
        }
    }
    Ok(inspection)
}

fn is_key(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "key")
}

impl Inspection {
    fn closed(&mut self, path: &Path, wanted: u32) {
        if let Err(error) = check_closed(path, wanted) {
            self.problems.push(error.to_string());
        }
    }
}

fn look(path: &Path, roots: &[Facts], now: SystemTime, soon: SystemTime, inspection: &mut Inspection) {
    let chain = match Facts::of_file(path) {
        Ok(chain) => chain,
        Err(error) => return inspection.problems.push(error.to_string()),
    };
    for (index, (der, facts)) in chain.iter().enumerate() {
        let mut problems = time(facts, now, soon);
        let signed_here = facts.authority || roots.is_empty() || roots.iter().any(|root| facts.is_of(root));
        if index == 0 && !signed_here {
            problems.push("no authority of ca.pem signed it: issue it anew with --force".to_owned());
        }
        if index == 0 && !facts.authority {
            problems.extend(key(&path.with_extension("key"), der));
        }
        if facts.authority && path.ends_with(CA) {
            problems.extend(ca_key(path, &chain, der));
        }
        let uses = [
            (facts.authority, "authority"),
            (facts.server, "server"),
            (facts.client, "client"),
        ];
        inspection.certificates.push(Inspected {
            file: path.to_owned(),
            subject: facts.subject.clone(),
            uses: uses
                .into_iter()
                .filter_map(|(may, usage)| may.then_some(usage))
                .collect(),
            names: facts.names.iter().map(ToString::to_string).collect(),
            not_before: facts.not_before,
            not_after: facts.not_after,
            days_left: days_left(facts.not_after, now),
            problems,
        });
    }
}

fn time(facts: &Facts, now: SystemTime, soon: SystemTime) -> Vec<String> {
    let what = if facts.authority {
        "exchange it with rotate --ca"
    } else {
        "renew it with rotate"
    };
    if facts.not_after < now {
        return vec![format!("expired: {what}")];
    }
    if now < facts.not_before {
        return vec!["not valid yet: check this machine's clock".to_owned()];
    }
    if facts.not_after <= soon {
        let days = days_left(facts.not_after, now);
        return vec![format!("expires in {days} days: {what}")];
    }
    Vec::new()
}

fn days_left(not_after: SystemTime, now: SystemTime) -> i64 {
    let days = |time: Duration| i64::try_from(time.as_secs() / DAY.as_secs()).unwrap_or(i64::MAX);
    match not_after.duration_since(now) {
        Ok(left) => days(left),
        // A day that has begun counts.
        Err(past) => -1 - days(past.duration()),
    }
}

/// What is wrong with a key beside its certificate; one that lies elsewhere is not looked for.
fn key(path: &Path, certificate: &CertificateDer<'static>) -> Option<String> {
    path.exists().then_some(())?;
    match belongs(path, certificate) {
        Ok(true) => None,
        Ok(false) => Some("its key is another one's: put back the pair that was issued together".to_owned()),
        Err(problem) => Some(problem),
    }
}

/// A root whose key is in the folder signs; one key must belong to one root.
fn ca_key(
    path: &Path,
    bundle: &[(CertificateDer<'static>, Facts)],
    certificate: &CertificateDer<'static>,
) -> Option<String> {
    let folder = path.parent()?;
    let first = bundle.first().is_some_and(|(first, _)| first == certificate);
    let path = folder.join(CA_KEY);
    if !first || !path.exists() {
        return None;
    }
    let signs = |(der, _): &(CertificateDer<'static>, Facts)| belongs(&path, der).unwrap_or(false);
    if bundle.iter().any(signs) {
        return None;
    }
    let next = folder.join(NEXT_KEY).exists();
    let hint = if next {
        "run rotate --ca use"
    } else {
        "put back the key that belongs to it"
    };
    Some(format!("ca.key signs for no authority of ca.pem: {hint}"))
}

fn belongs(key: &Path, certificate: &CertificateDer<'static>) -> Result<bool, String> {
    let key = files::private_key(key).map_err(|error| error.to_string())?;
    let signing = provider().key_provider.load_private_key(key);
    let signing = signing.map_err(|error| format!("its key cannot be used: {error}"))?;
    let pair = CertifiedKey::new(vec![certificate.clone()], signing);
    Ok(!matches!(
        pair.keys_match(),
        Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::KeyMismatch))
    ))
}
