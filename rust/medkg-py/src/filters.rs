//! Filters of `medkg.filters` as the client takes them. What the server checks is not checked here a second time, but for
//! the depth: Python lets filters be nested deeper than a stack is.

use medkg_client::service::vector::{Bounds, Filter, FilterValue, MAX_FILTER_DEPTH};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyFloat, PyInt, PyString};

use crate::arguments::Arguments;

/// The filter behind an instance of `medkg.filters.Filter`.
pub(crate) fn read<'py>(arguments: Arguments<'py>, filter: &Bound<'py, PyAny>) -> PyResult<Filter> {
    Reader { arguments }.filter("filter", filter, 1)
}

struct Reader<'py> {
    arguments: Arguments<'py>,
}

impl<'py> Reader<'py> {
    fn filter(&self, path: &str, filter: &Bound<'py, PyAny>, depth: usize) -> PyResult<Filter> {
        if depth > MAX_FILTER_DEPTH {
            let what = format!("is nested too deep; at most {MAX_FILTER_DEPTH} levels are taken");
            return Err(self.arguments.invalid(path, &what));
        }
        let py = self.arguments.py;
        let kind = filter.get_type();
        let module = py.import("medkg.filters")?;
        let is = |name: &str| -> PyResult<bool> { Ok(kind.is(module.getattr(name)?)) };
        if is("Equals")? {
            let path = format!("{path}.equals");
            let value = self.value(&format!("{path}.value"), &filter.getattr("value")?)?;
            return Ok(Filter::Equals(self.field(&path, filter)?, value));
        }
        if is("In")? {
            let path = format!("{path}.in");
            let mut values = Vec::new();
            for (index, value) in filter.getattr("values")?.try_iter()?.enumerate() {
                values.push(self.value(&format!("{path}.values[{index}]"), &value?)?);
            }
            return Ok(Filter::In(self.field(&path, filter)?, values));
        }
        if is("Range")? {
            let path = format!("{path}.range");
            let bound = |name: &str| {
                let value = filter.getattr(name)?;
                let value = (!value.is_none()).then(|| self.value(&format!("{path}.{name}"), &value));
                value.transpose()
            };
            let bounds = Bounds {
                gt: bound("gt")?,
                gte: bound("gte")?,
                lt: bound("lt")?,
                lte: bound("lte")?,
            };
            return Ok(Filter::Range(self.field(&path, filter)?, bounds));
        }
        if is("Exists")? {
            return Ok(Filter::Exists(self.field(&format!("{path}.exists"), filter)?));
        }
        if is("And")? {
            return Ok(Filter::And(self.list(&format!("{path}.and"), filter, depth)?));
        }
        if is("Or")? {
            return Ok(Filter::Or(self.list(&format!("{path}.or"), filter, depth)?));
        }
        if is("Not")? {
            let part = self.filter(&format!("{path}.not"), &filter.getattr("filter")?, depth + 1)?;
            return Ok(Filter::Not(Box::new(part)));
        }
        let what = format!("is a {}; give a filter of medkg.filters", kind.name()?);
        Err(self.arguments.invalid(path, &what))
    }

    fn list(&self, path: &str, filter: &Bound<'py, PyAny>, depth: usize) -> PyResult<Vec<Filter>> {
        let parts = filter.getattr("filters")?.try_iter()?.enumerate();
        parts
            .map(|(index, part)| self.filter(&format!("{path}[{index}]"), &part?, depth + 1))
            .collect()
    }

    /// The keys: those of a dotted path, or the given ones as they are.
    fn field(&self, path: &str, filter: &Bound<'py, PyAny>) -> PyResult<Vec<String>> {
        let path = format!("{path}.field");
        let field = filter.getattr("field")?;
        if field.is_instance_of::<PyString>() {
            let dotted = self.arguments.string(|| path.clone(), &field)?;
            return Ok(dotted.split('.').map(str::to_owned).collect());
        }
        self.arguments.strings(&path, &field)
    }

    fn value(&self, path: &str, value: &Bound<'py, PyAny>) -> PyResult<FilterValue> {
        // A bool is an int to Python, so it comes first.
        if value.is_instance_of::<PyBool>() {
            return Ok(FilterValue::Boolean(value.extract()?));
        }
        if value.is_instance_of::<PyInt>() {
            let integer = value.extract();
            let what = "is beyond 64 bits; give a smaller number, or a float";
            return integer
                .map(FilterValue::Integer)
                .map_err(|_| self.arguments.invalid(path, what));
        }
        if value.is_instance_of::<PyFloat>() {
            return Ok(FilterValue::Number(value.extract()?));
        }
        if value.is_instance_of::<PyString>() {
            return Ok(FilterValue::Text(self.arguments.string(|| path.to_owned(), value)?));
        }
        let class = value.get_type().name()?;
        let what = format!("is a {class}; give a str, an int, a float or a bool");
        Err(self.arguments.invalid(path, &what))
    }
}
