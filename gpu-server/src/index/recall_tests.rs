//! Tests of the comparison itself: what is right, what is wrong, and when it ends.

use super::*;
use crate::index::store::{Metric, Points, Properties, Storage};

fn store(folder: &std::path::Path, metric: Metric, vectors: &[[f32; 2]]) -> Store {
    let properties = Properties {
        dimension: 2,
        metric,
        storage: Storage::F32,
        sparse_dimension: 0,
    };
    let store = Store::create(&folder.join("c.redb"), properties).unwrap();
    let points = Points {
        ids: (0..vectors.len()).map(|i| format!("p{i}")).collect(),
        vectors: bytemuck::cast_slice(vectors).to_vec().into(),
        payloads: Vec::new(),
        ..Points::default()
    };
    store.write(&points, || Ok(())).unwrap();
    store
}

fn forever() -> (Limit, Waiting) {
    Limit::new(None)
}

const CHECK: Check = Check {
    sample: 1,
    k: 2,
    sparse: false,
    seed: 0,
};

/// What is told of one query, (1, 0), for which search returned `ids`.
fn told(store: &Store, ids: &[&str]) -> Recall {
    let sample = Sample {
        ids: vec!["query".to_owned()],
        vectors: Drawn::Dense(vec![1.0, 0.0]),
    };
    let returned = vec![ids.iter().map(|id| Arc::from(*id)).collect()];
    let (limit, _waiting) = forever();
    compare(store, CHECK, &sample, &limit, || Ok(returned)).unwrap()
}

#[test]
fn the_two_best_are_right_and_anything_else_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(
        folder.path(),
        Metric::Dot,
        &[[3.0, 0.0], [2.0, 9.0], [1.0, 9.0], [-1.0, 0.0]],
    );
    let right = told(&store, &["p0", "p1"]);
    assert_eq!(
        (right.expected, right.found, right.mismatches, right.points),
        (2, 2, 0, 4)
    );
    let swapped = told(&store, &["p1", "p0"]);
    assert_eq!((swapped.found, swapped.mismatches), (2, 1), "the order is wrong");
    for (wrong, found) in [
        (&["p0", "p2"][..], 1),
        (&["p2", "p3"], 0),
        (&["p0"], 1),
        (&["p0", "no such point"], 1),
        (&[], 0),
    ] {
        let recall = told(&store, wrong);
        assert_eq!(
            (recall.expected, recall.found, recall.mismatches),
            (2, found, 1),
            "{wrong:?}"
        );
        assert_eq!(recall.mismatched, ["query"]);
    }
}

#[test]
fn scores_within_the_tolerance_may_change_places() {
    let folder = tempfile::tempdir().unwrap();
    let near = 2.0 - 4.0 * f32::EPSILON;
    let store = store(
        folder.path(),
        Metric::L2,
        &[[2.0, 0.0], [near, 0.0], [9.0, 0.0], [8.0, 0.0]],
    );
    for right in [["p0", "p1"], ["p1", "p0"]] {
        assert_eq!(told(&store, &right).mismatches, 0);
    }
    assert_eq!(told(&store, &["p0", "p3"]).mismatches, 1);
}

#[test]
fn a_collection_of_fewer_points_than_k_expects_all_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path(), Metric::Cosine, &[[0.5, 0.5]]);
    let recall = told(&store, &["p0"]);
    assert_eq!((recall.expected, recall.found, recall.mismatches), (1, 1, 0));
}

#[test]
fn a_sample_is_the_same_for_a_seed_and_another_one_for_another() {
    let folder = tempfile::tempdir().unwrap();
    let vectors: Vec<[f32; 2]> = (0..500).map(|i: u16| [f32::from(i), 1.0]).collect();
    let store = store(folder.path(), Metric::Dot, &vectors);
    let (limit, _waiting) = forever();
    let check = |seed| Check {
        sample: 50,
        seed,
        ..CHECK
    };
    let drawn = |seed| draw(&store, check(seed), &limit).unwrap();
    let sample = drawn(7);
    assert_eq!(sample.ids, drawn(7).ids);
    assert_ne!(sample.ids, drawn(8).ids);
    assert_eq!(sample.ids.len(), 50);
    let Drawn::Dense(rows) = &sample.vectors else {
        panic!("{sample:?}")
    };
    for (id, vector) in sample.ids.iter().zip(rows.chunks_exact(2)) {
        let row: usize = id[1..].parse().unwrap();
        assert_eq!(vector, vectors[row], "{id}");
    }
    // Each point is as likely as another: over many seeds every part of the ids is drawn about equally often.
    let mut parts = [0_u32; 5];
    for seed in 0..200 {
        for id in drawn(seed).ids {
            parts[id[1..].parse::<usize>().unwrap() / 100] += 1;
        }
    }
    assert!(parts.iter().all(|&part| (1_800..2_200).contains(&part)), "{parts:?}");
}

#[test]
fn it_ends_with_the_deadline_and_with_its_caller() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path(), Metric::Dot, &[[1.0, 0.0]]);
    let (expired, _waiting) = Limit::new(Some(Instant::now()));
    assert!(matches!(draw(&store, CHECK, &expired), Err(Error::DeadlineExpired)));
    let (left, waiting) = forever();
    assert_eq!(draw(&store, CHECK, &left).unwrap().ids, ["p0"]);
    drop(waiting);
    assert!(matches!(draw(&store, CHECK, &left), Err(Error::DeadlineExpired)));
}

/// Points p0, p1, … of one term each, with these weights; 0 is no sparse vector.
fn sparse_store(folder: &std::path::Path, weights: &[f32]) -> Store {
    let properties = Properties {
        dimension: 1,
        metric: Metric::Cosine,
        storage: Storage::F32,
        sparse_dimension: 9,
    };
    let store = Store::create(&folder.join("c.redb"), properties).unwrap();
    let mut ends = Vec::new();
    let mut values = Vec::new();
    for &weight in weights {
        values.extend(Some(weight).filter(|weight| *weight != 0.0));
        ends.push(values.len());
    }
    let points = Points {
        ids: (0..weights.len()).map(|i| format!("p{i}")).collect(),
        vectors: bytemuck::cast_slice(&vec![1.0_f32; weights.len()]).to_vec().into(),
        payloads: Vec::new(),
        sparse: Rows::try_new(ends, vec![4; values.len()], values).unwrap(),
    };
    store.write(&points, || Ok(())).unwrap();
    store
}

#[test]
fn only_points_with_a_sparse_vector_are_drawn_and_compared() {
    let folder = tempfile::tempdir().unwrap();
    let store = sparse_store(folder.path(), &[0.0, 2.0, 0.0, 3.0, -1.0]);
    let (limit, _waiting) = forever();
    let check = Check {
        sample: 9,
        k: 2,
        sparse: true,
        seed: 5,
    };
    let sample = draw(&store, check, &limit).unwrap();
    let mut drawn = sample.ids.clone();
    drawn.sort();
    assert_eq!(drawn, ["p1", "p3", "p4"]);
    let Drawn::Sparse(rows) = &sample.vectors else {
        panic!("{sample:?}")
    };
    for (row, id) in sample.ids.iter().enumerate() {
        let weight = [2.0, 3.0, -1.0][drawn.iter().position(|other| other == id).unwrap()];
        assert_eq!(rows.row(row), (&[4][..], &[weight][..]), "{id}");
    }
    let told = |of: &dyn Fn(&str) -> Vec<&'static str>| {
        let lists = sample.ids.iter().map(|id| of(id).into_iter().map(Arc::from).collect());
        let returned: Vec<Returned> = lists.collect();
        compare(&store, check, &sample, &limit, || Ok(returned)).unwrap()
    };
    // The negative query has the order the other way round.
    let right = |id: &str| if id == "p4" { vec!["p4", "p1"] } else { vec!["p3", "p1"] };
    let recall = told(&right);
    assert_eq!(
        (recall.expected, recall.found, recall.mismatches, recall.points),
        (6, 6, 0, 3)
    );
    let recall = told(&|id| if id == "p1" { vec!["p3", "p4"] } else { right(id) });
    assert_eq!((recall.found, recall.mismatched), (5, vec!["p1".to_owned()]));
    // A point without a sparse vector is none that may be found, and one that is missing is missed.
    let recall = told(&|id| if id == "p3" { vec!["p3", "p0"] } else { right(id) });
    assert_eq!((recall.found, recall.mismatched), (5, vec!["p3".to_owned()]));
    let recall = told(&|id| if id == "p3" { vec!["p3"] } else { right(id) });
    assert_eq!((recall.found, recall.mismatched), (5, vec!["p3".to_owned()]));
}

#[test]
fn queries_that_few_points_share_a_term_with_expect_those_few() {
    let folder = tempfile::tempdir().unwrap();
    let store = sparse_store(folder.path(), &[0.0, 2.0, 0.0]);
    let (limit, _waiting) = forever();
    let check = Check { sparse: true, ..CHECK };
    let sample = draw(&store, check, &limit).unwrap();
    let recall = compare(&store, check, &sample, &limit, || Ok(vec![vec!["p1".into()]])).unwrap();
    assert_eq!(
        (recall.expected, recall.found, recall.mismatches, recall.points),
        (1, 1, 0, 1)
    );
}
