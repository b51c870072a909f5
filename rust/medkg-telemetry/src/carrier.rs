//! What identity is read from and written to: gRPC metadata and HTTP headers, which are the same thing underneath.

use http::{HeaderMap, HeaderName, HeaderValue};
use tonic::metadata::MetadataMap;

/// Something that headers are read from.
pub trait Carrier {
    /// All values of `key` that are visible ASCII, in order. `key` is lower case.
    fn all(&self, key: &'static str) -> Vec<&str>;
}

/// Something that headers are written to.
pub trait CarrierMut {
    /// Replaces every value of `key`. A value that is no legal header value is left out.
    fn set(&mut self, key: &'static str, value: &str);
}

impl Carrier for HeaderMap {
    fn all(&self, key: &'static str) -> Vec<&str> {
        self.get_all(key)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .collect()
    }
}

impl CarrierMut for HeaderMap {
    fn set(&mut self, key: &'static str, value: &str) {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.insert(HeaderName::from_static(key), value);
        }
    }
}

impl Carrier for MetadataMap {
    fn all(&self, key: &'static str) -> Vec<&str> {
        self.as_ref().all(key)
    }
}

impl CarrierMut for MetadataMap {
    fn set(&mut self, key: &'static str, value: &str) {
        if let Ok(value) = value.parse() {
            self.insert(key, value);
        }
    }
}
