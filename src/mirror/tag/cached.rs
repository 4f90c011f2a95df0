//! What a refusal says of a tag that cannot be served: why, what is lacking, and which other tags of the repository could be.
//!
//! Only tags that the client may see are named, few of them, and few are looked at, because nobody waits for this. Failure
//! is silence: the refusal has its cause all the same.

use super::super::access::View;
use super::super::context::Context;
use super::super::refusal::{CachedOnly, Refusal};
use super::local::LocalTag;
use super::resolve::Tags;
use crate::budget;
use crate::image::{Closures, served};
use crate::oci::{Repository, Tag};
use crate::store::StoreError;

impl Tags {
    /// Which tags of a repository are complete here: `1.0 and latest are`.
    pub(in crate::mirror) async fn cached_text(&self, view: &View) -> Option<String> {
        let wanted = view.clone();
        let names = self.context.try_blocking(move |context| cached_names(context, &wanted)).await;
        let (names, more) = names.unwrap_or_default();
        listed(&names, more)
    }

    /// Why there is no answer, and what is cached of the repository.
    pub(super) async fn nothing_to_serve(
        &self,
        view: &View,
        tag: &Tag,
        cause: &str,
        local: &LocalTag,
        cached_only: Option<CachedOnly>,
    ) -> Refusal {
        let (repository, cached) = (&view.repository, self.cached_text(view).await);
        match cached_only {
            Some(why) => why.refusal(repository, cached.as_deref()),
            None => not_cached(cause, repository, tag, local.missing.as_deref(), cached.as_deref()),
        }
    }
}

/// The first tags of a repository of which a version is complete here and may be seen, and whether there may be more.
fn cached_names(context: &Context, view: &View) -> Result<(Vec<Tag>, bool), StoreError> {
    let config = context.config.now();
    let closures = Closures::new(&context.store, &config).seen_with(view.clearance);
    let (mut names, most) = (Vec::new(), budget::CACHED_TAGS_LOOKED_AT);
    let tags = context.store.tags(view, None, most)?;
    let cut = tags.len() == most;
    for (tag, record) in tags {
        if closures.looks() > budget::CACHED_LOOKS_MAX || names.len() > budget::CACHED_NAMES_MAX {
            names.truncate(budget::CACHED_NAMES_MAX);
            return Ok((names, true));
        }
        let visible = if tag.names_a_digest() { None } else { context.visible(view, record)? };
        if let Some(record) = visible
            && served(&closures, view, &record)?.is_some()
        {
            names.push(tag);
        }
    }
    let more = cut || names.len() > budget::CACHED_NAMES_MAX;
    names.truncate(budget::CACHED_NAMES_MAX);
    Ok((names, more))
}

/// `1.0 and latest are`; `None` if there are no names.
fn listed(names: &[Tag], more: bool) -> Option<String> {
    let names: Vec<&str> = names.iter().map(Tag::as_str).chain(more.then_some("others")).collect();
    Some(match names.split_last()? {
        (_, []) if more => return None,
        (only, []) => format!("{only} is"),
        (last, first) => format!("{} and {last} are", first.join(", ")),
    })
}

/// The refusal of a tag of which nothing can be served: `docker.io: registry-1.docker.io:443: connection refused;
/// docker.io/library/busybox:1.1 is not cached; 1.0 and latest are`. `missing`: what its nearest version lacks.
pub(super) fn not_cached(
    cause: &str,
    repository: &Repository,
    tag: &Tag,
    missing: Option<&str>,
    cached: Option<&str>,
) -> Refusal {
    let registry = repository.registry.as_str();
    let named = cause.split([':', ' ', ';']).any(|word| word == registry);
    let cause = if named { cause.to_owned() } else { format!("{registry}: {cause}") };
    let image = format!("{repository}:{tag}");
    let state = match (missing, cached) {
        (Some(missing), None) => format!("the cached version of {image} lacks {missing}"),
        (Some(missing), Some(cached)) => {
            format!("the cached version of {image} lacks {missing}; {cached} complete")
        }
        (None, Some(cached)) => format!("{image} is not cached; {cached}"),
        (None, None) => format!("{image}: nothing of it is cached"),
    };
    Refusal::Unavailable(format!("{cause}; {state}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Clearance;
    use crate::mirror::context::testing::context;

    fn tags(names: &[&str]) -> Vec<Tag> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn names_are_listed_as_people_do() {
        let listed = |names: &[&str], more| listed(&tags(names), more);
        assert_eq!(listed(&[], false), None);
        assert_eq!(listed(&[], true), None);
        assert_eq!(listed(&["1.0"], false).unwrap(), "1.0 is");
        assert_eq!(listed(&["1.0", "latest"], false).unwrap(), "1.0 and latest are");
        assert_eq!(listed(&["1.0", "2.0", "3.0"], true).unwrap(), "1.0, 2.0, 3.0 and others are");
    }

    #[test]
    fn a_refusal_names_registry_endpoint_image_and_what_is_cached() {
        let (busybox, tag) = ("docker.io/library/busybox".parse().unwrap(), "1.1".parse().unwrap());
        let text =
            |cause: &str, missing, cached| not_cached(cause, &busybox, &tag, missing, cached).to_string();
        let refused = "registry-1.docker.io:443: connection refused";
        assert_eq!(
            text(refused, None, Some("1.0 and latest are")),
            format!("docker.io: {refused}; docker.io/library/busybox:1.1 is not cached; 1.0 and latest are")
        );
        assert_eq!(
            text("docker.io is unreachable for 5 min: x", Some("2 objects"), Some("1.0 is")),
            "docker.io is unreachable for 5 min: x; the cached version of docker.io/library/busybox:1.1 lacks 2 objects; 1.0 is complete"
        );
        assert!(text(refused, None, None).ends_with("nothing of it is cached"));
    }

    #[test]
    fn few_names_are_looked_for_and_signatures_are_none() {
        let (board, context) = context("");
        let layer = board.blob("layer", 40);
        let root = board.image("app", &[&layer]);
        let lacking = board.image("app", &[&board.name("absent", 40)]);
        board.tag("app", "0-partial", &lacking, false);
        board.tag("app", &format!("sha256-{}.sig", "0".repeat(64)), &root, true);
        board.tag("app", "1.0", &root, true);
        board.tag("app", "latest", &root, true);
        let view = View { repository: crate::image::tests::repository("app"), clearance: Clearance::NONE };
        assert_eq!(cached_names(&context, &view).unwrap(), (tags(&["1.0", "latest"]), false));
        let many: Vec<String> = (0..40).map(|n| format!("2.{n:02}")).collect();
        board.tag_all("app", &many, &root);
        let (names, more) = cached_names(&context, &view).unwrap();
        assert_eq!((names.len(), more), (budget::CACHED_NAMES_MAX, true));
        let other = View::of_everybody(&crate::image::tests::repository("other"));
        assert_eq!(cached_names(&context, &other).unwrap(), (Vec::new(), false));
    }
}
