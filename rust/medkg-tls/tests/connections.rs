//! Both sides over real sockets: who gets through, and who does not.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::net::SocketAddr;
use std::process::Stdio;

use medkg_tls::{ClientTlsConfig, ServerTlsConfig};
use support::{Ca, Server, causes};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

fn mutual(ca: &Ca) -> ServerTlsConfig {
    let own = ca.issue("server");
    ServerTlsConfig::try_new(&own.cert, &own.key, Some(&ca.file)).unwrap()
}

fn client(ca: &Ca, name: &str) -> ClientTlsConfig {
    let own = ca.issue(name);
    ClientTlsConfig::try_new(&ca.file, Some((&own.cert, &own.key)), None).unwrap()
}

#[tokio::test]
async fn both_sides_show_certificates_and_the_server_knows_who_calls() {
    let ca = Ca::new();
    let server = Server::start(&mutual(&ca)).await;
    server.call(&client(&ca, "worker")).await.unwrap();
    let peers = server.peers.lock().unwrap();
    let identity = peers[0].identity.as_ref().unwrap();
    assert_eq!(identity.subject, "CN=worker");
    assert_eq!(identity.dns_names, ["localhost"]);
    assert_eq!(identity.uris, ["spiffe://medkg/worker"]);
    assert_eq!(peers[0].local_addr, Some(server.address));
}

#[tokio::test]
async fn without_a_client_ca_nobody_is_asked() {
    let ca = Ca::new();
    let own = ca.issue("server");
    let server = Server::start(&ServerTlsConfig::try_new(&own.cert, &own.key, None).unwrap()).await;
    server
        .call(&ClientTlsConfig::try_new(&ca.file, None, None).unwrap())
        .await
        .unwrap();
    assert_eq!(server.peers.lock().unwrap()[0].identity, None);
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let ca = Ca::new();
    let server = Server::start(&mutual(&ca)).await;
    let error = server
        .call(&ClientTlsConfig::try_new(&ca.file, None, None).unwrap())
        .await
        .unwrap_err();
    assert!(causes(&error).contains("CertificateRequired"), "{}", causes(&error));
    assert!(server.peers.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_refusal_is_told_when_the_connection_is_made() {
    let ca = Ca::new();
    let server = Server::start(&mutual(&ca)).await;
    let mut connector = ClientTlsConfig::try_new(&ca.file, None, None).unwrap().connector();
    let uri: http::Uri = format!("https://localhost:{}", server.address.port()).parse().unwrap();
    // It is waited for so long and not longer, and a machine may be busy: once is enough.
    for _ in 0..20 {
        if let Err(error) = tower::Service::call(&mut connector, uri.clone()).await {
            assert!(matches!(error, medkg_tls::ConnectError::Handshake { .. }), "{error}");
            assert!(error.to_string().contains("CertificateRequired"), "{error}");
            return;
        }
    }
    panic!("every connection seemed to be made");
}

#[tokio::test]
async fn a_server_that_waits_for_the_client_to_speak_first_is_waited_for_no_longer() {
    let ca = Ca::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("https://localhost:{}", listener.local_addr().unwrap().port())
        .parse()
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(mutual(&ca).rustls());
    let proxy = tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        let mut stream = acceptor.accept(socket).await.unwrap();
        let mut heard = [0; 5];
        stream.read_exact(&mut heard).await.unwrap();
        stream.write_all(&heard).await.unwrap();
    });
    let mut connector = client(&ca, "worker").connector();
    let mut stream = tower::Service::call(&mut connector, uri).await.unwrap().into_inner();
    let mut heard = [0; 5];
    stream.write_all(b"hello").await.unwrap();
    stream.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"hello");
    proxy.await.unwrap();
}

#[tokio::test]
async fn certificates_of_another_ca_are_refused_by_both_sides() {
    let (ca, other) = (Ca::new(), Ca::new());
    let server = Server::start(&mutual(&ca)).await;

    let stranger = other.issue("stranger");
    let pretender = ClientTlsConfig::try_new(&ca.file, Some((&stranger.cert, &stranger.key)), None).unwrap();
    let error = server.call(&pretender).await.unwrap_err();
    assert!(
        causes(&error).contains("alert"),
        "the server refuses it: {}",
        causes(&error)
    );

    let own = ca.issue("worker");
    let distrustful = ClientTlsConfig::try_new(&other.file, Some((&own.cert, &own.key)), None).unwrap();
    let error = server.call(&distrustful).await.unwrap_err();
    assert!(
        causes(&error).contains("invalid peer certificate"),
        "the client refuses it: {}",
        causes(&error)
    );
    assert!(server.peers.lock().unwrap().is_empty());
}

#[tokio::test]
async fn the_name_in_the_certificate_must_be_the_one_expected() {
    let ca = Ca::new();
    let server = Server::start(&mutual(&ca)).await;
    let own = ca.issue("worker");
    let named = |name| ClientTlsConfig::try_new(&ca.file, Some((&own.cert, &own.key)), Some(name)).unwrap();
    server.call(&named("localhost")).await.unwrap();
    let error = server.call(&named("gpu.example")).await.unwrap_err();
    assert!(causes(&error).contains("gpu.example"), "{}", causes(&error));
}

#[tokio::test]
async fn a_server_whose_certificate_has_expired_is_refused() {
    let ca = Ca::new();
    let expired = ca.issue_expired("server");
    // Our own loader refuses such a file, so the server is built from rustls alone.
    let pem = |path| std::fs::read(path).unwrap();
    let chain = rustls_pki_types::pem::PemObject::pem_slice_iter(&pem(&expired.cert)).collect::<Result<_, _>>();
    let key = rustls_pki_types::pem::PemObject::from_pem_slice(&pem(&expired.key));
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let rustls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain.unwrap(), key.unwrap())
        .unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("https://localhost:{}", listener.local_addr().unwrap().port())
        .parse()
        .unwrap();
    tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        drop(
            tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(rustls))
                .accept(socket)
                .await,
        );
    });
    let mut connector = client(&ca, "worker").connector();
    let error = tower::Service::call(&mut connector, uri).await.map(drop).unwrap_err();
    assert!(error.to_string().contains("certificate expired"), "{error}");
}

#[tokio::test]
async fn two_connections_are_two_full_handshakes() {
    let ca = Ca::new();
    let server = Server::start(&mutual(&ca)).await;
    let mut connector = client(&ca, "worker").connector();
    for _ in 0..2 {
        let uri = format!("https://localhost:{}", server.address.port()).parse().unwrap();
        let connection = tower::Service::call(&mut connector, uri).await.unwrap().into_inner();
        let session = connection.get_ref().1;
        assert_eq!(session.handshake_kind(), Some(rustls::HandshakeKind::Full));
        assert_eq!(session.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
        assert_eq!(session.tls13_tickets_received(), 0);
    }
}

#[tokio::test]
async fn junk_and_silence_do_not_stop_the_others() {
    let ca = Ca::new();
    let server = Server::start(&mutual(&ca)).await;
    // Silent ones hold their handshake open; a plaintext client and a port scanner get nothing.
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(TcpStream::connect(server.address).await.unwrap());
    }
    drop(TcpStream::connect(server.address).await.unwrap());
    let mut plaintext = TcpStream::connect(server.address).await.unwrap();
    plaintext.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    server.call(&client(&ca, "worker")).await.unwrap();

    let mut answer = Vec::new();
    let _ = plaintext.read_to_end(&mut answer).await;
    assert!(
        !answer.starts_with(b"HTTP") && answer.len() < 16,
        "an alert at most: {answer:?}"
    );
    // The silent ones are hung up on when the handshake's time is over.
    for mut socket in silent {
        assert!(matches!(socket.read(&mut [0; 1]).await, Ok(0) | Err(_)));
    }
    server.call(&client(&ca, "worker-2")).await.unwrap();
}

#[tokio::test]
async fn a_plaintext_server_is_told_apart() {
    let ca = Ca::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("https://localhost:{}", listener.local_addr().unwrap().port())
        .parse()
        .unwrap();
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let _ = socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        let _ = socket.read_to_end(&mut Vec::new()).await;
    });
    let error = tower::Service::call(&mut client(&ca, "worker").connector(), uri)
        .await
        .map(drop)
        .unwrap_err();
    assert!(matches!(error, medkg_tls::ConnectError::Handshake { .. }), "{error}");
}

/// Output of `openssl s_client` with `version`, or `None` where openssl is not installed.
async fn s_client(address: SocketAddr, ca: &Ca, version: &str) -> Option<(bool, String)> {
    let own = ca.issue("openssl");
    let output = tokio::process::Command::new("openssl")
        .args([
            "s_client",
            version,
            "-alpn",
            "h2",
            "-verify_return_error",
            "-connect",
            &address.to_string(),
        ])
        .arg("-CAfile")
        .arg(&ca.file)
        .arg("-cert")
        .arg(&own.cert)
        .arg("-key")
        .arg(&own.key)
        .stdin(Stdio::null())
        .output()
        .await;
    match output {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        output => {
            let output = output.unwrap();
            let text = format!(
                "{}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
            Some((output.status.success(), text))
        }
    }
}

#[tokio::test]
async fn a_client_that_speaks_only_tls_1_2_is_refused() {
    let ca = Ca::new();
    let server = Server::start(&mutual(&ca)).await;
    let Some((connected, text)) = s_client(server.address, &ca, "-tls1_2").await else {
        eprintln!("SKIPPED: no openssl binary to play a TLS 1.2 client");
        return;
    };
    assert!(!connected && text.contains("alert protocol version"), "{text}");
    // The same client, speaking TLS 1.3, gets in: it was the version.
    let (connected, text) = s_client(server.address, &ca, "-tls1_3").await.unwrap();
    assert!(
        connected && text.contains("TLSv1.3") && text.contains("ALPN protocol: h2"),
        "{text}"
    );
}

/// Calls until it ends as it should: files are looked at once a second.
async fn eventually(server: &Server, client: &ClientTlsConfig, works: bool) {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    while server.call(client).await.is_ok() != works {
        assert!(tokio::time::Instant::now() < deadline, "it did not happen in time");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

fn replace(old: &std::path::Path, new: &std::path::Path) {
    let beside = old.with_extension("next");
    std::fs::copy(new, &beside).unwrap();
    std::fs::rename(beside, old).unwrap();
}

#[tokio::test]
async fn identities_and_roots_that_change_are_used_for_new_connections_on_both_sides() {
    let (old, new) = (Ca::new(), Ca::new());
    let (own, worker) = (old.issue("server"), old.issue("worker"));
    let server = Server::start(&ServerTlsConfig::try_new(&own.cert, &own.key, Some(&old.file)).unwrap()).await;
    let pair = Some((worker.cert.as_path(), worker.key.as_path()));
    let client = ClientTlsConfig::try_new(&old.file, pair, None).unwrap();
    server.call(&client).await.unwrap();
    let stranger = new.issue("stranger");
    let newer = ClientTlsConfig::try_new(&new.file, Some((&stranger.cert, &stranger.key)), None).unwrap();
    assert!(server.call(&newer).await.is_err());

    // The server moves to the new authority.
    let moved = new.issue("server");
    replace(&own.key, &moved.key);
    replace(&own.cert, &moved.cert);
    // `old.file` is both whom the server lets in and whom the first client trusts.
    replace(&old.file, &new.file);
    eventually(&server, &newer, true).await;
    // The first client follows its roots, and is let in once it has an identity of the new authority.
    assert!(server.call(&client).await.is_err());
    let renewed = new.issue("worker");
    replace(&worker.cert, &renewed.cert);
    replace(&worker.key, &renewed.key);
    eventually(&server, &client, true).await;
    assert_eq!(
        server
            .peers
            .lock()
            .unwrap()
            .last()
            .unwrap()
            .identity
            .as_ref()
            .unwrap()
            .subject,
        "CN=worker"
    );
}

#[tokio::test]
async fn a_certificate_tells_when_it_expires() {
    let ca = Ca::new();
    let own = ca.issue_with("server", |params| params.not_after = rcgen::date_time_ymd(2031, 5, 1));
    let config = ServerTlsConfig::try_new(&own.cert, &own.key, None).unwrap();
    let expires = config.expires().duration_since(std::time::UNIX_EPOCH).unwrap();
    assert_eq!(expires.as_secs(), 1_935_360_000);
}
