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
fn of_several_endpoints_the_registry_itself_is_asked_about_a_client() {
    let prefix = |endpoint: &mut EndpointSettings| endpoint.prefix = Some("hub".parse().unwrap());
    let send_ns = |endpoint: &mut EndpointSettings| endpoint.send_ns = true;
    let no_login = |endpoint: &mut EndpointSettings| endpoint.credentials = None;
    type Change<'a> = &'a dyn Fn(&mut EndpointSettings);
    let plain: Change<'_> = &|_| ();
    // What each of the two is, and which one is asked.
    let cases: [(&str, Change<'_>, Change<'_>, Option<usize>); 7] = [
        ("both have its names", plain, plain, Some(1)),
        ("a project of a mirror first", &prefix, plain, Some(1)),
        ("a mirror of several first", &send_ns, plain, Some(1)),
        ("a project of a mirror last", plain, &prefix, Some(0)),
        ("mirrors alone", &prefix, &send_ns, None),
        ("no login at the registry", plain, &no_login, None),
        ("no login at the mirror", &no_login, plain, Some(1)),
    ];
    for (case, first, second, expected) in cases {
        for status in [401, 404, 503] {
            let (one, other, mut config) = two_endpoints(status);
            let endpoints = &mut config.upstreams[0].endpoints;
            endpoints.iter_mut().for_each(|endpoint| endpoint.credentials = credentials());
            first(&mut endpoints[0]);
            second(&mut endpoints[1]);
            let (_all, upstream) = open(&config).unwrap();
            let answer = ask(&upstream, "own");
            let asked = [&one, &other].map(|server| !server.lines().is_empty());
            assert_eq!(asked, [expected == Some(0), expected == Some(1)], "{case}, {status}: {answer:?}");
            match expected {
                Some(0) => assert!(answer.is_err(), "{case}"),
                Some(_) => assert!(answer.is_ok(), "{case}: what another one says hides nothing"),
                None => assert!(matches!(answer, Err(Failure::Denied { .. })), "{case}: {answer:?}"),
            }
        }
    }
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
