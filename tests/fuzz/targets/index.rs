//! Records of the index, as a damaged card or another Larder may have left them.
//!
//! They are sealed as Larder seals them, and the tally is theirs, so that what lies behind the checksums is reached. A line
//! is a table's letter with a key, a space and a text: `t #1;latest {...}` with `#1;` for the number 1 in four bytes and
//! `=sha256:...;` for a digest's key. A line behind a `!` has a wrong checksum. What comes behind `==` is the journal.

use super::{Folder, NEXT_ANSWER, sealed_lines};
use heed::types::Bytes;
use heed::{CommitOrAbort, EnvFlags, EnvOpenOptions};
use larder::auth::AccessClass;
use larder::config::Config;
use larder::control::{Admin, AdminRequest};
use larder::demo::image::SampleImage;
use larder::image::{Busy, Catalogue};
use larder::oci::{Algorithm, Digest, Reference, Repository, Tag};
use larder::store::{Observation, Rollback, Store, StoreError};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::LazyLock;

static IMAGE: LazyLock<SampleImage> = LazyLock::new(|| SampleImage::multi_arch(1, &[300]));
/// The longest key that LMDB takes.
const KEY_BYTES_MAX: usize = 511;
/// More than any index holds here.
const RECORDS_MAX: usize = 2_000;

/// A store with such an index and an image on the disk: every command and every change has an answer, and what they leave
/// is sound.
pub fn index(data: &[u8]) {
    let at = data.windows(NEXT_ANSWER.len()).position(|window| window == NEXT_ANSWER);
    let (records, journal) = match at {
        Some(at) => (&data[..at], &data[at + NEXT_ANSWER.len()..]),
        None => (data, &b"{\"format\":2,\"generation\":1}"[..]),
    };
    let folder = Folder::new();
    let config = folder.config("http://127.0.0.1:1", "");
    put_files(&config.data_dir, &sealed_lines(journal));
    write_index(&config.data_dir.join("index"), records);
    if !commands(&config) {
        return;
    }
    changes(&config);
    let before = said(&config, false);
    assert_eq!(said(&config, true), before, "another start finds something else");
}

fn put_files(data_dir: &Path, journal: &[u8]) {
    std::fs::create_dir_all(data_dir.join("index")).expect("a folder");
    std::fs::write(data_dir.join("journal"), journal).expect("the folder takes a file");
    let blobs = data_dir.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).expect("a folder");
    let manifests = IMAGE.manifests.iter().map(|(digest, (_, bytes))| (digest, bytes));
    for (digest, bytes) in IMAGE.blobs.iter().chain(manifests) {
        std::fs::write(blobs.join(digest.hex()), bytes).expect("the folder takes a file");
    }
}

fn write_index(folder: &Path, lines: &[u8]) {
    let mut records: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    let mut put = |key: Vec<u8>, text: &[u8], right: bool| {
        if (1..=KEY_BYTES_MAX).contains(&key.len()) {
            let mut sum = Digest::of(Algorithm::Sha256, &[&key[..], text].concat()).bytes()[..8].to_vec();
            sum[0] ^= u8::from(!right);
            records.insert(key, [&sum[..], text].concat());
        }
    };
    put(b"mschema".to_vec(), b"3", true);
    put(b"mmark".to_vec(), br#"{"generation":1,"offset":0,"sequence":0}"#, true);
    put(b"mstored".to_vec(), br#"{"blobs":0,"bytes":0}"#, true);
    let mut tally = None;
    for line in lines.split(|byte| *byte == b'\n').take(RECORDS_MAX) {
        let (line, right) = line.strip_prefix(b"!").map_or((line, true), |line| (line, false));
        let Some((table, rest)) = line.split_first().filter(|(_, rest)| rest.starts_with(b" ")) else {
            continue;
        };
        let end = rest[1..].iter().position(|byte| *byte == b' ').map_or(rest.len(), |at| at + 1);
        let key = [&[*table][..], &key_of(&rest[1..end])].concat();
        let text = rest.get(end + 1..).unwrap_or_default();
        match &key[..] {
            b"mtally" => tally = Some(text),
            _ => put(key, text, right),
        }
    }
    let count = records.len();
    let sums = records.values().filter_map(|record| record.first_chunk());
    let sum = sums.fold(0u64, |sum, first| sum.wrapping_add(u64::from_be_bytes(*first)));
    let text = format!("{{\"records\":{count},\"sum\":{sum}}}").into_bytes();
    let text = tally.unwrap_or(&text);
    let checksum = Digest::of(Algorithm::Sha256, &[b"mtally", text].concat()).bytes()[..8].to_vec();
    records.insert(b"mtally".to_vec(), [&checksum[..], text].concat());
    write_lmdb(folder, &records);
}

/// A key with its numbers and digests put in.
fn key_of(mut text: &[u8]) -> Vec<u8> {
    let mut key = Vec::new();
    while let Some((first, rest)) = text.split_first() {
        let end = rest.iter().position(|byte| *byte == b';');
        let word = end.and_then(|end| std::str::from_utf8(&rest[..end]).ok());
        let bytes = word.and_then(|word| match first {
            b'#' => word.parse::<u32>().ok().map(|number| number.to_be_bytes().to_vec()),
            b'=' => word.parse::<Digest>().ok().map(|digest| digest.key()),
            _ => None,
        });
        match (bytes, end) {
            (Some(bytes), Some(end)) => {
                key.extend(bytes);
                text = &rest[end + 1..];
            }
            _ => {
                key.push(*first);
                text = rest;
            }
        }
    }
    key
}

#[allow(unsafe_code)]
fn write_lmdb(folder: &Path, records: &BTreeMap<Vec<u8>, Vec<u8>>) {
    let mut options = EnvOpenOptions::new().read_txn_without_tls();
    options.map_size(64 << 20);
    // SAFETY: the folder is this call's alone, and what a power cut leaves of it is nobody's concern.
    let env = unsafe { options.flags(EnvFlags::NO_SYNC).open(folder) }.expect("an environment");
    let txn = env.write_txn().expect("a transaction");
    let created = env.create_databases_and_commit(txn, |creator, txn| {
        creator.create_database::<Bytes, Bytes>(txn, None).map(CommitOrAbort::<_, ()>::Commit)
    });
    let database = created.expect("a database").unwrap_commit();
    let mut txn = env.write_txn().expect("a transaction");
    for (key, value) in records {
        database.put(&mut txn, key, value).expect("a record");
    }
    txn.commit().expect("a commit");
    env.prepare_for_closing().wait();
}

/// What an owner does with a stopped server's store; whether it can be opened at all.
fn commands(config: &Config) -> bool {
    let admin = match Admin::open(config) {
        Ok(admin) => admin,
        Err(problem) => {
            assert!(matches!(problem, StoreError::Newer { .. }), "it cannot be rebuilt: {problem}");
            return false;
        }
    };
    let image: Reference = "docker.io/lab/app:latest".parse().expect("a reference");
    let requests = [
        AdminRequest::Status,
        AdminRequest::Ls,
        AdminRequest::Why { image: image.clone() },
        AdminRequest::History { image: image.clone() },
        AdminRequest::Verify { repair: true },
        AdminRequest::Pin { image: image.clone(), pinned: true },
        AdminRequest::Rollback { image: image.clone(), to: None },
        AdminRequest::Ls,
        AdminRequest::Rm { image },
        AdminRequest::Ls,
    ];
    for request in requests {
        let mut answers = 0;
        admin.execute(&request, &mut |_| {
            answers += 1;
            Ok(())
        });
        assert!(answers > 0 || matches!(request, AdminRequest::Ls), "no answer to {request:?}");
    }
    true
}

/// What a server does with its store. A failure is an answer, and what is damaged is rebuilt.
fn changes(config: &Config) {
    let (store, startup) = Store::open(&config.data_dir, 3).expect("it was opened before");
    startup.finish(&store).expect("it can be rebuilt");
    let app: Repository = "docker.io/lab/app".parse().expect("a repository");
    let tag = Tag::latest();
    let root = &IMAGE.root;
    let (media_type, bytes) = &IMAGE.manifests[root];
    let other = Digest::of(Algorithm::Sha256, b"other");
    for class in [AccessClass::Public, AccessClass::Private] {
        drop(store.put_manifest(&app, root, media_type, bytes, class));
    }
    drop(store.tag_seen(&app, &tag, &Observation::upstream(root.clone())));
    drop(store.tag_complete(&app, &tag, root));
    drop(store.tag_seen(&app, &tag, &Observation::upstream(other.clone())));
    drop(store.tag_offered(&app, &tag, &Observation::peer(root.clone()), Some(9)));
    drop(store.tag_rollback(&app, &tag, Some(Rollback { from: other.clone(), to: root.clone() })));
    for digest in IMAGE.blobs.keys().chain(IMAGE.manifests.keys()) {
        store.touch(digest);
        drop((store.link(&app, digest), store.links_to(digest), store.referrers(&app, digest)));
        drop((store.hold(&app, digest), store.recheck(digest)));
    }
    drop((store.flush_touches(), store.mark_private(&app), store.manifests(&app), store.stock()));
    if let Ok(catalogue) = Catalogue::take(&store, config, &Busy::default()) {
        let victims = catalogue.choose_for_others(1 << 40, 1 << 20, true);
        drop((catalogue.frees(&victims), catalogue.remove(&store, &victims)));
    }
    drop(store.remove_orphans(&[other]));
}

/// What a store says about its tags. One that has an error to say is made anew, as a server does it, and says it then.
fn said(config: &Config, again: bool) -> Vec<String> {
    let (store, startup) = Store::open(&config.data_dir, 3).expect("it was opened before");
    assert!(!again || !startup.needs_rebuild(), "what was left is not sound");
    startup.finish(&store).expect("it can be rebuilt");
    if let Ok(said) = all_of(&store) {
        return said;
    }
    assert!(!again, "what was left is not sound");
    store.recover().expect("it can be rebuilt");
    all_of(&store).expect("it is new")
}

fn all_of(store: &Store) -> Result<Vec<String>, StoreError> {
    store.check_index()?;
    let mut said = Vec::new();
    for repository in store.repositories(None, 1_000)? {
        for (tag, record) in store.tags(&repository, None, 1_000)? {
            said.push(format!("{repository}:{tag} {record:?}"));
        }
    }
    Ok(said)
}
