//! What collections and searches are for the wire.

use medkg_proto::v1;

use crate::index::ask::Hit;
use crate::index::collection::Found;
use crate::index::fusion::Standing;
use crate::index::store::{Metric, Properties, Storage};

/// A collection's properties.
pub fn describe(name: &str, properties: Properties) -> v1::Collection {
    let metric = match properties.metric {
        Metric::Cosine => v1::Metric::Cosine,
        Metric::Dot => v1::Metric::Dot,
        Metric::L2 => v1::Metric::L2,
    };
    let storage = match properties.storage {
        Storage::F32 => v1::DataType::F32,
        Storage::F16 => v1::DataType::F16,
        Storage::Bf16 => v1::DataType::Bf16,
    };
    let dimension = u32::try_from(properties.dimension).unwrap_or(u32::MAX);
    v1::Collection {
        storage: storage.into(),
        name: name.to_owned(),
        dimension,
        metric: metric.into(),
        sparse_dimension: properties.sparse_dimension,
    }
}

/// The hits of one query.
pub fn hits(found: Found) -> v1::SearchHits {
    let rank = |standing: Option<Standing>| standing.map(|standing| standing.rank);
    let score = |standing: Option<Standing>| standing.map(|standing| standing.score);
    let point = |(hit, payload): (Hit, String)| v1::ScoredPoint {
        id: hit.id.to_string(),
        score: hit.score,
        payload,
        dense_rank: rank(hit.dense),
        dense_score: score(hit.dense),
        sparse_rank: rank(hit.sparse),
        sparse_score: score(hit.sparse),
    };
    v1::SearchHits {
        points: found.into_iter().map(point).collect(),
    }
}
