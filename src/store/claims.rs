//! Who writes which staged content just now: one writer for each key. A claim ends with its writer, or is revoked so that
//! what was written makes room at once; from then on its writer changes nothing that has the name. What is about to become
//! a blob is not revoked any more.

use super::error::{Result, StoreError};
use super::staging::ContentKey;
use crate::sync::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

/// What is being written just now.
#[derive(Debug, Default, Clone)]
pub(super) struct Claims(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    held: HashMap<ContentKey, Held>,
    taken: u64,
}

#[derive(Debug)]
struct Held {
    number: u64,
    /// It is becoming a blob.
    fixed: bool,
}

impl Claims {
    pub(super) fn take(&self, key: &ContentKey) -> Result<StagingClaim> {
        let mut state = self.0.lock();
        if state.held.contains_key(key) {
            return Err(StoreError::Busy(Box::new(key.digest.clone())));
        }
        state.taken += 1;
        let number = state.taken;
        state.held.insert(key.clone(), Held { number, fixed: false });
        Ok(StagingClaim { claims: self.clone(), key: key.clone(), number })
    }

    pub(super) fn contains(&self, key: &ContentKey) -> bool {
        self.0.lock().held.contains_key(key)
    }

    /// Ends the claim on some content, if there is one, and calls `remove` before another can be made.
    pub(super) fn revoke(&self, key: &ContentKey, remove: impl FnOnce()) -> Result<()> {
        let mut state = self.0.lock();
        if state.held.get(key).is_some_and(|held| held.fixed) {
            return Err(StoreError::Busy(Box::new(key.digest.clone())));
        }
        state.held.remove(key);
        remove();
        Ok(())
    }
}

/// The right to write the content of one key; given back on drop.
#[derive(Debug)]
pub(super) struct StagingClaim {
    claims: Claims,
    key: ContentKey,
    number: u64,
}

impl StagingClaim {
    /// Calls `work` unless the claim was revoked, and no other can be made meanwhile. Whether it was called.
    pub(super) fn while_held(&self, work: impl FnOnce()) -> bool {
        self.with(|_| work()).is_some()
    }

    /// From now on it is not revoked. `false`: it was.
    pub(super) fn fix(&self) -> bool {
        self.with(|held| held.fixed = true).is_some()
    }

    fn with<T>(&self, work: impl FnOnce(&mut Held) -> T) -> Option<T> {
        let mut state = self.claims.0.lock();
        state.held.get_mut(&self.key).filter(|held| held.number == self.number).map(work)
    }
}

impl Drop for StagingClaim {
    fn drop(&mut self) {
        let mut state = self.claims.0.lock();
        if state.held.get(&self.key).is_some_and(|held| held.number == self.number) {
            state.held.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::AccessClass;
    use crate::oci::{Algorithm, Digest};

    fn key() -> ContentKey {
        let digest = Digest::of(Algorithm::Sha256, b"layer");
        ContentKey::shared("docker.io".parse().unwrap(), AccessClass::Public, digest)
    }

    #[test]
    fn a_revoked_claim_is_no_more_and_does_not_disturb_the_next() {
        let claims = Claims::default();
        let first = claims.take(&key()).unwrap();
        assert!(matches!(claims.take(&key()), Err(StoreError::Busy(_))));
        assert!(first.while_held(|| {}));
        claims.revoke(&key(), || {}).unwrap();
        assert!(!first.while_held(|| panic!("it was revoked")) && !first.fix());
        let second = claims.take(&key()).unwrap();
        drop(first);
        assert!(claims.contains(&key()) && second.while_held(|| {}));
        assert!(second.fix());
        claims.revoke(&key(), || panic!("it becomes a blob")).unwrap_err();
        drop(second);
        assert!(!claims.contains(&key()));
        claims.revoke(&key(), || {}).unwrap();
    }
}
