//! From 0.1.0 on: its folder opens with all that it knew, is changed only by a write, and is then refused by 0.1.0.

use super::*;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, SystemTime};

/// LMDB's file is that of a 64-bit machine. Elsewhere the index is rebuilt, which loses notes and nothing else.
const SAME_INDEX: bool = cfg!(target_pointer_width = "64");
const READ_ONLY_FOLDER: &str = "LARDER_READ_ONLY_FOLDER";

/// A copy of the folder that 0.1.0 left, with what git does not keep of it.
fn folder_of_0_1_0() -> Folder {
    let folder = Folder::new();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/0.1.0");
    for line in std::fs::read_to_string(from.join("files")).unwrap().lines().filter(|l| !l.starts_with('#')) {
        let [mode, time, name] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let path = folder.0.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::copy(from.join(name), &path).unwrap();
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(time.parse().unwrap());
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        let mode = u32::from_str_radix(mode, 8).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    // Folders that are empty, and the lock: on a disk that is read-only they must be there already.
    std::fs::create_dir(folder.0.join("blobs/sha512")).unwrap();
    std::fs::write(folder.0.join("lock"), b"").unwrap();
    folder
}

fn secret() -> Repository {
    "registry.example:5000/team/secret".parse().unwrap()
}

fn sha256(bytes: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha256, bytes)
}

/// Everything that 0.1.0 was told. `notes`: the index is its own.
fn check_all(store: &Store, notes: bool) {
    let record = |repository: &Repository, name: &str| store.tag(repository, &tag(name)).unwrap().unwrap();
    let root_of = |n: u64| {
        let mut manifests = store.manifests(&repository()).unwrap().into_iter();
        manifests.find(|linked| linked.n == n).unwrap().digest
    };
    let (one, two, three) = (root_of(4), root_of(8), root_of(16));
    let latest = record(&repository(), "latest");
    assert_eq!(
        latest.seen.as_ref().map(|seen| (&seen.digest, seen.source)),
        Some((&two, VersionSource::Upstream))
    );
    let offered = latest.complete.clone().unwrap();
    assert_eq!(
        (&offered.digest, offered.unix, offered.source),
        (&three, Some(1_796_028_812), VersionSource::Peer)
    );
    assert!(offered.is_from_peer() && latest.offered() == Some(&offered));
    assert_eq!((offered.date, offered.endpoint), (None, None));
    let history: Vec<_> = latest.history.iter().map(|version| &version.digest).collect();
    assert_eq!(history, [&two, &one]);
    assert_eq!(latest.rollback, Some(Rollback { from: two, to: one.clone() }));
    assert_eq!(latest.candidates()[0].digest, one);
    let pinned = record(&repository(), "1.0");
    assert!(pinned.pinned && pinned.seen.unwrap().digest == one);
    assert!(record(&secret(), "latest").complete.is_some());
    assert_eq!(store.repositories(None, 9).unwrap(), [repository(), secret()]);
    assert_eq!(store.repository_class(&repository()).unwrap(), None);

    let layer = sha256(b"secret layer");
    let blob = store.open_blob(&layer).unwrap().unwrap();
    assert!(!blob.is_public() && !blob.unverified, "the last shutdown was clean");
    assert!(store.link(&secret(), &layer).unwrap().unwrap().held);
    assert!(store.open_blob(&sha256(b"layer one")).unwrap().unwrap().is_public());

    assert_eq!(store.quarantined(), [sha256(b"layer four")]);
    let mut stock = store.stock().unwrap();
    stock.sort_by_key(|blob| blob.used);
    let last: Vec<_> = stock.iter().rev().take(2).map(|blob| blob.digest.clone()).collect();
    assert_eq!(last, [sha256(b"layer one"), sha256(b"layer two")], "the order of use");
    assert_eq!(store.stored_bytes(), stock.iter().map(|blob| blob.size).sum::<u64>());
    if notes {
        assert_eq!(store.note("down/docker.io").unwrap().as_deref(), Some("connection refused"));
    }
}

fn format_of(folder: &Folder) -> u64 {
    // What the reader of 0.1.0 does before anything else: the first line, its checksum, `format` above 1 is refused.
    let text = std::fs::read(folder.0.join("journal")).unwrap();
    let end = text.iter().position(|&byte| byte == b'\n').unwrap();
    let header: serde_json::Value = journal::parse(&text[..=end]).unwrap();
    header["format"].as_u64().unwrap()
}

fn content(folder: &Folder) -> Vec<(PathBuf, Vec<u8>)> {
    let read = |name: &str| (name.into(), std::fs::read(folder.0.join(name)).unwrap());
    ["journal", "index/data.mdb", "session"].into_iter().map(read).collect()
}

#[test]
fn the_folder_of_0_1_0_opens_and_stays_as_it_is_until_something_is_written() {
    let folder = folder_of_0_1_0();
    let before = content(&folder);
    {
        let (store, startup) = Store::open(&folder.0, 3).unwrap();
        assert_eq!(startup.needs_rebuild(), !SAME_INDEX);
        startup.finish_briefly(&store).unwrap();
        check_all(&store, SAME_INDEX);
    }
    if SAME_INDEX {
        assert_eq!(format_of(&folder), 1);
        assert_eq!(content(&folder)[..2], before[..2], "0.1.0 can still go on");
    }
    {
        let store = folder.open();
        store.tag_pin(&secret(), &tag("latest"), true).unwrap();
    }
    assert_eq!(format_of(&folder), 2, "0.1.0 refuses it before it changes anything");
    {
        let store = folder.open();
        assert!(store.tag(&secret(), &tag("latest")).unwrap().unwrap().pinned);
        check_all(&store, SAME_INDEX);
    }
    std::fs::remove_dir_all(folder.0.join("index")).unwrap();
    check_all(&folder.open(), false);
}

#[test]
fn a_server_makes_the_folder_its_own_with_what_it_writes_first() {
    let folder = folder_of_0_1_0();
    let (store, startup) = Store::open(&folder.0, 3).unwrap();
    store.begin_service();
    startup.finish(&store).unwrap();
    assert_eq!(format_of(&folder), 2);
    check_all(&store, SAME_INDEX);
    drop(store);
    let index = Index::open(&folder.0.join("index"), false).unwrap();
    assert!(!index.is_of_older_schema());
    close(index);
    check_all(&folder.open(), SAME_INDEX);
}

/// What an upgrade leaves behind that is killed, for each of its steps.
#[test]
fn an_upgrade_may_be_killed_anywhere() {
    let upgraded = |index_too: bool| {
        let folder = folder_of_0_1_0();
        let old = std::fs::read(folder.0.join("index/data.mdb")).unwrap();
        folder.open().set_note("lab", Some("note")).unwrap();
        if !index_too {
            std::fs::write(folder.0.join("index/data.mdb"), old).unwrap();
        }
        folder
    };
    // The new journal is written in part, and not yet in place.
    let folder = folder_of_0_1_0();
    std::fs::write(folder.0.join("journal.new"), b"009bcdea2a2547e3 {\"n\":4,").unwrap();
    folder.open().set_note("lab", Some("note")).unwrap();
    assert!(!folder.0.join("journal.new").exists());
    check_all(&folder.open(), SAME_INDEX);
    // The journal is new, and the index is old or new.
    for index_too in [false, true] {
        let folder = upgraded(index_too);
        assert_eq!(format_of(&folder), 2);
        check_all(&folder.open(), SAME_INDEX);
        folder.open().set_note("lab", Some("more")).unwrap();
        check_all(&folder.open(), SAME_INDEX);
    }
    // An event is in the new journal, and not in the old index.
    let folder = folder_of_0_1_0();
    let old = std::fs::read(folder.0.join("index/data.mdb")).unwrap();
    folder.open().tag_pin(&secret(), &tag("latest"), true).unwrap();
    std::fs::write(folder.0.join("index/data.mdb"), old).unwrap();
    let store = folder.open();
    assert!(store.tag(&secret(), &tag("latest")).unwrap().unwrap().pinned);
    check_all(&store, SAME_INDEX);
}

#[test]
fn what_0_1_0_had_staged_is_taken_up_for_its_registry_alone() {
    let folder = folder_of_0_1_0();
    let store = folder.open();
    let unfinished = store.unfinished();
    let found: Vec<_> =
        unfinished.iter().map(|(key, from, bytes)| (key.class, from.repository.clone(), *bytes)).collect();
    assert_eq!(found, [(AccessClass::Unproven, repository(), 120), (AccessClass::Unproven, secret(), 120)]);
    let (public, private) = (sha256(&b"p".repeat(200)), sha256(&b"s".repeat(200)));
    let stage = |repository: Repository, class, digest: &Digest| {
        let key = ContentKey::shared(repository.registry.clone(), class, digest.clone());
        let staged = store.stage(&key, &StagedFrom { repository, size: Some(200) }).unwrap();
        (key, staged)
    };
    // Not for another registry.
    let (other, staged) = stage(secret(), AccessClass::Private, &public);
    assert_eq!(staged.len(), 0);
    drop(staged);
    store.forget_staged(&other).unwrap();
    let (key, mut staged) = stage(repository(), AccessClass::Public, &public);
    assert_eq!(staged.len(), 120);
    staged.append(&b"p".repeat(80)).unwrap();
    staged.publish(&store, AccessClass::Public).unwrap();
    assert!(store.contains(&key.digest));
    // Renamed and left again, and with the old `.origin` that a kill would leave.
    let old = folder.0.join("staging").join(format!("sha256-{}", private.hex()));
    let origin = std::fs::read(old.with_extension("origin")).unwrap();
    drop(stage(secret(), AccessClass::Private, &private));
    assert!(!old.exists() && !old.with_extension("origin").exists());
    std::fs::write(old.with_extension("origin"), origin).unwrap();
    drop(store);
    let store = folder.open();
    assert!(!old.with_extension("origin").exists());
    let [(key, from, 120)] = &store.unfinished()[..] else { panic!("{:?}", store.unfinished()) };
    assert_eq!((key.class, &from.repository), (AccessClass::Private, &secret()));
    store.forget_staged(key).unwrap();
    assert_eq!(std::fs::read_dir(folder.0.join("staging")).unwrap().count(), 0);
    // What may have come by credentials is asked again of who has none, at least its end.
    let folder = folder_of_0_1_0();
    let store = folder.open();
    let old = folder.0.join("staging").join(format!("sha256-{}", private.hex()));
    std::fs::write(old, b"s".repeat(200)).unwrap();
    for (class, taken) in [(AccessClass::Public, 0), (AccessClass::Private, 200)] {
        let key = ContentKey::shared(secret().registry, class, private.clone());
        let staged = store.stage(&key, &StagedFrom { repository: secret(), size: Some(200) }).unwrap();
        assert_eq!(staged.len(), taken, "{class:?}");
    }
    drop(store);
    // By the key under which it is listed it can be forgotten too.
    let folder = folder_of_0_1_0();
    let store = folder.open();
    for (key, ..) in store.unfinished() {
        store.forget_staged(&key).unwrap();
    }
    assert_eq!(std::fs::read_dir(folder.0.join("staging")).unwrap().count(), 0);
}

#[test]
fn on_a_disk_that_is_read_only_the_folder_of_0_1_0_opens_too() {
    let folder = folder_of_0_1_0();
    let before = content(&folder);
    let script = r#"mount --bind "$FOLDER" "$FOLDER"; mount -o remount,bind,ro "$FOLDER"; exec "$0" "$@""#;
    let name = "store::tests::upgrade::what_is_on_a_disk_that_is_read_only";
    let child = Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-ec", script])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--ignored", "--nocapture"])
        .env("FOLDER", &folder.0)
        .env(READ_ONLY_FOLDER, &folder.0)
        .output()
        .expect("unshare(1) is needed for a disk that is read-only");
    let out = String::from_utf8_lossy(&child.stdout);
    assert!(
        child.status.success() && out.contains("1 passed"),
        "{out}{}",
        String::from_utf8_lossy(&child.stderr)
    );
    assert_eq!(content(&folder), before);
}

#[test]
#[ignore = "the test above runs it where the disk is read-only"]
fn what_is_on_a_disk_that_is_read_only() {
    let path = PathBuf::from(std::env::var(READ_ONLY_FOLDER).unwrap());
    assert!(std::fs::write(path.join("probe"), b"").is_err(), "the disk must be read-only");
    let (store, startup) = Store::open(&path, 3).unwrap();
    assert_eq!(startup.needs_rebuild(), !SAME_INDEX);
    if SAME_INDEX {
        check_all(&store, true);
        assert!(store.tag_pin(&secret(), &tag("latest"), true).is_err_and(|e| e.is_disk_failure()));
        assert!(store.set_note("lab", Some("note")).is_err_and(|e| e.is_disk_failure()));
        check_all(&store, true);
    }
    assert_eq!(store.unfinished().len(), 2);
}
