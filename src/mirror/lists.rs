//! Lists: tags of a repository, repositories of a registry, referrers of a manifest.
//!
//! While upstream answers, its own list is passed on; otherwise the list names what is cached, and says so. Where upstream did
//! not say and nothing is cached there is no list: an empty one would say that there is nothing. A client that pages through a
//! list while the uplink fails may see both, which the specification allows.

use super::access::{Access, View, Viewer};
use super::context::{Context, miss_wait, outage};
use super::cursor::{Cursor, Cursors};
use super::questions::Questions;
use super::refusal::{Missing, Refusal};
use crate::auth::Identity;
use crate::budget;
use crate::config::Config;
use crate::documents::LargeAnswer;
use crate::fetch::{Cause, Failure, ListAllowance, ListPage, NamePage, ReferrerList, Rest, Upstream};
use crate::oci::{self, Digest, Manifest, RegistryName, Repository, media};
use crate::store::StoreError;
use serde_json::json;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

/// Which part of a list is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageRequest {
    /// The most names; `None`: as many as a page takes.
    pub n: Option<usize>,
    /// Names after this one.
    pub last: Option<String>,
    /// [`Page::next`] of the page before, as a client sent it back. What is not that is as good as nothing.
    pub next: Option<String>,
}

/// Part of a list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// The names: sorted if they are from the cache, else in upstream's order.
    pub names: Vec<String>,
    /// There are more after the last of them.
    pub more: bool,
    /// Where they are, if upstream says.
    pub next: Option<String>,
    /// Why the list is from the cache, if it is.
    pub stale: Option<String>,
    /// Why upstream's list ends here although upstream says that it goes on.
    pub cut: Option<String>,
}

/// An index of referrers.
#[derive(Debug)]
pub struct ReferrerIndex {
    /// The index, as JSON.
    pub bytes: Vec<u8>,
    /// The filter of the request was applied.
    pub filtered: bool,
    /// Where it goes on, if it does.
    pub next: Option<String>,
    /// Why it is made from the cache, if it is.
    pub stale: Option<String>,
    /// Why it ends here although upstream says that it goes on.
    pub cut: Option<String>,
    /// To be kept until the bytes are accounted for elsewhere.
    pub place: Option<LargeAnswer>,
}

impl PageRequest {
    fn limit(&self) -> usize {
        self.n.unwrap_or(budget::PAGE_NAMES_MAX).min(budget::PAGE_NAMES_MAX)
    }
}

/// Which repositories of a registry the rules let somebody see in a list.
struct ListRules {
    config: Arc<Config>,
    user: String,
    /// The registry, if not everybody sees all of it.
    registry: Option<RegistryName>,
    after: Option<String>,
}

impl ListRules {
    fn of(
        context: &Context,
        registry: Option<&RegistryName>,
        viewer: &Identity,
        page: &PageRequest,
    ) -> ListRules {
        let is_open = |of: &&RegistryName| context.access(of, Viewer::Anybody) == Access::Granted;
        ListRules {
            config: context.config.now(),
            user: viewer.user.clone().unwrap_or_default(),
            registry: registry.filter(|of| !is_open(of)).cloned(),
            after: page.last.clone(),
        }
    }

    fn may_read(&self, name: &str) -> bool {
        let may_read = |of| self.config.auth.may_read(&self.user, &format!("{of}/{name}"));
        self.registry.as_ref().is_none_or(may_read)
    }

    /// Whether upstream's list is shown with this name. It may state pages by something else than `last`, and then begins with
    /// names that were listed before.
    fn show(&self, name: &str) -> bool {
        let is_past = || self.after.as_deref().is_none_or(|after| name > after);
        self.registry.is_none() || (is_past() && self.may_read(name))
    }
}

/// Lists, from upstream or from the cache.
pub(super) struct Lists {
    pub(super) context: Arc<Context>,
    pub(super) questions: Arc<Questions>,
    pub(super) cursors: Cursors,
}

impl Lists {
    /// The tags of a repository (distribution-spec, "Listing Tags").
    pub(super) async fn tags(&self, view: &View, page: PageRequest) -> Result<Page, Refusal> {
        let repository = &view.repository;
        let name = repository.name.clone();
        let limit = page.limit();
        if limit == 0 {
            return Ok(Page::default());
        }
        let (upstream, of) = (self.upstream(view)?, format!("tags {repository}"));
        let question = move |upstream: &Upstream, wanted: &ListPage| upstream.list_tags(&name, wanted);
        let cause =
            match self.names(&upstream, &view.name.to_string(), (&of, &page), |_| true, question).await? {
                Ok(page) => return Ok(page),
                Err(failure @ (Failure::Unreachable { .. } | Failure::Wrong { .. })) => failure.to_string(),
                Err(failure) => return Err(Refusal::from_failure(&failure, Missing::Repository)),
            };
        let wanted = view.clone();
        let names =
            self.context.blocking(move |context| tags_here(context, &wanted, page.last, limit + 1)).await?;
        if names.is_empty() && !self.knows(view).await? {
            return Err(Refusal::Unavailable(format!("{cause}; no tag of {repository} is cached")));
        }
        Ok(cut(names, limit, cause))
    }

    /// The repositories of a registry, by their names in it; of all registries, by their full names, if `None`. Of a registry
    /// that is private those that the rules let the viewer see: neither the list nor where it goes on has another one.
    ///
    /// # Errors
    /// The store's, [`Refusal::Busy`] if the queue for questions is full, and what is known of a registry that gives no list
    /// and of which nothing is cached.
    pub(super) async fn catalog(
        &self,
        registry: Option<&RegistryName>,
        viewer: &Identity,
        mut page: PageRequest,
    ) -> Result<Page, Refusal> {
        let limit = page.limit();
        if limit == 0 {
            return Ok(Page::default());
        }
        let rules = ListRules::of(&self.context, registry, viewer, &page);
        let mut failed = None;
        if let Some(registry) = registry {
            let asked = self.context.upstream(registry)?;
            // Upstream's address of the next page may hold a name.
            let hides = rules.registry.is_some();
            page.next = page.next.filter(|_| !hides);
            // Of what a login shows besides what everybody sees, nobody is told which repositories there are.
            let asked = asked.anonymous().cloned().unwrap_or(asked);
            let of = format!("catalog {registry}");
            let question = |upstream: &Upstream, wanted: &ListPage| upstream.catalog(wanted);
            match self.names(&asked, "", (&of, &page), |name| rules.show(name), question).await? {
                Ok(page) => return Ok(Page { next: page.next.filter(|_| !hides), ..page }),
                // Most public registries offer no catalogue; then the list is from the cache.
                Err(failure) => failed = Some((registry, failure)),
            }
        }
        let prefix = registry.map(|registry| format!("{registry}/"));
        let last = match (&prefix, &page.last) {
            (Some(prefix), last) => Some(format!("{prefix}{}", last.as_deref().unwrap_or_default())),
            (None, last) => last.clone(),
        };
        let (wanted, viewer) = (registry.cloned(), viewer.clone());
        let cached = move |context: &Context| {
            let from = |last, limit| shown(context, wanted.as_ref(), (&viewer, &rules), last, limit);
            let names = from(last, limit + 1)?;
            let known = !names.is_empty() || !from(prefix, 1)?.is_empty();
            Ok((names, known))
        };
        let (names, known) = self.context.blocking(cached).await?;
        match failed {
            Some((registry, failure)) if !known => Err(no_catalogue(registry, &failure)),
            Some((_, failure)) => Ok(cut(names, limit, failure.to_string())),
            None => Ok(cut(names, limit, "this is what is cached".to_owned())),
        }
    }

    /// What refers to a manifest (distribution-spec, "Listing Referrers"). A manifest without referrers is no error.
    pub(super) async fn referrers(
        &self,
        view: &View,
        digest: &Digest,
        artifact_type: Option<String>,
        next: Option<&str>,
    ) -> Result<ReferrerIndex, Refusal> {
        let repository = &view.repository;
        let (name, wanted, filter) = (repository.name.clone(), digest.clone(), artifact_type.clone());
        let of = format!("referrers {repository} {digest}");
        let cursor = next.and_then(|next| self.cursors.read(&of, next));
        let at = cursor.as_ref().map(|cursor| cursor.at.clone());
        let question =
            move |upstream: &Upstream| upstream.referrers(&name, &wanted, filter.as_deref(), at.as_ref());
        let answer = self.ask(self.upstream(view)?, &view.name.to_string(), miss_wait(), question).await?;
        let stale = match answer {
            Ok(Some(ReferrerList { bytes, filtered, rest, place })) => {
                let (next, cut) = match follow(cursor.as_ref(), &bytes, rest) {
                    Ok(next) => (next.map(|next| self.cursors.write(&of, &next)), None),
                    Err(why) => (None, Some(why)),
                };
                return Ok(ReferrerIndex { bytes, filtered, next, stale: None, cut, place });
            }
            // The registry has none, in either of the two places where they are; it need not know what is known here.
            Ok(None) => None,
            Err(failure @ (Failure::Unreachable { .. } | Failure::Wrong { .. })) => Some(failure.to_string()),
            Err(failure) => return Err(Refusal::from_failure(&failure, Missing::Manifest)),
        };
        let (view, wanted, filter) = (view.clone(), digest.clone(), artifact_type.clone());
        let cached = move |context: &Context| {
            let found = referrers_here(context, &view, &wanted, filter.as_deref())?;
            // Others are known: then the list is of something, and this is what the filter leaves of it.
            let known = !found.is_empty() || !referrers_here(context, &view, &wanted, None)?.is_empty();
            Ok((found, known))
        };
        let (manifests, known) = self.context.blocking(cached).await?;
        if let Some(cause) = stale.as_ref().filter(|_| !known) {
            return Err(Refusal::Unavailable(format!("{cause}; nothing that refers to {digest} is cached")));
        }
        let (media_type, manifests) = (media::OCI_INDEX, manifests.join(","));
        let index = format!(r#"{{"schemaVersion":2,"mediaType":"{media_type}","manifests":[{manifests}]}}"#);
        let filtered = artifact_type.is_some();
        Ok(ReferrerIndex { bytes: index.into_bytes(), filtered, next: None, stale, cut: None, place: None })
    }

    /// A page of upstream's list `of`, as its lane `lane` brings it, with the names that `shows`. Pages without one are passed
    /// over, within what one request may cost.
    async fn names(
        &self,
        upstream: &Arc<Upstream>,
        lane: &str,
        (of, page): (&str, &PageRequest),
        shows: impl Fn(&str) -> bool,
        question: impl Fn(&Upstream, &ListPage) -> Result<NamePage, Failure> + Clone + Send + 'static,
    ) -> Result<Result<Page, Failure>, Refusal> {
        let mut cursor = page.next.as_deref().and_then(|next| self.cursors.read(of, next));
        let (mut passed, mut last, allowance) = (0, page.last.clone(), ListAllowance::of(miss_wait()));
        while passed < budget::EMPTY_PAGES_MAX && allowance.is_left() {
            let stated = cursor.as_ref().map(|cursor| cursor.at.clone());
            let wanted = ListPage { n: page.n, last: last.clone(), stated, allowance: allowance.clone() };
            let question = question.clone();
            let asked = Arc::clone(upstream);
            let answer = self.ask(asked, lane, allowance.time(), move |up| question(up, &wanted)).await?;
            let NamePage { names: listed, rest } = match answer {
                Ok(page) => page,
                Err(failure) => return Ok(Err(failure)),
            };
            let (more, is_last) = (rest == Rest::AfterLast, matches!(rest, Rest::End | Rest::Unknown(_)));
            let names: Vec<String> = listed.iter().filter(|name| shows(name)).cloned().collect();
            let next = match rest {
                Rest::Stated(at) if listed.is_empty() => Ok(Some(Cursor::past_empty(cursor.as_ref(), at))),
                rest => follow(cursor.as_ref(), &listed, rest),
            };
            match next {
                Ok(next) if names.is_empty() && !is_last => cursor = next,
                Ok(next) => {
                    let next = next.map(|next| self.cursors.write(of, &next));
                    return Ok(Ok(Page { more: more || next.is_some(), names, next, ..Page::default() }));
                }
                // Of a list that nothing is known of it is not known that it is empty.
                Err(why) if names.is_empty() && page.last.is_none() => {
                    return Ok(Err(endless(upstream, why)));
                }
                Err(why) => return Ok(Ok(Page { names, cut: Some(why), ..Page::default() })),
            }
            last = listed.last().cloned().or(last);
            passed += 1;
        }
        let why = format!("its list goes on after {passed} pages in a row without a name to show");
        Ok(Err(endless(upstream, why)))
    }

    /// The upstream of a repository as its viewer sees it.
    fn upstream(&self, view: &View) -> Result<Arc<Upstream>, Refusal> {
        let upstream = self.context.upstream(&view.registry)?;
        let anonymous = upstream.anonymous().filter(|_| !view.clearance.private).cloned();
        Ok(anonymous.unwrap_or(upstream))
    }

    /// Asks upstream for a list unless it is known to be down. `of`: the repository, or nothing. No answer in time is an outage.
    async fn ask<T: Send + 'static>(
        &self,
        upstream: Arc<Upstream>,
        of: &str,
        wait: Duration,
        question: impl FnMut(&Upstream) -> Result<T, Failure> + Send + 'static,
    ) -> Result<Result<T, Failure>, Refusal> {
        if upstream.link().is_known_down() {
            return Ok(Err(outage(&upstream)));
        }
        match self.questions.ask_within(&upstream, of, wait, question).await {
            Err(Refusal::Unavailable(detail)) => {
                Ok(Err(Failure::Unreachable { cause: Cause::Timeout, detail }))
            }
            answer => answer,
        }
    }

    async fn knows(&self, view: &View) -> Result<bool, Refusal> {
        let wanted = view.clone();
        let known = move |context: &Context| Ok(!tags_here(context, &wanted, None, 1)?.is_empty());
        self.context.blocking(known).await
    }
}

/// A list without a name so far, whose end is not known.
fn endless(upstream: &Upstream, why: String) -> Failure {
    Failure::Unreachable { cause: Cause::Timeout, detail: format!("{}: {why}", upstream.name()) }
}

/// What follows a page with this content; why nothing does although the list goes on.
fn follow(cursor: Option<&Cursor>, content: &impl Hash, rest: Rest) -> Result<Option<Cursor>, String> {
    match rest {
        Rest::End | Rest::AfterLast => Ok(None),
        Rest::Stated(at) => Ok(Some(Cursor::after(cursor, content, at)?)),
        Rest::Unknown(why) => Err(why),
    }
}

/// The first `limit` tags after `last` that may be shown.
fn tags_here(
    context: &Context,
    view: &View,
    mut last: Option<String>,
    limit: usize,
) -> Result<Vec<String>, StoreError> {
    let mut names = Vec::new();
    while names.len() < limit {
        let step = context.store.tags(view, last.as_deref(), budget::LISTING_STEP)?;
        let Some((end, _)) = step.last() else { break };
        last = Some(end.to_string());
        for (tag, record) in step {
            if context.visible(view, record)?.is_some() {
                names.push(tag.to_string());
            }
        }
    }
    names.truncate(limit);
    Ok(names)
}

/// The names of the first `limit` repositories after `last` that may be shown: of a registry, or of all.
fn shown(
    context: &Context,
    registry: Option<&RegistryName>,
    (viewer, rules): (&Identity, &ListRules),
    mut last: Option<String>,
    limit: usize,
) -> Result<Vec<String>, StoreError> {
    let (mut names, prefix) = (Vec::new(), registry.map(|registry| format!("{registry}/")));
    let viewer = if registry.is_some() { Viewer::Client(viewer) } else { Viewer::Anybody };
    // Private names are listed only for a client that asked for their registry, and so has logged in.
    let open = |name: &Repository| context.access(&name.registry, Viewer::Anybody) == Access::Granted;
    while names.len() < limit {
        let step = context.store.repositories(last.as_deref(), budget::LISTING_STEP)?;
        let Some(end) = step.last() else { break };
        let end = end.to_string();
        for name in &step {
            let asked = registry.map_or_else(|| open(name), |registry| name.registry == *registry);
            if asked
                && rules.may_read(&name.name.to_string())
                && !context.is_hidden(&context.view(name, viewer))?
            {
                names.push(if registry.is_some() { name.name.to_string() } else { name.to_string() });
            }
        }
        // They are sorted by their full names.
        if prefix.as_ref().is_some_and(|prefix| end > *prefix && !end.starts_with(prefix)) {
            break;
        }
        last = Some(end);
    }
    names.truncate(limit);
    Ok(names)
}

fn referrers_here(
    context: &Context,
    view: &View,
    subject: &Digest,
    artifact_type: Option<&str>,
) -> Result<Vec<String>, StoreError> {
    let (mut descriptors, mut left) = (Vec::new(), budget::REFERRERS_BYTES_MAX);
    for digest in context.store.referrers(view, subject)? {
        if !context.sees(view, &digest)? {
            continue;
        }
        let describe = |bytes: &[u8]| referrer(&digest, bytes, artifact_type);
        let Some(Some(descriptor)) = context.store.with_document(&digest, describe)? else { continue };
        left = left.saturating_sub(descriptor.len() + 1);
        if left == 0 {
            log::warn!("{} has more referrers of {subject} than a list takes", view.repository);
            break;
        }
        descriptors.push(descriptor);
    }
    Ok(descriptors)
}

/// The descriptor of a manifest in a list of referrers, as JSON; `None` if it is not wanted.
fn referrer(digest: &Digest, bytes: &[u8], artifact_type: Option<&str>) -> Option<String> {
    let manifest = Manifest::parse(bytes, None).ok()?;
    if artifact_type.is_some_and(|wanted| manifest.artifact_type.as_deref() != Some(wanted)) {
        return None;
    }
    let mut descriptor = json!({ "mediaType": manifest.media_type, "digest": digest, "size": bytes.len() });
    if let Some(artifact_type) = manifest.artifact_type {
        descriptor["artifactType"] = artifact_type.into();
    }
    let annotations = oci::annotations(bytes);
    if !annotations.is_empty() {
        descriptor["annotations"] = json!(annotations);
    }
    Some(descriptor.to_string())
}

/// A page of `names`, which hold one more than the page takes if there are more.
fn cut(mut names: Vec<String>, limit: usize, cause: String) -> Page {
    let more = names.len() > limit;
    names.truncate(limit);
    Page { names, more, stale: Some(cause), ..Page::default() }
}

/// That there is no list, which is not an empty one.
fn no_catalogue(registry: &RegistryName, failure: &Failure) -> Refusal {
    let nothing = "no repository of it that may be shown is cached";
    if failure.is_outage() {
        return Refusal::Unavailable(format!("{failure}; {nothing}"));
    }
    let message = format!("{registry} gives no catalogue: {failure}; {nothing}");
    Refusal::Missing { what: Missing::Catalogue, message }
}
