//! Where bytes come from: the upstream registries, asked over HTTP. The only room that uses ureq.
//!
//! - [`Upstream`]: a registry, and which of its endpoints is asked
//! - [`Endpoint`]: the questions, and the checks on their answers (`reply`); `ask`: logins, redirects, pauses
//! - `lists`: tags, repositories and referrers
//! - `heads`: what content is without fetching it, `shortcuts`: where an endpoint cannot say that
//! - `encoding`: documents that came compressed
//! - `chain`: an endpoint that is a mirror itself
//! - `shown`: what it shows to a client's own login
//! - `holds`: whom a rate limit keeps from being asked
//! - `wire`: one request: time-outs, warm connections, proxies (`proxy`); `chunks`: chunk extensions, left out
//! - `dial`: one connection: `names`, which addresses are refused (`policy`) and which answers first (`race`), what is said
//!   to a proxy (`tunnel`), TLS (`trust`), and what bytes travel over (`socket`)
//! - `token`, `challenge`, `scope`, `realm`: logging in
//! - `blob`, `pace`: a blob's bytes, under the bandwidth cap
//! - [`breaker`](Breaker): whether requests wait for an endpoint
//! - [`failure`](Failure): the four ways in which it all fails
//!
//! All calls block; callers run them on threads of their own, whose number is the download budget. Nothing here is
//! kept on disk.

mod address;
mod allowance;
mod ask;
mod blob;
mod breaker;
mod chain;
mod challenge;
mod chunks;
mod dial;
mod encoding;
mod endpoint;
mod failure;
mod heads;
mod holds;
mod late;
mod lists;
mod names;
mod pace;
mod policy;
mod proxy;
mod race;
mod realm;
mod reply;
mod scope;
mod shortcuts;
mod shown;
mod socket;
mod token;
mod trust;
mod tunnel;
mod upstream;
mod wire;

#[cfg(test)]
mod tests;

pub use allowance::ListAllowance;
pub use blob::BlobStream;
pub use breaker::{Attempt, Breaker, LinkState};
pub use chain::StaleAnswer;
pub use endpoint::{Endpoint, Examined, RateLimit};
pub use failure::{Cause, Failure};
pub use heads::{FetchedManifest, HeadTrust, NamedManifest};
pub use lists::{ListPage, NamePage, PageAddress, ReferrerList, Rest};
pub use shown::{Shown, ShownObject};
pub use upstream::Upstream;

use crate::config::{Config, UpstreamSettings};
use crate::files::Watched;
use crate::oci::RegistryName;
use crate::via::BoardName;
use address::Address;
use ask::RedirectLogins;
use chain::Naming;
use holds::Holds;
use ipnet::IpNet;
use names::Names;
use pace::Pace;
use policy::Policy;
use proxy::Proxies;
use shortcuts::Shortcuts;
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use token::EndpointLogin;
use trust::{CommonTrust, TrustFiles};
use wire::{Agents, Times, Wire};

/// What is called when the link to an endpoint changes. It may look at the breaker, and must not report to it. It runs
/// on the thread that found out, perhaps the probe's, which has a small stack: hand long work on.
pub type OnChange = Box<dyn Fn(&RegistryName, &Endpoint, &LinkState) + Send + Sync>;

/// Every upstream that is configured. Dropping it ends their probes.
#[derive(Debug)]
pub struct Upstreams {
    by_name: BTreeMap<RegistryName, Arc<Upstream>>,
    board: BoardName,
}

impl Upstreams {
    /// Gets ready to ask every upstream, without asking any. Reads the trust roots and each `ca_file`.
    ///
    /// # Errors
    /// A sentence that says which upstream's setting, or which proxy setting, cannot be used and why.
    pub fn new(config: &Config) -> Result<Self, String> {
        Upstreams::with(config, |name| std::env::var(name).ok(), Names::of_system())
    }

    fn with(
        config: &Config,
        environment: impl Fn(&str) -> Option<String>,
        names: Names,
    ) -> Result<Self, String> {
        let proxies = Arc::new(Proxies::new(
            config.fetch.proxy.as_ref().map(|proxy| proxy.reveal().as_str()),
            environment,
        )?);
        let common = CommonParts {
            times: Times {
                connect: config.fetch.connect_timeout,
                header: config.fetch.header_timeout,
                stall: config.fetch.stall_timeout,
            },
            trust: Arc::new(CommonTrust::watched()?),
            proxies,
            networks: config.fetch.allow_networks.clone(),
            names: Arc::new(names),
            pace: Arc::new(Pace::new(config.fetch.bandwidth)),
            board: BoardName::random(),
        };
        let mut by_name = BTreeMap::new();
        for settings in &config.upstreams {
            let upstream = common
                .upstream(settings)
                .map_err(|why| format!("upstream {} cannot be used: {why}", settings.name))?;
            by_name.insert(settings.name.clone(), upstream);
        }
        Ok(Upstreams { by_name, board: common.board })
    }

    /// The name of this board in requests and answers.
    pub fn board(&self) -> &BoardName {
        &self.board
    }

    /// The upstream of that name.
    pub fn find(&self, name: &RegistryName) -> Option<&Arc<Upstream>> {
        self.by_name.get(name)
    }

    /// Every upstream, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Upstream>> {
        self.by_name.values()
    }

    /// Calls `callback` on every change from now on; changes that follow closely may be announced as one.
    pub fn on_change(&self, callback: OnChange) {
        let callback = Arc::new(callback);
        for endpoint in self.endpoints() {
            let (callback, weak) = (callback.clone(), Arc::downgrade(endpoint));
            endpoint.breaker().on_change(Box::new(move |link| {
                if let Some(endpoint) = weak.upgrade() {
                    callback(&endpoint.registry, &endpoint, link);
                }
            }));
        }
    }

    fn endpoints(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.iter().flat_map(|upstream| upstream.endpoints())
    }

    /// Ends every probe, for good.
    pub fn shutdown(&self) {
        self.endpoints().for_each(|endpoint| endpoint.breaker().shutdown());
    }
}

impl Drop for Upstreams {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// What upstreams have in common.
struct CommonParts {
    times: Times,
    trust: Arc<Watched<CommonTrust>>,
    proxies: Arc<Proxies>,
    networks: Vec<IpNet>,
    names: Arc<Names>,
    pace: Arc<Pace>,
    board: BoardName,
}

impl CommonParts {
    fn upstream(&self, settings: &UpstreamSettings) -> Result<Arc<Upstream>, String> {
        let each = || 0..settings.endpoints.len();
        let own = each().map(|place| self.endpoint(settings, place, None));
        let endpoints = own.collect::<Result<Vec<_>, _>>()?;
        let anonymous = if settings.lifts_limit() {
            let twins = each().map(|place| self.endpoint(settings, place, Some(&endpoints[place])));
            let endpoints = twins.collect::<Result<Vec<_>, _>>()?;
            let name = settings.name.clone();
            Some(Arc::new(Upstream::new(name, endpoints, false, None)))
        } else {
            None
        };
        let (name, private) = (settings.name.clone(), settings.is_private());
        Ok(Arc::new(Upstream::new(name, endpoints, private, anonymous)))
    }

    /// `twin`: the endpoint with the login, if this one is to ask without. Only what is known of the link is shared.
    fn endpoint(
        &self,
        upstream: &UpstreamSettings,
        place: usize,
        twin: Option<&Arc<Endpoint>>,
    ) -> Result<Arc<Endpoint>, String> {
        let settings = &upstream.endpoints[place];
        let base = Address::parse(&settings.url).map_err(|why| format!("its url is not usable: {why}"))?;
        if base.target.contains('?') {
            return Err("its url holds a question mark".to_owned());
        }
        let login = EndpointLogin::new(
            base.origin.clone(),
            settings.credentials.as_ref().filter(|_| twin.is_none()),
            settings.realm.as_deref(),
        )?;
        let mut trusted = self.proxies.hosts();
        if let Some(realm) = &settings.realm {
            trusted.extend(Address::parse(realm).map(|address| (address.origin.host, address.origin.port)));
        }
        let policy =
            Arc::new(Policy::new(&base.origin.host, settings.url_configured, trusted, self.networks.clone()));
        let files = TrustFiles {
            ca_file: settings.ca_file.clone(),
            client: settings.client_certificate.clone().filter(|_| twin.is_none()),
            own: (base.origin.host.clone(), base.origin.port),
        };
        let (common, names) = (self.trust.clone(), self.names.clone());
        let agents = Watched::open(files.paths(), move || {
            Ok(Agents::new(&files.read(&common.now())?, &names, &policy))
        })?;
        let wire = Wire::new(self.times, agents, self.proxies.clone()).named(
            &self.board,
            &base.origin,
            settings.send_ns,
        );
        let registry = &upstream.name;
        Ok(Arc::new_cyclic(|endpoint: &Weak<Endpoint>| {
            let endpoint = endpoint.clone();
            let probe = move || endpoint.upgrade().map(|endpoint| endpoint.probe_quietly());
            Endpoint {
                registry: registry.clone(),
                name: settings.host_port(),
                note: upstream.outage_note(place),
                base,
                naming: Naming::of(settings),
                login,
                tries_pull_secrets: upstream.tries_pull_secrets_at(place),
                redirect_logins: RedirectLogins::default(),
                wire,
                breaker: twin.map_or_else(
                    || Breaker::new(registry.to_string(), Box::new(probe)),
                    |twin| twin.breaker.clone(),
                ),
                bytes: twin.map_or_else(Arc::default, |twin| twin.bytes.clone()),
                pace: self.pace.clone(),
                holds: Holds::default(),
                shortcuts: Shortcuts::default(),
            }
        }))
    }
}
