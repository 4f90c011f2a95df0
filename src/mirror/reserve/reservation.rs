//! Reservations: the bytes that running fills will still write.
//!
//! What a fill that is waited for has reserved is its own. What one that nobody waits for has is not: it gets what is free
//! when it writes, and nothing goes for it.

use super::super::progress::Fill;
use super::{Goal, Reserve};
use crate::budget;
use crate::store::StoreError;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// All reservations.
#[derive(Debug, Default)]
pub(super) struct Reserved {
    of: HashMap<u64, Share>,
    opened: u64,
}

/// What one fill has reserved.
#[derive(Debug)]
struct Share {
    bytes: u64,
    /// `None`: it is waited for in any case.
    fill: Option<Arc<Fill>>,
}

impl Share {
    fn is_awaited(&self) -> bool {
        self.fill.as_ref().is_none_or(|fill| fill.is_awaited())
    }
}

/// For whom room is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum For {
    /// Who waits for it: what nobody waits for does not count, but for what may be on its way to the disk.
    Awaited,
    /// Nobody: all that is reserved is left alone.
    Nobody,
}

impl Reserved {
    /// The bytes that others than `but` have reserved.
    pub(super) fn by_others(&self, but: Option<u64>, whom: For) -> u64 {
        let others = self.of.iter().filter(|(number, _)| Some(**number) != but);
        let bytes = others.map(|(_, share)| match whom {
            For::Awaited if !share.is_awaited() => share.bytes.min(budget::FETCH_CHUNK_BYTES as u64),
            For::Awaited | For::Nobody => share.bytes,
        });
        bytes.fold(0, u64::saturating_add)
    }
}

/// The bytes that one fill will still write. Dropping it releases them.
pub(in crate::mirror) struct Reservation<'a> {
    reserve: &'a Reserve,
    number: u64,
    bytes: u64,
    fill: Option<Arc<Fill>>,
}

impl<'a> Reservation<'a> {
    /// A reservation of nothing yet.
    pub(super) fn open(reserve: &'a Reserve, fill: Option<Arc<Fill>>) -> Reservation<'a> {
        let mut reserved = reserve.reserved.lock();
        reserved.opened += 1;
        let number = reserved.opened;
        reserved.of.insert(number, Share { bytes: 0, fill: fill.clone() });
        Reservation { reserve, number, bytes: 0, fill }
    }

    /// Changes the reservation to `bytes`.
    pub(super) fn set(&mut self, bytes: u64) {
        if let Some(share) = self.reserve.reserved.lock().of.get_mut(&self.number) {
            share.bytes = bytes;
        }
        self.bytes = bytes;
    }

    /// Room for the next `bytes` of a fill of which `rest` are to come, these included, if a manifest states that. Something
    /// goes for it only while it is waited for.
    ///
    /// # Errors
    /// [`StoreError::NoRoom`] if there is none, or others have filled the disk meanwhile.
    pub(in crate::mirror) fn next(&mut self, bytes: u64, rest: Option<u64>) -> Result<(), StoreError> {
        match (rest, &self.fill) {
            (Some(rest), fill) if fill.as_ref().is_none_or(|fill| fill.is_awaited()) => {
                if self.bytes < rest {
                    self.make(rest)
                } else {
                    self.holds()
                }
            }
            (Some(_), _) => {
                // What it had while it was waited for is not its own any more.
                self.set(0);
                self.take_free(bytes, bytes)
            }
            (None, _) if self.bytes >= bytes => Ok(()),
            (None, _) => self.take_free(bytes.max(budget::ROOM_STEP_BYTES), bytes),
        }
    }

    /// Reserves `bytes` in place of what was reserved, and makes room for them.
    ///
    /// # Errors
    /// [`StoreError::NoRoom`] if nothing that may be removed would make room; then nothing was removed.
    pub(super) fn make(&mut self, bytes: u64) -> Result<(), StoreError> {
        // One at a time, so that two fills do not count on the same bytes.
        let _turn = self.reserve.turn.lock();
        let lacking = self.reserve.shortage(bytes, Some(self.number), For::Awaited)?.bytes();
        if lacking > 0 && self.reserve.free(lacking, Goal::All) < lacking {
            return Err(self.reserve.no_room_for(bytes)?);
        }
        self.set(bytes);
        Ok(())
    }

    /// Reserves `most` bytes of what is free in place of what was reserved, or else `least`.
    fn take_free(&mut self, most: u64, least: u64) -> Result<(), StoreError> {
        let _turn = self.reserve.turn.lock();
        for bytes in [most, least] {
            if self.reserve.shortage(bytes, Some(self.number), For::Nobody)?.bytes() == 0 {
                self.set(bytes);
                return Ok(());
            }
        }
        Err(self.reserve.no_room_for(least)?)
    }

    /// So many of the reserved bytes are written.
    pub(in crate::mirror) fn used(&mut self, bytes: u64) {
        self.set(self.bytes.saturating_sub(bytes));
    }

    /// Whether what is reserved may still be written.
    pub(super) fn holds(&self) -> Result<(), StoreError> {
        if self.reserve.short.load(Ordering::Relaxed) {
            return Err(self.reserve.no_room_for(self.bytes)?);
        }
        Ok(())
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.reserve.reserved.lock().of.remove(&self.number);
    }
}
