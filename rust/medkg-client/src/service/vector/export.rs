//! A collection read whole, part by part.
//!
//! Opening the call and waiting for what the collection is, is one request of the attempt loop, with all its policies. From then
//! on the export is of that one moment: a connection that breaks is an error, and nothing is read twice. Parts are taken
//! from the server only as fast as they are asked for.

use std::sync::Arc;

use medkg_proto::v1;
use tokio::sync::{Mutex, mpsc, oneshot};
use tonic::{Request, Response, Status, Streaming};

use super::{CollectionInfo, ELEMENT, SparseRows, Stub, VectorClient, broken, collection};
use crate::call::{Call, CallOptions, Caller, Method};
use crate::connection::AttemptError;
use crate::error::ClientError;

const EXPORT: Method = Method {
    name: "ExportVectors",
    idempotent: true,
};
/// Once the first message is there.
const UNDER_WAY: Method = Method {
    idempotent: false,
    ..EXPORT
};

/// Points of a collection.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct ExportedPart {
    /// Their ids.
    pub ids: Vec<String>,
    /// Their vectors one after the other.
    pub vectors: Vec<f32>,
    /// One per id as JSON; None where there is none.
    pub payloads: Vec<Option<String>>,
    /// One row per id; None in a collection without sparse vectors.
    pub sparse: Option<SparseRows>,
}

/// A collection being read.
#[derive(Debug)]
pub struct Export {
    parts: Mutex<mpsc::Receiver<Result<ExportedPart, ClientError>>>,
    driver: tokio::task::JoinHandle<()>,
    /// What the collection is.
    pub collection: CollectionInfo,
}

impl Drop for Export {
    fn drop(&mut self) {
        self.close();
    }
}

impl Export {
    /// Waits for the next points. None once all were told, after an error, and when it was closed. Giving up waiting loses
    /// nothing.
    pub async fn next(&self) -> Option<Result<ExportedPart, ClientError>> {
        self.parts.lock().await.recv().await
    }

    /// Cancels the call; whoever waits is told that there is nothing more.
    pub fn close(&self) {
        self.driver.abort();
    }
}

impl VectorClient {
    /// Begins to read all points of a collection as they are at one moment, in no order that is promised.
    /// `options.timeout` is for the first answer; reading has no end of its own.
    pub async fn export(&self, name: String, options: &CallOptions) -> Result<Export, ClientError> {
        let call = self.caller.begin(EXPORT, options)?;
        let (begun, beginning) = oneshot::channel();
        // What a slow reader leaves stays with the server.
        let (told, parts) = mpsc::channel(1);
        let caller = Arc::clone(&self.caller);
        let driver = tokio::spawn(drive(caller, call.clone(), name, begun, told));
        let ended = || Err(call.sign(broken(EXPORT, "the call ended before it began".to_owned())));
        let collection = beginning.await.unwrap_or_else(|_| ended())?;
        Ok(Export {
            parts: Mutex::new(parts),
            driver,
            collection,
        })
    }
}

type Begun = oneshot::Sender<Result<CollectionInfo, ClientError>>;
type Told = mpsc::Sender<Result<ExportedPart, ClientError>>;

async fn drive(caller: Arc<Caller>, call: Call, name: String, begun: Begun, told: Told) {
    let message = || v1::ExportVectorsRequest {
        collection: name.clone(),
    };
    let opened = caller.attempts(&call, caller.progress(&call), message, open).await;
    let (answer, place) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            let _ = begun.send(Err(error));
            return;
        }
    };
    let (first, mut answers) = answer.message;
    let Some(info) = collection(first.collection, false) else {
        let _ = begun.send(Err(call.sign(broken(EXPORT, "the answer has no collection".to_owned()))));
        return;
    };
    let (dimension, sparse_dimension) = (info.dimension as usize, info.sparse_dimension);
    if begun.send(Ok(info)).is_err() {
        return;
    }
    loop {
        let part = match answers.message().await {
            Ok(Some(message)) => read(message, dimension, sparse_dimension).map_err(|error| call.sign(error)),
            Ok(None) => return,
            Err(status) => {
                let mut call = call.clone();
                call.method = UNDER_WAY;
                let mut progress = caller.progress(&call);
                let interrupted = caller.interrupted(&call, &mut progress, place, AttemptError::Status(status));
                if let Err(error) = interrupted.await {
                    let _ = told.send(Err(error)).await;
                }
                return;
            }
        };
        let last = part.is_err();
        if told.send(part).await.is_err() || last {
            return;
        }
    }
}

fn read(
    message: v1::ExportVectorsResponse,
    dimension: usize,
    sparse_dimension: u32,
) -> Result<ExportedPart, ClientError> {
    let (points, tensor) = (message.ids.len(), message.vectors.unwrap_or_default());
    let fits = tensor.dtype() == v1::DataType::F32 && tensor.data.len() == points * dimension * ELEMENT;
    if !fits || message.payloads.len() != points {
        let what = format!("{points} ids came with {} bytes of vectors", tensor.data.len());
        return Err(broken(EXPORT, what));
    }
    // A server that leaves them out must not pass for a collection whose points have none.
    let sparse = (sparse_dimension > 0).then(|| {
        let mut rows = SparseRows::default();
        rows.extend(message.sparse, points).map(|()| rows)
    });
    let sparse = sparse.transpose().map_err(|what| broken(EXPORT, what))?;
    let floats = tensor.data.chunks_exact(ELEMENT);
    Ok(ExportedPart {
        ids: message.ids,
        vectors: floats
            .map(|chunk| f32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]))
            .collect(),
        payloads: message
            .payloads
            .into_iter()
            .map(|text| Some(text).filter(|text| !text.is_empty()))
            .collect(),
        sparse,
    })
}

/// Opens the call and waits for the first message.
async fn open(
    channel: crate::channel::Channel,
    mut request: Request<v1::ExportVectorsRequest>,
) -> Result<(v1::ExportVectorsResponse, Streaming<v1::ExportVectorsResponse>), Status> {
    // The time is that of the first answer, and the call goes on after it.
    request.metadata_mut().remove("grpc-timeout");
    let mut stub = Stub::new(channel).max_decoding_message_size(medkg_proto::MAX_MESSAGE_BYTES);
    let mut answers = stub.export_vectors(request).await.map(Response::into_inner)?;
    let first = answers.message().await?;
    let first = first.ok_or_else(|| Status::internal("the server ended the export before it began"))?;
    Ok((first, answers))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_does_not_fit_together_is_a_broken_answer() {
        let part = |floats: usize, payloads: usize| v1::ExportVectorsResponse {
            collection: None,
            ids: vec!["a".to_owned(), "b".to_owned()],
            vectors: Some(v1::Tensor {
                data: vec![0; floats * ELEMENT].into(),
                dtype: v1::DataType::F32.into(),
                ..v1::Tensor::default()
            }),
            payloads: vec![String::new(); payloads],
            sparse: None,
        };
        let dense = read(part(6, 2), 3, 0).unwrap();
        assert_eq!((dense.payloads, dense.sparse), (vec![None, None], None));
        assert!(read(part(5, 2), 3, 0).is_err());
        assert!(read(part(6, 1), 3, 0).is_err());
        let with = |offsets: &[u32]| v1::ExportVectorsResponse {
            sparse: Some(v1::SparseVectors {
                offsets: offsets.to_vec(),
                indices: vec![7],
                weights: 1.0_f32.to_le_bytes().to_vec().into(),
            }),
            ..part(6, 2)
        };
        let rows = read(with(&[0, 0, 1]), 3, 9).unwrap().sparse.unwrap();
        assert_eq!((rows.offsets, rows.indices), (vec![0, 0, 1], vec![7]));
        assert!(read(with(&[0, 1]), 3, 9).is_err());
        assert!(read(part(6, 2), 3, 9).is_err(), "sparse vectors are left out");
    }
}
