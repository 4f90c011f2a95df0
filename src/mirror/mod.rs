//! The mirror: which digest a tag is, where content comes from, which images are complete.
//!
//! [`Mirror`] is the façade for http, control and peers. Its methods are asynchronous and never wait for an upstream
//! without a bound. Each part behind it owns its state and knows only the parts below it:
//!
//! | part | what |
//! |---|---|
//! | `maintenance`, `links` | chores on one timer; upstreams that come and go |
//! | `tag` | tags: one table, asking, settling, claims of peers |
//! | `pull_secrets` | clients' own logins at the registries |
//! | `content` | manifests and blobs, uncached streams, repair |
//! | `fill` | the download slots |
//! | `reserve`, `verify` | room on the disk; hashing unverified blobs |
//! | `proof` | what a registry shows to everybody, where a login only lifts a rate limit |
//! | `progress`, `questions`, `single_flight`, `lane` | the progress of fills; short questions, each asked once |
//! | `context`, `access`, `counters`, `pulls`, `refusal` | what all parts share; who may see what; what is counted |
//!
//! Work that blocks runs on lanes, in download slots or on the threads that wait for the disk. A failure is a [`Refusal`],
//! which becomes the answer to the client.

mod access;
mod content;
mod context;
mod counters;
mod cursor;
mod fill;
mod lane;
mod links;
mod lists;
mod live;
mod maintenance;
mod parts;
mod peers;
mod progress;
mod proof;
mod pull_secrets;
mod pulls;
mod questions;
mod refusal;
mod repeats;
mod reserve;
mod single_flight;
mod tag;
mod verify;

pub use crate::decide::Tier;
pub use crate::kit::PeerState;
pub use access::{Access, View, Viewer};
pub use content::{BlobSource, ManifestAnswer, ManifestContent, Pieces, SmallManifest, WantedPart};
pub use context::outage_text;
pub use counters::{ByteSource, Counters};
pub use lists::{Page, PageRequest, ReferrerIndex};
pub use progress::{Fill, Phase, Progress};
pub use pull_secrets::SecretVerdict;
pub use pulls::Pulls;
pub use refusal::{Missing, Refusal};
pub use tag::{TagAnswer, TagContent};

use crate::auth::{BasicCredentials, Identity, LoginKey, PullObject};
use crate::budget;
use crate::config::Config;
use crate::fetch::Upstreams;
use crate::image::Busy;
use crate::kit;
use crate::oci::{Digest, RegistryName, Repository, Tag};
use crate::store::{Startup, Store, StoreError};
use crate::via::BoardName;
use context::Context;
use maintenance::Maintenance;
use parts::Parts;
use refusal::CachedOnly;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The mirror.
pub struct Mirror {
    parts: Arc<Parts>,
    maintenance: Arc<Maintenance>,
}

impl Mirror {
    /// Starts the mirror: its threads, the probes of every upstream, and the fills that an earlier run left unfinished.
    /// If the index must be rebuilt, a thread does that, and until then only content by digest is served.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(
        config: Arc<Config>,
        store: Arc<Store>,
        upstreams: Upstreams,
        startup: Startup,
    ) -> std::io::Result<Arc<Mirror>> {
        crate::sync::start_workers()?;
        let parts = Arc::new(Parts::start(Context::new(config, store, upstreams))?);
        parts.context.store.begin_service();
        links::watch(&parts);
        let maintenance = Maintenance::start(&parts, startup)?;
        Ok(Arc::new(Mirror { parts, maintenance }))
    }

    /// Begins to stop: fills and probes end, and uses of blobs are written to the disk.
    pub fn stop(&self) {
        let context = &self.parts.context;
        context.stop();
        self.maintenance.stop();
        self.parts.fills.stop();
        context.upstreams.shutdown();
        self.parts.pull_secrets.stop();
        // Not when the last thread drops the store: the process may have ended by then.
        context.store.shut_down();
    }

    /// The name of this board in requests and answers.
    pub fn board(&self) -> &BoardName {
        self.parts.context.upstreams.board()
    }

    // -- What clients ask ----------------------------------------------------------------------------------------

    /// Whether `viewer` may see the repositories of a registry. Which content may be seen through one of them is decided
    /// where it is looked for.
    pub fn access(&self, registry: &RegistryName, viewer: Viewer<'_>) -> Access {
        self.parts.context.access(registry, viewer)
    }

    /// A repository as a client sees it that was granted access to its registry: all that concerns content is asked of that.
    pub fn view(&self, client: &Identity, repository: &Repository) -> View {
        self.parts.context.view(repository, Viewer::Client(client))
    }

    /// The name of a client's login in tables; `more`: what that depends on besides.
    pub fn login_key(&self, credentials: &BasicCredentials, more: &[u8]) -> LoginKey {
        self.parts.pull_secrets.key(credentials, more)
    }

    /// Whether a registry shows an object to a pull secret, as far as is known without asking.
    pub async fn knows_secret(&self, login: LoginKey, object: &PullObject) -> Option<bool> {
        self.parts.pull_secrets.known(login, object).await
    }

    /// Asks a registry whether it shows an object to a client's own login.
    ///
    /// # Errors
    /// [`Refusal::Unavailable`] and [`Refusal::Busy`]: it cannot be asked now, whatever is here.
    pub async fn try_secret(
        &self,
        client: IpAddr,
        credentials: &Arc<BasicCredentials>,
        object: &PullObject,
    ) -> Result<SecretVerdict, Refusal> {
        self.parts.pull_secrets.ask(client, credentials, object).await
    }

    /// Why nothing of a repository is fetched for a client, if so.
    fn cached_only(&self, client: &Identity, repository: &Repository) -> Option<CachedOnly> {
        if !self.config().may_fetch(client.address, repository) {
            return Some(CachedOnly::AccessPull);
        }
        client.cached_only.then_some(CachedOnly::KeptLogin)
    }

    /// Refuses what is not cached to a client for which it is not to be fetched.
    ///
    /// # Errors
    /// What [`CachedOnly::refusal`] says: why.
    pub async fn check_fetch(&self, client: &Identity, view: &View, digest: &Digest) -> Result<(), Refusal> {
        let Some(why) = self.cached_only(client, view) else { return Ok(()) };
        // Cached is what may be seen through this repository: what others have is no business of the client.
        let (name, wanted) = (view.clone(), digest.clone());
        let seen = self.parts.context.blocking(move |context| context.sees(&name, &wanted)).await?;
        if seen { Ok(()) } else { Err(why.refusal(view, None)) }
    }

    /// Answers a tag. `head`: the manifest's bytes are not wanted. A client that may not have it fetched gets what is
    /// cached.
    ///
    /// # Errors
    /// [`Refusal::Missing`] and [`Refusal::Denied`] are upstream's own answers, or what `access.pull` leaves of them;
    /// [`Refusal::Unavailable`] names the upstream, since when it is unreachable and what is missing here.
    pub async fn tag(
        &self,
        client: &Identity,
        view: &View,
        tag: &Tag,
        head: bool,
    ) -> Result<TagAnswer, Refusal> {
        self.parts.tags.answer(view, tag, head, self.cached_only(client, view)).await
    }

    /// A manifest by its digest.
    ///
    /// # Errors
    /// Upstream's own 404 and 401/403, and [`Refusal::Unavailable`] where it cannot be asked, with the tags that are cached.
    pub async fn manifest(&self, view: &View, digest: &Digest) -> Result<ManifestAnswer, Refusal> {
        let until = Instant::now() + context::miss_wait();
        let why = match self.parts.manifests.manifest(view, digest, until).await {
            Err(Refusal::Unavailable(why)) => why,
            answered => return answered,
        };
        let cached = self.parts.tags.cached_text(view).await;
        let cached =
            cached.map_or_else(String::new, |cached| format!("; of {} {cached} cached", view.repository));
        Err(Refusal::Unavailable(why + &cached))
    }

    /// A blob by its digest, of which the client wants a part or all. If it is not cached, this begins a fill or joins one.
    ///
    /// # Errors
    /// As [`Mirror::manifest`]; [`Refusal::Busy`] if the queue for download slots is full.
    pub async fn blob(
        &self,
        view: &View,
        digest: &Digest,
        wanted: WantedPart<'_>,
    ) -> Result<BlobSource, Refusal> {
        self.parts.blobs.blob(view, digest, wanted).await
    }

    /// The size of a blob in bytes, without fetching it, and whether it is here.
    ///
    /// # Errors
    /// As [`Mirror::blob`].
    pub async fn blob_size(&self, view: &View, digest: &Digest) -> Result<(u64, bool), Refusal> {
        self.parts.blobs.size(view, digest).await
    }

    /// Streams a blob of `total` bytes to one client, from its first byte, because its download could not be stored.
    ///
    /// # Errors
    /// As [`Mirror::blob`]; [`Refusal::Unavailable`] if its size has changed.
    pub async fn resume_uncached(
        &self,
        repository: &Repository,
        fill: &Fill,
        total: u64,
        cause: &str,
    ) -> Result<Pieces, Refusal> {
        self.parts.streams.resume_uncached(repository, fill, total, cause).await
    }

    /// Whether a client of `repository`, which has `waited` for the next byte of a fill of another one, should leave it.
    pub fn is_bad_for(&self, repository: &Repository, fill: &Fill, waited: Duration) -> bool {
        self.parts.blobs.is_bad_for(repository, fill, waited)
    }

    /// A fill of `repository` itself, for a client that the fill of another one has served badly; `None`: it has none.
    pub async fn own_fill(&self, repository: &Repository, fill: &Fill) -> Option<Arc<Fill>> {
        self.parts.blobs.own_fill(repository, fill).await
    }

    /// The tags of a repository (distribution-spec, "Listing Tags").
    ///
    /// # Errors
    /// Upstream's own refusal, and [`Refusal::Unavailable`] if it cannot be asked and nothing is cached.
    pub async fn tags(&self, view: &View, page: PageRequest) -> Result<Page, Refusal> {
        self.parts.lists.tags(view, page).await
    }

    /// The repositories of a registry, by their names in it; of all registries, by their full names, if `None`.
    ///
    /// # Errors
    /// The store's, and [`Refusal::Busy`] if the queue for questions is full.
    pub async fn catalog(
        &self,
        registry: Option<&RegistryName>,
        client: &Identity,
        page: PageRequest,
    ) -> Result<Page, Refusal> {
        self.parts.lists.catalog(registry, client, page).await
    }

    /// What refers to a manifest (distribution-spec, "Listing Referrers").
    ///
    /// # Errors
    /// Upstream's own refusal, and [`Refusal::Unavailable`] if it cannot be asked and nothing that refers to it is cached. A
    /// manifest without referrers is no error. `next`: [`ReferrerIndex::next`] of the page before.
    pub async fn referrers(
        &self,
        view: &View,
        digest: &Digest,
        artifact_type: Option<String>,
        next: Option<&str>,
    ) -> Result<ReferrerIndex, Refusal> {
        self.parts.lists.referrers(view, digest, artifact_type, next).await
    }

    /// How long a reader of a fill waits without a byte before its connection is cut.
    pub fn stall_timeout(&self) -> Duration {
        self.config().fetch.stall_timeout
    }

    /// How long a download that has stalled may take until its next byte comes.
    pub fn resume_time(&self) -> Duration {
        let fetch = &self.config().fetch;
        fetch.connect_timeout + fetch.header_timeout + budget::STALL_LEEWAY
    }

    /// Hashes content in the background that could not be read while it was served.
    pub fn reread(&self, digest: &Digest) {
        self.parts.verifier.reread(digest);
    }

    // -- What commands and the service manager ask ---------------------------------------------------------------

    /// The current configuration.
    pub fn config(&self) -> Arc<Config> {
        self.parts.context.config.now()
    }

    /// The store, for commands that work on it.
    pub fn store(&self) -> &Arc<Store> {
        &self.parts.context.store
    }

    /// The upstreams.
    pub fn upstreams(&self) -> &Upstreams {
        &self.parts.context.upstreams
    }

    /// Counts since the start.
    pub fn counters(&self) -> &Counters {
        &self.parts.context.counters
    }

    /// The pulls under way, for the log.
    pub fn pulls(&self) -> &Pulls {
        &self.parts.context.pulls
    }

    /// The number of fills that run or are queued, and of parked ones.
    pub fn fill_counts(&self) -> (usize, usize) {
        self.parts.fills.counts()
    }

    /// What must not be removed now.
    pub fn busy(&self) -> Busy {
        self.parts.reserve.busy()
    }

    /// One step of the scrub: verifies one blob past the page cache, and returns the pause before the next step.
    ///
    /// # Errors
    /// The store's, if the blobs cannot be listed or a corrupt one cannot be put in quarantine.
    pub fn scrub_step(&self) -> Result<Duration, StoreError> {
        self.parts.verifier.scrub_step()
    }

    // -- Peers ---------------------------------------------------------------------------------------------------

    /// Starts the listener for peers, if a kit is configured. Dropping the result stops it.
    ///
    /// # Errors
    /// A sentence that says what is wrong with `kit.listen`.
    pub fn serve_peers(&self) -> Result<Option<kit::Listening>, String> {
        let config = self.config();
        let Some(settings) = &config.kit else { return Ok(None) };
        let parts = &self.parts;
        let content = peers::PublicContent::new(&parts.context, &parts.manifests, &parts.table);
        kit::listen(settings.listen, settings.watched_secret(), Arc::new(content)).map(Some)
    }

    /// The state of each peer.
    pub fn peers(&self) -> Vec<PeerState> {
        self.parts.context.kit.as_ref().map_or_else(Vec::new, |kit| kit.peers())
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.maintenance.stop();
    }
}
