//! Logins that change between two questions.

use super::*;

/// A file with a password.
fn password_file(name: &str, text: &str) -> std::path::PathBuf {
    let file = std::env::temp_dir().join(format!("larder-changed-{name}-{}", std::process::id()));
    std::fs::write(&file, text).unwrap();
    file
}

fn basic(password: &str) -> String {
    use base64::Engine;
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("user:{password}")))
}

fn config_with(url: &str, file: &std::path::Path) -> Config {
    let mut config = config(url);
    let password = LoginSettings::read_password(file).unwrap();
    config.upstreams[0].endpoints[0].credentials =
        Some(LoginSettings { username: "user".into(), password, password_file: file.to_owned() });
    config
}

#[test]
fn a_403_has_the_password_file_looked_at() {
    let accepted = Arc::new(Mutex::new(basic("first")));
    let now = accepted.clone();
    let server = Server::new(move |seen, out| match seen.header("authorization") {
        None => answer(seen, out, 401, &[("WWW-Authenticate", "Basic")], b""),
        Some(given) if given == *now.lock() => index_answer(seen, out),
        // As ECR answers to a password that has expired.
        Some(_) => answer(seen, out, 403, &[], b"{}"),
    });
    let file = password_file("403", "first");
    let (_all, upstream) = open(&config_with(&server.url(), &file)).unwrap();
    upstream.head_manifest(&repository(), &tag()).unwrap();
    for password in ["second", "third"] {
        *accepted.lock() = basic(password);
        std::fs::write(&file, password).unwrap();
        let before = server.requests().len();
        upstream.head_manifest(&repository(), &tag()).unwrap();
        assert_eq!(server.requests().len(), before + 2, "one was refused and one accepted");
    }
    // Where nothing has changed a refusal is one, and is not asked for twice.
    *accepted.lock() = basic("other");
    let before = server.requests().len();
    let failure = upstream.head_manifest(&repository(), &tag()).unwrap_err();
    assert!(matches!(failure, Failure::Denied { status: 403, .. }), "{failure:?}");
    assert_eq!(server.requests().len(), before + 1);
}

#[test]
fn a_token_server_that_refuses_has_it_looked_at_too() {
    let accepted = Arc::new(Mutex::new(basic("first")));
    let now = accepted.clone();
    let realm = Server::new(move |seen, out| match seen.header("authorization") {
        Some(given) if given == *now.lock() => {
            let token = format!("{{\"token\":\"{}\"}}", given.trim_start_matches("Basic "));
            answer(seen, out, 200, &[], token.as_bytes())
        }
        _ => answer(seen, out, 401, &[], b"{}"),
    });
    let (challenge, now) = (format!("Bearer realm=\"{}/token\"", realm.url()), accepted.clone());
    let server = Server::new(move |seen, out| {
        let good = now.lock().replace("Basic", "Bearer");
        match seen.header("authorization") {
            Some(given) if given == good => index_answer(seen, out),
            _ => answer(seen, out, 401, &[("WWW-Authenticate", &challenge)], b""),
        }
    });
    let file = password_file("token", "first");
    let (_all, upstream) = open(&config_with(&server.url(), &file)).unwrap();
    for (password, tokens) in [("first", 1), ("second", 2), ("third", 3)] {
        *accepted.lock() = basic(password);
        std::fs::write(&file, password).unwrap();
        upstream.head_manifest(&repository(), &tag()).unwrap();
        let given = realm.requests().iter().filter(|seen| seen.header("authorization").is_some()).count();
        assert!(given >= tokens, "{given} of {tokens}");
        assert_eq!(realm.requests().last().unwrap().header("authorization"), Some(&*basic(password)));
    }
}
