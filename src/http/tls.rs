//! `[tls]`: the certificate and key that larder serves HTTPS with.

use crate::config::TlsSettings;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::sync::Arc;
use tokio_rustls::TlsAcceptor;

/// Reads the files.
///
/// # Errors
/// A sentence that names the file and what is wrong with it.
pub(super) fn acceptor(tls: &TlsSettings) -> Result<TlsAcceptor, String> {
    let in_cert = |e: String| format!("tls.cert_file {}: {e}", tls.cert_file.display());
    let in_key = |e: String| format!("tls.key_file {}: {e}", tls.key_file.display());
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&tls.cert_file)
        .and_then(Iterator::collect)
        .map_err(|e| in_cert(e.to_string()))?;
    if chain.is_empty() {
        return Err(in_cert("there is no certificate in it".into()));
    }
    let key = PrivateKeyDer::from_pem_file(&tls.key_file).map_err(|e| in_key(e.to_string()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|e| in_key(e.to_string()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
