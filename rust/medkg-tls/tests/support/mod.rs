//! Certificates made for the test, and a real gRPC server behind TLS.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use medkg_tls::{ClientTlsConfig, PeerInfo, ServerTlsConfig};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType,
    date_time_ymd,
};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

/// A CA with a folder for what it issues.
pub struct Ca {
    folder: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
    pub file: PathBuf,
}

/// Files of one certificate.
pub struct Pair {
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Ca {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test CA");
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("ca.pem");
        std::fs::write(&file, issuer.pem()).unwrap();
        Self { folder, issuer, file }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// A certificate for `localhost` and the URI `spiffe://medkg/NAME`, with the subject `CN=NAME`.
    pub fn issue(&self, name: &str) -> Pair {
        self.issue_with(name, |_| ())
    }

    pub fn issue_expired(&self, name: &str) -> Pair {
        self.issue_with(name, |params| {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2020, 2, 1);
        })
    }

    pub fn issue_with(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Pair {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params
            .subject_alt_names
            .push(SanType::URI(format!("spiffe://medkg/{name}").try_into().unwrap()));
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Pair {
            cert: self.write(&format!("{name}.pem"), certificate.pem()),
            key: self.write(&format!("{name}.key"), key.serialize_pem()),
        }
    }
}

/// A gRPC server that answers health checks and remembers who asked.
pub struct Server {
    pub address: SocketAddr,
    pub peers: Arc<Mutex<Vec<PeerInfo>>>,
    task: JoinHandle<()>,
}

impl Server {
    pub async fn start(config: &ServerTlsConfig) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let incoming = config.incoming(listener, Duration::from_secs(1));
        let address = incoming.local_addr().unwrap();
        let peers = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&peers);
        let (_, health) = tonic_health::server::health_reporter();
        let health = tonic::service::interceptor::InterceptedService::new(health, move |request: tonic::Request<()>| {
            seen.lock()
                .unwrap()
                .push(request.extensions().get::<PeerInfo>().cloned().unwrap());
            Ok(request)
        });
        let server = tonic::transport::Server::builder()
            .add_service(health)
            .serve_with_incoming(incoming);
        let task = tokio::spawn(async move { server.await.unwrap() });
        Self { address, peers, task }
    }

    /// One health check over a connection of its own.
    pub async fn call(&self, client: &ClientTlsConfig) -> Result<(), tonic::Status> {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("https://localhost:{}", self.address.port()))
            .unwrap()
            .connect_timeout(Duration::from_secs(20));
        let channel = endpoint.connect_with_connector_lazy(client.connector());
        HealthClient::new(channel)
            .check(HealthCheckRequest::default())
            .await
            .map(drop)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The whole chain of causes as text.
pub fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}
