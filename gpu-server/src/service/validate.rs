//! Checks that several services make. Each error names the field and the index.

use bytes::Bytes;
use medkg_proto::v1;

use crate::error::Error;
use crate::model::tokenizer::Cut;

/// Largest magnitude of an element: the square, summed over the largest dimension, still fits into an f32.
const LARGEST: f32 = 1e15;
/// A vector whose elements are all smaller counts as zero: below this norm a direction cannot be computed in f32.
const SMALLEST: f32 = 1e-12;
/// Most bytes of one text.
pub const MAX_TEXT_BYTES: usize = 1024 * 1024;
/// Most bytes of an instruction.
const MAX_INSTRUCTION_BYTES: usize = 4 * 1024;

/// A count between 1 and `most`.
///
/// # Errors
/// [`Error::InvalidField`].
pub fn count(field: &str, found: usize, most: usize) -> Result<(), Error> {
    match found {
        0 => Err(Error::invalid(field, "is empty; send at least one")),
        n if n > most => Err(Error::invalid(
            field,
            format!("has {n} entries; send at most {most} at once"),
        )),
        _ => Ok(()),
    }
}

/// A text that is neither empty nor too long.
///
/// # Errors
/// [`Error::InvalidField`].
pub fn text(field: impl FnOnce() -> String, text: &str) -> Result<(), Error> {
    match text.len() {
        0 => Err(Error::invalid(field(), "is empty; leave it out")),
        n if n > MAX_TEXT_BYTES => Err(Error::invalid(
            field(),
            format!("has {n} bytes; split it, at most {MAX_TEXT_BYTES} are taken"),
        )),
        _ => Ok(()),
    }
}

/// What happens to an input that has more tokens than the model takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TooLong {
    /// It is shortened at that end.
    Shorten(Cut),
    /// The call is refused.
    Refuse,
}

/// The truncation that a request asks for.
///
/// # Errors
/// [`Error::InvalidField`] on `field` for a value that this server does not know.
pub fn too_long(field: &str, value: i32) -> Result<TooLong, Error> {
    match v1::Truncation::try_from(value) {
        Ok(v1::Truncation::Unspecified | v1::Truncation::Right) => Ok(TooLong::Shorten(Cut::Right)),
        Ok(v1::Truncation::Left) => Ok(TooLong::Shorten(Cut::Left)),
        Ok(v1::Truncation::Refuse) => Ok(TooLong::Refuse),
        Err(_) => Err(Error::invalid(
            field,
            format!("{value} is not a Truncation that this server knows"),
        )),
    }
}

/// An instruction that is not too long; an empty one is allowed.
///
/// # Errors
/// [`Error::InvalidField`] on `field`.
pub fn instruction(field: &str, text: &str) -> Result<(), Error> {
    if text.len() > MAX_INSTRUCTION_BYTES {
        let problem = format!(
            "has {} bytes; shorten it, at most {MAX_INSTRUCTION_BYTES} are taken",
            text.len()
        );
        return Err(Error::invalid(field, problem));
    }
    Ok(())
}

/// A tensor of f32 vectors: rows of `dimension` finite values, none of them zero where `no_zero` says so. They stay as the
/// wire has them, little-endian.
///
/// # Errors
/// [`Error::InvalidField`] naming `field`, or `field[row]`.
pub fn rows(field: &str, tensor: Option<v1::Tensor>, dimension: usize, no_zero: bool) -> Result<Bytes, Error> {
    let tensor = tensor.ok_or_else(|| Error::invalid(field, "is missing"))?;
    if tensor.dtype() != v1::DataType::F32 {
        return Err(Error::invalid(format!("{field}.dtype"), "must be DATA_TYPE_F32"));
    }
    let [rows, columns] = tensor.shape[..] else {
        return Err(Error::invalid(
            format!("{field}.shape"),
            format!("is {:?}; it must be [rows, {dimension}]", tensor.shape),
        ));
    };
    if columns as usize != dimension {
        return Err(Error::invalid(
            format!("{field}.shape"),
            format!("says dimension {columns}; the collection has dimension {dimension}"),
        ));
    }
    let expected = (rows as usize).checked_mul(dimension).and_then(|n| n.checked_mul(4));
    if expected != Some(tensor.data.len()) {
        return Err(Error::invalid(
            format!("{field}.data"),
            format!(
                "has {} bytes; its shape {:?} asks for {}",
                tensor.data.len(),
                tensor.shape,
                expected.unwrap_or(usize::MAX)
            ),
        ));
    }
    for (row, vector) in tensor.data.chunks_exact(dimension.max(1) * 4).enumerate() {
        // Magnitudes are ordered as their bits are, infinity and NaN above all others; whole numbers make a quick loop.
        let largest = f32::from_bits(bits(vector).map(|bits| bits & !SIGN).fold(0, u32::max));
        if largest <= LARGEST && (largest >= SMALLEST || !no_zero) {
            continue;
        }
        let not_finite = floats(vector).enumerate().find(|(_, value)| !value.is_finite());
        let problem = if let Some((at, value)) = not_finite {
            format!("has {value} at element {at}; every value must be finite")
        } else if largest > LARGEST {
            format!("has a value of magnitude {largest:e}; above {LARGEST:e} scores would overflow, so scale it down")
        } else {
            format!(
                "is a zero vector (every magnitude is below {SMALLEST:e}), which has no direction to compare by cosine"
            )
        };
        return Err(Error::invalid(format!("{field}[{row}]"), problem));
    }
    Ok(tensor.data)
}

const SIGN: u32 = 1 << 31;

fn bits(bytes: &[u8]) -> impl Iterator<Item = u32> + '_ {
    bytes
        .chunks_exact(4)
        .map(|chunk| u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]))
}

/// The values of rows that [`rows`] gave.
pub fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    bits(bytes).map(f32::from_bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(values: &[f32], shape: [u32; 2]) -> v1::Tensor {
        let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        v1::Tensor {
            scales: Vec::new(),
            data: data.into(),
            dtype: v1::DataType::F32.into(),
            shape: shape.to_vec(),
        }
    }

    fn vectors(field: &str, tensor: Option<v1::Tensor>, dimension: usize, no_zero: bool) -> Result<Vec<f32>, Error> {
        rows(field, tensor, dimension, no_zero).map(|rows| floats(&rows).collect())
    }

    fn field(result: Result<Vec<f32>, Error>) -> String {
        match result.unwrap_err() {
            Error::InvalidField { field, .. } => field,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn each_bad_tensor_is_named() {
        assert_eq!(field(vectors("v", None, 2, false)), "v");
        assert_eq!(
            field(vectors("v", Some(tensor(&[1.0, 2.0, 3.0], [1, 3])), 2, false)),
            "v.shape"
        );
        assert_eq!(field(vectors("v", Some(tensor(&[1.0], [1, 2])), 2, false)), "v.data");
        assert_eq!(
            field(vectors("v", Some(tensor(&[1.0, 2.0, f32::NAN, 1.0], [2, 2])), 2, false)),
            "v[1]"
        );
        for bad in [f32::INFINITY, f32::NEG_INFINITY, -f32::NAN, -3e38] {
            let two = Some(tensor(&[1.0, 2.0, 0.5, bad], [2, 2]));
            assert_eq!(field(vectors("v", two, 2, false)), "v[1]", "{bad}");
        }
        assert_eq!(field(vectors("v", Some(tensor(&[0.0, 0.0], [1, 2])), 2, true)), "v[0]");
        assert_eq!(field(vectors("v", Some(tensor(&[-0.0, 0.0], [1, 2])), 2, true)), "v[0]");
        assert_eq!(
            field(vectors("v", Some(tensor(&[1e-14, 0.0], [1, 2])), 2, true)),
            "v[0]"
        );
        assert_eq!(
            field(vectors("v", Some(tensor(&[3e38, 0.0], [1, 2])), 2, false)),
            "v[0]"
        );
        assert_eq!(
            vectors("v", Some(tensor(&[0.0, 0.0], [1, 2])), 2, false).unwrap(),
            [0.0, 0.0]
        );
    }
}
