//! A folder of certificates: what is made works in a handshake, what is renewed stays the same, nothing is left open.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "these certificates come from the authority itself")]
#[path = "../support/mod.rs"]
mod support;

mod rotation;

use std::fs::{Permissions, read, read_dir, read_to_string, set_permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use medkg_tls::authority::{
    AuthorityError, Holder, Inspected, LEAF_DAYS, Step, Written, init, inspect, issue, roll, rotate,
};
use medkg_tls::{ClientTlsConfig, ServerTlsConfig};
use support::{Server, causes};
use tempfile::TempDir;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn server() -> Holder {
    Holder::Server {
        dns: vec!["localhost".to_owned()],
        addresses: vec!["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()],
    }
}

fn client(tenants: &[&str], service: Option<&str>) -> Holder {
    Holder::Client {
        tenants: tenants.iter().map(ToString::to_string).collect(),
        service: service.map(str::to_owned),
    }
}

/// A folder with an authority, a server and a client of the tenant `a`, made so many days ago.
struct Made {
    _outer: TempDir,
    folder: PathBuf,
    server: Written,
    client: Written,
}

impl Made {
    fn days_ago(days: u32) -> Self {
        let then = SystemTime::now() - DAY * days;
        let outer = TempDir::new().unwrap();
        let folder = outer.path().join("certs");
        init(&folder, "medkg", 365, false, then).unwrap();
        let server = issue(&folder, "gpu", &server(), LEAF_DAYS, false, then).unwrap();
        let client = issue(&folder, "a", &client(&["a"], None), LEAF_DAYS, false, then).unwrap();
        Self {
            _outer: outer,
            folder,
            server,
            client,
        }
    }

    fn ca(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    fn server_config(&self) -> ServerTlsConfig {
        ServerTlsConfig::try_new(&self.server.certificate, &self.server.key, Some(&self.ca())).unwrap()
    }

    fn client_config(&self) -> ClientTlsConfig {
        let pair = Some((self.client.certificate.as_path(), self.client.key.as_path()));
        ClientTlsConfig::try_new(&self.ca(), pair, None).unwrap()
    }

    /// What is wrong, with files that expire in so many days.
    fn problems(&self, within: u32) -> Vec<String> {
        let found = inspect(&self.folder, within, SystemTime::now()).unwrap();
        let of_file = |found: Inspected| {
            let file = found.file.file_name().unwrap().to_string_lossy().into_owned();
            found
                .problems
                .into_iter()
                .map(move |problem| format!("{file}: {problem}"))
        };
        let certificates = found.certificates.into_iter().flat_map(of_file);
        found.problems.into_iter().chain(certificates).collect()
    }
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn what_is_issued_works_in_a_handshake_and_says_whose_it_is() {
    let made = Made::days_ago(0);
    let running = Server::start(&made.server_config()).await;
    running.call(&made.client_config()).await.unwrap();
    let peer = running.peers.lock().unwrap()[0].identity.clone().unwrap();
    assert_eq!(peer.subject, "CN=a");
    assert_eq!(peer.tenants().collect::<Vec<_>>(), ["a"]);
    assert_eq!(peer.service(), None);

    let now = SystemTime::now();
    let many = issue(&made.folder, "two", &client(&["b", "c.d"], None), 1, false, now).unwrap();
    let gateway = issue(&made.folder, "gateway", &client(&[], Some("gateway")), 1, false, now).unwrap();
    for (written, tenants, service) in [(many, vec!["b", "c.d"], None), (gateway, vec![], Some("gateway"))] {
        let pair = Some((written.certificate.as_path(), written.key.as_path()));
        running
            .call(&ClientTlsConfig::try_new(&made.ca(), pair, None).unwrap())
            .await
            .unwrap();
        let peer = running.peers.lock().unwrap().last().unwrap().identity.clone().unwrap();
        assert_eq!((peer.tenants().collect::<Vec<_>>(), peer.service()), (tenants, service));
    }
}

#[tokio::test]
async fn a_servers_certificate_is_none_of_a_client_and_the_other_way_round() {
    let made = Made::days_ago(0);
    let running = Server::start(&made.server_config()).await;
    let pair = Some((made.server.certificate.as_path(), made.server.key.as_path()));
    let error = running
        .call(&ClientTlsConfig::try_new(&made.ca(), pair, None).unwrap())
        .await
        .unwrap_err();
    assert!(causes(&error).contains("alert"), "{}", causes(&error));
    assert!(running.peers.lock().unwrap().is_empty());

    let posing = ServerTlsConfig::try_new(&made.client.certificate, &made.client.key, None).unwrap();
    let posing = Server::start(&posing).await;
    let error = posing.call(&made.client_config()).await.unwrap_err();
    assert!(
        causes(&error).contains("invalid peer certificate"),
        "{}",
        causes(&error)
    );
}

#[test]
fn keys_and_the_folder_are_closed_and_nothing_is_left_behind() {
    let made = Made::days_ago(0);
    rotate(&made.folder, 365, SystemTime::now()).unwrap();
    assert_eq!(mode(&made.folder), 0o700);
    let mut files: Vec<_> = read_dir(&made.folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    let names: Vec<_> = files
        .iter()
        .map(|file| file.file_name().unwrap().to_str().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "ca.key",
            "ca.pem",
            "client-a.key",
            "client-a.pem",
            "server-gpu.key",
            "server-gpu.pem"
        ]
    );
    for file in &files {
        let wanted = if file.extension().unwrap() == "key" {
            0o600
        } else {
            0o644
        };
        assert_eq!(mode(file), wanted, "{}", file.display());
    }
}

#[test]
fn nothing_is_overwritten_unless_it_is_asked_for() {
    let made = Made::days_ago(0);
    let now = SystemTime::now();
    let before = (read(made.ca()).unwrap(), read(&made.client.key).unwrap());
    let again = init(&made.folder, "medkg", 365, false, now).unwrap_err();
    assert!(
        matches!(&again, AuthorityError::Exists { path, .. } if *path == made.ca()),
        "{again}"
    );
    let again = issue(&made.folder, "a", &client(&["b"], None), 1, false, now).unwrap_err();
    assert!(
        matches!(&again, AuthorityError::Exists { path, .. } if *path == made.client.certificate),
        "{again}"
    );
    assert_eq!((read(made.ca()).unwrap(), read(&made.client.key).unwrap()), before);

    // Half an authority is one too.
    std::fs::remove_file(made.ca()).unwrap();
    assert!(init(&made.folder, "medkg", 365, false, now).is_err());
    init(&made.folder, "medkg", 365, true, now).unwrap();
    assert_ne!(read(made.ca()).unwrap(), before.0);
    issue(&made.folder, "a", &client(&["b"], None), 1, true, now).unwrap();
    assert_ne!(read(&made.client.key).unwrap(), before.1);
}

#[test]
fn what_others_can_read_is_named_and_not_used() {
    let made = Made::days_ago(0);
    let now = SystemTime::now();
    let open = |path: &Path, mode| set_permissions(path, Permissions::from_mode(mode)).unwrap();
    let key = made.folder.join("ca.key");
    for (path, loose, closed) in [(&key, 0o640, 0o600), (&made.folder, 0o750, 0o700)] {
        open(path, loose);
        let refusals = [
            issue(&made.folder, "b", &client(&["b"], None), 1, false, now).unwrap_err(),
            rotate(&made.folder, 1, now).unwrap_err(),
            roll(&made.folder, Step::Add, 1, now).unwrap_err(),
        ];
        for error in refusals {
            let text = error.to_string();
            assert!(
                text.starts_with(&format!("{}: its mode is {loose:04o}", path.display())),
                "{text}"
            );
            assert!(text.contains(&format!("chmod {closed:o} {}", path.display())), "{text}");
        }
        assert_eq!(made.problems(1).len(), 1, "{:?}", made.problems(1));
        open(path, closed);
    }
    open(&made.client.key, 0o644);
    assert!(
        made.problems(1)[0].contains("client-a.key: its mode is 0644"),
        "{:?}",
        made.problems(1)
    );
    assert!(!inspect(&made.folder, 1, now).unwrap().is_good());
    rotate(&made.folder, 365, now).unwrap();
    assert!(made.problems(1).is_empty(), "a new key is closed again");

    let outer = TempDir::new().unwrap();
    open(outer.path(), 0o755);
    let inner = outer.path().join("file");
    std::fs::write(inner, "").unwrap();
    let error = init(outer.path(), "medkg", 1, false, now).unwrap_err();
    assert!(matches!(error, AuthorityError::Open { wanted: 0o700, .. }), "{error}");
    std::fs::remove_file(outer.path().join("file")).unwrap();
    init(outer.path(), "medkg", 1, false, now).unwrap();
    assert_eq!(mode(outer.path()), 0o700, "an empty folder is closed");
}

#[test]
fn arguments_that_cannot_be_used_are_named() {
    let made = Made::days_ago(0);
    let now = SystemTime::now();
    let try_issue = |name: &str, holder: &Holder, days| {
        issue(&made.folder, name, holder, days, false, now)
            .unwrap_err()
            .to_string()
    };
    let to = |dns: &str| Holder::Server {
        dns: vec![dns.to_owned()],
        addresses: vec![],
    };
    let none = Holder::Server {
        dns: vec![],
        addresses: vec![],
    };
    for name in ["", "../a", "a/b", ".a", "a b", "é", &"a".repeat(64)] {
        assert!(try_issue(name, &server(), 1).starts_with("NAME "), "{name}");
        assert!(
            try_issue("x", &client(&[name], None), 1).starts_with("--tenant "),
            "{name}"
        );
        assert!(
            try_issue("x", &client(&[], Some(name)), 1).starts_with("--service "),
            "{name}"
        );
    }
    for dns in ["", "10.0.0.1", "::1", "http://a", "a..b", "*.*.a", "a:7070"] {
        assert!(try_issue("x", &to(dns), 1).starts_with("--dns "), "{dns}");
    }
    assert!(try_issue("x", &none, 1).contains("--dns or --ip"));
    assert!(try_issue("x", &client(&[], None), 1).contains("--tenant"));
    assert!(try_issue("x", &client(&["a"], Some("b")), 1).contains("--tenant"));
    for days in [0, 399] {
        assert!(try_issue("x", &server(), days).contains("expected 1 to 398"), "{days}");
    }
    assert!(
        init(&made.folder, "medkg", 7_301, true, now)
            .unwrap_err()
            .to_string()
            .contains("1 to 7300")
    );
    let nowhere = made.folder.join("none");
    let error = issue(&nowhere, "x", &server(), 1, false, now).unwrap_err().to_string();
    assert!(error.contains("medkg certs init"), "{error}");
    for dns in ["*.gpu.example", "gpu-0.example", "localhost"] {
        issue(&made.folder, &dns.replace('*', "any"), &to(dns), 1, false, now).unwrap();
    }
}

#[test]
fn strangers_are_left_alone_and_told() {
    let made = Made::days_ago(0);
    let now = SystemTime::now();
    let ca = support::Ca::new();
    let stranger = ca.issue("stranger");
    let put = |name: &str, from: &Path| std::fs::copy(from, made.folder.join(name)).unwrap();
    put("stranger.pem", &stranger.cert);
    std::fs::write(made.folder.join("torn.pem"), "-----BEGIN CERTIFICATE-----\n").unwrap();
    let rotation = rotate(&made.folder, 365, now).unwrap();
    let skipped: Vec<_> = rotation
        .skipped
        .iter()
        .map(|(path, why)| format!("{}: {why}", path.display()))
        .collect();
    assert_eq!((rotation.renewed.len(), skipped.len()), (2, 2));
    assert!(
        skipped[0].contains("stranger.pem: was signed by no authority of ca.pem"),
        "{skipped:?}"
    );
    assert!(
        skipped[1].contains("torn.pem: is no proper PEM file") || skipped[1].contains("torn.pem: has no certificate"),
        "{skipped:?}"
    );
    assert_eq!(
        read(made.folder.join("stranger.pem")).unwrap(),
        read(&stranger.cert).unwrap()
    );
    let told = made.problems(1);
    assert!(
        told.iter()
            .any(|problem| problem.starts_with("stranger.pem: no authority of ca.pem signed it")),
        "{told:?}"
    );
    assert!(told.iter().any(|problem| problem.contains("torn.pem")), "{told:?}");

    // Beside another authority's root nothing is signed.
    put("ca.pem", &ca.file);
    let error = issue(&made.folder, "b", &client(&["b"], None), 1, false, now).unwrap_err();
    assert!(matches!(error, AuthorityError::NoMatch { .. }), "{error}");
    assert!(
        made.problems(1)
            .iter()
            .any(|problem| problem.contains("signs for no authority of ca.pem"))
    );
}

#[test]
fn one_file_can_be_inspected_wherever_it_is_from() {
    let ca = support::Ca::new();
    let now = SystemTime::now();
    let (good, expired) = (ca.issue("worker"), ca.issue_expired("late"));
    let found = inspect(&good.cert, 30, now).unwrap();
    assert_eq!(found.certificates[0].uses, ["server", "client"]);
    assert_eq!(
        found.certificates[0].names,
        ["dns:localhost", "uri:spiffe://medkg/worker"]
    );
    assert!(found.certificates[0].problems.is_empty(), "{found:?}");
    let found = inspect(&expired.cert, 30, now).unwrap();
    assert!(found.certificates[0].problems[0].starts_with("expired"), "{found:?}");
    assert!(inspect(&ca.path("none.pem"), 30, now).is_err());
}
