//! Who may call for whom: the names in a client's certificate against the tenant of its call.
//!
//! A certificate that names tenants binds its holder to them, and keeps it away from the addresses of operators and scrapers,
//! where there are no tenants to be kept apart. A certificate that names none is a service's (a gateway, a Dagster
//! worker, an operator), which acts for any tenant. A layer in front of all routes decides it, so no method can forget to; what
//! is not bound to a certificate (plaintext, TLS without `--tls-client-ca`) it lets through.

use std::future::{Ready, ready};
use std::task::{Context, Poll};

use futures_util::future::Either;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Request, Response, StatusCode};
use medkg_telemetry::Carrier as _;
use medkg_telemetry::names::TENANT_ID;
use medkg_telemetry::tenant::RequestId;
use medkg_tls::PeerIdentity;
use tonic::body::Body;
use tower::Service;

use super::status;
use crate::error::Error;
use crate::lingering::Link;

/// What one address asks of certificates.
#[derive(Debug, Clone, Copy)]
pub struct Admittance {
    /// Whether callers that are bound to tenants are let in.
    pub tenants: bool,
    /// Whether a certificate must name a tenant or a service.
    pub names: bool,
}

impl Admittance {
    /// Whether the holder of a certificate may make a call with these headers.
    fn check(self, peer: &PeerIdentity, headers: &HeaderMap) -> Result<(), Error> {
        let subject = || format!("certificate {:?}", peer.subject);
        let mut tenants = peer.tenants().peekable();
        if tenants.peek().is_none() {
            return match peer.service() {
                None if self.names => Err(Error::NotAuthorized {
                    detail: format!(
                        "{} names neither a tenant nor a service, as --production asks for; show one that \
                         `medkg certs issue client` made",
                        subject()
                    ),
                }),
                _ => Ok(()),
            };
        }
        if !self.tenants {
            return Err(Error::NotAuthorized {
                detail: format!(
                    "{} is bound to tenants, and this address serves operators; show the certificate of a service",
                    subject()
                ),
            });
        }
        let mut asked = headers.all(TENANT_ID).into_iter();
        // A call without a tenant touches no tenant's data, or is refused for the want of one.
        match asked.find(|tenant| !peer.tenants().any(|named| named == *tenant)) {
            None => Ok(()),
            Some(tenant) => Err(Error::NotAuthorized {
                detail: format!(
                    "{} names tenant {}, not {tenant:?}; call for one that it names, or show another certificate",
                    subject(),
                    tenants.collect::<Vec<_>>().join(", ")
                ),
            }),
        }
    }
}

/// Lets through what may pass.
#[derive(Debug, Clone)]
pub struct Admitted<S> {
    inner: S,
    admittance: Admittance,
}

impl<S> Admitted<S> {
    /// Around `inner`.
    pub const fn new(inner: S, admittance: Admittance) -> Self {
        Self { inner, admittance }
    }
}

impl<S, B> Service<Request<B>> for Admitted<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<Response<Body>, S::Error>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let peer = request.extensions().get::<Link>().and_then(|link| link.peer.clone());
        let Some(peer) = peer else {
            return Either::Left(self.inner.call(request));
        };
        match self.admittance.check(&peer, request.headers()) {
            Ok(()) => Either::Left(self.inner.call(request)),
            Err(error) => Either::Right(ready(Ok(refusal(&request, &error)))),
        }
    }
}

/// The answer, and its line in the audit.
fn refusal<B>(request: &Request<B>, error: &Error) -> Response<Body> {
    let headers = request.headers();
    tracing::warn!(
        target: "audit",
        audit = true,
        action = request.uri().path(),
        outcome = "refused",
        tenant = headers.all(TENANT_ID).first(),
        request_id = RequestId::extract_or_random(headers).as_str(),
        %error,
        "call refused"
    );
    let grpc = headers
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    if grpc {
        return status::from_error(error).into_http();
    }
    // A scraper takes the status of HTTP.
    let mut response = Response::new(Body::new(format!("{error}\n")));
    *response.status_mut() = StatusCode::FORBIDDEN;
    response
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const EVERYONE: Admittance = Admittance {
        tenants: true,
        names: false,
    };

    fn peer(uris: &[&str]) -> PeerIdentity {
        PeerIdentity {
            subject: "CN=worker".to_owned(),
            uris: uris.iter().map(ToString::to_string).collect(),
            ..PeerIdentity::default()
        }
    }

    fn tenants(of: &[&'static str]) -> HeaderMap {
        let values = of.iter().map(|tenant| HeaderValue::from_static(tenant));
        values
            .map(|tenant| (http::HeaderName::from_static(TENANT_ID), tenant))
            .collect()
    }

    #[test]
    fn a_certificate_that_names_tenants_is_for_those_alone() {
        let two = peer(&["urn:medkg:tenant:a", "spiffe://x/y", "urn:medkg:tenant:b"]);
        for tenant in ["a", "b"] {
            EVERYONE.check(&two, &tenants(&[tenant])).unwrap();
        }
        // What has no tenant is refused further in, or needs none.
        EVERYONE.check(&two, &tenants(&[])).unwrap();
        for other in [&["c"] as &[_], &["A"], &["a", "c"], &["c", "a"], &[""], &["aa"]] {
            let error = EVERYONE.check(&two, &tenants(other)).unwrap_err();
            assert!(error.to_string().contains("names tenant a, b"), "{error}");
        }
        let nobody = peer(&["urn:medkg:tenant:"]);
        assert!(
            EVERYONE.check(&nobody, &tenants(&["a"])).is_err(),
            "bound to nobody that can be"
        );
    }

    #[test]
    fn a_certificate_that_names_no_tenant_acts_for_all_unless_names_are_asked_for() {
        let names = Admittance {
            names: true,
            ..EVERYONE
        };
        let (service, unnamed) = (peer(&["urn:medkg:service:gateway"]), peer(&["spiffe://x/y"]));
        for admittance in [EVERYONE, names] {
            admittance.check(&service, &tenants(&["c"])).unwrap();
        }
        EVERYONE.check(&unnamed, &tenants(&["c"])).unwrap();
        let error = names.check(&unnamed, &tenants(&[])).unwrap_err();
        assert!(error.to_string().contains("neither a tenant nor a service"), "{error}");
    }

    #[test]
    fn who_is_bound_to_a_tenant_is_no_operator() {
        let operators = Admittance {
            tenants: false,
            ..EVERYONE
        };
        // Also if it names a service beside: the narrower name counts.
        let both = peer(&["urn:medkg:tenant:a", "urn:medkg:service:operator"]);
        for bound in [peer(&["urn:medkg:tenant:a"]), both] {
            assert!(operators.check(&bound, &tenants(&["a"])).is_err());
        }
        operators
            .check(&peer(&["urn:medkg:service:operator"]), &tenants(&["operator"]))
            .unwrap();
    }
}
