//! The elements of embeddings, in the types that they travel in, and the check that an answer holds what it promises.

use std::ops::Range;

use half::{bf16, f16};
use medkg_proto::v1;

/// Element type of embeddings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Dtype {
    /// IEEE 754 binary32.
    #[default]
    Float32,
    /// IEEE 754 binary16.
    Float16,
    /// bfloat16.
    Bfloat16,
    /// Integers from -127 to 127, and one scale per vector.
    Int8,
    /// One bit per element, 1 where the value is above 0.
    Binary,
}

impl Dtype {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Float32, Self::Float16, Self::Bfloat16, Self::Int8, Self::Binary];

    /// Its name in Python: `float32`, `float16`, `bfloat16`, `int8` or `binary`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Float16 => "float16",
            Self::Bfloat16 => "bfloat16",
            Self::Int8 => "int8",
            Self::Binary => "binary",
        }
    }

    pub(super) const fn wire(self) -> v1::DataType {
        match self {
            Self::Float32 => v1::DataType::F32,
            Self::Float16 => v1::DataType::F16,
            Self::Bfloat16 => v1::DataType::Bf16,
            Self::Int8 => v1::DataType::Int8,
            Self::Binary => v1::DataType::Binary,
        }
    }

    /// Bytes of one vector of `dimension` elements.
    const fn row_bytes(self, dimension: usize) -> usize {
        match self {
            Self::Float32 => dimension * 4,
            Self::Float16 | Self::Bfloat16 => dimension * 2,
            Self::Int8 => dimension,
            Self::Binary => dimension.div_ceil(8),
        }
    }
}

/// The elements of all vectors, row after row.
#[derive(Debug, Clone, PartialEq)]
pub enum Vectors {
    /// As float32.
    Float32(Vec<f32>),
    /// As float16.
    Float16(Vec<f16>),
    /// As bfloat16.
    Bfloat16(Vec<bf16>),
    /// As multiples of a scale.
    Int8 {
        /// From -127 to 127.
        elements: Vec<i8>,
        /// One per row, finite and above 0: value = scale × element.
        scales: Vec<f32>,
    },
    /// As bits, the first element in the highest one; a row is filled up with zero bits to whole bytes (numpy.packbits).
    Binary(Vec<u8>),
}

impl Vectors {
    /// The type of the elements.
    pub const fn dtype(&self) -> Dtype {
        match self {
            Self::Float32(_) => Dtype::Float32,
            Self::Float16(_) => Dtype::Float16,
            Self::Bfloat16(_) => Dtype::Bfloat16,
            Self::Int8 { .. } => Dtype::Int8,
            Self::Binary(_) => Dtype::Binary,
        }
    }

    pub(super) fn zeros(dtype: Dtype, rows: usize, dimension: usize) -> Self {
        match dtype {
            Dtype::Float32 => Self::Float32(vec![0.0; rows * dimension]),
            Dtype::Float16 => Self::Float16(vec![f16::ZERO; rows * dimension]),
            Dtype::Bfloat16 => Self::Bfloat16(vec![bf16::ZERO; rows * dimension]),
            Dtype::Int8 => Self::Int8 {
                elements: vec![0; rows * dimension],
                scales: vec![0.0; rows],
            },
            Dtype::Binary => Self::Binary(vec![0; rows * dtype.row_bytes(dimension)]),
        }
    }

    /// All rows of a tensor that [`check`] has passed, in memory that nobody has to fill with zeros first.
    pub(super) fn read(dtype: Dtype, tensor: v1::Tensor) -> Self {
        let data = &tensor.data;
        match dtype {
            // Of a length that the compiler knows, so that it copies many at once.
            Dtype::Float32 => Self::Float32(data.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()),
            Dtype::Float16 => Self::Float16(data.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b)).collect()),
            Dtype::Bfloat16 => Self::Bfloat16(data.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b)).collect()),
            Dtype::Int8 => Self::Int8 {
                elements: data.iter().map(|byte| byte.cast_signed()).collect(),
                scales: tensor.scales,
            },
            Dtype::Binary => Self::Binary(data.to_vec()),
        }
    }

    /// One row as it travels, and its scale, 0 where it has none.
    pub(super) fn row(&self, row: usize, dimension: usize) -> (Vec<u8>, f32) {
        let bytes = self.dtype().row_bytes(dimension);
        let (all, width): (&[u8], usize) = match self {
            Self::Float32(all) => (bytemuck::cast_slice(all), 4),
            Self::Float16(all) => (bytemuck::cast_slice(all), 2),
            Self::Bfloat16(all) => (bytemuck::cast_slice(all), 2),
            Self::Int8 { elements, .. } => (bytemuck::cast_slice(elements), 1),
            Self::Binary(all) => (all, 1),
        };
        let mut own = all[row * bytes..][..bytes].to_vec();
        if cfg!(target_endian = "big") {
            own.chunks_exact_mut(width).for_each(<[u8]>::reverse);
        }
        let scale = match self {
            Self::Int8 { scales, .. } => scales[row],
            _ => 0.0,
        };
        (own, scale)
    }

    /// Some of the rows.
    pub(super) fn part(&self, rows: Range<usize>, dimension: usize) -> Self {
        let elements = rows.start * dimension..rows.end * dimension;
        match self {
            Self::Float32(all) => Self::Float32(all[elements].to_vec()),
            Self::Float16(all) => Self::Float16(all[elements].to_vec()),
            Self::Bfloat16(all) => Self::Bfloat16(all[elements].to_vec()),
            Self::Int8 { elements: all, scales } => Self::Int8 {
                elements: all[elements].to_vec(),
                scales: scales[rows].to_vec(),
            },
            Self::Binary(all) => {
                let bytes = Dtype::Binary.row_bytes(dimension);
                Self::Binary(all[rows.start * bytes..rows.end * bytes].to_vec())
            }
        }
    }

    /// Writes a tensor that [`check`] has passed into its rows.
    pub(super) fn write(&mut self, rows: Range<usize>, dimension: usize, tensor: &v1::Tensor) {
        let elements = rows.start * dimension..rows.end * dimension;
        let (target, width): (&mut [u8], usize) = match self {
            Self::Float32(all) => (bytemuck::cast_slice_mut(&mut all[elements]), 4),
            Self::Float16(all) => (bytemuck::cast_slice_mut(&mut all[elements]), 2),
            Self::Bfloat16(all) => (bytemuck::cast_slice_mut(&mut all[elements]), 2),
            Self::Int8 { elements: all, scales } => {
                scales[rows].copy_from_slice(&tensor.scales);
                (bytemuck::cast_slice_mut(&mut all[elements]), 1)
            }
            Self::Binary(all) => {
                let bytes = Dtype::Binary.row_bytes(dimension);
                (&mut all[rows.start * bytes..rows.end * bytes], 1)
            }
        };
        target.copy_from_slice(&tensor.data);
        if cfg!(target_endian = "big") {
            target.chunks_exact_mut(width).for_each(<[u8]>::reverse);
        }
    }
}

/// Checks a tensor against what was asked for: `rows` vectors of `dtype`. Gives their dimension.
pub(super) fn check(tensor: &v1::Tensor, rows: usize, dtype: Dtype) -> Result<usize, String> {
    let &[found, dimension] = tensor.shape.as_slice() else {
        let shape = &tensor.shape;
        return Err(format!("the embeddings have shape {shape:?}, not [texts, dimension]"));
    };
    let dimension = dimension as usize;
    if found as usize != rows || dimension == 0 {
        return Err(format!(
            "{rows} texts were answered with {found} vectors of {dimension} elements"
        ));
    }
    if tensor.dtype() != dtype.wire() {
        return Err(format!(
            "the embeddings have an element type that was not asked for ({:?})",
            tensor.dtype()
        ));
    }
    let row_bytes = dtype.row_bytes(dimension);
    if row_bytes.checked_mul(rows) != Some(tensor.data.len()) {
        return Err(format!(
            "{} bytes came for {rows} vectors of {dimension} elements of {}",
            tensor.data.len(),
            dtype.as_str()
        ));
    }
    let scales = if dtype == Dtype::Int8 { rows } else { 0 };
    if tensor.scales.len() != scales || tensor.scales.iter().any(|scale| !(scale.is_finite() && *scale > 0.0)) {
        return Err(format!("the embeddings need {scales} scales, finite and above 0"));
    }
    let wrong = match dtype {
        Dtype::Int8 => tensor.data.iter().any(|byte| byte.cast_signed() == i8::MIN),
        Dtype::Binary if !dimension.is_multiple_of(8) => {
            let padding = u8::MAX >> (dimension % 8);
            let mut last = tensor.data.iter().skip(row_bytes - 1).step_by(row_bytes);
            last.any(|byte| byte & padding != 0)
        }
        _ => false,
    };
    if wrong {
        return Err(format!(
            "the embeddings hold what no vector of {} holds",
            dtype.as_str()
        ));
    }
    Ok(dimension)
}
