//! `medkg certs`: a folder of certificates, made, renewed and looked at by `medkg_tls::authority`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use medkg_tls::authority::{self, AuthorityError, CA_DAYS, Holder, LEAF_DAYS, Rotation, Step, WITHIN_DAYS, Written};
use pyo3::prelude::*;

use crate::errors;

/// A file's path and its key's, and the last moment as seconds since 1970.
type Files = (PathBuf, PathBuf, f64);
/// What was renewed; what was kept, until when; what was skipped, and why.
type Renewals = (Vec<Files>, Vec<(PathBuf, f64)>, Vec<(PathBuf, String)>);
/// File, subject, uses, names, first and last moment, whole days until then, problems.
type Certificate = (
    PathBuf,
    String,
    Vec<&'static str>,
    Vec<String>,
    f64,
    f64,
    i64,
    Vec<String>,
);

fn raise(py: Python<'_>) -> impl FnOnce(AuthorityError) -> PyErr {
    move |error| errors::certificates(py, &error)
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn files(written: Written) -> Files {
    (written.certificate, written.key, seconds(written.not_after))
}

fn renewals(rotation: Rotation) -> Renewals {
    let kept = rotation.kept.into_iter().map(|(path, until)| (path, seconds(until)));
    let renewed = rotation.renewed.into_iter().map(files);
    (renewed.collect(), kept.collect(), rotation.skipped)
}

/// Makes an authority.
#[pyfunction]
#[pyo3(signature = (folder, name, days, force))]
pub(crate) fn certs_init(
    py: Python<'_>,
    folder: PathBuf,
    name: &str,
    days: Option<u32>,
    force: bool,
) -> PyResult<Files> {
    let days = days.unwrap_or(CA_DAYS);
    let made = py.detach(move || authority::init(&folder, name, days, force, SystemTime::now()));
    made.map(files).map_err(raise(py))
}

/// Issues a server's certificate.
#[pyfunction]
#[pyo3(signature = (folder, name, dns, addresses, days, force))]
pub(crate) fn certs_issue_server(
    py: Python<'_>,
    folder: PathBuf,
    name: &str,
    dns: Vec<String>,
    addresses: Vec<String>,
    days: Option<u32>,
    force: bool,
) -> PyResult<Files> {
    let address = |text: String| {
        text.parse::<IpAddr>().map_err(|_| AuthorityError::Invalid {
            field: "--ip",
            value: text,
            expected: "an IPv4 or IPv6 address; give names with --dns",
        })
    };
    let addresses = addresses.into_iter().map(address).collect::<Result<_, _>>();
    let holder = Holder::Server {
        dns,
        addresses: addresses.map_err(raise(py))?,
    };
    issue(py, folder, name, &holder, days, force)
}

/// Issues a client's certificate.
#[pyfunction]
#[pyo3(signature = (folder, name, tenants, service, days, force))]
pub(crate) fn certs_issue_client(
    py: Python<'_>,
    folder: PathBuf,
    name: &str,
    tenants: Vec<String>,
    service: Option<String>,
    days: Option<u32>,
    force: bool,
) -> PyResult<Files> {
    issue(py, folder, name, &Holder::Client { tenants, service }, days, force)
}

fn issue(
    py: Python<'_>,
    folder: PathBuf,
    name: &str,
    holder: &Holder,
    days: Option<u32>,
    force: bool,
) -> PyResult<Files> {
    let days = days.unwrap_or(LEAF_DAYS);
    let issued = py.detach(move || authority::issue(&folder, name, holder, days, force, SystemTime::now()));
    issued.map(files).map_err(raise(py))
}

/// Renews what expires soon.
#[pyfunction]
#[pyo3(signature = (folder, within_days))]
pub(crate) fn certs_rotate(py: Python<'_>, folder: PathBuf, within_days: Option<u32>) -> PyResult<Renewals> {
    let within = within_days.unwrap_or(WITHIN_DAYS);
    let rotated = py.detach(move || authority::rotate(&folder, within, SystemTime::now()));
    rotated.map(renewals).map_err(raise(py))
}

/// Takes a step of the exchange of authorities; the number of roots that are trusted then, and what was renewed.
#[pyfunction]
#[pyo3(signature = (folder, step, days))]
pub(crate) fn certs_roll(
    py: Python<'_>,
    folder: PathBuf,
    step: &str,
    days: Option<u32>,
) -> PyResult<(PathBuf, usize, Renewals)> {
    let step = match step {
        "add" => Step::Add,
        "use" => Step::Use,
        "drop" => Step::Drop,
        other => {
            return Err(raise(py)(AuthorityError::Invalid {
                field: "--ca",
                value: other.to_owned(),
                expected: "add, use or drop",
            }));
        }
    };
    let days = days.unwrap_or(CA_DAYS);
    let rolled = py.detach(move || authority::roll(&folder, step, days, SystemTime::now()));
    let rolled = rolled.map_err(raise(py))?;
    Ok((rolled.bundle, rolled.roots, renewals(rolled.rotation)))
}

/// What there is in a file or a folder, what is wrong beside the certificates, and whether nothing is wrong at all.
#[pyfunction]
#[pyo3(signature = (path, within_days))]
pub(crate) fn certs_inspect(
    py: Python<'_>,
    path: PathBuf,
    within_days: Option<u32>,
) -> PyResult<(Vec<Certificate>, Vec<String>, bool)> {
    let within = within_days.unwrap_or(WITHIN_DAYS);
    let inspected = py.detach(move || authority::inspect(&path, within, SystemTime::now()));
    let inspected = inspected.map_err(raise(py))?;
    let good = inspected.is_good();
    let rows = inspected.certificates.into_iter().map(|found| {
        (
            found.file,
            found.subject,
            found.uses,
            found.names,
            seconds(found.not_before),
            seconds(found.not_after),
            found.days_left,
            found.problems,
        )
    });
    Ok((rows.collect(), inspected.problems, good))
}
