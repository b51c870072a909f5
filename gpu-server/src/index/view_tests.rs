//! The view against a plain model: the same steps, with the points in a map and every score in f64.

use std::collections::BTreeMap;
use std::ops::Bound;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::ask::{Ask, Queries};
use super::super::columns;
use super::super::filter::{Scalar, Test};
use super::*;

/// Vector and payload of each id.
type Plain = BTreeMap<String, (Vec<f32>, Value)>;

const FIELDS: [&str; 3] = ["a", "b", "c"];

fn score(metric: Metric, a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum::<f64>();
    match metric {
        Metric::Dot => dot(a, b),
        Metric::Cosine => dot(a, b) / (dot(a, a).sqrt() * dot(b, b).sqrt()),
        Metric::L2 => -a
            .iter()
            .zip(b)
            .map(|(&x, &y)| (f64::from(x) - f64::from(y)).powi(2))
            .sum::<f64>()
            .sqrt(),
    }
}

fn upsert(view: &mut View, ids: &[Arc<str>], rows: &[f32], read: Read) {
    let staged = view.stage(ids, bytemuck::cast_slice(rows)).unwrap();
    view.apply(ids, staged, read).unwrap();
}

fn vector() -> impl Strategy<Value = Vec<f32>> {
    // Few distinct values, so that equal scores happen; no zero vector.
    let signed = proptest::collection::vec((-2_i8..3).prop_map(f32::from), 3);
    signed.prop_filter("no direction", |vector| vector.iter().any(|&x| x != 0.0))
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        (0..4).prop_map(|n| json!(n)),
        (0..4).prop_map(|n| json!(f64::from(n) / 2.0)),
        "[xyz]".prop_map(|text| json!(text)),
        any::<bool>().prop_map(|yes| json!(yes)),
    ]
}

fn payload() -> impl Strategy<Value = Value> {
    let field = prop_oneof![
        4 => value(),
        2 => proptest::collection::vec(value(), 0..3).prop_map(Value::Array),
        1 => Just(Value::Null),
        1 => Just(json!({"inner": 1})),
    ];
    proptest::collection::btree_map(proptest::sample::select(&FIELDS[..]), field, 0..4).prop_map(|map| json!(map))
}

#[derive(Debug, Clone)]
enum Step {
    Upsert(Vec<(u8, (Vec<f32>, Value))>),
    Remove(Vec<u8>),
    /// A filter over one field, so that columns are there early and have to follow the writes after it.
    Count(&'static str),
}

fn step() -> impl Strategy<Value = Step> {
    let point = (vector(), payload());
    prop_oneof![
        3 => proptest::collection::btree_map(0_u8..20, point, 1..8).prop_map(|m| Step::Upsert(m.into_iter().collect())),
        1 => proptest::collection::vec(0_u8..20, 1..6).prop_map(Step::Remove),
        1 => proptest::sample::select(&FIELDS[..]).prop_map(Step::Count),
    ]
}

fn scalar(value: &Value) -> Scalar {
    match value {
        Value::Bool(yes) => Scalar::Boolean(*yes),
        Value::String(text) => Scalar::Text(text.as_str().into()),
        number => match number.as_i64() {
            Some(whole) => Scalar::Integer(whole),
            None => Scalar::Float(number.as_f64().unwrap()),
        },
    }
}

/// A filter and what it means, written a second time.
#[derive(Debug, Clone)]
enum Want {
    In(&'static str, Vec<Value>),
    Range(&'static str, f64, bool, f64),
    Exists(&'static str),
    And(Vec<Want>),
    Or(Vec<Want>),
    Not(Box<Want>),
}

impl Want {
    fn filter(&self) -> Filter {
        let test = |field: &str, test| Filter::Test {
            field: vec![field.to_owned()],
            test,
            path: format!("filter.{field}"),
        };
        match self {
            Self::In(field, values) => {
                let mut values: Vec<Scalar> = values.iter().map(scalar).collect();
                values.sort_by(Scalar::order);
                test(field, Test::In(values))
            }
            Self::Range(field, low, open, high) => {
                let low = Scalar::Float(*low);
                let low = if *open {
                    Bound::Excluded(low)
                } else {
                    Bound::Included(low)
                };
                test(field, Test::Between(low, Bound::Included(Scalar::Float(*high))))
            }
            Self::Exists(field) => test(field, Test::Exists),
            Self::And(parts) => Filter::And(parts.iter().map(Self::filter).collect()),
            Self::Or(parts) => Filter::Or(parts.iter().map(Self::filter).collect()),
            Self::Not(part) => Filter::Not(Box::new(part.filter())),
        }
    }

    fn means(&self, payload: &Value) -> bool {
        let any = |field: &str, holds: &dyn Fn(&Value) -> bool| match payload.get(field) {
            Some(Value::Array(elements)) => elements.iter().any(holds),
            Some(value) => holds(value),
            None => false,
        };
        let same = |a: &Value, b: &Value| a == b || (a.is_number() && b.is_number() && a.as_f64() == b.as_f64());
        match self {
            Self::In(field, values) => any(field, &|found| values.iter().any(|value| same(value, found))),
            Self::Range(field, low, open, high) => any(field, &|found| {
                found.as_f64().is_some_and(|found| {
                    let above = if *open { found > *low } else { found >= *low };
                    above && found <= *high
                })
            }),
            Self::Exists(field) => payload.get(field).is_some_and(|value| !value.is_null()),
            Self::And(parts) => parts.iter().all(|part| part.means(payload)),
            Self::Or(parts) => parts.iter().any(|part| part.means(payload)),
            Self::Not(part) => !part.means(payload),
        }
    }
}

fn want() -> impl Strategy<Value = Want> {
    let field = || proptest::sample::select(&FIELDS[..]);
    let half = || (0..7).prop_map(|n| f64::from(n) / 2.0);
    let leaf = prop_oneof![
        (field(), proptest::collection::vec(value(), 1..4)).prop_map(|(field, values)| Want::In(field, values)),
        (field(), half(), any::<bool>(), half())
            .prop_map(|(field, low, open, high)| Want::Range(field, low, open, high)),
        field().prop_map(Want::Exists),
    ];
    leaf.prop_recursive(4, 16, 3, |inner| {
        let parts = || proptest::collection::vec(inner.clone(), 1..4);
        prop_oneof![
            parts().prop_map(Want::And),
            parts().prop_map(Want::Or),
            inner.clone().prop_map(|part| Want::Not(Box::new(part))),
        ]
    })
}

fn read_of(plain: &Plain, fields: &[Field]) -> (Vec<Arc<str>>, Read) {
    let payloads: Vec<String> = plain.values().map(|(_, payload)| payload.to_string()).collect();
    let ids = plain.keys().map(|id| id.as_str().into()).collect();
    (ids, columns::read(fields, payloads.iter().map(String::as_str)))
}

/// What the view finds once it was given the columns that it asks for; None for a field that is in no payload.
fn with_columns<T>(
    view: &mut View,
    plain: &Plain,
    filter: &Filter,
    work: impl Fn(&mut View) -> Result<Option<T>, Error>,
) -> Option<T> {
    for _ in 0..2 {
        match work(view) {
            Ok(Some(found)) => return Some(found),
            Ok(None) => {
                let fields: Vec<Field> = filter.fields().into_iter().map(|(field, _)| field.clone()).collect();
                let (ids, read) = read_of(plain, &fields);
                view.add_columns(&ids, read);
            }
            Err(Error::InvalidField { .. }) => return None,
            Err(other) => panic!("{other}"),
        }
    }
    panic!("the view asks for columns that it has");
}

fn apply(view: &mut View, plain: &mut Plain, step: Step) {
    let name = |id: u8| format!("p{id:02}");
    match step {
        Step::Upsert(points) => {
            let points: Plain = points.into_iter().map(|(id, point)| (name(id), point)).collect();
            let rows: Vec<f32> = points.values().flat_map(|(vector, _)| vector.clone()).collect();
            let (ids, read) = read_of(&points, &view.fields());
            upsert(view, &ids, &rows, read);
            plain.extend(points);
        }
        Step::Remove(ids) => {
            let ids: Vec<String> = ids.into_iter().map(name).collect();
            view.remove(&ids).unwrap();
            plain.retain(|id, _| !ids.contains(id));
        }
        Step::Count(field) => {
            let want = Want::Exists(field);
            let filter = want.filter();
            let known = plain.is_empty() || plain.values().any(|(_, payload)| payload.get(field).is_some());
            let means = plain.values().filter(|(_, payload)| want.means(payload)).count();
            let found = with_columns(view, plain, &filter, |view| view.count(&filter));
            assert_eq!(found, known.then_some(means));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn search_equals_a_plain_model(
        steps in proptest::collection::vec(step(), 1..12),
        queries in proptest::collection::vec(vector(), 1..3),
        k in 1_usize..8,
        want in proptest::option::of(want()),
        threshold in proptest::option::of(-3_i8..4),
        metric in prop_oneof![Just(Metric::Cosine), Just(Metric::Dot), Just(Metric::L2)],
        storage in prop_oneof![Just(Storage::F32), Just(Storage::F16), Just(Storage::Bf16)],
    ) {
        // Small whole numbers are the same in all types; unit vectors are not.
        let storage = if metric == Metric::Cosine { Storage::F32 } else { storage };
        let mut view = View::new(Properties { dimension: 3, metric, storage, sparse_dimension: 0 }, Device::Cpu).unwrap();
        let mut plain = Plain::new();
        for step in steps {
            apply(&mut view, &mut plain, step);
        }
        prop_assert_eq!(view.len(), plain.len());
        // Between the scores that whole numbers give under dot and L2, so that rounding decides nothing.
        let threshold = threshold.map(|whole| f32::from(whole) + 0.3);
        let filter = want.as_ref().map(Want::filter);
        let ask = Ask { queries: Queries::Dense(queries.concat()), k, filter: filter.clone(), threshold };
        let found = match &filter {
            None => view.search(&ask).unwrap(),
            Some(filter) => with_columns(&mut view, &plain, filter, |view| view.search(&ask)),
        };
        let Some(found) = found else {
            let fields = filter.as_ref().map(Filter::fields).unwrap_or_default();
            let known = |field: &Field| plain.values().any(|(_, payload)| payload.get(&field[0]).is_some());
            prop_assert!(fields.iter().any(|(field, _)| !known(field)) && !plain.is_empty());
            return Ok(());
        };
        for (query, found) in queries.iter().zip(found) {
            let mut best: Vec<(f64, &String)> = plain
                .iter()
                .filter(|(_, (_, payload))| want.as_ref().is_none_or(|want| want.means(payload)))
                .map(|(id, (vector, _))| (score(metric, query, vector), id))
                .filter(|(score, _)| threshold.is_none_or(|least| *score >= f64::from(least)))
                .collect();
            best.sort_by(|(x, a), (y, b)| y.partial_cmp(x).unwrap().then_with(|| a.cmp(b)));
            best.truncate(k);
            prop_assert_eq!(found.len(), best.len());
            for (hit, (wanted, id)) in found.iter().zip(&best) {
                prop_assert!((f64::from(hit.score) - wanted).abs() < 1e-5);
                // Whole numbers are exact under dot and L2. Under cosine float32 may part scores that are equal.
                if metric == Metric::Cosine {
                    prop_assert!((score(metric, query, &plain[&*hit.id].0) - wanted).abs() < 1e-6);
                } else {
                    prop_assert_eq!(&*hit.id, id.as_str());
                }
            }
            for pair in found.windows(2) {
                let order = pair[0].score.total_cmp(&pair[1].score);
                prop_assert!(order.then_with(|| pair[1].id.cmp(&pair[0].id)).is_gt());
            }
        }
    }
}

/// One point per score, under dot.
fn view_of(ids: &[&str], scores: &[f32]) -> View {
    let metric = Metric::Dot;
    let storage = Storage::F32;
    let mut view = View::new(
        Properties {
            dimension: 1,
            metric,
            storage,
            sparse_dimension: 0,
        },
        Device::Cpu,
    )
    .unwrap();
    let ids: Vec<Arc<str>> = ids.iter().map(|id| Arc::from(*id)).collect();
    upsert(&mut view, &ids, scores, Read::new());
    view
}

fn best(view: &mut View, query: f32, k: usize) -> Vec<String> {
    let ask = Ask {
        queries: Queries::Dense(vec![query]),
        k,
        filter: None,
        threshold: None,
    };
    let found = view.search(&ask).unwrap().unwrap();
    found[0].iter().map(|hit| hit.id.to_string()).collect()
}

#[test]
fn equal_scores_are_ordered_by_id_also_at_the_cut() {
    let mut view = view_of(&["d", "b", "c", "a", "e"], &[1.0, 1.0, 1.0, 1.0, 2.0]);
    assert_eq!(best(&mut view, 1.0, 3), ["e", "a", "b"]);
}

#[test]
fn the_two_zeros_are_equal() {
    let mut view = view_of(&["b", "a", "c"], &[0.0, -0.0, 0.0]);
    assert_eq!(best(&mut view, 1.0, 2), ["a", "b"]);
}

#[test]
fn the_smallest_ids_win_over_several_tiles_where_everything_ties() {
    let count = usize::try_from(TILE).unwrap() * 2 + 5;
    let ids: Vec<String> = (0..count).rev().map(|id| format!("{id:06}")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let mut view = view_of(&ids, &vec![1.0; count]);
    let wanted: Vec<String> = (0..10_000).map(|id| format!("{id:06}")).collect();
    assert_eq!(best(&mut view, 1.0, 10_000), wanted);
}

#[test]
fn half_the_memory_and_the_scores_of_the_rounded_rows_summed_in_f32() {
    // Sums of 256 products in f32 are far nearer than 1e-4; sums in half precision are hundredths away.
    let (count, dimension) = (5_000, 256);
    let mut random = numbers(7);
    let rows: Vec<f32> = (0..count * dimension).map(|_| random()).collect();
    let query: Vec<f32> = (0..dimension).map(|_| random()).collect();
    let names: Vec<Arc<str>> = (0..count).map(|id| Arc::from(format!("{id:06}"))).collect();
    for (storage, round) in [
        (Storage::F16, (|x| half::f16::from_f32(x).to_f32()) as fn(f32) -> f32),
        (Storage::Bf16, |x| half::bf16::from_f32(x).to_f32()),
    ] {
        let metric = Metric::Dot;
        let mut view = View::new(
            Properties {
                dimension,
                metric,
                storage,
                sparse_dimension: 0,
            },
            Device::Cpu,
        )
        .unwrap();
        upsert(&mut view, &names, &rows, Read::new());
        assert_eq!(view.memory().device, (count * dimension * 2) as u64);
        let ask = Ask {
            queries: Queries::Dense(query.clone()),
            k: 20,
            filter: None,
            threshold: None,
        };
        let found = view.search(&ask).unwrap().unwrap();
        let rounded: Vec<f32> = rows.iter().map(|&x| round(x)).collect();
        let mut scores: Vec<f64> = rounded
            .chunks(dimension)
            .map(|row| score(metric, &query, row))
            .collect();
        for hit in &found[0] {
            let place: usize = hit.id.parse().unwrap();
            assert!(
                (f64::from(hit.score) - scores[place]).abs() < 1e-4,
                "{storage:?} {hit:?}"
            );
        }
        scores.sort_by(|a, b| b.total_cmp(a));
        for (hit, wanted) in found[0].iter().zip(scores) {
            assert!((f64::from(hit.score) - wanted).abs() < 1e-4, "{storage:?}");
        }
    }
}

/// Numbers in [-1, 1) that are the same in every run.
fn numbers(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed;
    move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        f32::from(u16::try_from(state >> 48).unwrap()) / 32_768.0 - 1.0
    }
}
