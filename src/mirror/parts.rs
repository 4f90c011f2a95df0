//! The parts of the mirror, and how each is built from those below it.

use super::content::{AskedManifests, Blobs, Manifests, NamedBlobs, Repairs, Streams};
use super::context::{Arrivals, Context};
use super::cursor::Cursors;
use super::fill::FillPool;
use super::lists::Lists;
use super::progress::FillTable;
use super::proof::Proofs;
use super::pull_secrets::PullSecrets;
use super::questions::Questions;
use super::reserve::Reserve;
use super::tag::{Settler, TagTable, Tags};
use super::verify::Verifier;
use crate::budget;
use crate::sync::Mutex;
use std::sync::Arc;
use std::time::Instant;

/// The parts.
pub(super) struct Parts {
    pub(super) context: Arc<Context>,
    pub(super) reserve: Arc<Reserve>,
    pub(super) verifier: Arc<Verifier>,
    pub(super) fills: Arc<FillPool>,
    pub(super) streams: Arc<Streams>,
    pub(super) manifests: Arc<Manifests>,
    pub(super) blobs: Blobs,
    pub(super) repairs: Repairs,
    pub(super) table: Arc<TagTable>,
    pub(super) tags: Arc<Tags>,
    pub(super) lists: Lists,
    pub(super) pull_secrets: PullSecrets,
    pub(super) recovery: Recovery,
}

impl Parts {
    /// Builds the parts and starts the threads of the download slots.
    ///
    /// # Errors
    /// The system gives no thread, or no random numbers.
    pub(super) fn start(context: Context) -> std::io::Result<Parts> {
        let context = Arc::new(context);
        let in_flight = Arc::new(FillTable::default());
        let table = Arc::new(TagTable::default());
        let settler = Arc::new(Settler::new(Arc::clone(&context), Arc::clone(&table)));
        let arrivals: Arc<dyn Arrivals> = Arc::<Settler>::clone(&settler);
        let questions = Arc::new(Questions::new(&context));
        let reserve = Arc::new(Reserve::new(Arc::clone(&context), Arc::clone(&in_flight)));
        let verifier = Arc::new(Verifier::new(Arc::clone(&context), Arc::clone(&in_flight)));
        let fills =
            FillPool::start(Arc::clone(&context), Arc::clone(&reserve), in_flight, Arc::clone(&arrivals))?;
        let streams = Arc::new(Streams::new(Arc::clone(&context)));
        let proofs = Arc::new(Proofs::new(Arc::clone(&context)));
        let named = Arc::new(NamedBlobs::default());
        let manifests = Arc::new(Manifests {
            context: Arc::clone(&context),
            questions: Arc::clone(&questions),
            reserve: Arc::clone(&reserve),
            verifier: Arc::clone(&verifier),
            streams: Arc::clone(&streams),
            arrivals,
            named: Arc::clone(&named),
            asked: AskedManifests::default(),
            proofs: Arc::clone(&proofs),
        });
        let blobs = Blobs {
            context: Arc::clone(&context),
            questions: Arc::clone(&questions),
            verifier: Arc::clone(&verifier),
            fills: Arc::clone(&fills),
            streams: Arc::clone(&streams),
            named,
            proofs: Arc::clone(&proofs),
        };
        let repairs = Repairs::new(Arc::clone(&context), Arc::clone(&manifests), Arc::clone(&fills));
        let tags = Arc::new(Tags::new(
            Arc::clone(&context),
            Arc::clone(&questions),
            Arc::clone(&manifests),
            Arc::clone(&table),
            settler,
            proofs,
        ));
        let lists = Lists { context: Arc::clone(&context), questions, cursors: Cursors::new()? };
        let pull_secrets = PullSecrets::new(Arc::clone(&context))?;
        let recovery = Recovery::default();
        Ok(Parts {
            context,
            reserve,
            verifier,
            fills,
            streams,
            manifests,
            blobs,
            repairs,
            table,
            tags,
            lists,
            pull_secrets,
            recovery,
        })
    }
}

/// When a recovery of the index was last tried, so that it is not tried all the time on a disk that takes no index.
#[derive(Default)]
pub(super) struct Recovery(Mutex<Option<Instant>>);

impl Recovery {
    /// Whether it is time for another try; if so, the try is noted as made.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        let mut last = self.0.lock();
        let due = last.is_none_or(|at| now.saturating_duration_since(at) >= budget::REBUILD_PAUSE);
        if due {
            *last = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_that_fails_is_not_recovered_all_the_time() {
        let (recovery, now) = (Recovery::default(), Instant::now());
        assert!(recovery.is_due(now) && !recovery.is_due(now + budget::REBUILD_PAUSE / 2));
        assert!(recovery.is_due(now + budget::REBUILD_PAUSE));
    }
}
