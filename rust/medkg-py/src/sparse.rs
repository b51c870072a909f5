//! Sparse vectors in and out of Python, as the three arrays of compressed sparse rows.

use bytes::Bytes;
use medkg_client::service::vector::{SparseMatrix, SparseRows};
use numpy::{PyArray1, PyArrayMethods as _, PyUntypedArray, PyUntypedArrayMethods as _};
use pyo3::prelude::*;

use crate::arguments::Arguments;
use crate::results;

const WANTED: &str = "give a medkg.SparseEmbeddingResult, a medkg.SparseVectors, or a tuple (indptr, indices, values)";

/// `indptr`, `indices` and `values`.
type Parts<'py> = (Bound<'py, PyAny>, Bound<'py, PyAny>, Bound<'py, PyAny>);

/// The rows of a `SparseEmbeddingResult`, a `SparseVectors`, or a tuple of their three arrays. Copied once.
pub(crate) fn matrix<'py>(arguments: Arguments<'py>, field: &str, given: &Bound<'py, PyAny>) -> PyResult<SparseMatrix> {
    let wanted = || -> PyResult<Parts<'py>> {
        Ok((
            given.getattr("indptr")?,
            given.getattr("indices")?,
            given.getattr("values")?,
        ))
    };
    let Ok((indptr, indices, values)) = given.extract::<Parts<'py>>().or_else(|_| wanted()) else {
        let what = format!("is a {}; {WANTED}", given.get_type().name()?);
        return Err(arguments.invalid(field, &what));
    };
    let offsets = whole(arguments, &format!("{field}.offsets"), &indptr)?;
    let indices = whole(arguments, &format!("{field}.indices"), &indices)?;
    let name = format!("{field}.weights");
    let values = values
        .cast::<PyArray1<f32>>()
        .map_err(|_| wrong(arguments, &name, &values, "float32"))?;
    let values = values.readonly();
    let weights = match values.as_slice() {
        Ok(values) => Bytes::copy_from_slice(bytemuck::cast_slice(values)),
        Err(_) => return Err(arguments.invalid(&name, "is not contiguous; give numpy.ascontiguousarray(...)")),
    };
    let rows = SparseMatrix::try_new(offsets, indices, weights);
    rows.map_err(|(place, what)| arguments.invalid(&format!("{field}.{place}"), &what))
}

/// Whole numbers that are not below 0, of an int32 or int64 array of one dimension.
fn whole<'py, T: TryFrom<i64>>(arguments: Arguments<'py>, field: &str, array: &Bound<'py, PyAny>) -> PyResult<Vec<T>> {
    let numbers: Vec<i64> = if let Ok(array) = array.cast::<PyArray1<i64>>() {
        array.readonly().as_array().iter().copied().collect()
    } else if let Ok(array) = array.cast::<PyArray1<i32>>() {
        array
            .readonly()
            .as_array()
            .iter()
            .map(|&number| i64::from(number))
            .collect()
    } else {
        return Err(wrong(arguments, field, array, "int32 or int64"));
    };
    let fits = numbers.into_iter().enumerate().map(|(at, number)| {
        let what = format!("is {number}, which is out of range");
        T::try_from(number).map_err(|_| arguments.invalid(&format!("{field}[{at}]"), &what))
    });
    fits.collect()
}

fn wrong<'py>(arguments: Arguments<'py>, field: &str, array: &Bound<'py, PyAny>, dtype: &str) -> PyErr {
    let found = match array.cast::<PyUntypedArray>() {
        Ok(array) => format!("has dtype {} and shape {:?}", array.dtype(), array.shape()),
        Err(_) => match array.get_type().name() {
            Ok(class) => format!("is a {class}, not a numpy array"),
            Err(error) => return error,
        },
    };
    arguments.invalid(field, &format!("{found}; give an array of one dimension of {dtype}"))
}

/// A `medkg.results.SparseVectors` that owns the memory.
pub(crate) fn rows(py: Python<'_>, rows: SparseRows) -> PyResult<Bound<'_, PyAny>> {
    results::class(py, "SparseVectors")?.call1((
        PyArray1::from_vec(py, rows.offsets),
        PyArray1::from_vec(py, rows.indices),
        PyArray1::from_vec(py, rows.weights),
    ))
}
