//! What an option may be made of: a value of a file, or the text of an environment variable.
//!
//! Nothing here repeats what it was given: a password in the wrong place must not end up in an error.

use std::path::PathBuf;

use super::document::Value;

/// A type of option.
pub(super) trait Setting: Sized {
    /// What to give, in words.
    const WANTED: &'static str;

    /// None where the text is no such value.
    fn from_text(text: &str) -> Option<Self>;

    /// None where the value is of another type, or out of range.
    fn from_value(value: &Value) -> Option<Self>;
}

impl Setting for String {
    const WANTED: &'static str = "text";

    fn from_text(text: &str) -> Option<Self> {
        Some(text.to_owned())
    }

    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Text(text) => Some(text.clone()),
            _ => None,
        }
    }
}

impl Setting for Vec<String> {
    const WANTED: &'static str = "a list of texts";

    /// Separated by commas.
    fn from_text(text: &str) -> Option<Self> {
        let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
        Some(items.map(str::to_owned).collect())
    }

    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::List(items) => items.iter().map(String::from_value).collect(),
            _ => None,
        }
    }
}

impl Setting for PathBuf {
    const WANTED: &'static str = "a path";

    fn from_text(text: &str) -> Option<Self> {
        Some(Self::from(text))
    }

    fn from_value(value: &Value) -> Option<Self> {
        String::from_value(value).map(Self::from)
    }
}

impl Setting for bool {
    const WANTED: &'static str = "true or false";

    fn from_text(text: &str) -> Option<Self> {
        match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Some(true),
            "false" | "0" | "no" | "off" => Some(false),
            _ => None,
        }
    }

    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Bool(value) => Some(*value),
            _ => None,
        }
    }
}

impl Setting for f64 {
    const WANTED: &'static str = "a number";

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Float(value) => Some(*value),
            Value::Integer(value) => u32::try_from(*value)
                .map(Self::from)
                .or_else(|_| i32::try_from(*value).map(Self::from))
                .ok(),
            _ => None,
        }
    }
}

impl Setting for u32 {
    const WANTED: &'static str = "a whole number from 0 on";

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Integer(value) => Self::try_from(*value).ok(),
            _ => None,
        }
    }
}

impl Setting for u64 {
    const WANTED: &'static str = u32::WANTED;

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Integer(value) => Self::try_from(*value).ok(),
            _ => None,
        }
    }
}
