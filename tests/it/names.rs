//! Names as clients and people write them: every spelling of an image is the same image, and no spelling goes round a rule.

use crate::board::{self, BOARD, Board, Folder, InProcess, image, secrets, upstream_with};
use larder::auth::Identity;
use larder::demo::upstream::{FaultyRegistry as Upstream, LoginDemand as Login};

/// Docker Hub with `library/alpine` and `owner/app`.
fn hub() -> Upstream {
    let upstream = upstream_with(&image(9));
    upstream.push("library/alpine", "latest", &image(1));
    upstream.push("owner/app", "v1", &image(2));
    upstream
}

/// A section for another registry.
fn also(name: &str, upstream: &Upstream) -> String {
    format!("[upstream.\"{name}\"]\nurl = \"{}\"\n", upstream.url())
}

fn digest(board: &Board, path: &str) -> (u16, String) {
    let answer = board.head(path);
    (answer.status, answer.header("docker-content-digest").unwrap_or_default().to_owned())
}

#[test]
fn every_spelling_of_a_request_is_the_same_image() {
    let (hub, other, mirror) = (hub(), Upstream::start().unwrap(), Upstream::start().unwrap());
    other.push("owner/app", "v1", &image(3));
    other.push("alpine", "latest", &image(4));
    mirror.push("docker.io/library/alpine", "latest", &image(5));
    mirror.push("mirror.lan/app", "latest", &image(6));
    let more = also("ghcr.io", &other) + &also("mirror.lan", &mirror);
    let board = Board::new(&hub, &more);
    for (name, query, seed) in [
        ("alpine/manifests/latest", "docker.io", 1),
        ("library/alpine/manifests/latest", "docker.io", 1),
        ("docker.io/alpine/manifests/latest", "docker.io", 1),
        ("docker.io/library/alpine/manifests/latest", "docker.io", 1),
        ("index.docker.io/library/alpine/manifests/latest", "docker.io", 1),
        ("alpine/manifests/latest", "index.docker.io", 1),
        ("docker.io/library/alpine/manifests/latest", "registry-1.docker.io", 1),
        ("alpine/manifests/latest", "Docker.IO:443", 1),
        ("alpine/manifests/latest", "", 1),
        ("docker.io/alpine/manifests/latest", "", 1),
        ("index.docker.io/alpine/manifests/latest", "", 1),
        ("docker.io:443/library/alpine/manifests/latest", "", 1),
        ("docker.io/owner/app/manifests/v1", "docker.io", 2),
        ("ghcr.io/owner/app/manifests/v1", "ghcr.io", 3),
        ("GHCR.io/owner/app/manifests/v1", "", 3),
        // Not Docker Hub's library, a mirror's own repositories that look like names of registries, and one of them twice.
        ("alpine/manifests/latest", "ghcr.io", 4),
        ("docker.io/library/alpine/manifests/latest", "mirror.lan", 5),
        ("mirror.lan/mirror.lan/app/manifests/latest", "mirror.lan", 6),
        ("mirror.lan/mirror.lan/app/manifests/latest", "", 6),
    ] {
        let ns = if query.is_empty() { String::new() } else { format!("?ns={query}") };
        let found = digest(&board, &format!("/v2/{name}{ns}"));
        assert_eq!(found, (200, image(seed).root.to_string()), "{name}{ns}");
    }
    for (upstream, names) in
        [(&hub, &["library/alpine", "owner/app"][..]), (&other, &["owner/app", "alpine"][..])]
    {
        let asked = upstream.requests().into_iter().filter(|seen| seen.path.contains("/manifests/"));
        let wrong: Vec<String> = asked
            .map(|seen| seen.path)
            .filter(|path| !names.iter().any(|name| path.starts_with(&format!("/v2/{name}/manifests/"))))
            .collect();
        assert!(wrong.is_empty(), "{wrong:?}");
    }
    // Lists and blobs have the same names.
    let list = board.get("/v2/docker.io/alpine/tags/list?ns=docker.io").body().unwrap();
    assert!(String::from_utf8(list).unwrap().contains("latest"));
    let layer = board::layer_of(&image(1));
    assert_eq!(board.head(&format!("/v2/docker.io/alpine/blobs/{layer}?ns=docker.io")).status, 200);
}

#[test]
fn what_one_client_pulled_by_one_name_is_there_offline_by_the_others() {
    let hub = hub();
    let board = Board::new(&hub, "");
    board.pull("docker.io/library/alpine", "latest").unwrap();
    hub.hang_up();
    board.pull("alpine", "latest").unwrap();
    board.pull("library/alpine", "latest").unwrap();
    assert_eq!(digest(&board, "/v2/owner/app/manifests/v1?ns=docker.io").0, 502);
}

#[test]
fn commands_take_familiar_names() {
    let (hub, other) = (hub(), Upstream::start().unwrap());
    other.push("owner/app", "v1", &image(3));
    let board = Board::new(&hub, &also("ghcr.io", &other));
    board.pull("library/alpine", "latest").unwrap();
    larder::demo::client::pull(
        board.addr,
        Some("ghcr.io"),
        "owner/app",
        "v1",
        board::PLATFORM,
        board::PATIENCE,
    )
    .unwrap();
    board.wait_until("complete", || !board.said(&["ls"]).contains("partial"));
    let root = image(1).root;
    let spellings = [
        "alpine".to_owned(),
        "docker.io/alpine".into(),
        "index.docker.io/library/alpine:latest".into(),
        "docker://alpine".into(),
        "https://registry-1.docker.io/library/alpine/".into(),
        "http://Docker.io:443/alpine:latest".into(),
        format!("alpine:latest@{root}"),
    ];
    for name in &spellings {
        assert!(board.said(&["history", name]).contains(&root.to_string()), "{name}");
        for command in ["why", "pin", "unpin"] {
            let said = board.said(&[command, name]);
            assert!(said.contains("docker.io/library/alpine:latest"), "{command} {name}: {said}");
        }
    }
    for name in ["oci://ghcr.io/owner/app:v1", "docker://GHCR.io/owner/app:v1", "ghcr.io:443/owner/app:v1"] {
        assert!(board.said(&["why", name]).contains("ghcr.io/owner/app:v1"), "{name}");
    }
    for name in ["https://alpine", "ftp://docker.io/library/alpine", "docker://"] {
        let refused = board.command(&["why", name]);
        assert_eq!(refused.status.code(), Some(2), "{name}");
    }
    assert!(board.said(&["rm", "docker://docker.io/alpine"]).contains("docker.io/library/alpine:latest"));
    assert!(!board.said(&["ls"]).contains("alpine"));
    assert!(board.said(&["ls"]).contains("ghcr.io/owner/app:v1"), "the neighbour stays");
}

#[test]
fn no_spelling_goes_round_a_rule() {
    let (hub, folder) = (hub(), Folder::new());
    hub.login(Login::Basic("alice".into(), "s3cret".into()));
    let (login, users) = secrets(&folder);
    let rules = "[[auth.rule]]\nuser = \"board\"\nmatch = \"alpine\"\n";
    let board = Board::new(&hub, &(login + &users + rules));
    for ns in ["docker.io", "index.docker.io", "DOCKER.IO", "docker.io:443"] {
        for name in ["alpine", "docker.io/alpine", "index.docker.io/library/alpine"] {
            let path = format!("/v2/{name}/manifests/latest?ns={ns}");
            assert_eq!(board.request("HEAD", &path, &[BOARD]).status, 200, "{path}");
            assert_eq!(board.head(&path).status, 401, "{path}");
        }
        for name in ["owner/app", "docker.io/owner/app", "registry-1.docker.io/owner/app"] {
            let path = format!("/v2/{name}/manifests/v1?ns={ns}");
            assert_eq!(board.request("HEAD", &path, &[BOARD]).status, 403, "{path}");
        }
    }
    for path in ["/v2/index.docker.io/owner/app/manifests/v1", "/v2/Docker.io/owner/app/manifests/v1"] {
        assert_eq!(board.request("HEAD", path, &[BOARD]).status, 403, "{path}");
    }
}

#[test]
fn a_login_under_another_name_of_a_registry_is_not_lost_without_a_word() {
    let (hub, folder) = (hub(), Folder::new());
    let (login, users) = secrets(&folder);
    let board = Board::new(&hub, "");
    let check = |text: &str| {
        std::fs::write(board.folder().join("larder.toml"), text).unwrap();
        let checked = board.command(&["config", "check"]);
        (checked.status.code(), String::from_utf8(checked.stderr).unwrap())
    };
    let plain = "[upstream.\"docker.io\"]\n";
    let other = format!("[upstream.\"index.docker.io\"]\n{login}");
    let (status, said) = check(&format!("{plain}{other}{users}"));
    assert_eq!(status, Some(2), "{said}");
    assert!(said.contains("index.docker.io") && said.contains("[upstream.\"docker.io\"]"), "{said}");
    assert_eq!(check(&format!("{other}{users}")).0, Some(0));
    let (status, said) = check(&format!("{plain}{login}[upstream.\"index.docker.io\"]\n{users}"));
    assert_eq!(status, Some(0), "{said}");
}

#[test]
fn what_other_machines_may_have_fetched_has_familiar_names() {
    let hub = hub();
    let mut board = Board::new(&hub, "[access]\npull = [\"index.docker.io/alpine\"]\n");
    let server = InProcess::instead_of(&mut board);
    let away = Identity::anonymous("10.0.0.7".parse().unwrap());
    let status = |path: &str| {
        let answer = String::from_utf8_lossy(&server.get(&away, path, "")).into_owned();
        answer.split(' ').nth(1).unwrap().to_owned()
    };
    for name in ["alpine", "library/alpine", "docker.io/alpine"] {
        assert_eq!(status(&format!("/v2/{name}/manifests/latest?ns=docker.io")), "200", "{name}");
    }
    for name in ["owner/app", "docker.io/owner/app", "docker.io/docker.io/alpine"] {
        assert_eq!(status(&format!("/v2/{name}/manifests/v1?ns=docker.io")), "403", "{name}");
    }
}
