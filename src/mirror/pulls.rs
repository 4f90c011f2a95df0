//! One log line for each pull: the image, the tier, the bytes from each source, and the time.
//!
//! The protocol has no pulls, only requests. Requests of one client for one repository are collected until none has come
//! for a while; then the line is written.

use super::counters::ByteSource;
use crate::budget;
use crate::decide::Tier;
use crate::oci::{Digest, Repository};
use crate::sync::Mutex;
use crate::text::bytes_text;
use std::collections::{HashMap, HashSet};
use std::fmt::{Display, Write};
use std::net::IpAddr;
use std::time::Instant;

/// Pulls under way.
#[derive(Default)]
pub struct Pulls {
    open: Mutex<HashMap<(IpAddr, Repository), Pull>>,
}

struct Pull {
    /// Tag or digest.
    reference: String,
    tier: Option<Tier>,
    bytes: [u64; ByteSource::ALL.len()],
    failures: u32,
    /// Requests that are being answered.
    busy: u32,
    began: Instant,
    last: Instant,
}

impl Pulls {
    /// A client resolved a tag, or asked for a manifest by digest.
    pub fn asked(
        &self,
        client: IpAddr,
        repository: &Repository,
        reference: impl Display,
        tier: Option<Tier>,
    ) {
        self.with(client, repository, |pull| {
            if tier.is_some() || pull.reference.is_empty() {
                pull.reference.clear();
                // A String takes everything.
                let _ = write!(pull.reference, "{reference}");
            }
            pull.tier = tier.or(pull.tier);
        });
    }

    /// The answer to a client's request for content begins.
    pub fn begin(&self, client: IpAddr, repository: &Repository) {
        self.with(client, repository, |pull| pull.busy += 1);
    }

    /// That answer ended after `bytes` of content. `complete`: it was not cut.
    pub fn end(
        &self,
        client: IpAddr,
        repository: &Repository,
        source: ByteSource,
        bytes: u64,
        complete: bool,
    ) {
        self.with(client, repository, |pull| {
            pull.busy = pull.busy.saturating_sub(1);
            pull.bytes[source as usize] += bytes;
            pull.failures += u32::from(!complete);
        });
    }

    /// A client's request was answered in one piece.
    pub fn served(&self, client: IpAddr, repository: &Repository, source: ByteSource, bytes: u64) {
        self.with(client, repository, |pull| pull.bytes[source as usize] += bytes);
    }

    /// A client's request was refused.
    pub fn refused(&self, client: IpAddr, repository: &Repository) {
        self.with(client, repository, |pull| pull.failures += 1);
    }

    /// The repositories whose content is being read now.
    pub(super) fn busy(&self) -> HashSet<Repository> {
        let open = self.open.lock();
        let busy = open.iter().filter(|(_, pull)| pull.busy > 0);
        busy.map(|((_, repository), _)| repository.clone()).collect()
    }

    /// The manifests that are asked for by digest in pulls whose content is being read now.
    pub(super) fn busy_roots(&self) -> HashSet<Digest> {
        let open = self.open.lock();
        let busy = open.values().filter(|pull| pull.busy > 0);
        busy.filter_map(|pull| pull.reference.parse().ok()).collect()
    }

    /// Writes the lines of the pulls that are over.
    pub fn log_finished(&self, now: Instant) {
        let mut open = self.open.lock();
        open.retain(|(client, repository), pull| {
            let over = pull.busy == 0 && now.saturating_duration_since(pull.last) >= budget::PULL_IDLE;
            if over {
                pull.log(*client, repository);
            }
            !over
        });
    }

    fn with(&self, client: IpAddr, repository: &Repository, change: impl FnOnce(&mut Pull)) {
        let mut open = self.open.lock();
        let key = (client, repository.clone());
        if open.len() >= budget::PULLS_TRACKED_MAX && !open.contains_key(&key) {
            let oldest = open.iter().min_by_key(|(_, pull)| pull.last).map(|(key, _)| key.clone());
            if let Some((key, pull)) = oldest.and_then(|key| open.remove_entry(&key)) {
                pull.log(key.0, &key.1);
            }
        }
        let now = Instant::now();
        let pull = open.entry(key).or_insert_with(|| Pull {
            reference: String::new(),
            tier: None,
            bytes: [0; ByteSource::ALL.len()],
            failures: 0,
            busy: 0,
            began: now,
            last: now,
        });
        pull.last = now;
        change(pull);
    }
}

impl Pull {
    fn log(&self, client: IpAddr, repository: &Repository) {
        log::info!("{}", self.line(client, repository));
    }

    fn line(&self, client: IpAddr, repository: &Repository) -> String {
        let separator = if self.reference.contains(':') { "@" } else { ":" };
        let name = if self.reference.is_empty() {
            repository.to_string()
        } else {
            format!("{repository}{separator}{}", self.reference)
        };
        let parts: Vec<String> = ByteSource::ALL
            .iter()
            .filter(|source| self.bytes[**source as usize] > 0)
            .map(|source| format!("{} {}", source.as_str(), bytes_text(self.bytes[*source as usize])))
            .collect();
        let sources = if parts.is_empty() { String::new() } else { format!(" ({})", parts.join(", ")) };
        let failures =
            if self.failures == 0 { String::new() } else { format!(", {} requests failed", self.failures) };
        format!(
            "pull of {name} by {client}: tier {}, {}{sources} in {:.2} s{failures}",
            self.tier.map_or("digest", Tier::as_str),
            bytes_text(self.bytes.iter().sum()),
            self.last.saturating_duration_since(self.began).as_secs_f64()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pull_is_one_line() {
        let pulls = Pulls::default();
        let client: IpAddr = "10.0.0.7".parse().unwrap();
        let repository: Repository = "docker.io/library/nginx".parse().unwrap();
        pulls.asked(client, &repository, "latest", Some(Tier::Upstream));
        pulls.asked(client, &repository, "sha256:abc", None);
        pulls.begin(client, &repository);
        pulls.end(client, &repository, ByteSource::Fill, 37_200_000, true);
        let open = pulls.open.lock();
        let pull = open.values().next().unwrap();
        let line = pull.line(client, &repository);
        let (before, _) = line.split_once(" in ").unwrap();
        assert_eq!(
            before,
            "pull of docker.io/library/nginx:latest by 10.0.0.7: tier upstream, 37.2 MB (fill 37.2 MB)"
        );
        assert!(line.ends_with(" s"));
    }

    #[test]
    fn what_is_read_by_digest_is_known_while_it_is_read() {
        let (pulls, client) = (Pulls::default(), "10.0.0.7".parse().unwrap());
        let repository: Repository = "docker.io/library/nginx".parse().unwrap();
        let digest = Digest::of(crate::oci::Algorithm::Sha256, b"index");
        pulls.asked(client, &repository, &digest, None);
        assert!(pulls.busy_roots().is_empty());
        pulls.begin(client, &repository);
        assert_eq!(pulls.busy_roots(), [digest].into());
        pulls.end(client, &repository, ByteSource::Cache, 1, true);
        assert!(pulls.busy_roots().is_empty());
    }

    #[test]
    fn pulls_in_gathering_are_bounded() {
        let pulls = Pulls::default();
        let repository: Repository = "docker.io/library/nginx".parse().unwrap();
        for n in 0..=u32::try_from(budget::PULLS_TRACKED_MAX).unwrap() {
            pulls.asked(IpAddr::from(n.to_be_bytes()), &repository, "latest", None);
        }
        assert_eq!(pulls.open.lock().len(), budget::PULLS_TRACKED_MAX);
    }
}
