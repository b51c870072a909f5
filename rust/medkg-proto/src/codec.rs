//! A prost codec that says which field was bad.
//!
//! tonic's own codec answers a message that cannot be decoded with INTERNAL, as if the server were at fault. A caller
//! that sends invalid UTF-8 in `texts[3]` has made an invalid argument, and wants to hear which. This codec encodes as
//! prost does and differs only after a failure: there it looks for the offending field once more. It never repairs input.

use std::marker::PhantomData;

use bytes::{Buf as _, Bytes};
use prost::Message;
use prost::encoding::{DecodeContext, WireType};
use prost_types::FileDescriptorSet;
use prost_types::field_descriptor_proto::{Label, Type};
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder};
use tonic_prost::{ProstCodec, ProstEncoder};
use tonic_types::{ErrorDetails, StatusExt as _};

/// Encodes with prost; decodes with prost and names the field that could not be decoded.
#[derive(Debug, Clone, Copy)]
pub struct NamingCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for NamingCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for NamingCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = NamingDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::default().encoder()
    }

    fn decoder(&mut self) -> Self::Decoder {
        NamingDecoder(PhantomData)
    }
}

/// Decodes one message per gRPC frame.
#[derive(Debug, Clone, Copy)]
pub struct NamingDecoder<U>(PhantomData<U>);

impl<U: Message + Default> Decoder for NamingDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, src: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        let frame = src.copy_to_bytes(src.remaining());
        match U::decode(frame.clone()) {
            Ok(message) => Ok(Some(message)),
            Err(error) if message_name::<U>().ends_with("Request") => {
                Err(refusal(&error.to_string(), message_name::<U>(), &frame))
            }
            // A response is the server's fault, not an argument of the caller.
            Err(error) => Err(Status::internal(format!(
                "the peer's answer cannot be decoded: {error}"
            ))),
        }
    }
}

/// A generated type's name without its path.
fn message_name<U>() -> &'static str {
    std::any::type_name::<U>().rsplit("::").next().unwrap_or_default()
}

/// The `INVALID_ARGUMENT` for a frame that prost refused as a `message`.
fn refusal(error: &str, message: &str, frame: &Bytes) -> Status {
    let invalid_text = error
        .contains("UTF-8")
        .then(|| locate_invalid_utf8(message, frame))
        .flatten();
    let outermost = || offending_field(error).unwrap_or("message").to_owned();
    let (field, problem) = match invalid_text {
        Some(path) => (path, "is not valid UTF-8"),
        None if error.contains("recursion limit") => (outermost(), "is nested too deep"),
        None => (outermost(), "cannot be decoded"),
    };
    let description = format!("{field} {problem}; send it as proto/medkg/v1 defines it");
    let mut details = ErrorDetails::new();
    details.set_error_info("INVALID_FIELD", "medkg", [("field".to_owned(), field.clone())]);
    details.add_bad_request_violation(field, problem);
    Status::with_error_details(tonic::Code::InvalidArgument, description, details)
}

/// prost's message reads "… Protobuf message: Inner.field: Outer.field: reason"; this is the outermost field.
fn offending_field(error: &str) -> Option<&str> {
    let name = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    error
        .split(": ")
        .filter_map(|part| part.split_once('.'))
        .filter(|(m, f)| name(m) && name(f))
        .last()
        .map(|(_, f)| f)
}

/// The path of the first string in a message that is not UTF-8, e.g. `queries[1].documents[0].text`.
fn locate_invalid_utf8(message: &str, frame: &Bytes) -> Option<String> {
    let set = FileDescriptorSet::decode(crate::FILE_DESCRIPTOR_SET).ok()?;
    walk(&set, message, frame.clone(), DEPTH)
}

/// The wire nests messages less deep than this.
const DEPTH: usize = 8;

fn walk(set: &FileDescriptorSet, message: &str, mut rest: Bytes, depth: usize) -> Option<String> {
    let depth = depth.checked_sub(1)?;
    let descriptor = set
        .file
        .iter()
        .flat_map(|file| &file.message_type)
        .find(|m| rust_name(m.name()) == message)?;
    let mut seen = std::collections::HashMap::<i32, usize>::new();
    while rest.has_remaining() {
        let (tag, wire_type) = prost::encoding::decode_key(&mut rest).ok()?;
        if wire_type != WireType::LengthDelimited {
            prost::encoding::skip_field(wire_type, tag, &mut rest, DecodeContext::default()).ok()?;
            continue;
        }
        let length = usize::try_from(prost::encoding::decode_varint(&mut rest).ok()?).ok()?;
        let value = (length <= rest.remaining()).then(|| rest.split_to(length))?;
        let number = i32::try_from(tag).ok()?;
        let Some(field) = descriptor.field.iter().find(|field| field.number() == number) else {
            continue;
        };
        let index = seen.entry(number).and_modify(|count| *count += 1).or_default();
        let below = match field.r#type() {
            Type::String if std::str::from_utf8(&value).is_err() => String::new(),
            Type::Message => {
                let inner = field.type_name().rsplit('.').next().unwrap_or_default();
                match walk(set, &rust_name(inner), value, depth) {
                    Some(path) => format!(".{path}"),
                    None => continue,
                }
            }
            _ => continue,
        };
        let name = field.name();
        return Some(match field.label() {
            Label::Repeated => format!("{name}[{index}]{below}"),
            _ => format!("{name}{below}"),
        });
    }
    None
}

/// prost names `AllocateGPURequest` as `AllocateGpuRequest`.
fn rust_name(message: &str) -> String {
    message.replace("GPU", "Gpu")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::{
        CountVectorsRequest, Filter, GenerateEmbeddingsRequest, RerankBatchRequest, RerankDocument, RerankQuery,
        StreamEmbeddingsRequest, filter::Condition,
    };

    fn named<U: Message + Default + std::fmt::Debug>(good: &U, marker: &[u8]) -> String {
        let mut frame = good.encode_to_vec();
        let at = frame.windows(marker.len()).position(|window| window == marker).unwrap();
        frame[at] = 0xff;
        let frame = Bytes::from(frame);
        let error = U::decode(frame.clone()).unwrap_err();
        let status = refusal(&error.to_string(), message_name::<U>(), &frame);
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        status.get_details_bad_request().unwrap().field_violations[0]
            .field
            .clone()
    }

    fn texts() -> GenerateEmbeddingsRequest {
        GenerateEmbeddingsRequest {
            texts: vec!["a".into(), "bb".into(), "xyz".into()],
            ..Default::default()
        }
    }

    #[test]
    fn invalid_utf8_names_field_and_index() {
        assert_eq!(named(&texts(), b"xyz"), "texts[2]");
    }

    #[test]
    fn invalid_utf8_in_a_nested_message_names_the_whole_path() {
        assert_eq!(
            named(&StreamEmbeddingsRequest { batch: Some(texts()) }, b"xyz"),
            "batch.texts[2]"
        );
        let query = |text: &str| RerankQuery {
            query: "q".into(),
            documents: vec![RerankDocument {
                text: text.into(),
                first_stage_score: Some(1.0),
            }],
        };
        let request = RerankBatchRequest {
            queries: vec![query("fine"), query("xyz")],
            ..Default::default()
        };
        assert_eq!(named(&request, b"xyz"), "queries[1].documents[0].text");
    }

    #[test]
    fn what_is_nested_deeper_than_prost_decodes_is_named_and_said_so() {
        let mut filter = Filter::default();
        for _ in 0..1000 {
            let condition = Some(Condition::Not(Box::new(filter)));
            filter = Filter { condition };
        }
        let request = CountVectorsRequest {
            filter: Some(filter),
            ..Default::default()
        };
        let frame = Bytes::from(request.encode_to_vec());
        let error = CountVectorsRequest::decode(frame.clone()).unwrap_err();
        let status = refusal(&error.to_string(), "CountVectorsRequest", &frame);
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        assert!(status.message().starts_with("filter is nested too deep"), "{status}");
        let violations = status.get_details_bad_request().unwrap().field_violations;
        assert_eq!(violations[0].field, "filter");
    }

    #[test]
    fn a_frame_that_is_no_message_is_refused_not_internal() {
        let frame = Bytes::from_static(&[0x0a, 0xff]);
        let error = GenerateEmbeddingsRequest::decode(frame.clone()).unwrap_err();
        let status = refusal(&error.to_string(), "GenerateEmbeddingsRequest", &frame);
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
    }
}
