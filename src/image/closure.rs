//! Readiness: would this image start with every link down?
//!
//! The closure of a manifest for the wanted platforms is checked on the disk each time: a version is complete only if
//! every manifest and blob of it is there now, and may be served through the repository that is looked at: private content
//! of others is absent. [`Closures`] remembers which content a manifest names, because that cannot change, but looks for
//! each blob every time. Failure is the store's.

use super::needed::needed;
use crate::auth::{AccessClass, Clearance};
use crate::budget;
use crate::config::Config;
use crate::oci::{Descriptor, Digest, Kind, Manifest, Platform, Repository};
use crate::store::{Store, StoreError};
use crate::text::bytes_text;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

/// What a manifest needs, and how much of it is on the disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Closure {
    /// Needed content on the disk, with its size in bytes.
    pub present: BTreeMap<Digest, u64>,
    /// Needed content that is absent, with the size that the manifest states.
    pub absent: BTreeMap<Digest, u64>,
    /// Not all of it is known: a manifest is absent or not readable, or there are too many.
    pub unknown: bool,
}

/// Sizes come from manifests, which may state anything.
fn sum<'a>(sizes: impl Iterator<Item = &'a u64>) -> u64 {
    sizes.fold(0, |sum, size| sum.saturating_add(*size))
}

impl Closure {
    /// Whether nothing is missing.
    pub fn is_complete(&self) -> bool {
        self.absent.is_empty() && !self.unknown
    }

    /// Bytes that are here.
    pub fn present_bytes(&self) -> u64 {
        sum(self.present.values())
    }

    /// Bytes that are missing, as far as is known.
    pub fn absent_bytes(&self) -> u64 {
        sum(self.absent.values())
    }

    /// What is missing, for people: `2 blobs (3.1 MB): sha256:..., sha256:...`.
    pub fn missing_text(&self) -> String {
        if self.absent.is_empty() {
            return if self.unknown { "a manifest that cannot be read".into() } else { "nothing".into() };
        }
        let names: Vec<String> =
            self.absent.keys().take(3).map(|d| format!("{}:{}", d.algorithm().name(), d.short())).collect();
        let more = if self.absent.len() > 3 { ", ..." } else { "" };
        let noun = if self.absent.len() == 1 { "object" } else { "objects" };
        format!(
            "{} {noun} of {} ({}{more})",
            self.absent.len(),
            bytes_text(self.absent_bytes()),
            names.join(", ")
        )
    }

    /// Its sums.
    pub fn summary(&self) -> Summary {
        Summary {
            complete: self.is_complete(),
            present_bytes: self.present_bytes(),
            absent_bytes: self.absent_bytes(),
        }
    }

    fn add(&mut self, other: Closure) {
        self.present.extend(other.present);
        self.absent.extend(other.absent);
        self.unknown |= other.unknown;
    }
}

/// Makes public what of the closure of `root` is here and belongs to a repository: its registry shows the root to everybody,
/// or the owner says that it is for everybody. `private_too`: not only what is of unknown origin.
///
/// # Errors
/// The store's.
pub fn open_to_everybody(
    store: &Store,
    config: &Config,
    repository: &Repository,
    root: &Digest,
    private_too: bool,
) -> Result<(), StoreError> {
    let closure = Closures::new(store, config).of(repository, root)?;
    if !closure.present.contains_key(root) {
        return Ok(());
    }
    for digest in closure.present.keys() {
        let class = store.open_blob(digest)?.map(|blob| blob.class);
        if class == Some(AccessClass::Unproven) || private_too && class == Some(AccessClass::Private) {
            store.make_public(digest)?;
        }
    }
    store.mark_public(repository)
}

/// How much of a manifest's content is on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Nothing is missing.
    pub complete: bool,
    /// Bytes that are here.
    pub present_bytes: u64,
    /// Bytes that are missing, as far as is known.
    pub absent_bytes: u64,
}

/// A piece that has to arrive before an image can be complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lack {
    /// The manifest that needs it, or that it is.
    pub branch: Digest,
    /// The piece.
    pub missing: Digest,
}

/// What a manifest names.
pub(super) struct Named {
    /// Bytes of the manifest itself.
    size: u64,
    /// `None`: it cannot be parsed.
    pub(super) kind: Option<Kind>,
    pub(super) is_container_image: bool,
    pub(super) children: Vec<Descriptor>,
}

/// Closures of many manifests: each manifest is read once for as long as [`budget::NAMED_CHILDREN_MAX`] allows.
pub struct Closures<'a> {
    pub(super) store: &'a Store,
    config: &'a Config,
    pub(super) platforms: &'a [Platform],
    /// Whose view it is: content that they may not see is absent.
    clearance: Clearance,
    /// What was read, and how many manifests and children that is.
    read: RefCell<(HashMap<Digest, Rc<Named>>, usize)>,
    /// Sums of what was looked at, so that a thousand tags of one image cost one look.
    summaries: RefCell<HashMap<(Repository, Digest), Summary>>,
    /// How often content was looked for.
    looks: Cell<usize>,
}

impl<'a> Closures<'a> {
    /// Closures for the platform of the configuration that is nearest to complete, as the owner sees them. Several platforms
    /// are alternatives here: one board runs one of them.
    pub fn new(store: &'a Store, config: &'a Config) -> Self {
        Closures::for_platforms(store, config, &config.platforms)
    }

    /// The same for other platforms.
    pub fn for_platforms(store: &'a Store, config: &'a Config, platforms: &'a [Platform]) -> Self {
        let (read, summaries) = (RefCell::default(), RefCell::default());
        let clearance = Clearance::FULL;
        Closures { store, config, platforms, clearance, read, summaries, looks: Cell::default() }
    }

    /// The same as they are seen by who may read what `clearance` covers.
    #[must_use]
    pub fn seen_with(self, clearance: Clearance) -> Self {
        Closures { clearance, ..self }
    }

    /// The closure of `root` as it can be served through a repository. Of a registry that is not configured all that is on
    /// the disk counts: nothing of it is served.
    ///
    /// # Errors
    /// A manifest or the index cannot be read.
    pub fn of(&self, repository: &Repository, root: &Digest) -> Result<Closure, StoreError> {
        self.walk_through(repository).manifest(root, self.store.blob_size(root).unwrap_or(0), 0)
    }

    fn walk_through<'w>(&'w self, repository: &'w Repository) -> Walk<'w> {
        let configured = self.config.upstream(&repository.registry).is_some();
        Walk { closures: self, through: configured.then_some(repository), manifests: 0 }
    }

    /// The closure of `root` with all that is on the disk, whoever may see it.
    ///
    /// # Errors
    /// A manifest cannot be read.
    pub fn on_disk(&self, root: &Digest) -> Result<Closure, StoreError> {
        let stated = self.store.blob_size(root).unwrap_or(0);
        Walk { closures: self, through: None, manifests: 0 }.manifest(root, stated, 0)
    }

    /// The sums of the closure of `root` in a repository, as they were when it was first asked for.
    ///
    /// # Errors
    /// See [`Closures::of`].
    pub fn summary(&self, repository: &Repository, root: &Digest) -> Result<Summary, StoreError> {
        let name = (repository.clone(), root.clone());
        if let Some(known) = self.summaries.borrow().get(&name) {
            return Ok(*known);
        }
        let summary = self.of(repository, root)?.summary();
        let mut summaries = self.summaries.borrow_mut();
        if summaries.len() >= budget::SUMMARIES_MAX {
            summaries.clear();
        }
        summaries.insert(name, summary);
        Ok(summary)
    }

    /// Whether a manifest is complete in a repository, and if not what it waits for: a piece for each way in which it can
    /// become so, none if there is no way. It can be complete only after one of them has arrived.
    ///
    /// # Errors
    /// See [`Closures::of`].
    pub fn lacks(&self, repository: &Repository, root: &Digest) -> Result<(bool, Vec<Lack>), StoreError> {
        let mut lacks = Vec::new();
        let complete = self.walk_through(repository).lacks(root, 0, &mut lacks)?;
        Ok((complete, lacks))
    }

    /// How often content was looked for so far.
    pub fn looks(&self) -> usize {
        self.looks.get()
    }

    /// What a manifest names; `None` if it is not here. `media_type`: the one it came with.
    pub(super) fn named(
        &self,
        digest: &Digest,
        media_type: Option<&str>,
    ) -> Result<Option<Rc<Named>>, StoreError> {
        let known = self.read.borrow().0.get(digest).cloned();
        if known.is_some() {
            return Ok(known.filter(|_| self.store.contains(digest)));
        }
        let parse = |bytes: &[u8]| {
            let size = bytes.len() as u64;
            match Manifest::parse(bytes, media_type) {
                Ok(Manifest { kind, children, is_container_image, .. }) => {
                    Named { size, kind: Some(kind), is_container_image, children }
                }
                Err(_) => Named { size, kind: None, is_container_image: false, children: Vec::new() },
            }
        };
        let Some(named) = self.store.with_document(digest, parse)? else { return Ok(None) };
        let named = Rc::new(named);
        let mut read = self.read.borrow_mut();
        read.1 += 1 + named.children.len();
        if read.1 > budget::NAMED_CHILDREN_MAX {
            *read = (HashMap::new(), 1 + named.children.len());
        }
        read.0.insert(digest.clone(), Rc::clone(&named));
        Ok(Some(named))
    }
}

struct Walk<'a> {
    closures: &'a Closures<'a>,
    /// The repository that content is served through; `None`: all that is on the disk counts.
    through: Option<&'a Repository>,
    manifests: usize,
}

impl Walk<'_> {
    fn manifest(&mut self, digest: &Digest, stated: u64, depth: usize) -> Result<Closure, StoreError> {
        let mut closure = Closure::default();
        self.manifests += 1;
        if depth > budget::INDEX_DEPTH_MAX || self.manifests > budget::CLOSURE_MANIFESTS_MAX {
            closure.unknown = true;
            return Ok(closure);
        }
        let named = match self.size(digest)? {
            Some(_) => self.closures.named(digest, None)?,
            None => None,
        };
        let Some(named) = named else {
            closure.absent.insert(digest.clone(), stated);
            return Ok(closure);
        };
        closure.present.insert(digest.clone(), named.size);
        match named.kind {
            Some(Kind::Index) => closure.add(self.index(&named, depth)?),
            Some(Kind::Image) => self.contents(&named.children, &mut closure)?,
            None => closure.unknown = true,
        }
        Ok(closure)
    }

    /// The size of content that counts as here.
    fn size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        self.closures.looks.set(self.closures.looks.get() + 1);
        match self.through {
            Some(repository) => self.closures.store.size_through(repository, self.closures.clearance, digest),
            None => Ok(self.closures.store.blob_size(digest)),
        }
    }

    fn contents<'c>(
        &self,
        contents: impl IntoIterator<Item = &'c Descriptor>,
        closure: &mut Closure,
    ) -> Result<(), StoreError> {
        for child in contents.into_iter().filter(|child| !child.optional) {
            match self.size(&child.digest)? {
                Some(size) => closure.present.insert(child.digest.clone(), size),
                None => closure.absent.insert(child.digest.clone(), child.size),
            };
        }
        Ok(())
    }

    /// The first of some contents that is absent.
    fn first_absent<'c>(
        &self,
        contents: impl IntoIterator<Item = &'c Descriptor>,
    ) -> Result<Option<&'c Digest>, StoreError> {
        for child in contents.into_iter().filter(|child| !child.optional) {
            if self.size(&child.digest)?.is_none() {
                return Ok(Some(&child.digest));
            }
        }
        Ok(None)
    }

    /// See [`Closures::lacks`].
    fn lacks(&mut self, digest: &Digest, depth: usize, lacks: &mut Vec<Lack>) -> Result<bool, StoreError> {
        self.manifests += 1;
        if depth > budget::INDEX_DEPTH_MAX || self.manifests > budget::CLOSURE_MANIFESTS_MAX {
            return Ok(false);
        }
        let lack = |missing: &Digest| Lack { branch: digest.clone(), missing: missing.clone() };
        let named = match self.size(digest)? {
            Some(_) => self.closures.named(digest, None)?,
            None => None,
        };
        let Some(named) = named else {
            lacks.push(lack(digest));
            return Ok(false);
        };
        match named.kind {
            Some(Kind::Index) => {
                let needed = needed(&named, self.closures.platforms);
                if let Some(absent) = self.first_absent(needed.all)? {
                    lacks.push(lack(absent));
                    return Ok(false);
                }
                for child in &needed.any {
                    if self.lacks(&child.digest, depth + 1, lacks)? {
                        return Ok(true);
                    }
                }
                Ok(needed.any.is_empty())
            }
            Some(Kind::Image) => {
                let absent = self.first_absent(&named.children)?;
                lacks.extend(absent.map(lack));
                Ok(absent.is_none())
            }
            None => Ok(false),
        }
    }

    /// All content that an index needs, and the nearest to complete of the manifests of which it needs one.
    fn index(&mut self, index: &Named, depth: usize) -> Result<Closure, StoreError> {
        let needed = needed(index, self.closures.platforms);
        let mut closure = Closure::default();
        self.contents(needed.all, &mut closure)?;
        let mut best: Option<Closure> = None;
        for child in needed.any {
            let found = self.manifest(&child.digest, child.size, depth + 1)?;
            let complete = found.is_complete();
            let nearer = |known: &Closure| found.present_bytes() > known.present_bytes();
            if complete || best.as_ref().is_none_or(nearer) {
                best = Some(found);
            }
            if complete {
                break;
            }
        }
        closure.add(best.unwrap_or_default());
        Ok(closure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    #[test]
    fn sizes_that_no_disk_holds_do_not_wrap_around() {
        let sizes = [i64::MAX.cast_unsigned(); 3];
        let absent = sizes.iter().zip(0u8..).map(|(size, n)| (Digest::of(Algorithm::Sha256, &[n]), *size));
        let closure = Closure { absent: absent.collect(), ..Closure::default() };
        assert_eq!((closure.present_bytes(), closure.absent_bytes()), (0, u64::MAX));
        assert!(closure.missing_text().starts_with("3 objects"), "{}", closure.missing_text());
    }
}
