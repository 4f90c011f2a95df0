//! Admission: how many connections and bodies `memory.max` allows, and what happens to one more (rule 5).
//!
//! A small request needs no permit for a body, so that tags are answered while as many bodies are served as memory allows.
//! One connection or body too many waits briefly and is then answered 503 with Retry-After: a client tries its next host
//! at once after a 503, and waits for an answer without a time-out.
//!
//! Of connections, of bodies and of the places of those that wait, the last ones are kept for clients that have none or few
//! ([`Places`]), so that one client cannot shut the others out. Who finds no permit has idle connections recalled of the
//! client that has the most. A connection that waits has its first request read all the same: `/healthz` and `/readyz` are
//! answered at once, so that they have places of their own.

use crate::budget;
use crate::config::Config;
use crate::mirror::Refusal;
use crate::places::{Place, Places, client};
use crate::sync::Mutex;
use bytes::Bytes;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use tokio::sync::Notify;

/// Allows one connection or one body, until it is dropped.
pub(super) type AdmissionPermit = Place<IpAddr>;

/// The permits for connections and bodies.
pub(super) struct Admission {
    connections: Places<IpAddr>,
    /// For connections that wait for their permit.
    waiting: Places<IpAddr>,
    bodies: Places<IpAddr>,
    /// Connections in the order in which they came, and some that have ended.
    open: Mutex<Vec<Weak<ConnectionPermit>>>,
}

/// A connection's permit, or the place where it waits for one.
pub(super) struct ConnectionPermit {
    client: IpAddr,
    /// `None`: a later connection of the client has it.
    place: Mutex<Option<AdmissionPermit>>,
    /// The place is one of a connection, and not of one that waits.
    admitted: AtomicBool,
    /// Requests that came.
    requests: AtomicU64,
    /// Requests whose answers are under way.
    under_way: AtomicUsize,
    recalled: AtomicBool,
    recall: Notify,
}

/// A request whose answer is under way, until it is dropped.
pub(super) struct RequestUnderWay(Arc<ConnectionPermit>);

impl Drop for RequestUnderWay {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
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
            open: Mutex::default(),
        }
    }

    /// A permit for a connection, or a place to wait for one; `None` if the client has no right to either.
    pub(super) fn connection(&self, address: IpAddr) -> Option<Arc<ConnectionPermit>> {
        let client = client(address);
        let (place, admitted) = match self.connections.take(&client) {
            Some(place) => (place, true),
            None => (self.waiting.take(&client).or_else(|| self.take_over(&client))?, false),
        };
        let permit = Arc::new(ConnectionPermit {
            client,
            place: Mutex::new(Some(place)),
            admitted: AtomicBool::new(admitted),
            requests: AtomicU64::new(0),
            under_way: AtomicUsize::new(0),
            recalled: AtomicBool::new(false),
            recall: Notify::new(),
        });
        let mut open = self.open.lock();
        if open.len() >= 2 * (self.connections.most() + self.waiting.most()) {
            open.retain(|permit| permit.strong_count() > 0);
        }
        open.push(Arc::downgrade(&permit));
        Some(permit)
    }

    /// Admits a connection that waits, if there is a permit before long; whether it is admitted then.
    pub(super) async fn admit(&self, connection: &ConnectionPermit) -> bool {
        if connection.is_admitted() {
            return true;
        }
        self.recall_idle(&connection.client);
        let waited = self.connections.wait(&connection.client, budget::ADMISSION_WAIT_MAX);
        let Some(place) = waited.await else { return false };
        *connection.place.lock() = Some(place);
        connection.admitted.store(true, Ordering::Relaxed);
        true
    }

    /// The place of the client's oldest connection that waits and has sent no request; so a probe is not shut out by them.
    fn take_over(&self, client: &IpAddr) -> Option<AdmissionPermit> {
        let open = self.open.lock();
        let mut own = open.iter().filter_map(Weak::upgrade).filter(|permit| permit.client == *client);
        let silent = own.find(|permit| {
            !permit.is_admitted() && !permit.was_used() && !permit.recalled.swap(true, Ordering::Relaxed)
        })?;
        silent.recall.notify_one();
        silent.place.lock().take()
    }

    /// Recalls the oldest idle connections of the client that has the most, so many that `client` may have one more.
    fn recall_idle(&self, client: &IpAddr) {
        let Some((richest, lacking)) = self.connections.richest_but(client) else { return };
        let open = self.open.lock();
        let of_richest = open.iter().filter_map(Weak::upgrade).filter(|permit| permit.client == richest);
        let idle =
            of_richest.filter(|permit| permit.is_idle() && !permit.recalled.swap(true, Ordering::Relaxed));
        idle.take(lacking).for_each(|permit| permit.recall.notify_one());
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
            None => {
                Err(Refusal::Busy(format!("there is no room in memory for {} bytes; retry", bytes.len())))
            }
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
        self.admitted.load(Ordering::Relaxed)
    }

    /// Counts a request, which is under way while the result is held.
    pub(super) fn request(self: &Arc<Self>) -> RequestUnderWay {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.under_way.fetch_add(1, Ordering::Relaxed);
        RequestUnderWay(Arc::clone(self))
    }

    /// Whether a request ever came.
    pub(super) fn was_used(&self) -> bool {
        self.requests.load(Ordering::Relaxed) > 0
    }

    fn is_idle(&self) -> bool {
        self.is_admitted() && self.under_way.load(Ordering::Relaxed) == 0
    }

    /// Waits until another client needs the place more.
    pub(super) async fn recalled(&self) {
        self.recall.notified().await;
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
        let admission = Admission {
            connections: Places::new(2),
            waiting: Places::new(2),
            bodies: Places::new(20),
            open: Mutex::default(),
        };
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
