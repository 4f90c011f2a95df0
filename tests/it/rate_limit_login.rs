//! `access = "public"`: a login that only lifts a rate limit. What is kept and served to everybody is what the registry
//! shows to everybody, asked by HEAD and by digest; the rest is as if it were not there.

use crate::board::{
    self, BOARD, Board, Folder, WRONG, image, layer_of, needed, private_file, secrets, upstream_with,
};
use crate::proof::{Twins, blob, is_open, manifest, pull, roads, seen};
use larder::demo::image::SampleImage as Image;
use larder::demo::upstream::{Behaviour, FaultyRegistry as Upstream, LoginDemand as Login, Seen};

/// A registry as Docker Hub is: `lab/app` is for everybody, `lab/secret` is not, and GET of manifests takes a login.
fn hub(shown: &Image, hidden: &Image) -> Upstream {
    let upstream = upstream_with(shown);
    upstream.push("lab/secret", "latest", hidden);
    upstream.hide("lab/secret", true);
    upstream.login(Login::Limited("alice".into(), "s3cret".into()));
    upstream
}

/// Its section, with a login that only lifts the limit.
fn lifted(folder: &Folder) -> String {
    let password = private_file(folder, "password", "s3cret\n");
    format!("username = \"alice\"\npassword_file = {password:?}\naccess = \"public\"\n")
}

/// A configuration where an endpoint that is down comes before the registry.
fn behind_another(upstream: &Upstream, folder: &Folder, auth: &str) -> String {
    let down = Upstream::start().unwrap();
    down.hang_up();
    let table = |url: String| format!("[[upstream.\"docker.io\".endpoint]]\nurl = \"{url}\"\n");
    let (first, second) = (table(down.url()), table(upstream.url()));
    let login = secrets(folder).0;
    let tags = "[tags]\nresolve_deadline = \"500ms\"\n";
    format!(
        "platforms = [\"{}\"]\n{tags}{}[disk]\nmin_free = \"1MiB\"\n[upstream.\"docker.io\"]\naccess = \"public\"\n{first}{second}{login}{auth}",
        board::PLATFORM,
        board::FETCH
    )
}

/// The manifests that everybody was asked about, and whatever else of content was asked without the login.
fn asked_as_everybody(upstream: &Upstream) -> (Vec<String>, Vec<Seen>) {
    // What is challenged is a request without anything.
    let requests = upstream.requests().into_iter();
    let anonymous =
        requests.filter(|seen| !seen.logged_in && seen.authorized && seen.path.starts_with("/v2/"));
    let (proofs, other): (Vec<Seen>, Vec<Seen>) =
        anonymous.partition(|seen| seen.method == "HEAD" && seen.path.contains("/manifests/sha256:"));
    (proofs.into_iter().map(|seen| seen.path).collect(), other)
}

fn secret(path: &str) -> String {
    path.replace("lab/app", "lab/secret")
}

/// Everything that an image has, asked without a login: the statuses of the answers.
fn statuses(board: &Board, image: &Image, repository: &str) -> Vec<u16> {
    let mut paths = vec![manifest("latest", "docker.io")];
    paths.extend(image.manifests.keys().map(|digest| manifest(digest, "docker.io")));
    paths.extend(needed(image).iter().map(|digest| blob(digest, "docker.io")));
    paths.iter().map(|path| board.get(&path.replace("lab/app", repository)).status).collect()
}

#[test]
fn what_everybody_is_shown_is_fetched_with_the_login_and_public() {
    let (image, hidden) = (image(1), image(3));
    let (upstream, folder) = (hub(&image, &hidden), Folder::new());
    let mut board = Board::new(&upstream, &lifted(&folder));
    board.pull("lab/app", "latest").unwrap();
    for digest in image.manifests.keys() {
        board.get(&manifest(digest, "docker.io")).body().unwrap();
    }
    assert!(needed(&image).iter().chain(image.manifests.keys()).all(|digest| is_open(&board, digest)));
    // One question for the root, and its closure follows; all else came with the login.
    let (proofs, other) = asked_as_everybody(&upstream);
    assert_eq!(proofs, [format!("/v2/lab/app/manifests/{}", image.root)]);
    assert!(other.is_empty(), "{other:?}");
    // Nobody is asked to log in, and what is hidden is not there.
    for status in statuses(&board, &hidden, "lab/secret").iter().chain(&statuses(&board, &hidden, "lab/none"))
    {
        assert!([401, 404].contains(status), "{status}");
    }
    let answer = board.get(&secret(&manifest("latest", "docker.io")));
    assert_eq!((answer.status, answer.header("www-authenticate")), (404, None));
    assert!(!board.has_blob(&hidden.root) && !board.has_blob(&layer_of(&hidden)));
    // Nor through the repository that is shown.
    for digest in needed(&hidden).iter().chain(hidden.manifests.keys()) {
        assert_ne!(board.get(&blob(digest, "docker.io")).status, 200, "{digest}");
        assert_ne!(board.get(&manifest(digest, "docker.io")).status, 200, "{digest}");
    }
    // Offline and after a restart the last answer counts.
    upstream.hang_up();
    board.stop();
    board.start_again();
    board.pull("lab/app", "latest").unwrap();
    assert_eq!(board.get(&secret(&manifest("latest", "docker.io"))).status, 502);
    board.check_blobs();
}

#[test]
fn a_proof_is_asked_once_by_many_and_remembered() {
    let (upstream, folder) = (hub(&image(1), &image(3)), Folder::new());
    let board = Board::new(&upstream, &lifted(&folder));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| board.pull("lab/app", "latest").unwrap());
        }
    });
    // Who is quick may ask for a part before it is written down what names it.
    let (mut asked, _) = asked_as_everybody(&upstream);
    let times = asked.len();
    asked.sort();
    asked.dedup();
    assert!(asked.len() == times && times <= image(1).manifests.len(), "{asked:?}");
    upstream.push("lab/app", "again", &image(1));
    board.pull("lab/app", "again").unwrap();
    let second = image(5);
    upstream.push("lab/app", "second", &second);
    board.pull("lab/app", "second").unwrap();
    let later = asked_as_everybody(&upstream).0.split_off(times);
    assert_eq!(later, [format!("/v2/lab/app/manifests/{}", second.root)]);
}

#[test]
fn a_question_that_cannot_be_asked_is_no_refusal() {
    for status in [429, 503] {
        let (upstream, folder) = (hub(&image(1), &image(3)), Folder::new());
        let mut board = Board::new(&upstream, &lifted(&folder));
        board.pull("lab/app", "latest").unwrap();
        upstream.push("lab/app", "latest", &image(5));
        upstream.refuse_anonymous(Some(status));
        // Something older is here: it is as if the registry could not be reached.
        let answer = board.get(&manifest("latest", "docker.io"));
        assert_eq!(answer.header("docker-content-digest").unwrap(), image(1).root.to_string());
        assert!(answer.header("cache-status").unwrap().contains("last-complete"));
        // Nothing is: neither what is shown, nor what is hidden, nor what is absent is told from the others.
        let root = image(5).root;
        for path in [manifest(&root, "docker.io"), secret(&manifest("latest", "docker.io"))] {
            assert_eq!(board.get(&path).status, 502, "{path}");
        }
        assert_eq!(board.get("/v2/lab/app/manifests/never?ns=docker.io").status, 502);
        // What is proven is served, and what it names is fetched, also after a restart.
        for restart in [false, true] {
            if restart {
                board.stop();
                board.start_again();
            }
            assert_eq!(board.get(&manifest(&image(1).root, "docker.io")).status, 200);
            std::fs::remove_file(board.data().join("blobs/sha256").join(layer_of(&image(1)).hex())).unwrap();
            let again = board.get(&blob(&layer_of(&image(1)), "docker.io"));
            assert_eq!(again.status, 200);
            again.body().unwrap();
            assert!(is_open(&board, &layer_of(&image(1))));
        }
        upstream.refuse_anonymous(None);
        board.wait_until("the new version", || {
            board.get(&manifest("latest", "docker.io")).header("docker-content-digest")
                == Some(&root.to_string())
        });
        board.pull("lab/app", "latest").unwrap();
    }
}

#[test]
fn what_turns_private_stays_as_it_is_and_what_is_new_is_private() {
    let (old, new) = (image(1), image(5));
    let (upstream, folder) = (hub(&old, &image(3)), Folder::new());
    let auth = secrets(&folder).1;
    let mut board = Board::new(&upstream, &format!("{}{auth}", lifted(&folder)));
    board.pull("lab/app", "latest").unwrap();
    upstream.hide("lab/app", true);
    upstream.push("lab/app", "latest", &new);
    // The owner has the new version, and it is private.
    pull(&board, &new, "docker.io");
    assert!(needed(&new).iter().chain(new.manifests.keys()).all(|digest| !is_open(&board, digest)));
    for online in [true, false] {
        if !online {
            upstream.hang_up();
            board.stop();
            board.start_again();
        }
        for who in [&[][..], &[WRONG]] {
            let get = |path: &str| board.request("GET", path, who);
            for digest in needed(&new).iter().chain(new.manifests.keys()) {
                assert_ne!(get(&blob(digest, "docker.io")).status, 200, "{digest}");
                assert_ne!(get(&manifest(digest, "docker.io")).status, 200, "{digest}");
            }
            for digest in old.manifests.keys().filter(|digest| board.has_blob(digest)) {
                assert_eq!(get(&manifest(digest, "docker.io")).status, 200, "{digest}");
            }
            for digest in needed(&old) {
                assert!(get(&blob(&digest, "docker.io")).body().unwrap() == *old.blobs[&digest]);
            }
            // By tag: the registry's refusal, and with nobody to ask what everybody had last.
            let tag = get(&manifest("latest", "docker.io"));
            match online {
                true => assert_eq!(tag.status, 404),
                false => {
                    let digest = tag.header("docker-content-digest").map(str::to_owned);
                    assert_eq!((tag.status, digest), (200, Some(old.root.to_string())));
                }
            }
        }
        pull(&board, &new, "docker.io");
        assert!(!is_open(&board, &new.root) && is_open(&board, &old.root));
    }
    // Once it is shown again nothing has to come again.
    upstream.come_back().unwrap();
    upstream.hide("lab/app", false);
    board.wait_until_up("lab/app", "latest");
    let sent = upstream.blob_bytes_sent();
    board.pull("lab/app", "latest").unwrap();
    assert_eq!(upstream.blob_bytes_sent(), sent);
    assert!(needed(&new).iter().all(|digest| is_open(&board, digest)) && is_open(&board, &new.root));
}

#[test]
fn what_is_not_proven_is_answered_like_what_is_absent() {
    unproven_is_like_absent(false);
}

#[test]
fn what_is_not_proven_is_answered_like_what_is_absent_behind_an_endpoint_that_is_down() {
    unproven_is_like_absent(true);
}

#[test]
fn an_endpoint_that_is_down_makes_no_difference_between_hidden_and_absent() {
    let (upstream, folder) = (hub(&image(1), &image(3)), Folder::new());
    let config = behind_another(&upstream, &folder, "");
    let (hidden, absent) = (image(3), image(8));
    let of = |name: &str, kind: &str, what: &dyn std::fmt::Display| {
        (what.to_string(), format!("/v2/{name}/{kind}/{what}?ns=docker.io"))
    };
    let by_tag = [("lab/secret", "latest"), ("lab/secret", "absent"), ("lab/nobody", "latest")];
    let groups = [
        by_tag.map(|(name, tag)| of(name, "manifests", &tag)).to_vec(),
        [&hidden.root, &absent.root].map(|root| of("lab/secret", "manifests", root)).to_vec(),
        [layer_of(&hidden), layer_of(&absent)].map(|layer| of("lab/secret", "blobs", &layer)).to_vec(),
    ];
    for group in groups {
        for method in ["GET", "HEAD"] {
            let mut told: Vec<(String, Vec<String>)> = Vec::new();
            for (what, path) in &group {
                // Of a board that has not asked yet, and of one that knows what is down.
                let board = Board::with_config(&config);
                let ask = || {
                    let text = seen(board.request(method, path, &[]));
                    text.replace(what, "WHAT").replace("lab/nobody", "lab/secret")
                };
                let answers = vec![ask(), ask(), ask()];
                told.push((path.clone(), answers));
            }
            for (path, answers) in &told[1..] {
                assert_eq!(answers, &told[0].1, "{method} {path}");
            }
            assert!(told[0].1[0].contains("502") || told[0].1[0].contains("401"), "{told:?}");
        }
    }
    let board = Board::with_config(&config);
    board.pull("lab/app", "latest").unwrap();
}

fn unproven_is_like_absent(is_behind_another: bool) {
    let (shown, hidden) = (image(1), image(3));
    let signature = Image::artifact(&hidden, "application/vnd.lab.signature");
    let (upstream, folder) = (hub(&shown, &image(7)), Folder::new());
    let auth = secrets(&folder).1;
    // The one holds an image of a repository that is hidden and of one that turned so; the other does not.
    for repository in ["lab/secret", "lab/turned"] {
        upstream.push(repository, "latest", &hidden);
        upstream.push(repository, "second", &image(5));
        upstream.push(repository, "signature", &signature);
    }
    upstream.push("lab/turned", "public", &shown);
    let config = if is_behind_another {
        behind_another(&upstream, &folder, &auth)
    } else {
        Board::config(&upstream.url(), &format!("{}{auth}", lifted(&folder)))
    };
    let boards = || Board::with_config(&config);
    let mut twins = Twins { holder: boards(), absent: boards() };
    for board in [&twins.holder, &twins.absent] {
        board.pull("lab/app", "latest").unwrap();
        board.pull("lab/turned", "public").unwrap();
    }
    upstream.hide("lab/turned", true);
    for repository in ["lab/secret", "lab/turned"] {
        let of = |path: String| path.replace("lab/app", repository);
        let get = |path: String| twins.holder.request("GET", &path, &[BOARD]).body().unwrap();
        get(of(manifest("latest", "docker.io")));
        get(of(manifest("signature", "docker.io")));
        assert_eq!(twins.holder.request("HEAD", &of(manifest("second", "docker.io")), &[BOARD]).status, 200);
        hidden.manifests.keys().for_each(|digest| drop(get(of(manifest(digest, "docker.io")))));
        needed(&hidden).iter().for_each(|digest| drop(get(of(blob(digest, "docker.io")))));
    }
    assert!(!is_open(&twins.holder, &hidden.root) && !is_open(&twins.holder, &layer_of(&hidden)));
    let all = roads(&hidden, &signature, "docker.io");
    let roads: Vec<(&str, String)> = ["lab/secret", "lab/turned", "lab/app", "lab/none"]
        .iter()
        .flat_map(|name| all.iter().map(move |(method, path)| (*method, path.replace("lab/app", name))))
        .collect();
    let nobody: [&[(&str, &str)]; 2] = [&[], &[WRONG]];
    let mut found = twins.differences(&roads, &nobody, "online");
    twins.restart();
    found.extend(twins.differences(&roads, &nobody, "after a restart"));
    upstream.hang_up();
    for board in [&twins.holder, &twins.absent] {
        assert_eq!(board.head("/v2/lab/never/manifests/latest?ns=docker.io").status, 502);
    }
    found.extend(twins.differences(&roads, &nobody, "offline"));
    twins.restart();
    found.extend(twins.differences(&roads, &nobody, "offline after a restart"));
    assert!(found.is_empty(), "{} differences:\n{}", found.len(), found.join("\n"));
    let owner = twins.holder.request("GET", &secret(&manifest("latest", "docker.io")), &[BOARD]);
    assert_eq!(owner.status, 200, "its owner has it all the while");
}

#[test]
fn a_blob_before_its_manifest_is_what_the_registry_gives_to_everybody() {
    let (shown, hidden) = (image(1), image(3));
    let (upstream, folder) = (hub(&shown, &hidden), Folder::new());
    let auth = secrets(&folder).1;
    let board = Board::new(&upstream, &format!("{}{auth}", lifted(&folder)));
    for digest in needed(&hidden).iter().chain(hidden.manifests.keys()) {
        let path = |kind: &str| format!("/v2/lab/secret/{kind}/{digest}?ns=docker.io");
        let kind = if hidden.blobs.contains_key(digest) { "blobs" } else { "manifests" };
        board.request("GET", &path(kind), &[BOARD]).body().unwrap();
        assert_eq!(board.get(&path(kind)).status, 401, "{digest}");
        assert_eq!(board.head(&path(kind)).status, 401, "{digest}");
    }
    // A layer that nothing here names yet is passed on, of what is shown, and not kept.
    let layer = layer_of(&shown);
    let first = board.get(&blob(&layer, "docker.io"));
    assert_eq!(first.header("cache-status"), Some("larder; fwd=uri-miss; detail=not-stored"));
    assert!(first.body().unwrap() == *shown.blobs[&layer] && !board.has_blob(&layer));
    // What is public by one repository of the registry is so by another.
    board.pull("lab/app", "latest").unwrap();
    assert_eq!(board.get(&secret(&blob(&layer, "docker.io"))).status, 200);
}

#[test]
fn a_tag_waits_for_its_proof_and_names_nothing_before() {
    let (old, new, folder) = (image(1), image(5), Folder::new());
    let upstream = hub(&old, &image(3));
    // Long enough for a busy machine.
    let patient = "[fetch]\nheader_timeout = \"18s\"\n";
    let board = Board::new(&upstream, &format!("{}{patient}", lifted(&folder)));
    board.pull("lab/app", "latest").unwrap();
    upstream.push("lab/app", "latest", &new);
    upstream.push("lab/app", "fresh", &new);
    // By digest nothing but proofs is asked by HEAD.
    upstream.on(Some("HEAD"), "/manifests/sha256:", Behaviour::HangBeforeHeader);
    // With something older here the answer comes within the deadline, and is that.
    let (answer, took) = {
        let began = std::time::Instant::now();
        (board.get(&manifest("latest", "docker.io")), began.elapsed())
    };
    assert_eq!(answer.header("docker-content-digest"), Some(&*old.root.to_string()));
    assert!(took < board::DEADLINE + board::LEEWAY, "{took:?}");
    // With nothing here it waits, and the digest comes after the proof alone.
    let asked = std::thread::scope(|scope| {
        let asking = scope.spawn(|| board.get(&manifest("fresh", "docker.io")));
        assert!(upstream.wait_for(1, "HEAD", &format!("/manifests/{}", new.root), board::PATIENCE));
        assert_eq!(
            upstream.count("GET", &format!("/manifests/{}", new.root)),
            0,
            "it is fetched after its proof"
        );
        upstream.clear();
        upstream.release();
        asking.join().unwrap()
    });
    assert_eq!((asked.status, asked.header("docker-content-digest")), (200, Some(&*new.root.to_string())));
    assert_eq!(
        asked_as_everybody(&upstream).0.iter().filter(|path| path.contains(&new.root.hex())).count(),
        1
    );
}

#[test]
fn of_an_answer_to_everybody_the_digest_counts_and_nothing_else() {
    let cases = [
        (Behaviour::ContentLength(7), 200),
        (Behaviour::NoDigestHeader, 200),
        (Behaviour::WrongDigestHeader, 502),
        // A portal, which knows nothing of manifests.
        (Behaviour::Status(200, vec![("Content-Type".into(), "text/html".into())]), 502),
        (Behaviour::Status(405, Vec::new()), 502),
        (Behaviour::Status(404, Vec::new()), 404),
        (Behaviour::Status(403, Vec::new()), 404),
    ];
    for (behaviour, status) in cases {
        let (upstream, folder) = (hub(&image(1), &image(3)), Folder::new());
        let board = Board::new(&upstream, &lifted(&folder));
        upstream.on(Some("HEAD"), "/manifests/sha256:", behaviour.clone());
        assert_eq!(board.get(&manifest("latest", "docker.io")).status, status, "{behaviour:?}");
        assert_eq!(board.has_blob(&image(1).root), status == 200, "{behaviour:?}");
        upstream.clear();
        board.wait_until("the image", || board.pull("lab/app", "latest").is_ok());
    }
}

#[test]
fn other_boards_get_what_was_proven_and_nothing_else() {
    let (shown, hidden) = (image(1), image(3));
    let (upstream, folder) = (hub(&shown, &hidden), Folder::new());
    let auth = secrets(&folder).1;
    let secret_file = private_file(&folder, "secret", crate::domains::SECRET);
    let kit = |peers: String| {
        format!("[kit]\nsecret_file = {secret_file:?}\nlisten = \"127.0.0.1:0\"\npeers = [{peers}]\n")
    };
    let login = lifted(&folder);
    let holder = Board::new(&upstream, &format!("{login}{auth}{}", kit(String::new())));
    let asker = Board::new(&upstream, &format!("{login}{}", kit(format!("\"{}\"", holder.kit_addr()))));
    holder.pull("lab/app", "latest").unwrap();
    let of_hidden = |digest| {
        let kind = if hidden.blobs.contains_key(digest) { "blobs" } else { "manifests" };
        format!("/v2/lab/secret/{kind}/{digest}?ns=docker.io")
    };
    let parts: Vec<_> = hidden.manifests.keys().cloned().chain(needed(&hidden)).collect();
    holder.request("GET", &secret(&manifest("latest", "docker.io")), &[BOARD]).body().unwrap();
    parts.iter().for_each(|part| {
        holder.request("GET", &of_hidden(part), &[BOARD]).body().unwrap();
    });
    upstream.hang_up();
    asker.wait_until("the outage", || asker.ask("lab/never", "latest").0 == 502);
    asker.wait_until("the peer", || asker.pull("lab/app", "latest").is_ok());
    for path in parts.iter().map(of_hidden).chain([secret(&manifest("latest", "docker.io"))]) {
        assert_eq!(asker.get(&path).status, 502, "{path}");
        assert_eq!(holder.request("GET", &path, &[BOARD]).status, 200, "{path}");
    }
}

/// Writes another configuration, and starts with it.
fn start_with(board: &mut Board, config: &str) {
    board.stop();
    std::fs::write(board.folder().join("larder.toml"), config).unwrap();
    board.start_again();
}

/// All that a client without a login is told about the tags of a repository.
fn told(board: &Board, repository: &str) -> String {
    let mut paths: Vec<String> = ["tags/list", "tags/list?n=1&last=ka"].map(str::to_owned).into();
    paths.extend(["latest", "second", "never"].map(|tag| format!("manifests/{tag}")));
    let mut told = String::new();
    for path in paths {
        let separator = if path.contains('?') { '&' } else { '?' };
        let path = format!("/v2/{repository}/{path}{separator}ns=docker.io");
        for method in ["GET", "HEAD"] {
            let answer = board.request(method, &path, &[]);
            let (status, headers) = (answer.status, format!("{:?}", answer.headers));
            let body = answer.body().map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
            told += &format!("{method} {path}: {status} {headers} {}\n", body.unwrap_or_default());
        }
    }
    told
}

#[test]
fn names_that_a_login_has_shown_stay_hidden_when_the_login_leaves() {
    let (old, new, other) = (image(1), image(5), image(7));
    let (upstream, folder) = (hub(&old, &image(3)), Folder::new());
    upstream.push("lab/other", "latest", &other);
    let auth = secrets(&folder).1;
    let config = |login: &str| Board::config(&upstream.url(), &format!("{login}{auth}"));
    let mut board = Board::with_config(&config(&lifted(&folder)));
    board.pull("lab/app", "latest").unwrap();
    board.pull("lab/other", "latest").unwrap();
    upstream.hide("lab/app", true);
    for tag in ["latest", "second"] {
        upstream.push("lab/app", tag, &new);
        // Who has the right has the new version, by both tags, and it is private.
        board.manifests("docker.io", "lab/app", tag, &[BOARD]);
    }
    pull(&board, &new, "docker.io");
    assert!(!is_open(&board, &new.root) && is_open(&board, &old.root));
    start_with(&mut board, &config(""));
    for (online, again) in [(true, false), (false, false), (false, true)] {
        if !online {
            upstream.hang_up();
        }
        if again {
            board.stop();
            board.start_again();
        }
        let told = told(&board, "lab/app");
        for secret in [new.root.to_string(), new.root.hex(), "\"second\"".into()] {
            assert!(!told.contains(&secret), "{secret} (online {online}, again {again}):\n{told}");
        }
        let get = |path: &str| board.get(path);
        for digest in needed(&new).iter().chain(new.manifests.keys()) {
            assert_ne!(get(&blob(digest, "docker.io")).status, 200, "{digest}");
            assert_ne!(get(&manifest(digest, "docker.io")).status, 200, "{digest}");
        }
        // What everybody was shown is there, by its tag where nobody says otherwise, and so is the neighbour.
        assert_eq!(get(&manifest(&old.root, "docker.io")).status, 200);
        if !online {
            let latest = get(&manifest("latest", "docker.io"));
            assert_eq!(latest.header("docker-content-digest"), Some(&*old.root.to_string()));
            let names = get("/v2/lab/app/tags/list?ns=docker.io").body().unwrap();
            assert!(String::from_utf8(names).unwrap().contains("\"latest\""));
            board.pull("lab/other", "latest").unwrap();
            // Its owner has it all the while.
            let owner = board.request("GET", &manifest("second", "docker.io"), &[BOARD]);
            assert_eq!(owner.header("docker-content-digest"), Some(&*new.root.to_string()));
        }
    }
}

#[test]
fn a_refusal_counts_on_when_the_registry_cannot_be_asked_again() {
    for status in [429, 503] {
        let (image, other) = (image(1), image(5));
        let (upstream, folder) = (hub(&image, &self::image(3)), Folder::new());
        upstream.push("lab/other", "latest", &other);
        let auth = secrets(&folder).1;
        let mut board = Board::new(&upstream, &format!("{}{auth}", lifted(&folder)));
        board.pull("lab/app", "latest").unwrap();
        board.pull("lab/other", "latest").unwrap();
        let lose = |board: &Board, image: &Image| {
            for layer in needed(image).iter().filter(|digest| board.has_blob(digest)) {
                std::fs::remove_file(board.data().join("blobs/sha256").join(layer.hex())).unwrap();
            }
        };
        lose(&board, &image);
        lose(&board, &other);
        upstream.hide("lab/app", true);
        // What was proven is forgotten, and the registry refuses.
        board.stop();
        board.start_again();
        let refused = |board: &Board, what: &str| {
            for digest in needed(&image) {
                let answer = board.get(&blob(&digest, "docker.io"));
                assert_ne!(answer.status, 200, "{status}, {what}: {digest}");
            }
        };
        refused(&board, "asked");
        upstream.refuse_anonymous(Some(status));
        refused(&board, "not asked again");
        assert!(needed(&image).iter().all(|digest| !board.has_blob(digest)));
        // Who has the right has it all the while, and what they fetch stays theirs.
        for digest in needed(&image) {
            let owner = board.request("GET", &blob(&digest, "docker.io"), &[BOARD]);
            assert_eq!(owner.status, 200, "{digest}");
            owner.body().unwrap();
        }
        refused(&board, "here and private");
        assert!(needed(&image).iter().all(|digest| !is_open(&board, digest)));
        // The neighbour was not refused: its last answer counts.
        for digest in needed(&other) {
            let path = blob(&digest, "docker.io").replace("lab/app", "lab/other");
            assert!(board.get(&path).body().unwrap() == *other.blobs[&digest]);
        }
        // Once it is shown again all is as before.
        upstream.refuse_anonymous(None);
        upstream.hide("lab/app", false);
        board.wait_until("what is shown again", || board.pull("lab/app", "latest").is_ok());
        assert!(needed(&image).iter().all(|digest| is_open(&board, digest)));
    }
}
