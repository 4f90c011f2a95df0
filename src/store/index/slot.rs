//! The place of the index in the store, and the state that it is in.
//!
//! One enum holds whether there is an index, whether it is damaged, and whether one can be built; so these cannot
//! contradict each other. A damaged index goes on answering what it can: a record that is corrupt is an error and never
//! a wrong answer.

use super::super::error::{Result, StoreError};
use super::super::journal::Journal;
use super::{Index, close};
use crate::sync::{Mutex, RwLock};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

enum IndexState {
    /// In service.
    Ready(Arc<Index>),
    /// A record was corrupt: it has to be rebuilt.
    Damaged(Arc<Index>),
    /// A write failed, after which LMDB does nothing more: to reopen it may be enough.
    Stuck(Arc<Index>),
    /// There is none yet.
    Rebuilding,
    /// There is none, and the last attempt to build one failed.
    Unbuildable,
}

impl IndexState {
    fn index(&self) -> Option<&Arc<Index>> {
        match self {
            IndexState::Ready(index) | IndexState::Damaged(index) | IndexState::Stuck(index) => Some(index),
            IndexState::Rebuilding | IndexState::Unbuildable => None,
        }
    }
}

/// Holds the index of a store.
pub(in crate::store) struct IndexSlot {
    state: RwLock<IndexState>,
    /// Attempts to build an index, and what they have read, since the start.
    progress: AtomicU64,
}

impl IndexSlot {
    /// One without an index.
    pub(in crate::store) fn empty() -> IndexSlot {
        IndexSlot { state: RwLock::new(IndexState::Rebuilding), progress: AtomicU64::new(0) }
    }

    pub(in crate::store) fn get(&self) -> Result<Arc<Index>> {
        self.state.read().index().cloned().ok_or(StoreError::Rebuilding)
    }

    /// Asks the index.
    pub(in crate::store) fn ask<T>(&self, work: impl FnOnce(&Index) -> Result<T>) -> Result<T> {
        let index = self.get()?;
        self.watch(&index, work(&index))
    }

    /// Changes the index, after the journal was brought to the format that makes an older larder refuse the store.
    pub(in crate::store) fn change(
        &self,
        journal: &Mutex<Journal>,
        work: impl FnOnce(&Index) -> Result<()>,
    ) -> Result<()> {
        let index = self.get()?;
        if index.is_of_older_schema() {
            journal.lock().upgrade()?;
        }
        self.watch(&index, work(&index))
    }

    /// Takes the state from what `index` answered.
    pub(in crate::store) fn watch<T>(&self, index: &Arc<Index>, result: Result<T>) -> Result<T> {
        if let Err(problem @ (StoreError::Stuck(_) | StoreError::Damaged(_))) = &result {
            let mut state = self.state.write();
            if !state.index().is_some_and(|now| Arc::ptr_eq(now, index)) {
                return result;
            }
            match (problem, &*state) {
                (StoreError::Stuck(what), IndexState::Ready(_) | IndexState::Damaged(_)) => {
                    log::error!("a write to the index failed ({what}); it will be reopened");
                    *state = IndexState::Stuck(Arc::clone(index));
                }
                (StoreError::Damaged(what), IndexState::Ready(_)) => {
                    log::error!("the index is damaged ({what}); it will be rebuilt");
                    *state = IndexState::Damaged(Arc::clone(index));
                }
                _ => {}
            }
        }
        result
    }

    /// Puts an index into service.
    pub(in crate::store) fn put(&self, index: Index) {
        *self.state.write() = IndexState::Ready(Arc::new(index));
    }

    /// Takes the index out of service and waits until nobody reads it any more, so that its folder can be replaced.
    pub(in crate::store) fn close(&self) {
        let mut state = self.state.write();
        let Some(index) = state.index().cloned() else { return };
        *state = IndexState::Rebuilding;
        drop(state);
        close(index);
    }

    /// The attempt to build an index has failed.
    pub(in crate::store) fn cannot_be_built(&self) {
        let mut state = self.state.write();
        // Another attempt may have put one into service meanwhile.
        if !matches!(*state, IndexState::Ready(_)) {
            *state = IndexState::Unbuildable;
        }
    }

    pub(in crate::store) fn is_there(&self) -> bool {
        self.state.read().index().is_some()
    }

    pub(in crate::store) fn is_ready(&self) -> bool {
        matches!(*self.state.read(), IndexState::Ready(_))
    }

    pub(in crate::store) fn is_stuck(&self) -> bool {
        matches!(*self.state.read(), IndexState::Stuck(_))
    }

    pub(in crate::store) fn is_unbuildable(&self) -> bool {
        matches!(*self.state.read(), IndexState::Unbuildable)
    }

    pub(in crate::store) fn advance(&self, by: u64) {
        self.progress.fetch_add(by, Ordering::Relaxed);
    }

    pub(in crate::store) fn progress(&self) -> u64 {
        self.progress.load(Ordering::Relaxed)
    }
}
