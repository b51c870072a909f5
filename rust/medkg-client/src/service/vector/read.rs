//! Reading points by id, and counting them.

use std::ops::Range;

use bytes::Bytes;
use medkg_proto::v1;

use super::{ELEMENT, Fetch, Fetched, Filter, SparseRows, Stub, VectorClient, broken, invalid};
use crate::batching;
use crate::call::{Answer, CallOptions, Method};
use crate::error::ClientError;

const FETCH: Method = Method {
    name: "FetchVectors",
    idempotent: true,
};
const COUNT: Method = Method {
    name: "CountVectors",
    idempotent: true,
};
/// As many as fit into an answer of 24 MiB, whatever they have: 32 KiB of vector and 64 KiB of payload each.
const MAX_FETCHED: usize = 256;
/// The same with 32 KiB of sparse vector beside them.
const MAX_FETCHED_WITH_SPARSE: usize = 192;

impl VectorClient {
    /// The points of any number of ids. The requests of many ids are sent side by side.
    pub async fn fetch(
        &self,
        collection: String,
        ids: Vec<String>,
        wanted: Fetch,
        options: &CallOptions,
    ) -> Result<Fetched, ClientError> {
        let call = self.caller.begin(FETCH, options)?;
        if ids.is_empty() {
            return Err(call.sign(invalid(FETCH, "ids", "is empty; give at least one id")));
        }
        let config = self.caller.config.batch;
        let most = if wanted.sparse {
            MAX_FETCHED_WITH_SPARSE
        } else {
            MAX_FETCHED
        };
        let ranges = batching::chunks(ids.iter().map(String::len), most, config.max_bytes);
        let mut parts = Vec::with_capacity(ranges.len());
        let (asked, of, own) = (&ids, &collection, &call);
        let request = |range: Range<usize>| async move {
            let message = || v1::FetchVectorsRequest {
                collection: of.clone(),
                ids: asked[range.clone()].to_vec(),
                with_vectors: wanted.vectors,
                with_payload: wanted.payloads,
                with_sparse: wanted.sparse,
            };
            let send = |channel, request| async move {
                let mut stub = Stub::new(channel).max_decoding_message_size(medkg_proto::MAX_MESSAGE_BYTES);
                stub.fetch_vectors(request).await.map(tonic::Response::into_inner)
            };
            self.caller.request(own, message, send).await
        };
        let result = batching::run(
            ranges,
            config,
            "ids",
            self.caller.needs_probe(),
            request,
            |range, answer| {
                let Answer { message, .. } = answer;
                parts.push((range.start, message));
                Ok(())
            },
        );
        result.await.map_err(|error| call.sign(error))?;
        parts.sort_by_key(|(start, _)| *start);
        let parts = parts.into_iter().map(|(_, part)| part);
        join(parts, wanted).map_err(|error| call.sign(error))
    }

    /// How many points there are, or how many match.
    pub async fn count(
        &self,
        collection: String,
        filter: Option<Filter>,
        options: &CallOptions,
    ) -> Result<u64, ClientError> {
        let call = self.caller.begin(COUNT, options)?;
        let message = || v1::CountVectorsRequest {
            collection: collection.clone(),
            filter: filter.clone().map(Into::into),
        };
        let send = |channel, request| async move {
            Stub::new(channel)
                .count_vectors(request)
                .await
                .map(tonic::Response::into_inner)
        };
        Ok(self.caller.request(&call, message, send).await?.message.count)
    }
}

fn join(parts: impl Iterator<Item = v1::FetchVectorsResponse>, wanted: Fetch) -> Result<Fetched, ClientError> {
    let mut all = Fetched {
        vectors: wanted.vectors.then(Vec::new),
        payloads: wanted.payloads.then(Vec::new),
        sparse: wanted.sparse.then(SparseRows::default),
        ..Fetched::default()
    };
    for part in parts {
        let found = part.ids.len();
        if let Some(vectors) = &mut all.vectors {
            let tensor = part.vectors.unwrap_or_default();
            let dimension = tensor.shape.get(1).map_or(0, |columns| *columns as usize);
            if tensor.dtype() != v1::DataType::F32 || tensor.data.len() != found * dimension * ELEMENT {
                return Err(broken(
                    FETCH,
                    format!("{found} ids came with {} bytes of vectors", tensor.data.len()),
                ));
            }
            vectors.extend(floats(&tensor.data));
        }
        if let Some(payloads) = &mut all.payloads {
            if part.payloads.len() != found {
                let what = format!("{found} ids came with {} payloads", part.payloads.len());
                return Err(broken(FETCH, what));
            }
            payloads.extend(
                part.payloads
                    .into_iter()
                    .map(|text| Some(text).filter(|text| !text.is_empty())),
            );
        }
        if let Some(sparse) = &mut all.sparse {
            sparse.extend(part.sparse, found).map_err(|what| broken(FETCH, what))?;
        }
        all.ids.extend(part.ids);
        all.missing.extend(part.missing);
    }
    Ok(all)
}

pub(super) fn floats(bytes: &Bytes) -> impl Iterator<Item = f32> + '_ {
    bytes
        .chunks_exact(ELEMENT)
        .map(|chunk| f32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(ids: &[&str], elements: &[f32], payloads: &[&str]) -> v1::FetchVectorsResponse {
        let tensor = v1::Tensor {
            data: elements
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect::<Vec<u8>>()
                .into(),
            dtype: v1::DataType::F32.into(),
            shape: vec![u32::try_from(ids.len()).unwrap(), 2],
            scales: Vec::new(),
        };
        v1::FetchVectorsResponse {
            ids: ids.iter().map(ToString::to_string).collect(),
            vectors: Some(tensor),
            payloads: payloads.iter().map(ToString::to_string).collect(),
            missing: vec!["no".to_owned()],
            sparse: None,
        }
    }

    const BOTH: Fetch = Fetch {
        vectors: true,
        payloads: true,
        sparse: false,
    };

    #[test]
    fn parts_are_joined_in_order() {
        let parts = [part(&["b"], &[1.0, 2.0], &["{}"]), part(&["a"], &[3.0, 4.0], &[""])];
        let all = join(parts.into_iter(), BOTH).unwrap();
        assert_eq!(
            (all.ids, all.missing),
            (vec!["b".into(), "a".into()], vec!["no".into(), "no".into()])
        );
        assert_eq!(all.vectors, Some(vec![1.0, 2.0, 3.0, 4.0]));
        assert_eq!(all.payloads, Some(vec![Some("{}".into()), None]));
    }

    #[test]
    fn what_does_not_belong_to_the_ids_is_a_broken_answer() {
        let short = part(&["a", "b"], &[1.0, 2.0], &["", ""]);
        assert!(join([short].into_iter(), BOTH).is_err());
        let few = part(&["a", "b"], &[1.0; 4], &[""]);
        assert!(join([few].into_iter(), BOTH).is_err());
    }
}
