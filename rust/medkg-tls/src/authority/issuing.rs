//! What is signed, and by whom.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData as _, SanType,
};
use rustls_pki_types::{CertificateDer, DnsName};
use x509_cert::der::DateTime;

use super::facts::{Facts, Name};
use super::folder::Folder;
use super::{AuthorityError, CA, CA_KEY, Holder, MOST_NAME, check_name};
use crate::error::TlsError;
use crate::names;

/// Certificates are valid from a little before they are made: clocks differ.
const BACKDATED: Duration = Duration::from_secs(300);

/// PEM texts.
pub(super) struct Made {
    pub(super) certificate: String,
    pub(super) key: String,
    pub(super) not_after: SystemTime,
}

/// What a certificate was issued for.
pub(super) fn lifetime(facts: &Facts) -> Duration {
    let whole = facts.not_after.duration_since(facts.not_before).unwrap_or_default();
    whole.saturating_sub(BACKDATED)
}

/// What a certificate will say.
pub(super) struct Request {
    common_name: String,
    names: Vec<SanType>,
    usages: Vec<ExtendedKeyUsagePurpose>,
}

impl Request {
    /// Checks what an operator asks for.
    pub(super) fn new(name: &str, holder: &Holder) -> Result<Self, AuthorityError> {
        let mut names = Vec::new();
        let usage = match holder {
            Holder::Server { dns, addresses } => {
                for name in dns {
                    check_dns(name)?;
                    names.push(SanType::DnsName(name.as_str().try_into()?));
                }
                names.extend(addresses.iter().copied().map(SanType::IpAddress));
                if names.is_empty() {
                    return Err(AuthorityError::Invalid {
                        field: "server",
                        value: name.to_owned(),
                        expected: "--dns or --ip, once for each name and address that clients reach it under",
                    });
                }
                ExtendedKeyUsagePurpose::ServerAuth
            }
            Holder::Client { tenants, service } => {
                if tenants.is_empty() == service.is_none() {
                    return Err(AuthorityError::Invalid {
                        field: "client",
                        value: name.to_owned(),
                        expected: "--tenant, once for each tenant that it may call for, or --service if it calls for all",
                    });
                }
                for tenant in tenants {
                    check_name("--tenant", tenant, MOST_NAME)?;
                    names.push(SanType::URI(names::of_tenant(tenant).try_into()?));
                }
                if let Some(service) = service {
                    check_name("--service", service, MOST_NAME)?;
                    names.push(SanType::URI(names::of_service(service).try_into()?));
                }
                ExtendedKeyUsagePurpose::ClientAuth
            }
        };
        Ok(Self {
            common_name: name.to_owned(),
            names,
            usages: vec![usage],
        })
    }

    /// What a certificate says now; none if it says what medkg does not write.
    pub(super) fn again(facts: &Facts) -> Option<Self> {
        let name = |name: &Name| match name {
            Name::Dns(dns) => Some(SanType::DnsName(dns.as_str().try_into().ok()?)),
            Name::Address(address) => Some(SanType::IpAddress(*address)),
            Name::Uri(uri) => Some(SanType::URI(uri.as_str().try_into().ok()?)),
            Name::Other => None,
        };
        let usages = [
            (facts.server, ExtendedKeyUsagePurpose::ServerAuth),
            (facts.client, ExtendedKeyUsagePurpose::ClientAuth),
        ];
        Some(Self {
            common_name: facts.common_name.clone()?,
            names: facts.names.iter().map(name).collect::<Option<_>>()?,
            usages: usages
                .into_iter()
                .filter_map(|(may, usage)| may.then_some(usage))
                .collect(),
        })
    }
}

fn check_dns(name: &str) -> Result<(), AuthorityError> {
    let host = name.strip_prefix("*.").unwrap_or(name);
    // All digits and dots would be read as an address by whoever connects.
    let looks_like_address = name.parse::<std::net::IpAddr>().is_ok();
    if DnsName::try_from(host).is_ok() && !looks_like_address {
        return Ok(());
    }
    Err(AuthorityError::Invalid {
        field: "--dns",
        value: name.to_owned(),
        expected: "a host name such as gpu-0.example.org or localhost; give addresses with --ip",
    })
}

/// A new authority. The date tells it from the one before, which has the same name otherwise.
pub(super) fn authority(name: &str, lifetime: Duration, now: SystemTime) -> Result<Made, AuthorityError> {
    let made_on = text(now);
    let day = made_on.get(..10).unwrap_or_default();
    let mut params = params(&format!("{name} {day}"), now - BACKDATED, now + lifetime);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate()?;
    Ok(Made {
        certificate: params.self_signed(&key)?.pem(),
        key: key.serialize_pem(),
        not_after: now + lifetime,
    })
}

/// The name that an authority was made with.
pub(super) fn name_of(authority: &Facts) -> Option<&str> {
    let full = authority.common_name.as_deref()?;
    Some(full.rsplit_once(' ')?.0)
}

/// An authority that can sign.
pub(super) struct Signer {
    issuer: Issuer<'static, KeyPair>,
    pub(super) facts: Facts,
    pub(super) certificate: CertificateDer<'static>,
}

impl Signer {
    /// The one that signs now.
    pub(super) fn current(folder: &Folder) -> Result<Self, AuthorityError> {
        let bundle = folder.path(CA);
        Self::of_key(folder, CA_KEY)?.ok_or(AuthorityError::NoMatch {
            key: folder.path(CA_KEY),
            bundle,
        })
    }

    /// The one in `ca.pem` whose key is in this file.
    pub(super) fn of_key(folder: &Folder, file: &str) -> Result<Option<Self>, AuthorityError> {
        let path = folder.path(file);
        super::folder::check_closed(&path, super::folder::KEY_MODE)?;
        let pem = std::fs::read_to_string(&path).map_err(super::folder::failed(&path, "read"))?;
        let key = KeyPair::from_pem(&pem).map_err(|error| TlsError::BadKey {
            path: path.clone(),
            reason: error.to_string(),
        })?;
        let public = key.subject_public_key_info();
        let bundle = Facts::of_file(&folder.path(CA))?;
        let Some((certificate, facts)) = bundle.into_iter().find(|(_, facts)| facts.public_key == public) else {
            return Ok(None);
        };
        let foreign = || AuthorityError::Foreign { path: folder.path(CA) };
        let name = facts.common_name.as_deref().ok_or_else(foreign)?;
        let issuer = Issuer::new(params(name, facts.not_before, facts.not_after), key);
        Ok(Some(Self {
            issuer,
            facts,
            certificate,
        }))
    }

    /// Signs, with a new key; not beyond the authority's own end.
    pub(super) fn sign(&self, request: &Request, lifetime: Duration, now: SystemTime) -> Result<Made, AuthorityError> {
        if now >= self.facts.not_after {
            return Err(AuthorityError::ExpiredAuthority {
                path: CA.into(),
                at: text(self.facts.not_after),
            });
        }
        let not_after = (now + lifetime).min(self.facts.not_after);
        let mut params = params(&request.common_name, now - BACKDATED, not_after);
        params.subject_alt_names.clone_from(&request.names);
        params.extended_key_usages.clone_from(&request.usages);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        // The issuer's name is written anew out of what was read; it has to be the same to the byte.
        let is_ours = Facts::of(certificate.der())
            .is_ok_and(|made| made.issuer_name == self.facts.subject_name && made.is_of(&self.facts));
        if !is_ours {
            return Err(AuthorityError::Foreign { path: CA.into() });
        }
        Ok(Made {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
            not_after,
        })
    }
}

fn params(common_name: &str, not_before: SystemTime, not_after: SystemTime) -> CertificateParams {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    let mut params = CertificateParams::default();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    // Certificates count whole seconds.
    let moment = |time: SystemTime| {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        epoch + Duration::from_secs(since.as_secs())
    };
    params.distinguished_name = name;
    params.not_before = moment(not_before);
    params.not_after = moment(not_after);
    params
}

/// A moment as text, UTC, e.g. `2026-02-25T12:00:00Z`.
pub(super) fn text(time: SystemTime) -> String {
    DateTime::from_system_time(time).map_or_else(|_| "?".to_owned(), |time| time.to_string())
}
