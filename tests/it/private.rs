//! Logins: at upstreams, and of clients here. What was fetched with credentials stays private.

use crate::board::{
    self, BOARD, Board, Folder, InProcess, WRONG, image, layer_of, secrets, tls_settings, upstream_with,
};
use larder::demo::upstream::{FaultyRegistry as Upstream, LoginDemand as Login};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

const TAG: &str = "/v2/lab/app/manifests/latest?ns=docker.io";

fn alice() -> (String, String) {
    ("alice".into(), "s3cret".into())
}

fn private_board(login: Login) -> (Board, Upstream, Folder) {
    let upstream = upstream_with(&image(1));
    upstream.login(login);
    let folder = Folder::new();
    let (credentials, auth) = secrets(&folder);
    (Board::new(&upstream, &format!("{credentials}{auth}")), upstream, folder)
}

#[test]
fn an_anonymous_token_is_fetched_once_and_nobody_is_challenged() {
    let upstream = upstream_with(&image(1));
    upstream.login(Login::Token(None));
    let board = Board::new(&upstream, "");
    board.pull("lab/app", "latest").unwrap();
    board.pull("lab/app", "latest").unwrap();
    assert_eq!(upstream.count("GET", "/token"), 1);
    upstream.hang_up();
    board.pull("lab/app", "latest").unwrap();
}

#[test]
fn what_needs_credentials_needs_a_login_here() {
    for login in [Login::Basic(alice().0, alice().1), Login::Token(Some(alice()))] {
        let (board, upstream, _folder) = private_board(login);
        for path in [TAG, "/v2/", "/v2/lab/app/tags/list?ns=docker.io", "/v2/_catalog?ns=docker.io"] {
            let answer = board.get(path);
            assert_eq!(answer.status, 401, "{path}");
            assert!(answer.header("www-authenticate").unwrap().starts_with("Basic realm="), "{path}");
            assert_eq!(board.request("GET", path, &[WRONG]).status, 401, "{path}");
            assert_eq!(board.request("GET", path, &[BOARD]).status, 200, "{path}");
        }
        let layer = layer_of(&image(1));
        let blob = format!("/v2/lab/app/blobs/{layer}?ns=docker.io");
        board.manifests("docker.io", "lab/app", "latest", &[BOARD]);
        let whole = board.request("GET", &blob, &[BOARD]).body().unwrap();
        assert_eq!(whole, &image(1).blobs[&layer][..]);
        for uplink in [true, false] {
            if !uplink {
                upstream.hang_up();
            }
            assert_eq!(board.get(&blob).status, 401);
            assert_eq!(board.request("GET", &blob, &[WRONG]).status, 401);
            assert_eq!(board.request("GET", &blob, &[BOARD]).status, 200);
        }
    }
}

#[test]
fn credentials_that_upstream_refuses_are_said_to_be_refused() {
    let (board, _upstream, _folder) = private_board(Login::Basic("alice".into(), "other".into()));
    let answer = board.request("GET", TAG, &[BOARD]);
    assert_eq!(answer.status, 401);
    // Without a challenge, so that clients do not send upstream's credentials here.
    assert_eq!(answer.header("www-authenticate"), None);
    let body = String::from_utf8(answer.body().unwrap()).unwrap();
    assert!(body.contains("not accepted"), "{body}");
}

/// A board with the public docker.io and the private private.example.
fn board_of_both(public: &Upstream, private: &Upstream, folder: &Folder) -> Board {
    private.login(Login::Basic(alice().0, alice().1));
    let (credentials, auth) = secrets(folder);
    let url = private.url();
    Board::new(public, &format!("[upstream.\"private.example\"]\nurl = \"{url}\"\n{credentials}{auth}"))
}

#[test]
fn private_content_is_not_served_by_another_repository() {
    let (private, public) = (upstream_with(&image(1)), Upstream::start().unwrap());
    let folder = Folder::new();
    let board = board_of_both(&public, &private, &folder);
    board.manifests("private.example", "lab/app", "latest", &[BOARD]);
    let layer = layer_of(&image(1));
    let of_private = format!("/v2/lab/app/blobs/{layer}?ns=private.example");
    assert_eq!(board.get(&of_private).status, 401);
    assert_eq!(board.request("GET", &of_private, &[BOARD]).body().unwrap(), &image(1).blobs[&layer][..]);
    assert!(board.has_blob(&layer));
    // The public registry does not hold it: to know its digest is not to have it.
    let of_public = format!("/v2/lab/app/blobs/{layer}?ns=docker.io");
    assert_eq!(board.get(&of_public).status, 404);
    // Another repository of the private registry does not hold it either.
    let of_other = format!("/v2/lab/other/blobs/{layer}?ns=private.example");
    assert_eq!(board.request("GET", &of_other, &[BOARD]).status, 404);
    // Nor does the uplink's absence open the door.
    public.hang_up();
    private.hang_up();
    assert_eq!(board.get(&of_public).status, 502);
    assert_eq!(board.request("GET", &of_other, &[BOARD]).status, 502);
    assert_eq!(board.request("GET", &of_private, &[BOARD]).status, 200);
    // A mirror's list of everything leaves out what is private.
    let everything = String::from_utf8(board.get("/v2/_catalog").body().unwrap()).unwrap();
    assert!(!everything.contains("private.example"), "{everything}");
}

#[test]
fn content_that_the_public_registry_holds_too_becomes_public() {
    let (private, public) = (upstream_with(&image(1)), upstream_with(&image(1)));
    let folder = Folder::new();
    let board = board_of_both(&public, &private, &folder);
    let layer = layer_of(&image(1));
    let of_private = format!("/v2/lab/app/blobs/{layer}?ns=private.example");
    board.manifests("private.example", "lab/app", "latest", &[BOARD]);
    board.request("GET", &of_private, &[BOARD]).body().unwrap();
    let of_public = format!("/v2/lab/app/blobs/{layer}?ns=docker.io");
    assert_eq!(board.get(&of_public).body().unwrap(), &image(1).blobs[&layer][..]);
    assert_eq!(
        (public.count("HEAD", "/blobs/"), public.count("GET", "/blobs/")),
        (0, 1),
        "its bytes prove it"
    );
    public.hang_up();
    assert_eq!(board.get(&of_public).status, 200);
}

#[test]
fn credentials_without_a_login_of_clients_are_refused() {
    let folder = Folder::new();
    let (credentials, _) = secrets(&folder);
    let config = folder.0.join("larder.toml");
    std::fs::write(&config, format!("[upstream.\"docker.io\"]\n{credentials}")).unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_larder"));
    let output = board::output(command.arg("--config").arg(&config).args(["config", "check"]));
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("docker.io") && said.contains("[auth]"), "{said}");
}

#[test]
fn https_is_served() {
    let image = image(1);
    let upstream = upstream_with(&image);
    let folder = Folder::new();
    let (_, certificate, key) = tls_settings();
    let (cert_file, key_file) = (folder.0.join("cert.pem"), folder.0.join("key.pem"));
    std::fs::write(&cert_file, &certificate).unwrap();
    std::fs::write(&key_file, key).unwrap();
    let board = Board::new(
        &upstream,
        &format!("[tls]\ncert_file = \"{}\"\nkey_file = \"{}\"\n", cert_file.display(), key_file.display()),
    );
    let mut roots = rustls::RootCertStore::empty();
    let der = rustls::pki_types::pem::PemObject::from_pem_slice(certificate.as_bytes()).unwrap();
    roots.add(der).unwrap();
    let settings =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
    let settings = Arc::new(settings);
    let layer = layer_of(&image);
    let name = rustls::pki_types::ServerName::try_from("127.0.0.1").unwrap();
    for _ in 0..2 {
        let session = rustls::ClientConnection::new(Arc::clone(&settings), name.clone()).unwrap();
        let socket = TcpStream::connect(board.addr).unwrap();
        socket.set_read_timeout(Some(board::PATIENCE)).unwrap();
        let mut stream = rustls::StreamOwned::new(session, socket);
        let request =
            format!("GET /v2/lab/app/blobs/{layer} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let whole = &image.blobs[&layer];
        assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"));
        assert_eq!(&answer[answer.len() - whole.len()..], &whole[..]);
    }
    // Who speaks plain HTTP to it is hung up on, and the next client is served.
    let mut plain = TcpStream::connect(board.addr).unwrap();
    plain.set_read_timeout(Some(board::PATIENCE)).unwrap();
    plain.write_all(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut said = Vec::new();
    let _ = plain.read_to_end(&mut said);
    assert!(!said.starts_with(b"HTTP"));
}

#[test]
fn any_byte_stream_is_served_with_the_identity_of_its_client() {
    use larder::auth::Identity;
    use tokio::io::AsyncReadExt;

    let (mut board, _upstream, _folder) = private_board(Login::Basic(alice().0, alice().1));
    let inside = InProcess::instead_of(&mut board);
    let ask = |identity: &Identity, path: &str| inside.get(identity, path, "");

    let anonymous = Identity::anonymous([127, 0, 0, 1].into());
    let user = Identity { user: Some("peer".into()), ..anonymous.clone() };
    let layer = layer_of(&image(1));
    let blob = format!("/v2/lab/app/blobs/{layer}?ns=docker.io");
    // Twice: from upstream, and from the disk.
    for _ in 0..2 {
        for path in [TAG, &blob] {
            assert!(ask(&anonymous, path).starts_with(b"HTTP/1.1 401 "), "{path}");
            assert!(ask(&user, path).starts_with(b"HTTP/1.1 200 "), "{path}");
        }
        assert!(ask(&user, &blob).ends_with(&image(1).blobs[&layer]));
    }

    // A client that only waits does not keep the server from its end.
    let (mut client, served) = inside.connect(&user);
    inside.runtime.block_on(async {
        inside.server.stop(board::PATIENCE).await;
        served.await.unwrap();
        assert_eq!(client.read_to_end(&mut Vec::new()).await.unwrap(), 0);
    });
    inside.mirror.stop();
}
