//! What goes into vector calls and what comes out.

use std::ops::Range;

use bytes::Bytes;
use medkg_proto::v1;

use super::{ELEMENT, Filter, RankFusion, SparseMatrix, SparseRows, Standing};
use crate::service::Usage;

/// How near two vectors are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Metric {
    /// Cosine of the angle.
    Cosine,
    /// Inner product.
    Dot,
    /// Minus the Euclidean distance.
    L2,
}

impl Metric {
    /// `cosine`, `dot` or `l2`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cosine => "cosine",
            Self::Dot => "dot",
            Self::L2 => "l2",
        }
    }
}

/// Element type of a collection's rows on the device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Storage {
    /// 32-bit floats.
    #[default]
    F32,
    /// IEEE 754 half precision.
    F16,
    /// bfloat16.
    Bf16,
}

impl Storage {
    /// `f32`, `f16` or `bf16`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }
}

/// Elements of the vectors of a new collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dimensions {
    /// Of each dense vector.
    pub dense: u32,
    /// Of each sparse vector; 0 for none.
    pub sparse: u32,
}

/// A collection.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CollectionInfo {
    /// Its name.
    pub name: String,
    /// Elements of every vector.
    pub dimension: u32,
    /// How nearness is measured.
    pub metric: Metric,
    /// Element type on the device.
    pub storage: Storage,
    /// Elements of every sparse vector; 0 for none.
    pub sparse_dimension: u32,
    /// True if this call made it.
    pub created: bool,
}

/// Vectors as the bytes of a row-major, little-endian float32 array.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matrix {
    data: Bytes,
    pub(super) rows: usize,
    pub(super) dimension: usize,
}

impl Matrix {
    /// None unless `data` has `rows × dimension × 4` bytes.
    pub fn try_new(data: Bytes, rows: usize, dimension: usize) -> Option<Self> {
        let expected = rows.checked_mul(dimension)?.checked_mul(ELEMENT)?;
        (data.len() == expected).then_some(Self { data, rows, dimension })
    }

    /// Number of vectors.
    pub fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn tensor(&self, range: Range<usize>) -> v1::Tensor {
        let width = self.dimension * ELEMENT;
        let narrow = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        v1::Tensor {
            data: self.data.slice(range.start * width..range.end * width),
            dtype: v1::DataType::F32.into(),
            shape: vec![narrow(range.len()), narrow(self.dimension)],
            scales: Vec::new(),
        }
    }
}

/// Points to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Points {
    /// One id per vector.
    pub ids: Vec<String>,
    /// The vectors.
    pub vectors: Matrix,
    /// None, or one JSON object per id; an empty string means none.
    pub payloads: Option<Vec<String>>,
    /// None, or one sparse vector per id; a row without terms means none.
    pub sparse: Option<SparseMatrix>,
}

/// What a write did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Upserted {
    /// Ids that were new.
    pub inserted: u64,
    /// Ids that were replaced.
    pub replaced: u64,
}

/// What to look for.
#[derive(Debug, Clone, PartialEq)]
pub struct SearchRequest {
    /// The collection.
    pub collection: String,
    /// The dense queries; None means that only sparse vectors are searched.
    pub queries: Option<Matrix>,
    /// The sparse queries, one for each dense one where there are both.
    pub sparse: Option<SparseMatrix>,
    /// How the two are fused; None means the server's defaults.
    pub fusion: Option<RankFusion>,
    /// Points to return for each.
    pub k: u32,
    /// Whether to return payloads.
    pub with_payload: bool,
    /// Which points are compared; None means all.
    pub filter: Option<Filter>,
    /// Points below this score are left out; None means that none is.
    pub score_threshold: Option<f32>,
}

/// What to fetch of a point beside its id.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fetch {
    /// Its vector.
    pub vectors: bool,
    /// Its payload.
    pub payloads: bool,
    /// Its sparse vector.
    pub sparse: bool,
}

/// The points of some ids.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub struct Fetched {
    /// Those that are there, in the order asked for.
    pub ids: Vec<String>,
    /// Their vectors one after the other; None if not asked for.
    pub vectors: Option<Vec<f32>>,
    /// One per id as JSON, None where there is none; None if not asked for.
    pub payloads: Option<Vec<Option<String>>>,
    /// Their sparse vectors; None if not asked for.
    pub sparse: Option<SparseRows>,
    /// Those that are not there, in the order asked for.
    pub missing: Vec<String>,
}

/// A point that was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Hit {
    /// Its id.
    pub id: String,
    /// Larger is nearer.
    pub score: f32,
    /// Where the dense search has it; None if it was not fused with a sparse one, or did not find it.
    pub dense: Option<Standing>,
    /// Where the sparse search has it; None if it was not fused with a dense one, or did not find it.
    pub sparse: Option<Standing>,
    /// Its payload as JSON; None if it has none or none was asked for.
    pub payload: Option<String>,
}

/// One list per query.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Hits {
    /// `hits[i]` belongs to query i; best first.
    pub hits: Vec<Vec<Hit>>,
    /// What it cost.
    pub usage: Usage,
}
