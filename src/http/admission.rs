//! Admission: how many connections and bodies `memory.max` allows, and what happens to one more (rule 5).
//!
//! A small request needs no permit for a body, so that tags are answered while as many bodies are served as memory allows.
//! One connection or body too many waits briefly and is then answered 503 with Retry-After: a client tries its next host
//! at once after a 503, and waits for an answer without a time-out.
//!
//! Of connections, of bodies and of the places of those that wait, the last ones are kept for clients that have none
//! ([`Places`]), so that one client cannot shut the others out. A connection that waits has its first request read all the
//! same: `/healthz` and `/readyz` are answered at once, so that they have places of their own.

use crate::budget;
use crate::config::Config;
use crate::mirror::Refusal;
use crate::places::{Place, Places, client};
use crate::sync::Mutex;
use std::net::IpAddr;
use bytes::Bytes;

/// Allows one connection or one body, until it is dropped.
pub(super) type AdmissionPermit = Place<IpAddr>;

/// The permits for connections and bodies.
pub(super) struct Admission {
    connections: Places<IpAddr>,
    /// For connections that wait for their permit.
    waiting: Places<IpAddr>,
    bodies: Places<IpAddr>,
}

/// A connection's permit, or the place where it waits for one.
pub(super) struct ConnectionPermit(Mutex<PermitState>);

struct PermitState {
    client: IpAddr,
    place: AdmissionPermit,
    admitted: bool,
}

impl Admission {
    /// Divides the memory that `memory.max` leaves to clients: a quarter for connections, the rest for bodies.
    pub(super) fn new(config: &Config) -> Admission {
        let fixed = budget::MEMORY_BASE_BYTES
            + config.fetch.streams as u64 * budget::DOWNLOAD_COST_BYTES
            + config.kit.as_ref().map_or(0, |_| budget::KIT_BYTES);
        let tls = config.tls.as_ref().map_or(0, |_| budget::CONNECTION_TLS_COST_BYTES);
        let cost = budget::CONNECTION_COST_BYTES + tls;
        let (connections, bodies) = permits(config.memory_max.saturating_sub(fixed), cost);
        let places = |permits: u64| Places::new(usize::try_from(permits).unwrap_or(usize::MAX));
        Admission {
            connections: places(connections),
            waiting: Places::new(budget::CONNECTIONS_WAITING_MAX),
            bodies: places(bodies),
        }
    }

    /// A permit for a connection, or a place to wait for one; `None` if the client has no right to either.
    pub(super) fn connection(&self, address: IpAddr) -> Option<ConnectionPermit> {
        let client = client(address);
        let admitted = self.connections.take(&client);
        let (admitted, place) = match admitted {
            Some(place) => (true, place),
            None => (false, self.waiting.take(&client)?),
        };
        Some(ConnectionPermit(Mutex::new(PermitState { client, place, admitted })))
    }

    /// Admits a connection that waits, if there is a permit before long; whether it is admitted then.
    pub(super) async fn admit(&self, connection: &ConnectionPermit) -> bool {
        if connection.is_admitted() {
            return true;
        }
        let client = connection.0.lock().client;
        let Some(place) = self.connections.wait(&client, budget::ADMISSION_WAIT_MAX).await else {
            return false;
        };
        let mut state = connection.0.lock();
        (state.place, state.admitted) = (place, true);
        true
    }

    /// A permit for a body.
    ///
    /// # Errors
    /// [`Refusal::Busy`] if none is free for this client before long.
    pub(super) async fn body(&self, address: IpAddr) -> Result<AdmissionPermit, Refusal> {
        let max = self.bodies.most();
        let busy = || Refusal::Busy(format!("all {max} client downloads that memory.max allows are in use"));
        self.bodies.wait(&client(address), budget::ADMISSION_WAIT_MAX).await.ok_or_else(busy)
    }

    /// The bytes of an answer that is in memory until its client has taken it. A long one needs as many permits as bodies
    /// of its size, or as many as one client may have if those are fewer.
    ///
    /// # Errors
    /// [`Refusal::Busy`] if they are not free before long.
    pub(super) async fn in_memory(&self, address: IpAddr, bytes: Vec<u8>) -> Result<Bytes, Refusal> {
        let cost = usize::try_from(bytes.len() as u64 / budget::BODY_COST_BYTES).unwrap_or(usize::MAX);
        if cost == 0 {
            return Ok(bytes.into());
        }
        match self.bodies.wait_for(cost, &client(address), budget::ADMISSION_WAIT_MAX).await {
            Some(permits) => Ok(Bytes::from_owner(Admitted { bytes, _permits: permits })),
            None => Err(Refusal::Busy(format!("there is no room in memory for {} bytes; retry", bytes.len()))),
        }
    }

    /// Waits until every connection has ended.
    pub(super) async fn emptied(&self) {
        tokio::join!(self.connections.emptied(), self.waiting.emptied());
    }
}

impl ConnectionPermit {
    /// Whether more than the health of the server is answered on it.
    pub(super) fn is_admitted(&self) -> bool {
        self.0.lock().admitted
    }
}

/// Bytes, and the permits for them.
struct Admitted {
    bytes: Vec<u8>,
    _permits: AdmissionPermit,
}

impl AsRef<[u8]> for Admitted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
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
        let admission =
            Admission { connections: Places::new(2), waiting: Places::new(2), bodies: Places::new(20) };
        let [evil, good] = [1, 2].map(|last| IpAddr::from([10, 0, 0, last]));
        let of = |bodies: u64| vec![0; usize::try_from(bodies * budget::BODY_COST_BYTES).unwrap()];
        let small = admission.in_memory(evil, vec![0; 1000]).await.unwrap();
        let long = admission.in_memory(evil, of(15)).await.unwrap();
        assert_eq!((small.len(), long.len()), (1000, of(15).len()));
        assert!(admission.in_memory(evil, of(5)).await.is_err());
        let others = admission.in_memory(good, of(3)).await.unwrap();
        drop((long, others));
        // Longer than all bodies: what one client may have, which leaves places for others.
        let longest = admission.in_memory(evil, of(32)).await.unwrap();
        assert!(admission.body(evil).await.is_err() && admission.body(good).await.is_ok());
        drop(longest);
        assert!(admission.in_memory(evil, of(32)).await.is_ok());
    }
}
