//! Lists: tags of a repository, repositories of a registry, referrers of a manifest.
//!
//! While upstream answers, its own list is passed on; otherwise the list names what is cached. A client that pages
//! through a list while the uplink fails may see both, which the specification allows.

use super::access::{Access, View, Viewer};
use super::context::{Context, outage};
use super::questions::Questions;
use super::refusal::{Missing, Refusal};
use crate::auth::Identity;
use crate::budget;
use crate::documents::LargeAnswer;
use crate::fetch::{Failure, ReferrerList, Upstream};
use crate::oci::{self, Digest, Manifest, RegistryName, Repository, media};
use crate::store::StoreError;
use serde_json::json;
use std::sync::Arc;

/// Which part of a list is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageRequest {
    /// The most names; `None`: as many as a page takes.
    pub n: Option<usize>,
    /// Names after this one.
    pub last: Option<String>,
}

/// Part of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The names: sorted if they are from the cache, else in upstream's order.
    pub names: Vec<String>,
    /// There are more after the last of them.
    pub more: bool,
    /// Why the list is from the cache, if it is.
    pub stale: Option<String>,
}

/// An index of referrers.
#[derive(Debug)]
pub struct ReferrerIndex {
    /// The index, as JSON.
    pub bytes: Vec<u8>,
    /// The filter of the request was applied.
    pub filtered: bool,
    /// Why it is made from the cache, if it is.
    pub stale: Option<String>,
    /// To be kept until the bytes are accounted for elsewhere.
    pub place: Option<LargeAnswer>,
}

impl PageRequest {
    fn limit(&self) -> usize {
        self.n.unwrap_or(budget::PAGE_NAMES_MAX).min(budget::PAGE_NAMES_MAX)
    }
}

/// Lists, from upstream or from the cache.
pub(super) struct Lists {
    pub(super) context: Arc<Context>,
    pub(super) questions: Arc<Questions>,
}

impl Lists {
    /// The tags of a repository (distribution-spec, "Listing Tags").
    pub(super) async fn tags(&self, view: &View, page: PageRequest) -> Result<Page, Refusal> {
        let repository = &view.repository;
        let (name, wanted) = (repository.name.clone(), page.clone());
        let limit = page.limit();
        if limit == 0 {
            return Ok(Page { names: Vec::new(), more: false, stale: None });
        }
        let answer = self
            .list(view, move |upstream| upstream.list_tags(&name, Some(limit), wanted.last.as_deref()))
            .await?;
        let cause = match answer {
            Ok(page) => return Ok(Page { names: page.names, more: page.more, stale: None }),
            Err(failure) if failure.is_outage() => failure.to_string(),
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

    /// The repositories of a registry, by their names in it; of all registries, by their full names, if `None`.
    ///
    /// # Errors
    /// The store's, and [`Refusal::Busy`] if the queue for questions is full.
    pub(super) async fn catalog(
        &self,
        registry: Option<&RegistryName>,
        viewer: &Identity,
        page: PageRequest,
    ) -> Result<Page, Refusal> {
        let limit = page.limit();
        if limit == 0 {
            return Ok(Page { names: Vec::new(), more: false, stale: None });
        }
        let cause = match registry {
            Some(registry) => {
                let wanted = page.clone();
                let asked = self.context.upstream(registry)?;
                // Of what a login shows besides what everybody sees, nobody is told which repositories there are.
                let asked = asked.anonymous().cloned().unwrap_or(asked);
                let answer = self
                    .ask(asked, "", move |upstream| upstream.catalog(Some(limit), wanted.last.as_deref()))
                    .await?;
                match answer {
                    Ok(page) => return Ok(Page { names: page.names, more: page.more, stale: None }),
                    // Most public registries offer no catalogue; then the list is from the cache.
                    Err(failure) => failure.to_string(),
                }
            }
            None => "this is what is cached".to_owned(),
        };
        let prefix = registry.map(|registry| format!("{registry}/"));
        let last = match (&prefix, &page.last) {
            (Some(prefix), last) => Some(format!("{prefix}{}", last.as_deref().unwrap_or_default())),
            (None, last) => last.clone(),
        };
        let (wanted, viewer) = (registry.cloned(), viewer.clone());
        let names = self
            .context
            .blocking(move |context| shown(context, wanted.as_ref(), &viewer, last, limit + 1))
            .await;
        Ok(cut(names?, limit, cause))
    }

    /// What refers to a manifest (distribution-spec, "Listing Referrers"). A manifest without referrers is no error.
    pub(super) async fn referrers(
        &self,
        view: &View,
        digest: &Digest,
        artifact_type: Option<String>,
    ) -> Result<ReferrerIndex, Refusal> {
        let repository = &view.repository;
        let (name, wanted, filter) = (repository.name.clone(), digest.clone(), artifact_type.clone());
        let answer =
            self.list(view, move |upstream| upstream.referrers(&name, &wanted, filter.as_deref())).await?;
        let stale = match answer {
            Ok(found) => {
                let ReferrerList { bytes, filtered, place } = found;
                return Ok(ReferrerIndex { bytes, filtered, stale: None, place });
            }
            Err(Failure::Missing { .. }) => None,
            Err(failure) if failure.is_outage() => Some(failure.to_string()),
            Err(failure) => return Err(Refusal::from_failure(&failure, Missing::Manifest)),
        };
        let (view, digest) = (view.clone(), digest.clone());
        let filter = artifact_type.clone();
        let found = self
            .context
            .blocking(move |context| referrers_here(context, &view, &digest, filter.as_deref()))
            .await;
        let manifests = found?;
        let (media_type, manifests) = (media::OCI_INDEX, manifests.join(","));
        let index = format!(r#"{{"schemaVersion":2,"mediaType":"{media_type}","manifests":[{manifests}]}}"#);
        let filtered = artifact_type.is_some();
        Ok(ReferrerIndex { bytes: index.into_bytes(), filtered, stale, place: None })
    }

    /// Asks upstream for a list of a repository, as who sees it.
    async fn list<T: Send + 'static>(
        &self,
        view: &View,
        question: impl FnMut(&Upstream) -> Result<T, Failure> + Send + 'static,
    ) -> Result<Result<T, Failure>, Refusal> {
        let upstream = self.context.upstream(&view.registry)?;
        let anonymous = upstream.anonymous().filter(|_| !view.clearance.private).cloned();
        self.ask(anonymous.unwrap_or(upstream), &view.name.to_string(), question).await
    }

    /// Asks upstream for a list unless it is known to be down. `of`: the repository, or nothing.
    async fn ask<T: Send + 'static>(
        &self,
        upstream: Arc<Upstream>,
        of: &str,
        question: impl FnMut(&Upstream) -> Result<T, Failure> + Send + 'static,
    ) -> Result<Result<T, Failure>, Refusal> {
        if upstream.link().is_known_down() {
            return Ok(Err(outage(&upstream)));
        }
        self.questions.ask(&upstream, of, question).await
    }

    async fn knows(&self, view: &View) -> Result<bool, Refusal> {
        let wanted = view.clone();
        let known = move |context: &Context| Ok(!tags_here(context, &wanted, None, 1)?.is_empty());
        self.context.blocking(known).await
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
    viewer: &Identity,
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
            if asked && !context.is_hidden(&context.view(name, viewer))? {
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
    Page { names, more, stale: Some(cause) }
}
