//! `[tls]`: the certificate and key that larder serves HTTPS with, and the certificates of clients.
//!
//! The files are read again when they change; connections that are open keep what they began with. A client needs no
//! certificate; one that shows one must show one of `tls.client_ca_file`, and is then the user that it names.

use crate::budget;
use crate::config::TlsSettings;
use crate::files::{self, Watched};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use std::path::Path;
use std::sync::Arc;
use tokio_rustls::TlsAcceptor;

/// What is served with, as the files say it.
pub(super) struct TlsFiles(Watched<Arc<rustls::ServerConfig>>);

impl TlsFiles {
    /// Reads the files.
    ///
    /// # Errors
    /// A sentence that names the file and what is wrong with it.
    pub(super) fn open(tls: &TlsSettings) -> Result<TlsFiles, String> {
        let mut files = vec![tls.cert_file.clone(), tls.key_file.clone()];
        files.extend(tls.client_ca_file.clone());
        let tls = tls.clone();
        Watched::open(files, move || server_config(&tls).map(Arc::new)).map(TlsFiles)
    }

    /// For the next connection.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&*self.0.current()))
    }
}

fn server_config(tls: &TlsSettings) -> Result<rustls::ServerConfig, String> {
    let in_key = |e: String| format!("tls.key_file {}: {e}", tls.key_file.display());
    let chain = certificates("tls.cert_file", &tls.cert_file)?;
    let pem = files::read(&tls.key_file, budget::SECRET_FILE_BYTES_MAX).map_err(|e| in_key(e.to_string()))?;
    let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|e| in_key(e.to_string()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let clients = match &tls.client_ca_file {
        Some(file) => client_verifier(file)?,
        None => WebPkiClientVerifier::no_client_auth(),
    };
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, key)
        .map_err(|e| in_key(e.to_string()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn client_verifier(file: &Path) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let wrong = |e: String| format!("tls.client_ca_file {}: {e}", file.display());
    let mut roots = rustls::RootCertStore::empty();
    for authority in certificates("tls.client_ca_file", file)? {
        roots.add(authority).map_err(|e| wrong(e.to_string()))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    verifier.allow_unauthenticated().build().map_err(|e| wrong(e.to_string())).map(|verifier| verifier as _)
}

/// The certificates of a PEM file; at least one.
fn certificates(key: &str, file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let wrong = |e: String| format!("{key} {}: {e}", file.display());
    let pem = files::read(file, budget::CA_BYTES_MAX).map_err(|e| wrong(e.to_string()))?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let chain = chain.map_err(|e| wrong(e.to_string()))?;
    if chain.is_empty() {
        return Err(wrong("there is no certificate in it".into()));
    }
    Ok(chain)
}

/// The user that a client's certificate, which was verified, names: its common name (RFC 5280, section 4.1.2.6), or else
/// its first DNS name.
pub(super) fn user_of(certificate: &CertificateDer<'_>) -> Option<String> {
    let certificate = webpki::EndEntityCert::try_from(certificate).ok()?;
    let dns_name = || certificate.valid_dns_names().next().map(str::to_owned);
    let name = common_name(certificate.subject()).or_else(dns_name)?;
    (!name.is_empty() && name.len() <= budget::CERTIFICATE_NAME_BYTES_MAX).then_some(name)
}

/// The first common name in the content of an X.501 name: a sequence of sets of sequences of a type and a text, in DER.
fn common_name(mut names: &[u8]) -> Option<String> {
    const SET: u8 = 0x31;
    const SEQUENCE: u8 = 0x30;
    const OBJECT_IDENTIFIER: u8 = 0x06;
    /// UTF8String, PrintableString, IA5String.
    const TEXTS: [u8; 3] = [0x0c, 0x13, 0x16];
    const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
    while let Some((SET, mut set, rest)) = element(names) {
        names = rest;
        while let Some((SEQUENCE, pair, rest)) = element(set) {
            set = rest;
            let (OBJECT_IDENTIFIER, kind, value) = element(pair)? else { return None };
            let (tag, text, _) = element(value)?;
            if kind == COMMON_NAME && TEXTS.contains(&tag) {
                return std::str::from_utf8(text).ok().map(str::to_owned);
            }
        }
    }
    None
}

/// Splits the first element off DER: its tag, its content, and what follows. Lengths of more than two bytes do not come.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81 => rest.split_first().map(|(&length, rest)| (usize::from(length), rest))?,
        0x82 => {
            let (length, rest) = rest.split_first_chunk::<2>()?;
            (usize::from(u16::from_be_bytes(*length)), rest)
        }
        _ => return None,
    };
    Some((tag, rest.get(..length)?, rest.get(length..)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

    fn certificate(names: &[&str], subject: &[(DnType, &str)]) -> CertificateDer<'static> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut parameters = CertificateParams::new(names).unwrap();
        parameters.distinguished_name = DistinguishedName::new();
        for (kind, value) in subject {
            parameters.distinguished_name.push(kind.clone(), *value);
        }
        parameters.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    #[test]
    fn a_certificate_names_a_user() {
        let long = "u".repeat(200);
        for (names, subject, user) in [
            (
                &["kit.lan"][..],
                &[(DnType::OrganizationName, "lab"), (DnType::CommonName, "kit")][..],
                Some("kit"),
            ),
            (&["kit.lan", "other.lan"], &[(DnType::OrganizationName, "lab")], Some("kit.lan")),
            (&[], &[(DnType::CommonName, "Küche 3")], Some("Küche 3")),
            (&[], &[(DnType::CommonName, long.as_str())], Some(long.as_str())),
            (&[], &[(DnType::OrganizationName, "lab")], None),
        ] {
            assert_eq!(user_of(&certificate(names, subject)).as_deref(), user);
        }
        let too_long = "u".repeat(budget::CERTIFICATE_NAME_BYTES_MAX + 1);
        assert_eq!(user_of(&certificate(&[], &[(DnType::CommonName, &too_long)])), None);
    }

    #[test]
    fn a_name_that_is_cut_names_nobody() {
        let whole = certificate(&[], &[(DnType::CommonName, "kit")]);
        let whole = webpki::EndEntityCert::try_from(&whole).unwrap().subject().to_vec();
        assert_eq!(common_name(&whole).as_deref(), Some("kit"));
        for end in 0..whole.len() {
            assert_eq!(common_name(&whole[..end]), None, "{end}");
        }
        for name in
            [&[0x31, 0xff][..], &[0x31, 0x84, 0xff, 0xff, 0xff, 0xff], &[0x31, 2, 0x30, 0], &[0x30, 0]]
        {
            assert_eq!(common_name(name), None, "{name:?}");
        }
    }
}
