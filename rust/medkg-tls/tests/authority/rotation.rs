//! What is renewed, and how an authority is exchanged for another.

use super::*;

#[test]
fn only_what_expires_soon_is_renewed_and_keeps_what_it_says() {
    // Of 90 days, 61 are over.
    let made = Made::days_ago(61);
    let now = SystemTime::now();
    let young = issue(&made.folder, "young", &client(&[], Some("young")), 40, false, now).unwrap();
    let old = (read(&made.client.certificate).unwrap(), read(&made.client.key).unwrap());
    assert!(rotate(&made.folder, 28, now).unwrap().renewed.is_empty());

    let rotation = rotate(&made.folder, 30, now).unwrap();
    let renewed: Vec<_> = rotation.renewed.iter().map(|written| &written.certificate).collect();
    assert_eq!(renewed, [&made.client.certificate, &made.server.certificate]);
    assert_eq!(
        rotation.kept.iter().map(|(path, _)| path).collect::<Vec<_>>(),
        [&young.certificate]
    );
    assert!(rotation.skipped.is_empty());
    let of = |found: &[Inspected], path: &Path| found.iter().find(|found| found.file == path).unwrap().clone();
    let found = inspect(&made.folder, 0, now).unwrap().certificates;
    let client = of(&found, &made.client.certificate);
    assert_eq!(
        (client.subject.as_str(), client.names, client.uses),
        ("CN=a", vec!["tenant:a".to_owned()], vec!["client"])
    );
    let server = of(&found, &made.server.certificate);
    assert_eq!(server.names, ["dns:localhost", "ip:127.0.0.1", "ip:::1"]);
    assert_eq!(server.uses, ["server"]);
    // Its lifetime as well: not longer each time, and not shorter.
    let left = server.not_after.duration_since(now).unwrap();
    assert!(left <= DAY * 90 && left + Duration::from_secs(2) > DAY * 90, "{left:?}");
    assert_ne!(read(&made.client.certificate).unwrap(), old.0);
    assert_ne!(read(&made.client.key).unwrap(), old.1, "with a new key");
    assert!(made.problems(30).is_empty(), "{:?}", made.problems(30));
}

#[test]
fn what_expired_is_told_and_can_still_be_renewed() {
    let made = Made::days_ago(91);
    let expired = made.problems(0);
    assert_eq!(expired.len(), 2, "{expired:?}");
    assert!(expired[0].starts_with("client-a.pem: expired"), "{expired:?}");
    rotate(&made.folder, 30, SystemTime::now()).unwrap();
    assert!(made.problems(30).is_empty());
    assert_eq!(
        made.problems(274).len(),
        3,
        "the authority has 274 days left, and the others 90"
    );
    assert!(
        made.problems(274)[0].starts_with("ca.pem: expires in 27"),
        "{:?}",
        made.problems(274)
    );
}

#[test]
fn nothing_outlives_its_authority_and_an_expired_one_signs_nothing() {
    let made = Made::days_ago(300);
    let now = SystemTime::now();
    rotate(&made.folder, 30, now).unwrap();
    // 65 days are left of 365.
    assert_eq!(made.problems(64), [] as [&str; 0]);
    assert_eq!(made.problems(65).len(), 3);
    let later = now + DAY * 66;
    let error = issue(&made.folder, "b", &client(&["b"], None), 1, false, later).unwrap_err();
    assert!(matches!(error, AuthorityError::ExpiredAuthority { .. }), "{error}");

    // What was cut short lives as long as usual under the next one.
    roll(&made.folder, Step::Add, 365, later).unwrap();
    roll(&made.folder, Step::Use, 365, later).unwrap();
    roll(&made.folder, Step::Drop, 365, later).unwrap();
    let found = inspect(&made.folder, 0, later).unwrap();
    let last = found
        .certificates
        .iter()
        .find(|found| found.uses == ["client"])
        .unwrap()
        .not_after;
    assert!(last.duration_since(later).unwrap() > DAY * 89);
}

#[tokio::test]
async fn an_authority_is_exchanged_step_by_step_and_each_step_leaves_all_working() {
    let made = Made::days_ago(0);
    let now = SystemTime::now();
    let old_root = read_to_string(made.ca()).unwrap();
    // One that never hears of the exchange.
    let elsewhere = TempDir::new().unwrap();
    let copy = |from: &Path| {
        let to = elsewhere.path().join(from.file_name().unwrap());
        std::fs::copy(from, &to).unwrap();
        to
    };
    let (certificate, key) = (copy(&made.client.certificate), copy(&made.client.key));
    let old_client = ClientTlsConfig::try_new(&copy(&made.ca()), Some((&certificate, &key)), None).unwrap();
    let step = |step| roll(&made.folder, step, 365, now);
    let refused = |step| roll(&made.folder, step, 365, now).unwrap_err().to_string();
    assert!(refused(Step::Use).contains("begin with --ca add"));
    assert!(refused(Step::Drop).contains("none to drop"));

    let before = read(&made.client.certificate).unwrap();
    let added = step(Step::Add).unwrap();
    assert_eq!((added.roots, added.rotation.renewed.len()), (2, 0));
    assert_eq!(
        read(&made.client.certificate).unwrap(),
        before,
        "nothing else has changed"
    );
    assert!(refused(Step::Add).contains("go on with --ca use"));
    assert!(refused(Step::Drop).contains("go on with --ca use"));
    assert!(made.problems(30).is_empty(), "{:?}", made.problems(30));
    // The old one still signs: not everybody has read the new ca.pem.
    issue(&made.folder, "b", &client(&["b"], None), 1, false, now).unwrap();
    let both = Server::start(&made.server_config()).await;
    both.call(&old_client).await.unwrap();

    let used = step(Step::Use).unwrap();
    assert_eq!((used.roots, used.rotation.renewed.len()), (2, 3));
    assert!(!made.folder.join("ca-next.key").exists());
    assert!(made.problems(0).is_empty(), "{:?}", made.problems(0));
    let running = Server::start(&made.server_config()).await;
    // One that trusts both and has not been renewed gets in, as do those that are.
    running.call(&made.client_config()).await.unwrap();
    both.call(&made.client_config()).await.unwrap();
    assert!(
        step(Step::Use).unwrap().rotation.renewed.is_empty(),
        "a step that was cut off can be repeated"
    );
    assert!(refused(Step::Add).contains("--ca drop"));

    let dropped = step(Step::Drop).unwrap();
    assert_eq!(dropped.roots, 1);
    assert!(!read_to_string(made.ca()).unwrap().contains(&old_root));
    let running = Server::start(&made.server_config()).await;
    running.call(&made.client_config()).await.unwrap();
    assert!(
        running.call(&old_client).await.is_err(),
        "who trusts the old one alone is left behind"
    );
    assert!(made.problems(0).is_empty() && refused(Step::Drop).contains("none to drop"));
}

#[test]
fn the_old_authority_stays_while_something_is_signed_by_it() {
    let made = Made::days_ago(0);
    let now = SystemTime::now();
    let old = read(&made.client.certificate).unwrap();
    roll(&made.folder, Step::Add, 365, now).unwrap();
    roll(&made.folder, Step::Use, 365, now).unwrap();
    std::fs::write(&made.client.certificate, &old).unwrap();
    let error = roll(&made.folder, Step::Drop, 365, now).unwrap_err().to_string();
    assert!(
        error.contains("client-a.pem is not of the authority that signs now"),
        "{error}"
    );
    assert!(
        made.problems(30)[0].contains("its key is another one's"),
        "{:?}",
        made.problems(30)
    );
    // A plain rotation mends it.
    assert_eq!(rotate(&made.folder, 30, now).unwrap().renewed.len(), 1);
    roll(&made.folder, Step::Drop, 365, now).unwrap();
}
