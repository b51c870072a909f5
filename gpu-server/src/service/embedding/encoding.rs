//! Embeddings as they travel: cut to fewer elements and turned into the element type that was asked for. Integers and
//! bits are made out of the f32 values at the very end, so that every type tells of the same vectors.

use bytes::Bytes;
use half::slice::HalfFloatSliceExt as _;
use half::{bf16, f16};
use medkg_proto::v1::{self, DataType};

use crate::error::Error;

/// The floor of torch.nn.functional.normalize.
const SMALLEST_NORM: f32 = 1e-12;
/// The largest element of a row of integers.
const LARGEST_INTEGER: f32 = 127.0;
/// Wire bytes of a text's answer beside its elements, at most: a scale or an offset, a token count and an index.
pub const BESIDE: usize = 16;
/// Wire bytes of an answer beside what grows with its texts, at most.
pub const FRAME: usize = 4_096;

/// Bytes that one row of `width` elements takes.
const fn row_bytes(dtype: DataType, width: usize) -> usize {
    match dtype {
        DataType::Unspecified | DataType::F32 => width * 4,
        DataType::F16 | DataType::Bf16 => width * 2,
        DataType::Int8 => width,
        DataType::Binary => width.div_ceil(8),
    }
}

/// Checks, before anything is computed, that the answer will fit into a message.
///
/// # Errors
/// [`Error::InvalidField`] on `texts`.
pub fn fits(texts: usize, width: usize, dtype: DataType) -> Result<(), Error> {
    let each = row_bytes(dtype, width) + BESIDE;
    let most = (medkg_proto::MAX_MESSAGE_BYTES - FRAME) / each;
    if texts > most {
        return Err(Error::invalid(
            "texts",
            format!(
                "has {texts} entries, whose vectors of {each} bytes are more than a message holds; send at most {most} at once"
            ),
        ));
    }
    Ok(())
}

/// Keeps the first `kept` of each row's `width` elements; scaled to unit L2 norm again with `normalize` (Kusupati et al.
/// 2022, Matryoshka representation learning).
pub fn shortened(rows: Vec<f32>, width: usize, kept: usize, normalize: bool) -> Vec<f32> {
    if kept >= width {
        return rows;
    }
    let mut short = Vec::with_capacity(rows.len() / width * kept);
    for row in rows.chunks_exact(width) {
        let row = &row[..kept];
        let norm = row
            .iter()
            .map(|value| value * value)
            .sum::<f32>()
            .sqrt()
            .max(SMALLEST_NORM);
        let norm = if normalize { norm } else { 1.0 };
        short.extend(row.iter().map(|value| value / norm));
    }
    short
}

/// Finite rows of `width` elements as a tensor of the wire.
///
/// # Errors
/// [`Error::InvalidField`] on `options.dtype` where a value is too large for it.
pub fn tensor(rows: &[f32], width: usize, dtype: DataType) -> Result<v1::Tensor, Error> {
    let mut scales = Vec::new();
    let (dtype, data): (_, Bytes) = match dtype {
        DataType::Unspecified | DataType::F32 => (DataType::F32, bytemuck::cast_slice(rows).to_vec().into()),
        DataType::F16 => {
            let mut halves = vec![f16::ZERO; rows.len()];
            halves.convert_from_f32_slice(rows);
            check(
                halves.iter().position(|value| !value.is_finite()),
                rows,
                width,
                "DATA_TYPE_F16",
            )?;
            (DataType::F16, bytemuck::cast_slice(&halves).to_vec().into())
        }
        DataType::Bf16 => {
            let mut halves = vec![bf16::ZERO; rows.len()];
            halves.convert_from_f32_slice(rows);
            check(
                halves.iter().position(|value| !value.is_finite()),
                rows,
                width,
                "DATA_TYPE_BF16",
            )?;
            (DataType::Bf16, bytemuck::cast_slice(&halves).to_vec().into())
        }
        DataType::Int8 => {
            let mut data = Vec::with_capacity(rows.len());
            for row in rows.chunks_exact(width) {
                scales.push(integers(row, &mut data));
            }
            (DataType::Int8, data.into())
        }
        DataType::Binary => {
            let packed = rows.chunks_exact(width).flat_map(|row| row.chunks(8).map(bits));
            (DataType::Binary, packed.collect::<Vec<u8>>().into())
        }
    };
    let shape = [rows.len() / width, width].map(|extent| u32::try_from(extent).unwrap_or(u32::MAX));
    Ok(v1::Tensor {
        data,
        dtype: dtype.into(),
        shape: shape.to_vec(),
        scales,
    })
}

fn check(overflow: Option<usize>, rows: &[f32], width: usize, dtype: &str) -> Result<(), Error> {
    overflow.map_or(Ok(()), |at| {
        Err(Error::invalid(
            "options.dtype",
            format!(
                "{dtype} cannot hold {:e}, which is in the vector of texts[{}]; ask for DATA_TYPE_F32",
                rows[at],
                at / width
            ),
        ))
    })
}

/// Adds the row's elements as multiples of the scale that is returned. A row of zeros has the scale 1, and so has one
/// that is so small that its scale would lose digits.
fn integers(row: &[f32], data: &mut Vec<u8>) -> f32 {
    let largest = row.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
    let scale = largest / LARGEST_INTEGER;
    let scale = if scale.is_normal() { scale } else { 1.0 };
    data.extend(row.iter().map(|value| {
        let element = (value / scale).round().clamp(-LARGEST_INTEGER, LARGEST_INTEGER);
        #[allow(clippy::cast_possible_truncation)] // clamped, and whole
        let element = element as i8;
        element.cast_unsigned()
    }));
    scale
}

/// Up to eight elements as bits, the first one in the highest (numpy.packbits).
fn bits(elements: &[f32]) -> u8 {
    let set = |(place, value): (usize, &f32)| u8::from(*value > 0.0) << (7 - place);
    elements.iter().enumerate().map(set).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rows() -> impl Strategy<Value = (Vec<f32>, usize)> {
        (1_usize..40).prop_flat_map(|width| {
            let element = prop_oneof![8 => -2.0_f32..2.0, 1 => Just(0.0_f32), 1 => -6e4_f32..6e4];
            let rows = prop::collection::vec(prop::collection::vec(element, width), 1..6);
            (rows.prop_map(|rows| rows.concat()), Just(width))
        })
    }

    proptest! {
        #[test]
        fn integers_are_within_half_a_scale((rows, width) in rows()) {
            let tensor = tensor(&rows, width, DataType::Int8).unwrap();
            prop_assert_eq!(tensor.data.len(), rows.len());
            prop_assert_eq!(tensor.scales.len(), rows.len() / width);
            for (at, value) in rows.iter().enumerate() {
                let (scale, element) = (tensor.scales[at / width], tensor.data[at].cast_signed());
                prop_assert!(scale > 0.0 && scale.is_finite() && element > i8::MIN);
                let back = scale * f32::from(element);
                prop_assert!((back - value).abs() <= scale * 0.500_1, "{value} became {back} with the scale {scale}");
            }
            for (row, scale) in rows.chunks_exact(width).zip(&tensor.scales) {
                let largest = row.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
                let expected = if largest > 0.0 { largest / 127.0 } else { 1.0 };
                prop_assert_eq!(scale.to_bits(), expected.to_bits());
            }
        }

        #[test]
        fn bits_are_signs_and_each_row_begins_a_byte((rows, width) in rows()) {
            let tensor = tensor(&rows, width, DataType::Binary).unwrap();
            let bytes = width.div_ceil(8);
            prop_assert_eq!(tensor.data.len(), rows.len() / width * bytes);
            for (row, packed) in rows.chunks_exact(width).zip(tensor.data.chunks_exact(bytes)) {
                for place in 0..bytes * 8 {
                    let bit = packed[place / 8] >> (7 - place % 8) & 1;
                    prop_assert_eq!(bit == 1, row.get(place).is_some_and(|value| *value > 0.0));
                }
            }
        }

        #[test]
        fn halves_are_the_nearest_ones((rows, width) in rows()) {
            let half = tensor(&rows, width, DataType::F16).unwrap();
            let brain = tensor(&rows, width, DataType::Bf16).unwrap();
            for (at, value) in rows.iter().enumerate() {
                let pair = |data: &[u8]| [data[2 * at], data[2 * at + 1]];
                prop_assert_eq!(f16::from_le_bytes(pair(&half.data)), f16::from_f32(*value));
                prop_assert_eq!(bf16::from_le_bytes(pair(&brain.data)), bf16::from_f32(*value));
            }
        }

        #[test]
        fn a_shortened_row_is_its_beginning((rows, width) in rows(), part in 0.0_f64..1.0) {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let kept = 1 + (part * width as f64) as usize % width;
            let plain = shortened(rows.clone(), width, kept, false);
            let scaled = shortened(rows.clone(), width, kept, true);
            for (index, row) in rows.chunks_exact(width).enumerate() {
                prop_assert_eq!(&plain[index * kept..][..kept], &row[..kept]);
                if kept == width || row[..kept].iter().all(|value| value.abs() < 1e-9) {
                    continue;
                }
                let unit = &scaled[index * kept..][..kept];
                let norm = unit.iter().map(|value| value * value).sum::<f32>().sqrt();
                prop_assert!((norm - 1.0).abs() < 1e-4, "norm {norm}");
                let dot: f32 = unit.iter().zip(row).map(|(a, b)| a * b).sum();
                let length = row[..kept].iter().map(|value| value * value).sum::<f32>().sqrt();
                prop_assert!((dot / length - 1.0).abs() < 1e-4, "another direction: {dot} of {length}");
            }
        }
    }

    #[test]
    fn values_that_a_type_cannot_hold_are_refused_by_text() {
        let rows = [1.0, 2.0, 3.0, 7e4];
        let error = tensor(&rows, 2, DataType::F16).unwrap_err().to_string();
        assert!(error.contains("options.dtype") && error.contains("texts[1]"), "{error}");
        assert!(tensor(&rows, 2, DataType::Bf16).is_ok());
        assert!(tensor(&[f32::MAX, 0.0], 2, DataType::Bf16).is_err());
    }

    #[test]
    fn rows_without_a_scale_are_zeros() {
        for smallest in [0.0, 1e-44, f32::MIN_POSITIVE] {
            let tensor = tensor(&[smallest, -smallest], 2, DataType::Int8).unwrap();
            assert_eq!((tensor.scales, tensor.data.as_ref()), (vec![1.0], &[0, 0][..]));
        }
        let largest = tensor(&[f32::MAX, -f32::MAX], 2, DataType::Int8).unwrap();
        assert_eq!(largest.data.as_ref(), [127, 129]);
    }

    #[test]
    fn an_answer_that_no_message_holds_is_refused_before_it_is_computed() {
        assert!(fits(4_096, 1_024, DataType::F32).is_ok());
        assert!(fits(4_096, 4_096, DataType::F32).is_err());
        assert!(fits(4_096, 4_096, DataType::Int8).is_ok());
        assert!(fits(4_096, 4_096, DataType::Binary).is_ok());
    }
}
