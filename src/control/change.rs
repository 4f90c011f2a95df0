//! `rollback`, `pin`, `unpin` and `rm`: commands that change the store. Failure is the store's, and what was changed
//! before it stays changed.

use super::{Admin, Problem, unknown};
use crate::image::{first_complete, served};
use crate::oci::{Digest, Reference};
use crate::store::Rollback;
use crate::text::bytes_text;

impl Admin {
    pub(super) fn rollback(&self, image: &Reference, to: Option<&Digest>) -> Result<String, Problem> {
        let (repository, tag, record) = self.tag(image)?;
        let newest =
            record.seen.as_ref().or(record.complete.as_ref()).ok_or_else(|| unknown(image))?.digest.clone();
        let closures = self.closures();
        // A peer's version that is newer than upstream's is what is served with every link down.
        let offered = record.offered().map(|version| &version.digest).filter(|digest| **digest != newest);
        let to = match to.or(image.digest.as_ref()) {
            Some(digest) => digest.clone(),
            None => {
                let present =
                    record.rollback.as_ref().map(|rollback| &rollback.to).or(offered).unwrap_or(&newest);
                // Newest first, without the current rollback. Not by count: a version may become complete only after
                // upstream has named the next.
                let mut plain = record.clone();
                plain.rollback = None;
                let order = plain.candidates();
                let at = order.iter().position(|version| version.digest == *present);
                let earlier = order[at.map_or(0, |at| at + 1)..].iter().copied();
                let best = first_complete(&closures, repository, earlier)?;
                let (best, _) =
                    best.ok_or_else(|| Problem(format!("{image} has no earlier complete version")))?;
                best.digest.clone()
            }
        };
        if !record.candidates().iter().any(|version| version.digest == to) {
            return Err(Problem(format!(
                "{to} is not a version of {image}; larder history {image} lists them"
            )));
        }
        let found = closures.of(repository, &to)?;
        if !found.is_complete() {
            return Err(Problem(format!("{to} is not complete: it lacks {}", found.missing_text())));
        }
        if to == newest && offered.is_none() {
            self.store.tag_rollback(repository, tag, None)?;
            return Ok(format!("{repository}:{tag} follows upstream again, at {to}"));
        }
        self.store.tag_rollback(repository, tag, Some(Rollback { from: newest.clone(), to: to.clone() }))?;
        Ok(format!("{repository}:{tag} is served at {to} until upstream moves on from {newest}"))
    }

    pub(super) fn pin(&self, image: &Reference, pinned: bool) -> Result<String, Problem> {
        let (repository, tag, record) = self.tag(image)?;
        self.store.tag_pin(repository, tag, pinned)?;
        let name = format!("{repository}:{tag}");
        Ok(match (pinned, served(&self.closures(), repository, &record)?.is_some()) {
            (false, _) => format!("{name} may go when room is needed"),
            (true, true) => format!("{name} stays: its last complete version is never removed to make room"),
            (true, false) => format!("{name} stays once it is complete; so far it is not"),
        })
    }

    pub(super) fn rm(&self, image: &Reference) -> Result<String, Problem> {
        let (repository, tag, record) = self.tag(image)?;
        if record.pinned {
            return Err(Problem(format!("{image} is pinned; larder unpin {image} comes first")));
        }
        self.store.tag_remove(repository, tag)?;
        let catalogue = self.catalogue()?;
        // Images that other tags name stay.
        let roots =
            record.candidates().into_iter().filter_map(|version| catalogue.find(repository, &version.digest));
        let victims: Vec<_> = roots.filter(|stocked| stocked.tags.is_empty()).collect();
        let bytes = catalogue.remove(&self.store, &victims)?.iter().map(|gone| gone.bytes).sum();
        Ok(format!("{repository}:{tag} is forgotten; {} are free again", bytes_text(bytes)))
    }
}
