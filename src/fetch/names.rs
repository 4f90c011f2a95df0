//! Name lookups: the C library's, which cannot be bounded in time, so each runs on a thread of its own; those who
//! want the same name wait for the same lookup.
//!
//! What is known of the addresses of a name ([`Paths`]) is kept here, too, for all upstreams together.

use super::failure::Obstacle;
use super::race::Paths;
use crate::budget::{NAME_LOOKUPS_MAX, SMALL_STACK_BYTES};
use crate::sync::{Condvar, Mutex};
use std::collections::HashMap;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// The addresses of a name, or why there are none.
pub(super) type AskNames = fn(&str) -> Result<Vec<IpAddr>, String>;

/// Looks names up.
pub(super) struct Names {
    under_way: Mutex<HashMap<String, Arc<Lookup>>>,
    ask: AskNames,
    pub paths: Paths,
}

#[derive(Default)]
struct Lookup {
    answer: Mutex<Option<Result<Vec<IpAddr>, String>>>,
    answered: Condvar,
}

impl Names {
    /// The system's names.
    pub fn of_system() -> Self {
        Names::asking(ask_system)
    }

    /// The names that `ask` knows.
    pub fn asking(ask: AskNames) -> Self {
        Names { under_way: Mutex::default(), ask, paths: Paths::default() }
    }

    /// The addresses of `host`.
    ///
    /// # Errors
    /// `Obstacle::Name`: there are none, or not within `limit`.
    pub fn look_up(self: &Arc<Self>, host: &str, limit: Duration) -> Result<Vec<IpAddr>, Obstacle> {
        let lookup = self.join_or_begin(host)?;
        let answer = lookup.answer.lock();
        let (answer, _) =
            lookup
                .answered
                .wait_timeout_while(answer, limit.min(Duration::from_secs(3600)), |answer| answer.is_none());
        match &*answer {
            Some(Ok(addresses)) => Ok(addresses.clone()),
            Some(Err(message)) => Err(Obstacle::Name(message.clone())),
            None => Err(Obstacle::Name("the name could not be resolved in time".to_owned())),
        }
    }

    fn join_or_begin(self: &Arc<Self>, host: &str) -> Result<Arc<Lookup>, Obstacle> {
        let mut under_way = self.under_way.lock();
        if let Some(lookup) = under_way.get(host) {
            return Ok(lookup.clone());
        }
        if under_way.len() >= NAME_LOOKUPS_MAX {
            return Err(Obstacle::Name("too many name lookups hang already".to_owned()));
        }
        let lookup = Arc::new(Lookup::default());
        let (names, shared, name) = (self.clone(), lookup.clone(), host.to_owned());
        thread::Builder::new()
            .name("lookup".to_owned())
            .stack_size(SMALL_STACK_BYTES)
            .spawn(move || {
                let answer = (names.ask)(&name);
                names.under_way.lock().remove(&name);
                *shared.answer.lock() = Some(answer);
                shared.answered.notify_all();
            })
            .map_err(|error| Obstacle::Name(format!("no thread to resolve the name: {error}")))?;
        under_way.insert(host.to_owned(), lookup.clone());
        Ok(lookup)
    }
}

fn ask_system(host: &str) -> Result<Vec<IpAddr>, String> {
    match (host, 0u16).to_socket_addrs() {
        Ok(found) => {
            let addresses: Vec<IpAddr> = found.map(|address| address.ip()).collect();
            if addresses.is_empty() { Err("the name has no address".to_owned()) } else { Ok(addresses) }
        }
        Err(error) => {
            let message = error.to_string();
            let message = message.strip_prefix("failed to lookup address information: ").unwrap_or(&message);
            Err(format!("the name could not be resolved ({})", message.to_ascii_lowercase()))
        }
    }
}
