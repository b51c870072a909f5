//! Tests of the comparison itself: what is right, what is wrong, and when it ends.

use super::*;
use crate::index::store::{Points, Properties, Storage};

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
    seed: 0,
};

/// What is told of one query, (1, 0), for which search returned `ids`.
fn told(store: &Store, ids: &[&str]) -> Recall {
    let sample = Sample {
        ids: vec!["query".to_owned()],
        vectors: vec![1.0, 0.0],
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
    let drawn = |seed| draw(&store, Check { sample: 50, k: 1, seed }, &limit).unwrap();
    let sample = drawn(7);
    assert_eq!(sample.ids, drawn(7).ids);
    assert_ne!(sample.ids, drawn(8).ids);
    assert_eq!(sample.ids.len(), 50);
    for (id, vector) in sample.ids.iter().zip(sample.vectors.chunks_exact(2)) {
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

#[test]
fn sums_in_parts_are_the_sum() {
    for length in [0, 1, 7, 8, 9, 384, 385] {
        let a: Vec<f64> = (0..length).map(|i| f64::from(i) + 1.0).collect();
        let b: Vec<f64> = (0..length).map(|i| f64::from(i * 2) - 3.0).collect();
        let plain = 0.0 + a.iter().zip(&b).map(|(a, b)| a * b).sum::<f64>();
        assert_eq!(
            dot(&a, &b).to_bits(),
            plain.to_bits(),
            "integers are exact in any order"
        );
    }
}
