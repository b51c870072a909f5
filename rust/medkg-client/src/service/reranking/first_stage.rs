//! The order of the search that found the documents, where nobody can rerank them and the caller allows it.
//!
//! No score is made up: documents keep their first-stage scores, and the relevance that a cross-encoder would have given is
//! NaN.

use super::{Query, RankedDocument, Rankings};
use crate::call::Call;
use crate::error::ClientError;
use crate::service::Usage;

/// The documents of each query by falling score, the first `top_n` of them; equal ones as they came. None if a query has no
/// documents, or they have no scores that can be compared.
pub(super) fn order(queries: &[Query], top_n: Option<u32>) -> Option<Vec<Vec<RankedDocument>>> {
    let most = top_n.filter(|most| *most > 0).map_or(usize::MAX, |most| most as usize);
    let ranked = |query: &Query| {
        let scores = query.first_stage_scores.as_ref()?;
        if scores.is_empty() || !scores.iter().all(|score| score.is_finite()) {
            return None;
        }
        let document = |(index, score): (u32, &f32)| RankedDocument {
            index,
            score: *score,
            relevance: f32::NAN,
        };
        let mut documents: Vec<RankedDocument> = (0..).zip(scores).map(document).collect();
        documents.sort_by(|a, b| b.score.total_cmp(&a.score));
        documents.truncate(most);
        Some(documents)
    };
    queries.iter().map(ranked).collect()
}

/// The answer that the rankings are, after `error`.
pub(super) fn answer(rankings: Vec<Vec<RankedDocument>>, call: &Call, error: &ClientError) -> Rankings {
    Rankings {
        rankings,
        model: String::new(),
        model_digest: String::new(),
        truncated_pairs: 0,
        usage: Usage {
            retries: u64::from(error.attempts.saturating_sub(1)),
            ..Usage::default()
        },
        request_id: call.request_id.to_string(),
        trace_id: call.trace.trace_id_hex(),
        degraded: Some(format!("in the order of the first-stage scores: {}", error.message)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(scores: Option<&[f32]>) -> Query {
        let scores = scores.map(<[f32]>::to_vec);
        Query {
            text: "q".to_owned(),
            documents: vec!["d".to_owned(); scores.as_ref().map_or(1, Vec::len)],
            first_stage_scores: scores,
        }
    }

    #[test]
    fn documents_come_by_falling_score_and_equal_ones_as_they_came() {
        let queries = [query(Some(&[0.5, -1.0, 0.7, 0.5])), query(Some(&[3.0]))];
        let ranked = order(&queries, Some(3)).unwrap();
        let indices: Vec<Vec<u32>> = ranked.iter().map(|r| r.iter().map(|d| d.index).collect()).collect();
        assert_eq!(indices, [vec![2, 0, 3], vec![0]]);
        assert!(ranked.iter().flatten().all(|document| document.relevance.is_nan()));
        assert_eq!(order(&queries, None).unwrap()[0].len(), 4);
    }

    #[test]
    fn what_has_no_order_is_not_ordered() {
        for scores in [None, Some(&[][..]), Some(&[1.0, f32::NAN]), Some(&[f32::INFINITY])] {
            assert!(
                order(&[query(Some(&[1.0])), query(scores)], None).is_none(),
                "{scores:?}"
            );
        }
    }
}
