//! Admission: how many connections and bodies `memory.max` pays for, and what happens to one more (design rule 5).
//!
//! Small questions cost little, so that a tag is answered while bodies are being served to as many clients as there is
//! memory for. What does not fit waits briefly and is then answered 503 with Retry-After: a client goes to its next
//! host at once, where one that is left waiting has no time-out at all.

use crate::budget;
use crate::config::Config;
use crate::mirror::Refusal;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A place that is given back when it is dropped.
pub(super) type AdmissionPermit = OwnedSemaphorePermit;

/// The places there are.
pub(super) struct Admission {
    connections: Arc<Semaphore>,
    connections_max: u32,
    bodies: Arc<Semaphore>,
    bodies_max: u64,
}

impl Admission {
    /// Divides what `memory.max` leaves beside the process itself: a quarter to connections, the rest to bodies.
    pub(super) fn new(config: &Config) -> Admission {
        let fixed = budget::MEMORY_BASE_BYTES
            + config.fetch.streams as u64 * budget::DOWNLOAD_COST_BYTES
            + config.kit.as_ref().map_or(0, |_| budget::KIT_BYTES);
        let tls = config.tls.as_ref().map_or(0, |_| budget::CONNECTION_TLS_COST_BYTES);
        let cost = budget::CONNECTION_COST_BYTES + tls;
        let (connections_max, bodies_max) = places(config.memory_max.saturating_sub(fixed), cost);
        let semaphore = |places: u64| Arc::new(Semaphore::new(usize::try_from(places).unwrap_or(usize::MAX)));
        Admission {
            connections: semaphore(connections_max),
            connections_max: u32::try_from(connections_max).unwrap_or(u32::MAX),
            bodies: semaphore(bodies_max),
            bodies_max,
        }
    }

    /// A place for a connection, if one is free before long.
    pub(super) async fn connection(&self) -> Option<AdmissionPermit> {
        before_long(&self.connections).await
    }

    /// A place for a body.
    ///
    /// # Errors
    /// [`Refusal::Busy`] if none is free before long.
    pub(super) async fn body(&self) -> Result<AdmissionPermit, Refusal> {
        let busy = || {
            Refusal::Busy(format!("{} clients are being served, all that memory.max allows", self.bodies_max))
        };
        before_long(&self.bodies).await.ok_or_else(busy)
    }

    /// Waits until every connection has ended.
    pub(super) async fn emptied(&self) {
        let _ = self.connections.acquire_many(self.connections_max).await;
    }
}

async fn before_long(places: &Arc<Semaphore>) -> Option<AdmissionPermit> {
    let place = Arc::clone(places).acquire_owned();
    tokio::time::timeout(budget::ADMISSION_WAIT_MAX, place).await.ok()?.ok()
}

/// Connections and bodies at a time, of `left` bytes of memory where a connection costs so many.
fn places(left: u64, connection_cost: u64) -> (u64, u64) {
    let connections = left / 4 / connection_cost;
    let connections = connections.clamp(budget::CLIENTS_MIN, budget::CONNECTIONS_MAX);
    let bodies = (left - left / 4) / budget::BODY_COST_BYTES;
    (connections, bodies.clamp(budget::CLIENTS_MIN, connections))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_memory_more_clients_and_never_too_few() {
        let of = |mib: u64| places(mib * budget::MIB, budget::CONNECTION_COST_BYTES);
        assert_eq!(of(52), (512, 312));
        assert_eq!(of(12), (128, 72));
        assert_eq!(of(4), (42, 24));
        assert_eq!(of(0), (budget::CLIENTS_MIN, budget::CLIENTS_MIN));
        assert_eq!(of(1 << 20), (budget::CONNECTIONS_MAX, budget::CONNECTIONS_MAX));
    }
}
