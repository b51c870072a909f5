//! An answer while its parts come in, in any order. Every promise of the wire about a part is checked before it is used.

use std::collections::BTreeMap;
use std::ops::Range;

use medkg_proto::v1;

use super::vectors::{self, Dtype, Vectors};
use super::{Embeddings, How, SparseEmbeddings};
use crate::call::{Answer, Call};
use crate::service::Usage;

/// What dense and sparse answers have in common.
#[derive(Debug)]
struct Parts {
    token_counts: Vec<u32>,
    truncated: Vec<u32>,
    /// Name and digest, once a part has come.
    model: Option<(String, String)>,
    /// Elements of a vector; 0 until a part has come.
    dimension: usize,
    /// Texts without an answer.
    missing: usize,
    usage: Usage,
    /// Why a part is not what was asked for.
    degraded: Option<String>,
}

/// What a part says beside its vectors.
struct Part {
    token_counts: Vec<u32>,
    truncated: Vec<u32>,
    model: String,
    digest: String,
    dimension: usize,
    usage: Option<v1::Usage>,
    retries: u32,
    degraded: Option<String>,
}

impl Parts {
    fn new(total: usize) -> Self {
        Self {
            token_counts: vec![0; total],
            truncated: Vec::new(),
            model: None,
            dimension: 0,
            missing: total,
            usage: Usage::default(),
            degraded: None,
        }
    }

    fn add(&mut self, range: &Range<usize>, part: Part) -> Result<(), String> {
        if part.token_counts.len() != range.len() {
            return Err(format!(
                "{} texts were answered with {} token counts",
                range.len(),
                part.token_counts.len()
            ));
        }
        match &self.model {
            None => {
                self.model = Some((part.model, part.digest));
                self.dimension = part.dimension;
            }
            Some((model, digest)) if *digest != part.digest => {
                return Err(format!(
                    "parts of one call were answered by different models ({model} {digest} and {} {}); \
                     give every server the same model",
                    part.model, part.digest
                ));
            }
            Some(_) if self.dimension != part.dimension => {
                return Err(format!(
                    "parts of one call have vectors of {} and of {} elements",
                    self.dimension, part.dimension
                ));
            }
            Some(_) => {}
        }
        self.token_counts[range.clone()].copy_from_slice(&part.token_counts);
        for index in part.truncated {
            let index = usize::try_from(index).ok().filter(|index| *index < range.len());
            let index = index.and_then(|index| u32::try_from(range.start + index).ok());
            self.truncated
                .push(index.ok_or("an index of a shortened text is out of range")?);
        }
        self.usage.add(part.usage, part.retries);
        self.degraded = self.degraded.take().or(part.degraded);
        self.missing -= range.len();
        Ok(())
    }

    /// Name and digest of the model, if every text has its answer.
    fn finish(&mut self) -> Option<(String, String)> {
        self.truncated.sort_unstable();
        self.model.take().filter(|_| self.missing == 0)
    }
}

/// Dense vectors: one array of exactly `texts × dimension` elements, made when the first part says what the dimension
/// is. Every part is written into its own rows, so nothing is put together afterwards.
#[derive(Debug)]
pub(super) struct Dense {
    total: usize,
    dtype: Dtype,
    /// What was asked for; None for whatever the model has.
    dimension: Option<usize>,
    vectors: Option<Vectors>,
    parts: Parts,
}

impl Dense {
    pub(super) fn new(total: usize, how: &How) -> Self {
        let dimension = how.dimensions.filter(|dimension| *dimension > 0);
        Self {
            total,
            dtype: how.dtype.unwrap_or_default(),
            dimension: dimension.map(|dimension| dimension as usize),
            vectors: None,
            parts: Parts::new(total),
        }
    }

    pub(super) fn add(
        &mut self,
        range: &Range<usize>,
        answer: Answer<v1::GenerateEmbeddingsResponse>,
    ) -> Result<(), String> {
        let Answer {
            message,
            retries,
            degraded,
        } = answer;
        let tensor = message.embeddings.ok_or("the answer has no embeddings")?;
        let dimension = vectors::check(&tensor, range.len(), self.dtype)?;
        if let Some(wanted) = self.dimension.filter(|wanted| *wanted != dimension) {
            return Err(format!("{wanted} elements were asked for, and {dimension} came"));
        }
        let part = Part {
            token_counts: message.token_counts,
            truncated: message.truncated,
            model: message.model,
            digest: message.model_digest,
            dimension,
            usage: message.usage,
            retries,
            degraded,
        };
        self.parts.add(range, part)?;
        if range.len() == self.total {
            self.vectors = Some(Vectors::read(self.dtype, tensor));
            return Ok(());
        }
        let vectors = self
            .vectors
            .get_or_insert_with(|| Vectors::zeros(self.dtype, self.total, dimension));
        vectors.write(range.clone(), dimension, &tensor);
        Ok(())
    }

    pub(super) fn finish(mut self, call: &Call) -> Option<Embeddings> {
        let (model, model_digest) = self.parts.finish()?;
        Some(Embeddings {
            vectors: self.vectors?,
            rows: self.total,
            dimension: self.parts.dimension,
            token_counts: self.parts.token_counts,
            truncated: self.parts.truncated,
            model,
            model_digest,
            usage: self.parts.usage,
            request_id: call.request_id.to_string(),
            trace_id: call.trace.trace_id_hex(),
            degraded: self.parts.degraded,
        })
    }
}

/// Sparse vectors: how long they are is known only when all are there, so parts are kept until then.
#[derive(Debug)]
pub(super) struct Sparse {
    rows: BTreeMap<usize, Rows>,
    parts: Parts,
}

#[derive(Debug)]
struct Rows {
    offsets: Vec<u32>,
    ids: Vec<i32>,
    weights: Vec<f32>,
}

impl Sparse {
    pub(super) fn new(total: usize) -> Self {
        Self {
            rows: BTreeMap::new(),
            parts: Parts::new(total),
        }
    }

    pub(super) fn add(
        &mut self,
        range: &Range<usize>,
        answer: Answer<v1::GenerateSparseEmbeddingsResponse>,
    ) -> Result<(), String> {
        let Answer {
            message,
            retries,
            degraded,
        } = answer;
        let rows = Rows::check(&message, range.len())?;
        let part = Part {
            token_counts: message.token_counts,
            truncated: message.truncated,
            model: message.model,
            digest: message.model_digest,
            dimension: message.dimension as usize,
            usage: message.usage,
            retries,
            degraded,
        };
        self.parts.add(range, part)?;
        self.rows.insert(range.start, rows);
        Ok(())
    }

    pub(super) fn finish(mut self, call: &Call) -> Option<SparseEmbeddings> {
        let (model, model_digest) = self.parts.finish()?;
        let terms = self.rows.values().map(|rows| rows.ids.len()).sum();
        let mut offsets = Vec::with_capacity(self.parts.token_counts.len() + 1);
        let (mut token_ids, mut weights) = (Vec::with_capacity(terms), Vec::with_capacity(terms));
        offsets.push(0);
        for rows in self.rows.into_values() {
            let start = i64::try_from(token_ids.len()).ok()?;
            offsets.extend(rows.offsets[1..].iter().map(|offset| start + i64::from(*offset)));
            token_ids.extend(rows.ids);
            weights.extend(rows.weights);
        }
        Some(SparseEmbeddings {
            offsets,
            token_ids,
            weights,
            dimension: self.parts.dimension,
            token_counts: self.parts.token_counts,
            truncated: self.parts.truncated,
            model,
            model_digest,
            usage: self.parts.usage,
            request_id: call.request_id.to_string(),
            trace_id: call.trace.trace_id_hex(),
            degraded: self.parts.degraded,
        })
    }
}

impl Rows {
    fn check(message: &v1::GenerateSparseEmbeddingsResponse, texts: usize) -> Result<Self, String> {
        let (offsets, ids) = (&message.offsets, &message.token_ids);
        let ends = (offsets.first().copied(), offsets.last().map(|end| *end as usize));
        if offsets.len() != texts + 1 || ends != (Some(0), Some(ids.len())) || !offsets.is_sorted() {
            return Err(format!(
                "{texts} texts and {} terms were answered with offsets that do not part them",
                ids.len()
            ));
        }
        if message.dimension == 0 || message.weights.len() != ids.len() * 4 {
            return Err(format!(
                "{} bytes of weights came for {} terms",
                message.weights.len(),
                ids.len()
            ));
        }
        let rows = offsets.windows(2).map(|ends| &ids[ends[0] as usize..ends[1] as usize]);
        let fits = |row: &[u32]| row.is_sorted_by(|a, b| a < b) && row.last().is_none_or(|id| *id < message.dimension);
        if !rows.into_iter().all(fits) {
            return Err("token ids are not ascending, or lie outside the vocabulary".to_owned());
        }
        let weights = message.weights.as_chunks().0;
        let weights: Vec<f32> = weights.iter().map(|w| f32::from_le_bytes(*w)).collect();
        if weights.iter().any(|weight| !(weight.is_finite() && *weight > 0.0)) {
            return Err("a weight is not finite and above 0".to_owned());
        }
        let ids = ids.iter().map(|id| i32::try_from(*id)).collect::<Result<_, _>>();
        Ok(Self {
            offsets: offsets.clone(),
            ids: ids.map_err(|_| "a token id does not fit into 31 bits")?,
            weights,
        })
    }
}
