//! A client's range far ahead of its download. It moves the download to the front of the queue among its equals; with
//! `fetch.early_ranges` it is also asked for beside the download, streamed to this client and not kept.
//!
//! No hash covers a part, so these bytes are the exception of rules 1 and 4: they are sent as they come and cost the
//! uplink twice. Everything else is as for the download: the upstream is asked for the same repository, with the same
//! login, and its answer is what proves that the client may have them. Only content of a stated size is asked for so, at
//! most [`budget::EARLY_RANGE_BYTES_MAX`] at a time, in a place of the uncached streams. Whatever fails, the client waits
//! for the download as it would without this.

use super::super::context::Context;
use super::super::fill::Turn;
use super::super::progress::{Fill, asking_of};
use super::stream::{Pieces, Streams, hand_over};
use crate::budget;
use crate::fetch::{BlobStream, Upstream};
use crate::oci::Repository;
use crate::places::{TurnPlace, asker};
use crate::via;
use bytes::Bytes;
use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::{mpsc, oneshot};

/// The first and the last byte that a client wants of so many; `None`: all of them.
pub type WantedPart<'a> = &'a (dyn Fn(u64) -> Option<(u64, u64)> + Send + Sync);

/// The part that is wanted of a fill of `stated` bytes, if it is far ahead of what has come.
pub(super) fn part_ahead(fill: &Fill, stated: Option<u64>, wanted: WantedPart<'_>) -> Option<(u64, u64)> {
    let come = fill.progress.borrow().available;
    wanted(stated?).filter(|(first, _)| first.saturating_sub(come) > budget::FAR_AHEAD_BYTES)
}

/// One part to be streamed.
struct EarlyPart {
    upstream: Arc<Upstream>,
    repository: Repository,
    fill: Arc<Fill>,
    /// Its first byte, the one after its last, and the size of the blob.
    part: (u64, u64, u64),
}

impl Streams {
    /// Streams a part of what a fill of the repository brings. `None`: it is to be waited for.
    pub(super) async fn early(
        &self,
        upstream: &Arc<Upstream>,
        repository: &Repository,
        fill: &Arc<Fill>,
        stated: Option<u64>,
        wanted: WantedPart<'_>,
    ) -> Option<Pieces> {
        let context: &Context = &self.context;
        if !context.config.now().fetch.early_ranges
            || fill.gives_no_parts()
            || upstream.link().is_known_down()
        {
            return None;
        }
        let (first, last) = part_ahead(fill, stated, wanted)?;
        if last - first >= budget::EARLY_RANGE_BYTES_MAX {
            return None;
        }
        let early = async {
            let place = self.slots.wait(asking_of(repository, asker()), budget::EARLY_RANGE_WAIT_MAX).await?;
            // It may have come meanwhile.
            part_ahead(fill, stated, wanted)?;
            let (upstream, repository, fill) = (Arc::clone(upstream), repository.clone(), Arc::clone(fill));
            let early = EarlyPart { upstream, repository, fill, part: (first, last + 1, stated?) };
            let (opened, is_open) = oneshot::channel();
            let (pieces, received) = mpsc::channel(budget::STREAM_PIECES);
            let thread =
                std::thread::Builder::new().name("early".into()).stack_size(budget::THREAD_STACK_BYTES);
            let way = via::way();
            let run = move || via::on_thread(&way, || early.run(opened, &pieces, &place));
            thread.spawn(run).ok()?;
            is_open.await.ok().map(|()| received)
        };
        tokio::time::timeout(budget::EARLY_RANGE_WAIT_MAX, early).await.ok()?
    }
}

impl EarlyPart {
    /// Reports to `opened` that the upstream gives the part, then sends it to `pieces`.
    fn run(&self, opened: oneshot::Sender<()>, pieces: &mpsc::Sender<io::Result<Bytes>>, place: &TurnPlace) {
        let (digest, (first, end, _)) = (self.fill.digest(), self.part);
        match self.upstream.open_part(&self.repository.name, digest, self.part) {
            Ok(Some(stream)) => {
                if opened.send(()).is_err() {
                    return;
                }
                log::info!("bytes {first} to {end} of {digest} of {} are passed on early", self.repository);
                if let Err(problem) = pass_on(stream, pieces, place) {
                    log::warn!("{digest} was cut while a part of it was streamed: {problem}");
                    let _ = pieces.blocking_send(Err(io::Error::other(problem)));
                }
            }
            Ok(None) => {
                log::debug!("{} gives no parts of {digest}", self.upstream.name());
                self.fill.note_no_parts();
            }
            Err(failure) => log::debug!("a part of {digest} cannot be had early: {failure}"),
        }
    }
}

/// Passes a part on as it comes, as long as its client takes it and is not too slow for others.
fn pass_on(
    mut stream: BlobStream,
    pieces: &mpsc::Sender<io::Result<Bytes>>,
    place: &TurnPlace,
) -> Result<(), String> {
    let turn = RefCell::new(Turn::begin(Instant::now()));
    let must_end = |stuck: bool| {
        let (now, mut turn) = (Instant::now(), turn.borrow_mut());
        turn.may_look(now) && place.must_make_way(stuck || turn.is_over(now))
    };
    let mut chunk = vec![0; budget::SERVE_CHUNK_BYTES];
    loop {
        let n = stream.read(&mut chunk).map_err(|failure| failure.to_string())?;
        turn.borrow_mut().count(n as u64, Instant::now());
        if n == 0 || !hand_over(Bytes::copy_from_slice(&chunk[..n]), &must_end, pieces)? {
            return Ok(());
        }
    }
}
