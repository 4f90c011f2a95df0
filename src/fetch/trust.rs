//! Whom TLS connections trust: the system's roots if there are any that parse, else the ones built in, and with them
//! an upstream's own `ca_file`.

use crate::budget::CA_BYTES_MAX;
use crate::files;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use std::io;
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

/// The TLS settings for connections that trust `roots`.
pub(super) fn client_config(roots: RootCertStore) -> Result<Arc<ClientConfig>, String> {
    settings(roots, Vec::new())
}

/// The TLS settings for connections that trust `roots` and what `ca_file` holds. `Err` says what is wrong with the file.
pub(super) fn client_config_with(roots: &RootCertStore, ca_file: &Path) -> Result<Arc<ClientConfig>, String> {
    let certificates =
        read_certificates(ca_file).map_err(|error| format!("{}: {error}", ca_file.display()))?;
    let mut roots = roots.clone();
    let (taken, _) = roots.add_parsable_certificates(certificates.iter().cloned());
    if taken == 0 {
        return Err(format!("{} holds no certificate", ca_file.display()));
    }
    settings(roots, certificates)
}

fn settings(roots: RootCertStore, named: Vec<CertificateDer<'static>>) -> Result<Arc<ClientConfig>, String> {
    let failed = |error: &dyn std::fmt::Display| format!("tls cannot be set up: {error}");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chains = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .map_err(|error| failed(&error))?;
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(&error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier { chains, named, provider }))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Whether a server's certificate was refused because it is an authority's. Its dates were found to be right before.
pub(super) fn shows_an_authority(error: &Error) -> bool {
    let Error::InvalidCertificate(CertificateError::Other(inner)) = error else { return false };
    // By its name, because the package that defines it is not one of ours.
    format!("{:?}", inner.0) == "CaUsedAsEndEntity"
}

/// Trusts what chains to a root, and a certificate that `ca_file` itself holds.
///
/// The second is for registries whose certificate was made by `openssl req -x509`: it signs itself as an authority,
/// which a server's certificate may not be, and every guide to a registry of one's own makes it so.
#[derive(Debug)]
struct Verifier {
    chains: Arc<WebPkiServerVerifier>,
    named: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    /// Whether all that was wrong is that the server shows an authority's certificate, and the owner named just that.
    fn is_named(&self, shown: &CertificateDer<'_>, error: &Error) -> bool {
        shows_an_authority(error) && self.named.iter().any(|named| named == shown)
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match self.chains.verify_server_cert(shown, between, name, ocsp, now) {
            Err(error) if self.is_named(shown, &error) => {
                verify_server_name(&ParsedCertificate::try_from(shown)?, name)?;
                Ok(ServerCertVerified::assertion())
            }
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chains.verify_tls12_signature(message, shown, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chains.verify_tls13_signature(message, shown, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Every certificate of a PEM file; sections that are none, or are broken, are passed over.
fn read_certificates(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let pem = files::read(path, CA_BYTES_MAX)?;
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

    /// A certificate for `name` that signed itself as an authority, valid from and until these years.
    fn authority(name: &str, years: (i32, i32)) -> CertificateDer<'static> {
        let mut parameters = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        parameters.not_before = rcgen::date_time_ymd(years.0, 1, 1);
        parameters.not_after = rcgen::date_time_ymd(years.1, 1, 1);
        parameters.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    #[test]
    fn an_authority_that_serves_is_trusted_only_where_it_was_named() {
        let (sound, expired) =
            (authority("registry.lab", (2020, 2100)), authority("registry.lab", (2020, 2021)));
        let verifier = |named: &CertificateDer<'static>| {
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let mut roots = RootCertStore::empty();
            roots.add(named.clone()).unwrap();
            let chains = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
            Verifier { chains: chains.build().unwrap(), named: vec![named.clone()], provider }
        };
        let verdict = |verifier: &Verifier, shown: &CertificateDer<'_>, name: &str| {
            let name = ServerName::try_from(name.to_owned()).unwrap();
            let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_700_000_000));
            verifier.verify_server_cert(shown, &[], &name, &[], now).map(drop)
        };
        assert_eq!(verdict(&verifier(&sound), &sound, "registry.lab"), Ok(()));
        let other_name = verdict(&verifier(&sound), &sound, "other.lab");
        assert!(
            matches!(
                other_name,
                Err(Error::InvalidCertificate(CertificateError::NotValidForNameContext { .. }))
            ),
            "{other_name:?}"
        );
        let late = verdict(&verifier(&expired), &expired, "registry.lab");
        assert!(
            matches!(late, Err(Error::InvalidCertificate(CertificateError::ExpiredContext { .. }))),
            "{late:?}"
        );
        let stranger = authority("registry.lab", (2020, 2100));
        assert!(verdict(&verifier(&sound), &stranger, "registry.lab").is_err());
    }
}
