//! Whom TLS connections trust: the system's roots if there are any that parse, else the ones built in, and with them
//! an upstream's own `ca_file`; and the certificate that larder shows, to the endpoint it was configured for alone.

use crate::budget::{CA_BYTES_MAX, SECRET_FILE_BYTES_MAX};
use crate::config::ClientCertSettings;
use crate::files::{self, Watched};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
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

/// Where the system's roots may be: the first that holds any counts.
fn bundles() -> Vec<PathBuf> {
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    named.into_iter().chain(BUNDLES.iter().map(PathBuf::from)).collect()
}

/// What every upstream trusts.
pub(super) struct CommonTrust {
    roots: RootCertStore,
    trust: Trust,
}

impl CommonTrust {
    /// # Errors
    /// TLS cannot be set up.
    pub fn watched() -> Result<Watched<CommonTrust>, String> {
        let (_, any_of_system) = common_roots();
        Watched::open(bundles(), move || {
            let (roots, is_of_system) = common_roots();
            if any_of_system && !is_of_system {
                return Err("no file with the system's authorities can be used".to_owned());
            }
            Ok(CommonTrust { trust: Trust::in_roots(roots.clone())?, roots })
        })
    }
}

/// The system's roots or those built in, and whether they are the system's.
fn common_roots() -> (RootCertStore, bool) {
    for path in bundles() {
        let mut roots = RootCertStore::empty();
        match read_certificates(&path) {
            Ok(certificates) => {
                let (taken, _) = roots.add_parsable_certificates(certificates);
                if taken > 0 {
                    return (roots, true);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => log::warn!("trust roots in {} cannot be read: {error}", path.display()),
        }
    }
    (RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() }, false)
}

/// The TLS settings for the connections of one endpoint.
#[derive(Clone)]
pub(super) struct Trust {
    settings: Arc<ClientConfig>,
    /// The host and port that the client certificate is shown to, and the settings with it.
    own: Option<(String, u16, Arc<ClientConfig>)>,
}

/// The files that an endpoint names, and what they are used for.
#[derive(Clone)]
pub(super) struct TrustFiles {
    pub ca_file: Option<PathBuf>,
    pub client: Option<ClientCertSettings>,
    /// The endpoint's own host and port. Others, to which it redirects or where tokens come from, are shown no certificate.
    pub own: (String, u16),
}

impl Trust {
    /// Trusts `roots` and shows nothing.
    fn in_roots(roots: RootCertStore) -> Result<Self, String> {
        Ok(Trust { settings: Arc::new(settings(roots, Vec::new(), None)?), own: None })
    }

    pub fn settings_for(&self, host: &str, port: u16) -> Arc<ClientConfig> {
        match &self.own {
            Some((own, at, settings)) if own == host && *at == port => settings.clone(),
            _ => self.settings.clone(),
        }
    }
}

impl TrustFiles {
    /// The files, and those of the system's roots.
    pub fn paths(&self) -> Vec<PathBuf> {
        let client = self.client.iter().flat_map(|client| [&client.cert_file, &client.key_file]);
        self.ca_file.iter().chain(client).cloned().chain(bundles()).collect()
    }

    /// What the files say, in addition to what is common to all.
    ///
    /// # Errors
    /// What is wrong with which of them.
    pub fn read(&self, common: &CommonTrust) -> Result<Trust, String> {
        let mut roots = common.roots.clone();
        let mut named = Vec::new();
        if let Some(ca_file) = &self.ca_file {
            named = read_certificates(ca_file).map_err(|error| format!("{}: {error}", ca_file.display()))?;
            let (taken, _) = roots.add_parsable_certificates(named.iter().cloned());
            if taken == 0 {
                return Err(format!("{} holds no certificate", ca_file.display()));
            }
        }
        let own = match &self.client {
            Some(client) => {
                let settings = settings(roots.clone(), named.clone(), Some(client))?;
                Some((self.own.0.clone(), self.own.1, Arc::new(settings)))
            }
            None => None,
        };
        let settings = match &self.ca_file {
            Some(_) => Arc::new(settings(roots, named, None)?),
            None => common.trust.settings.clone(),
        };
        Ok(Trust { settings, own })
    }
}

fn settings(
    roots: RootCertStore,
    named: Vec<CertificateDer<'static>>,
    client: Option<&ClientCertSettings>,
) -> Result<ClientConfig, String> {
    let failed = |error: &dyn std::fmt::Display| format!("tls cannot be set up: {error}");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chains = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .map_err(|error| failed(&error))?;
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(&error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier { chains, named, provider }));
    let mut config = match client {
        None => config.with_no_client_auth(),
        Some(ClientCertSettings { cert_file, key_file }) => {
            let chain = read_certificates(cert_file).map_err(|e| format!("{}: {e}", cert_file.display()))?;
            if chain.is_empty() {
                return Err(format!("{} holds no certificate", cert_file.display()));
            }
            let in_key = |error: &dyn std::fmt::Display| format!("{}: {error}", key_file.display());
            let pem = files::read(key_file, SECRET_FILE_BYTES_MAX).map_err(|e| in_key(&e))?;
            let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|e| in_key(&e))?;
            // Also that the key is that of the certificate.
            config.with_client_auth_cert(chain, key).map_err(|e| in_key(&e))?
        }
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
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
        assert!(!common_roots().0.is_empty());
        assert!(webpki_roots::TLS_SERVER_ROOTS.len() > 50);
        assert!(CommonTrust::watched().is_ok());
    }

    #[test]
    fn a_certificate_is_shown_to_its_own_endpoint_alone() {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(vec!["board.lab".to_owned()]).unwrap();
        let file = |end: &str, text: String| {
            let path = std::env::temp_dir().join(format!("larder-client-{}.{end}", std::process::id()));
            std::fs::write(&path, text).unwrap();
            path
        };
        let cert_file = file("pem", certificate.self_signed(&key).unwrap().pem());
        let key_file = file("key", key.serialize_pem());
        let files = TrustFiles {
            ca_file: None,
            client: Some(ClientCertSettings { cert_file, key_file }),
            own: ("registry.lab".to_owned(), 443),
        };
        let trust = files.read(&CommonTrust::watched().unwrap().now()).unwrap();
        for path in files.paths().iter().take(2) {
            std::fs::remove_file(path).unwrap();
        }
        let shows =
            |host: &str, port: u16| trust.settings_for(host, port).client_auth_cert_resolver.has_certs();
        assert!(shows("registry.lab", 443));
        for (host, port) in
            [("registry.lab", 8443), ("auth.registry.lab", 443), ("cdn.lab", 443), ("127.0.0.1", 443)]
        {
            assert!(!shows(host, port), "{host}:{port}");
        }
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
