//! The registry with models that are numbers: every order is filled by the test, so that each interleaving can be had.

use std::sync::mpsc::TryRecvError;

use super::*;

/// A model of so many bytes; an odd number makes sparse vectors.
#[derive(Debug, PartialEq, Eq)]
struct Weight(u64);

impl Resident for Weight {
    fn bytes(&self) -> u64 {
        self.0
    }

    fn makes_sparse(&self) -> bool {
        self.0 % 2 == 1
    }
}

const TOOK: Duration = Duration::from_secs(3);

fn spec(name: &str) -> ModelSpec {
    ModelSpec::new(Purpose::Embedding, name.to_owned(), "/models".into())
}

fn version(name: &str, revision: &str) -> ModelSpec {
    ModelSpec {
        revision: revision.to_owned(),
        ..spec(name)
    }
}

fn listed(specs: &[ModelSpec], default: Option<&str>) -> Listed {
    Listed {
        models: specs.to_vec(),
        defaults: default
            .map(|name| (Purpose::Embedding, name.to_owned()))
            .into_iter()
            .collect(),
    }
}

fn broken(name: &str) -> Error {
    Error::ModelLoadFailed {
        name: name.to_owned(),
        problem: "it is broken".to_owned(),
    }
}

/// A registry and the loader's end of it.
struct Setting {
    models: Arc<Registry<Weight>>,
    orders: Receiver<Order>,
}

impl Setting {
    /// All of `names` are ready, each of 10 bytes.
    fn ready(limit: u64, names: &[&str]) -> Self {
        let setting = Self::started(
            limit,
            listed(&names.iter().map(|name| spec(name)).collect::<Vec<_>>(), None),
        );
        for _ in names {
            assert!(setting.fill(10));
        }
        setting
    }

    fn started(limit: u64, listed: Listed) -> Self {
        let (models, orders) = Registry::new(limit);
        models.start(Vec::new(), listed);
        Self {
            models: Arc::new(models),
            orders,
        }
    }

    fn order(&self) -> Order {
        self.orders.try_recv().unwrap()
    }

    /// Loads what is ordered next, as the loader would.
    fn fill(&self, bytes: u64) -> bool {
        let order = self.order();
        let outcome = self.models.make_room(&order, bytes, None).map(|_| Weight(bytes));
        self.models.settle(&order, outcome, TOOK)
    }

    fn fail(&self) -> bool {
        let order = self.order();
        let error = broken(&order.spec.name);
        self.models.settle(&order, Err(error), TOOK)
    }

    async fn get(&self, name: &str) -> Result<Arc<Weight>, Error> {
        self.models.get(Purpose::Embedding, name, None).await
    }

    fn told(&self, name: &str) -> (&'static str, String) {
        let report = self.models.report(Purpose::Embedding, name).unwrap();
        let stage = match report.stage {
            Stage::Loading => "loading",
            Stage::Ready(_) => "ready",
            Stage::Failed => "failed",
            Stage::Unloaded => "unloaded",
        };
        (stage, report.detail)
    }

    fn serves(&self) -> bool {
        self.models.serves(Purpose::Embedding)
    }
}

#[tokio::test]
async fn names_and_the_default_lead_to_models_and_others_are_told_what_there_is() {
    let setting = Setting::started(0, listed(&[spec("a"), spec("b")], Some("b")));
    assert!(matches!(setting.get("a").await, Err(Error::ModelNotReady { .. })));
    assert!(!setting.serves());
    assert_eq!(setting.order().spec.name, "b", "the default is loaded first");
    let setting = Setting::started(0, listed(&[spec("a"), spec("b")], Some("b")));
    assert!(setting.fill(7) && setting.fill(8));
    assert_eq!(*setting.get("").await.unwrap(), Weight(7));
    assert_eq!(*setting.get("a").await.unwrap(), Weight(8));
    assert!(setting.serves());
    match setting.get("c").await.unwrap_err() {
        Error::ModelNotFound { known, .. } => assert_eq!(known, "a, b"),
        other => panic!("{other}"),
    }
    assert!(
        !setting.models.serves(Purpose::Reranking),
        "a role without models serves nobody"
    );
}

#[tokio::test]
async fn a_call_keeps_what_it_took_while_another_takes_its_place() {
    let setting = Setting::ready(0, &["a"]);
    let taken = setting.get("a").await.unwrap();
    let flight = setting.models.load(version("a", "2"));
    assert_eq!(
        *setting.get("a").await.unwrap(),
        Weight(10),
        "the old one serves while the new one is loaded"
    );
    assert!(setting.fill(20));
    assert!(matches!(flight.ended().await, Ended::Done(Ok(()))));
    assert_eq!((&*taken, &*setting.get("a").await.unwrap()), (&Weight(10), &Weight(20)));
}

#[tokio::test]
async fn what_fails_to_replace_a_model_leaves_it_in_service() {
    let setting = Setting::ready(0, &["a"]);
    let flight = setting.models.load(version("a", "2"));
    assert!(setting.fail());
    assert!(matches!(
        flight.ended().await,
        Ended::Done(Err(Error::ModelLoadFailed { .. }))
    ));
    assert_eq!(*setting.get("a").await.unwrap(), Weight(10));
    let (stage, detail) = setting.told("a");
    assert_eq!(stage, "ready");
    assert!(detail.contains("it is broken"), "{detail}");
    assert!(setting.serves());
    let again = setting.models.load(version("a", "3"));
    assert!(setting.fill(20));
    assert!(matches!(again.ended().await, Ended::Done(Ok(()))));
    assert_eq!(setting.told("a"), ("ready", String::new()));
}

#[tokio::test]
async fn a_new_model_that_fails_over_the_admin_address_leaves_no_trace() {
    let setting = Setting::ready(0, &["a"]);
    let flight = setting.models.load(spec("new"));
    assert!(setting.serves(), "loading another one takes nothing down");
    assert!(setting.fail());
    assert!(matches!(flight.ended().await, Ended::Done(Err(_))));
    assert!(matches!(setting.get("new").await, Err(Error::ModelNotFound { .. })));
    assert!(setting.serves());
}

#[tokio::test]
async fn a_model_that_fails_at_the_start_takes_its_role_down() {
    let setting = Setting::started(0, listed(&[spec("a"), spec("b")], None));
    assert!(setting.fill(10) && setting.fail());
    assert!(matches!(setting.get("b").await, Err(Error::ModelLoadFailed { .. })));
    assert_eq!(setting.told("b").0, "failed");
    assert!(!setting.serves());
}

#[tokio::test]
async fn a_later_order_supersedes_an_earlier_one_and_unloading_calls_both_off() {
    let setting = Setting::ready(0, &["a"]);
    let (first, second) = (
        setting.models.load(version("a", "2")),
        setting.models.load(version("a", "3")),
    );
    assert!(!setting.fill(20));
    assert!(matches!(first.ended().await, Ended::Superseded));
    assert!(setting.fill(30));
    assert!(matches!(second.ended().await, Ended::Done(Ok(()))));
    assert_eq!(*setting.get("a").await.unwrap(), Weight(30));

    let third = setting.models.load(version("a", "4"));
    setting.models.unload(Purpose::Embedding, "a").unwrap();
    assert!(!setting.fill(40));
    assert!(matches!(third.ended().await, Ended::Superseded));
    assert_eq!(setting.told("a").0, "unloaded");
    match setting.get("a").await.unwrap_err() {
        Error::ModelNotReady { problem, .. } => assert!(problem.contains("operator"), "{problem}"),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn what_an_operator_unloaded_counts_for_nothing_and_comes_back_by_an_order_only() {
    let setting = Setting::ready(0, &["a", "b"]);
    setting.models.unload(Purpose::Embedding, "b").unwrap();
    assert!(setting.serves());
    assert!(setting.get("b").await.is_err());
    assert!(
        matches!(setting.orders.try_recv(), Err(TryRecvError::Empty)),
        "a call must not bring it back"
    );
    setting.models.load(spec("b"));
    assert!(setting.fail());
    let (stage, detail) = setting.told("b");
    assert_eq!(stage, "unloaded");
    assert!(detail.contains("it is broken"), "{detail}");
    setting.models.unload(Purpose::Embedding, "a").unwrap();
    assert!(!setting.serves(), "nobody is left to answer");
}

#[tokio::test]
async fn the_model_asked_for_longest_ago_leaves_and_many_calls_bring_it_back_once() {
    let setting = Setting::ready(30, &["default", "b", "c"]);
    setting.get("b").await.unwrap();
    setting.models.load(spec("new"));
    assert!(setting.fill(10));
    assert_eq!(setting.told("default").0, "ready");
    assert_eq!(setting.told("c").0, "unloaded");
    assert!(setting.told("c").1.contains("\"new\""));
    assert!(setting.serves(), "an evicted model can answer");

    let calls: Vec<_> = (0..50)
        .map(|_| {
            let models = Arc::clone(&setting.models);
            tokio::spawn(async move { models.get(Purpose::Embedding, "c", None).await })
        })
        .collect();
    let order = loop {
        match setting.orders.try_recv() {
            Ok(order) => break order,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    assert_eq!(setting.told("c").0, "loading");
    assert_eq!(setting.models.make_room(&order, 10, None).unwrap(), ["b"]);
    assert!(setting.models.settle(&order, Ok(Weight(11)), TOOK));
    for call in calls {
        assert_eq!(*call.await.unwrap().unwrap(), Weight(11));
    }
    assert!(setting.orders.try_recv().is_err(), "it was loaded once");
}

#[tokio::test]
async fn a_model_in_use_stays_and_so_does_what_it_replaced_until_its_calls_end() {
    let setting = Setting::ready(25, &["default", "b"]);
    let running = setting.get("b").await.unwrap();
    let flight = setting.models.load(spec("new"));
    let order = setting.order();
    let refused = setting.models.make_room(&order, 10, None).unwrap_err();
    assert!(
        matches!(
            refused,
            Error::ModelMemoryFull {
                held_bytes: 20,
                retry_after: Some(_),
                ..
            }
        ),
        "{refused}"
    );
    drop(running);
    assert_eq!(setting.models.make_room(&order, 10, None).unwrap(), ["b"]);
    assert!(setting.models.settle(&order, Ok(Weight(10)), TOOK));
    flight.ended().await;

    let running = setting.get("new").await.unwrap();
    setting.models.unload(Purpose::Embedding, "new").unwrap();
    setting.models.load(spec("new"));
    let order = setting.order();
    assert!(
        setting.models.make_room(&order, 10, None).is_err(),
        "the calls on it still hold its memory"
    );
    drop(running);
    assert!(setting.models.make_room(&order, 10, None).unwrap().is_empty());
}

#[tokio::test]
async fn what_can_never_fit_says_so_and_evicts_nobody() {
    let setting = Setting::ready(25, &["default", "b"]);
    let flight = setting.models.load(spec("huge"));
    assert!(setting.fill(26));
    let Ended::Done(Err(error)) = flight.ended().await else {
        panic!("it fits")
    };
    assert!(
        matches!(error, Error::ModelMemoryFull { retry_after: None, .. }),
        "{error}"
    );
    assert_eq!(setting.told("b").0, "ready");
    // A new version needs room beside the old one, which is not thrown out for it.
    setting.models.load(version("default", "2"));
    assert!(setting.fill(16));
    assert_eq!(setting.told("default").0, "ready");
    assert!(setting.told("default").1.contains("--model-memory"));
}

#[tokio::test]
async fn at_the_start_what_does_not_fit_waits_until_it_is_called() {
    let setting = Setting::started(20, listed(&[spec("a"), spec("b"), spec("c")], None));
    assert!(setting.fill(10) && setting.fill(10) && setting.fill(10));
    assert_eq!((setting.told("b").0, setting.told("c").0), ("ready", "unloaded"));
    assert!(setting.serves());
    let models = Arc::clone(&setting.models);
    let call = tokio::spawn(async move { models.get(Purpose::Embedding, "c", None).await });
    while setting.told("c").0 != "loading" {
        tokio::task::yield_now().await;
    }
    assert!(setting.fill(10));
    assert_eq!(*call.await.unwrap().unwrap(), Weight(10));
    assert_eq!(setting.told("b").0, "unloaded");
}

#[tokio::test(start_paused = true)]
async fn a_call_waits_for_an_evicted_model_only_if_it_has_the_time() {
    let setting = Setting::ready(20, &["default", "b"]);
    setting.models.load(spec("c"));
    assert!(setting.fill(10));
    let with = |seconds| {
        setting.models.get(
            Purpose::Embedding,
            "b",
            Some(Instant::now() + Duration::from_secs(seconds)),
        )
    };
    match with(1).await.unwrap_err() {
        Error::ModelNotReady { retry_after, .. } => assert_eq!(retry_after, TOOK),
        other => panic!("{other}"),
    }
    assert_eq!(
        setting.told("b").0,
        "loading",
        "it is loaded for the call that comes back"
    );
    assert!(matches!(with(60).await.unwrap_err(), Error::DeadlineExpired));
    setting.models.close();
    drop(setting.order());
    assert!(matches!(with(60).await.unwrap_err(), Error::ShuttingDown));
}

#[tokio::test]
async fn a_new_file_replaces_the_default_without_a_gap() {
    let old = listed(&[spec("a"), spec("b")], Some("a"));
    let setting = Setting::started(0, old.clone());
    assert!(setting.fill(1) && setting.fill(2));
    let change = Change::between(&old, listed(&[version("b", "2"), spec("c")], Some("c")));
    let flights = setting.models.begin(&change);
    assert_eq!(*setting.get("").await.unwrap(), Weight(1));
    assert_eq!(*setting.get("b").await.unwrap(), Weight(2));
    assert!(setting.serves());
    assert!(setting.fill(20) && setting.fill(30));
    for flight in flights {
        assert!(matches!(flight.ended().await, Ended::Done(Ok(()))));
    }
    assert_eq!(*setting.get("").await.unwrap(), Weight(1));
    setting.models.conclude(change);
    assert_eq!(*setting.get("").await.unwrap(), Weight(30));
    assert_eq!(*setting.get("b").await.unwrap(), Weight(20));
    assert!(matches!(setting.get("a").await, Err(Error::ModelNotFound { .. })));
    let names: Vec<String> = setting
        .models
        .list(Purpose::Embedding)
        .iter()
        .map(|r| r.spec.name.clone())
        .collect();
    assert_eq!(names, ["b", "c"]);
}

#[tokio::test]
async fn a_mistake_in_a_model_added_live_takes_nobody_down() {
    let old = listed(&[spec("a")], None);
    let setting = Setting::started(0, old.clone());
    assert!(setting.fill(1));
    let change = Change::between(&old, listed(&[spec("a"), spec("bad")], None));
    setting.models.begin(&change);
    assert!(setting.fail());
    setting.models.conclude(change);
    assert_eq!(setting.told("bad").0, "failed");
    assert!(setting.serves());
}

#[test]
fn calls_during_many_swaps_see_whole_models_only() {
    let setting = Setting::ready(0, &["a"]);
    let models = &setting.models;
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let reading = tokio::runtime::Builder::new_current_thread().build().unwrap();
                    let mut last = 0;
                    while last < 500 {
                        let seen = reading.block_on(models.get(Purpose::Embedding, "a", None)).unwrap().0;
                        assert!(seen >= last, "an old version came back");
                        last = seen;
                    }
                })
            })
            .collect();
        for revision in 11..=500 {
            let flight = models.load(version("a", &revision.to_string()));
            assert!(setting.fill(revision));
            assert!(matches!(runtime.block_on(flight.ended()), Ended::Done(Ok(()))));
        }
        for reader in readers {
            reader.join().unwrap();
        }
    });
}

#[test]
fn a_model_may_be_sparse_until_it_is_known() {
    let specs = ["a", "b", "c"].map(spec);
    let setting = Setting::started(0, listed(&specs, None));
    assert_eq!(
        (setting.models.maybe_sparse(), setting.models.sparse()),
        (names("abc"), names(""))
    );
    assert!(setting.fill(10));
    assert_eq!(
        (setting.models.maybe_sparse(), setting.models.sparse()),
        (names("bc"), names(""))
    );
    let order = setting.order();
    assert!(setting.models.settle(&order, Err(broken("b")), TOOK));
    assert_eq!(
        setting.models.maybe_sparse(),
        names("c"),
        "what cannot be loaded is nobody's answer"
    );
    assert!(setting.fill(11));
    setting.models.unload(Purpose::Embedding, "c").unwrap();
    assert_eq!(
        (setting.models.maybe_sparse(), setting.models.sparse()),
        (names("c"), names("c"))
    );
}

fn names(letters: &str) -> Vec<String> {
    letters.chars().map(String::from).collect()
}
