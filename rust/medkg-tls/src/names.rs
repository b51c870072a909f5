//! The names of medkg in certificates: URIs among the subject alternative names, which a certificate may have any number
//! of beside DNS names and addresses.
//!
//! URNs rather than `medkg://...`: RFC 5280 (section 4.2.1.6) wants a host name in a URI that has an authority, and a tenant
//! is none.

/// Before the id of a tenant whom the holder may act for.
const TENANT: &str = "urn:medkg:tenant:";
/// Before the name of the service that the holder is.
const SERVICE: &str = "urn:medkg:service:";

/// The tenant that a URI names.
pub(crate) fn tenant(uri: &str) -> Option<&str> {
    after(uri, TENANT)
}

/// The service that a URI names.
pub(crate) fn service(uri: &str) -> Option<&str> {
    after(uri, SERVICE)
}

/// The URI that names a tenant.
#[cfg(feature = "authority")]
pub(crate) fn of_tenant(tenant: &str) -> String {
    format!("{TENANT}{tenant}")
}

/// The URI that names a service.
#[cfg(feature = "authority")]
pub(crate) fn of_service(service: &str) -> String {
    format!("{SERVICE}{service}")
}

/// `urn:` and what follows it up to the next colon are the same in upper case (RFC 8141, section 3.1). Whoever writes a
/// certificate that way means to bind its holder; not to see it would let the holder act for everybody.
fn after<'a>(uri: &'a str, prefix: &str) -> Option<&'a str> {
    let (start, rest) = uri.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_in_any_case_and_nothing_else_is_one() {
        assert_eq!(tenant("urn:medkg:tenant:oncology"), Some("oncology"));
        assert_eq!(tenant("URN:Medkg:Tenant:Oncology"), Some("Oncology"));
        assert_eq!(tenant("urn:medkg:tenant:"), Some(""));
        for other in [
            "urn:medkg:service:a",
            "spiffe://medkg/tenant/a",
            "urn:medkg:tenan",
            "",
            "é",
        ] {
            assert_eq!(tenant(other), None, "{other}");
        }
        assert_eq!(service("urn:medkg:service:gateway"), Some("gateway"));
        assert_eq!(service("urn:medkg:tenant:a"), None);
    }
}
