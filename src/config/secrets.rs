//! Files and addresses that hold secrets: how they are read, who else may read them, and what may be shown of them.
//!
//! Every file with a secret is checked by [`exposed`]. A password and the kit's secret in a file that everybody can read
//! are refused. Keys, password files of clients and the configuration itself were accepted by 0.1.0: `config check`
//! refuses them, and a server warns and starts.

use super::load::Check;
use super::{ClientCertSettings, Config, KitSettings, LoginSettings};
use crate::budget;
use crate::files::{self, Watched};
use crate::text::Secret;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What is wrong with a file that holds a secret: everybody can read or change it. A file that is not there is none.
fn exposed(what: &str, file: &Path) -> Option<String> {
    let shown = file.display();
    let open = std::fs::metadata(file).is_ok_and(|meta| meta.mode() & 0o007 != 0);
    open.then(|| format!("{what} {shown} can be read by everybody; chmod 640 {shown}"))
}

impl Config {
    /// Files with secrets that everybody can read, and how to change that. `file` is the configuration's own.
    pub fn exposed_secrets(&self, file: &Path) -> Vec<String> {
        let in_proxy = self.fetch.proxy.as_ref().is_some_and(|proxy| proxy.reveal().contains('@'));
        let in_alert = self.alert.as_ref().is_some_and(|alert| alert.url.is_some());
        let files = [
            self.tls.as_ref().map(|tls| ("tls.key_file", tls.key_file.as_path())),
            self.auth.htpasswd_file.as_deref().map(|file| ("auth.htpasswd_file", file)),
            in_proxy.then_some(("fetch.proxy has a password, and", file)),
            in_alert.then_some(("alert.url may hold a secret, and", file)),
        ];
        files.into_iter().flatten().filter_map(|(what, file)| exposed(what, file)).collect()
    }
}

pub(super) fn read_kit_secret(file: &Path, check: &mut Check<'_>) -> Option<Secret<Vec<u8>>> {
    exposed("kit.secret_file", file).into_iter().for_each(|problem| check.wrong(problem));
    kit_secret(file).map_err(|problem| check.wrong(problem)).ok()
}

fn kit_secret(file: &Path) -> Result<Secret<Vec<u8>>, String> {
    let shown = file.display();
    let text = files::read(file, budget::SECRET_FILE_BYTES_MAX)
        .map_err(|e| format!("kit.secret_file {shown} cannot be read: {e}"))?;
    let secret = text.trim_ascii();
    if secret.len() >= budget::KIT_SECRET_BYTES_MIN {
        return Ok(Secret::new(secret.to_vec()));
    }
    Err(format!(
        "kit.secret_file {shown} holds {} bytes, expected at least {}; \
         `openssl rand -hex 32` makes a good secret, the same for every board of the kit",
        secret.len(),
        budget::KIT_SECRET_BYTES_MIN
    ))
}

impl KitSettings {
    /// The secret, whenever its file changes.
    pub fn watched_secret(&self) -> Watched<Secret<Vec<u8>>> {
        let file = self.secret_file.clone();
        Watched::resume(self.secret.clone(), vec![file.clone()], move || kit_secret(&file))
    }
}

pub(super) fn read_password(
    section: &str,
    username: String,
    file: PathBuf,
    check: &mut Check<'_>,
) -> Option<LoginSettings> {
    exposed(&format!("{section} password_file"), &file).into_iter().for_each(|problem| check.wrong(problem));
    match LoginSettings::read_password(&file) {
        Ok(password) => Some(LoginSettings { username, password, password_file: file }),
        Err(why) => {
            check.wrong(format!("{section} password_file {} {why}", file.display()));
            None
        }
    }
}

impl LoginSettings {
    /// The password in a file: all of it but the line's end.
    ///
    /// # Errors
    /// It is empty or cannot be read, to follow the file's name.
    pub fn read_password(file: &Path) -> Result<Secret, String> {
        let text = files::read_text(file, budget::SECRET_FILE_BYTES_MAX)
            .map_err(|e| format!("cannot be read: {e}"))?;
        match text.trim_end_matches(['\r', '\n']) {
            "" => Err("is empty".to_owned()),
            password => Ok(Secret::new(password.to_owned())),
        }
    }
}

/// The certificate that larder shows to an upstream. What is in the files is read where it is used.
pub(super) fn client_certificate(
    section: &str,
    url: &str,
    files: (Option<PathBuf>, Option<PathBuf>),
    check: &mut Check<'_>,
) -> Option<ClientCertSettings> {
    match files {
        (Some(_), Some(_)) if url.starts_with("http://") => {
            check.wrong(format!("{section} has a client_cert_file, which is shown over https only"));
            None
        }
        (Some(cert_file), Some(key_file)) => {
            let what = format!("{section} client_key_file");
            exposed(&what, &key_file).into_iter().for_each(|problem| check.wrong(problem));
            Some(ClientCertSettings { cert_file, key_file })
        }
        (None, None) => None,
        (Some(_), None) => {
            check.wrong(format!("{section} has a client_cert_file and no client_key_file"));
            None
        }
        (None, Some(_)) => {
            check.wrong(format!("{section} has a client_key_file and no client_cert_file"));
            None
        }
    }
}

/// What may be shown of an address: scheme, host and port. Stars stand for a login and for what follows the host.
pub(super) fn without_secrets(address: &str) -> String {
    let is_scheme = |text: &str| text.bytes().all(|c| c.is_ascii_alphanumeric() || b"+-.".contains(&c));
    let (scheme, rest) = match address.split_once("://") {
        Some((scheme, rest)) if is_scheme(scheme) => (format!("{scheme}://"), rest),
        _ => (String::new(), address),
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, more) = rest.split_at(end);
    let hidden = if more.len() > 1 { "/***" } else { "" };
    match authority.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}***@{host}{hidden}"),
        // A password may hold a slash; then what looks like the host is part of it.
        None if more.contains('@') => format!("{scheme}***"),
        None => format!("{scheme}{authority}{hidden}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_an_address_the_host_is_shown() {
        for (address, shown) in [
            ("http://proxy.example:3128", "http://proxy.example:3128"),
            ("proxy.example:3128", "proxy.example:3128"),
            ("http://larder:s3cret@proxy.example:3128/", "http://***@proxy.example:3128"),
            ("larder:s3cret@proxy.example:3128", "***@proxy.example:3128"),
            ("larder:p://s3cret@proxy.example", "***"),
            ("http://larder:s3@cret@proxy.example", "http://***@proxy.example"),
            ("http://larder:s3/cret@proxy.example", "http://***"),
            ("https://hooks.example/T0/s3cret", "https://hooks.example/***"),
            ("https://hooks.example?token=s3cret", "https://hooks.example/***"),
            ("https://hooks.example/@s3cret", "https://***"),
        ] {
            assert_eq!(without_secrets(address), shown, "{address}");
            assert_eq!(without_secrets(shown), shown);
        }
    }
}
