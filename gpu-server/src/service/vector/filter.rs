//! The wire's filters, checked: depth, number of conditions, fields and values. Errors name the path in the filter.

use std::collections::HashSet;
use std::ops::Bound;

use medkg_proto::v1;
use medkg_proto::v1::filter::Condition;
use medkg_proto::v1::filter_value::Value;

use crate::error::Error;
use crate::index::filter::{Field, Filter, Scalar, Test};

const MAX_DEPTH: usize = 32;
const MAX_CONDITIONS: usize = 256;
const MAX_FIELDS: usize = 16;
const MAX_KEYS: usize = 8;
const MAX_KEY_BYTES: usize = 256;
const MAX_VALUES: usize = 4_096;
const MAX_TEXT_BYTES: usize = 1_024;

/// The filter of a request.
///
/// # Errors
/// [`Error::InvalidField`] naming the path, e.g. `filter.and[2].not.equals.value`.
pub fn read(filter: v1::Filter) -> Result<Filter, Error> {
    let mut reader = Reader::default();
    let read = reader.filter("filter", filter, 1)?;
    if reader.fields.len() > MAX_FIELDS {
        let problem = format!("is over {} fields; at most {MAX_FIELDS} are taken", reader.fields.len());
        return Err(Error::invalid("filter", problem));
    }
    Ok(read)
}

#[derive(Default)]
struct Reader {
    conditions: usize,
    fields: HashSet<Field>,
}

impl Reader {
    fn filter(&mut self, path: &str, filter: v1::Filter, depth: usize) -> Result<Filter, Error> {
        if depth > MAX_DEPTH {
            let problem = format!("is nested too deep; at most {MAX_DEPTH} levels are taken");
            return Err(Error::invalid(path, problem));
        }
        self.conditions += 1;
        if self.conditions > MAX_CONDITIONS {
            let problem = format!("is one condition too many; a filter has at most {MAX_CONDITIONS}");
            return Err(Error::invalid(path, problem));
        }
        let condition = filter.condition.ok_or_else(|| {
            Error::invalid(
                path,
                "has no condition; set one of equals, in, range, exists, and, or, not",
            )
        })?;
        match condition {
            Condition::Equals(equals) => {
                let wanted = scalar(|| format!("{path}.equals.value"), equals.value)?;
                self.test(format!("{path}.equals.field"), equals.field, Test::In(vec![wanted]))
            }
            Condition::In(one_of) => {
                let test = values(path, one_of.values)?;
                self.test(format!("{path}.in.field"), one_of.field, test)
            }
            Condition::Range(range) => {
                let field = range.field.clone();
                let test = between(path, range)?;
                self.test(format!("{path}.range.field"), field, test)
            }
            Condition::Exists(exists) => self.test(format!("{path}.exists.field"), exists.field, Test::Exists),
            Condition::And(list) => Ok(Filter::And(self.list(&format!("{path}.and"), list, depth)?)),
            Condition::Or(list) => Ok(Filter::Or(self.list(&format!("{path}.or"), list, depth)?)),
            Condition::Not(part) => {
                let part = self.filter(&format!("{path}.not"), *part, depth + 1)?;
                Ok(Filter::Not(Box::new(part)))
            }
        }
    }

    fn list(&mut self, path: &str, list: v1::FilterList, depth: usize) -> Result<Vec<Filter>, Error> {
        if list.filters.is_empty() {
            return Err(Error::invalid(path, "is empty; give at least one filter"));
        }
        let parts = list.filters.into_iter().enumerate();
        parts
            .map(|(index, part)| self.filter(&format!("{path}[{index}]"), part, depth + 1))
            .collect()
    }

    fn test(&mut self, path: String, field: Field, test: Test) -> Result<Filter, Error> {
        if !(1..=MAX_KEYS).contains(&field.len()) {
            let problem = format!("has {} keys; a field has 1 to {MAX_KEYS}", field.len());
            return Err(Error::invalid(path, problem));
        }
        if let Some(key) = field.iter().find(|key| key.len() > MAX_KEY_BYTES) {
            let problem = format!("has a key of {} bytes; at most {MAX_KEY_BYTES} are taken", key.len());
            return Err(Error::invalid(path, problem));
        }
        self.fields.insert(field.clone());
        Ok(Filter::Test { field, test, path })
    }
}

fn values(path: &str, values: Vec<v1::FilterValue>) -> Result<Test, Error> {
    super::super::validate::count(&format!("{path}.in.values"), values.len(), MAX_VALUES)?;
    let mut wanted = Vec::with_capacity(values.len());
    for (index, value) in values.into_iter().enumerate() {
        wanted.push(scalar(|| format!("{path}.in.values[{index}]"), Some(value))?);
    }
    wanted.sort_by(Scalar::order);
    Ok(Test::In(wanted))
}

fn between(path: &str, range: v1::FilterRange) -> Result<Test, Error> {
    let mut bounds = Vec::new();
    for (name, value) in [
        ("gt", range.gt),
        ("gte", range.gte),
        ("lt", range.lt),
        ("lte", range.lte),
    ] {
        let Some(value) = value else {
            bounds.push(None);
            continue;
        };
        let field = || format!("{path}.range.{name}");
        let bound = scalar(field, Some(value))?;
        if matches!(bound, Scalar::Boolean(_)) {
            return Err(Error::invalid(field(), "is a boolean; a bound is a number or a text"));
        }
        bounds.push(Some(bound));
    }
    let wrong = |problem: &str| Error::invalid(format!("{path}.range"), problem);
    let mut bounds = bounds.into_iter();
    let mut next = || bounds.next().flatten();
    let low = match (next(), next()) {
        (Some(_), Some(_)) => return Err(wrong("has both gt and gte; give one")),
        (Some(above), None) => Bound::Excluded(above),
        (None, Some(least)) => Bound::Included(least),
        (None, None) => Bound::Unbounded,
    };
    let high = match (next(), next()) {
        (Some(_), Some(_)) => return Err(wrong("has both lt and lte; give one")),
        (Some(below), None) => Bound::Excluded(below),
        (None, Some(most)) => Bound::Included(most),
        (None, None) => Bound::Unbounded,
    };
    match (kind(&low), kind(&high)) {
        (None, None) => Err(wrong("has no bound; give gt, gte, lt or lte")),
        (Some(low), Some(high)) if low != high => Err(wrong("has a number and a text as bounds; give two of one kind")),
        _ => Ok(Test::Between(low, high)),
    }
}

fn kind(bound: &Bound<Scalar>) -> Option<u8> {
    match bound {
        Bound::Unbounded => None,
        Bound::Included(value) | Bound::Excluded(value) => Some(value.kind()),
    }
}

fn scalar(field: impl Fn() -> String, value: Option<v1::FilterValue>) -> Result<Scalar, Error> {
    match value.and_then(|value| value.value) {
        None => Err(Error::invalid(
            field(),
            "is missing; give a text, a number or a boolean",
        )),
        Some(Value::Text(text)) if text.len() > MAX_TEXT_BYTES => Err(Error::invalid(
            field(),
            format!("has {} bytes; at most {MAX_TEXT_BYTES} are taken", text.len()),
        )),
        Some(Value::Number(number)) if !number.is_finite() => {
            Err(Error::invalid(field(), format!("is {number}; a number must be finite")))
        }
        Some(Value::Text(text)) => Ok(Scalar::Text(text.into())),
        Some(Value::Integer(integer)) => Ok(Scalar::Integer(integer)),
        Some(Value::Number(number)) => Ok(Scalar::Float(number)),
        Some(Value::Boolean(boolean)) => Ok(Scalar::Boolean(boolean)),
    }
}
