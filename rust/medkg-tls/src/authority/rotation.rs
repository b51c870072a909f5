//! Certificates that are renewed before they expire, and authorities that are exchanged.
//!
//! A certificate is renewed with the names, the use and the lifetime that it has, and a new key. (One that ends with its
//! authority may have been meant to live longer: it gets the usual lifetime.) An authority is exchanged in
//! three steps, because others need time to read `ca.pem` in between:
//!
//! | Step | After it | Signed by |
//! |---|---|---|
//! | add | `ca.pem` has both | the old one |
//! | use | every certificate of the folder is issued anew | the new one |
//! | drop | `ca.pem` has the new one | the new one |
//!
//! A step that was cut off can be repeated.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::facts::Facts;
use super::folder::Folder;
use super::issuing::{self, Request, Signer, name_of};
use super::{AuthorityError, CA, CA_KEY, DAY, LEAF_DAYS, NEXT_KEY, Written, write_pair};

/// What a rotation did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rotation {
    /// Issued anew.
    pub renewed: Vec<Written>,
    /// Good for longer: the file and its last moment.
    pub kept: Vec<(PathBuf, SystemTime)>,
    /// Left as they are although they would be due, and why.
    pub skipped: Vec<(PathBuf, String)>,
}

/// A step of the exchange of authorities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A new authority is trusted beside the old one.
    Add,
    /// The new one signs, and every certificate is issued anew.
    Use,
    /// The old one is trusted no more.
    Drop,
}

/// What a step did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rolled {
    /// The roots.
    pub bundle: PathBuf,
    /// How many there are now.
    pub roots: usize,
    /// What was issued anew.
    pub rotation: Rotation,
}

/// Issues anew what expires within so many days, and what another authority of `ca.pem` signed than the one that signs now.
///
/// # Errors
/// [`AuthorityError`]; what was renewed before stays renewed.
pub fn rotate(folder: &Path, within_days: u32, now: SystemTime) -> Result<Rotation, AuthorityError> {
    let folder = Folder::open(folder)?;
    renew(&folder, DAY * within_days, now)
}

fn renew(folder: &Folder, within: Duration, now: SystemTime) -> Result<Rotation, AuthorityError> {
    let signer = Signer::current(folder)?;
    let roots = Facts::of_file(&folder.path(CA))?;
    let mut rotation = Rotation::default();
    for stem in folder.leaves()? {
        let path = folder.path(&format!("{stem}.pem"));
        let facts = match Facts::of_file(&path) {
            Ok(chain) => chain.into_iter().next().map(|(_, facts)| facts),
            Err(error) => {
                rotation.skipped.push((path, error.to_string()));
                continue;
            }
        };
        let Some(facts) = facts else { continue };
        if !roots.iter().any(|(_, root)| facts.is_of(root)) {
            let why = "was signed by no authority of ca.pem; issue it anew with --force";
            rotation.skipped.push((path, why.to_owned()));
        } else if facts.not_after > now + within && facts.is_of(&signer.facts) {
            rotation.kept.push((path, facts.not_after));
        } else if let Some(request) = Request::again(&facts) {
            let cut = roots
                .iter()
                .any(|(_, root)| facts.is_of(root) && facts.not_after == root.not_after);
            let lifetime = if cut {
                DAY * LEAF_DAYS
            } else {
                issuing::lifetime(&facts)
            };
            let made = signer.sign(&request, lifetime, now)?;
            rotation.renewed.push(write_pair(folder, &stem, &made)?);
        } else {
            let why = "has a name that `medkg certs issue` does not write; issue it with the tool that made it";
            rotation.skipped.push((path, why.to_owned()));
        }
    }
    Ok(rotation)
}

/// Takes a step of the exchange of authorities.
///
/// # Errors
/// It does not follow the step before; or [`AuthorityError`].
pub fn roll(folder: &Path, step: Step, days: u32, now: SystemTime) -> Result<Rolled, AuthorityError> {
    super::check_days(days, super::MOST_CA_DAYS)?;
    let folder = Folder::open(folder)?;
    let rotation = match step {
        Step::Add => add(&folder, DAY * days, now)?,
        Step::Use => adopt(&folder, now)?,
        Step::Drop => retire(&folder)?,
    };
    Ok(Rolled {
        bundle: folder.path(CA),
        roots: Facts::of_file(&folder.path(CA))?.len(),
        rotation,
    })
}

/// The next authority, if one was prepared whole.
fn next(folder: &Folder) -> Result<Option<Signer>, AuthorityError> {
    if !folder.path(NEXT_KEY).exists() {
        return Ok(None);
    }
    Signer::of_key(folder, NEXT_KEY)
}

fn add(folder: &Folder, lifetime: Duration, now: SystemTime) -> Result<Rotation, AuthorityError> {
    if next(folder)?.is_some() {
        return Err(out_of_turn(
            folder,
            "the next authority is there already; go on with --ca use once everybody has the new ca.pem",
        ));
    }
    let current = Signer::current(folder)?;
    if Facts::of_file(&folder.path(CA))?.len() > 1 {
        return Err(out_of_turn(
            folder,
            "the authority before is still in ca.pem; end that exchange first, with --ca drop",
        ));
    }
    let name = name_of(&current.facts).ok_or_else(|| AuthorityError::Foreign { path: folder.path(CA) })?;
    let made = issuing::authority(name, lifetime, now)?;
    folder.write_key(NEXT_KEY, &made.key)?;
    folder.write(CA, &format!("{}{}", text(&current), made.certificate))?;
    Ok(Rotation::default())
}

fn adopt(folder: &Folder, now: SystemTime) -> Result<Rotation, AuthorityError> {
    if let Some(next) = next(folder)? {
        let current = Signer::current(folder)?;
        folder.rename(NEXT_KEY, CA_KEY)?;
        // The one that signs stands first.
        folder.write(CA, &format!("{}{}", text(&next), text(&current)))?;
    } else if Facts::of_file(&folder.path(CA))?.len() < 2 {
        return Err(out_of_turn(folder, "there is no next authority; begin with --ca add"));
    }
    renew(folder, Duration::ZERO, now)
}

fn retire(folder: &Folder) -> Result<Rotation, AuthorityError> {
    if next(folder)?.is_some() {
        return Err(out_of_turn(
            folder,
            "the next authority signs nothing yet; go on with --ca use",
        ));
    }
    let current = Signer::current(folder)?;
    if Facts::of_file(&folder.path(CA))?.len() < 2 {
        return Err(out_of_turn(
            folder,
            "ca.pem has one authority only; there is none to drop",
        ));
    }
    for stem in folder.leaves()? {
        let path = folder.path(&format!("{stem}.pem"));
        let chain = Facts::of_file(&path)?;
        if !chain.first().is_some_and(|(_, facts)| facts.is_of(&current.facts)) {
            let name = path.display();
            return Err(out_of_turn(
                folder,
                &format!("{name} is not of the authority that signs now; renew it with --ca use, or move it away"),
            ));
        }
    }
    folder.write(CA, &text(&current))?;
    Ok(Rotation::default())
}

fn out_of_turn(folder: &Folder, problem: &str) -> AuthorityError {
    AuthorityError::Step {
        folder: folder.root().to_owned(),
        problem: problem.to_owned(),
    }
}

/// The signer's certificate as text.
fn text(signer: &Signer) -> String {
    pem::encode(&pem::Pem::new("CERTIFICATE", signer.certificate.as_ref()))
}
