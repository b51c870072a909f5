//! Conditions on payloads, and how they are decided.
//!
//! A filter looks at values that were taken out of the payloads before (`columns`), one cell per point and field. It is
//! decided for all points at once, before anything is compared.

use std::cmp::Ordering;
use std::ops::Bound;

use serde_json::Value;

/// The keys that lead from a payload to a value.
pub type Field = Vec<String>;

/// A value that can be compared.
#[derive(Debug, Clone, PartialEq)]
pub enum Scalar {
    /// true or false.
    Boolean(bool),
    /// A whole number.
    Integer(i64),
    /// A finite number.
    Float(f64),
    /// A text.
    Text(Box<str>),
}

impl Scalar {
    /// Booleans, then numbers by value, then texts by their characters.
    pub fn order(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Boolean(a), Self::Boolean(b)) => a.cmp(b),
            (Self::Integer(a), Self::Integer(b)) => a.cmp(b),
            (Self::Float(a), Self::Float(b)) => a.partial_cmp(b).unwrap_or(Ordering::Equal),
            (Self::Integer(a), Self::Float(b)) => integer_to_float(*a, *b),
            (Self::Float(a), Self::Integer(b)) => integer_to_float(*b, *a).reverse(),
            (Self::Text(a), Self::Text(b)) => a.cmp(b),
            _ => self.kind().cmp(&other.kind()),
        }
    }

    /// Only values of one kind lie between each other.
    pub const fn kind(&self) -> u8 {
        match self {
            Self::Boolean(_) => 0,
            Self::Integer(_) | Self::Float(_) => 1,
            Self::Text(_) => 2,
        }
    }

    fn read(value: &Value) -> Option<Self> {
        match value {
            Value::Bool(value) => Some(Self::Boolean(*value)),
            Value::Number(number) => match number.as_i64() {
                Some(whole) => Some(Self::Integer(whole)),
                None => number.as_f64().map(Self::Float),
            },
            Value::String(text) => Some(Self::Text(text.as_str().into())),
            Value::Null | Value::Array(_) | Value::Object(_) => None,
        }
    }

    fn heap_bytes(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            _ => 0,
        }
    }
}

/// By value, also where an f64 cannot hold the integer.
fn integer_to_float(integer: i64, float: f64) -> Ordering {
    const BEYOND: f64 = 9_223_372_036_854_775_808.0;
    if float >= BEYOND {
        return Ordering::Less;
    }
    if float < -BEYOND {
        return Ordering::Greater;
    }
    let whole = float.trunc();
    #[expect(clippy::cast_possible_truncation, reason = "it is whole and within the range")]
    let order = integer.cmp(&(whole as i64));
    order.then_with(|| whole.partial_cmp(&float).unwrap_or(Ordering::Equal))
}

/// What one payload has in one field.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    /// The payload lacks the field.
    Absent,
    /// null.
    Null,
    /// A value.
    One(Scalar),
    /// A list; of its elements, those that can be compared.
    Many(Box<[Scalar]>),
    /// An object.
    Object,
}

impl Cell {
    /// What `payload` has in `field`.
    pub fn read(payload: &Value, field: &[String]) -> Self {
        let Some(value) = field.iter().try_fold(payload, |value, key| value.get(key.as_str())) else {
            return Self::Absent;
        };
        match value {
            Value::Null => Self::Null,
            Value::Object(_) => Self::Object,
            Value::Array(elements) => Self::Many(elements.iter().filter_map(Scalar::read).collect()),
            value => Scalar::read(value).map_or(Self::Object, Self::One),
        }
    }

    /// Bytes it takes beside its place in a column.
    pub fn heap_bytes(&self) -> usize {
        match self {
            Self::Absent | Self::Null | Self::Object => 0,
            Self::One(value) => value.heap_bytes(),
            Self::Many(values) => values
                .iter()
                .map(|value| size_of::<Scalar>() + value.heap_bytes())
                .sum(),
        }
    }
}

/// Which points are meant.
#[derive(Debug, Clone, PartialEq)]
pub enum Filter {
    /// One condition on one field.
    Test {
        /// The field.
        field: Field,
        /// The condition.
        test: Test,
        /// Where the request names the field, for errors.
        path: String,
    },
    /// All of them.
    And(Vec<Self>),
    /// At least one of them.
    Or(Vec<Self>),
    /// Not this one.
    Not(Box<Self>),
}

/// A condition on a value.
#[derive(Debug, Clone, PartialEq)]
pub enum Test {
    /// It is one of these, which are sorted by [`Scalar::order`].
    In(Vec<Scalar>),
    /// It lies between these, which are of one kind.
    Between(Bound<Scalar>, Bound<Scalar>),
    /// It is there and not null.
    Exists,
}

impl Test {
    fn holds(&self, cell: &Cell) -> bool {
        match (self, cell) {
            (_, Cell::Absent | Cell::Null) => false,
            (Self::Exists, _) => true,
            (_, Cell::Object) => false,
            (_, Cell::One(value)) => self.takes(value),
            (_, Cell::Many(values)) => values.iter().any(|value| self.takes(value)),
        }
    }

    fn takes(&self, value: &Scalar) -> bool {
        match self {
            Self::Exists => true,
            Self::In(wanted) => wanted.binary_search_by(|one| one.order(value)).is_ok(),
            Self::Between(low, high) => {
                let above = match low {
                    Bound::Unbounded => true,
                    Bound::Included(low) => low.kind() == value.kind() && value.order(low).is_ge(),
                    Bound::Excluded(low) => low.kind() == value.kind() && value.order(low).is_gt(),
                };
                above
                    && match high {
                        Bound::Unbounded => true,
                        Bound::Included(high) => high.kind() == value.kind() && value.order(high).is_le(),
                        Bound::Excluded(high) => high.kind() == value.kind() && value.order(high).is_lt(),
                    }
            }
        }
    }
}

impl Filter {
    /// Every field with where the request names it, as often as it does.
    pub fn fields(&self) -> Vec<(&Field, &str)> {
        match self {
            Self::Test { field, path, .. } => vec![(field, path)],
            Self::And(parts) | Self::Or(parts) => parts.iter().flat_map(Self::fields).collect(),
            Self::Not(part) => part.fields(),
        }
    }

    /// For each of `count` points, whether it is meant. `column` has the cells of a field, one per point.
    pub fn decide<'a>(&self, count: usize, column: &impl Fn(&Field) -> &'a [Cell]) -> Vec<bool> {
        match self {
            Self::Test { field, test, .. } => column(field).iter().map(|cell| test.holds(cell)).collect(),
            Self::And(parts) => {
                let mut all = vec![true; count];
                for part in parts {
                    for (all, one) in all.iter_mut().zip(part.decide(count, column)) {
                        *all &= one;
                    }
                }
                all
            }
            Self::Or(parts) => {
                let mut any = vec![false; count];
                for part in parts {
                    for (any, one) in any.iter_mut().zip(part.decide(count, column)) {
                        *any |= one;
                    }
                }
                any
            }
            Self::Not(part) => {
                let mut decided = part.decide(count, column);
                for one in &mut decided {
                    *one = !*one;
                }
                decided
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_are_compared_by_value_also_where_a_float_cannot_hold_them() {
        use Ordering::{Equal, Greater, Less};
        let large = 9_007_199_254_740_993;
        for (integer, float, order) in [
            (2, 2.0, Equal),
            (2, 2.5, Less),
            (-2, -2.5, Greater),
            (large, 9_007_199_254_740_992.0, Greater),
            (i64::MAX, 9_223_372_036_854_775_808.0, Less),
            (i64::MIN, -9_223_372_036_854_775_808.0, Equal),
            (i64::MIN, -1e300, Greater),
            (0, -0.0, Equal),
        ] {
            let (integer, float) = (Scalar::Integer(integer), Scalar::Float(float));
            assert_eq!(integer.order(&float), order, "{integer:?} to {float:?}");
            assert_eq!(float.order(&integer), order.reverse());
        }
    }

    #[test]
    fn a_cell_is_what_the_keys_lead_to() {
        let payload = json!({"a": {"b.c": [1, "x", null, {"d": 1}, [2]]}, "n": null, "t": "x", "": true});
        let read = |keys: &[&str]| Cell::read(&payload, &keys.iter().map(ToString::to_string).collect::<Field>());
        let list = [Scalar::Integer(1), Scalar::Text("x".into())];
        assert_eq!(read(&["a", "b.c"]), Cell::Many(list.into()));
        assert_eq!(read(&["a"]), Cell::Object);
        assert_eq!(read(&["n"]), Cell::Null);
        assert_eq!(read(&["t"]), Cell::One(Scalar::Text("x".into())));
        assert_eq!(read(&[""]), Cell::One(Scalar::Boolean(true)));
        assert_eq!(read(&["t", "x"]), Cell::Absent);
        assert_eq!(read(&["n", "x"]), Cell::Absent);
    }

    #[test]
    fn only_values_of_the_bounds_kind_lie_between_them() {
        let test = Test::Between(Bound::Excluded(Scalar::Integer(1)), Bound::Included(Scalar::Float(2.5)));
        let holds = |value: Value| test.holds(&Cell::read(&json!({ "x": value }), &["x".to_owned()]));
        assert!(holds(json!(1.5)) && holds(json!(2)) && holds(json!(2.5)) && holds(json!(["a", 0, 2])));
        assert!(!holds(json!(1)) && !holds(json!(3)) && !holds(json!("2")) && !holds(json!(true)));
        assert!(!holds(json!(null)) && !holds(json!([])) && !holds(json!({"y": 2})));
    }
}
