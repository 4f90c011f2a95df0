//! Files and addresses that hold secrets: how they are read, who else may read them, and what may be shown of them.
//!
//! Every file with a secret is checked by [`exposed`]. A password and the kit's secret in a file that everybody can read
//! are refused. Keys, password files of clients and the configuration itself were accepted by 0.1.0: `config check`
//! refuses them, and a server warns and starts.

use super::load::Check;
use super::{Config, LoginSettings};
use crate::budget;
use crate::files;
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
    let shown = file.display();
    match files::read(file, budget::SECRET_FILE_BYTES_MAX) {
        Ok(text) if text.trim_ascii().len() >= budget::KIT_SECRET_BYTES_MIN => {
            Some(Secret::new(text.trim_ascii().to_vec()))
        }
        Ok(text) => {
            check.wrong(format!(
                "kit.secret_file {shown} holds {} bytes, expected at least {}; \
                 `openssl rand -hex 32` makes a good secret, the same for every board of the kit",
                text.trim_ascii().len(),
                budget::KIT_SECRET_BYTES_MIN
            ));
            None
        }
        Err(e) => {
            check.wrong(format!("kit.secret_file {shown} cannot be read: {e}"));
            None
        }
    }
}

pub(super) fn read_password(
    section: &str,
    username: String,
    file: PathBuf,
    check: &mut Check<'_>,
) -> Option<LoginSettings> {
    exposed(&format!("{section} password_file"), &file).into_iter().for_each(|problem| check.wrong(problem));
    let shown = file.display();
    match files::read_text(&file, budget::SECRET_FILE_BYTES_MAX) {
        Ok(text) if text.trim_end_matches(['\r', '\n']).is_empty() => {
            check.wrong(format!("{section} password_file {shown} is empty"));
            None
        }
        Ok(text) => {
            let password = Secret::new(text.trim_end_matches(['\r', '\n']).to_owned());
            Some(LoginSettings { username, password, password_file: file })
        }
        Err(e) => {
            check.wrong(format!("{section} password_file {shown} cannot be read: {e}"));
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
