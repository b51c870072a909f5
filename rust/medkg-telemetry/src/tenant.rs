//! For whom a call is made, and which call it is.
//!
//! Both types can only hold a legal value, so nothing behind the edge checks again. A missing or malformed tenant is
//! refused; a missing or malformed request id is replaced, because it only serves to find the call in the logs.

use std::fmt;
use std::str::FromStr;

use crate::carrier::{Carrier, CarrierMut};
use crate::names::{REQUEST_ID, Reason, TENANT_ID};
use crate::random;

/// Most characters of a tenant id.
pub const TENANT_ID_MAX: usize = 63;
/// Most characters of a request id.
pub const REQUEST_ID_MAX: usize = 128;

/// A tenant id: 1–63 characters of `[A-Za-z0-9._-]`, the first a letter or a digit.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantId(String);

/// Why a text is no tenant id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TenantError {
    /// The call carries none.
    #[error("no tenant: set the metadata `{TENANT_ID}` (in Python: `tenant=` of the client or the call)")]
    Missing,
    /// It is the empty text.
    #[error("the tenant id is empty: give 1 to {TENANT_ID_MAX} characters of [A-Za-z0-9._-]")]
    Empty,
    /// It has too many characters.
    #[error("the tenant id has {length} characters: give at most {TENANT_ID_MAX}")]
    TooLong {
        /// Characters it has.
        length: usize,
    },
    /// It starts with one of `._-`.
    #[error("the tenant id starts with {found:?}: the first character must be a letter or a digit (A-Z, a-z, 0-9)")]
    BadStart {
        /// The first character.
        found: char,
    },
    /// It has a character that is not allowed.
    #[error("the tenant id has {found:?} at position {position}: use only letters, digits, '.', '_' and '-'")]
    BadCharacter {
        /// The character.
        found: char,
        /// Its position, counted in characters from 0.
        position: usize,
    },
    /// The call carries more than one.
    #[error("the call carries {count} tenants: send the metadata `{TENANT_ID}` once")]
    Several {
        /// How many.
        count: usize,
    },
}

impl TenantError {
    /// The reason that a server sends with it.
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Missing => Reason::TenantMissing,
            Self::Empty
            | Self::TooLong { .. }
            | Self::BadStart { .. }
            | Self::BadCharacter { .. }
            | Self::Several { .. } => Reason::TenantInvalid,
        }
    }
}

impl TenantId {
    /// Checks a text.
    pub fn try_new(text: &str) -> Result<Self, TenantError> {
        let Some(first) = text.chars().next() else {
            return Err(TenantError::Empty);
        };
        for (position, found) in text.chars().enumerate() {
            if !(found.is_ascii_alphanumeric() || matches!(found, '.' | '_' | '-')) {
                return Err(TenantError::BadCharacter { found, position });
            }
        }
        if !first.is_ascii_alphanumeric() {
            return Err(TenantError::BadStart { found: first });
        }
        if text.len() > TENANT_ID_MAX {
            return Err(TenantError::TooLong { length: text.len() });
        }
        Ok(Self(text.to_owned()))
    }

    /// Reads the tenant of a call.
    pub fn extract(carrier: &impl Carrier) -> Result<Self, TenantError> {
        match *carrier.all(TENANT_ID) {
            [] => Err(TenantError::Missing),
            [one] => Self::try_new(one),
            ref several => Err(TenantError::Several { count: several.len() }),
        }
    }

    /// Writes it into the metadata of a call.
    pub fn inject(&self, carrier: &mut impl CarrierMut) {
        carrier.set(TENANT_ID, &self.0);
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TenantId {
    type Err = TenantError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::try_new(text)
    }
}

/// A request id: 1–128 printable ASCII characters without spaces.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RequestId(String);

/// Why a text is no request id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestIdError {
    /// It is the empty text.
    #[error("the request id is empty: give 1 to {REQUEST_ID_MAX} printable ASCII characters, or none at all")]
    Empty,
    /// It has too many characters.
    #[error("the request id has {length} bytes: give at most {REQUEST_ID_MAX}")]
    TooLong {
        /// Bytes it has.
        length: usize,
    },
    /// It has a character that is not allowed.
    #[error("the request id has {found:?} at position {position}: use only printable ASCII without spaces")]
    BadCharacter {
        /// The character.
        found: char,
        /// Its position, counted in characters from 0.
        position: usize,
    },
}

impl RequestId {
    /// Checks a text.
    pub fn try_new(text: &str) -> Result<Self, RequestIdError> {
        if text.is_empty() {
            return Err(RequestIdError::Empty);
        }
        if let Some((position, found)) = text.chars().enumerate().find(|(_, c)| !c.is_ascii_graphic()) {
            return Err(RequestIdError::BadCharacter { found, position });
        }
        if text.len() > REQUEST_ID_MAX {
            return Err(RequestIdError::TooLong { length: text.len() });
        }
        Ok(Self(text.to_owned()))
    }

    /// A fresh one: 32 hex digits.
    pub fn random() -> Self {
        Self(random::hex(&random::bytes::<16>()))
    }

    /// Reads the request id of a call; a fresh one if there is none that can be used.
    pub fn extract_or_random(carrier: &impl Carrier) -> Self {
        carrier
            .all(REQUEST_ID)
            .first()
            .and_then(|text| Self::try_new(text).ok())
            .unwrap_or_else(Self::random)
    }

    /// Writes it into the metadata of a call.
    pub fn inject(&self, carrier: &mut impl CarrierMut) {
        carrier.set(REQUEST_ID, &self.0);
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for RequestId {
    type Err = RequestIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::try_new(text)
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;
    use tonic::metadata::MetadataMap;

    use super::*;

    #[test]
    fn legal_tenants_pass_unchanged() {
        let longest = "a".repeat(TENANT_ID_MAX);
        for text in ["a", "9", "demo", "St-Mary.s_2", longest.as_str()] {
            assert_eq!(TenantId::try_new(text).unwrap().as_str(), text);
        }
    }

    #[test]
    fn illegal_tenants_say_what_is_wrong() {
        assert_eq!(TenantId::try_new(""), Err(TenantError::Empty));
        assert_eq!(
            TenantId::try_new(&"a".repeat(64)),
            Err(TenantError::TooLong { length: 64 })
        );
        assert_eq!(TenantId::try_new(".a"), Err(TenantError::BadStart { found: '.' }));
        assert_eq!(
            TenantId::try_new("a b"),
            Err(TenantError::BadCharacter {
                found: ' ',
                position: 1
            })
        );
        assert_eq!(
            TenantId::try_new("éa"),
            Err(TenantError::BadCharacter {
                found: 'é',
                position: 0
            })
        );
        assert_eq!(
            TenantId::try_new("a\n"),
            Err(TenantError::BadCharacter {
                found: '\n',
                position: 1
            })
        );
        assert_eq!(
            TenantId::try_new("../x"),
            Err(TenantError::BadCharacter {
                found: '/',
                position: 2
            })
        );
    }

    #[test]
    fn tenant_travels_in_metadata() {
        let mut metadata = MetadataMap::new();
        assert_eq!(
            TenantId::extract(&metadata).unwrap_err().reason(),
            Reason::TenantMissing
        );
        TenantId::try_new("demo").unwrap().inject(&mut metadata);
        assert_eq!(TenantId::extract(&metadata).unwrap().as_str(), "demo");
        metadata.append(TENANT_ID, "other".parse().unwrap());
        let error = TenantId::extract(&metadata).unwrap_err();
        assert_eq!(error, TenantError::Several { count: 2 });
        assert_eq!(error.reason(), Reason::TenantInvalid);
    }

    #[test]
    fn a_bad_request_id_is_replaced() {
        let mut headers = HeaderMap::new();
        headers.insert(REQUEST_ID, "abc-1".parse().unwrap());
        assert_eq!(RequestId::extract_or_random(&headers).as_str(), "abc-1");
        headers.insert(REQUEST_ID, "two words".parse().unwrap());
        let replaced = RequestId::extract_or_random(&headers);
        assert_eq!(replaced.as_str().len(), 32);
        assert_ne!(replaced, RequestId::extract_or_random(&headers));
    }

    #[test]
    fn illegal_request_ids_say_what_is_wrong() {
        assert_eq!(RequestId::try_new(""), Err(RequestIdError::Empty));
        assert_eq!(
            RequestId::try_new(&"a".repeat(129)),
            Err(RequestIdError::TooLong { length: 129 })
        );
        assert_eq!(
            RequestId::try_new("a\u{7f}"),
            Err(RequestIdError::BadCharacter {
                found: '\u{7f}',
                position: 1
            })
        );
    }
}
