//! What is a configuration, and what every problem is called.

use super::*;

fn problems(options: &ClientOptions) -> Vec<String> {
    ClientConfig::try_new(options)
        .unwrap_err()
        .problems
        .into_iter()
        .map(|p| p.field)
        .collect()
}

#[test]
fn no_options_at_all_are_a_configuration() {
    let config = ClientConfig::try_new(&ClientOptions::default()).unwrap();
    for service in Service::ALL {
        assert_eq!(config.targets(service)[0].as_str(), ADDRESS);
    }
}

// requirement: isolation 5.3
#[test]
fn every_problem_is_listed_at_once() {
    let options = ClientOptions {
        addresses: Some(vec![
            "localhost:7070".into(),
            "ftp://x".into(),
            "https://ok:1".into(),
            "https://ok:1/".into(),
            "http://ok:1".into(),
        ]),
        gpu_addresses: Some(vec![]),
        tenant: Some("no spaces".into()),
        timeout: Some(0.0),
        connect_timeout: Some(f64::NAN),
        max_attempts: Some(0),
        backoff_initial: Some(2.0),
        backoff_max: Some(1.0),
        retry_budget: Some(-1.0),
        breaker_failures: Some(0),
        max_connections: Some(0),
        max_pending: Some(0),
        max_connection_age: Some(0.0),
        hedge_after: Some(-1.0),
        max_batch_texts: Some(0),
        tls: Some(TlsOptions {
            cert_file: Some("c.pem".into()),
            ..TlsOptions::default()
        }),
        ..ClientOptions::default()
    };
    let expected = [
        "addresses[0]",
        "addresses[1]",
        "addresses[3]",
        "addresses[4]",
        "gpu_addresses",
        "tls.ca_file",
        "tls.key_file",
        "tenant",
        "timeout",
        "connect_timeout",
        "backoff_max",
        "retry_budget",
        "breaker_failures",
        "max_connections",
        "max_pending",
        "max_connection_age",
        "hedge_after",
        "max_attempts",
        "max_batch_texts",
    ];
    assert_eq!(problems(&options), expected);
    let text = ClientConfig::try_new(&options).unwrap_err().to_string();
    assert_eq!(text.lines().count(), expected.len() + 1, "{text}");
}

#[test]
fn a_service_can_live_elsewhere() {
    let options = ClientOptions {
        address: Some("http://127.0.0.1:1".into()),
        reranking_addresses: Some(vec!["http://127.0.0.2:2".into(), "http://127.0.0.3:3".into()]),
        vector_addresses: Some(vec!["http://127.0.0.4:4".into()]),
        ..ClientOptions::default()
    };
    let config = ClientConfig::try_new(&options).unwrap();
    assert_eq!(config.targets(Service::Embedding).len(), 1);
    assert_eq!(config.targets(Service::Reranking)[1].as_str(), "http://127.0.0.3:3");
    assert_eq!(config.targets(Service::Vector)[0].as_str(), "http://127.0.0.4:4");
}

#[test]
fn services_that_hold_state_live_in_one_place() {
    let two = || Some(vec!["http://127.0.0.1:1".to_owned(), "http://127.0.0.2:2".to_owned()]);
    let options = ClientOptions {
        addresses: two(),
        ..ClientOptions::default()
    };
    let config = ClientConfig::try_new(&options).unwrap();
    for (service, expected) in Service::ALL.into_iter().zip([2, 2, 1, 1]) {
        assert_eq!(config.targets(service).len(), expected, "{service:?}");
        assert_eq!(config.targets(service)[0].as_str(), "http://127.0.0.1:1");
    }
    let options = ClientOptions {
        vector_addresses: two(),
        gpu_addresses: two(),
        ..ClientOptions::default()
    };
    assert_eq!(problems(&options), ["vector_addresses", "gpu_addresses"]);
}

#[test]
fn a_password_in_an_address_is_refused_and_not_repeated() {
    let options = ClientOptions {
        address: Some("http://me:hunter2@host:1".into()),
        ..ClientOptions::default()
    };
    let error = ClientConfig::try_new(&options).unwrap_err();
    assert_eq!(error.problems[0].field, "address");
    assert!(!format!("{error} {error:?}").contains("hunter2"));
}

#[test]
fn plaintext_stays_on_the_loopback_unless_it_is_allowed() {
    let tried = |address: &str, allow_plaintext| {
        let options = ClientOptions {
            address: Some(address.to_owned()),
            allow_plaintext,
            ..ClientOptions::default()
        };
        ClientConfig::try_new(&options)
    };
    for near in [
        "http://localhost:1",
        "http://LocalHost",
        "http://127.9.8.7:1",
        "http://[::1]:1",
        // What it leads to is looked at later.
        "dns+http://gpu.example.org:1",
    ] {
        assert!(tried(near, None).is_ok(), "{near}");
    }
    for far in [
        "http://gpu:1",
        "http://localhost.example.org:1",
        "http://10.0.0.1:1",
        "http://0.0.0.0:1",
        "http://[fe80::1]:1",
        "http://127.example.org:1",
    ] {
        for allowed in [None, Some(false)] {
            let problems = tried(far, allowed).unwrap_err().problems;
            assert_eq!(problems.len(), 1);
            assert_eq!(problems[0].field, "address");
            let text = &problems[0].description;
            assert!(text.contains("https") && text.contains("allow_plaintext"), "{text}");
        }
        assert!(tried(far, Some(true)).is_ok(), "{far}");
    }
}

#[test]
fn https_wants_authorities() {
    let options = ClientOptions {
        address: Some("https://host:1".into()),
        ..ClientOptions::default()
    };
    assert_eq!(problems(&options), ["tls"]);
}

#[test]
fn a_long_first_back_off_raises_the_default_cap() {
    let options = ClientOptions {
        backoff_initial: Some(10.0),
        ..ClientOptions::default()
    };
    assert!(ClientConfig::try_new(&options).is_ok());
}
