//! The inverted index against a plain model: points in a map, and every product in f64.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

type Vector = BTreeMap<u32, f32>;

/// The index as a view keeps it: with ids in the order of places.
#[derive(Default)]
struct Kept {
    ids: Vec<Arc<str>>,
    index: Postings,
}

fn rows<'a>(vectors: impl IntoIterator<Item = &'a Vector>) -> Rows {
    let (mut ends, mut indices, mut values) = (Vec::new(), Vec::new(), Vec::new());
    for vector in vectors {
        indices.extend(vector.keys());
        values.extend(vector.values());
        ends.push(indices.len());
    }
    Rows::try_new(ends, indices, values).unwrap()
}

impl Kept {
    fn place(&self, id: &str) -> Option<usize> {
        self.ids.iter().position(|other| &**other == id)
    }

    fn write(&mut self, points: &BTreeMap<String, Vector>) {
        let places: Vec<usize> = points
            .keys()
            .map(|id| {
                self.place(id).unwrap_or_else(|| {
                    self.ids.push(id.as_str().into());
                    self.ids.len() - 1
                })
            })
            .collect();
        self.index.write(&places, &rows(points.values())).unwrap();
    }

    fn remove(&mut self, id: &str) {
        if let Some(place) = self.place(id) {
            self.ids.swap_remove(place);
            self.index.swap_remove(place);
        }
    }

    fn search(&self, queries: &Rows, k: usize, allowed: Option<&[bool]>) -> Vec<Vec<(String, f64)>> {
        let found = self.index.search(queries, k, &self.ids, allowed, 2);
        let named = |found: Vec<(usize, f64)>| {
            found
                .into_iter()
                .map(|(place, score)| (self.ids[place].to_string(), score))
        };
        found.into_iter().map(|found| named(found).collect()).collect()
    }
}

fn plainly(
    plain: &BTreeMap<String, Vector>,
    query: &Vector,
    k: usize,
    means: impl Fn(&str) -> bool,
) -> Vec<(String, f64)> {
    let mut all: Vec<(String, f64)> = plain
        .iter()
        .filter(|(id, vector)| means(id) && vector.keys().any(|term| query.contains_key(term)))
        .map(|(id, vector)| {
            let products = vector
                .iter()
                .filter_map(|(term, &x)| Some(f64::from(x) * f64::from(*query.get(term)?)));
            (id.clone(), products.sum())
        })
        .collect();
    all.sort_by(|(a, x), (b, y)| y.partial_cmp(x).unwrap().then_with(|| a.cmp(b)));
    all.truncate(k);
    all
}

/// Few terms and few weights, so that equal scores happen, and sums that end at 0.
fn vector() -> impl Strategy<Value = Vector> {
    let weight = prop_oneof![Just(-1.0_f32), Just(0.5), Just(1.0), Just(2.0)];
    proptest::collection::btree_map(0_u32..8, weight, 0..5)
}

#[derive(Debug, Clone)]
enum Step {
    Write(BTreeMap<String, Vector>),
    Remove(Vec<String>),
    /// As a write does once enough is dead.
    Sweep,
}

fn step() -> impl Strategy<Value = Step> {
    let id = || "[a-f][0-3]";
    prop_oneof![
        3 => proptest::collection::btree_map(id(), vector(), 1..8).prop_map(Step::Write),
        1 => proptest::collection::vec(id(), 1..6).prop_map(Step::Remove),
        1 => Just(Step::Sweep),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn search_equals_a_plain_model(
        steps in proptest::collection::vec(step(), 1..16),
        queries in proptest::collection::vec(vector(), 1..12),
        k in 1_usize..12,
        filtered in any::<bool>(),
    ) {
        let (mut kept, mut plain) = (Kept::default(), BTreeMap::new());
        for step in steps {
            match step {
                Step::Write(points) => {
                    kept.write(&points);
                    plain.extend(points);
                }
                Step::Remove(ids) => for id in ids {
                    kept.remove(&id);
                    plain.remove(&id);
                },
                Step::Sweep => kept.index.sweep(),
            }
            let terms: usize = plain.values().map(BTreeMap::len).sum();
            prop_assert_eq!(kept.index.living, terms);
            let lists: usize = kept.index.terms.values().map(|term| term.slots.len()).sum();
            prop_assert_eq!(kept.index.living + kept.index.dead, lists);
            prop_assert_eq!(kept.index.listed, kept.index.terms.values().map(Term::bytes).sum::<usize>());
            prop_assert!(kept.index.host_bytes() >= lists * 8 + kept.ids.len() * 4);
            prop_assert_eq!(kept.index.points(), plain.values().filter(|vector| !vector.is_empty()).count());
        }
        let means = |id: &str| !filtered || id.ends_with(['0', '2']);
        let allowed: Option<Vec<bool>> = filtered.then(|| kept.ids.iter().map(|id| means(id)).collect());
        let found = kept.search(&rows(&queries), k, allowed.as_deref());
        for (query, found) in queries.iter().zip(found) {
            prop_assert_eq!(found, plainly(&plain, query, k, means));
        }
    }

    #[test]
    fn a_row_is_the_same_after_the_file(vectors in proptest::collection::vec(vector(), 0..6)) {
        let written = rows(&vectors);
        let mut read = Rows::default();
        for row in 0..written.len() {
            read.push_bytes(&written.to_bytes(row));
        }
        prop_assert_eq!(read, written);
    }
}

/// One point for each score: they share a single term.
fn with_scores(scores: &[f32]) -> Kept {
    let mut kept = Kept::default();
    let ids = (0..scores.len()).rev().map(|id| Arc::from(format!("{id:06}")));
    kept.ids = ids.collect();
    let places: Vec<usize> = (0..scores.len()).collect();
    let ends = (1..=scores.len()).collect();
    let rows = Rows::try_new(ends, vec![3; scores.len()], scores.to_vec()).unwrap();
    kept.index.write(&places, &rows).unwrap();
    kept
}

fn one(term: u32, weight: f32) -> Rows {
    rows([&Vector::from([(term, weight)])])
}

#[test]
fn the_smallest_ids_win_over_several_tiles_where_everything_ties() {
    let kept = with_scores(&vec![1.0; 2 * TILE + 5]);
    let [found] = &kept.search(&one(3, 2.0), 3_000, None)[..] else {
        panic!("one list for one query")
    };
    let wanted: Vec<(String, f64)> = (0..3_000).map(|id| (format!("{id:06}"), 2.0)).collect();
    assert_eq!(*found, wanted);
}

#[test]
fn points_that_f32_would_tie_are_in_order() {
    // At 1,002 f32 steps by 6e-5.
    let point = |weight: f32| Vector::from([(3, weight), (5, 1_000.0)]);
    let mut kept = Kept::default();
    let points = [("a", 2.0), ("b", 2.000_01), ("c", 2.0)].map(|(id, weight)| (id.to_owned(), point(weight)));
    kept.write(&points.into_iter().collect());
    let query = rows([&Vector::from([(3, 1.0), (5, 1.0)])]);
    let ids: Vec<String> = kept.search(&query, 9, None)[0]
        .iter()
        .map(|(id, _)| id.clone())
        .collect();
    assert_eq!(ids, ["b", "a", "c"]);
}

#[test]
fn points_that_share_no_term_are_not_found() {
    let mut kept = with_scores(&[1.0]);
    kept.write(&BTreeMap::from([("far".to_owned(), Vector::from([(9, 100.0)]))]));
    for (query, found) in [(one(3, 1.0), 1), (one(4, 1.0), 0), (rows([&Vector::new()]), 0)] {
        assert_eq!(kept.search(&query, 9, None)[0].len(), found);
    }
}

#[test]
fn what_replaced_points_leave_behind_is_swept_out() {
    let mut kept = Kept::default();
    let vector: Vector = (0..100).map(|term| (term, 1.0)).collect();
    let points: BTreeMap<String, Vector> = (0..100).map(|id| (format!("{id:02}"), vector.clone())).collect();
    let mut most = 0;
    for _ in 0..50 {
        kept.write(&points);
        most = most.max(kept.index.dead);
    }
    assert!(most <= SPARE, "{most}");
    assert!(
        kept.index.host_bytes() < 4 * 8 * (SPARE + 10_000),
        "{}",
        kept.index.host_bytes()
    );
    assert_eq!(kept.search(&one(5, 1.0), 1_000, None)[0].len(), 100);
}
