//! One run of one fill in a download slot: stages bytes from upstream or peers, verifies the hash, publishes the blob.

use super::super::context::outage_text;
use super::super::progress::{Fill, Phase};
use super::super::refusal::{Missing, Refusal};
use super::super::reserve::Reservation;
use super::pool::{FillPool, too_often};
use super::sources::{Fit, Sources};
use super::turn::Turn;
use crate::auth::AccessClass;
use crate::budget;
use crate::fetch::{Failure, LinkState, Upstream};
use crate::kit::Kit;
use crate::store::{Staged, StagedFrom, StoreError};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// How a run can end without the complete blob.
pub(super) enum Ending {
    /// It can resume later.
    Parked(String),
    /// It cannot.
    Failed(Refusal),
    /// It gave its slot to one that a client waits for, and goes on when it is its turn again.
    MadeWay,
    /// Nobody waits for it, and it may not go on without that; what is staged stays for a client that asks.
    Unawaited(String),
    /// Another file has taken the place of the one that its readers have: they begin again, and so does it.
    Restarted,
}

impl From<StoreError> for Ending {
    fn from(problem: StoreError) -> Self {
        Ending::Failed(match problem {
            StoreError::NoRoom { what: cause } => Refusal::NotStored(cause),
            problem if problem.is_disk_failure() => {
                Refusal::NotStored(format!("the mirror's disk: {problem}"))
            }
            problem => Refusal::from_store(&problem),
        })
    }
}

/// How copying a body ended.
enum Copied {
    Complete,
    Cut(String),
    /// More came than the so many bytes that the blob has.
    TooLong(u64),
}

fn too_long(limit: u64) -> String {
    format!("sent more than the {limit} bytes that it should have")
}

/// One run.
pub(super) struct Run<'a> {
    pool: &'a FillPool,
    fill: &'a Arc<Fill>,
    turn: Turn,
    /// Whether the source gives parts of a blob, as far as is known.
    gives_parts: Option<bool>,
    /// Attempts in a row that brought no byte, or too few while nobody waits.
    fruitless: u32,
    /// Bytes that the present attempt has brought.
    brought: u64,
    reservation: Reservation<'a>,
    sources: Sources,
    /// The content comes from several answers; if the hash is wrong, they may not fit together.
    resumed: bool,
    /// That nothing is missing is only what the upstream says, and not what came.
    called_whole: bool,
}

impl<'a> Run<'a> {
    pub(super) fn of(pool: &'a FillPool, fill: &'a Arc<Fill>) -> Run<'a> {
        let (turn, reservation) = (Turn::begin(Instant::now()), pool.reserve.open(fill));
        let (gives_parts, resumed, called_whole) = (None, false, false);
        let sources = Sources::default();
        Run {
            pool,
            fill,
            turn,
            gives_parts,
            fruitless: 0,
            brought: 0,
            reservation,
            sources,
            resumed,
            called_whole,
        }
    }

    pub(super) fn run(&mut self) -> Result<(), Ending> {
        let (fill, store) = (self.fill, &self.pool.context.store);
        let upstream = self.pool.context.upstream(&fill.key.registry).map_err(Ending::Failed)?;
        self.sources.several = upstream.endpoints().len() > 1;
        if let Some(stated) = fill.stated.filter(|&stated| stated > budget::BLOB_BYTES_MAX) {
            return Err(
                self.wrong(format!("has a manifest that states {stated} bytes, more than larder keeps"))
            );
        }
        // It may have come between its client's look at the disk and this run.
        if let Some(blob) =
            store.open_blob(fill.digest())?.filter(|blob| blob.is_public() && !blob.unverified)
        {
            self.follow(Arc::new(blob.file))?;
            fill.progress.send_modify(|progress| progress.total = Some(blob.size));
            return Ok(());
        }
        let from = StagedFrom { repository: fill.repository.clone(), size: fill.stated };
        let mut staged = store.stage(&fill.key, &from)?;
        self.resumed = !staged.is_empty();
        self.follow(staged.file())?;
        fill.set_phase(Phase::Running);
        self.publish(&staged, None);
        let taken = self.take(&upstream, &mut staged);
        // What the disk has no room for does not use it until then, and what has no byte is not resumed.
        if let Err(Ending::Failed(refusal)) = &taken
            && (staged.is_empty() || matches!(refusal, Refusal::NotStored(_)))
        {
            staged.discard();
        }
        if let (Err(Ending::Unawaited(_)), true) = (&taken, staged.is_empty()) {
            staged.discard();
        }
        taken?;
        self.finish(&upstream, staged)
    }

    /// Downloads what is missing from upstream, or from peers while that cannot be reached.
    fn take(&mut self, upstream: &Upstream, staged: &mut Staged) -> Result<(), Ending> {
        let fill = self.fill;
        let kit = self.pool.context.kit.as_ref().filter(|_| fill.key.class == AccessClass::Public);
        let down = upstream.link().is_known_down();
        let taken = if down && kit.is_some() {
            Err(Ending::Parked(outage_text(upstream)))
        } else {
            self.take_from_upstream(upstream, staged)
        };
        match (taken, kit) {
            (Err(Ending::Parked(cause)), Some(kit)) if !self.pool.is_stopping() => {
                if self.take_from_peers(kit, staged)? {
                    return Ok(());
                }
                if down && staged.is_empty() {
                    // It was begun only for the peers, and none has it.
                    let text = format!("{cause}; {} is not cached", fill.digest());
                    return Err(Ending::Failed(Refusal::Unavailable(text)));
                }
                Err(Ending::Parked(cause))
            }
            (taken, _) => taken,
        }
    }

    /// Has readers follow `file`. A later run of the same fill opens the same file by name, and readers keep the handle of
    /// the first; what is staged may have been removed to make room meanwhile.
    fn follow(&self, file: Arc<File>) -> Result<(), Ending> {
        let known = self.fill.file.get_or_init(|| Arc::clone(&file));
        let inode = |file: &File| file.metadata().map(|meta| (meta.dev(), meta.ino())).ok();
        if inode(known) == inode(&file) { Ok(()) } else { Err(Ending::Restarted) }
    }

    /// Downloads what is missing from upstream.
    fn take_from_upstream(&mut self, upstream: &Upstream, staged: &mut Staged) -> Result<(), Ending> {
        let fill = self.fill;
        loop {
            let total = fill.progress.borrow().total;
            if total == Some(staged.len()) || (total.is_none() && fill.stated == Some(staged.len())) {
                return Ok(());
            }
            if !fill.is_awaited() {
                self.room(1, staged)?;
            }
            match upstream.open_blob(&fill.repository.name, fill.digest(), staged.len()) {
                Ok(mut stream) => {
                    let (total, place) = (stream.total, stream.place);
                    // What says so of less than there is has something else in its place.
                    if stream.is_whole && fill.stated.is_some_and(|stated| stated != staged.len()) {
                        self.throw_away(staged);
                        return Err(Ending::Restarted);
                    }
                    match self.sources.fit(fill, &stream, staged.len()) {
                        Fit::Continues => self.sources.take(place, staged.is_empty()),
                        Fit::Other if upstream.sent_wrong(fill.digest(), place) => continue,
                        // Says below what is wrong with it.
                        Fit::Other => {}
                        Fit::Restart => {
                            self.throw_away(staged);
                            return Err(Ending::Restarted);
                        }
                    }
                    self.check_repeat(stream.repeats(), staged)?;
                    self.gives_parts = stream.gives_parts.or(self.gives_parts);
                    self.called_whole = stream.is_whole;
                    self.check_total(total, staged.len())?;
                    // No client is told a size that only stands for what is here.
                    let total = total.filter(|_| !stream.is_whole);
                    self.resumed |= !staged.is_empty();
                    self.publish(staged, total);
                    let read = |chunk: &mut [u8]| stream.read(chunk).map_err(|failure| failure.to_string());
                    match self.copy(total, read, staged)? {
                        Copied::Complete => return Ok(()),
                        Copied::Cut(cause) => self.pause(upstream.link(), &cause)?,
                        Copied::TooLong(limit) => {
                            self.throw_away(staged);
                            return Err(self.restart_or(upstream, too_long(limit)));
                        }
                    }
                }
                Err(failure) if failure.is_outage() => self.pause(upstream.link(), &failure.to_string())?,
                Err(failure) => {
                    // If upstream has lost it or sends wrong bytes, it cannot be finished. If upstream denies it, that may
                    // change.
                    let resumes = !staged.is_empty();
                    if !resumes || !matches!(failure, Failure::Denied { .. }) {
                        self.throw_away(staged);
                    }
                    // What is here may be what is wrong.
                    if resumes && matches!(failure, Failure::Wrong { .. }) {
                        log::info!("{} of {} begins again: {failure}", fill.digest(), fill.repository);
                        return Err(Ending::Restarted);
                    }
                    return Err(Ending::Failed(Refusal::from_failure(&failure, Missing::Blob)));
                }
            }
        }
    }

    /// Downloads what is missing from the peers, one after the other. `false`: none could send all of it.
    ///
    /// This is done only if a manifest states the size: with a peer's or an upstream's false size, clients would get a
    /// wrong length.
    fn take_from_peers(&mut self, kit: &Kit, staged: &mut Staged) -> Result<bool, Ending> {
        let fill = self.fill;
        let Some(stated) = fill.stated else { return Ok(false) };
        let mut without = Vec::new();
        // The kit leaves out peers that fail, so this ends; the bound is for peers that fail and return at once.
        for _ in 0..budget::PEERS_MAX {
            let begin = staged.len();
            let Some(mut stream) = kit.blob(&fill.repository, fill.digest(), begin, &without) else {
                return Ok(false);
            };
            let (peer, total) = (stream.peer(), stream.total());
            if total != stated {
                // The manifest may be wrong as well as the peer.
                log::debug!("peer {peer} offers {total} bytes for {}, not {stated}", fill.digest());
                without.push(peer);
                continue;
            }
            self.check_total(Some(total), begin)?;
            fill.from_peer.store(true, Ordering::Relaxed);
            self.publish(staged, Some(total));
            log::debug!("{} of {} comes from peer {peer}", fill.digest(), fill.repository);
            let copied = self.copy(Some(total), |chunk: &mut [u8]| stream.read(chunk), staged)?;
            match copied {
                Copied::Complete => {}
                Copied::Cut(_) => continue,
                Copied::TooLong(limit) => {
                    self.throw_away(staged);
                    return Err(self.wrong(too_long(limit)));
                }
            }
            let Err(problem) = staged.matches() else { return Ok(true) };
            // The next source begins at zero and not behind wrong bytes.
            staged.discard();
            if begin > 0 {
                // Which of them was wrong is not known.
                return Err(self.wrong(format!("and peer {peer} sent parts that do not fit: {problem}")));
            }
            stream.is_wrong(&problem.to_string());
            return Err(Ending::Failed(Refusal::Unavailable(format!("peer {peer} sent wrong bytes"))));
        }
        Ok(false)
    }

    /// Copies until the body ends. `offered`: the size of the blob, if the source says.
    fn copy(
        &mut self,
        offered: Option<u64>,
        mut read: impl FnMut(&mut [u8]) -> Result<usize, String>,
        staged: &mut Staged,
    ) -> Result<Copied, Ending> {
        let total = offered.or(self.fill.stated);
        let limit = total.unwrap_or(budget::BLOB_BYTES_MAX);
        let mut chunk = vec![0; budget::FETCH_CHUNK_BYTES];
        self.brought = 0;
        loop {
            if self.pool.is_stopping() {
                return Err(Ending::Parked("larder is stopping".into()));
            }
            match read(&mut chunk) {
                Ok(0) if total.is_none_or(|total| staged.len() == total) => return Ok(Copied::Complete),
                Ok(0) => return Ok(Copied::Cut("the body ended early".into())),
                Ok(n) if staged.len() + n as u64 > limit => {
                    return Ok(Copied::TooLong(limit));
                }
                Ok(n) => {
                    self.room(n as u64, staged)?;
                    if let Err(problem) = staged.append(&chunk[..n]) {
                        // It cannot be finished, so it should not use the disk; its bytes cannot be trusted either.
                        staged.discard();
                        return Err(problem.into());
                    }
                    self.brought += n as u64;
                    if self.brought >= budget::FILL_PROGRESS_BYTES || self.fill.is_awaited() {
                        self.fruitless = 0;
                    }
                    self.publish(staged, offered);
                    self.reservation.used(n as u64);
                    self.turn.count(n as u64, Instant::now());
                    self.look_who_waits()?;
                }
                Err(failure) => return Ok(Copied::Cut(failure)),
            }
        }
    }

    /// Room for `bytes` that come next. Without it, a fill that nobody waits for ends and leaves what it has.
    fn room(&mut self, bytes: u64, staged: &Staged) -> Result<(), Ending> {
        let rest = self.fill.stated.map(|stated| stated.saturating_sub(staged.len()));
        let Err(problem) = self.reservation.next(bytes, rest) else { return Ok(()) };
        if rest.is_some() && !self.fill.is_awaited() {
            return Err(Ending::Unawaited(problem.to_string()));
        }
        // It cannot be finished, so it should not use the disk.
        staged.discard();
        Err(problem.into())
    }

    /// Whether upstream may send `bytes` again that are here.
    fn check_repeat(&self, bytes: u64, staged: &Staged) -> Result<(), Ending> {
        if bytes == 0 {
            return Ok(());
        }
        let (fill, awaited) = (self.fill, self.fill.is_awaited());
        let size = fill.stated.unwrap_or(staged.len());
        let (repeats, now) = (self.pool.repeats(), Instant::now());
        let may = repeats.may(&fill.key, bytes, size, awaited, now);
        if may.is_err() && !awaited {
            return Err(Ending::Unawaited("its upstream sends it from the start each time".into()));
        }
        repeats.note(&fill.key, bytes, now);
        may.map_err(|pause| {
            self.throw_away(staged);
            Ending::Failed(too_often(&fill.key.registry, pause))
        })
    }

    /// Discards what came for nothing.
    fn throw_away(&self, staged: &Staged) {
        self.pool.repeats().note(&self.fill.key, staged.len(), Instant::now());
        staged.discard();
    }

    /// Gives the slot up for a fill that a client waits for, if nobody waits for this one, or if its source gives the rest without
    /// the beginning and its client has a larger share, or it is too slow.
    fn look_who_waits(&mut self) -> Result<(), Ending> {
        let now = Instant::now();
        if !self.turn.may_look(now) {
            return Ok(());
        }
        let whole = self.gives_parts == Some(false);
        let slow = self.turn.is_over(now) && !whole;
        if self.pool.must_make_way(self.fill, !whole, slow) { Err(Ending::MadeWay) } else { Ok(()) }
    }

    /// Verifies the content and makes it a blob.
    fn finish(&mut self, upstream: &Upstream, staged: Staged) -> Result<(), Ending> {
        let (fill, store) = (self.fill, &self.pool.context.store);
        let known = store.open_blob(fill.digest()).ok().flatten();
        if known.as_ref().is_some_and(|blob| !blob.is_public()) && fill.from_peer.load(Ordering::Relaxed) {
            // Who may see it is shown by what its registry sends, and not by a peer.
            return self.deliver(&staged);
        }
        // Public content stays public.
        let class =
            if known.is_some_and(|blob| blob.is_public()) { AccessClass::Public } else { fill.key.class };
        let size = staged.len();
        let tell = || fill.progress.send_modify(|progress| progress.total = Some(size));
        // A size that only the upstream's word stands for is told when the hash is right.
        if !self.called_whole {
            tell();
        }
        match staged.publish(store, class) {
            Ok(()) => tell(),
            Err(StoreError::Mismatch { actual, .. }) => {
                self.pool.repeats().note(&fill.key, size, Instant::now());
                if self.called_whole {
                    log::info!(
                        "{} of {} begins again: it hashes to {actual}",
                        fill.digest(),
                        fill.repository
                    );
                    return Err(Ending::Restarted);
                }
                let seam = if self.resumed { " (it was assembled from several answers)" } else { "" };
                let what = format!("sent content that hashes to {actual}{seam}");
                return Err(self.restart_or(upstream, what));
            }
            Err(problem) => return Err(problem.into()),
        }
        let holders = fill.take_holders();
        if class == AccessClass::Private {
            for repository in holders.iter().chain([&fill.repository]) {
                if let Err(problem) = store.hold(repository, fill.digest()) {
                    log::warn!("{} will be confirmed again: {problem}", fill.digest());
                }
            }
        }
        Ok(())
    }

    /// Verifies the content for the readers that follow it, and stores nothing.
    fn deliver(&self, staged: &Staged) -> Result<(), Ending> {
        let verified = staged.matches();
        self.fill.progress.send_modify(|progress| progress.total = Some(staged.len()));
        staged.discard();
        verified.map_err(|problem| self.wrong(format!("sent wrong content: {problem}")))
    }

    /// Refuses a blob of a size that its manifest does not state, and one that the disk cannot take. Images go only for a
    /// size that a manifest states and a client waits for; else the bytes get what room there is when they come.
    fn check_total(&mut self, total: Option<u64>, come: u64) -> Result<(), Ending> {
        let Some(total) = total.or(self.fill.stated) else { return Ok(()) };
        if let Some(stated) = self.fill.stated
            && stated != total
        {
            return Err(self.wrong(format!("offers {total} bytes where the manifest says {stated}")));
        }
        if total > budget::BLOB_BYTES_MAX {
            return Err(self.wrong(format!("offers {total} bytes, more than larder keeps")));
        }
        if self.fill.stated.is_none() || !self.fill.is_awaited() {
            return Ok(());
        }
        self.reservation.next(0, Some(total.saturating_sub(come))).map_err(Ending::from)
    }

    /// Publishes the progress, except the last bytes, which are held back until the hash is right.
    fn publish(&self, staged: &Staged, total: Option<u64>) {
        self.fill.keep_pace(staged.len(), Instant::now());
        self.fill.progress.send_modify(|progress| {
            progress.total = progress.total.or(total);
            let end = progress.total.unwrap_or(staged.len());
            let may = staged.len().min(end.saturating_sub(budget::HELD_BACK_BYTES));
            progress.available = progress.available.max(may);
        });
    }

    /// Pauses before the next attempt, or parks the fill if another attempt makes no sense.
    fn pause(&mut self, link: LinkState, cause: &str) -> Result<(), Ending> {
        self.fruitless += 1;
        if self.fruitless > budget::FILL_FRUITLESS_TRIES || matches!(link, LinkState::Down { .. }) {
            return Err(Ending::Parked(cause.to_owned()));
        }
        self.look_who_waits()?;
        log::debug!("{} resumes after a cut: {cause}", self.fill.digest());
        std::thread::sleep(budget::FILL_RETRY_PAUSE * self.fruitless);
        Ok(())
    }

    /// What follows from wrong content: it is fetched again from its first byte if another endpoint than the one that has sent
    /// it is left; of several together it is not known which was wrong.
    fn restart_or(&self, upstream: &Upstream, what: String) -> Ending {
        let several = self.sources.several && !self.fill.from_peer.load(Ordering::Relaxed);
        let is_left = |place| upstream.sent_wrong(self.fill.digest(), place);
        if several && self.sources.only().is_none_or(is_left) {
            log::warn!(
                "{} of {}: an endpoint {what}; it begins again",
                self.fill.digest(),
                self.fill.repository
            );
            return Ending::Restarted;
        }
        self.wrong(what)
    }

    fn wrong(&self, what: String) -> Ending {
        Ending::Failed(Refusal::Unavailable(format!("{} {what}", self.fill.key.registry)))
    }
}
