//! Content whose origin is not known: this machine has it, and nobody else does, until its registry shows it to everybody or
//! its owner says that it may be seen.

use crate::board::{
    self, Board, Folder, InProcess, image, layer_of, needed, private_file, secrets, upstream_with,
    without_spawning,
};
use crate::proof::{blob, is_open, manifest};
use larder::auth::{AccessClass, Identity};
use larder::config::{Config, Options};
use larder::demo::image::SampleImage as Image;
use larder::oci::{Digest, Repository, Tag};
use larder::store::{Observation, Store, VersionSource};
use std::os::unix::fs::PermissionsExt;

/// Works on the store of a board that is stopped.
fn with_store<T>(board: &mut Board, work: impl FnOnce(&Store, &Config) -> T) -> T {
    board.stop();
    let file = Some(board.folder().join("larder.toml"));
    let config = Config::load(&Options { file, data_dir: Some(board.data()), ..Options::default() }).unwrap();
    let (store, startup) = without_spawning(|| Store::open(&config.data_dir, 3)).unwrap();
    startup.finish_briefly(&store).unwrap();
    let done = work(&store, &config);
    store.shut_down();
    done
}

/// Stores an image as an import does, as the tag `latest` of a repository.
fn import(store: &Store, repository: &str, image: &Image) {
    let repository: Repository = repository.parse().unwrap();
    let unproven = AccessClass::Unproven;
    for (digest, (media_type, bytes)) in &image.manifests {
        store.put_manifest(&repository, digest, media_type, bytes, unproven).unwrap();
    }
    for (digest, bytes) in &image.blobs {
        store.put_blob(&repository, digest, &mut &bytes[..], unproven).unwrap();
    }
    let seen = Observation { source: VersionSource::Import, ..Observation::upstream(image.root.clone()) };
    let tag: Tag = "latest".parse().unwrap();
    store.tag_offered(&repository, &tag, &seen, None).unwrap();
}

fn far() -> Identity {
    Identity::anonymous("10.0.0.7".parse().unwrap())
}

fn near() -> Identity {
    Identity::anonymous("127.0.0.1".parse().unwrap())
}

/// Status and body.
fn get(inside: &InProcess, identity: &Identity, path: &str, headers: &str) -> (u16, Vec<u8>) {
    let answer = inside.get(identity, path, headers);
    let end = answer.windows(4).position(|part| part == b"\r\n\r\n").unwrap() + 4;
    (String::from_utf8_lossy(&answer[9..12]).parse().unwrap(), answer[end..].to_vec())
}

/// What an image of the tests' platform has: paths and content.
fn content(image: &Image) -> Vec<(String, Vec<u8>)> {
    let manifests =
        image.manifests.iter().map(|(digest, (_, bytes))| (manifest(digest, "docker.io"), bytes.to_vec()));
    let blobs = needed(image).into_iter().map(|digest| {
        let bytes = image.blobs[&digest].to_vec();
        (blob(&digest, "docker.io"), bytes)
    });
    manifests.chain(blobs).collect()
}

fn mode(board: &Board, digest: &Digest) -> u32 {
    let path = board.data().join("blobs/sha256").join(digest.hex());
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn what_came_from_elsewhere_is_served_to_this_machine_alone() {
    let (imported, other) = (image(1), image(2));
    let upstream = upstream_with(&other);
    let mut board = Board::new(&upstream, "");
    board.pull("lab/app", "latest").unwrap();
    with_store(&mut board, |store, _| import(store, "docker.io/lab/stick", &imported));
    upstream.hang_up();
    let of = |path: &str| path.replace("lab/app", "lab/stick");
    for round in ["as it was imported", "after a restart", "with a new index"] {
        if round == "with a new index" {
            std::fs::remove_dir_all(board.data().join("index")).unwrap();
        }
        board.start_again();
        board.wait_until("the outage", || board.ask("lab/never", "latest").0 == 502);
        // A real connection of this machine, whatever a header says of somebody else.
        let forwarded = [("X-Forwarded-For", "10.0.0.7"), ("Forwarded", "for=10.0.0.7")];
        for (path, bytes) in content(&imported) {
            assert!(board.request("GET", &of(&path), &forwarded).body().unwrap() == bytes, "{round}: {path}");
            assert_eq!(board.get(&path).status, 502, "{round}: only by its own repository");
        }
        assert_eq!(board.get(&of(&manifest("latest", "docker.io"))).status, 200, "{round}");
        assert_eq!(mode(&board, &imported.root), 0o400, "{round}");
        let inside = InProcess::instead_of(&mut board);
        for claim in ["", "x-forwarded-for: 127.0.0.1\r\n", "forwarded: for=127.0.0.1\r\n"] {
            for (path, bytes) in content(&imported) {
                assert_eq!(get(&inside, &far(), &of(&path), claim).0, 502, "{round}: {path}");
                assert_eq!(get(&inside, &near(), &of(&path), claim), (200, bytes), "{round}: {path}");
            }
            // Nor is it told that there is such a thing.
            for path in ["manifests/latest", "tags/list", "manifests/none"] {
                let path = format!("/v2/lab/stick/{path}?ns=docker.io");
                let none = path.replace("stick", "wrong");
                let told = |path: &str| String::from_utf8(get(&inside, &far(), path, claim).1).unwrap();
                let told = [told(&path).replace("stick", "wrong"), told(&none)];
                let [here, absent] = told.map(|text| text.split("for ").next().unwrap().to_owned());
                assert_eq!(here, absent, "{round}: {path}");
            }
            let listed =
                String::from_utf8(get(&inside, &far(), "/v2/_catalog?ns=docker.io", claim).1).unwrap();
            assert!(listed.contains("lab/app") && !listed.contains("lab/stick"), "{round}: {listed}");
        }
        // The neighbour goes on.
        assert_eq!(get(&inside, &far(), &manifest("latest", "docker.io"), "").0, 200, "{round}");
        inside.mirror.stop();
        drop(inside);
    }
}

#[test]
fn what_its_registry_shows_to_everybody_becomes_public_and_is_not_fetched() {
    let (shown, hidden) = (image(1), image(3));
    let upstream = upstream_with(&image(2));
    let mut board = Board::new(&upstream, "");
    with_store(&mut board, |store, _| {
        import(store, "docker.io/lab/stick", &shown);
        import(store, "docker.io/lab/gone", &hidden);
    });
    upstream.push("lab/stick", "latest", &shown);
    board.start_again();
    let inside = InProcess::instead_of(&mut board);
    let of = |path: &str, name: &str| path.replace("lab/app", name);
    for (path, _) in content(&hidden) {
        assert_eq!(get(&inside, &far(), &of(&path, "lab/gone"), "").0, 404, "{path}");
    }
    assert_eq!(get(&inside, &far(), &of(&manifest("latest", "docker.io"), "lab/stick"), "").0, 200);
    for (path, bytes) in content(&shown) {
        assert_eq!(get(&inside, &far(), &of(&path, "lab/stick"), ""), (200, bytes), "{path}");
    }
    let root = format!("/v2/lab/stick/manifests/{}", shown.root);
    assert_eq!((upstream.count("HEAD", &root), upstream.count("GET", "/lab/stick/")), (1, 0));
    assert!(needed(&shown).iter().all(|digest| is_open(&board, digest)) && is_open(&board, &shown.root));
    assert!(needed(&hidden).iter().all(|digest| mode(&board, digest) == 0o400));
    inside.mirror.stop();
}

#[test]
fn what_its_owner_says_may_be_seen_is_public() {
    let imported = image(1);
    let upstream = upstream_with(&image(2));
    let mut board = Board::new(&upstream, "");
    let repository: Repository = "docker.io/lab/stick".parse().unwrap();
    with_store(&mut board, |store, config| {
        import(store, "docker.io/lab/stick", &imported);
        import(store, "docker.io/lab/other", &image(3));
        larder::image::open_to_everybody(store, config, &repository, &imported.root, false).unwrap();
    });
    upstream.hang_up();
    board.start_again();
    let inside = InProcess::instead_of(&mut board);
    assert_eq!(get(&inside, &far(), "/v2/lab/never/manifests/latest?ns=docker.io", "").0, 502);
    for digest in needed(&imported) {
        let path = blob(&digest, "docker.io").replace("lab/app", "lab/stick");
        assert_eq!(get(&inside, &far(), &path, ""), (200, imported.blobs[&digest].to_vec()));
    }
    let path = manifest(&imported.root, "docker.io").replace("lab/app", "lab/stick");
    assert_eq!(get(&inside, &far(), &path, "").0, 200);
    let layer = blob(&layer_of(&image(3)), "docker.io").replace("lab/app", "lab/other");
    assert_eq!((get(&inside, &far(), &layer, "").0, get(&inside, &near(), &layer, "").0), (502, 200));
    inside.mirror.stop();
}

#[test]
fn an_import_opens_nothing_that_is_private() {
    let image = image(1);
    let private = crate::proof::private_upstream(&image);
    let (public, folder) = (upstream_with(&board::image(2)), Folder::new());
    let (credentials, auth) = secrets(&folder);
    let section = format!("[upstream.\"private.example\"]\nurl = \"{}\"\n{credentials}{auth}", private.url());
    let mut board = Board::new(&public, &section);
    crate::proof::pull(&board, &image, "private.example");
    with_store(&mut board, |store, _| import(store, "docker.io/lab/stick", &image));
    // The public registry claims to have all of it, and has other bytes.
    public.push("lab/stick", "latest", &crate::proof::forged(&image, 7));
    board.start_again();
    let layer = layer_of(&image);
    for path in
        [manifest("latest", "docker.io"), manifest(&image.root, "docker.io"), blob(&layer, "docker.io")]
    {
        for method in ["HEAD", "GET"] {
            let path = path.replace("lab/app", "lab/stick");
            let _ = larder::demo::client::request(board.addr, method, &path, &[], board::PATIENCE);
        }
    }
    assert!(!is_open(&board, &layer) && !is_open(&board, &image.root));
    assert_eq!(mode(&board, &layer), 0o600);
}

#[test]
fn other_boards_get_nothing_of_unknown_origin() {
    let imported = image(1);
    let (upstream, folder) = (upstream_with(&image(2)), Folder::new());
    let secret = private_file(&folder, "secret", crate::domains::SECRET);
    let kit = |peers: String| {
        format!("[kit]\nsecret_file = {secret:?}\nlisten = \"127.0.0.1:0\"\npeers = [{peers}]\n")
    };
    let mut holder = Board::new(&upstream, &kit(String::new()));
    with_store(&mut holder, |store, _| import(store, "docker.io/lab/stick", &imported));
    holder.start_again();
    let asker = Board::new(&upstream, &kit(format!("\"{}\"", holder.kit_addr())));
    holder.pull("lab/app", "latest").unwrap();
    upstream.hang_up();
    asker.wait_until("the outage", || asker.ask("lab/never", "latest").0 == 502);
    // What is public comes from the other board.
    asker.wait_until("the peer", || asker.pull("lab/app", "latest").is_ok());
    for path in content(&imported).into_iter().map(|(path, _)| path).chain([manifest("latest", "docker.io")])
    {
        assert_eq!(asker.get(&path.replace("lab/app", "lab/stick")).status, 502, "{path}");
    }
    assert_eq!(
        holder.get(&manifest(&imported.root, "docker.io").replace("lab/app", "lab/stick")).status,
        200
    );
}
