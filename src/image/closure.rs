//! Readiness: would this image start with every link down?
//!
//! The closure of a manifest for the wanted platforms is checked on the disk each time: a version is complete only if
//! every manifest and blob of it is there now. [`Closures`] remembers which content a manifest names, because that cannot
//! change, but looks for each blob every time. Failure is the store's.

use crate::budget;
use crate::oci::{Descriptor, Digest, Kind, Manifest, Platform};
use crate::store::{Store, StoreError};
use crate::text::bytes_text;
use std::cell::RefCell;
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

    fn add(&mut self, other: Closure) {
        self.present.extend(other.present);
        self.absent.extend(other.absent);
        self.unknown |= other.unknown;
    }
}

/// The closure of `root` for the platform among `platforms` that is nearest to complete. Several platforms are
/// alternatives here: one board runs one of them.
///
/// # Errors
/// A manifest cannot be read.
pub fn closure(store: &Store, platforms: &[Platform], root: &Digest) -> Result<Closure, StoreError> {
    Closures::new(store, platforms).of(root)
}

/// What a manifest names.
pub(super) struct Named {
    /// Bytes of the manifest itself.
    size: u64,
    /// `None`: it cannot be parsed.
    pub(super) kind: Option<Kind>,
    pub(super) children: Vec<Descriptor>,
}

/// Closures of many manifests: each manifest is read once for as long as [`budget::NAMED_CHILDREN_MAX`] allows.
pub struct Closures<'a> {
    pub(super) store: &'a Store,
    platforms: &'a [Platform],
    /// What was read, and how many manifests and children that is.
    read: RefCell<(HashMap<Digest, Rc<Named>>, usize)>,
}

impl<'a> Closures<'a> {
    /// Closures for the platform among `platforms` that is nearest to complete.
    pub fn new(store: &'a Store, platforms: &'a [Platform]) -> Self {
        Closures { store, platforms, read: RefCell::default() }
    }

    /// The closure of `root`, see [`closure`].
    ///
    /// # Errors
    /// A manifest cannot be read.
    pub fn of(&self, root: &Digest) -> Result<Closure, StoreError> {
        let stated = self.store.blob_size(root).unwrap_or(0);
        Walk { closures: self, manifests: 0 }.manifest(root, stated, 0)
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
        let Some(bytes) = self.store.read_small(digest)? else { return Ok(None) };
        let manifest = Manifest::parse(&bytes, media_type).ok();
        let (kind, children) = manifest.map(|manifest| (manifest.kind, manifest.children)).unzip();
        let children = children.unwrap_or_default();
        let named = Rc::new(Named { size: bytes.len() as u64, kind, children });
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
        let Some(named) = self.closures.named(digest, None)? else {
            closure.absent.insert(digest.clone(), stated);
            return Ok(closure);
        };
        closure.present.insert(digest.clone(), named.size);
        match named.kind {
            Some(Kind::Index) => closure.add(self.index(&named, depth)?),
            Some(Kind::Image) => self.image(&named, &mut closure),
            None => closure.unknown = true,
        }
        Ok(closure)
    }

    fn image(&self, manifest: &Named, closure: &mut Closure) {
        for child in manifest.children.iter().filter(|child| !child.optional) {
            match self.closures.store.blob_size(&child.digest) {
                Some(size) => closure.present.insert(child.digest.clone(), size),
                None => closure.absent.insert(child.digest.clone(), child.size),
            };
        }
    }

    /// The nearest to complete of the children that run here; of all children where none states that it does.
    fn index(&mut self, index: &Named, depth: usize) -> Result<Closure, StoreError> {
        let children: Vec<&Descriptor> = index.children.iter().filter(|child| child.is_manifest()).collect();
        let mut suitable: Vec<(u8, &Descriptor)> =
            children.iter().filter_map(|child| Some((self.suits(child)?, *child))).collect();
        if suitable.is_empty() {
            suitable = children.iter().map(|child| (0, *child)).collect();
        }
        // The best match first, so that of equally incomplete ones the right one is named as missing.
        suitable.sort_by_key(|(preference, _)| std::cmp::Reverse(*preference));
        let mut best: Option<Closure> = None;
        for (_, child) in suitable {
            let found = self.manifest(&child.digest, child.size, depth + 1)?;
            if found.is_complete() {
                return Ok(found);
            }
            let nearer = |known: &Closure| found.present_bytes() > known.present_bytes();
            if best.as_ref().is_none_or(nearer) {
                best = Some(found);
            }
        }
        Ok(best.unwrap_or_default())
    }

    fn suits(&self, child: &Descriptor) -> Option<u8> {
        match &child.platform {
            Some(offered) => {
                self.closures.platforms.iter().filter_map(|wanted| wanted.preference(offered)).max()
            }
            None => Some(0),
        }
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
