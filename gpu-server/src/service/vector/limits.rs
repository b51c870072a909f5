//! What ids, payloads, vectors and thresholds of a request must be, by field and index.

use std::collections::HashSet;

use super::{MAX_POINTS, validate};
use crate::error::Error;

const MAX_ID_BYTES: usize = 512;
const MAX_PAYLOAD_BYTES: usize = 64 * 1024;

/// Unit vectors always fit; others may become infinite in half precision.
pub(super) fn fits_f16(vectors: &[u8], dimension: usize) -> Result<(), Error> {
    let most = half::f16::MAX.to_f32();
    let Some((at, value)) = validate::floats(vectors)
        .enumerate()
        .find(|(_, value)| value.abs() > most)
    else {
        return Ok(());
    };
    let problem = format!(
        "has {value:e} at element {}; the collection keeps f16, which holds magnitudes up to {most}: scale it down, or \
         make a collection with storage bf16 or f32",
        at % dimension
    );
    Err(Error::invalid(format!("vectors[{}]", at / dimension), problem))
}

/// A threshold that some score could reach or miss.
pub(super) fn score_threshold(threshold: Option<f32>, by_distance: bool) -> Result<(), Error> {
    let problem = match threshold {
        Some(value) if !value.is_finite() => format!("is {value}; it must be finite"),
        Some(value) if by_distance && value > 0.0 => {
            format!("is {value}, but scores are minus the distance under L2; send minus the largest distance")
        }
        _ => return Ok(()),
    };
    Err(Error::invalid("score_threshold", problem))
}

/// A collection's name becomes a file's name: the rule keeps it inside its folder.
pub(in crate::service) fn name(field: &str, name: &str) -> Result<(), Error> {
    let fine = name.len() <= 127
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if fine {
        return Ok(());
    }
    Err(Error::invalid(
        field,
        "must be 1 to 127 of the characters A-Z a-z 0-9 . _ -, the first one a letter or a digit",
    ))
}

pub(super) fn ids(ids: &[String]) -> Result<(), Error> {
    validate::count("ids", ids.len(), MAX_POINTS)?;
    let mut seen = HashSet::with_capacity(ids.len());
    for (index, id) in ids.iter().enumerate() {
        let problem = if id.is_empty() || id.len() > MAX_ID_BYTES {
            format!("has {} bytes; an id has 1 to {MAX_ID_BYTES}", id.len())
        } else if id.chars().any(char::is_control) {
            "has a control character; an id is printable text".to_owned()
        } else if !seen.insert(id) {
            "is in this call twice; send each id once".to_owned()
        } else {
            continue;
        };
        return Err(Error::invalid(format!("ids[{index}]"), problem));
    }
    Ok(())
}

pub(super) fn payloads(payloads: &[String], ids: usize) -> Result<(), Error> {
    if !payloads.is_empty() && payloads.len() != ids {
        return Err(Error::invalid(
            "payloads",
            format!("has {} entries for {ids} ids; send one per id, or none", payloads.len()),
        ));
    }
    for (index, payload) in payloads.iter().enumerate().filter(|(_, payload)| !payload.is_empty()) {
        let field = || format!("payloads[{index}]");
        if payload.len() > MAX_PAYLOAD_BYTES {
            return Err(Error::invalid(
                field(),
                format!("has {} bytes; at most {MAX_PAYLOAD_BYTES} are taken", payload.len()),
            ));
        }
        if let Err(error) = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(payload) {
            // serde would quote the payload, which is nobody's business in a log.
            let (line, column) = (error.line(), error.column());
            return Err(Error::invalid(
                field(),
                format!("is not a JSON object (line {line}, column {column})"),
            ));
        }
    }
    Ok(())
}
