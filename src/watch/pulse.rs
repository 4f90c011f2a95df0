//! Whether the watchdog is notified.
//!
//! The sign of life is a look-up in the index, made by the threads that serve clients: it takes the runtime, a thread
//! that may wait for the disk, the index's lock and a record that can be read. While the index is being
//! rebuilt, progress of the rebuild counts instead. On a disk that takes no index the rebuild is retried every minute, and
//! each retry counts too: a restart would not help, and content is served by digest meanwhile.

use super::Notify;
use crate::budget;
use crate::store::{Store, StoreError};
use crate::sync::Mutex;
use std::sync::Arc;

/// What was seen of the store at the last look.
pub struct Pulse {
    store: Arc<Store>,
    /// How far the rebuild of the index was; `None` before the first look.
    rebuilt: Mutex<Option<u64>>,
}

impl Pulse {
    /// The pulse of a store.
    pub fn of(store: Arc<Store>) -> Pulse {
        Pulse { store, rebuilt: Mutex::new(None) }
    }

    /// Looks once. May wait for the disk.
    pub fn beats(&self) -> bool {
        match self.store.repositories(None, 1) {
            Ok(_) => true,
            Err(StoreError::Rebuilding) => {
                let now = self.store.rebuilt();
                let before = self.rebuilt.lock().replace(now);
                before != Some(now)
            }
            Err(problem) => {
                log::warn!("the watchdog is not notified, because the index cannot be read: {problem}");
                false
            }
        }
    }

    /// Notifies the service manager of each beat, and of the status when it has changed, until it is dropped.
    pub async fn tell(self, notify: Arc<Notify>, status: impl Fn() -> String) {
        if !notify.is_heard() {
            return;
        }
        let pulse = Arc::new(self);
        let every =
            notify.watchdog().map_or(budget::STATUS_EVERY, |longest| longest / budget::WATCHDOG_BEATS);
        let mut told = String::new();
        loop {
            let (looking, to) = (Arc::clone(&pulse), Arc::clone(&notify));
            let look = move || {
                if looking.beats() {
                    to.alive();
                }
            };
            // A look that panics is a missing beat.
            let _ = crate::sync::blocking(look).await;
            let now = status();
            if now != told {
                notify.status(&now);
                told = now;
            }
            tokio::time::sleep(every).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_that_answers_is_life_and_one_that_is_not_made_is_none() {
        let folder = std::env::temp_dir().join(format!("larder-pulse-{}", std::process::id()));
        let (store, startup) = Store::open(&folder, 3).unwrap();
        assert!(!startup.needs_rebuild());
        let pulse = Pulse::of(Arc::new(store));
        assert!(pulse.beats() && pulse.beats(), "an empty index can be read");
        let repository = "docker.io/library/app".parse().unwrap();
        pulse.store.tag_pin(&repository, &"latest".parse().unwrap(), true).unwrap();
        drop(pulse);

        std::fs::remove_dir_all(folder.join("index")).unwrap();
        let (store, startup) = Store::open(&folder, 3).unwrap();
        assert!(startup.needs_rebuild());
        let pulse = Pulse::of(Arc::new(store));
        assert!(pulse.beats(), "the making may have begun");
        assert!(!pulse.beats(), "nothing has got further since");
        let before = pulse.store.rebuilt();
        pulse.store.rebuild().unwrap();
        assert!(pulse.store.rebuilt() > before, "a rebuild counts what it reads");
        assert!(pulse.beats() && pulse.beats(), "it is there again");
        drop(pulse);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
