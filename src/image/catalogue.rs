//! Making room: which images there are, which of them must stay, and what is removed with one (rule 6).
//!
//! The catalogue is read from the disk when room is needed and dropped afterwards, so it cannot be stale. Each manifest is
//! read once, and it tells which content its image needs. [`evict::choose`] makes the choice. Failure is the store's; what
//! was removed before it stays removed.

use super::closure::{Closures, Named};
use super::evict::{self, Candidate, Otherwise, Worth};
use super::walk::{each_repository, each_tag, served};
use crate::budget;
use crate::config::Config;
use crate::oci::{Digest, RegistryName, Repository, Tag};
use crate::store::{Store, StoreError, TagRecord};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};

/// An image on the disk, complete or in parts; or content that belongs to none.
#[derive(Debug, Clone)]
pub struct Stocked {
    /// The repository and the manifest that versions of tags name; `None`: content that no manifest names.
    pub image: Option<(Repository, Digest)>,
    /// The tags one of whose versions it is.
    pub tags: Vec<Tag>,
    /// It is being fetched or read, and stays whatever happens.
    busy: bool,
    candidate: Candidate,
}

/// Everything on the disk, by image.
pub struct Catalogue {
    images: Vec<Stocked>,
    /// Versions of tags whose manifest is not here, by repository and place.
    absent: Vec<(Repository, usize)>,
    /// The blobs on the disk, sorted; then content that manifests name and that is absent.
    digests: Vec<Digest>,
    /// How many of them are on the disk.
    stocked: usize,
    /// Bytes of each; 0 for what is absent.
    sizes: Vec<u64>,
    /// How many images need each of them.
    owners: Vec<u32>,
}

/// What must not be removed now; empty while no server runs.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Busy {
    /// Downloads under way.
    pub fills: HashSet<Digest>,
    /// Repositories whose content is being read.
    pub repositories: HashSet<Repository>,
    /// Manifests by whose digest content is being read, whichever repository brought them.
    pub roots: HashSet<Digest>,
    /// Registries that cannot be reached: what they cannot give again goes after what others can.
    pub unreachable: HashSet<RegistryName>,
}

/// What was removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gone {
    /// For people: the image and its tags.
    pub what: String,
    /// Bytes that are free again.
    pub bytes: u64,
    /// The owner wanted it to stay.
    pub wanted: bool,
}

impl Catalogue {
    /// Looks at everything on the disk.
    ///
    /// # Errors
    /// The disk cannot be listed, or the index or a manifest cannot be read.
    pub fn take(store: &Store, config: &Config, busy: &Busy) -> Result<Catalogue, StoreError> {
        let mut stock = store.stock()?;
        stock.sort_by(|a, b| a.digest.cmp(&b.digest));
        let used: Vec<u64> = stock.iter().map(|blob| blob.used).collect();
        let mut catalogue = Catalogue {
            images: Vec::new(),
            absent: Vec::new(),
            sizes: stock.iter().map(|blob| blob.size).collect(),
            digests: stock.into_iter().map(|blob| blob.digest).collect(),
            stocked: used.len(),
            owners: vec![0; used.len()],
        };
        let closures = Closures::new(store, config);
        let mut absent = AbsentPlaces::default();
        each_repository(store, |repository| {
            let first = catalogue.images.len();
            let stock = &catalogue.digests[..catalogue.stocked];
            let found =
                images_of(&closures, config, repository, &|digest| stock.binary_search(digest).is_ok())?;
            for image in found {
                let root = catalogue.place(&image.root, &mut absent);
                if root >= catalogue.stocked {
                    catalogue.absent.push((repository.clone(), root));
                    continue;
                }
                let is_busy = |member: &Digest| busy.fills.contains(member) || busy.roots.contains(member);
                let in_use = image.members.iter().any(is_busy);
                let parts: Vec<usize> =
                    image.members.iter().map(|member| catalogue.place(member, &mut absent)).collect();
                parts.iter().for_each(|&part| catalogue.owners[part] += 1);
                let worth = match (image.keep, busy.unreachable.contains(&repository.registry)) {
                    (true, _) => Worth::Wanted,
                    (false, true) => Worth::Irreplaceable,
                    (false, false) => Worth::Replaceable,
                };
                catalogue.images.push(Stocked {
                    image: Some((repository.clone(), image.root)),
                    tags: image.tags,
                    busy: in_use,
                    candidate: Candidate { worth, used: used[root], keep: image.keep || in_use, parts },
                });
            }
            // The image that is being read is the one that was used last.
            let newest = catalogue.images[first..].iter_mut().max_by_key(|image| image.candidate.used);
            if let (true, Some(newest)) = (busy.repositories.contains(repository), newest) {
                (newest.candidate.keep, newest.busy) = (true, true);
            }
            Ok::<_, StoreError>(())
        })?;
        for part in (0..used.len()).filter(|&part| catalogue.owners[part] == 0) {
            let keep = busy.fills.contains(&catalogue.digests[part]);
            let candidate = Candidate { worth: Worth::Unnamed, used: used[part], keep, parts: vec![part] };
            catalogue.images.push(Stocked { image: None, tags: Vec::new(), busy: keep, candidate });
        }
        catalogue.owners.iter_mut().filter(|owners| **owners == 0).for_each(|owners| *owners = 1);
        Ok(catalogue)
    }

    /// The images that would be removed if `needed` bytes were needed, in that order.
    pub fn choose(&self, needed: u64, otherwise: Otherwise) -> Vec<&Stocked> {
        let candidates: Vec<Candidate> = self.images.iter().map(|image| image.candidate.clone()).collect();
        self.victims(&candidates, &self.sizes, needed, otherwise)
    }

    /// The images that give way where others fill the file system: they free `needed` bytes and `step` more, so that this
    /// is not soon to be done again. If that cannot be, `needed` bytes are freed, or all goes that may. `wanted`: what the
    /// owner wants to stay goes too, if that is enough.
    pub fn choose_for_others(&self, needed: u64, step: u64, wanted: bool) -> Vec<&Stocked> {
        if wanted {
            let all = self.images.iter();
            let all: Vec<_> =
                all.map(|image| Candidate { keep: image.busy, ..image.candidate.clone() }).collect();
            return self.victims(&all, &self.sizes, needed, Otherwise::Nothing);
        }
        let most = self.choose(needed.saturating_add(step), Otherwise::Nothing);
        if most.is_empty() { self.choose(needed, Otherwise::Everything) } else { most }
    }

    /// The images that go so that so many files fewer are on the disk; none if that cannot be.
    pub fn choose_files(&self, files: u64) -> Vec<&Stocked> {
        let candidates: Vec<Candidate> = self.images.iter().map(|image| image.candidate.clone()).collect();
        let each: Vec<u64> = (0..self.sizes.len()).map(|part| u64::from(part < self.stocked)).collect();
        self.victims(&candidates, &each, files, Otherwise::Nothing)
    }

    fn victims(
        &self,
        candidates: &[Candidate],
        sizes: &[u64],
        needed: u64,
        otherwise: Otherwise,
    ) -> Vec<&Stocked> {
        let chosen = evict::choose(candidates, sizes, needed, otherwise);
        chosen.into_iter().map(|at| &self.images[at]).collect()
    }

    /// The images that may be removed and were last used at this count or before.
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

    /// Blobs on the disk.
    pub fn blobs(&self) -> u64 {
        self.stocked as u64
    }

    /// Bytes that would be free if these were removed together.
    pub fn frees(&self, images: &[&Stocked]) -> u64 {
        let mut going: BTreeMap<usize, u32> = BTreeMap::new();
        for &part in images.iter().flat_map(|image| &image.candidate.parts) {
            *going.entry(part).or_default() += 1;
        }
        let alone = going.into_iter().filter(|&(part, count)| count == self.owners[part]);
        alone.fold(0, |sum: u64, (part, _)| sum.saturating_add(self.sizes[part]))
    }

    /// Removes images, one after the other.
    ///
    /// # Errors
    /// The journal, the index or the disk refuses; images that come later are still there.
    pub fn remove(&self, store: &Store, victims: &[&Stocked]) -> Result<Vec<Gone>, StoreError> {
        let (mut owners, mut links) = (self.owners.clone(), self.links_of(victims));
        let mut gone: Vec<Gone> = Vec::new();
        for victim in victims {
            // Content that no remaining image needs is removed with this one.
            let (mut digests, mut unlinked, mut bytes) = (Vec::new(), Vec::new(), 0);
            for &part in &victim.candidate.parts {
                owners[part] -= 1;
                if owners[part] == 0 && part < self.stocked {
                    digests.push(self.digests[part].clone());
                    bytes += self.sizes[part];
                }
                let left = victim.image.as_ref().and_then(|(name, _)| links.get_mut(&(name, part)));
                if let Some(left) = left {
                    *left -= 1;
                    if *left == 0 {
                        unlinked.push(self.digests[part].clone());
                    }
                }
            }
            match &victim.image {
                Some((repository, root)) => store.evict(repository, root, &unlinked, &digests)?,
                None => store.remove_orphans(&digests)?,
            }
            let wanted = victim.candidate.worth == Worth::Wanted;
            gone.push(Gone { what: victim.description(), bytes, wanted });
        }
        Ok(gone)
    }

    /// How many images of each victim's repository need each part.
    fn links_of(&self, victims: &[&Stocked]) -> HashMap<(&Repository, usize), u32> {
        let concerned: HashSet<&Repository> =
            victims.iter().filter_map(|victim| Some(&victim.image.as_ref()?.0)).collect();
        let mut links = HashMap::new();
        let mut count = |repository, part| {
            if concerned.contains(repository) {
                *links.entry((repository, part)).or_default() += 1;
            }
        };
        for stocked in &self.images {
            let Some((repository, _)) = &stocked.image else { continue };
            stocked.candidate.parts.iter().for_each(|&part| count(repository, part));
        }
        self.absent.iter().for_each(|(repository, root)| count(repository, *root));
        links
    }

    /// The place of a digest in `digests`; absent content is added at the end.
    fn place(&mut self, digest: &Digest, absent: &mut AbsentPlaces) -> usize {
        if let Ok(at) = self.digests[..self.stocked].binary_search(digest) {
            return at;
        }
        let mut hash = absent.hasher.hash_one(digest);
        while let Some(&at) = absent.places.get(&hash) {
            if self.digests[at] == *digest {
                return at;
            }
            hash = hash.wrapping_add(1);
        }
        let at = self.digests.len();
        absent.places.insert(hash, at);
        self.digests.push(digest.clone());
        self.sizes.push(0);
        self.owners.push(0);
        at
    }
}

/// The places of absent content by a hash of its digest, which is a quarter of the digest's size: manifests may name much
/// that is not here.
#[derive(Default)]
struct AbsentPlaces {
    hasher: RandomState,
    places: HashMap<u64, usize>,
}

impl Stocked {
    /// The image and its tags, for people.
    pub fn description(&self) -> String {
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
    tags: Vec<Tag>,
    /// A pinned or configured tag needs it.
    keep: bool,
    /// All that the root names, itself included, here or not.
    members: BTreeSet<Digest>,
}

/// What manifests name, and whether as a manifest.
type Children = BTreeMap<Digest, Vec<(Digest, bool)>>;

fn children_of(named: &Named) -> Vec<(Digest, bool)> {
    named.children.iter().map(|child| (child.digest.clone(), child.is_manifest())).collect()
}

/// The images of a repository: each version of a tag, and each manifest that no other names. `is_here`: whether content is
/// on the disk.
fn images_of(
    closures: &Closures<'_>,
    config: &Config,
    repository: &Repository,
    is_here: &dyn Fn(&Digest) -> bool,
) -> Result<Vec<Found>, StoreError> {
    let mut children = Children::new();
    for linked in closures.store.manifests(repository)? {
        let named = closures.named(&linked.digest, Some(&linked.media_type))?;
        if let Some(named) = named.filter(|named| named.kind.is_some()) {
            children.insert(linked.digest, children_of(&named));
        }
    }
    let named: HashSet<&Digest> = children.values().flatten().map(|(child, _)| child).collect();
    let (mut roots, mut kept) = (BTreeMap::<Digest, Vec<Tag>>::new(), HashSet::new());
    each_tag(closures.store, repository, |tag, record| {
        for version in record.candidates() {
            roots.entry(version.digest.clone()).or_default().push(tag.clone());
        }
        // The version that is served with every link down, also if it waits for credentials that the configuration has
        // lost, and the one that upstream named last.
        if record.pinned || is_wanted(config, repository, tag) {
            kept.extend(served(closures, repository, record)?.map(|(version, _)| version.digest.clone()));
            kept.extend(first_on_disk(closures, record)?);
            kept.extend(record.seen.as_ref().map(|seen| seen.digest.clone()));
        }
        Ok::<_, StoreError>(())
    })?;
    for digest in children.keys().filter(|digest| !named.contains(digest)) {
        roots.entry(digest.clone()).or_default();
    }
    let found = roots.into_iter().map(|(root, tags)| {
        let members = members_of(closures, &children, &root, is_here)?;
        Ok(Found { keep: kept.contains(&root), root, tags, members })
    });
    found.collect()
}

/// All that a manifest names, itself included. A manifest that another repository brought is read too: it belongs to the
/// image all the same.
fn members_of(
    closures: &Closures<'_>,
    linked: &Children,
    root: &Digest,
    is_here: &dyn Fn(&Digest) -> bool,
) -> Result<BTreeSet<Digest>, StoreError> {
    let (mut members, mut left) = (BTreeSet::new(), vec![(root.clone(), true)]);
    let mut reads = 0;
    while let Some((digest, is_manifest)) = left.pop() {
        if members.contains(&digest) {
            continue;
        }
        if let Some(children) = linked.get(&digest) {
            left.extend(children.iter().cloned());
        } else if is_manifest && reads < budget::CLOSURE_MANIFESTS_MAX && is_here(&digest) {
            reads += 1;
            let named = closures.named(&digest, None)?;
            left.extend(named.iter().flat_map(|named| children_of(named)));
        }
        members.insert(digest);
    }
    Ok(members)
}

/// The first version of which everything is on the disk, whoever may see it.
fn first_on_disk(closures: &Closures<'_>, record: &TagRecord) -> Result<Option<Digest>, StoreError> {
    for version in record.candidates() {
        if closures.on_disk(&version.digest)?.is_complete() {
            return Ok(Some(version.digest.clone()));
        }
    }
    Ok(None)
}

/// Whether the configuration protects the image from removal.
fn is_wanted(config: &Config, repository: &Repository, tag: &Tag) -> bool {
    let wanted = config.warm.iter().flat_map(|warm| &warm.images);
    wanted.into_iter().any(|image| image.repository == *repository && image.tag.as_ref() == Some(tag))
}
