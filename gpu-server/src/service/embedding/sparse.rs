//! `GenerateSparseEmbeddings`: vectors over the vocabulary, of which a model leaves most elements zero (SPLADE, Formal et
//! al. 2021), sent as compressed sparse rows.

use std::sync::Arc;

use medkg_proto::v1;

use super::super::{usage, validate};
use super::{Texts, embed, encoding, validate_texts};
use crate::engine::Engine;
use crate::engine::job::{Caller, Rows, Terms};
use crate::engine::models::{Purpose, ReadyModel};
use crate::engine::registry::Resident as _;
use crate::error::Error;

/// Wire bytes of a term at most: the id as a varint, and the weight.
const TERM_BYTES: usize = 5 + 4;

/// Answers one call.
///
/// # Errors
/// As the wire says.
pub async fn generate(
    engine: &Arc<Engine>,
    request: v1::GenerateSparseEmbeddingsRequest,
    caller: &Caller,
) -> Result<v1::GenerateSparseEmbeddingsResponse, Error> {
    engine.check()?;
    let too_long = validate::too_long("truncation", request.truncation)?;
    validate_texts(&request.texts)?;
    let model = model(engine, &request.model, caller).await?;
    let texts = Texts {
        all: request.texts,
        prompt: String::new(),
        too_long,
    };
    let answer = embed(engine, &model, texts, caller).await?;
    let Rows::Sparse(rows) = &answer.computed.rows else {
        return Err(Error::internal("a sparse model made dense rows"));
    };
    let rows = SparseRows::of(rows, request.max_terms as usize)?;
    let bytes = rows.token_ids.len() * TERM_BYTES + answer.token_counts.len() * encoding::BESIDE + encoding::FRAME;
    if bytes > medkg_proto::MAX_MESSAGE_BYTES {
        let terms = rows.token_ids.len();
        let problem =
            format!("have {terms} terms, which is more than a message holds; send fewer at once, or set max_terms");
        return Err(Error::invalid("texts", problem));
    }
    Ok(v1::GenerateSparseEmbeddingsResponse {
        offsets: rows.offsets,
        token_ids: rows.token_ids,
        weights: bytemuck::cast_slice(&rows.weights).to_vec().into(),
        usage: Some(usage(engine, answer.tokens, &answer.computed)),
        token_counts: answer.token_counts,
        truncated: answer.truncated,
        model: model.name.clone(),
        model_digest: model.digest.clone(),
        dimension: u32::try_from(answer.computed.width).unwrap_or(u32::MAX),
    })
}

/// The sparse model called `name`; an empty name means the first one. It is waited for as [`Engine::model`] does it, and so
/// is every model before it of which nobody knows yet whether it is one.
async fn model(engine: &Engine, name: &str, caller: &Caller) -> Result<Arc<ReadyModel>, Error> {
    let candidates = if name.is_empty() {
        engine.models.maybe_sparse()
    } else {
        vec![name.to_owned()]
    };
    for candidate in candidates {
        let model = engine.model(Purpose::Embedding, &candidate, caller.deadline).await?;
        if model.makes_sparse() {
            return Ok(model);
        }
    }
    let known = engine.models.sparse();
    Err(Error::ModelNotFound {
        name: name.chars().take(127).collect(),
        known: if known.is_empty() {
            "no model of this server makes sparse vectors".to_owned()
        } else {
            known.join(", ")
        },
    })
}

/// Compressed sparse rows.
#[derive(Debug, Default)]
struct SparseRows {
    /// Where each row begins, and where the last one ends.
    offsets: Vec<u32>,
    /// Ascending within a row.
    token_ids: Vec<u32>,
    /// One per id, above 0.
    weights: Vec<f32>,
}

impl SparseRows {
    /// Of each row the `most` largest terms (0 for all). Of equal ones those with the smaller ids stay.
    fn of(rows: &[Terms], most: usize) -> Result<Self, Error> {
        let mut all = Self {
            offsets: vec![0],
            ..Self::default()
        };
        let mut terms: Vec<(u32, f32)> = Vec::new();
        for row in rows {
            terms.clear();
            terms.extend_from_slice(row);
            if most > 0 && terms.len() > most {
                terms.select_nth_unstable_by(most - 1, |a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
                terms.truncate(most);
                terms.sort_unstable_by_key(|&(id, _)| id);
            }
            all.token_ids.extend(terms.iter().map(|&(id, _)| id));
            all.weights.extend(terms.iter().map(|&(_, weight)| weight));
            all.offsets
                .push(u32::try_from(all.token_ids.len()).map_err(Error::internal)?);
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn rows_keep_the_largest_in_order_of_their_ids(
            rows in prop::collection::vec(prop::collection::btree_map(0_u32..17, prop_oneof![0.1_f32..4.0, Just(2.0_f32)], 0..17), 0..7),
            most in 0_usize..20,
        ) {
            let rows: Vec<Terms> = rows.into_iter().map(|row| row.into_iter().collect()).collect();
            let sparse = SparseRows::of(&rows, most).unwrap();
            prop_assert_eq!(sparse.offsets.len(), rows.len() + 1);
            prop_assert_eq!(sparse.offsets[0], 0);
            for (row, ends) in rows.iter().zip(sparse.offsets.windows(2)) {
                let range = ends[0] as usize..ends[1] as usize;
                // The plain way: sort all terms, take the first ones, sort by id.
                let mut expected = row.to_vec();
                expected.sort_by(|a, b| b.1.total_cmp(&a.1));
                expected.truncate(if most == 0 { 17 } else { most });
                expected.sort_by_key(|term| term.0);
                let found: Vec<_> = sparse.token_ids[range.clone()].iter().copied().zip(sparse.weights[range].iter().copied()).collect();
                prop_assert_eq!(found, expected);
            }
            prop_assert_eq!(*sparse.offsets.last().unwrap() as usize, sparse.weights.len());
        }
    }

    #[test]
    fn a_text_without_a_term_is_an_empty_row() {
        let rows: [Terms; 3] = [Terms::default(), [(1, 3.0)].into(), [(1, 1.0)].into()];
        let sparse = SparseRows::of(&rows, 0).unwrap();
        assert_eq!(
            (sparse.offsets, sparse.token_ids, sparse.weights),
            (vec![0, 0, 1, 2], vec![1, 1], vec![3.0, 1.0])
        );
    }
}
