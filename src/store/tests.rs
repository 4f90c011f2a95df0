//! The store's promises, one by one, on a real folder.

mod upgrade;

use super::index::{Index, close};
use super::*;
use crate::auth::{AccessClass, Clearance};
use crate::oci::{Algorithm, Digest, Repository, Tag, media};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

/// A folder that goes when the test ends.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("larder-store-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn open(&self) -> Store {
        let (store, startup) = Store::open(&self.0, 3).unwrap();
        startup.finish_briefly(&store).unwrap();
        store
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn repository() -> Repository {
    "docker.io/lab/app".parse().unwrap()
}

fn tag(text: &str) -> Tag {
    text.parse().unwrap()
}

fn seen(digest: &Digest) -> Observation {
    Observation::upstream(digest.clone())
}

fn key(digest: &Digest) -> ContentKey {
    let registry = repository().registry;
    ContentKey::shared(registry, AccessClass::Public, digest.clone())
}

fn put(store: &Store, bytes: &[u8]) -> Digest {
    let digest = Digest::of(Algorithm::Sha256, bytes);
    let mut staged =
        store.stage(&key(&digest), &StagedFrom { repository: repository(), size: None }).unwrap();
    staged.append(bytes).unwrap();
    staged.publish(store, AccessClass::Public).unwrap();
    digest
}

fn put_image(store: &Store, layer: &[u8]) -> Digest {
    let layer_digest = put(store, layer);
    let text = format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","config":{{"mediaType":"c","digest":"{layer_digest}","size":{}}},"layers":[]}}"#,
        media::OCI_MANIFEST,
        layer.len()
    );
    let digest = Digest::of(Algorithm::Sha256, text.as_bytes());
    store
        .put_manifest(&repository(), &digest, media::OCI_MANIFEST, text.as_bytes(), AccessClass::Public)
        .unwrap();
    digest
}

/// Everything that must survive the loss of the index.
fn picture(store: &Store) -> String {
    let mut out = String::new();
    for repository in store.repositories(None, 100).unwrap() {
        out += &format!("{repository}\n{:#?}\n", store.tags(&repository, None, 100).unwrap());
        let mut manifests = store.manifests(&repository).unwrap();
        manifests.sort_by_key(|m| m.n);
        out += &format!("{manifests:#?}\n");
    }
    let mut blobs: Vec<_> = store.blob_files().unwrap().map(|b| (b.used, b.digest, b.size)).collect();
    blobs.sort();
    out + &format!("{blobs:#?} {}", store.stored_bytes())
}

#[test]
fn a_blob_is_there_only_when_whole() {
    let folder = Folder::new();
    let store = folder.open();
    let content = b"some layer";
    let digest = Digest::of(Algorithm::Sha256, content);
    let origin = StagedFrom { repository: repository(), size: Some(10) };
    let mut staged = store.stage(&key(&digest), &origin).unwrap();
    staged.append(b"some ").unwrap();
    assert!(!store.contains(&digest));
    assert!(matches!(store.stage(&key(&digest), &origin), Err(StoreError::Busy(_))));
    drop(staged);
    assert_eq!(store.unfinished(), [(key(&digest), origin.clone(), 5)]);
    let mut staged = store.stage(&key(&digest), &origin).unwrap();
    assert_eq!(staged.len(), 5);
    staged.append(b"layer").unwrap();
    staged.publish(&store, AccessClass::Public).unwrap();
    assert_eq!(store.blob_size(&digest), Some(10));
    assert!(store.unfinished().is_empty());
    assert_eq!(store.stored_bytes(), 10);
    store.verify(&digest).unwrap();
}

#[test]
fn a_wrong_byte_is_never_published() {
    let folder = Folder::new();
    let store = folder.open();
    let digest = Digest::of(Algorithm::Sha512, b"right");
    let mut staged =
        store.stage(&key(&digest), &StagedFrom { repository: repository(), size: None }).unwrap();
    staged.append(b"wrong").unwrap();
    assert!(matches!(staged.publish(&store, AccessClass::Public), Err(StoreError::Mismatch { .. })));
    assert!(!store.contains(&digest));
    assert!(store.unfinished().is_empty(), "the wrong bytes must not be taken up again");
}

#[test]
fn tags_survive_a_restart_and_the_loss_of_the_index() {
    let folder = Folder::new();
    let before = {
        let store = folder.open();
        let (first, second) = (put_image(&store, b"one"), put_image(&store, b"two"));
        store.tag_seen(&repository(), &tag("latest"), &seen(&first)).unwrap();
        store.tag_complete(&repository(), &tag("latest"), &first).unwrap();
        store.tag_seen(&repository(), &tag("latest"), &seen(&second)).unwrap();
        store.tag_complete(&repository(), &tag("latest"), &second).unwrap();
        store.tag_seen(&repository(), &tag("1.0"), &seen(&first)).unwrap();
        store
            .tag_rollback(&repository(), &tag("latest"), Some(Rollback { from: second, to: first.clone() }))
            .unwrap();
        store.touch(&first);
        store.flush_touches().unwrap();
        picture(&store)
    };
    assert_eq!(picture(&folder.open()), before, "after a restart");
    std::fs::remove_dir_all(folder.0.join("index")).unwrap();
    assert_eq!(picture(&folder.open()), before, "after the loss of the index");
    let data = folder.0.join("index/data.mdb");
    std::fs::write(&data, vec![0; std::fs::metadata(&data).unwrap().len() as usize]).unwrap();
    assert_eq!(picture(&folder.open()), before, "after the index was zeroed");
}

#[test]
fn an_index_behind_the_journal_catches_up() {
    let folder = Folder::new();
    let digest = {
        let store = folder.open();
        put_image(&store, b"one")
    };
    let copy = folder.0.join("old");
    std::fs::create_dir(&copy).unwrap();
    std::fs::copy(folder.0.join("index/data.mdb"), copy.join("data.mdb")).unwrap();
    let before = {
        let store = folder.open();
        store.tag_seen(&repository(), &tag("latest"), &seen(&digest)).unwrap();
        picture(&store)
    };
    std::fs::copy(copy.join("data.mdb"), folder.0.join("index/data.mdb")).unwrap();
    let (store, startup) = Store::open(&folder.0, 3).unwrap();
    assert!(!startup.needs_rebuild());
    assert_eq!(picture(&store), before);
}

#[test]
fn a_torn_journal_loses_only_what_was_never_acknowledged() {
    let folder = Folder::new();
    let before = {
        let store = folder.open();
        let digest = put_image(&store, b"one");
        store.tag_seen(&repository(), &tag("latest"), &seen(&digest)).unwrap();
        picture(&store)
    };
    let path = folder.0.join("journal");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes.extend_from_slice(b"0123456789abcdef {\"n\":99,\"seen\":{\"repos");
    std::fs::write(&path, bytes).unwrap();
    std::fs::remove_dir_all(folder.0.join("index")).unwrap();
    assert_eq!(picture(&folder.open()), before);
}

#[test]
fn a_damaged_journal_line_costs_that_event_alone() {
    let folder = Folder::new();
    {
        let store = folder.open();
        let digest = put_image(&store, b"one");
        store.tag_seen(&repository(), &tag("a"), &seen(&digest)).unwrap();
        store.tag_seen(&repository(), &tag("b"), &seen(&digest)).unwrap();
    }
    let path = folder.0.join("journal");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("\"tag\":\"a\"", "\"tag\":\"x\"")).unwrap();
    std::fs::remove_dir_all(folder.0.join("index")).unwrap();
    let tags: Vec<_> =
        folder.open().tags(&repository(), None, 9).unwrap().into_iter().map(|(t, _)| t).collect();
    assert_eq!(tags, [tag("b")]);
}

#[test]
fn the_journal_is_compacted_without_loss() {
    let folder = Folder::new();
    let store = folder.open();
    let (first, second) = (put_image(&store, b"one"), put_image(&store, b"two"));
    for round in 0..20 {
        store
            .tag_seen(&repository(), &tag("latest"), &seen(if round % 2 == 0 { &first } else { &second }))
            .unwrap();
    }
    store.tag_complete(&repository(), &tag("latest"), &second).unwrap();
    store.hold(&repository(), &first).unwrap();
    let before = picture(&store);
    let long = store.journal.lock().len();
    {
        let index = store.index.get().unwrap();
        let snapshot = index.snapshot().unwrap();
        store.journal.lock().compact(&snapshot).unwrap();
    }
    assert!(store.journal.lock().len() < long / 2);
    drop(store);
    assert_eq!(picture(&folder.open()), before, "the old index with the new journal");
    std::fs::remove_dir_all(folder.0.join("index")).unwrap();
    assert_eq!(picture(&folder.open()), before, "rebuilt from the new journal");
}

#[test]
fn a_damaged_record_is_noticed() {
    let folder = Folder::new();
    {
        let store = folder.open();
        let digest = put_image(&store, b"one");
        store.tag_seen(&repository(), &tag("latest"), &seen(&digest)).unwrap();
    }
    let data = folder.0.join("index/data.mdb");
    let bytes = std::fs::read(&data).unwrap();
    let needle = b"\"seen\":{\"digest\":\"sha256:";
    let mut hits = 0;
    let mut damaged = bytes.clone();
    for at in 0..bytes.len() - needle.len() {
        if &bytes[at..at + needle.len()] == needle {
            damaged[at + needle.len()] ^= 1;
            hits += 1;
        }
    }
    assert!(hits > 0);
    std::fs::write(&data, damaged).unwrap();
    let (store, startup) = Store::open(&folder.0, 3).unwrap();
    assert!(startup.needs_rebuild());
    assert!(matches!(store.tag(&repository(), &tag("latest")), Err(StoreError::Rebuilding)));
    store.rebuild().unwrap();
    assert!(!store.is_damaged());
    assert!(store.tag(&repository(), &tag("latest")).unwrap().unwrap().seen.is_some());
}

#[test]
fn content_is_served_while_there_is_no_index() {
    let folder = Folder::new();
    let digest = put(&folder.open(), b"one");
    std::fs::remove_dir_all(folder.0.join("index")).unwrap();
    let (store, startup) = Store::open(&folder.0, 3).unwrap();
    assert!(startup.needs_rebuild());
    assert!(store.open_blob(&digest).unwrap().is_some());
    assert!(matches!(store.tag(&repository(), &tag("latest")), Err(StoreError::Rebuilding)));
}

#[test]
fn a_blob_that_is_opened_without_waiting_is_the_one_that_is_opened_anyway() {
    let folder = Folder::new();
    let store = folder.open();
    let digest = put(&store, b"one");
    // Its name has just been used. On a kernel or under an emulator without openat2(2) there is only the other way.
    store.open_blob(&digest).unwrap();
    if let Some(now) = store.open_blob_now(&digest) {
        let anyway = store.open_blob(&digest).unwrap().unwrap();
        assert_eq!((now.size, now.class, now.unverified), (anyway.size, anyway.class, anyway.unverified));
        assert_eq!(now.file.metadata().unwrap().ino(), anyway.file.metadata().unwrap().ino());
    } else {
        let probed = rustix::fs::openat2(CWD, &folder.0, OFlags::PATH, Mode::empty(), ResolveFlags::CACHED);
        assert!(matches!(probed, Err(Errno::NOSYS | Errno::INVAL | Errno::PERM)), "{probed:?}");
    }
    assert!(store.open_blob_now(&Digest::of(Algorithm::Sha256, b"two")).is_none());
    let path = store.layout.blob(&digest);
    std::fs::rename(&path, folder.0.join("aside")).unwrap();
    std::os::unix::fs::symlink(folder.0.join("aside"), &path).unwrap();
    assert!(store.open_blob_now(&digest).is_none());
}

#[test]
fn a_newer_store_is_refused_and_left_alone() {
    let folder = Folder::new();
    put(&folder.open(), b"one");
    let index = Index::open(&folder.0.join("index"), false).unwrap();
    index.set_schema(99).unwrap();
    close(index);
    let before = std::fs::read(folder.0.join("index/data.mdb")).unwrap();
    assert!(matches!(Store::open(&folder.0, 3), Err(StoreError::Newer { found: 99, known: 3 })));
    assert!(std::fs::read(folder.0.join("index/data.mdb")).unwrap() == before);
}

#[test]
fn one_store_has_one_owner() {
    let folder = Folder::new();
    let _store = folder.open();
    assert!(matches!(Store::open(&folder.0, 3), Err(StoreError::Locked(_))));
}

#[test]
fn private_content_stays_private_without_the_index() {
    let folder = Folder::new();
    let digest = Digest::of(Algorithm::Sha256, b"secret");
    {
        let store = folder.open();
        let mut staged =
            store.stage(&key(&digest), &StagedFrom { repository: repository(), size: None }).unwrap();
        staged.append(b"secret").unwrap();
        staged.publish(&store, AccessClass::Private).unwrap();
    }
    std::fs::remove_dir_all(folder.0.join("index")).unwrap();
    let store = folder.open();
    assert!(!store.open_blob(&digest).unwrap().unwrap().is_public());
    store.make_public(&digest).unwrap();
    assert!(store.open_blob(&digest).unwrap().unwrap().is_public());
}

#[test]
fn pages_go_on_where_the_last_one_ended() {
    let folder = Folder::new();
    let store = folder.open();
    let digest = put_image(&store, b"one");
    for name in ["b", "a", "d", "c"] {
        store.tag_seen(&repository(), &tag(name), &seen(&digest)).unwrap();
    }
    let page = |last, limit| -> Vec<String> {
        store.tags(&repository(), last, limit).unwrap().into_iter().map(|(t, _)| t.to_string()).collect()
    };
    assert_eq!(page(None, 2), ["a", "b"]);
    assert_eq!(page(Some("b"), 2), ["c", "d"]);
    assert_eq!(page(Some("d"), 2), [""; 0]);
    assert_eq!(page(None, 0), [""; 0]);
    assert_eq!(store.repositories(Some("docker.io/lab/app"), 9).unwrap(), []);
    assert_eq!(store.repositories(None, 9).unwrap(), [repository()]);
}

#[test]
fn an_index_is_known_by_its_fingerprint_or_read_and_copied() {
    let folder = Folder::new();
    let fingerprint = folder.0.join("index/fingerprint");
    let before = {
        let store = folder.open();
        let digest = put_image(&store, b"one");
        store.tag_seen(&repository(), &tag("latest"), &seen(&digest)).unwrap();
        store.set_note("lab", Some("what only the index knows")).unwrap();
        assert!(!fingerprint.exists(), "until a clean shutdown");
        picture(&store)
    };
    let file = || std::fs::metadata(folder.0.join("index/data.mdb")).unwrap().ino();
    for (is_known, text) in [(true, None), (false, Some("of another file")), (true, None), (false, Some(""))]
    {
        if let Some(text) = text {
            std::fs::write(&fingerprint, text).unwrap();
        }
        let was = file();
        let (store, startup) = Store::open(&folder.0, 3).unwrap();
        assert!(!startup.needs_rebuild());
        assert_eq!(picture(&store), before);
        assert_eq!(store.note("lab").unwrap().as_deref(), Some("what only the index knows"));
        assert_eq!(is_known, file() == was, "a copy has none of the pages that were there");
        assert!(!folder.0.join("index.new").exists());
        store.check_index().unwrap();
        drop(store);
        assert!(fingerprint.exists());
    }
}

#[test]
fn who_is_late_with_a_change_leaves_the_fingerprint_as_it_was() {
    let folder = Folder::new();
    let (store, app, latest) = (folder.open(), repository(), Tag::latest());
    store.tag_pin(&app, &latest, true).unwrap();
    store.end();
    assert!(store.tag_pin(&app, &latest, false).is_err());
    assert!(store.change_index(|index| index.touch(&[], 9)).is_err());
    assert!(super::fingerprint::holds(&folder.0.join("index")));
    drop(store);
    // The journal has it.
    assert!(!folder.open().tag(&app, &latest).unwrap().unwrap_or_default().pinned);
}

#[test]
fn an_index_that_was_found_damaged_has_no_fingerprint() {
    let folder = Folder::new();
    let store = folder.open();
    put_image(&store, b"one");
    store.shut_down();
    assert!(folder.0.join("index/fingerprint").exists());
    let index = store.index.get().unwrap();
    store.index.watch(&index, Err::<(), _>(StoreError::Damaged("lab".into()))).unwrap_err();
    drop(index);
    drop(store);
    assert!(!folder.0.join("index/fingerprint").exists());
}

#[test]
fn what_is_evicted_is_gone_after_a_rebuild_too_and_what_comes_back_stays() {
    let folder = Folder::new();
    let store = folder.open();
    let (old, new) = (put_image(&store, b"old layer"), put_image(&store, b"new layer"));
    for digest in [&old, &new] {
        store.tag_seen(&repository(), &tag("latest"), &seen(digest)).unwrap();
        store.tag_complete(&repository(), &tag("latest"), digest).unwrap();
    }
    store.tag_pin(&repository(), &tag("latest"), true).unwrap();
    let layer = Digest::of(Algorithm::Sha256, b"old layer");
    store.evict(&repository(), &old, &[old.clone(), layer.clone()], &[layer.clone(), old.clone()]).unwrap();
    let state = |store: &Store| {
        let record = store.tag(&repository(), &tag("latest")).unwrap().unwrap();
        let mut manifests: Vec<_> =
            store.manifests(&repository()).unwrap().into_iter().map(|linked| linked.digest).collect();
        manifests.sort();
        (record, manifests, store.link(&repository(), &layer).unwrap(), store.stored_bytes())
    };
    let before = state(&store);
    assert_eq!(before.0.candidates().len(), 1);
    assert!(before.0.pinned);
    assert_eq!(before.1, std::slice::from_ref(&new));
    assert_eq!(before.2, None);
    assert!(!store.contains(&old) && !store.contains(&layer) && store.contains(&new));
    store.rebuild().unwrap();
    assert_eq!(state(&store), before);

    // It is pulled again, and a rebuild does not take the eviction for later than it was.
    assert_eq!(put_image(&store, b"old layer"), old);
    store.tag_seen(&repository(), &tag("old"), &seen(&old)).unwrap();
    let again = (state(&store), store.tag(&repository(), &tag("old")).unwrap());
    assert!(again.0.1.contains(&old) && again.1.is_some());
    store.rebuild().unwrap();
    assert_eq!((state(&store), store.tag(&repository(), &tag("old")).unwrap()), again);

    // Of a repository of which nothing is left nothing is known.
    store.tag_pin(&repository(), &tag("latest"), false).unwrap();
    for digest in [&old, &new] {
        let members: Vec<Digest> = store.stock().unwrap().into_iter().map(|blob| blob.digest).collect();
        store.evict(&repository(), digest, &members, &members).unwrap();
    }
    let links: Vec<Digest> =
        [&b"old layer"[..], b"new layer"].map(|b| Digest::of(Algorithm::Sha256, b)).to_vec();
    store.evict(&repository(), &new, &[vec![old, new.clone()], links].concat(), &[]).unwrap();
    assert!(store.repositories(None, 9).unwrap().is_empty());
    assert_eq!((store.stored_bytes(), store.blob_files().unwrap().count()), (0, 0));
}

#[test]
fn where_a_version_and_a_class_come_from_survives_whatever_happens_to_the_index() {
    let folder = Folder::new();
    let store = folder.open();
    let digest = put_image(&store, b"one");
    let observed = Observation {
        date: Some(1_796_000_000),
        endpoint: Some("registry-1.docker.io:443".to_owned()),
        ..seen(&digest)
    };
    store.tag_seen(&repository(), &tag("latest"), &observed).unwrap();
    store.tag_complete(&repository(), &tag("latest"), &digest).unwrap();
    let imported = Observation { source: VersionSource::Import, date: None, ..observed.clone() };
    store.tag_offered(&repository(), &tag("imported"), &imported, Some(7)).unwrap();
    store.tag_offered(&repository(), &tag("offered"), &Observation::peer(digest.clone()), Some(8)).unwrap();
    let check = |store: &Store| {
        let record = |name| store.tag(&repository(), &tag(name)).unwrap().unwrap();
        let latest = record("latest");
        let reported = |version: TagVersion| TagVersion { n: 0, unix: None, ..version };
        assert_eq!(reported(latest.seen.unwrap()), observed.version(None));
        assert_eq!(
            reported(latest.complete.unwrap()),
            observed.version(None),
            "it is the version that was seen"
        );
        let known = record("imported").complete.unwrap();
        assert_eq!(TagVersion { n: 0, ..known }, imported.version(Some(7)));
        assert!(record("offered").complete.unwrap().is_from_peer());
        assert_eq!(store.repository_class(&repository()).unwrap(), Some(AccessClass::Public));
    };
    check(&store);
    store.rebuild().unwrap();
    check(&store);
    let snapshot = store.index.get().unwrap().snapshot().unwrap();
    store.journal.lock().compact(&snapshot).unwrap();
    store.rebuild().unwrap();
    check(&store);
}

#[test]
fn a_class_is_what_the_registry_proved_last() {
    let folder = Folder::new();
    let store = folder.open();
    let digest = put_image(&store, b"one");
    let bytes = store.with_document(&digest, <[u8]>::to_vec).unwrap().unwrap();
    let other: Repository = "docker.io/lab/other".parse().unwrap();
    let put = |repository: &Repository, class| {
        store.put_manifest(repository, &digest, media::OCI_MANIFEST, &bytes, class).unwrap();
        store.repository_class(repository).unwrap().unwrap()
    };
    assert_eq!(put(&repository(), AccessClass::Unproven), AccessClass::Public, "a peer proves nothing");
    assert_eq!(put(&repository(), AccessClass::Private), AccessClass::Private);
    assert!(store.open_blob(&digest).unwrap().unwrap().is_public(), "who has seen it in public may see it");
    let long = store.journal.lock().len();
    assert_eq!(put(&repository(), AccessClass::Private), AccessClass::Private);
    assert_eq!(store.journal.lock().len(), long, "what is known is not written");
    assert_eq!(put(&other, AccessClass::Unproven), AccessClass::Unproven);
    assert_eq!(put(&other, AccessClass::Public), AccessClass::Public);
}

#[test]
fn staged_content_has_a_safe_name_for_each_registry_and_class() {
    let folder = Folder::new();
    let store = folder.open();
    let long = format!("{}a.example:65535", "a.".repeat(118));
    let digest = Digest::of(Algorithm::Sha512, b"layer");
    let (mut kept, mut writing) = (Vec::new(), Vec::new());
    for registry in ["docker.io", "127.0.0.1:5000", "[::1]:5000", &long] {
        for class in [AccessClass::Public, AccessClass::Private, AccessClass::Unproven] {
            let repository: Repository = format!("{registry}/lab/app").parse().unwrap();
            let key = ContentKey::shared(repository.registry.clone(), class, digest.clone());
            let from = StagedFrom { repository, size: Some(5) };
            let mut staged = store.stage(&key, &from).unwrap();
            staged.append(b"la").unwrap();
            writing.push(staged);
            kept.push((key, from, 2));
        }
    }
    drop(writing);
    for entry in std::fs::read_dir(folder.0.join("staging")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(
            name.len() <= 200 && name.bytes().all(|c| c.is_ascii_alphanumeric() || b"-.".contains(&c)),
            "{name}"
        );
    }
    kept.sort();
    assert_eq!(store.unfinished(), kept);
}

#[test]
fn what_one_registry_has_sent_is_not_gone_on_with_for_another() {
    let folder = Folder::new();
    let store = folder.open();
    let digest = Digest::of(Algorithm::Sha256, b"layer");
    let stage = |registry: &str, class| {
        let repository: Repository = format!("{registry}/lab/app").parse().unwrap();
        let key = ContentKey::shared(repository.registry.clone(), class, digest.clone());
        store.stage(&key, &StagedFrom { repository, size: Some(5) }).unwrap()
    };
    let mut first = stage("first.example", AccessClass::Public);
    first.append(b"la").unwrap();
    drop(first);
    let mut private = stage("second.example", AccessClass::Private);
    assert_eq!(private.len(), 0);
    private.append(b"lay").unwrap();
    drop(private);
    assert_eq!(stage("second.example", AccessClass::Public).len(), 0);
    assert_eq!(stage("first.example", AccessClass::Private).len(), 0);
    assert_eq!(stage("second.example", AccessClass::Private).len(), 3);
    assert_eq!(stage("first.example", AccessClass::Public).len(), 2);
}

#[test]
fn what_one_repository_has_sent_is_not_gone_on_with_for_another() {
    let folder = Folder::new();
    let store = folder.open();
    let digest = Digest::of(Algorithm::Sha256, b"layer");
    let [first, other] =
        ["first", "other"].map(|name| format!("docker.io/lab/{name}").parse::<Repository>().unwrap());
    for class in [AccessClass::Public, AccessClass::Private] {
        let shared = ContentKey::shared(first.registry.clone(), class, digest.clone());
        let stage = |key: &ContentKey, repository: &Repository| {
            store.stage(key, &StagedFrom { repository: repository.clone(), size: Some(5) }).unwrap()
        };
        let mut staged = stage(&shared, &first);
        staged.append(b"la").unwrap();
        // While it is written the other has a file of its own, and finds it after a restart.
        let apart = shared.apart(&other.name);
        let mut own = stage(&apart, &other);
        assert_eq!(own.len(), 0);
        own.append(b"lay").unwrap();
        drop((staged, own));
        assert_eq!((stage(&shared, &first).len(), stage(&apart, &other).len()), (2, 3));
        let known = store.unfinished();
        assert!([&shared, &apart].iter().all(|key| known.iter().any(|(of, ..)| of == *key)), "{known:?}");
        assert_eq!(stage(&shared, &other).len(), 0);
        store.forget_staged(&shared).unwrap();
        store.forget_staged(&apart).unwrap();
    }
}

#[test]
fn only_bytes_from_where_everybody_may_read_them_change_who_may_see_content() {
    let folder = Folder::new();
    let store = folder.open();
    let (bytes, private) = (br#"{"schemaVersion":2,"config":{"mediaType":"a/b","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0},"layers":[]}"#, |store: &Store, digest: &Digest| !store.open_blob(digest).unwrap().unwrap().is_public());
    let digest = Digest::of(Algorithm::Sha256, bytes);
    let put = |class| store.put_manifest(&repository(), &digest, media::OCI_MANIFEST, bytes, class).unwrap();
    put(AccessClass::Private);
    assert!(private(&store, &digest));
    put(AccessClass::Unproven);
    assert!(private(&store, &digest), "what an import says is no proof");
    assert!(!store.may_serve(&repository(), Clearance::NONE, &digest, AccessClass::Private).unwrap());
    assert!(store.may_serve(&repository(), Clearance::FULL, &digest, AccessClass::Private).unwrap());
    let other: Repository = "docker.io/lab/other".parse().unwrap();
    assert_eq!(store.size_through(&other, Clearance::FULL, &digest).unwrap(), None);
    store.hold(&other, &digest).unwrap();
    assert_eq!(store.size_through(&other, Clearance::FULL, &digest).unwrap(), Some(bytes.len() as u64));
    assert_eq!(store.size_through(&other, Clearance::NONE, &digest).unwrap(), None);
    put(AccessClass::Public);
    assert!(!private(&store, &digest));
    store.mark_private(&repository()).unwrap();
    assert_eq!(store.repository_class(&repository()).unwrap(), Some(AccessClass::Private));
    assert!(!private(&store, &digest), "who has seen it in public may see it");
}

#[test]
fn the_state_of_the_index_is_one() {
    let folder = Folder::new();
    let store = folder.open();
    let digest = put_image(&store, b"one");
    let index = store.index.get().unwrap();
    let damaged = || Err::<(), _>(StoreError::Damaged("lab".into()));
    let stuck = || Err::<(), _>(StoreError::Stuck("lab".into()));
    let state = || (store.has_index(), store.is_damaged(), store.index.is_stuck(), store.cannot_rebuild());
    assert_eq!(state(), (true, false, false, false));
    store.index.watch(&index, damaged()).unwrap_err();
    assert_eq!(state(), (true, true, false, false));
    store.index.watch(&index, stuck()).unwrap_err();
    store.index.watch(&index, damaged()).unwrap_err();
    assert_eq!(state(), (true, true, true, false), "to reopen it comes first");
    drop(index);
    store.recover().unwrap();
    assert_eq!(state(), (true, false, false, false));
    // What a late reader of the index before finds in it says nothing of the one that is built meanwhile.
    let before = store.index.get().unwrap();
    store.index.watch(&before, damaged()).unwrap_err();
    std::thread::scope(|scope| {
        let store = &store;
        scope.spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(200));
            store.index.watch(&before, stuck()).unwrap_err();
        });
        store.recover().unwrap();
    });
    assert_eq!(state(), (true, false, false, false));
    // An index that cannot be built.
    std::fs::rename(folder.0.join("blobs/sha512"), folder.0.join("gone")).unwrap();
    assert!(store.rebuild().is_err());
    assert_eq!(state(), (false, false, false, true));
    assert!(matches!(store.link(&repository(), &digest), Err(StoreError::Rebuilding)));
    std::fs::rename(folder.0.join("gone"), folder.0.join("blobs/sha512")).unwrap();
    store.recover().unwrap();
    assert_eq!(state(), (true, false, false, false));
    assert!(store.link(&repository(), &digest).unwrap().is_some());
}

#[test]
fn two_writers_of_the_same_content_count_it_once() {
    let folder = Folder::new();
    let store = folder.open();
    let digest = Digest::of(Algorithm::Sha256, b"layer");
    let stage = |class| {
        let key = ContentKey { class, ..key(&digest) };
        let mut staged = store.stage(&key, &StagedFrom { repository: repository(), size: None }).unwrap();
        staged.append(b"layer").unwrap();
        staged
    };
    let (public, private) = (stage(AccessClass::Public), stage(AccessClass::Private));
    public.publish(&store, AccessClass::Public).unwrap();
    private.publish(&store, AccessClass::Private).unwrap();
    assert_eq!(store.stored_bytes(), 5);
    assert!(store.open_blob(&digest).unwrap().unwrap().is_public(), "it was seen in public");
    assert!(store.unfinished().is_empty());
}

#[test]
fn a_registry_has_a_limited_number_of_repositories() {
    let folder = Folder::new();
    let store = folder.open();
    let digest = Digest::of(Algorithm::Sha256, b"x");
    let named = |n: usize| -> Repository { format!("evil.example/lab/{n}").parse().unwrap() };
    let most = crate::budget::REGISTRY_REPOSITORIES_MAX;
    let complete = |n| journal::What::Complete {
        repository: named(n),
        tag: tag("latest"),
        version: seen(&digest).version(None),
    };
    store.record(None, || Ok((0..most - 1).map(complete).collect())).unwrap();
    // Of what is not complete the least recent makes way, with its tags.
    store.tag_seen(&named(most - 1), &tag("junk"), &seen(&digest)).unwrap();
    store.hold(&named(most), &digest).unwrap();
    assert!(store.tag(&named(most - 1), &tag("junk")).unwrap().is_none());
    assert!(store.link(&named(most), &digest).unwrap().is_some());
    assert_eq!(store.repositories(None, 2 * most).unwrap().len(), most);
    // What is complete does not.
    store.tag_complete(&named(most), &tag("latest"), &digest).unwrap();
    let (most, digest) = (most + 1, &digest);
    let media_type = media::OCI_MANIFEST;
    let refused = [
        store.hold(&named(most), digest),
        store.mark_private(&named(most)),
        store.tag_seen(&named(most), &tag("latest"), &seen(digest)).map(drop),
        store.put_manifest(&named(most), digest, media_type, b"x", AccessClass::Public),
    ];
    for result in refused {
        assert!(matches!(result, Err(StoreError::NoRoom { .. })), "{result:?}");
    }
    assert!(!store.contains(digest));
    // What is known goes on, and so does every other registry.
    store.mark_private(&named(0)).unwrap();
    store.hold(&repository(), digest).unwrap();
    let seen_of = |repository: &Repository, n: usize| journal::What::Seen {
        repository: repository.clone(),
        tag: tag(&format!("t{n}")),
        version: seen(digest).version(None),
    };
    // "latest" is one of them.
    let each = crate::budget::REPOSITORY_TAGS_MAX - 1;
    let (mut left, mut n) = (crate::budget::REGISTRY_TAGS_MAX - crate::budget::REGISTRY_REPOSITORIES_MAX, 0);
    while left > 0 {
        let more = left.min(each);
        store.record(None, || Ok((1..more).map(|tag| seen_of(&named(n), tag)).collect())).unwrap();
        store.tag_seen(&named(n), &tag("last"), &seen(digest)).unwrap();
        (left, n) = (left - more, n + 1);
    }
    for full in [named(0), named(9)] {
        let refused = store.tag_seen(&full, &tag("more"), &seen(digest));
        assert!(matches!(refused, Err(StoreError::NoRoom { .. })), "{refused:?}");
    }
    store.tag_seen(&repository(), &tag("latest"), &seen(digest)).unwrap();
}
