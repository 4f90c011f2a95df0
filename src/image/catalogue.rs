//! Making room: which images there are, which of them stay, and what goes with one (design rule 6).
//!
//! The catalogue is taken from the disk when room is needed and thrown away after: what it costs is paid by those who
//! need room, and it cannot be stale. The choice itself is [`evict::choose`].

use super::closure::closure;
use super::evict::{self, Candidate, Otherwise};
use super::walk::{each_repository, each_tag};
use crate::config::Config;
use crate::oci::{Digest, Manifest, Repository, Tag};
use crate::store::{Store, StoreError, TagRecord};
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// An image on the disk, whole or in parts; or content that belongs to none.
#[derive(Debug, Clone)]
pub struct Stocked {
    /// The repository and the manifest that versions of tags name; `None`: content that no manifest names.
    pub image: Option<(Repository, Digest)>,
    /// The tags one of whose versions it is.
    pub tags: Vec<Tag>,
    candidate: Candidate,
}

/// Everything on the disk, by image.
pub struct Catalogue {
    images: Vec<Stocked>,
    /// Sorted.
    digests: Vec<Digest>,
    sizes: Vec<u64>,
    /// How many images have each of them.
    owners: Vec<u32>,
}

/// What happens in memory only while the server runs.
#[derive(Default)]
pub struct Busy {
    /// Downloads under way.
    pub fills: HashSet<Digest>,
    /// Repositories of which something is being read.
    pub repositories: HashSet<Repository>,
}

/// What went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gone {
    /// In words: the image and its tags.
    pub what: String,
    /// Bytes that are free again.
    pub bytes: u64,
}

impl Catalogue {
    /// Looks at everything on the disk.
    pub fn take(store: &Store, config: &Config, busy: &Busy) -> Result<Catalogue, StoreError> {
        let mut stock = store.stock()?;
        stock.sort_by(|a, b| a.digest.cmp(&b.digest));
        let used: Vec<u64> = stock.iter().map(|blob| blob.used).collect();
        let sizes = stock.iter().map(|blob| blob.size).collect();
        let digests = stock.into_iter().map(|blob| blob.digest).collect();
        let mut catalogue = Catalogue { images: Vec::new(), digests, sizes, owners: vec![0; used.len()] };
        each_repository(store, |repository| {
            let first = catalogue.images.len();
            for image in images_of(store, repository)? {
                let Some(root) = catalogue.place(&image.root) else { continue };
                let kept = image.tags.iter().any(|(tag, record)| {
                    (record.pinned || is_wanted(config, repository, tag))
                        && is_last_version(store, config, record, &image.root)
                });
                let filling = image.members.iter().any(|member| busy.fills.contains(member));
                let parts: Vec<usize> =
                    image.members.iter().filter_map(|member| catalogue.place(member)).collect();
                parts.iter().for_each(|&part| catalogue.owners[part] += 1);
                catalogue.images.push(Stocked {
                    image: Some((repository.clone(), image.root)),
                    tags: image.tags.into_iter().map(|(tag, _)| tag).collect(),
                    candidate: Candidate { used: used[root], keep: kept || filling, parts },
                });
            }
            // What is being read just now is the one that was used last.
            let newest = catalogue.images[first..].iter_mut().max_by_key(|image| image.candidate.used);
            if let (true, Some(newest)) = (busy.repositories.contains(repository), newest) {
                newest.candidate.keep = true;
            }
            Ok(())
        })?;
        for part in (0..used.len()).filter(|&part| catalogue.owners[part] == 0) {
            catalogue.images.push(Stocked {
                image: None,
                tags: Vec::new(),
                candidate: Candidate {
                    used: used[part],
                    keep: busy.fills.contains(&catalogue.digests[part]),
                    parts: vec![part],
                },
            });
        }
        catalogue.owners.iter_mut().filter(|owners| **owners == 0).for_each(|owners| *owners = 1);
        Ok(catalogue)
    }

    /// What would go if so many bytes were needed, the first first.
    pub fn choose(&self, needed: u64, otherwise: Otherwise) -> Vec<&Stocked> {
        let candidates: Vec<Candidate> = self.images.iter().map(|image| image.candidate.clone()).collect();
        evict::choose(&candidates, &self.sizes, needed, otherwise)
            .into_iter()
            .map(|at| &self.images[at])
            .collect()
    }

    /// What may go and was used last at this count or before.
    pub fn unused_since(&self, count: u64) -> Vec<&Stocked> {
        let unused = |image: &&Stocked| !image.candidate.keep && image.candidate.used <= count;
        let mut unused: Vec<&Stocked> = self.images.iter().filter(unused).collect();
        unused.sort_by_key(|image| image.candidate.used);
        unused
    }

    /// The image of a repository with this root.
    pub fn find(&self, repository: &Repository, root: &Digest) -> Option<&Stocked> {
        self.images.iter().find(|stocked| {
            stocked.image.as_ref().is_some_and(|(name, digest)| name == repository && digest == root)
        })
    }

    /// Bytes that would be free if these went together.
    pub fn frees(&self, images: &[&Stocked]) -> u64 {
        self.parts_of(images).into_iter().map(|part| self.sizes[part]).sum()
    }

    /// Removes images, one after the other.
    pub fn remove(&self, store: &Store, victims: &[&Stocked]) -> Result<Vec<Gone>, StoreError> {
        let mut gone: Vec<Gone> = Vec::new();
        for (at, victim) in victims.iter().enumerate() {
            // What goes with this one is what goes with all up to it, less what has gone.
            let before: HashSet<usize> = self.parts_of(&victims[..at]).into_iter().collect();
            let parts = self.parts_of(&victims[..=at]);
            let parts: Vec<usize> = parts.into_iter().filter(|part| !before.contains(part)).collect();
            let digests: Vec<Digest> = parts.iter().map(|&part| self.digests[part].clone()).collect();
            let bytes = parts.iter().map(|&part| self.sizes[part]).sum();
            match &victim.image {
                Some((repository, root)) => {
                    store.evict(repository, root, &links_of(store, repository, root)?, &digests)?;
                }
                None => store.remove_orphans(&digests)?,
            }
            gone.push(Gone { what: victim.words(), bytes });
        }
        Ok(gone)
    }

    /// The content that only these images have.
    fn parts_of(&self, images: &[&Stocked]) -> Vec<usize> {
        let mut going: BTreeMap<usize, u32> = BTreeMap::new();
        for &part in images.iter().flat_map(|image| &image.candidate.parts) {
            *going.entry(part).or_default() += 1;
        }
        going.into_iter().filter(|&(part, count)| count == self.owners[part]).map(|(part, _)| part).collect()
    }

    fn place(&self, digest: &Digest) -> Option<usize> {
        self.digests.binary_search(digest).ok()
    }
}

impl Stocked {
    /// The image and its tags, for people.
    pub fn words(&self) -> String {
        let Some((repository, root)) = &self.image else { return "content that belongs to no image".into() };
        let tags: Vec<&str> = self.tags.iter().map(Tag::as_str).collect();
        let digest = format!("{}:{}", root.algorithm().name(), root.short());
        if tags.is_empty() {
            format!("{repository}@{digest}")
        } else {
            format!("{repository}:{} ({digest})", tags.join(","))
        }
    }
}

/// An image of a repository as its manifests have it.
struct Found {
    root: Digest,
    tags: Vec<(Tag, TagRecord)>,
    /// Everything that the root names, itself included, here or not.
    members: BTreeSet<Digest>,
}

/// The images of a repository: each version of a tag, and each manifest that no other names.
fn images_of(store: &Store, repository: &Repository) -> Result<Vec<Found>, StoreError> {
    let mut children: BTreeMap<Digest, Vec<Digest>> = BTreeMap::new();
    for linked in store.manifests(repository)? {
        let Some(bytes) = store.read_small(&linked.digest)? else { continue };
        let Ok(manifest) = Manifest::parse(&bytes, Some(&linked.media_type)) else { continue };
        children.insert(linked.digest, manifest.children.into_iter().map(|child| child.digest).collect());
    }
    let named: HashSet<Digest> = children.values().flatten().cloned().collect();
    let mut roots: BTreeMap<Digest, Vec<(Tag, TagRecord)>> = BTreeMap::new();
    each_tag(store, repository, |tag, record| {
        for version in record.candidates() {
            roots.entry(version.digest.clone()).or_default().push((tag.clone(), record.clone()));
        }
    })?;
    for digest in children.keys().filter(|digest| !named.contains(digest)) {
        roots.entry(digest.clone()).or_default();
    }
    let found = roots.into_iter().map(|(root, tags)| {
        let mut members = BTreeSet::new();
        let mut left = vec![root.clone()];
        while let Some(digest) = left.pop() {
            if members.insert(digest.clone()) {
                left.extend(children.get(&digest).into_iter().flatten().cloned());
            }
        }
        Found { root, tags, members }
    });
    Ok(found.collect())
}

/// What in a repository only this image is linked to.
fn links_of(store: &Store, repository: &Repository, root: &Digest) -> Result<Vec<Digest>, StoreError> {
    let (mut own, mut others) = (BTreeSet::new(), HashSet::new());
    for image in images_of(store, repository)? {
        if image.root == *root {
            own = image.members;
        } else {
            others.extend(image.members);
        }
    }
    Ok(own.into_iter().filter(|digest| !others.contains(digest)).collect())
}

/// Whether the configuration wants the image to be here always.
fn is_wanted(config: &Config, repository: &Repository, tag: &Tag) -> bool {
    let wanted = config.warm.iter().flat_map(|warm| &warm.images);
    wanted.into_iter().any(|image| image.repository == *repository && image.tag.as_ref() == Some(tag))
}

/// Whether a tag that has to stay needs this version: the one it is served at with the uplink gone, or the one that
/// upstream named and that is on its way.
fn is_last_version(store: &Store, config: &Config, record: &TagRecord, root: &Digest) -> bool {
    if record.seen.as_ref().is_some_and(|seen| seen.digest == *root) {
        return true;
    }
    let whole =
        |digest: &Digest| closure(store, &config.platforms, digest).is_ok_and(|found| found.is_complete());
    record
        .candidates()
        .into_iter()
        .find(|version| whole(&version.digest))
        .is_some_and(|last| last.digest == *root)
}
