//! Pull secrets: a client's own login at a registry opens what that registry shows to it, and nothing else.

use crate::board::{self, Board, Folder, InProcess, image, layer_of, private_file};
use larder::auth::Identity;
use larder::demo::client::ClientAnswer as Answer;
use larder::demo::upstream::{Behaviour, FaultyRegistry as Upstream, LoginDemand as Login};
use larder::oci::Digest;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const TAG: &str = "/v2/lab/app/manifests/latest?ns=docker.io";
const SECRET_TAG: &str = "/v2/secret/app/manifests/latest?ns=docker.io";
const ON: &str = "[auth]\npull_secrets = true\n";

fn basic(user: &str, password: &str) -> String {
    use base64::Engine;
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}")))
}

/// A long one, as tokens are: bcrypt would read its beginning only.
fn token() -> String {
    "b0b".repeat(100)
}

fn bob() -> String {
    basic("bob", &token())
}

/// Larder's own login at the registry.
fn demands() -> [Login; 2] {
    let (user, password) = ("alice".to_owned(), "s3cret".to_owned());
    [Login::Basic(user.clone(), password.clone()), Login::Token(Some((user, password)))]
}

/// `lab/app`, which bob may read, and `secret/app`, which eve and kit may.
fn registry(demand: Login) -> Upstream {
    let upstream = board::upstream_with(&image(1));
    upstream.push("secret/app", "latest", &image(2));
    upstream.login(demand);
    upstream.open_account("bob", &token(), "lab/app");
    upstream.open_account("eve", "3ve-knows-it", "secret/app");
    upstream.open_account("kit", "up", "secret/app");
    upstream
}

/// The login of larder at docker.io.
fn credentials(folder: &Folder) -> String {
    let password = private_file(folder, "password", "s3cret\n");
    format!("username = \"alice\"\npassword_file = {password:?}\n")
}

fn board_of(upstream: &Upstream, folder: &Folder, auth: &str) -> Board {
    Board::new(upstream, &(credentials(folder) + auth))
}

fn ask(board: &Board, method: &str, path: &str, login: &str) -> Answer {
    board.request(method, path, &[("Authorization", login)])
}

fn status(board: &Board, path: &str, login: &str) -> u16 {
    ask(board, "GET", path, login).status
}

fn blob(name: &str, digest: &Digest) -> String {
    format!("/v2/{name}/blobs/{digest}?ns=docker.io")
}

/// What containerd asks for, one after the other.
fn pull(board: &Board, name: &str, seed: u64, login: &str) {
    let tag = format!("/v2/{name}/manifests/latest?ns=docker.io");
    let answer = ask(board, "HEAD", &tag, login);
    assert_eq!(answer.status, 200, "{tag}");
    assert_eq!(answer.header("docker-content-digest"), Some(image(seed).root.to_string().as_str()));
    board.manifests("docker.io", name, "latest", &[("Authorization", login)]);
    for digest in board::needed(&image(seed)) {
        let answer = ask(board, "GET", &blob(name, &digest), login);
        assert_eq!(answer.status, 200, "{digest}");
        assert_eq!(answer.body().unwrap(), &image(seed).blobs[&digest][..]);
    }
}

/// The requests that came with a client's login, or a token for it: not larder's own, and not without any.
fn with_logins_of_clients(upstream: &Upstream) -> Vec<(String, String)> {
    let seen = upstream.requests().into_iter().filter(|seen| {
        let given = seen.authorization.as_deref();
        given.is_some_and(|given| given.starts_with("Basic") && given != basic("alice", "s3cret"))
    });
    seen.map(|seen| (seen.method, seen.path)).collect()
}

#[test]
fn the_registry_is_asked_once_for_an_image_and_the_rest_comes_from_the_cache() {
    for demand in demands() {
        let (upstream, folder) = (registry(demand.clone()), Folder::new());
        let board = board_of(&upstream, &folder, ON);
        assert_eq!(board.get(TAG).status, 401);
        pull(&board, "lab/app", 1, &bob());
        let asked = with_logins_of_clients(&upstream);
        let expected = match demand {
            Login::Basic(..) => ("HEAD".to_owned(), "/v2/lab/app/manifests/latest".to_owned()),
            Login::Token(_) | Login::Limited(..) => ("GET".to_owned(), "/token".to_owned()),
        };
        assert_eq!(asked, [expected], "the manifest vouches for what it names");
        // Larder's own login fetches, the client's only asks; and no token goes from one to the other.
        let bobs: Vec<_> = upstream.requests().into_iter().filter(|seen| seen.method == "GET").collect();
        let tokens: std::collections::BTreeSet<_> = upstream
            .requests()
            .into_iter()
            .filter_map(|seen| seen.authorization.map(|token| (token, seen.method)))
            .filter(|(token, _)| token.starts_with("Bearer"))
            .collect();
        if matches!(demand, Login::Token(_)) {
            let got: Vec<&String> =
                tokens.iter().filter(|(_, m)| m == "GET").map(|(token, _)| token).collect();
            assert_eq!(got.len(), 1, "{tokens:?}");
            let heads = tokens.iter().filter(|(token, method)| method == "HEAD" && token != got[0]);
            assert_eq!(heads.count(), 1, "{tokens:?}");
        }
        assert!(
            !bobs.is_empty()
                && bobs.iter().all(|seen| seen.authorization != Some(bob()) || seen.path == "/token")
        );
        // Again, and with the uplink gone: the answer counts for its five minutes.
        let before = upstream.requests().len();
        pull(&board, "lab/app", 1, &bob());
        assert_eq!(with_logins_of_clients(&upstream).len(), 1);
        assert!(upstream.requests().len() > before, "larder itself asks for the tag");
        upstream.hang_up();
        pull(&board, "lab/app", 1, &bob());
        assert_eq!(board.get(TAG).status, 401);
        assert_eq!(board.get("/healthz").status, 200);
        assert!(!board.log().contains(&token()), "a secret is in the log");
    }
}

#[test]
fn a_secret_goes_to_the_registry_itself_and_to_no_mirror_before_it() {
    for (demand, keys) in demands().into_iter().zip(["", "prefix = \"hub\"\n"]) {
        // The mirror has the image, and has never heard of bob.
        let (mirror, hub, folder) =
            (board::upstream_with(&image(1)), registry(demand.clone()), Folder::new());
        mirror.push("hub/lab/app", "latest", &image(1));
        mirror.login(demand);
        let table = |upstream: &Upstream, keys: &str| {
            let url = upstream.url();
            let login = credentials(&folder);
            format!("[[upstream.\"docker.io\".endpoint]]\nurl = \"{url}\"\n{keys}{login}")
        };
        let tables = table(&mirror, keys) + &table(&hub, "");
        let head = format!("platforms = [\"{}\"]\n[disk]\nmin_free = \"1MiB\"\n", board::PLATFORM);
        let board = Board::with_config(&format!("{head}{}{tables}{ON}", board::FETCH));
        pull(&board, "lab/app", 1, &bob());
        assert_eq!(status(&board, TAG, &basic("bob", "wrong")), 401);
        assert_eq!(with_logins_of_clients(&mirror), [], "{keys}");
        assert!(!with_logins_of_clients(&hub).is_empty());
        assert!(mirror.count("GET", "/manifests/") > 0, "larder itself goes on asking the first one");
    }
}

/// Status, headers but the time, and text.
fn seen(answer: Answer) -> (u16, Vec<(String, String)>, Vec<u8>) {
    let headers =
        answer.headers.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("date")).cloned().collect();
    (answer.status, headers, answer.body().unwrap())
}

#[test]
fn what_a_login_is_not_shown_is_answered_like_what_is_absent() {
    for demand in demands() {
        let (upstream, folder) = (registry(demand), Folder::new());
        let mut board = board_of(&upstream, &folder, ON);
        pull(&board, "lab/app", 1, &bob());
        pull(&board, "secret/app", 2, &basic("eve", "3ve-knows-it"));
        let (root, layer) = (image(2).root, layer_of(&image(2)));
        let absent: Digest = format!("sha256:{}", "7".repeat(64)).parse().unwrap();
        let here = [
            SECRET_TAG.to_owned(),
            format!("/v2/secret/app/manifests/{root}?ns=docker.io"),
            blob("secret/app", &layer),
            "/v2/secret/app/tags/list?ns=docker.io".into(),
            format!("/v2/secret/app/referrers/{root}?ns=docker.io"),
            // What is here, through a repository that the login may read.
            format!("/v2/lab/app/manifests/{root}?ns=docker.io"),
            blob("lab/app", &layer),
        ];
        let gone = [
            SECRET_TAG.replace("latest", "none"),
            format!("/v2/secret/none/manifests/{absent}?ns=docker.io"),
            blob("secret/app", &absent),
            "/v2/secret/none/tags/list?ns=docker.io".into(),
            format!("/v2/secret/app/referrers/{absent}?ns=docker.io"),
            format!("/v2/lab/app/manifests/{absent}?ns=docker.io"),
            blob("lab/app", &absent),
        ];
        let logins = [
            None,
            Some(bob()),
            Some(basic("bob", "wrong")),
            Some(basic("eve", "wrong")),
            Some(basic("nobody", "3ve-knows-it")),
            Some("Basic nonsense".into()),
        ];
        for _restarted in [false, true] {
            for login in &logins {
                let login: Vec<(&str, &str)> =
                    login.iter().map(|login| ("Authorization", login.as_str())).collect();
                for (here, gone) in here.iter().zip(&gone) {
                    for method in ["GET", "HEAD"] {
                        let [a, b] = [here, gone].map(|path| seen(board.request(method, path, &login)));
                        assert_eq!(a, b, "{method} {here} {login:?}");
                        assert_eq!(a.0, 401, "{method} {here} {login:?}");
                    }
                }
            }
            board.stop();
            board.start_again();
        }
        // Nor does it make a difference while the registry cannot be asked.
        upstream.hang_up();
        for login in logins.iter().flatten() {
            for (here, gone) in here.iter().zip(&gone) {
                let [a, b] = [here, gone].map(|path| seen(ask(&board, "GET", path, login)));
                assert_eq!(a, b, "{here} {login}");
                assert!(matches!(a.0, 401 | 502), "{here} {login} {}", a.0);
            }
        }
        // Who is shown it gets it, in the midst of that.
        upstream.come_back().unwrap();
        board.wait_until("the link's return", || {
            status(&board, SECRET_TAG, &basic("eve", "3ve-knows-it")) == 200
        });
    }
}

#[test]
fn a_secret_is_taken_over_tls_and_on_this_machine_only() {
    for more in ["", "allow_plain_http = true\n", "allow_plain_http = true\nhtpasswd_file = FILE\n"] {
        let (upstream, folder) = (registry(demands()[0].clone()), Folder::new());
        let hash = bcrypt::hash("carry", 4).unwrap();
        let file = private_file(&folder, "htpasswd", &format!("board:{hash}\n"));
        let auth = format!("{ON}{}", more.replace("FILE", &format!("{file:?}")));
        let mut board = board_of(&upstream, &folder, &auth);
        let inside = InProcess::instead_of(&mut board);
        let ask = |identity: &Identity, login: &str| {
            let answer = inside.get(identity, TAG, &format!("Authorization: {login}\r\n"));
            let text = String::from_utf8_lossy(&answer).into_owned();
            (text["HTTP/1.1 ".len()..][..3].parse::<u16>().unwrap(), text)
        };
        for address in ["192.168.1.7", "2001:db8::7"] {
            let far = Identity::anonymous(address.parse().unwrap());
            let (status, text) = ask(&far, &bob());
            assert_eq!(status, if more.contains("FILE") { 401 } else { 403 }, "{text}");
            // Where nothing but secrets could be sent, none is asked for.
            assert!(more.contains("FILE") || !text.contains("www-authenticate"), "{text}");
            assert_eq!(with_logins_of_clients(&upstream), [], "it went on, {more}");
        }
        let far = Identity::anonymous("192.168.1.7".parse().unwrap());
        if more.contains("FILE") {
            assert_eq!(ask(&far, &basic("board", "carry")).0, 200);
        }
        assert_eq!(ask(&Identity { sealed: true, ..far }, &bob()).0, 200);
        assert_eq!(ask(&Identity::anonymous("127.0.0.1".parse().unwrap()), &bob()).0, 200);
        inside.mirror.stop();
    }
}

#[test]
fn it_is_off_by_default() {
    let (upstream, folder) = (registry(demands()[0].clone()), Folder::new());
    let hash = bcrypt::hash("carry", 4).unwrap();
    let file = private_file(&folder, "htpasswd", &format!("board:{hash}\n"));
    let board = board_of(&upstream, &folder, &format!("[auth]\nhtpasswd_file = {file:?}\n"));
    assert_eq!(status(&board, TAG, &basic("eve", "3ve-knows-it")), 401);
    assert_eq!(with_logins_of_clients(&upstream), []);
}

#[test]
fn a_secret_is_no_user_and_a_user_no_secret() {
    let (upstream, folder) = (registry(demands()[1].clone()), Folder::new());
    let hash = bcrypt::hash("carry", 4).unwrap();
    let file = private_file(&folder, "htpasswd", &format!("kit:{hash}\n"));
    let rule = "[[auth.rule]]\nuser = \"kit\"\nmatch = \"docker.io/lab/*\"\n";
    let board = board_of(&upstream, &folder, &format!("{ON}htpasswd_file = {file:?}\n{rule}"));
    let (local, secret) = (basic("kit", "carry"), basic("kit", "up"));
    let tags = "/v2/lab/app/tags/list?ns=docker.io";
    for _ in 0..2 {
        assert_eq!((status(&board, TAG, &local), status(&board, SECRET_TAG, &local)), (200, 403));
        // The rule of the user kit is of no use to a pull secret of that name, and what the registry shows needs none.
        assert_eq!((status(&board, TAG, &secret), status(&board, SECRET_TAG, &secret)), (401, 200));
        // Lists are for users.
        assert_eq!((status(&board, tags, &local), status(&board, tags, &secret)), (200, 401));
        assert_eq!(status(&board, "/v2/_catalog?ns=docker.io", &secret), 401);
        assert_eq!(status(&board, TAG, &bob()), 200, "longer than a password may be");
    }
    // The right password of a user goes to no registry.
    assert!(upstream.requests().iter().all(|seen| seen.authorization.as_deref() != Some(&local)));
}

#[test]
fn a_denial_ends_what_was_shown_before() {
    let (upstream, folder) = (registry(demands()[0].clone()), Folder::new());
    upstream.push("lab/app", "other", &image(3));
    let board = board_of(&upstream, &folder, ON);
    assert_eq!(ask(&board, "HEAD", TAG, &bob()).status, 200);
    // Between tag and digest the registry closes the repository to the login: what it has shown counts for its time ...
    upstream.close_accounts("bob");
    let root = format!("/v2/lab/app/manifests/{}?ns=docker.io", image(1).root);
    assert_eq!(status(&board, &root, &bob()), 200);
    // ... until the registry denies it something, and then nothing of the repository counts.
    assert_eq!(status(&board, &TAG.replace("latest", "other"), &bob()), 401);
    assert_eq!((status(&board, &root, &bob()), status(&board, TAG, &bob())), (401, 401));
    // What is denied is remembered for a moment, and then asked again.
    upstream.open_account("bob", &token(), "lab/app");
    board.wait_until("the next question", || status(&board, TAG, &bob()) == 200);
}

#[test]
fn equal_questions_are_one_and_guesses_have_a_pace() {
    let (upstream, folder) = (registry(demands()[0].clone()), Folder::new());
    let board = board_of(&upstream, &folder, ON);
    pull(&board, "secret/app", 2, &basic("eve", "3ve-knows-it"));
    upstream.on(Some("HEAD"), "/v2/lab/app/manifests/latest", Behaviour::HangBeforeHeader);
    std::thread::scope(|scope| {
        let asked: Vec<_> = (0..6).map(|_| scope.spawn(|| ask(&board, "HEAD", TAG, &bob()).status)).collect();
        assert!(upstream.wait_for(1, "HEAD", "/v2/lab/app/", board::PATIENCE));
        // Others are not held up by it.
        assert_eq!(status(&board, SECRET_TAG, &basic("eve", "3ve-knows-it")), 200);
        upstream.clear();
        upstream.release();
        asked.into_iter().for_each(|asked| assert_eq!(asked.join().unwrap(), 200));
    });
    let bobs =
        with_logins_of_clients(&upstream).into_iter().filter(|(_, path)| path.contains("lab/app")).count();
    assert_eq!(bobs, 1);
    // Eight guesses a second for one address, of which the first eight begin at once.
    let began = Instant::now();
    std::thread::scope(|scope| {
        for n in 0..22 {
            let (board, guess) = (&board, basic("bob", &format!("guess{n}")));
            scope.spawn(move || assert_eq!(status(board, TAG, &guess), 401));
        }
    });
    assert!(began.elapsed() >= Duration::from_secs(2), "{:?}", began.elapsed());
    let guesses = with_logins_of_clients(&upstream).len();
    // The same guess again is not asked again.
    assert_eq!(status(&board, TAG, &basic("bob", "guess21")), 401);
    assert_eq!(with_logins_of_clients(&upstream).len(), guesses);
    assert_eq!(status(&board, TAG, &bob()), 200);
    board.wait_for_log("login of \"bob\" from 127.0.0.1 for docker.io failed");
    assert!(!board.log().contains("guess"), "a secret is in the log");
}

#[test]
fn a_secret_goes_to_its_registry_alone() {
    let elsewhere = Upstream::start_at([127, 0, 0, 2].into()).unwrap();
    elsewhere.push("lab/app", "latest", &image(1));
    elsewhere.login(Login::Basic("bob".into(), token()));
    let realm = format!("Bearer realm=\"{}/token\",service=\"x\"", elsewhere.url());
    for trap in [
        Behaviour::RedirectTo(format!("{}/v2/lab/app/manifests/latest", elsewhere.url())),
        Behaviour::Status(401, vec![("WWW-Authenticate".into(), realm)]),
    ] {
        let (upstream, folder) = (registry(demands()[0].clone()), Folder::new());
        let board = board_of(&upstream, &folder, ON);
        upstream.on(Some("HEAD"), "/v2/lab/app/", trap.clone());
        assert_eq!(status(&board, TAG, &bob()), 401, "{trap:?}");
        assert!(elsewhere.requests().iter().all(|seen| !seen.authorized), "{trap:?}");
        assert_eq!(status(&board, SECRET_TAG, &basic("eve", "3ve-knows-it")), 200);
    }
}

#[test]
fn a_ping_asks_whether_the_registry_takes_the_login() {
    for demand in demands() {
        let (upstream, folder) = (registry(demand), Folder::new());
        let board = board_of(&upstream, &folder, ON);
        assert_eq!(board.get("/v2/").status, 401);
        assert_eq!(
            (status(&board, "/v2/", &basic("bob", "wrong")), status(&board, "/v2/", &bob())),
            (401, 200)
        );
        // That opens no content.
        assert_eq!(status(&board, SECRET_TAG, &bob()), 401);
    }
}

#[test]
fn a_ping_of_a_registry_whose_content_takes_no_login_takes_any() {
    let (public, private, folder) =
        (board::upstream_with(&image(1)), registry(demands()[0].clone()), Folder::new());
    let more = format!("{}{ON}challenge_ping = true\n", second(&private, &folder));
    let board = Board::new(&public, &more);
    // For clients that send a login only when `/v2/` asks for one.
    assert_eq!((board.get("/v2/").status, status(&board, "/v2/", &bob())), (401, 200));
    assert_eq!((public.requests().len(), private.requests().len()), (0, 0));
    let by_path = "/v2/second.example/lab/app/manifests/latest";
    assert_eq!(
        (status(&board, by_path, &bob()), status(&board, by_path, &basic("bob", "wrong"))),
        (200, 401)
    );
    assert_eq!(board.get(TAG).status, 200, "what is public is never challenged");
}

fn kept(board: &Board) -> PathBuf {
    board.data().join("kept-logins")
}

fn restart(board: &mut Board) {
    board.stop();
    board.start_again();
}

#[test]
fn without_grace_nothing_is_kept_and_nothing_opened_offline() {
    let (upstream, folder) = (registry(demands()[0].clone()), Folder::new());
    let mut board = board_of(&upstream, &folder, ON);
    pull(&board, "lab/app", 1, &bob());
    restart(&mut board);
    assert!(!kept(&board).exists());
    upstream.hang_up();
    let answer = ask(&board, "GET", TAG, &bob());
    assert_eq!(answer.status, 502);
    let text = String::from_utf8(answer.body().unwrap()).unwrap();
    assert!(text.contains("docker.io cannot be asked now whether it accepts this login"), "{text}");
}

#[test]
fn the_last_login_counts_while_the_registry_is_out_of_reach() {
    for demand in demands() {
        let (upstream, folder) = (registry(demand), Folder::new());
        let mut board = board_of(&upstream, &folder, &format!("{ON}offline_grace = \"1h\"\n"));
        pull(&board, "lab/app", 1, &bob());
        pull(&board, "secret/app", 2, &basic("eve", "3ve-knows-it"));
        board.wait_until("two kept logins", || {
            std::fs::read_to_string(kept(&board)).is_ok_and(|text| text.lines().count() == 2)
        });
        let text = std::fs::read_to_string(kept(&board)).unwrap();
        assert!(!text.contains("b0bb0b") && !text.contains("3ve-knows-it"), "{text}");
        assert_eq!(std::fs::metadata(kept(&board)).unwrap().permissions().mode() & 0o777, 0o600);
        for online in [true, false] {
            if !online {
                upstream.hang_up();
            }
            // As after a power cut, too.
            board.kill();
            board.start_again();
            if online {
                // A wrong password for the user removes nothing.
                assert_eq!(status(&board, TAG, &basic("bob", "wrong")), 401);
                continue;
            }
            for _ in 0..2 {
                pull(&board, "lab/app", 1, &bob());
                assert_eq!(status(&board, "/v2/", &bob()), 200);
            }
            // Another password, another repository, another user, and what is not here.
            let others = [
                (TAG, basic("bob", &(token() + "x"))),
                (SECRET_TAG, bob()),
                (TAG, basic("eve", "3ve-knows-it")),
                (TAG, basic("nobody", "x")),
            ];
            let texts = others.map(|(path, login)| seen(ask(&board, "GET", path, &login)));
            assert!(texts.iter().all(|text| *text == texts[0] && text.0 == 502), "{texts:?}");
            let absent: Digest = format!("sha256:{}", "7".repeat(64)).parse().unwrap();
            for path in [blob("lab/app", &absent), TAG.replace("latest", "none")] {
                assert_eq!(status(&board, &path, &bob()), 502, "{path}");
            }
            assert_eq!(board.get(TAG).status, 401);
        }
        // The registry is back and denies the login: it is removed, and of no use when the uplink goes again.
        upstream.close_accounts("bob");
        upstream.come_back().unwrap();
        board.wait_until("a denial", || status(&board, TAG, &bob()) == 401);
        board.wait_until("one kept login", || {
            std::fs::read_to_string(kept(&board))
                .is_ok_and(|text| text.lines().count() == 1 && text.contains("eve"))
        });
        upstream.hang_up();
        restart(&mut board);
        assert_eq!(
            (status(&board, TAG, &bob()), status(&board, SECRET_TAG, &basic("eve", "3ve-knows-it"))),
            (502, 200)
        );
        // Without a grace in the configuration all of it goes.
        let file = board.folder().join("larder.toml");
        let text = std::fs::read_to_string(&file).unwrap().replace("offline_grace", "#offline_grace");
        std::fs::write(&file, text).unwrap();
        restart(&mut board);
        assert!(!kept(&board).exists());
        assert_eq!(status(&board, SECRET_TAG, &basic("eve", "3ve-knows-it")), 502);
    }
}

#[test]
fn a_kept_login_goes_when_its_grace_is_over() {
    let (upstream, folder) = (registry(demands()[0].clone()), Folder::new());
    let mut board = board_of(&upstream, &folder, &format!("{ON}offline_grace = \"4s\"\n"));
    pull(&board, "lab/app", 1, &bob());
    board.wait_until("a kept login", || kept(&board).exists());
    upstream.hang_up();
    restart(&mut board);
    board.wait_until("the end of the grace", || !kept(&board).exists());
    assert_eq!(status(&board, TAG, &bob()), 502);
}

/// The part of a configuration for another private registry with the same login.
fn second(upstream: &Upstream, folder: &Folder) -> String {
    format!("[upstream.\"second.example\"]\nurl = \"{}\"\n{}", upstream.url(), credentials(folder))
}

#[test]
fn a_registry_that_hangs_leaves_the_logins_of_others_alone() {
    let (evil, good, folder) =
        (registry(demands()[0].clone()), registry(demands()[1].clone()), Folder::new());
    let board = board_of(&evil, &folder, &(second(&good, &folder) + ON));
    evil.on(Some("HEAD"), "/v2/", Behaviour::HangBeforeHeader);
    std::thread::scope(|scope| {
        for n in 0..40 {
            let (board, guess) = (&board, basic("bob", &format!("guess{n}")));
            scope.spawn(move || status(board, TAG, &guess));
        }
        assert!(evil.wait_for(3, "HEAD", "/v2/", board::PATIENCE));
        let began = Instant::now();
        let tag = TAG.replace("docker.io", "second.example");
        assert_eq!(status(&board, &tag, &bob()), 200);
        assert_eq!(status(&board, &tag, &basic("bob", "wrong")), 401);
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        evil.clear();
        evil.release();
    });
}

#[test]
fn a_kept_login_does_not_count_for_want_of_a_place_or_by_a_rate_limit() {
    let (upstream, folder) = (registry(demands()[0].clone()), Folder::new());
    let mut board = board_of(&upstream, &folder, &format!("{ON}offline_grace = \"1h\"\n"));
    pull(&board, "lab/app", 1, &bob());
    board.wait_until("a kept login", || kept(&board).exists());
    upstream.close_accounts("bob");
    restart(&mut board);
    upstream.on(Some("HEAD"), "/v2/", Behaviour::Status(429, vec![("Retry-After".into(), "1".into())]));
    assert_eq!(status(&board, TAG, &bob()), 502, "who provokes a limit is not let in by it");
    upstream.clear();
    board.wait_until("the end of the limit", || status(&board, TAG, &bob()) == 401);
    board.wait_until("its removal", || !kept(&board).exists());
}

#[test]
fn what_the_registry_shows_to_anybody_proves_no_login() {
    let upstream = board::upstream_with(&image(1));
    let folder = Folder::new();
    let mut board = board_of(&upstream, &folder, &format!("{ON}offline_grace = \"1h\"\n"));
    assert_eq!(board.get(TAG).status, 401);
    pull(&board, "lab/app", 1, &basic("bob", "anything"));
    assert!(upstream.requests().iter().all(|seen| !seen.authorized));
    restart(&mut board);
    assert!(!kept(&board).exists());
    upstream.hang_up();
    assert_eq!(status(&board, TAG, &basic("bob", "anything")), 502);
}

#[test]
fn what_is_no_registrys_own_answer_proves_no_secret() {
    let (portal, folder) = (board::upstream_with(&image(1)), Folder::new());
    portal.on(None, "/", Behaviour::Status(200, vec![("Content-Type".into(), "text/html".into())]));
    let upstream = registry(demands()[0].clone());
    let board = board_of(&upstream, &folder, "[auth]\npull_secrets = true\noffline_grace = \"1h\"\n");
    pull(&board, "lab/app", 1, &bob());
    let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let html = header("Content-Type", "text/html");
    let registry = header("Docker-Distribution-Api-Version", "registry/2.0");
    let index = header("Content-Type", larder::oci::media::OCI_INDEX);
    let other = header("Docker-Content-Digest", &image(2).root.to_string());
    let gateways = [
        Behaviour::RedirectTo(format!("{}/login", portal.url())),
        Behaviour::Status(200, vec![]),
        Behaviour::Status(200, vec![html.clone()]),
        Behaviour::Status(200, vec![html, registry.clone()]),
        Behaviour::Status(200, vec![index.clone(), registry]),
        Behaviour::Status(206, vec![index.clone(), other.clone()]),
    ];
    let root = format!("/v2/lab/app/manifests/{}?ns=docker.io", image(1).root);
    let layer = blob("lab/app", &board::needed(&image(1))[0]);
    for (n, gateway) in gateways.into_iter().enumerate() {
        let mallory = basic("mallory", &format!("made up {n}"));
        upstream.clear();
        upstream.on(Some("HEAD"), "/v2/", gateway.clone());
        for path in [TAG, &root, &layer] {
            assert_eq!(status(&board, path, &mallory), 401, "{path} {gateway:?}");
        }
        upstream.hang_up();
        board.wait_until("the outage", || status(&board, TAG, &basic("nobody", "at all")) == 502);
        for path in [TAG, &root, &layer] {
            // The refusal is remembered for a moment.
            assert!([401, 502].contains(&status(&board, path, &mallory)), "{path} {gateway:?}");
        }
        upstream.come_back().unwrap();
        board.wait_until("the registry", || status(&board, TAG, &basic("nobody", &n.to_string())) == 401);
    }
    // A manifest of another digest is no proof of this one.
    upstream.clear();
    upstream.on(Some("HEAD"), "/v2/", Behaviour::Status(200, vec![index, other]));
    assert_eq!(status(&board, &root, &basic("mallory", "other")), 401);
    upstream.clear();
    pull(&board, "lab/app", 1, &bob());
}
