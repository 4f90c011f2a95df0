//! Catalogue, walks and closures on small stores in folders of their own.

use super::*;
use crate::auth::AccessClass;
use crate::budget;
use crate::config::{Config, Options};
use crate::oci::{Algorithm, Digest, Repository, Tag, media};
use crate::store::{ContentKey, Observation, Rollback, StagedFrom, Store, StoreError, TagRecord};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// A store in a folder that goes with it.
pub(crate) struct Board {
    pub(crate) folder: PathBuf,
    pub(crate) config: Arc<Config>,
    pub(crate) store: Arc<Store>,
}

impl Drop for Board {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Board {
    pub(crate) fn new(settings: &str) -> Board {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("larder-image-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("larder.toml");
        std::fs::write(&file, settings).unwrap();
        let data_dir = folder.join("data");
        let options = Options { file: Some(file), data_dir: Some(data_dir), listen: Vec::new() };
        let config = Config::load(&options).unwrap();
        let (store, startup) = Store::open(&config.data_dir, 3).unwrap();
        assert!(!startup.needs_rebuild());
        startup.finish(&store).unwrap();
        Board { folder, config: Arc::new(config), store: Arc::new(store) }
    }

    /// What [`Board::blob`] stores under this name.
    pub(crate) fn name(&self, name: &str, size: usize) -> Digest {
        Digest::of(Algorithm::Sha256, &content(name, size))
    }

    pub(crate) fn blob(&self, name: &str, size: usize) -> Digest {
        let bytes = content(name, size);
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        if !self.store.contains(&digest) {
            let from = StagedFrom { repository: repository("app"), size: None };
            let registry = from.repository.registry.clone();
            let key = ContentKey::shared(registry, AccessClass::Public, digest.clone());
            let mut staged = self.store.stage(&key, &from).unwrap();
            staged.append(&bytes).unwrap();
            staged.publish(&self.store, AccessClass::Public).unwrap();
        }
        digest
    }

    /// A manifest with these children, whose sizes are stated as 1.
    fn manifest(&self, of: &str, list: &str, media_type: &str, child: &str, children: &[&Digest]) -> Digest {
        let children: Vec<String> = children
            .iter()
            .map(|digest| format!(r#"{{"mediaType":"{child}","digest":"{digest}","size":1}}"#))
            .collect();
        let text =
            format!(r#"{{"schemaVersion":2,"mediaType":"{media_type}","{list}":[{}]}}"#, children.join(","));
        let digest = Digest::of(Algorithm::Sha256, text.as_bytes());
        self.store
            .put_manifest(&repository(of), &digest, media_type, text.as_bytes(), AccessClass::Public)
            .unwrap();
        digest
    }

    pub(crate) fn image(&self, of: &str, layers: &[&Digest]) -> Digest {
        self.manifest(of, "layers", media::OCI_MANIFEST, "layer", layers)
    }

    pub(crate) fn index(&self, of: &str, children: &[&Digest]) -> Digest {
        self.manifest(of, "manifests", media::OCI_INDEX, media::OCI_MANIFEST, children)
    }

    /// Upstream names `root` for the tag, and it is complete if `complete`.
    pub(crate) fn tag(&self, of: &str, name: &str, root: &Digest, complete: bool) {
        self.store.tag_seen(&repository(of), &tag(name), &Observation::upstream(root.clone())).unwrap();
        if complete {
            self.store.tag_complete(&repository(of), &tag(name), root).unwrap();
        }
    }

    /// Upstream names `root` for many tags. They are written at once.
    pub(crate) fn tag_all(&self, of: &str, names: &[String], root: &Digest) {
        std::thread::scope(|scope| {
            for some in names.chunks(names.len().div_ceil(16)) {
                scope.spawn(move || some.iter().for_each(|name| self.tag(of, name, root, false)));
            }
        });
    }

    fn record(&self, of: &str, name: &str) -> TagRecord {
        self.store.tag(&repository(of), &tag(name)).unwrap().unwrap()
    }

    pub(crate) fn remove_by_hand(&self, digest: &Digest) {
        std::fs::remove_file(self.folder.join("data/blobs/sha256").join(digest.hex())).unwrap();
    }

    fn catalogue(&self) -> Catalogue {
        Catalogue::take(&self.store, &self.config, &Busy::default()).unwrap()
    }

    fn is_linked(&self, of: &str, digest: &Digest) -> bool {
        self.store.link(&repository(of), digest).unwrap().is_some()
    }

    fn served(&self, of: &str, name: &str) -> Option<Digest> {
        let record = self.record(of, name);
        let closures = Closures::new(&self.store, &self.config);
        served(&closures, &repository(of), &record).unwrap().map(|(version, _)| version.digest.clone())
    }
}

fn content(name: &str, size: usize) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(size, b' ');
    bytes
}

pub(crate) fn repository(name: &str) -> Repository {
    format!("docker.io/lab/{name}").parse().unwrap()
}

pub(crate) fn tag(name: &str) -> Tag {
    name.parse().unwrap()
}

/// The images that go, as the digests of their roots.
fn roots(images: &[&Stocked]) -> Vec<Option<Digest>> {
    images.iter().map(|stocked| stocked.image.as_ref().map(|(_, root)| root.clone())).collect()
}

#[test]
fn the_least_recently_used_image_goes_and_leaves_what_others_share() {
    let board = Board::new("");
    let (shared, own, other) = (board.blob("shared", 1000), board.blob("own", 500), board.blob("other", 300));
    let first = board.image("app", &[&shared, &own]);
    let second = board.image("app", &[&shared, &other]);
    board.tag("app", "1", &first, true);
    board.tag("app", "2", &second, true);
    board.store.touch(&second);
    let catalogue = board.catalogue();
    assert_eq!(catalogue.blobs(), 5);
    let victims = catalogue.choose(400, Otherwise::Nothing);
    assert_eq!(roots(&victims), [Some(first.clone())]);
    assert_eq!(
        (&victims[0].tags[..], victims[0].description().contains("lab/app:1 (sha256:")),
        (&[tag("1")][..], true)
    );
    let root_bytes = board.store.blob_size(&first).unwrap();
    assert_eq!(catalogue.frees(&victims), 500 + root_bytes);
    let gone = catalogue.remove(&board.store, &victims).unwrap();
    assert_eq!(gone[0].bytes, 500 + root_bytes);
    let here = [&shared, &own, &other, &first, &second].map(|digest| board.store.contains(digest));
    assert_eq!(here, [true, false, true, false, true]);
    let linked = [&shared, &own, &other, &first, &second].map(|digest| board.is_linked("app", digest));
    assert_eq!(linked, here, "what went with it is forgotten, what others have is not");
    assert!(board.store.tag(&repository("app"), &tag("1")).unwrap().is_none());
    assert_eq!(board.served("app", "2"), Some(second));
}

#[test]
fn what_images_share_goes_with_the_last_of_them() {
    let board = Board::new("");
    let shared = board.blob("shared", 1000);
    let images: Vec<Digest> = ["a", "b", "c"]
        .map(|name| board.image("app", &[&shared, &board.blob(name, 10)]))
        .into_iter()
        .collect();
    let elsewhere = board.image("elsewhere", &[&shared]);
    images.iter().zip(["a", "b", "c"]).for_each(|(image, name)| board.tag("app", name, image, true));
    board.tag("elsewhere", "latest", &elsewhere, true);
    let catalogue = board.catalogue();
    let all: Vec<&Stocked> =
        images.iter().map(|image| catalogue.find(&repository("app"), image).unwrap()).collect();
    let gone = catalogue.remove(&board.store, &all).unwrap();
    let sizes: Vec<u64> = gone.iter().map(|gone| gone.bytes).collect();
    assert!(sizes.iter().all(|&bytes| bytes < 1000), "{sizes:?}");
    // Its last image here is gone; another repository has it still.
    assert!(!board.is_linked("app", &shared) && board.is_linked("elsewhere", &shared));
    assert!(board.store.contains(&shared));
    let last = board.catalogue();
    let gone = last.remove(&board.store, &last.choose(1, Otherwise::Nothing)).unwrap();
    assert!(gone[0].bytes > 1000 && !board.store.contains(&shared));
    assert_eq!(board.catalogue().blobs(), 0);
}

#[test]
fn a_catalogue_reads_no_manifest_a_second_time() {
    let board = Board::new("");
    let (shared, child_layer) = (board.blob("shared", 1000), board.blob("child", 10));
    let child = board.image("app", &[&shared, &child_layer]);
    let index = board.index("app", &[&child]);
    let other = board.image("app", &[&shared]);
    board.tag("app", "index", &index, true);
    board.tag("app", "other", &other, true);
    let catalogue = board.catalogue();
    // What the others name is known from the first look, also when their manifests are not there any more.
    board.remove_by_hand(&other);
    let victim = catalogue.find(&repository("app"), &index).unwrap();
    catalogue.remove(&board.store, &[victim]).unwrap();
    assert!(board.is_linked("app", &shared) && board.store.contains(&shared));
    assert!(!board.is_linked("app", &child) && !board.store.contains(&child_layer));
}

#[test]
fn a_manifest_that_a_tag_names_is_an_image_though_an_index_has_it_too() {
    let board = Board::new("");
    let layer = board.blob("layer", 10);
    let child = board.image("app", &[&layer]);
    let index = board.index("app", &[&child]);
    board.tag("app", "index", &index, true);
    board.tag("app", "child", &child, true);
    let catalogue = board.catalogue();
    let victim = catalogue.find(&repository("app"), &index).unwrap();
    catalogue.remove(&board.store, &[victim]).unwrap();
    assert_eq!(board.served("app", "child"), Some(child));
    assert!(board.is_linked("app", &layer));
}

#[test]
fn a_version_whose_manifest_is_not_here_is_no_image_and_keeps_what_is_known_of_it() {
    let board = Board::new("");
    let child = board.image("app", &[&board.blob("layer", 10)]);
    let index = board.index("app", &[&child]);
    board.tag("app", "index", &index, true);
    board.tag("app", "child", &child, false);
    board.remove_by_hand(&child);
    let catalogue = board.catalogue();
    assert!(catalogue.find(&repository("app"), &child).is_none());
    let victim = catalogue.find(&repository("app"), &index).unwrap();
    catalogue.remove(&board.store, &[victim]).unwrap();
    assert!(board.is_linked("app", &child) && !board.is_linked("app", &index));
    assert_eq!(board.record("app", "child").seen.map(|seen| seen.digest), Some(child));
}

#[test]
fn of_a_pinned_tag_the_served_version_and_upstreams_stay() {
    let board = Board::new("[warm]\nimages = [\"docker.io/lab/warm:latest\"]\n");
    let versions: Vec<Digest> =
        ["1", "2", "3"].map(|name| board.image("app", &[&board.blob(name, 100)])).into_iter().collect();
    board.tag("app", "latest", &versions[0], true);
    board.tag("app", "latest", &versions[1], true);
    board.tag("app", "latest", &versions[2], false);
    board.remove_by_hand(&board.blob("3", 100));
    let warm = board.image("warm", &[&board.blob("warm", 100)]);
    board.tag("warm", "latest", &warm, true);
    let mut all: Vec<Option<Digest>> = versions.iter().cloned().map(Some).collect();
    assert_eq!(roots(&board.catalogue().unused_since(u64::MAX)).len(), 3, "the list of [warm] stays");
    board.store.tag_pin(&repository("app"), &tag("latest"), true).unwrap();
    assert_eq!(board.served("app", "latest"), Some(versions[1].clone()));
    all.truncate(1);
    assert_eq!(roots(&board.catalogue().unused_since(u64::MAX)), all);
    let everything = board.catalogue();
    assert_eq!(roots(&everything.choose(1 << 40, Otherwise::Everything)), all);
    assert!(everything.choose(1 << 40, Otherwise::Nothing).is_empty());
}

#[test]
fn content_that_nobody_names_goes_and_what_is_being_fetched_or_read_stays() {
    let board = Board::new("");
    let (alone, fetched) = (board.blob("alone", 100), board.blob("fetched", 100));
    let (old, new) =
        (board.image("app", &[&board.blob("old", 10)]), board.image("app", &[&board.blob("new", 10)]));
    board.tag("app", "old", &old, true);
    board.tag("app", "new", &new, true);
    board.store.touch(&new);
    let busy = Busy { fills: [fetched].into(), repositories: [repository("app")].into(), ..Busy::default() };
    let catalogue = Catalogue::take(&board.store, &board.config, &busy).unwrap();
    let may_go = catalogue.unused_since(u64::MAX);
    let mut found = roots(&may_go);
    found.sort();
    assert_eq!(found, [None, Some(old)]);
    let orphan: Vec<&Stocked> = may_go.into_iter().filter(|stocked| stocked.image.is_none()).collect();
    assert_eq!(orphan[0].description(), "content that belongs to no image");
    assert_eq!(catalogue.remove(&board.store, &orphan).unwrap()[0].bytes, 100);
    assert!(!board.store.contains(&alone));
}

/// An index with one image, whose manifests one repository brought and another repository's tag names as well.
fn brought_by_another(board: &Board) -> (Digest, [Digest; 4]) {
    let layer = board.blob("layer", 100);
    let child = board.image("brings", &[&layer]);
    let index = board.index("brings", &[&child]);
    board.tag("brings", "latest", &index, true);
    let other = board.image("other", &[&board.blob("other", 100)]);
    board.tag("other", "latest", &other, true);
    (index.clone(), [index, child, layer, other])
}

/// What is left of these after everything went that may.
fn left(board: &Board, busy: &Busy, of: &[Digest; 4]) -> [bool; 4] {
    let catalogue = Catalogue::take(&board.store, &board.config, busy).unwrap();
    let victims = catalogue.choose(1 << 40, Otherwise::Everything);
    catalogue.remove(&board.store, &victims).unwrap();
    of.each_ref().map(|digest| board.store.contains(digest))
}

#[test]
fn what_keeps_a_version_keeps_all_of_it_whoever_brought_its_manifests() {
    let (all, stays) = ([true; 4], [true, true, true, false]);
    // Pinned, and listed in [warm].
    for settings in ["", "[warm]\nimages = [\"docker.io/lab/app:latest\"]\n"] {
        let board = Board::new(settings);
        let (index, content) = brought_by_another(&board);
        board.tag("app", "latest", &index, true);
        board.store.tag_pin(&repository("app"), &tag("latest"), settings.is_empty()).unwrap();
        assert_eq!(left(&board, &Busy::default(), &content), stays, "{settings}");
        // Its first repository lets go of it.
        let catalogue = board.catalogue();
        let first = catalogue.find(&repository("brings"), &index).unwrap();
        assert_eq!(catalogue.remove(&board.store, &[first]).unwrap()[0].bytes, 0);
        assert!(!board.is_linked("brings", &index));
        assert_eq!(left(&board, &Busy::default(), &content), stays, "{settings}");
        assert_eq!(board.served("app", "latest"), Some(index));
    }
    // Being downloaded: only a layer of it.
    let board = Board::new("");
    let (index, content) = brought_by_another(&board);
    board.tag("app", "latest", &index, false);
    board.remove_by_hand(&content[2]);
    let busy = Busy { fills: [content[2].clone()].into(), ..Busy::default() };
    assert_eq!(left(&board, &busy, &content), [true, true, false, false]);
    // Being read, by a tag.
    let board = Board::new("");
    let (index, content) = brought_by_another(&board);
    board.tag("app", "latest", &index, true);
    let busy = Busy { repositories: [repository("app")].into(), ..Busy::default() };
    assert_eq!(left(&board, &busy, &content), stays);
    // Being read by digest, in a repository that nothing is known of.
    for of in 0..2 {
        let board = Board::new("");
        let (_, content) = brought_by_another(&board);
        let busy = Busy { roots: [content[of].clone()].into(), ..Busy::default() };
        assert_eq!(left(&board, &busy, &content), stays);
    }
    let board = Board::new("");
    let (_, content) = brought_by_another(&board);
    assert_ne!(left(&board, &Busy::default(), &content), all);
}

#[test]
fn the_first_complete_version_is_served_and_the_owners_choice_before_it() {
    let board = Board::new("");
    let versions: Vec<Digest> =
        ["1", "2", "3"].map(|name| board.image("app", &[&board.blob(name, 10)])).into_iter().collect();
    board.tag("app", "latest", &versions[0], true);
    board.tag("app", "latest", &versions[1], true);
    board.tag("app", "latest", &versions[2], false);
    assert_eq!(board.served("app", "latest"), Some(versions[2].clone()));
    board.remove_by_hand(&board.blob("3", 10));
    assert_eq!(board.served("app", "latest"), Some(versions[1].clone()));
    let rollback = Rollback { from: versions[2].clone(), to: versions[0].clone() };
    board.store.tag_rollback(&repository("app"), &tag("latest"), Some(rollback)).unwrap();
    assert_eq!(board.served("app", "latest"), Some(versions[0].clone()));
    versions.iter().for_each(|version| board.remove_by_hand(version));
    assert_eq!(board.served("app", "latest"), None);
}

#[test]
fn closures_remember_what_manifests_name_and_look_for_blobs_each_time() {
    let board = Board::new("");
    let (one, two) = (board.blob("one", 10), board.blob("two", 20));
    let image = board.image("app", &[&one, &two]);
    let index = board.index("app", &[&image]);
    let closures = Closures::new(&board.store, &board.config);
    let found = closures.of(&repository("app"), &index).unwrap();
    assert!(found.is_complete());
    assert_eq!(found, closures.on_disk(&index).unwrap());
    board.remove_by_hand(&two);
    let found = closures.of(&repository("app"), &index).unwrap();
    assert_eq!(found.absent.keys().collect::<Vec<_>>(), [&two]);
    assert_eq!(found.present.len(), 3);
    board.remove_by_hand(&image);
    assert!(
        closures.of(&repository("app"), &index).unwrap().absent.contains_key(&image),
        "also a manifest that is remembered"
    );
}

#[test]
fn closures_are_right_beyond_what_is_remembered() {
    let board = Board::new("");
    let layers: Vec<Digest> = (0..20).map(|n| board.blob(&format!("layer {n}"), 20)).collect();
    let rounds = budget::NAMED_CHILDREN_MAX / 20 + 20;
    let closures = Closures::new(&board.store, &board.config);
    let images: Vec<Digest> = (0..rounds)
        .map(|round| {
            let own = board.blob(&format!("own {round}"), 20);
            board.image("app", &layers.iter().chain([&own]).collect::<Vec<_>>())
        })
        .collect();
    for image in images.iter().chain(&images) {
        let found = closures.of(&repository("app"), image).unwrap();
        assert!(found.is_complete() && found.present.len() == 22);
    }
}

#[test]
fn walks_visit_everything_once_and_pass_on_what_the_visitor_says() {
    let board = Board::new("");
    let root = board.image("app", &[]);
    let names: Vec<String> = (0..budget::LISTING_STEP + 10).map(|n| format!("{n:04}")).collect();
    names.iter().for_each(|name| board.tag("app", name, &root, false));
    board.tag("other", "latest", &root, false);
    let mut met = Vec::new();
    each_repository(&board.store, |repository| {
        each_tag(&board.store, repository, |tag, _| {
            met.push(format!("{}:{tag}", repository.name));
            Ok::<_, StoreError>(())
        })
    })
    .unwrap();
    let expected = names.iter().map(|name| format!("lab/app:{name}")).chain(["lab/other:latest".to_owned()]);
    assert_eq!(met, expected.collect::<Vec<_>>());
    let mut count = 0;
    let ended = each_tag(&board.store, &repository("app"), |_, _| {
        count += 1;
        if count == 3 { Err(StoreError::Rebuilding) } else { Ok(()) }
    });
    assert!(matches!(ended, Err(StoreError::Rebuilding)) && count == 3);
}

#[test]
fn sizes_that_manifests_state_do_not_overflow() {
    let board = Board::new("");
    let most = i64::MAX;
    let layers: Vec<String> = (0..5)
        .map(|n| {
            let digest = board.name(&format!("huge {n}"), 40);
            format!(r#"{{"mediaType":"layer","digest":"{digest}","size":{most}}}"#)
        })
        .collect();
    let text = format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","layers":[{}]}}"#,
        media::OCI_MANIFEST,
        layers.join(",")
    );
    let digest = Digest::of(Algorithm::Sha256, text.as_bytes());
    let put = |text: &str| {
        let digest = Digest::of(Algorithm::Sha256, text.as_bytes());
        let class = AccessClass::Public;
        board.store.put_manifest(&repository("app"), &digest, media::OCI_MANIFEST, text.as_bytes(), class)
    };
    put(&text).unwrap();
    board.tag("app", "latest", &digest, false);
    let closures = Closures::new(&board.store, &board.config);
    let found = closures.of(&repository("app"), &digest).unwrap();
    assert_eq!(found.absent_bytes(), u64::MAX);
    assert!(found.missing_text().starts_with("5 objects of 18446744.1 TB"), "{}", found.missing_text());
    assert!(!found.summary().complete);
    assert_eq!(board.catalogue().frees(&board.catalogue().unused_since(u64::MAX)), text.len() as u64);
}
