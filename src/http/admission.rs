//! Admission: how many connections and bodies `memory.max` allows, and what happens to one more (rule 5).
//!
//! A small request needs no permit for a body, so that tags are answered while as many bodies are served as memory allows.
//! One connection or body too many waits briefly and is then answered 503 with Retry-After: a client tries its next host
//! at once after a 503, and waits for an answer without a time-out.

use crate::budget;
use crate::config::Config;
use crate::mirror::Refusal;
use bytes::Bytes;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Allows one connection or one body, until it is dropped.
pub(super) type AdmissionPermit = OwnedSemaphorePermit;

/// The permits for connections and bodies.
pub(super) struct Admission {
    connections: Arc<Semaphore>,
    connections_max: u32,
    bodies: Arc<Semaphore>,
    bodies_max: u64,
}

impl Admission {
    /// Divides the memory that `memory.max` leaves to clients: a quarter for connections, the rest for bodies.
    pub(super) fn new(config: &Config) -> Admission {
        let fixed = budget::MEMORY_BASE_BYTES
            + config.fetch.streams as u64 * budget::DOWNLOAD_COST_BYTES
            + config.kit.as_ref().map_or(0, |_| budget::KIT_BYTES);
        let tls = config.tls.as_ref().map_or(0, |_| budget::CONNECTION_TLS_COST_BYTES);
        let cost = budget::CONNECTION_COST_BYTES + tls;
        let (connections_max, bodies_max) = permits(config.memory_max.saturating_sub(fixed), cost);
        let semaphore =
            |permits: u64| Arc::new(Semaphore::new(usize::try_from(permits).unwrap_or(usize::MAX)));
        Admission {
            connections: semaphore(connections_max),
            connections_max: u32::try_from(connections_max).unwrap_or(u32::MAX),
            bodies: semaphore(bodies_max),
            bodies_max,
        }
    }

    /// A permit for a connection, if one is free before long.
    pub(super) async fn connection(&self) -> Option<AdmissionPermit> {
        wait_briefly(&self.connections).await
    }

    /// A permit for a body.
    ///
    /// # Errors
    /// [`Refusal::Busy`] if none is free before long.
    pub(super) async fn body(&self) -> Result<AdmissionPermit, Refusal> {
        let max = self.bodies_max;
        let busy = || Refusal::Busy(format!("all {max} client downloads that memory.max allows are in use"));
        wait_briefly(&self.bodies).await.ok_or_else(busy)
    }

    /// The bytes of an answer that is in memory until its client has taken it. A long one needs as many permits as bodies
    /// of its size, and all if there are fewer.
    ///
    /// # Errors
    /// [`Refusal::Busy`] if they are not free before long.
    pub(super) async fn in_memory(&self, bytes: Vec<u8>) -> Result<Bytes, Refusal> {
        let cost = (bytes.len() as u64 / budget::BODY_COST_BYTES).min(self.bodies_max);
        if cost == 0 {
            return Ok(bytes.into());
        }
        let permits = Arc::clone(&self.bodies).acquire_many_owned(u32::try_from(cost).unwrap_or(u32::MAX));
        match tokio::time::timeout(budget::ADMISSION_WAIT_MAX, permits).await {
            Ok(Ok(permits)) => Ok(Bytes::from_owner(Admitted { bytes, _permits: permits })),
            _ => Err(Refusal::Busy(format!("there is no room in memory for {} bytes; retry", bytes.len()))),
        }
    }

    /// Waits until every connection has ended.
    pub(super) async fn emptied(&self) {
        let _ = self.connections.acquire_many(self.connections_max).await;
    }
}

/// Bytes, and the permits for them.
struct Admitted {
    bytes: Vec<u8>,
    _permits: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Admitted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

async fn wait_briefly(permits: &Arc<Semaphore>) -> Option<AdmissionPermit> {
    let permit = Arc::clone(permits).acquire_owned();
    tokio::time::timeout(budget::ADMISSION_WAIT_MAX, permit).await.ok()?.ok()
}

/// Connections and bodies at a time in `left` bytes of memory, of which a connection costs `connection_cost`.
fn permits(left: u64, connection_cost: u64) -> (u64, u64) {
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
        let of = |mib: u64| permits(mib * budget::MIB, budget::CONNECTION_COST_BYTES);
        assert_eq!(of(52), (512, 312));
        assert_eq!(of(12), (128, 72));
        assert_eq!(of(4), (42, 24));
        assert_eq!(of(0), (budget::CLIENTS_MIN, budget::CLIENTS_MIN));
        assert_eq!(of(1 << 20), (budget::CONNECTIONS_MAX, budget::CONNECTIONS_MAX));
    }

    #[tokio::test]
    async fn a_long_answer_in_memory_takes_the_place_of_bodies_until_it_is_taken() {
        let bodies = Arc::new(Semaphore::new(20));
        let connections = Arc::new(Semaphore::new(1));
        let admission =
            Admission { connections, connections_max: 1, bodies: Arc::clone(&bodies), bodies_max: 20 };
        let of = |bodies: u64| vec![0; usize::try_from(bodies * budget::BODY_COST_BYTES).unwrap()];
        let small = admission.in_memory(vec![0; 1000]).await.unwrap();
        let long = admission.in_memory(of(15)).await.unwrap();
        assert_eq!((small.len(), bodies.available_permits()), (1000, 5));
        assert!(admission.in_memory(of(10)).await.is_err());
        drop(long);
        let longest = admission.in_memory(of(32)).await.unwrap();
        assert_eq!(bodies.available_permits(), 0);
        drop(longest);
        assert_eq!(bodies.available_permits(), 20);
    }
}
