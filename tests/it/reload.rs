//! Secrets and certificates that change while the server runs: what is new holds at once, what is broken changes nothing.

use crate::board::{
    self, BOARD, Board, Folder, image, layer_of, private_file, secrets, tls_settings, upstream_with,
};
use larder::config::KitSettings;
use larder::demo::upstream::{FaultyRegistry as Upstream, LoginDemand as Login};
use larder::kit::Kit;
use larder::text::Secret;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, RwLock};
use tokio::runtime::Runtime;

const TAG: &str = "/v2/lab/app/manifests/latest?ns=docker.io";
const NEIGHBOUR: &str = "/v2/lab/app/manifests/latest?ns=neighbour.test";

/// How a file gets another text.
type Change = fn(&Path, &str);

fn by_rename(file: &Path, text: &str) {
    let new = file.with_extension("new");
    fs::write(&new, text).unwrap();
    let mode = fs::metadata(file).unwrap().permissions();
    fs::set_permissions(&new, mode).unwrap();
    fs::rename(new, file).unwrap();
}

fn in_place(file: &Path, text: &str) {
    fs::write(file, text).unwrap();
}

/// As a kubelet changes a mounted secret: the file is a link to `..data/NAME`, and `..data` one to a folder.
fn by_link(file: &Path, text: &str) {
    let folder = file.parent().unwrap();
    let state = (0..).map(|n| folder.join(format!("..{n}"))).find(|path| !path.exists()).unwrap();
    fs::create_dir(&state).unwrap();
    let name = file.file_name().unwrap();
    fs::write(state.join(name), text).unwrap();
    fs::set_permissions(state.join(name), fs::metadata(file).unwrap().permissions()).unwrap();
    for (link, to) in
        [(folder.join("..data"), state.as_path()), (file.to_owned(), &Path::new("..data").join(name))]
    {
        let new = folder.join("..new");
        symlink(to, &new).unwrap();
        fs::rename(&new, link).unwrap();
    }
}

const CHANGES: [(&str, Change); 3] = [("rename", by_rename), ("in place", in_place), ("link", by_link)];

/// The status of a HEAD by the board's user, and who answered.
fn ask(board: &Board, path: &str) -> (u16, String) {
    let answer = board.request("HEAD", path, &[BOARD]);
    (answer.status, answer.header("cache-status").unwrap_or("").to_owned())
}

fn assert_from_upstream(board: &Board, path: &str, what: &str) {
    let (status, from) = ask(board, path);
    assert!(status == 200 && from.contains("upstream"), "{what}: {status} {from}\n{}", board.log());
}

#[test]
fn a_password_is_taken_up_with_the_request_that_the_old_one_fails() {
    let login = |password: &str, by_token: bool| match by_token {
        true => Login::Token(Some(("alice".into(), password.into()))),
        false => Login::Basic("alice".into(), password.into()),
    };
    for by_token in [false, true] {
        for (how, change) in CHANGES {
            let (upstream, neighbour, folder) =
                (upstream_with(&image(1)), upstream_with(&image(2)), Folder::new());
            let (credentials, auth) = secrets(&folder);
            upstream.login(login("s3cret", by_token));
            let second = format!("[upstream.\"neighbour.test\"]\nurl = \"{}\"\n", neighbour.url());
            let board = Board::new(&upstream, &format!("{credentials}{second}{auth}"));
            let what = format!("{how}, by token: {by_token}");
            assert_from_upstream(&board, TAG, &what);
            let file = folder.0.join("password");
            // Another repository, so that a token has to be asked for.
            upstream.push("lab/other", "latest", &image(3));
            upstream.login(login("n3w", by_token));
            change(&file, "n3w\n");
            assert_from_upstream(&board, "/v2/lab/other/manifests/latest?ns=docker.io", &what);
            assert_from_upstream(&board, TAG, &what);
            assert_from_upstream(&board, NEIGHBOUR, &what);
            assert_eq!(board.log().matches("changed and is in use").count(), 1, "{}", board.log());
        }
    }
}

#[test]
fn tokens_go_with_the_password_that_they_were_obtained_with() {
    let (upstream, folder) = (upstream_with(&image(1)), Folder::new());
    let (credentials, auth) = secrets(&folder);
    upstream.login(Login::Token(Some(("alice".into(), "s3cret".into()))));
    let board = Board::new(&upstream, &format!("{credentials}{auth}"));
    assert_from_upstream(&board, TAG, "at first");
    assert_eq!(upstream.count("GET", "/token"), 1);
    // The token is good as long as the registry says so, but it is another's now.
    upstream.login(Login::Token(Some(("alice".into(), "n3w".into()))));
    by_rename(&folder.0.join("password"), "n3w\n");
    board.wait_until("a token of the new password", || {
        assert_from_upstream(&board, TAG, "afterwards");
        upstream.count("GET", "/token") == 2
    });
}

#[test]
fn a_broken_password_file_changes_nothing_and_is_named_once() {
    let (upstream, folder) = (upstream_with(&image(1)), Folder::new());
    let (credentials, auth) = secrets(&folder);
    upstream.login(Login::Basic("alice".into(), "s3cret".into()));
    let board = Board::new(&upstream, &format!("{credentials}{auth}"));
    assert_from_upstream(&board, TAG, "at first");
    in_place(&folder.0.join("password"), "");
    board.wait_until("the warning", || {
        assert_from_upstream(&board, TAG, "with a broken file");
        board.log().contains("is empty; what was read before stays in use")
    });
    upstream.login(Login::Basic("alice".into(), "n3w".into()));
    for _ in 0..3 {
        assert_eq!(ask(&board, TAG).0, 401);
    }
    assert_eq!(board.log().matches("stays in use").count(), 1, "{}", board.log());
    in_place(&folder.0.join("password"), "n3w\n");
    assert_from_upstream(&board, TAG, "mended");
}

#[test]
fn a_user_of_the_board_has_the_new_password_at_once() {
    let (upstream, folder) = (upstream_with(&image(1)), Folder::new());
    let (credentials, auth) = secrets(&folder);
    upstream.login(Login::Basic("alice".into(), "s3cret".into()));
    let board = Board::new(&upstream, &format!("{credentials}{auth}"));
    let with = |header: &str| board.request("HEAD", TAG, &[("Authorization", header)]).status;
    for (count, (how, change)) in CHANGES.into_iter().enumerate() {
        let password = format!("new{count}");
        let header = format!("Basic {}", base64(&format!("board:{password}")));
        assert_eq!(with(&header), 401, "{how}");
        let line = format!("board:{}\n", bcrypt::hash(&password, 4).unwrap());
        change(&folder.0.join("htpasswd"), &line);
        assert_eq!(with(&header), 200, "{how}\n{}", board.log());
        assert_eq!(with(BOARD.1), 401, "the old one, {how}");
    }
    in_place(&folder.0.join("htpasswd"), "nonsense");
    board.wait_until("the warning", || {
        assert_eq!(with(&format!("Basic {}", base64("board:new2"))), 200);
        board.log().contains("stays in use")
    });
}

fn base64(text: &str) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(text)
}

/// TLS in front of an upstream, with a certificate that can be replaced.
struct Front {
    address: SocketAddr,
    settings: Arc<RwLock<Arc<rustls::ServerConfig>>>,
    connections: Arc<AtomicUsize>,
    _runtime: Runtime,
}

impl Front {
    fn new(upstream: &Upstream, settings: rustls::ServerConfig) -> Front {
        let runtime = Runtime::new().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let front = Front {
            address: listener.local_addr().unwrap(),
            settings: Arc::new(RwLock::new(Arc::new(settings))),
            connections: Arc::default(),
            _runtime: runtime,
        };
        let (settings, connections, to) =
            (front.settings.clone(), front.connections.clone(), upstream.addr());
        front._runtime.spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let acceptor = tokio_rustls::TlsAcceptor::from(settings.read().unwrap().clone());
                let connections = connections.clone();
                tokio::spawn(async move {
                    let Ok(mut client) = acceptor.accept(socket).await else { return };
                    connections.fetch_add(1, Ordering::SeqCst);
                    let Ok(mut onward) = tokio::net::TcpStream::connect(to).await else { return };
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut onward).await;
                });
            }
        });
        front
    }

    fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Another certificate for whoever connects from now on.
    fn replace(&self, settings: rustls::ServerConfig) {
        *self.settings.write().unwrap() = Arc::new(settings);
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

#[test]
fn an_authority_is_taken_up_where_the_old_one_fails() {
    for (how, change) in CHANGES {
        let (upstream, neighbour, folder) =
            (upstream_with(&image(1)), upstream_with(&image(2)), Folder::new());
        let (settings, pem, _) = tls_settings();
        let front = Front::new(&upstream, settings);
        let ca = private_file(&folder, "ca.pem", &pem);
        let second = format!("[upstream.\"neighbour.test\"]\nurl = \"{}\"\n", neighbour.url());
        let board = Board::with_url(&front.url(), &format!("ca_file = {ca:?}\n{second}"));
        assert_from_upstream(&board, TAG, how);
        // Where the file is no authority, the one before holds on.
        change(&ca, "nonsense");
        board.wait_until("the warning", || {
            assert_from_upstream(&board, TAG, how);
            board.log().contains("holds no certificate; what was read before stays in use")
        });
        let before = front.connections();
        let (settings, pem, _) = tls_settings();
        front.replace(settings);
        change(&ca, &pem);
        // The connection of before would do, but it is another's now.
        board.wait_until("a new connection", || {
            assert_from_upstream(&board, TAG, how);
            front.connections() > before
        });
        // At once, when nothing else is left: the first connection of the other lane.
        board.manifests("docker.io", "lab/app", "latest", &[]);
        let layer = layer_of(&image(1));
        let (settings, pem, _) = tls_settings();
        front.replace(settings);
        change(&ca, &pem);
        let blob = board.get(&format!("/v2/lab/app/blobs/{layer}?ns=docker.io"));
        assert_eq!((blob.status, blob.body().unwrap().len()), (200, image(1).blobs[&layer].len()), "{how}");
        assert_from_upstream(&board, NEIGHBOUR, how);
    }
}

#[test]
fn an_authority_of_the_system_is_taken_up_too() {
    let (upstream, folder) = (upstream_with(&image(1)), Folder::new());
    let (settings, pem, _) = tls_settings();
    let front = Front::new(&upstream, settings);
    let bundle = private_file(&folder, "bundle.pem", &tls_settings().1);
    let environment = vec![("SSL_CERT_FILE", bundle.display().to_string())];
    let board = Board::in_folder(Folder::new(), &Board::config(&front.url(), ""), environment)
        .unwrap_or_else(|(log, _)| panic!("{log}"));
    assert_eq!(ask(&board, TAG).0, 502, "another authority");
    by_rename(&bundle, &pem);
    board.wait_until_up("lab/app", "latest");
    // What holds no authority is no reason to trust nobody.
    by_rename(&bundle, "nonsense");
    for _ in 0..3 {
        assert_from_upstream(&board, TAG, "with what was read before");
    }
}

#[test]
fn the_secret_of_a_kit_is_taken_up() {
    const SECRETS: [&str; 2] = ["the first secret of the kit", "the second secret of the kit"];
    let (upstream, folder) = (upstream_with(&image(1)), Folder::new());
    let file = private_file(&folder, "kit.secret", SECRETS[0]);
    let kit = format!("[kit]\nsecret_file = {file:?}\nlisten = \"127.0.0.1:0\"\n");
    let board = Board::new(&upstream, &kit);
    board.pull("lab/app", "latest").unwrap();
    let runtime = Runtime::new().unwrap();
    let claims = |secret: &str| {
        let kit = Kit::new(&KitSettings {
            secret_file: "/none".into(),
            secret: Secret::new(secret.into()),
            listen: ([127, 0, 0, 1], 0).into(),
            peers: vec![board.kit_addr()],
            mdns: false,
        });
        let repository = "docker.io/lab/app".parse().unwrap();
        let platforms = [board::PLATFORM.parse().unwrap()];
        runtime.block_on(kit.ask_tag(&repository, &"latest".parse().unwrap(), &platforms)).len()
    };
    board.wait_until("the answer", || claims(SECRETS[0]) == 1);
    assert_eq!(claims(SECRETS[1]), 0);
    by_rename(&file, "short");
    board.wait_until("the warning", || claims(SECRETS[0]) == 1 && board.log().contains("stays in use"));
    by_rename(&file, SECRETS[1]);
    board.wait_until("the new secret", || claims(SECRETS[1]) == 1);
    assert_eq!(claims(SECRETS[0]), 0);
}

/// A certificate for a client, and its key, both PEM.
fn client_certificate() -> (String, String) {
    let (_, certificate, key) = tls_settings();
    (certificate, key)
}

/// The server's settings where clients must show this certificate.
fn demanding(server: &(String, String), client: &str) -> rustls::ServerConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(client.as_bytes()).unwrap()).unwrap();
    let clients =
        rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(clients.build().unwrap())
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(server.0.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(server.1.as_bytes()).unwrap(),
        )
        .unwrap()
}

#[test]
fn a_client_certificate_is_shown_and_taken_up_when_it_changes() {
    for (how, change) in CHANGES {
        let (upstream, folder) = (upstream_with(&image(1)), Folder::new());
        let server = client_certificate();
        let (certificate, key) = client_certificate();
        let front = Front::new(&upstream, demanding(&server, &certificate));
        let ca = private_file(&folder, "ca.pem", &server.0);
        ["cert", "key"].iter().for_each(|own| fs::create_dir(folder.0.join(own)).unwrap());
        let bare = Board::with_url(&front.url(), &format!("ca_file = {ca:?}\n"));
        assert_eq!(ask(&bare, TAG).0, 502, "without a certificate");
        bare.wait_for_log("asks for a client certificate (client_cert_file can name it)");
        let files = (
            private_file(&folder, "cert/client.pem", &certificate),
            private_file(&folder, "key/client.key", &key),
        );
        let more =
            format!("ca_file = {ca:?}\nclient_cert_file = {:?}\nclient_key_file = {:?}\n", files.0, files.1);
        let board = Board::with_url(&front.url(), &more);
        assert_from_upstream(&board, TAG, how);
        board.pull("lab/app", "latest").unwrap();
        // The certificate first: with the key of the one before it is none.
        let (certificate, key) = client_certificate();
        change(&files.0, &certificate);
        board.wait_until("the warning", || {
            assert_from_upstream(&board, TAG, how);
            board.log().contains("client.key") && board.log().contains("stays in use")
        });
        let before = front.connections();
        front.replace(demanding(&server, &certificate));
        change(&files.1, &key);
        board.wait_until("a new connection", || {
            assert_from_upstream(&board, TAG, how);
            front.connections() > before
        });
        assert_eq!(board.log().matches("stays in use").count(), 1, "{}", board.log());
    }
}

#[test]
fn a_client_certificate_that_cannot_be_used_is_refused() {
    let folder = Folder::new();
    let (certificate, key) = client_certificate();
    let cert = private_file(&folder, "client.pem", &certificate);
    let private = private_file(&folder, "client.key", &key);
    let open = private_file(&folder, "open.key", &key);
    fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let verdict = |keys: &str| {
        let text = format!("[upstream.\"mirror.test\"]\n{keys}");
        let path = private_file(&folder, "larder.toml", &text);
        let mut command = std::process::Command::new(
            std::env::var_os("LARDER").unwrap_or_else(|| env!("CARGO_BIN_EXE_larder").into()),
        );
        let output = board::output(command.env_clear().arg("--config").arg(path).args(["config", "check"]));
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
        (output.status.code(), said)
    };
    for (keys, code, why) in [
        (format!("client_cert_file = {cert:?}\nclient_key_file = {private:?}\n"), Some(0), ""),
        (format!("client_cert_file = {cert:?}\nclient_key_file = {open:?}\n"), Some(2), "chmod 640"),
        (format!("client_cert_file = {cert:?}\n"), Some(2), "no client_key_file"),
        (format!("client_key_file = {private:?}\n"), Some(2), "no client_cert_file"),
        (
            format!(
                "url = \"http://mirror.test\"\nclient_cert_file = {cert:?}\nclient_key_file = {private:?}\n"
            ),
            Some(2),
            "over https only",
        ),
    ] {
        let (status, said) = verdict(&keys);
        assert!(status == code && said.contains(why), "{keys}: {status:?} {said}");
    }
    let (_, other) = client_certificate();
    let other = private_file(&folder, "other.key", &other);
    let config = |key: &Path| {
        Board::config(
            "https://127.0.0.1:9",
            &format!("client_cert_file = {cert:?}\nclient_key_file = {key:?}\n"),
        )
    };
    for wrong in [&other, &cert, &folder.0.join("none")] {
        let Err((log, _)) = Board::in_folder(Folder::new(), &config(wrong), Vec::new()) else { panic!() };
        assert!(
            log.contains("upstream docker.io cannot be used") && log.contains(wrong.to_str().unwrap()),
            "{log}"
        );
    }
    drop(Board::with_config(&config(&private)));
}
