//! Conditions on payloads. The server checks them; a field that no payload of the collection has is an error.

use medkg_proto::v1;
use medkg_proto::v1::filter::Condition;
use medkg_proto::v1::filter_value::Value;

/// How deep the server lets filters be nested.
pub const MAX_FILTER_DEPTH: usize = 32;

/// Which points are meant. A field is the keys that lead from a payload to a value.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Filter {
    /// The value equals one.
    Equals(Vec<String>, FilterValue),
    /// The value equals one of several.
    In(Vec<String>, Vec<FilterValue>),
    /// The value lies between bounds.
    Range(Vec<String>, Bounds),
    /// The value is there and not null.
    Exists(Vec<String>),
    /// All of them.
    And(Vec<Self>),
    /// At least one of them.
    Or(Vec<Self>),
    /// Not this one.
    Not(Box<Self>),
}

/// A value in a payload.
#[derive(Debug, Clone, PartialEq)]
pub enum FilterValue {
    /// A text.
    Text(String),
    /// A whole number.
    Integer(i64),
    /// A finite number.
    Number(f64),
    /// true or false.
    Boolean(bool),
}

/// The ends of a range: at most one lower and one upper.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Bounds {
    /// More than this.
    pub gt: Option<FilterValue>,
    /// At least this.
    pub gte: Option<FilterValue>,
    /// Less than this.
    pub lt: Option<FilterValue>,
    /// At most this.
    pub lte: Option<FilterValue>,
}

impl From<FilterValue> for v1::FilterValue {
    fn from(value: FilterValue) -> Self {
        let value = match value {
            FilterValue::Text(text) => Value::Text(text),
            FilterValue::Integer(integer) => Value::Integer(integer),
            FilterValue::Number(number) => Value::Number(number),
            FilterValue::Boolean(boolean) => Value::Boolean(boolean),
        };
        Self { value: Some(value) }
    }
}

impl From<Filter> for v1::Filter {
    fn from(filter: Filter) -> Self {
        let list = |parts: Vec<Filter>| v1::FilterList {
            filters: parts.into_iter().map(Into::into).collect(),
        };
        let condition = match filter {
            Filter::Equals(field, value) => Condition::Equals(v1::FilterEquals {
                field,
                value: Some(value.into()),
            }),
            Filter::In(field, values) => Condition::In(v1::FilterIn {
                field,
                values: values.into_iter().map(Into::into).collect(),
            }),
            Filter::Range(field, bounds) => Condition::Range(v1::FilterRange {
                field,
                gt: bounds.gt.map(Into::into),
                gte: bounds.gte.map(Into::into),
                lt: bounds.lt.map(Into::into),
                lte: bounds.lte.map(Into::into),
            }),
            Filter::Exists(field) => Condition::Exists(v1::FilterExists { field }),
            Filter::And(parts) => Condition::And(list(parts)),
            Filter::Or(parts) => Condition::Or(list(parts)),
            Filter::Not(part) => Condition::Not(Box::new((*part).into())),
        };
        Self {
            condition: Some(condition),
        }
    }
}
