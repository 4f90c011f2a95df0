//! What an upstream shows to a client's own login, and whom that login and larder's are sent to.

use super::*;

/// `bob:own`
const BOB: &str = "Basic Ym9iOm93bg==";

fn ask(upstream: &Upstream, password: &str) -> Result<Shown, Failure> {
    upstream.shows_to(
        "bob",
        &Secret::new(password.into()),
        ShownObject::Manifest(&"a/b".parse().unwrap(), &"latest".parse().unwrap()),
    )
}

fn with_login(mut config: Config) -> Config {
    config.upstreams[0].endpoints[0].credentials = credentials();
    config
}

/// All that was sent as a login.
fn sent(server: &Server) -> Vec<Option<String>> {
    server.requests().iter().map(|seen| seen.header("authorization").map(str::to_owned)).collect()
}

#[test]
fn tokens_of_a_client_are_its_own_and_asked_for_each_time() {
    let (server, realm) = token_pair(300);
    let (_all, upstream) = open(&with_login(config(&server.url()))).unwrap();
    upstream.head_manifest(&repository(), &tag()).unwrap();
    for n in 1..=2 {
        let shown = ask(&upstream, "own").unwrap();
        assert_eq!(shown, Shown { digest: Some(sha256(INDEX)), logged_in: true });
        assert_eq!(sent(&realm)[n].as_deref(), Some(BOB));
        assert_eq!(sent(&server)[2 * n..], [None, Some(format!("Bearer t{n}"))]);
    }
    // Larder's is what it was.
    upstream.head_manifest(&repository(), &tag()).unwrap();
    assert_eq!(sent(&realm).len(), 3);
    assert_eq!(sent(&server).last().unwrap().as_deref(), Some("Bearer t0"));
}

#[test]
fn a_client_s_login_goes_where_larder_s_own_would_go_alone() {
    // The second endpoint has no login of larder's: it is not asked, whatever becomes of the first.
    for status in [404, 503] {
        let (_first, second, config) = two_endpoints(status);
        let (_all, upstream) = open(&with_login(config)).unwrap();
        let failure = ask(&upstream, "own").unwrap_err();
        assert_eq!(failure.is_outage(), status == 503, "{failure:?}");
        assert!(second.lines().is_empty());
    }
    let storage = Server::new(|seen, out| answer(seen, out, 401, &[("WWW-Authenticate", "Basic")], b""));
    let location = format!("{}/store", storage.url());
    let server = Server::new(move |seen, out| match seen.header("authorization") {
        Some(BOB) => answer(seen, out, 307, &[("Location", &location)], b""),
        _ => answer(seen, out, 401, &[("WWW-Authenticate", "Basic")], b""),
    });
    let (_all, upstream) = open(&with_login(config(&server.url()))).unwrap();
    assert!(matches!(ask(&upstream, "own"), Err(Failure::Denied { .. })));
    assert!(matches!(ask(&upstream, "other"), Err(Failure::Denied { .. })));
    assert_eq!(sent(&storage), [None]);
    assert!(sent(&server).iter().flatten().all(|login| login != BASIC), "larder's own was sent");
}

#[test]
fn who_asks_as_everybody_shows_no_certificate() {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["board.lab".to_owned()]).unwrap();
    let certificate = certificate.self_signed(&key).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let clients =
        rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
    let (server, authority) = tls_server_for(clients.unwrap(), index_answer);
    let file = |end: &str, text: String| {
        let path = std::env::temp_dir().join(format!("larder-twin-{}.{end}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        path
    };
    let mut config = config(&format!("https://127.0.0.1:{}", server.port));
    let files = [file("ca", authority), file("pem", certificate.pem()), file("key", key.serialize_pem())];
    let endpoint = &mut config.upstreams[0].endpoints[0];
    endpoint.ca_file = Some(files[0].clone());
    let (cert_file, key_file) = (files[1].clone(), files[2].clone());
    endpoint.client_certificate = Some(crate::config::ClientCertSettings { cert_file, key_file });
    endpoint.credentials = credentials();
    config.upstreams[0].access = UpstreamAccess::Public;
    let (_all, upstream) = open(&config).unwrap();
    upstream.shows(&repository(), &sha256(INDEX)).unwrap();
    let refused = upstream.anonymous().unwrap().shows(&repository(), &sha256(INDEX)).unwrap_err();
    assert_eq!(refused.cause(), Some(Cause::Tls), "{refused}");
    files.iter().for_each(|file| std::fs::remove_file(file).unwrap());
}

#[test]
fn what_is_shown_to_anybody_is_no_login() {
    let server = Server::new(index_answer);
    let (_all, upstream) = open(&with_login(config(&server.url()))).unwrap();
    assert_eq!(ask(&upstream, "x").unwrap(), Shown { digest: Some(sha256(INDEX)), logged_in: false });
    assert_eq!(sent(&server), [None]);
}

#[test]
fn a_rate_limit_of_a_client_is_not_larder_s_own() {
    let server = Server::new(|seen, out| match seen.header("authorization") {
        Some(BASIC) => index_answer(seen, out),
        Some(_) => answer(seen, out, 429, &[("Retry-After", "60")], b""),
        None => answer(seen, out, 401, &[("WWW-Authenticate", "Basic")], b""),
    });
    let (_all, upstream) = open(&with_login(config(&server.url()))).unwrap();
    assert_eq!(ask(&upstream, "own").unwrap_err().cause(), Some(Cause::RateLimited));
    upstream.head_manifest(&repository(), &tag()).unwrap();
    let before = server.requests().len();
    assert_eq!(ask(&upstream, "own").unwrap_err().cause(), Some(Cause::RateLimited));
    assert_eq!(server.requests().len(), before, "nor is it asked again meanwhile");
}
