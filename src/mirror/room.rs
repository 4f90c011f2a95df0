//! Making room: removes images when a download or a limit needs it (rule 6), one attempt at a time.

use super::Mirror;
use crate::budget;
use crate::image::{Busy, Catalogue, Gone, Otherwise};
use crate::store::StoreError;
use crate::text::bytes_text;
use std::time::Instant;

/// What is remembered of attempts that freed nothing, so that they are not made again at once.
#[derive(Default)]
pub(super) struct Attempts {
    /// When, how many bytes were needed, and how many there were on the disk.
    failed: Option<(Instant, u64, u64)>,
}

impl Mirror {
    /// Removes images until `needed` more bytes are free; the bytes that are.
    pub(super) fn make_room(&self, needed: u64, otherwise: Otherwise) -> u64 {
        let mut attempts = self.room.lock();
        let same = |(at, least, stored): (Instant, u64, u64)| {
            needed >= least && stored == self.store.stored_bytes() && at.elapsed() < budget::ROOM_PAUSE
        };
        if attempts.failed.is_some_and(same) {
            return 0;
        }
        let gone = Catalogue::take(&self.store, &self.config, &self.busy()).and_then(|catalogue| {
            let victims = catalogue.choose(needed, otherwise);
            catalogue.remove(&self.store, &victims)
        });
        let gone = gone.unwrap_or_else(|problem| {
            log::warn!("no room could be made: {problem}");
            Vec::new()
        });
        for image in &gone {
            log::info!("evicted {}: {} are free again", image.what, bytes_text(image.bytes));
        }
        let freed = gone.iter().map(|image| image.bytes).sum();
        self.counters.count_evicted(freed);
        attempts.failed = (freed < needed).then(|| (Instant::now(), needed, self.store.stored_bytes()));
        if freed < needed {
            log::warn!(
                "{} more are needed on the disk, and nothing that may go would free them",
                bytes_text(needed)
            );
        }
        freed
    }

    /// Removes the images that were used last at this count or before, and may go.
    pub(super) fn remove_unused(&self, count: u64) -> Result<Vec<Gone>, StoreError> {
        let _turn = self.room.lock();
        let catalogue = Catalogue::take(&self.store, &self.config, &self.busy())?;
        catalogue.remove(&self.store, &catalogue.unused_since(count))
    }

    /// What must not go just now.
    pub fn busy(&self) -> Busy {
        Busy { fills: self.fills.under_way(), repositories: self.pulls.busy() }
    }

    /// Keeps `disk.max` and `disk.min_free`, whoever it was that took the space.
    pub(super) fn watch_disk(&self) {
        match self.fills.lacking(0, 0) {
            Ok(lacking) => {
                lacking.bring_about(|needed, otherwise| self.make_room(needed, otherwise));
            }
            Err(problem) => log::warn!("the disk cannot be looked at: {problem}"),
        }
    }
}
