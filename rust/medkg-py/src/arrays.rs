//! numpy arrays in and out. Answers own the memory that Rust filled; nothing is copied on the way out.

use bytes::Bytes;
use half::vec::HalfFloatVecExt as _;
use medkg_client::service::embedding::Vectors;
use medkg_client::service::vector::Matrix;
use numpy::{
    Element, PyArray1, PyArrayDyn, PyArrayMethods as _, PyReadonlyArrayDyn, PyUntypedArray, PyUntypedArrayMethods as _,
};
use pyo3::prelude::*;

use crate::arguments::Arguments;

/// An array with `rows` rows that owns the elements, and the scale of each row where there are scales. numpy has no
/// bfloat16: its elements become the uint16 that hold their bits.
pub(crate) fn vectors(
    py: Python<'_>,
    vectors: Vectors,
    rows: usize,
) -> PyResult<(Bound<'_, PyAny>, Option<Bound<'_, PyAny>>)> {
    let mut of_rows = None;
    let array = match vectors {
        Vectors::Float32(elements) => matrix_of(py, elements, rows)?,
        Vectors::Float16(elements) => matrix_of(py, elements, rows)?,
        Vectors::Bfloat16(elements) => matrix_of(py, elements.reinterpret_into(), rows)?,
        Vectors::Int8 { elements, scales } => {
            of_rows = Some(PyArray1::from_vec(py, scales).into_any());
            matrix_of(py, elements, rows)?
        }
        Vectors::Binary(bytes) => matrix_of(py, bytes, rows)?,
    };
    Ok((array, of_rows))
}

/// An array with `rows` rows that owns the elements.
pub(crate) fn matrix_of<T: Element>(py: Python<'_>, elements: Vec<T>, rows: usize) -> PyResult<Bound<'_, PyAny>> {
    let columns = elements.len() / rows.max(1);
    Ok(PyArray1::from_vec(py, elements).reshape([rows, columns])?.into_any())
}

/// The vectors of a C-contiguous float32 array of shape `(n, d)`, or `(d,)` where `one_is_enough`. Copied once.
pub(crate) fn matrix<'py>(
    arguments: Arguments<'py>,
    field: &str,
    array: &Bound<'py, PyAny>,
    one_is_enough: bool,
) -> PyResult<Matrix> {
    let shapes = if one_is_enough { "(d,) or (n, d)" } else { "(n, d)" };
    let wanted =
        format!("give a C-contiguous float32 array of shape {shapes}, e.g. numpy.ascontiguousarray(x, \"float32\")");
    let refuse = |what: String| Err(arguments.invalid(field, &format!("{what}; {wanted}")));
    let Ok(untyped) = array.cast::<PyUntypedArray>() else {
        return refuse(format!("is a {}, not a numpy array", array.get_type().name()?));
    };
    let Ok(typed) = array.cast::<PyArrayDyn<f32>>() else {
        return refuse(format!("has dtype {}", untyped.dtype()));
    };
    let (rows, dimension) = match *untyped.shape() {
        [rows, dimension] => (rows, dimension),
        [dimension] if one_is_enough => (1, dimension),
        _ => return refuse(format!("has shape {:?}", untyped.shape())),
    };
    let typed: PyReadonlyArrayDyn<'_, f32> = typed.readonly();
    let Some(elements) = typed.as_slice().ok().filter(|_| untyped.is_c_contiguous()) else {
        return refuse("is not C-contiguous".to_owned());
    };
    let data = Bytes::copy_from_slice(bytemuck::cast_slice(elements));
    let matrix = Matrix::try_new(data, rows, dimension);
    matrix.map_or_else(|| refuse(format!("has shape {:?}", untyped.shape())), Ok)
}
