use std::net::Ipv4Addr;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::{ServerConfig, pki_types::PrivateKeyDer};
use tokio::{io::AsyncWriteExt as _, net::TcpListener, task::JoinHandle};
use tokio_rustls::TlsAcceptor;

use super::*;

const LIMIT: Duration = Duration::from_secs(20);

struct Authority {
    certificate: CaCertificate,
    issuer: Issuer<'static, KeyPair>,
}

fn authority() -> Authority {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let certificate = CaCertificate::from_der(params.self_signed(&key).unwrap().der().as_ref());
    Authority {
        certificate,
        issuer: Issuer::new(params, key),
    }
}

struct Server {
    address: String,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves one chain: the leaf that `leaf` describes, issued by `authority`, and then `authority`.
async fn tls_server(authority: &Authority, leaf: CertificateParams) -> Server {
    let key = KeyPair::generate().unwrap();
    let certificate = leaf.signed_by(&key, &authority.issuer).unwrap();
    let chain = vec![
        certificate.der().clone(),
        authority.certificate.der().clone(),
    ];
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            drop(acceptor.accept(stream).await);
        }
    });
    Server { address, task }
}

/// Sends `bytes` to whoever connects and hangs up.
async fn plain_server(bytes: &'static [u8]) -> Server {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(bytes).await;
        }
    });
    Server { address, task }
}

fn good_leaf() -> CertificateParams {
    CertificateParams::new(vec![TLS_NAME.to_owned()]).unwrap()
}

#[tokio::test]
async fn the_pinned_ca_is_fetched_from_an_ip_address() {
    let authority = authority();
    let server = tls_server(&authority, good_leaf()).await;
    let pinned = authority.certificate.fingerprint();
    let fetched = bootstrap_ca(&server.address, pinned, LIMIT).await.unwrap();
    assert_eq!(fetched, authority.certificate);
    assert_eq!(
        CaCertificate::from_pem(fetched.to_pem().as_bytes()).unwrap(),
        fetched
    );
}

#[tokio::test]
async fn another_coordinators_token_is_refused() {
    let server = tls_server(&authority(), good_leaf()).await;
    let pinned = authority().certificate.fingerprint();
    let error = bootstrap_ca(&server.address, pinned, LIMIT)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::WrongCoordinator { .. }), "{error:?}");
    assert!(error.to_string().contains(&server.address));
}

#[tokio::test]
async fn showing_the_pinned_ca_beside_anothers_leaf_does_not_help() {
    let (pinned, impostor) = (authority(), authority());
    let mixed = Authority {
        certificate: pinned.certificate.clone(),
        issuer: impostor.issuer,
    };
    let server = tls_server(&mixed, good_leaf()).await;
    let fingerprint = pinned.certificate.fingerprint();
    let error = bootstrap_ca(&server.address, fingerprint, LIMIT)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::WrongCoordinator { .. }), "{error:?}");
}

#[tokio::test]
async fn a_leaf_for_another_name_is_refused() {
    let authority = authority();
    let leaf = CertificateParams::new(vec!["elsewhere.muster".to_owned()]).unwrap();
    let server = tls_server(&authority, leaf).await;
    let pinned = authority.certificate.fingerprint();
    let error = bootstrap_ca(&server.address, pinned, LIMIT)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::WrongCoordinator { .. }), "{error:?}");
}

#[tokio::test]
async fn expired_and_future_certificates_are_refused_by_name() {
    let authority = authority();
    let pinned = authority.certificate.fingerprint();
    let mut past = good_leaf();
    (past.not_before, past.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2020, 2, 1));
    let server = tls_server(&authority, past).await;
    let error = bootstrap_ca(&server.address, pinned, LIMIT)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Expired { .. }), "{error:?}");

    let mut future = good_leaf();
    future.not_before = date_time_ymd(2200, 1, 1);
    let server = tls_server(&authority, future).await;
    let error = bootstrap_ca(&server.address, pinned, LIMIT)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::NotValidYet { .. }), "{error:?}");
}

#[tokio::test]
async fn whatever_else_listens_there_is_named() {
    let pinned = Fingerprint::from_bytes([0; 32]);
    let server = plain_server(b"SSH-2.0-OpenSSH_10.0\r\nmore than one record header").await;
    let error = bootstrap_ca(&server.address, pinned, LIMIT)
        .await
        .unwrap_err();
    assert!(
        matches!(error, Error::NotTls { .. } | Error::Closed { .. }),
        "{error:?}"
    );

    let server = plain_server(b"").await;
    let error = bootstrap_ca(&server.address, pinned, LIMIT)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Closed { .. }), "{error:?}");

    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let error = bootstrap_ca(&address, pinned, Duration::from_millis(50))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }), "{error:?}");

    drop(listener);
    let error = bootstrap_ca(&address, pinned, LIMIT).await.unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error:?}");
    let error = bootstrap_ca("nowhere", pinned, LIMIT).await.unwrap_err();
    assert!(matches!(error, Error::Address(_)), "{error:?}");
}
