//! Mistakes in files are found when they are loaded, and named.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "this test needs no server")]
mod support;

use std::path::Path;

use medkg_tls::{ClientTlsConfig, ServerTlsConfig, TlsError};
use support::Ca;

fn load(cert: &Path, key: &Path) -> TlsError {
    ServerTlsConfig::try_new(cert, key, None).map(drop).unwrap_err()
}

/// The error is of the right kind, and names the file.
macro_rules! assert_names {
    ($error:expr, $file:expr, $kind:pat) => {{
        let error = $error;
        assert!(matches!(error, $kind), "{error:?}");
        assert!(error.to_string().starts_with(&$file.display().to_string()), "{error}");
    }};
}

#[test]
fn missing_and_empty_files() {
    let ca = Ca::new();
    let own = ca.issue("server");
    let (missing, empty) = (ca.path("missing.pem"), ca.write("empty.pem", " \n"));
    assert_names!(load(&missing, &own.key), missing, TlsError::Read { .. });
    assert_names!(load(&empty, &own.key), empty, TlsError::Empty { .. });
    assert_names!(load(&own.cert, &missing), missing, TlsError::Read { .. });
    assert_names!(load(&own.cert, &empty), empty, TlsError::Empty { .. });
}

#[test]
fn files_that_hold_something_else() {
    let ca = Ca::new();
    let own = ca.issue("server");
    let junk = ca.write(
        "junk.pem",
        "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n",
    );
    let cut = ca.write("cut.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n");
    let not_der = ca.write(
        "not-der.pem",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    );
    let locked = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let locked = ca.write("locked.key", locked);
    let odd = ca.write(
        "odd.key",
        "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
    );
    assert_names!(load(&own.key, &own.key), own.key, TlsError::NoCertificate { .. });
    assert_names!(load(&own.cert, &own.cert), own.cert, TlsError::NoKey { .. });
    assert_names!(load(&junk, &own.key), junk, TlsError::BadPem { .. });
    assert_names!(load(&cut, &own.key), cut, TlsError::BadPem { .. });
    assert_names!(
        load(&not_der, &own.key),
        not_der,
        TlsError::BadCertificate { index: 0, .. }
    );
    assert_names!(load(&own.cert, &locked), locked, TlsError::EncryptedKey { .. });
    assert_names!(load(&own.cert, &odd), odd, TlsError::BadKey { .. });
    let error = ServerTlsConfig::try_new(&own.cert, &own.key, Some(&own.key))
        .map(drop)
        .unwrap_err();
    assert_names!(error, own.key, TlsError::NoCertificate { .. });
}

#[test]
fn a_key_of_another_certificate() {
    let ca = Ca::new();
    let (own, other) = (ca.issue("server"), ca.issue("other"));
    assert_names!(load(&own.cert, &other.key), other.key, TlsError::KeyMismatch { .. });
    let error = ClientTlsConfig::try_new(&ca.file, Some((&own.cert, &other.key)), None)
        .map(drop)
        .unwrap_err();
    assert_names!(error, other.key, TlsError::KeyMismatch { .. });
}

#[test]
fn certificates_out_of_their_time() {
    let ca = Ca::new();
    let expired = ca.issue_expired("old");
    let early = ca.issue_with("early", |params| {
        params.not_before = rcgen::date_time_ymd(2120, 1, 1);
        params.not_after = rcgen::date_time_ymd(2121, 1, 1);
    });
    let error = load(&expired.cert, &expired.key);
    assert!(error.to_string().contains("CN=old) expired at 2020-02-01"), "{error}");
    assert_names!(error, expired.cert, TlsError::Expired { index: 0, .. });
    assert_names!(load(&early.cert, &early.key), early.cert, TlsError::NotYetValid { .. });
    // The second block of a file is looked at too, and so is the CA.
    let own = ca.issue("server");
    let both = [std::fs::read(&own.cert).unwrap(), std::fs::read(&expired.cert).unwrap()].concat();
    let chain = ca.write("chain.pem", both);
    assert_names!(load(&chain, &own.key), chain, TlsError::Expired { index: 1, .. });
    let error = ClientTlsConfig::try_new(&expired.cert, None, None)
        .map(drop)
        .unwrap_err();
    assert_names!(error, expired.cert, TlsError::Expired { .. });
}

#[test]
fn a_server_name_that_is_none() {
    let ca = Ca::new();
    let error = ClientTlsConfig::try_new(&ca.file, None, Some("no such name"))
        .map(drop)
        .unwrap_err();
    assert!(matches!(error, TlsError::ServerName { .. }), "{error:?}");
}

#[test]
fn keys_are_not_printed() {
    let ca = Ca::new();
    let own = ca.issue("server");
    let server = ServerTlsConfig::try_new(&own.cert, &own.key, Some(&ca.file)).unwrap();
    let client = ClientTlsConfig::try_new(&ca.file, Some((&own.cert, &own.key)), None).unwrap();
    let secret = std::fs::read_to_string(&own.key).unwrap();
    let secret = secret.lines().nth(1).unwrap();
    for text in [
        format!("{server:#?}"),
        format!("{client:#?}"),
        format!("{:#?}", client.connector()),
    ] {
        assert!(
            text.contains("<redacted>") && !text.contains(secret) && text.len() < 400,
            "{text}"
        );
    }
}
