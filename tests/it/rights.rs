//! Who may read what is private: rules for users, certificates of clients, plain HTTP from other machines; and files that
//! are read anew when they change.

use crate::board::{self, Board, Folder, InProcess, image, layer_of, private_file, upstream_with};
use larder::auth::Identity;
use larder::demo::upstream::{FaultyRegistry as Upstream, LoginDemand as Login};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

const TAG: &str = "/v2/lab/app/manifests/latest?ns=docker.io";
/// "kit" and "other", both with the password "carry".
const KIT: (&str, &str) = ("Authorization", "Basic a2l0OmNhcnJ5");
const OTHER: (&str, &str) = ("Authorization", "Basic b3RoZXI6Y2Fycnk=");

fn upstream() -> Upstream {
    let upstream = upstream_with(&image(1));
    upstream.push("secret/app", "latest", &image(2));
    upstream.login(Login::Basic("alice".into(), "s3cret".into()));
    upstream
}

fn users(names: &[&str], password: &str) -> String {
    let hash = bcrypt::hash(password, 4).unwrap();
    names.iter().map(|name| format!("{name}:{hash}\n")).collect()
}

/// The login at docker.io, and `[auth]` with its two users.
fn logins(folder: &Folder) -> String {
    let password = private_file(folder, "password", "s3cret\n");
    let htpasswd = private_file(folder, "htpasswd", &users(&["kit", "other"], "carry"));
    format!("username = \"alice\"\npassword_file = {password:?}\n[auth]\nhtpasswd_file = {htpasswd:?}\n")
}

fn rule(user: &str, pattern: &str) -> String {
    format!("[[auth.rule]]\nuser = \"{user}\"\nmatch = \"{pattern}\"\n")
}

#[test]
fn rules_say_which_user_reads_which_repository() {
    let (upstream, folder) = (upstream(), Folder::new());
    let rules =
        rule("kit", "docker.io/lab/*") + &rule("kit", "ghcr.io/*") + &rule("other", "docker.io/secret/app");
    let mut board = Board::new(&upstream, &(logins(&folder) + &rules));
    let layer = layer_of(&image(1));
    let of_lab = [
        TAG.to_owned(),
        format!("/v2/lab/app/blobs/{layer}?ns=docker.io"),
        "/v2/lab/app/tags/list?ns=docker.io".into(),
    ];
    let of_secret: Vec<String> = of_lab.iter().map(|path| path.replace("lab/app", "secret/app")).collect();
    let manifests = image(1).manifests.into_keys().map(|digest| format!("manifests/{digest}"));
    for part in manifests.chain(board::needed(&image(1)).iter().map(|digest| format!("blobs/{digest}"))) {
        let answer = board.request("GET", &format!("/v2/lab/app/{part}?ns=docker.io"), &[KIT]);
        assert_eq!(answer.status, 200, "{part}");
        answer.body().unwrap();
    }
    for online in [true, false] {
        for path in &of_lab {
            assert_eq!(board.request("GET", path, &[KIT]).status, 200, "{path}");
            assert_eq!(board.request("GET", path, &[OTHER]).status, 403, "{path}");
            assert_eq!(board.get(path).status, 401, "{path}");
        }
        // Whether it exists makes no difference to who may not read it.
        for name in ["secret/app", "secret/none", "labs/app"] {
            for path in &of_lab {
                for method in ["GET", "HEAD"] {
                    let path = path.replace("lab/app", name);
                    let answer = board.request(method, &path, &[KIT]);
                    assert_eq!(answer.status, 403, "{method} {path}");
                    let body = String::from_utf8(answer.body().unwrap()).unwrap();
                    let expected =
                        format!("no [[auth.rule]] of the mirror lets \\\"kit\\\" read docker.io/{name}");
                    assert!(method == "HEAD" || body.contains(&expected), "{body}");
                }
            }
        }
        if online {
            assert_eq!(board.request("GET", &of_secret[0], &[OTHER]).status, 200);
        }
        let listed = board.request("GET", "/v2/_catalog?ns=docker.io", &[KIT]).body().unwrap();
        let listed = String::from_utf8(listed).unwrap();
        assert!(listed.contains("lab/app") && !listed.contains("secret"), "{listed}");
        // Nor does a link to the next page name what may not be seen.
        let mut next = Some("/v2/_catalog?ns=docker.io&n=1".to_owned());
        let mut pages = Vec::new();
        while let Some(path) = next {
            assert!(!path.contains("secret") && pages.len() < 5, "{path}");
            let answer = board.request("GET", &path, &[KIT]);
            next = answer
                .header("link")
                .and_then(|link| Some(link.split_once('<')?.1.split_once('>')?.0.to_owned()));
            pages.push(String::from_utf8(answer.body().unwrap()).unwrap());
        }
        assert!(pages.iter().all(|page| !page.contains("secret")), "{pages:?}");
        assert_eq!(pages.iter().filter(|page| page.contains("lab/app")).count(), 1, "{pages:?}");
        upstream.hang_up();
        board.stop();
        board.start_again();
    }
}

#[test]
fn a_user_without_a_rule_reads_nothing_private_once_there_is_one() {
    let (upstream, folder) = (upstream(), Folder::new());
    let board = Board::new(&upstream, &(logins(&folder) + &rule("somebody", "*")));
    for who in [KIT, OTHER] {
        assert_eq!(board.request("GET", TAG, &[who]).status, 403);
        assert_eq!(
            board.request("GET", "/v2/_catalog?ns=docker.io", &[who]).body().unwrap(),
            br#"{"repositories":[]}"#
        );
    }
}

#[test]
fn private_content_leaves_the_machine_over_tls_only() {
    for allowed in [false, true] {
        let (upstream, folder) = (upstream(), Folder::new());
        let allow = if allowed { "allow_plain_http = true\n" } else { "" };
        let mut board = Board::new(&upstream, &(logins(&folder) + allow));
        let inside = InProcess::instead_of(&mut board);
        let ask = |identity: Identity, header: &str| {
            let answer = String::from_utf8(inside.get(&identity, TAG, header)).unwrap();
            (answer["HTTP/1.1 ".len()..][..3].parse::<u16>().unwrap(), answer)
        };
        let login = format!("{}: {}\r\n", KIT.0, KIT.1);
        for address in ["192.168.1.7", "2001:db8::7", "::ffff:10.0.0.7"] {
            let far = Identity::anonymous(address.parse().unwrap());
            for header in ["", &login] {
                let (status, answer) = ask(far.clone(), header);
                let expected = match (allowed, header.is_empty()) {
                    (false, _) => 403,
                    (true, true) => 401,
                    (true, false) => 200,
                };
                assert_eq!(status, expected, "{address}: {answer}");
                // A password that would travel in the open is not even asked for.
                assert!(
                    allowed
                        || !answer.contains("www-authenticate") && answer.contains("auth.allow_plain_http")
                );
            }
            let sealed = Identity { sealed: true, ..far };
            assert_eq!((ask(sealed.clone(), "").0, ask(sealed, &login).0), (401, 200), "{address}");
        }
        for near in ["127.0.0.1", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(ask(Identity::anonymous(near.parse().unwrap()), &login).0, 200, "{near}");
        }
        inside.mirror.stop();
    }
}

#[test]
fn a_ping_is_challenged_where_the_owner_says_so() {
    let (upstream, folder) = (upstream(), Folder::new());
    let private = format!("[upstream.\"private.example\"]\nurl = \"{}\"\n", upstream.url());
    let public = upstream_with(&image(1));
    for (more, status) in [("", 200), ("challenge_ping = true\n", 401)] {
        let board = Board::new(&public, &(private.clone() + &logins(&folder) + more));
        assert_eq!(board.get("/v2/").status, status);
        assert_eq!(board.request("GET", "/v2/", &[KIT]).status, 200);
        // What is public is never challenged.
        assert_eq!(board.get(TAG).status, 200);
    }
}

#[test]
fn the_password_file_is_read_anew_when_it_changes() {
    let (upstream, folder) = (upstream(), Folder::new());
    let board = Board::new(&upstream, &logins(&folder));
    let status = |who| board.request("GET", TAG, &[who]).status;
    assert_eq!((status(KIT), status(OTHER)), (200, 200));
    // A user goes, one that was verified before too.
    private_file(&folder, "htpasswd", &users(&["kit"], "carry"));
    board.wait_until("the new password file", || status(OTHER) == 401);
    assert_eq!(status(KIT), 200);
    // A file that cannot be used changes nothing.
    private_file(&folder, "htpasswd", "kit:plain\n");
    board.wait_until("the look at the file", || {
        assert_eq!(status(KIT), 200);
        board.log().contains("what was read before stays in use")
    });
    // Another password, in a file that takes the place of the old one.
    let new = private_file(&folder, "new", &users(&["kit"], "other"));
    fs::rename(new, folder.0.join("htpasswd")).unwrap();
    board.wait_until("the new password", || status(KIT) == 401);
}

/// An authority and what it has signed.
struct Authority {
    certificate: rcgen::Certificate,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    fn new() -> Authority {
        let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = parameters.self_signed(&key).unwrap();
        Authority { certificate, issuer: rcgen::Issuer::new(parameters, key) }
    }

    /// Certificate and key for a name, as PEM.
    fn signed(&self, name: &str, host: &str) -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new(vec![host.to_owned()]).unwrap();
        parameters.distinguished_name.push(rcgen::DnType::CommonName, name);
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

/// The answer to a GET over TLS, and the certificate that the server showed.
fn https(
    board: &Board,
    trusted: &Authority,
    client: Option<&(String, String)>,
    path: &str,
) -> std::io::Result<(String, CertificateDer<'static>)> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(trusted.certificate.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider);
    let config = config.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
    let config = match client {
        Some((certificate, key)) => config.with_client_auth_cert(
            vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
        ),
        None => Ok(config.with_no_client_auth()),
    };
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let session = rustls::ClientConnection::new(Arc::new(config.unwrap()), name).unwrap();
    let socket = TcpStream::connect(board.addr)?;
    socket.set_read_timeout(Some(board::PATIENCE))?;
    let mut stream = rustls::StreamOwned::new(session, socket);
    write!(stream, "GET {path} HTTP/1.1\r\nhost: board\r\nconnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(e) if answer.is_empty() => return Err(e),
        _ => {}
    }
    let shown = stream.conn.peer_certificates().unwrap()[0].clone().into_owned();
    Ok((String::from_utf8_lossy(&answer).into_owned(), shown))
}

/// The part of a configuration that serves HTTPS, and its files.
fn tls(folder: &Folder, (certificate, key): &(String, String)) -> String {
    let (certificate, key) =
        (private_file(folder, "cert.pem", certificate), private_file(folder, "key.pem", key));
    format!("[tls]\ncert_file = {certificate:?}\nkey_file = {key:?}\n")
}

#[test]
fn a_certificate_is_taken_up_when_its_file_changes() {
    let (upstream, folder, authority) = (upstream_with(&image(1)), Folder::new(), Authority::new());
    let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let (old, new) = (authority.signed("old", "127.0.0.1"), authority.signed("new", "127.0.0.1"));
    let board = Board::new(&upstream, &tls(&folder, &old));
    let shown = || https(&board, &authority, None, "/v2/").unwrap().1;
    assert_eq!(shown(), der(&old.0));
    // While only one of the two files is new they do not fit, and the old ones are served with.
    private_file(&folder, "cert.pem", &new.0);
    board.wait_until("the look at the files", || {
        let answered = https(&board, &authority, None, "/v2/").unwrap();
        assert_eq!(answered.1, der(&old.0));
        board.log().contains("what was read before stays in use")
    });
    private_file(&folder, "key.pem", &new.1);
    board.wait_until("the new certificate", || shown() == der(&new.0));
    // A file that is gone for a moment, as some tools leave it.
    fs::remove_file(folder.0.join("key.pem")).unwrap();
    board.wait_until("the look at the files", || {
        assert_eq!(shown(), der(&new.0));
        board.log().matches("what was read before stays in use").count() == 2
    });
}

#[test]
fn a_client_certificate_is_a_user() {
    let (upstream, folder) = (upstream(), Folder::new());
    let (authority, stranger) = (Authority::new(), Authority::new());
    let clients = private_file(&folder, "clients.pem", &authority.certificate.pem());
    let password = private_file(&folder, "password", "s3cret\n");
    // No password file: certificates are the only logins.
    let config = format!(
        "username = \"alice\"\npassword_file = {password:?}\n{}client_ca_file = {clients:?}\n{}",
        tls(&folder, &authority.signed("larder", "127.0.0.1")),
        rule("kit", "docker.io/lab/*"),
    );
    let board = Board::new(&upstream, &config);
    let kit = authority.signed("kit", "kit.lan");
    let status = |client: Option<&(String, String)>, path: &str| {
        https(&board, &authority, client, path).map(|(answer, _)| answer["HTTP/1.1 ".len()..][..3].to_owned())
    };
    assert_eq!(status(Some(&kit), TAG).unwrap(), "200");
    assert_eq!(status(Some(&kit), &TAG.replace("lab/", "secret/")).unwrap(), "403");
    assert_eq!(status(Some(&authority.signed("other", "kit.lan")), TAG).unwrap(), "403");
    assert_eq!(status(None, TAG).unwrap(), "401");
    assert_eq!(status(None, "/healthz").unwrap(), "200");
    // Who is named by an authority that nobody trusts gets no connection.
    assert!(status(Some(&stranger.signed("kit", "kit.lan")), TAG).is_err());
}
