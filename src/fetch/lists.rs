//! Lists of an upstream: tags, repositories, referrers (distribution-spec, "Content Discovery").

use super::address::query_value;
use super::ask::Question;
use super::challenge;
use super::endpoint::Endpoint;
use super::failure::Failure;
use super::reply::{LargeBody, NameList};
use super::upstream::Upstream;
use super::wire::Deadline;
use crate::budget::LIST_BYTES_MAX;
use crate::documents::{DocumentTurn, LargeAnswer};
use crate::oci::{Digest, Kind, RepositoryName, Tag, json, media};
use ureq::http::header;

/// A page of tags or repositories.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePage {
    /// The names; what is not a name is left out.
    pub names: Vec<String>,
    /// There is a next page.
    pub more: bool,
}

/// The page that was asked for where an upstream that knows no pages, such as distribution 2.8 for tags, sent the whole list
/// in an order of its own. A page by upstream's own paging stays in its order, and is cut if it is longer than was asked.
pub(super) fn page_of<T: AsRef<str> + Ord>(
    mut names: Vec<T>,
    mut more: bool,
    n: Option<usize>,
    last: Option<&str>,
) -> NamePage {
    let too_many = n.is_some_and(|n| names.len() > n);
    let from_the_start = last.is_none_or(|last| names.iter().any(|name| name.as_ref() == last));
    if !more && (too_many || from_the_start) {
        names.sort_unstable();
        names.retain(|name| last.is_none_or(|last| name.as_ref() > last));
    }
    if let Some(n) = n
        && names.len() > n
    {
        names.truncate(n);
        more = true;
    }
    NamePage { names: names.iter().map(|name| name.as_ref().to_owned()).collect(), more }
}

/// The manifests that refer to one (distribution-spec, "Listing Referrers").
#[derive(Debug)]
pub struct ReferrerList {
    /// An image index, as it came.
    pub bytes: Vec<u8>,
    /// The upstream has applied the filter that was asked for.
    pub filtered: bool,
    /// To be kept until the bytes are accounted for elsewhere.
    pub place: Option<LargeAnswer>,
}

impl Upstream {
    /// A page of at most `n` tags after `last`.
    ///
    /// # Errors
    /// See [`Upstream::head_manifest`]; `Wrong` if the list cannot be parsed.
    pub fn list_tags(
        &self,
        repository: &RepositoryName,
        n: Option<usize>,
        last: Option<&str>,
    ) -> Result<NamePage, Failure> {
        self.ask(|endpoint, deadline| endpoint.list_tags(repository, n, last, deadline))
    }

    /// A page of at most `n` repositories after `last`.
    ///
    /// # Errors
    /// See [`Upstream::list_tags`].
    pub fn catalog(&self, n: Option<usize>, last: Option<&str>) -> Result<NamePage, Failure> {
        self.ask(|endpoint, deadline| endpoint.catalog(n, last, deadline))
    }

    /// The manifests that refer to `digest`.
    ///
    /// # Errors
    /// See [`Upstream::head_manifest`]; `Missing` where the upstream does not know the question.
    pub fn referrers(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<ReferrerList, Failure> {
        self.ask(|endpoint, deadline| endpoint.referrers(repository, digest, artifact_type, deadline))
    }
}

impl Endpoint {
    /// A page of at most `n` tags after `last`.
    pub(super) fn list_tags(
        &self,
        repository: &RepositoryName,
        n: Option<usize>,
        last: Option<&str>,
        deadline: Deadline,
    ) -> Result<NamePage, Failure> {
        let question =
            Question::repository(repository, &format!("tags/list{}", page_query(n, last)), deadline);
        self.page(&question, n, last, |name| name.parse::<Tag>().is_ok())
    }

    /// A page of at most `n` repositories after `last`.
    pub(super) fn catalog(
        &self,
        n: Option<usize>,
        last: Option<&str>,
        deadline: Deadline,
    ) -> Result<NamePage, Failure> {
        let scope = "registry:catalog:*".to_owned();
        let question = Question::new(format!("_catalog{}", page_query(n, last)), scope, deadline);
        self.page(&question, n, last, |name| name.parse::<RepositoryName>().is_ok())
    }

    fn page(
        &self,
        question: &Question,
        n: Option<usize>,
        last: Option<&str>,
        is_name: impl Fn(&str) -> bool,
    ) -> Result<NamePage, Failure> {
        let (reply, body) = self.document(question, LIST_BYTES_MAX)?;
        let next = reply.header(header::LINK.as_str()).and_then(challenge::next_page);
        let is_own = |next: &str| {
            let next = self.address(&question.target).join(next);
            next.is_ok_and(|next| next.origin == self.base.origin)
        };
        let more = next.is_some_and(is_own);
        let _turn = DocumentTurn::wait(body.bytes.len() as u64);
        let wrong = |why: &dyn std::fmt::Display| reply.wrong(format!("the list cannot be parsed: {why}"));
        json::check_shape(&body.bytes).map_err(|why| wrong(&why))?;
        let list: NameList<'_> = serde_json::from_slice(&body.bytes).map_err(|why| wrong(&why))?;
        let mut names = list.tags.or(list.repositories).unwrap_or_default().0;
        names.retain(|name| is_name(name));
        Ok(page_of(names, more, n, last))
    }

    /// The manifests that refer to `digest`; `Missing` where the upstream does not know the question.
    pub(super) fn referrers(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        artifact_type: Option<&str>,
        deadline: Deadline,
    ) -> Result<ReferrerList, Failure> {
        let filter = artifact_type.map(|t| format!("?artifactType={}", query_value(t))).unwrap_or_default();
        let question = Question {
            accept: Some(media::OCI_INDEX),
            ..Question::repository(repository, &format!("referrers/{digest}{filter}"), deadline)
        };
        let (reply, LargeBody { bytes, place }) = self.document(&question, LIST_BYTES_MAX)?;
        let index = reply.manifest_of(&bytes)?;
        if index.kind != Kind::Index {
            return Err(reply.wrong("the list of referrers is not an index"));
        }
        let filtered = reply
            .header("oci-filters-applied")
            .is_some_and(|value| value.split(',').any(|f| f.trim().eq_ignore_ascii_case("artifactType")));
        Ok(ReferrerList { bytes, filtered, place })
    }
}

fn page_query(n: Option<usize>, last: Option<&str>) -> String {
    match (n, last) {
        (None, None) => String::new(),
        (Some(n), None) => format!("?n={n}"),
        (None, Some(last)) => format!("?last={}", query_value(last)),
        (Some(n), Some(last)) => format!("?n={n}&last={}", query_value(last)),
    }
}
