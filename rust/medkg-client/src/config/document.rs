//! A configuration file as a tree, whether it is TOML or YAML.
//!
//! The tree is read without a schema, because a schema stops at the first mistake and what is wanted is all of them. A
//! mistake of the syntax is told with its line and never with the line's text, which may hold a password.

use std::fmt;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

/// A value in a configuration file.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    /// Nothing; the same as leaving the key out.
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text(String),
    List(Vec<Value>),
    /// In the order of the file.
    Table(Table),
}

/// Keys and what they hold.
pub(super) type Table = Vec<(String, Value)>;

impl Value {
    /// What it is, in words.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "true or false",
            Self::Integer(value) if *value < 0 => "a negative number",
            Self::Integer(_) => "a whole number",
            Self::Float(_) => "a number",
            Self::Text(_) => "text",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
        }
    }
}

/// The tree of a file; the error is what is wrong with it as a whole.
pub(super) fn parse(path: &Path, text: &[u8]) -> Result<Table, String> {
    const WANTED: &str = "give a file that ends in .toml, .yaml or .yml";
    let extension = path.extension().and_then(|extension| extension.to_str());
    let text = std::str::from_utf8(text).map_err(|error| format!("is not UTF-8 after byte {}", error.valid_up_to()))?;
    let value = match extension.map(str::to_ascii_lowercase).as_deref() {
        Some("toml") => toml(text)?,
        Some("yaml" | "yml") => yaml(text)?,
        Some(other) => return Err(format!("ends in .{other}; {WANTED}")),
        None => return Err(format!("has no extension; {WANTED}")),
    };
    match value {
        Value::Table(table) => Ok(table),
        Value::Null => Ok(Table::new()),
        other => Err(format!("is {}; give keys and values", other.kind())),
    }
}

fn toml(text: &str) -> Result<Value, String> {
    toml::from_str(text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        format!("is no TOML: line {line}: {}", error.message())
    })
}

fn yaml(text: &str) -> Result<Value, String> {
    let options = serde_saphyr::options! {
        with_snippet: false,
        strict_booleans: true, // a host named `no` is text
        non_finite_float_policy: serde_saphyr::options::NonFiniteFloatPolicy::PassThrough,
    };
    serde_saphyr::from_str_with_options(text, options)
        .map_err(|error| format!("is no YAML: {}", error.without_snippet()))
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Value, E> {
        Ok(Value::Integer(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut table = Table::new();
        while let Some((key, value)) = entries.next_entry::<String, Value>()? {
            if table.iter().any(|(known, _)| *known == key) {
                return Err(A::Error::custom(format!("{key:?} is there twice")));
            }
            table.push((key, value));
        }
        Ok(Value::Table(table))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, text: &str) -> Result<Table, String> {
        parse(Path::new(name), text.as_bytes())
    }

    #[test]
    fn toml_and_yaml_give_the_same_tree() {
        let toml = "a = 1\nb = 0.5\nc = true\nd = ['x', 'y']\n[e]\nf = 'text'\n[g]\n";
        let yaml = "a: 1\nb: 0.5\nc: true\nd: [x, y]\ne:\n  f: text\ng: {}\n";
        assert_eq!(read("a.toml", toml).unwrap(), read("a.YML", yaml).unwrap());
        assert_eq!(read("a.yaml", "# nothing yet\n").unwrap(), Table::new());
        assert_eq!(read("a.toml", "").unwrap(), Table::new());
    }

    #[test]
    fn a_mistake_is_told_by_its_line_without_the_text_of_it() {
        for (name, text, wanted) in [
            ("a.toml", "timeout = 1\nredis = 'redis://:hunter2@h\n", "line 2"),
            ("a.toml", "redis = 'hunter2'\nredis = 'hunter2'\n", "duplicate"),
            ("a.yaml", "timeout: 1\nredis: \"redis://:hunter2@h\n", "line"),
            ("a.yaml", "redis: hunter2\nredis: hunter2\n", "line 2"),
            ("a.yaml", "redis: 'hunter2' hunter2\n", "line 1"),
            ("a.yaml", "redis: &a hunter2\nb: *hunter3\n", "line 2"),
            ("a.yaml", "- hunter2\n", "is a list"),
            ("a.yaml", "hunter2\n", "is text"),
            ("a.ini", "redis=hunter2", ".toml, .yaml or .yml"),
            ("a", "redis=hunter2", ".toml, .yaml or .yml"),
        ] {
            let error = read(name, text).unwrap_err();
            assert!(
                error.contains(wanted) && !error.contains("hunter2"),
                "{text:?}: {error}"
            );
        }
        assert!(parse(Path::new("a.toml"), b"a = '\xff'").unwrap_err().contains("UTF-8"));
    }

    #[test]
    fn what_would_need_more_than_there_is_is_refused() {
        let deep = |open: &str, close: &str| format!("a{}{}", open.repeat(100_000), close.repeat(100_000));
        let bomb = (1..20).fold("a0: &a0 [x, x]\n".to_owned(), |text, n| {
            text + &format!("a{n}: &a{n} [*a{}, *a{}]\n", n - 1, n - 1)
        });
        for (name, text) in [
            ("a.toml", deep("=[", "]").replace("[=", "[")),
            ("a.yaml", deep(": [", "]").replace("[: ", "[")),
            ("a.yaml", bomb),
        ] {
            let error = read(name, &text).unwrap_err();
            assert!(error.len() < 500, "{error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[-a-z0-9:=\\[\\]{}&*'\"#|>!,. \n]{0,60}", bytes: Vec<u8>) {
            for name in ["a.toml", "a.yaml"] {
                let _ = read(name, &text);
                let _ = parse(Path::new(name), &bytes);
            }
        }
    }
}
