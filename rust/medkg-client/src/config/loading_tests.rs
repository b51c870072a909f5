//! Loading, over all sources.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use super::*;
use crate::config::variable;

fn environment(variables: &[(&str, &str)]) -> Environment {
    Environment::new(variables.iter().map(|(name, value)| (name.into(), value.into())))
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn with(name: &str, text: &str) -> (Self, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        (Self(folder), path)
    }
}

fn problems(sources: &Sources) -> Vec<String> {
    let error = sources.load().map(|_| ()).unwrap_err();
    error.problems.into_iter().map(|problem| problem.field).collect()
}

#[test]
fn each_option_comes_from_the_strongest_source_that_has_it() {
    let (_folder, file) = Folder::with(
        "medkg.toml",
        "tenant = 'file'\ntimeout = 1\nmax_attempts = 2\n[cache]\nttl = 60\n",
    );
    let sources = Sources {
        arguments: ClientOptions {
            tenant: Some("argument".into()),
            ..ClientOptions::default()
        },
        environment: environment(&[
            ("MEDKG_TENANT", "variable"),
            ("MEDKG_TIMEOUT", "2.5"),
            ("MEDKG_CACHE_MEMORY_BYTES", "1000"),
            ("MEDKG_BACKOFF_MAX", ""),
        ]),
        file: Some(file),
    };
    let loaded = sources.load().unwrap();
    assert_eq!(loaded.options.tenant.as_deref(), Some("argument"));
    assert_eq!(loaded.options.timeout, Some(2.5));
    assert_eq!(loaded.options.max_attempts, Some(2));
    assert_eq!(loaded.options.backoff_max, None, "an empty variable says nothing");
    let cache = loaded.options.cache.unwrap();
    assert_eq!(
        (cache.memory_bytes, cache.ttl),
        (Some(1000), Some(60.0)),
        "groups are merged"
    );
    let origins: Vec<_> = loaded.origins.into_iter().collect();
    let expected = [
        (
            "cache.memory_bytes",
            Origin::Variable("MEDKG_CACHE_MEMORY_BYTES".into()),
        ),
        ("cache.ttl", Origin::File),
        ("max_attempts", Origin::File),
        ("tenant", Origin::Argument),
        ("timeout", Origin::Variable("MEDKG_TIMEOUT".into())),
    ];
    assert_eq!(origins, expected.map(|(name, origin)| (name.to_owned(), origin)));
}

#[test]
fn one_address_and_several_replace_each_other() {
    let (_folder, file) = Folder::with("medkg.yaml", "addresses: [http://127.0.0.1:1, http://127.0.0.1:2]");
    let load = |arguments: ClientOptions, variables: &[(&str, &str)]| {
        let sources = Sources {
            arguments,
            environment: environment(variables),
            file: Some(file.clone()),
        };
        let options = sources.load().unwrap().options;
        options
            .addresses
            .unwrap_or_else(|| options.address.into_iter().collect())
    };
    let none = ClientOptions::default;
    let one = || ClientOptions {
        address: Some("http://127.0.0.1:9".into()),
        ..none()
    };
    assert_eq!(load(none(), &[]).len(), 2);
    assert_eq!(
        load(none(), &[("MEDKG_ADDRESS", "http://127.0.0.1:3")]),
        ["http://127.0.0.1:3"]
    );
    let listed = [("MEDKG_ADDRESSES", "http://127.0.0.1:4, http://127.0.0.1:5,")];
    assert_eq!(load(none(), &listed), ["http://127.0.0.1:4", "http://127.0.0.1:5"]);
    assert_eq!(load(one(), &listed), ["http://127.0.0.1:9"]);
    assert_eq!(load(one(), &[]), ["http://127.0.0.1:9"]);
}

#[test]
fn the_file_may_be_named_by_a_variable_and_paths_in_it_are_relative_to_it() {
    let (folder, file) = Folder::with(
        "medkg.yml",
        "address: https://h:1\ntls: {ca_file: ca.pem, cert_file: /etc/c.pem}\n",
    );
    let sources = Sources {
        environment: environment(&[
            ("MEDKG_CONFIG", file.to_str().unwrap()),
            ("MEDKG_TLS_KEY_FILE", "key.pem"),
        ]),
        ..Sources::default()
    };
    let tls = sources.load().unwrap().options.tls.unwrap();
    assert_eq!(tls.ca_file, Some(folder.0.path().join("ca.pem")));
    assert_eq!(tls.cert_file, Some("/etc/c.pem".into()));
    assert_eq!(tls.key_file, Some("key.pem".into()), "a variable's is as it is");
}

// requirement: isolation 5.3
#[test]
fn every_problem_of_every_source_is_listed_at_once_with_its_place() {
    let (_folder, file) = Folder::with(
        "medkg.toml",
        "timeout = 'soon'\nmax_attempts = -1\nadress = 'x'\naddresses = ['http://gpu:1', 'https://ok:1']\n\
         nonsense_of_another_kind = 1\nbackoff_max = 0\n[tls]\nca = 'ca.pem'\n[cache]\nredis = 'http://:hunter2@h'\n\
         ttl = [1]\n",
    );
    let sources = Sources {
        arguments: ClientOptions {
            connect_timeout: Some(-1.0),
            ..ClientOptions::default()
        },
        environment: environment(&[
            ("MEDKG_RETRY_BUDGET", "hunter2"),
            ("MEDKG_BREAKER_FAILURES", "0"),
            ("MEDKG_TIMEOUTS", "1"),
            ("MEDKG_TLS_CA", "ca.pem"),
            ("MEDKG_COFNIG", "a.toml"),
            ("MEDKG_GPU_ADDRESSES", "gpu:1"),
        ]),
        file: Some(file.clone()),
    };
    let error = sources.load().map(|_| ()).unwrap_err();
    let found: BTreeSet<String> = error.problems.iter().map(|problem| problem.field.clone()).collect();
    let in_file = |field: &str| format!("{}: {field}", file.display());
    let expected: BTreeSet<String> = [
        in_file("timeout"),
        in_file("max_attempts"),
        in_file("adress"),
        in_file("addresses[0]"),
        in_file("nonsense_of_another_kind"),
        in_file("backoff_max"),
        in_file("tls.ca"),
        in_file("cache.redis"),
        in_file("cache.ttl"),
        "tls.ca_file".to_owned(),
        "connect_timeout".to_owned(),
        "MEDKG_RETRY_BUDGET".to_owned(),
        "MEDKG_BREAKER_FAILURES".to_owned(),
        "MEDKG_TIMEOUTS".to_owned(),
        "MEDKG_TLS_CA".to_owned(),
        "MEDKG_COFNIG".to_owned(),
        "MEDKG_GPU_ADDRESSES[0]".to_owned(),
    ]
    .into();
    assert_eq!(found, expected);
    assert_eq!(error.problems.len(), expected.len(), "each once: {error}");
    let text = error.to_string();
    for hint in [
        "adress: is no option; did you mean address?",
        "tls.ca: is no option; did you mean tls.ca_file?",
        "MEDKG_TIMEOUTS: is no option; did you mean MEDKG_TIMEOUT?",
        "MEDKG_TLS_CA: is no option; did you mean MEDKG_TLS_CA_FILE?",
        "MEDKG_COFNIG: is no option; did you mean MEDKG_CONFIG?",
        "timeout: is text; give a number",
        "MEDKG_RETRY_BUDGET: cannot be read; give a number",
    ] {
        assert!(text.contains(hint), "{hint}\n{text}");
    }
    assert!(!text.contains("hunter2") && !format!("{error:?} {sources:?}").contains("hunter2"));
}

#[test]
fn a_file_that_cannot_be_read_is_one_problem_beside_the_others() {
    let sources = Sources {
        environment: environment(&[("MEDKG_MAX_ATTEMPTS", "0")]),
        file: Some("nowhere/medkg.toml".into()),
        ..Sources::default()
    };
    assert_eq!(problems(&sources), ["nowhere/medkg.toml", "MEDKG_MAX_ATTEMPTS"]);
    let (_folder, file) = Folder::with("medkg.toml", "tls = 1");
    let wrong = Sources {
        file: Some(file.clone()),
        ..Sources::default()
    };
    assert_eq!(problems(&wrong), [format!("{}: tls", file.display())]);
}

#[test]
fn variables_of_others_are_left_alone() {
    let others = [
        "MEDKG_CACHE",
        "MEDKG_TEST_MODEL_DIR",
        "MEDKG_GPU_SERVER",
        "MEDKG_USE_GPU_SERVICES",
        "MEDKG_LISTEN",
        "MEDKG_SERVICES",
        "MEDKG_TLS_CERT",
        "MEDKG_TLS_KEY",
        "MEDKG_TLS_CLIENT_CA",
        "MEDKG_LEASE_STORE",
        "MEDKG_PORT",
        "MEDKG_PORT_7070_TCP_ADDR",
        "MEDKG_SERVICE_HOST",
        "MEDKG_CACHE_SERVICE_HOST",
        "MEDKG_CACHE_PORT_6379_TCP",
        "MEDKG_TLS_SERVICE_PORT",
    ];
    let variables: Vec<_> = others.iter().map(|name| (*name, "x")).collect();
    let sources = Sources {
        environment: environment(&[&variables[..], &[("PATH", "x"), ("TIMEOUT", "x")]].concat()),
        ..Sources::default()
    };
    assert!(sources.load().unwrap().origins.is_empty());
}

#[test]
fn a_group_is_there_when_it_is_named_or_has_a_member() {
    let (_folder, file) = Folder::with("medkg.yaml", "cache: {}\ntenant:\n");
    let sources = Sources {
        file: Some(file),
        ..Sources::default()
    };
    let options = sources.load().unwrap().options;
    assert!(options.cache.is_some() && options.tls.is_none() && options.tenant.is_none());
    let sources = Sources {
        environment: environment(&[
            ("MEDKG_CACHE_REDIS", "redis://127.0.0.1:1"),
            ("MEDKG_ALLOW_PLAINTEXT", "True"),
        ]),
        ..Sources::default()
    };
    let options = sources.load().unwrap().options;
    assert!(options.cache.unwrap().redis.is_some());
    assert_eq!(options.allow_plaintext, Some(true));
}

#[test]
fn variables_are_named_after_their_options() {
    assert_eq!(variable("max_batch_texts"), "MEDKG_MAX_BATCH_TEXTS");
    assert_eq!(variable("tls.ca_file"), "MEDKG_TLS_CA_FILE");
}
