//! Calls over TLS, through a proxy that ends it in front of the scripted server.

use std::path::PathBuf;
use std::time::Duration;

use futures_util::StreamExt as _;
use medkg_client::config::TlsOptions;
use medkg_client::{ClientOptions, ErrorKind};
use medkg_testkit::ScriptedServer;
use medkg_tls::ServerTlsConfig;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;

use crate::{EMBED, answering, client, embed, options, texts};

struct Authority {
    folder: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let authority = Self {
            folder: TempDir::new().unwrap(),
            issuer,
        };
        authority.write("ca.pem", &authority.issuer.pem());
        authority
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        std::fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    fn issue(&self, name: &str) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let files = (format!("{name}.pem"), format!("{name}.key"));
        (
            self.write(&files.0, &certificate.pem()),
            self.write(&files.1, &key.serialize_pem()),
        )
    }

    /// What a client needs that trusts this authority and shows a certificate of it.
    fn client(&self) -> TlsOptions {
        let (cert, key) = self.issue("worker");
        TlsOptions {
            ca_file: Some(self.path("ca.pem")),
            cert_file: Some(cert),
            key_file: Some(key),
            server_name: None,
        }
    }
}

/// The port of a proxy that asks for certificates of `authority`.
async fn proxy(authority: &Authority, server: &ScriptedServer) -> u16 {
    let (cert, key) = authority.issue("localhost");
    let config = ServerTlsConfig::try_new(&cert, &key, Some(&authority.path("ca.pem"))).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut incoming = config.incoming(listener, Duration::from_secs(10));
    let port = incoming.local_addr().unwrap().port();
    let upstream = server.address();
    tokio::spawn(async move {
        while let Some(accepted) = incoming.next().await {
            let Ok(mut accepted) = accepted else { continue };
            tokio::spawn(async move {
                let mut server = tokio::net::TcpStream::connect(upstream).await.unwrap();
                // Ends when either side does.
                let _ = tokio::io::copy_bidirectional(&mut accepted, &mut server).await;
            });
        }
    });
    port
}

fn over_tls(address: String, tls: TlsOptions) -> ClientOptions {
    ClientOptions {
        tls: Some(tls),
        max_attempts: Some(2),
        ..options(&[address])
    }
}

// requirement: isolation 12.1
#[tokio::test]
async fn both_sides_show_certificates_and_the_call_goes_through() {
    let (authority, server) = (Authority::new(), ScriptedServer::start());
    server.always(EMBED, answering());
    let address = format!("https://localhost:{}", proxy(&authority, &server).await);
    let client = client(&over_tls(address, authority.client()));
    for _ in 0..3 {
        embed(&client, texts(3)).await.unwrap();
    }
    assert_eq!(server.connections(), 1);
}

// requirement: isolation 12.1
#[tokio::test]
async fn a_server_that_is_not_trusted_gets_nothing_and_the_error_says_why() {
    let (authority, server) = (Authority::new(), ScriptedServer::start());
    server.always(EMBED, answering());
    let address = format!("https://localhost:{}", proxy(&authority, &server).await);
    let client = client(&over_tls(address, Authority::new().client()));
    let error = embed(&client, texts(1)).await.unwrap_err();
    assert_eq!((error.kind, error.attempts), (ErrorKind::Unavailable, 2));
    assert!(error.message.contains("certificate"), "{error}");
    assert!(server.calls().is_empty());
}

#[tokio::test]
async fn a_port_that_speaks_tls_is_no_plaintext_port_and_the_other_way_round() {
    let (authority, server) = (Authority::new(), ScriptedServer::start());
    server.always(EMBED, answering());
    let port = proxy(&authority, &server).await;
    let plain = client(&ClientOptions {
        max_attempts: Some(1),
        ..options(&[format!("http://localhost:{port}")])
    });
    assert_eq!(embed(&plain, texts(1)).await.unwrap_err().kind, ErrorKind::Unavailable);
    let address = format!("https://localhost:{}", server.address().port());
    let encrypted = client(&over_tls(address, authority.client()));
    assert_eq!(
        embed(&encrypted, texts(1)).await.unwrap_err().kind,
        ErrorKind::Unavailable
    );
    assert!(server.calls().is_empty());
}
