//! All collections against a plain model: every operation, of two tenants, with the files closed and opened in between.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::LazyLock;

use clap::Parser as _;
use proptest::prelude::*;
use serde_json::json;

use super::ask::{Ask, Queries};
use super::collection::Found;
use super::filter::{Filter, Scalar, Test};
use super::store::{Metric, Points, Storage, Wanted};
use super::*;
use crate::config::{Arguments, DeviceChoice, ServerConfig};
use crate::device;

const ALL: Wanted = Wanted {
    vectors: true,
    payloads: true,
    sparse: true,
};
const DIMENSION: usize = 2;
const TENANTS: [&str; 2] = ["a", "b"];
const NAMES: [&str; 2] = ["x", "y"];

/// Vector and number (in the payload, if there is one) of each id.
type Plain = BTreeMap<String, ([i8; DIMENSION], Option<i8>)>;
/// By tenant and name.
type Model = BTreeMap<(&'static str, &'static str), (Metric, Plain)>;

/// One engine for all cases: it has threads of its own.
static ENGINE: LazyLock<Arc<Engine>> = LazyLock::new(|| {
    let line = "gpu-server --listen 127.0.0.1:0 --services vector --device cpu --threads 1 --data-dir /nowhere";
    let config = ServerConfig::try_new(Arguments::try_parse_from(line.split_whitespace()).unwrap()).unwrap();
    Engine::start(&config, device::probe(DeviceChoice::Cpu)).unwrap()
});

#[derive(Debug, Clone)]
enum Step {
    Create(Metric, bool),
    Upsert(Vec<(u8, [i8; DIMENSION], Option<i8>)>),
    Delete(Vec<u8>),
    Search(Vec<[i8; DIMENSION]>, usize, Option<i8>),
    Count(Option<i8>),
    Fetch(Vec<u8>),
    List,
    Drop,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let vector = || [-3_i8..4, -3_i8..4].prop_filter("no direction", |vector| vector.iter().any(|&x| x != 0));
    let number = || proptest::option::of(0_i8..4);
    let point = (vector(), number());
    let points = proptest::collection::btree_map(0_u8..12, point, 1..8);
    let metric = prop_oneof![Just(Metric::Dot), Just(Metric::L2)];
    prop_oneof![
        3 => (metric, any::<bool>()).prop_map(|(metric, exist_ok)| Step::Create(metric, exist_ok)),
        6 => points.prop_map(|map| Step::Upsert(map.into_iter().map(|(id, (v, n))| (id, v, n)).collect())),
        2 => proptest::collection::vec(0_u8..12, 1..6).prop_map(Step::Delete),
        4 => (proptest::collection::vec(vector(), 1..3), 1_usize..6, number())
            .prop_map(|(queries, k, number)| Step::Search(queries, k, number)),
        2 => number().prop_map(Step::Count),
        2 => proptest::collection::vec(0_u8..12, 1..6).prop_map(Step::Fetch),
        1 => Just(Step::List),
        1 => Just(Step::Drop),
        1 => Just(Step::Reopen),
    ]
}

fn properties(metric: Metric) -> Properties {
    Properties {
        dimension: DIMENSION,
        metric,
        storage: Storage::F32,
        sparse_dimension: 0,
    }
}

fn wide(vector: [i8; DIMENSION]) -> Vec<f32> {
    vector.into_iter().map(f32::from).collect()
}

fn bytes(rows: &[f32]) -> Vec<u8> {
    bytemuck::cast_slice(rows).to_vec()
}

fn names(ids: Vec<u8>) -> Vec<String> {
    ids.into_iter().map(|id| format!("p{id:02}")).collect()
}

fn payload(number: Option<i8>) -> String {
    number.map_or_else(String::new, |n| json!({ "n": n }).to_string())
}

fn numbered(number: i8) -> Filter {
    let scalar = Scalar::Integer(number.into());
    Filter::Test {
        field: vec!["n".to_owned()],
        test: Test::Between(Bound::Included(scalar.clone()), Bound::Included(scalar)),
        path: "filter".to_owned(),
    }
}

fn score(metric: Metric, a: [i8; DIMENSION], b: [i8; DIMENSION]) -> f64 {
    let pairs = a.into_iter().zip(b).map(|(x, y)| (f64::from(x), f64::from(y)));
    let score = match metric {
        Metric::L2 => -pairs.map(|(x, y)| (x - y).powi(2)).sum::<f64>().sqrt(),
        _ => pairs.map(|(x, y)| x * y).sum(),
    };
    // One zero of the two, which `total_cmp` tells apart: they are equal scores.
    score + 0.0
}

/// What a search should find: id, score and payload.
fn nearest(
    (metric, plain): &(Metric, Plain),
    query: [i8; DIMENSION],
    k: usize,
    wanted: Option<i8>,
) -> Vec<(String, f64, String)> {
    let mut found: Vec<(String, f64, String)> = plain
        .iter()
        .filter(|(_, (_, number))| wanted.is_none() || *number == wanted)
        .map(|(id, (vector, number))| (id.clone(), score(*metric, query, *vector), payload(*number)))
        .collect();
    found.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    found.truncate(k);
    found
}

/// Whether a filter's field is known.
fn known(plain: &Plain, wanted: Option<i8>) -> bool {
    wanted.is_none() || plain.is_empty() || plain.values().any(|(_, number)| number.is_some())
}

/// A search, a count or a fetch, and how it compares with the model.
async fn read(collection: &Collection, model: &(Metric, Plain), step: Step) {
    let (_, plain) = model;
    match step {
        Step::Search(queries, k, wanted) => {
            let ask = Ask {
                queries: Queries::Dense(queries.iter().flat_map(|&query| wide(query)).collect()),
                k,
                filter: wanted.map(numbered),
                threshold: None,
            };
            let found = collection.search(ask, true).await;
            if !known(plain, wanted) {
                assert!(matches!(found, Err(Error::InvalidField { .. })), "{found:?}");
                return;
            }
            for (query, found) in queries.into_iter().zip(found.unwrap()) {
                let found: Found = found;
                let wanted = nearest(model, query, k, wanted);
                assert_eq!(found.len(), wanted.len());
                for ((hit, payload), (id, score, text)) in found.iter().zip(&wanted) {
                    assert_eq!((&*hit.id, payload), (id.as_str(), text));
                    assert!((f64::from(hit.score) - score).abs() < 1e-5);
                }
            }
        }
        Step::Count(wanted) => {
            let count = plain.values().filter(|(_, number)| *number == wanted).count() as u64;
            match wanted {
                None => assert_eq!(collection.points(), plain.len() as u64),
                Some(number) if known(plain, wanted) => {
                    assert_eq!(collection.count(numbered(number)).await.unwrap(), count);
                }
                Some(number) => assert!(collection.count(numbered(number)).await.is_err()),
            }
        }
        Step::Fetch(ids) => {
            let ids = names(ids);
            let (there, missing): (Vec<String>, Vec<String>) =
                ids.iter().cloned().partition(|id| plain.contains_key(id));
            let found = collection.fetch(ids, ALL).await.unwrap();
            assert_eq!((&found.ids, found.missing), (&there, missing));
            let rows: Vec<f32> = there.iter().flat_map(|id| wide(plain[id].0)).collect();
            assert_eq!(found.vectors, bytes(&rows));
            let payloads: Vec<String> = there.iter().map(|id| payload(plain[id].1)).collect();
            assert_eq!(found.payloads, payloads);
        }
        other => panic!("{other:?} reads nothing"),
    }
}

/// Does a step on one collection, and compares what it says with the model.
async fn run(collections: &Collections, model: &mut Model, (tenant, name): (&'static str, &'static str), step: Step) {
    let key = (tenant, name);
    match step {
        Step::Create(metric, exist_ok) => {
            let created = collections.create(tenant, name, properties(metric), exist_ok).await;
            match model.get(&key) {
                None => assert!(created.unwrap()),
                Some((there, _)) if exist_ok && *there == metric => assert!(!created.unwrap()),
                Some(_) => assert!(matches!(created, Err(Error::CollectionExists { .. }))),
            }
            model.entry(key).or_insert_with(|| (metric, Plain::new()));
        }
        Step::Drop => match model.remove(&key) {
            Some((_, plain)) => assert_eq!(collections.drop(tenant, name).await.unwrap(), plain.len() as u64),
            None => assert!(collections.drop(tenant, name).await.is_err()),
        },
        Step::List => {
            let listed = collections.list(tenant);
            let own = model.iter().filter(|((owner, _), _)| *owner == tenant);
            let wanted: Vec<_> = own
                .map(|((_, name), (metric, _))| ((*name).to_owned(), properties(*metric)))
                .collect();
            assert_eq!(listed, wanted);
        }
        step => {
            let handle = collections.get(tenant, name);
            let Some(there) = model.get_mut(&key) else {
                assert!(matches!(handle, Err(Error::CollectionNotFound { .. })));
                return;
            };
            let handle = handle.unwrap();
            let collection = handle.open().unwrap();
            match step {
                Step::Upsert(points) => {
                    let ids = names(points.iter().map(|(id, ..)| *id).collect());
                    let rows: Vec<f32> = points.iter().flat_map(|(_, vector, _)| wide(*vector)).collect();
                    let sent = Points {
                        ids: ids.clone(),
                        vectors: bytes(&rows).into(),
                        payloads: points.iter().map(|(.., number)| payload(*number)).collect(),
                        ..Points::default()
                    };
                    let new = ids.iter().filter(|id| !there.1.contains_key(*id)).count() as u64;
                    assert_eq!(collection.upsert(sent).await.unwrap(), new);
                    there.1.extend(
                        ids.into_iter()
                            .zip(points.into_iter().map(|(_, vector, n)| (vector, n))),
                    );
                }
                Step::Delete(ids) => {
                    let (ids, before) = (names(ids), there.1.len());
                    there.1.retain(|id, _| !ids.contains(id));
                    let gone = (before - there.1.len()) as u64;
                    assert_eq!(collection.remove(ids).await.unwrap(), gone);
                }
                step => read(collection, there, step).await,
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn collections_equal_a_plain_model_over_restarts(
        steps in proptest::collection::vec(
            (proptest::sample::select(&TENANTS[..]), proptest::sample::select(&NAMES[..]), step()),
            1..40,
        ),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let open = || async {
                let (alarm, _) = tokio::sync::watch::channel(0);
                Collections::open(folder.path(), Arc::clone(&ENGINE), alarm).await.unwrap()
            };
            let mut collections = open().await;
            let mut model = Model::new();
            for (tenant, name, step) in steps {
                if matches!(step, Step::Reopen) {
                    collections.close();
                    drop(collections);
                    collections = open().await;
                    continue;
                }
                run(&collections, &mut model, (tenant, name), step).await;
            }
            assert!(collections.refused().is_empty());
        });
    }
}
