//! Changes of the links to upstreams. Outages are remembered over restarts, so that a cold offline boot answers at once;
//! when an upstream is back, parked fills resume.

use super::parts::Parts;
use crate::fetch::{Endpoint, LinkState};
use crate::oci::RegistryName;
use crate::store::{Store, StoreError};
use std::sync::{Arc, Weak};

/// Restores the last known state of every endpoint, and follows their changes.
pub(super) fn watch(parts: &Arc<Parts>) {
    let store = &parts.context.store;
    for upstream in parts.context.upstreams.iter() {
        for endpoint in upstream.endpoints() {
            match store.note(endpoint.note()) {
                Ok(Some(cause)) => endpoint.breaker().restore_down(&cause),
                Ok(None) | Err(StoreError::Rebuilding) => {}
                Err(problem) => log::warn!("the last state of {} is not known: {problem}", upstream.name()),
            }
        }
    }
    let changed: Weak<Parts> = Arc::downgrade(parts);
    parts.context.upstreams.on_change(Box::new(move |registry, endpoint, link| {
        if let Some(parts) = changed.upgrade() {
            link_changed(&parts, registry, endpoint, link);
        }
    }));
    for upstream in parts.context.upstreams.iter() {
        // A registry without cached images is not probed until a client asks for it.
        if has_pulled_from(store, upstream.name()) {
            upstream.start_probe();
        }
    }
}

fn has_pulled_from(store: &Store, registry: &RegistryName) -> bool {
    let first = store.repositories(Some(&format!("{registry}/")), 1);
    first.is_ok_and(|names| names.first().is_some_and(|name| name.registry == *registry))
}

fn link_changed(parts: &Parts, registry: &RegistryName, endpoint: &Endpoint, link: &LinkState) {
    let several = parts.context.upstreams.find(registry).is_some_and(|one| one.endpoints().len() > 1);
    let at = if several { format!(" ({})", endpoint.name()) } else { String::new() };
    let text = match link {
        LinkState::Up => {
            log::info!("upstream {registry}{at} answers");
            parts.fills.resume(registry);
            parts.repairs.retry();
            None
        }
        LinkState::Slow { .. } => {
            log::warn!("upstream {registry}{at} is slow; cached tags are answered without waiting for it");
            return;
        }
        LinkState::Failing { cause, .. } => {
            log::warn!("upstream {registry}{at} answers with failures: {cause}");
            Some(cause.as_str())
        }
        LinkState::Down { cause, .. } => {
            log::warn!("upstream {registry}{at} cannot be reached: {cause}");
            Some(cause.as_str())
        }
        LinkState::NotAsked => return,
    };
    match parts.context.store.set_note(endpoint.note(), text) {
        Ok(()) | Err(StoreError::Rebuilding) => {}
        Err(problem) => log::warn!("the state of {registry} could not be saved: {problem}"),
    }
}
