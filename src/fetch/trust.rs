//! Whom TLS connections trust: the system's roots if there are any that parse, else the ones built in, and with them
//! an upstream's own `ca_file`.

use crate::budget::CA_BYTES_MAX;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where distributions keep their bundle: Debian, Fedora, OpenSUSE, Alpine, older Red Hat, Yocto.
const BUNDLES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/usr/share/ca-certificates/ca-certificates.crt",
];

/// Most sections looked at in one file, broken ones too; real bundles have some 150.
const SECTIONS_MAX: usize = 10_000;

/// The roots that every upstream shares.
pub(super) fn common_roots() -> RootCertStore {
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let usual = BUNDLES.iter().map(PathBuf::from);
    for path in named.into_iter().chain(usual) {
        let mut roots = RootCertStore::empty();
        match read_certificates(&path) {
            Ok(certificates) => {
                let (taken, _) = roots.add_parsable_certificates(certificates);
                if taken > 0 {
                    return roots;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => log::warn!("trust roots in {} cannot be read: {error}", path.display()),
        }
    }
    RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() }
}

/// `roots` and what `ca_file` holds. `Err` says what is wrong with the file.
pub(super) fn with_ca_file(roots: &RootCertStore, ca_file: &Path) -> Result<RootCertStore, String> {
    let certificates =
        read_certificates(ca_file).map_err(|error| format!("{}: {error}", ca_file.display()))?;
    let mut roots = roots.clone();
    let (taken, _) = roots.add_parsable_certificates(certificates);
    if taken == 0 {
        return Err(format!("{} holds no certificate", ca_file.display()));
    }
    Ok(roots)
}

/// The TLS settings for connections that trust `roots`.
pub(super) fn client_config(roots: RootCertStore) -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("tls cannot be set up: {error}"))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Every certificate of a PEM file; sections that are none, or are broken, are passed over.
fn read_certificates(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let mut pem = Vec::new();
    File::open(path)?.take(CA_BYTES_MAX + 1).read_to_end(&mut pem)?;
    if pem.len() as u64 > CA_BYTES_MAX {
        return Err(io::Error::other(format!("it is larger than {CA_BYTES_MAX} bytes")));
    }
    Ok(CertificateDer::pem_slice_iter(&pem).take(SECTIONS_MAX).filter_map(Result::ok).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_roots_even_without_a_system() {
        assert!(!common_roots().is_empty());
        assert!(webpki_roots::TLS_SERVER_ROOTS.len() > 50);
        assert!(client_config(common_roots()).is_ok());
    }

    #[test]
    fn a_broken_bundle_ends() {
        let path = std::env::temp_dir().join(format!("larder-bundle-{}.pem", std::process::id()));
        std::fs::write(&path, b"-----BEGIN CERTIFICATE-----\nAAAA\n-----BEGIN CERTIFICATE-----\n!!!")
            .unwrap();
        let read = read_certificates(&path);
        std::fs::remove_file(&path).unwrap();
        assert!(read.unwrap().is_empty());
    }
}
