//! Peers: when they are asked, which of their claims counts, and what they are given (design rule 8).
//!
//! They are asked only while an upstream cannot be reached, and never about what needs credentials. A claim is a hint:
//! it does not move the *seen* pointer, and it is used only where nothing that this board verified itself is newer.

use super::content::{Content, Landed, Served};
use super::refusal::Refusal;
use super::resolve::{Local, Verified};
use super::{ByteSource, Mirror, outage_text};
use crate::budget;
use crate::clock;
use crate::fetch::{LinkState, Upstream};
use crate::image::closure;
use crate::kit::{self, Claim, Kit, PeerState};
use crate::oci::{Digest, Manifest, Platform, Repository, Tag};
use crate::store::{Store, StoreError};
use crate::sync::Mutex;
use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, MutexGuard, Weak};

/// Claims that were answered to clients, until all of their content is here.
#[derive(Default)]
pub(super) struct Claims(Mutex<HashMap<(Repository, Tag), Claim>>);

impl Claims {
    fn note(&self, repository: &Repository, tag: &Tag, claim: &Claim) {
        let mut claims = self.claims();
        let key = (repository.clone(), tag.clone());
        if claims.len() < budget::CLAIMS_MAX || claims.contains_key(&key) {
            claims.insert(key, claim.clone());
        }
    }

    /// Upstream has spoken: what peers said of the tag before is of no interest any more.
    pub(super) fn forget(&self, repository: &Repository, tag: &Tag) {
        self.claims().remove(&(repository.clone(), tag.clone()));
    }

    fn of(&self, repository: &Repository) -> Vec<(Tag, Claim)> {
        let claims = self.claims();
        let of = claims.iter().filter(|((name, _), _)| name == repository);
        of.map(|((_, tag), claim)| (tag.clone(), claim.clone())).collect()
    }

    fn claims(&self) -> MutexGuard<'_, HashMap<(Repository, Tag), Claim>> {
        self.0.lock()
    }
}

/// What this board knows of the version that it would answer with, as far as a claim has to be newer.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    digest: Digest,
    /// When upstream said so last, if the clock was to be trusted.
    unix: Option<u64>,
}

/// The claim that is better than what is here. `now` is the time, if it can be believed.
///
/// Where nothing is here any claim is; those that could be true come first, the newest of them before the others. What
/// is here gives way only to what is newer by wall times that both are known and can be believed.
fn better(claims: Vec<Claim>, known: Option<&Known>, now: Option<u64>) -> Option<Claim> {
    let latest = now.map(|now| now + budget::CLAIM_AHEAD_MAX.as_secs());
    let believed = |claim: &Claim| claim.unix.filter(|unix| latest.is_none_or(|latest| *unix <= latest));
    let Some(known) = known else {
        let best = claims.into_iter().max_by_key(|claim| (believed(claim), claim.unix.is_none()))?;
        // A time that cannot be is none, or it would stand before every later claim.
        return Some(Claim { unix: believed(&best), ..best });
    };
    let (_, since) = now.zip(known.unix)?;
    let newer = |claim: &Claim| believed(claim).is_some_and(|unix| unix > since);
    let best = claims.into_iter().filter(newer).max_by_key(|claim| claim.unix)?;
    (best.digest != known.digest).then_some(best)
}

impl Mirror {
    /// Begins to answer peers, if a kit is configured. Dropping what it returns ends that.
    ///
    /// # Errors
    /// A sentence that says what is wrong with `kit.listen`.
    pub fn serve_peers(self: &Arc<Self>) -> Result<Option<kit::Listening>, String> {
        let Some(settings) = &self.config.kit else { return Ok(None) };
        let shelf = Arc::new(Shelf(Arc::downgrade(self)));
        kit::listen(settings.listen, &settings.secret, shelf).map(Some)
    }

    /// How it is with each peer.
    pub fn peers(&self) -> Vec<PeerState> {
        self.kit.as_ref().map_or_else(Vec::new, |kit| kit.peers())
    }

    /// The peers that can be asked in place of an upstream.
    pub(super) fn peers_for(&self, upstream: &Upstream) -> Option<Arc<Kit>> {
        let kit = self.kit.as_ref().filter(|kit| !upstream.is_private() && kit.has_live_peer());
        kit.cloned()
    }

    /// What a peer says that a tag is, where that is better than what is here.
    pub(super) async fn claim(
        self: &Arc<Self>,
        upstream: &Upstream,
        repository: &Repository,
        tag: &Tag,
        local: &Local,
    ) -> Option<Claim> {
        let kit = self.peers_for(upstream)?;
        let (rolled_back, known) = match (&local.record, &local.complete) {
            (Some(record), Some(version)) => {
                let seen = record.seen.as_ref().filter(|seen| seen.digest == version.digest);
                let said = seen.and_then(|seen| self.verified.said(repository, tag, seen.unix));
                let unix = if seen.is_some() { said } else { version.unix };
                (record.rollback.is_some(), Some(Known { digest: version.digest.clone(), unix }))
            }
            _ => (false, None),
        };
        if let Some(known) = &known {
            // The owner's decision, a slow upstream and a clock that is not set leave peers nothing to say.
            let slow = matches!(upstream.link(), LinkState::Slow { .. });
            if rolled_back || slow || known.unix.is_none() || clock::trusted_unix().is_none() {
                return None;
            }
        }
        let claims = kit.ask_tag(repository, tag, &self.config.platforms).await;
        let claim = better(claims, known.as_ref(), clock::trusted_unix())?;
        self.claims.note(repository, tag, &claim);
        // All of it may be here already, by other tags.
        let settled = repository.clone();
        let _ = self
            .blocking(move |mirror| {
                mirror.settle_claims(&settled);
                Ok(())
            })
            .await;
        Some(claim)
    }

    /// Notes the claims whose content is all here by now as versions of their tags.
    pub(super) fn settle_claims(&self, repository: &Repository) {
        for (tag, claim) in self.claims.of(repository) {
            let noted = self.closure(&claim.digest).and_then(|found| {
                if !found.is_complete() {
                    return Ok(false);
                }
                self.store.tag_offered(repository, &tag, &claim.digest, claim.unix).map(|()| true)
            });
            match noted {
                Ok(true) => {
                    log::info!("{repository}:{tag} is complete at {}, as {} said", claim.digest, claim.peer);
                    self.claims.forget(repository, &tag);
                }
                Ok(false) | Err(StoreError::Rebuilding) => {}
                Err(problem) => {
                    log::warn!("what {} said of {repository}:{tag} was not noted: {problem}", claim.peer)
                }
            }
        }
    }

    /// Has a manifest that is not here asked of the peers, beside the lanes of an upstream that cannot answer.
    pub(super) async fn manifest_from_peers(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Served, Refusal> {
        let key = (repository.clone(), digest.clone());
        let (mirror, question, absent) = (Arc::clone(self), key.clone(), Arc::clone(upstream));
        let flight = self.peer_manifests.join(&self.peer_lanes, &key, move || {
            let cause = || format!("{}; {} is not cached", outage_text(&absent), question.1);
            mirror.take_from_peers(&absent, &question.0, &question.1, &cause)
        });
        let flight = flight.map_err(|_| Refusal::Busy("too many questions wait for peers".into()))?;
        self.landed(flight, repository, digest).await
    }

    /// Takes a manifest from a peer that has it; runs on a lane. `cause`: why upstream does not give it.
    pub(super) fn take_from_peers(
        &self,
        upstream: &Upstream,
        repository: &Repository,
        digest: &Digest,
        cause: &dyn Fn() -> String,
    ) -> Result<Landed, Refusal> {
        let found = self.peers_for(upstream).and_then(|kit| kit.manifest(repository, digest));
        let Some(found) = found else { return Err(Refusal::Unavailable(cause())) };
        // The hash is right, and so the text is what somebody's upstream holds; what it is must still be plain.
        let manifest = Manifest::parse(&found.bytes, Some(&found.media_type))
            .map_err(|why| Refusal::Unavailable(format!("{}; peer {}: {why}", cause(), found.peer)))?;
        let stored = self.fills.with_room_for_manifest(digest, found.bytes.len() as u64, || {
            self.store.put_manifest(repository, digest, &manifest.media_type, &found.bytes, false)
        });
        log::debug!("manifest {digest} of {repository} came from peer {}", found.peer);
        self.settle_all(repository);
        self.landed_as(ByteSource::Peer, stored, digest, &manifest.media_type, found.bytes)
    }

    /// Whether anything of a repository may be given to peers.
    fn is_shared(&self, repository: &Repository) -> bool {
        self.upstreams.find(&repository.registry).is_some_and(|upstream| !upstream.is_private())
    }
}

/// What peers are given: what is public and on this board's disk.
struct Shelf(Weak<Mirror>);

impl Shelf {
    fn look<T>(
        &self,
        repository: &Repository,
        look: impl FnOnce(&Mirror) -> Result<Option<T>, StoreError>,
    ) -> Option<T> {
        let mirror = self.0.upgrade().filter(|mirror| mirror.is_shared(repository))?;
        look(&mirror).unwrap_or_else(|problem| {
            log::debug!("a peer was told nothing of {repository}: {problem}");
            None
        })
    }
}

impl kit::PeerContent for Shelf {
    fn tag(
        &self,
        repository: &Repository,
        tag: &Tag,
        platforms: &[Platform],
    ) -> Option<(Digest, Option<u64>)> {
        self.look(repository, |mirror| offer(&mirror.store, &mirror.verified, repository, tag, platforms))
    }

    fn manifest(&self, repository: &Repository, digest: &Digest) -> Option<(String, File, u64)> {
        self.look(repository, |mirror| {
            let served = mirror.manifest_now(repository, digest)?;
            Ok(served.and_then(|served| match served.content {
                Content::Whole(blob) if !blob.private => Some((served.media_type, blob.file, blob.size)),
                Content::Whole(_) | Content::Memory(_) => None,
            }))
        })
    }

    fn blob(&self, repository: &Repository, digest: &Digest) -> Option<(File, u64)> {
        self.look(repository, |mirror| {
            let blob = mirror.store.open_blob(digest)?.filter(|blob| !blob.private);
            Ok(blob.map(|blob| (blob.file, blob.size)))
        })
    }
}

/// The newest version that upstream named and that is whole. What peers said is not passed on: it would come back.
fn offer(
    store: &Store,
    verified: &Verified,
    repository: &Repository,
    tag: &Tag,
    platforms: &[Platform],
) -> Result<Option<(Digest, Option<u64>)>, StoreError> {
    let Some(record) = store.tag(repository, tag)? else { return Ok(None) };
    for version in record.seen.iter().chain(&record.complete).chain(&record.history) {
        if version.peer || !is_public(store, &version.digest)? {
            continue;
        }
        if closure(store, platforms, &version.digest)?.is_complete() {
            // Only of what upstream said last is it known when that was; a version before it is offered without a time.
            let last = record.seen.as_ref().filter(|seen| seen.digest == version.digest);
            let unix = last.and_then(|seen| verified.said(repository, tag, seen.unix));
            return Ok(Some((version.digest.clone(), unix)));
        }
    }
    Ok(None)
}

fn is_public(store: &Store, digest: &Digest) -> Result<bool, StoreError> {
    Ok(store.open_blob(digest)?.is_some_and(|blob| !blob.private))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn digest(fill: char) -> Digest {
        format!("sha256:{}", String::from(fill).repeat(64)).parse().unwrap()
    }

    fn claim(fill: char, unix: impl Into<Option<u64>>) -> Claim {
        Claim { peer: ([10, 0, 0, 2], 5002).into(), digest: digest(fill), unix: unix.into() }
    }

    fn chosen(claims: &[Claim], known: Option<Option<u64>>, now: Option<u64>) -> Option<char> {
        let known = known.map(|unix| Known { digest: digest('0'), unix });
        better(claims.to_vec(), known.as_ref(), now).map(|claim| claim.digest.hex().chars().next().unwrap())
    }

    #[test]
    fn with_nothing_here_any_claim_will_do_and_the_newest_believable_is_best() {
        let ahead = NOW + 601;
        let all = [claim('a', NOW - 9), claim('b', NOW - 5), claim('c', None), claim('d', ahead)];
        assert_eq!(chosen(&all, None, Some(NOW)), Some('b'));
        assert_eq!(chosen(&all[2..], None, Some(NOW)), Some('c'));
        assert_eq!(chosen(&all[3..], None, Some(NOW)), Some('d'));
        assert_eq!(better(all[3..].to_vec(), None, Some(NOW)).unwrap().unix, None);
        assert_eq!(chosen(&all[..3], None, None), Some('b'));
        assert_eq!(chosen(&[], None, Some(NOW)), None);
    }

    #[test]
    fn what_is_here_gives_way_only_to_what_is_newer_by_two_good_clocks() {
        let known = Some(Some(NOW - 100));
        assert_eq!(chosen(&[claim('a', NOW - 99)], known, Some(NOW)), Some('a'));
        assert_eq!(chosen(&[claim('a', NOW - 100)], known, Some(NOW)), None, "not newer");
        assert_eq!(chosen(&[claim('a', NOW - 101)], known, Some(NOW)), None, "older");
        assert_eq!(chosen(&[claim('a', None)], known, Some(NOW)), None, "no time");
        assert_eq!(chosen(&[claim('a', NOW)], Some(None), Some(NOW)), None, "no time here");
        assert_eq!(chosen(&[claim('a', NOW)], known, None), None, "the clock is not set");
        assert_eq!(chosen(&[claim('a', NOW + 600)], known, Some(NOW)), Some('a'));
        assert_eq!(chosen(&[claim('a', NOW + 601)], known, Some(NOW)), None, "too far ahead");
        assert_eq!(chosen(&[claim('0', NOW)], known, Some(NOW)), None, "the same version");
    }
}
