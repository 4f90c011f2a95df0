//! Lists of an upstream: tags, repositories, referrers (distribution-spec, "Content Discovery").
//!
//! How a list goes on is the upstream's word: the target of its `Link` is opaque, and is followed as it is stated at its own
//! origin. `n` is sent if a client sent it, and not again where the upstream refuses it. Failure never becomes an empty list:
//! nothing refers to a manifest only where the upstream has neither referrers nor the tag that stands for them.

use super::address::{Address, query_value};
use super::allowance::ListAllowance;
use super::ask::Question;
use super::endpoint::Endpoint;
use super::failure::Failure;
use super::reply::{EndpointReply, LargeBody, NameList};
use super::upstream::Upstream;
use super::wire::Deadline;
use crate::budget::{LIST_BYTES_MAX, NEXT_PAGE_BYTES_MAX, PAGE_NAMES_MAX, QUESTION_TIME_MAX};
use crate::documents::{DocumentTurn, LargeAnswer};
use crate::oci::{Digest, Kind, RepositoryName, Tag, json, media, quoted};
use std::cell::Cell;
use std::sync::Arc;

/// Which page of a list is wanted.
#[derive(Clone, Debug, Default)]
pub struct ListPage {
    /// The most names, if a client says.
    pub n: Option<usize>,
    /// Names after this one.
    pub last: Option<String>,
    /// The page at this address, which is asked for as it stands.
    pub stated: Option<PageAddress>,
    /// What it may cost, with all that is asked for the same request.
    pub allowance: ListAllowance,
}

/// Where an endpoint says that a list goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageAddress {
    /// The endpoint's place among those of its upstream.
    pub endpoint: usize,
    /// Path and query, as it stated them.
    pub target: String,
}

/// How a list goes on after a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rest {
    /// It does not.
    End,
    /// After the last name of the page, which was cut.
    AfterLast,
    /// Where the upstream says.
    Stated(PageAddress),
    /// It does, but this cannot be followed.
    Unknown(String),
}

/// A page of tags or repositories.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePage {
    /// The names; what is not a name is left out.
    pub names: Vec<String>,
    /// What follows them.
    pub rest: Rest,
}

/// The manifests that refer to one (distribution-spec, "Listing Referrers").
#[derive(Debug)]
pub struct ReferrerList {
    /// An image index, as it came.
    pub bytes: Vec<u8>,
    /// The upstream has applied the filter that was asked for.
    pub filtered: bool,
    /// What follows it.
    pub rest: Rest,
    /// To be kept until the bytes are accounted for elsewhere.
    pub place: Option<LargeAnswer>,
}

impl ListPage {
    fn most(&self) -> usize {
        self.n.unwrap_or(PAGE_NAMES_MAX).min(PAGE_NAMES_MAX)
    }
}

impl Rest {
    fn of_endpoint(self, endpoint: usize) -> Rest {
        match self {
            Rest::Stated(at) => Rest::Stated(PageAddress { endpoint, ..at }),
            other => other,
        }
    }
}

/// The page that was asked for where an upstream that knows no pages, such as distribution 2.8 for tags, sent the whole list
/// in an order of its own. A page by upstream's own paging stays in its order; what was there before is left out, and it is
/// cut if it is longer than was asked.
pub(super) fn page_of<T: AsRef<str> + Ord>(mut names: Vec<T>, mut rest: Rest, wanted: &ListPage) -> NamePage {
    let (most, last) = (wanted.most(), wanted.last.as_deref());
    let last_at = last.and_then(|last| names.iter().position(|name| name.as_ref() == last));
    let is_whole = rest == Rest::End && wanted.stated.is_none();
    if is_whole && (names.len() > most || last.is_none() || last_at.is_some()) {
        names.sort_unstable();
        names.retain(|name| last.is_none_or(|last| name.as_ref() > last));
    } else if let Some(at) = last_at {
        names.drain(..=at);
        if names.is_empty() && wanted.stated.is_some() && rest != Rest::End {
            rest = Rest::Unknown("the next page of its list is the same one again".to_owned());
        }
    }
    if names.len() > most {
        names.truncate(most);
        rest = wanted.stated.clone().map_or(Rest::AfterLast, Rest::Stated);
    }
    NamePage { names: names.iter().map(|name| name.as_ref().to_owned()).collect(), rest }
}

impl Upstream {
    /// A page of the tags of a repository.
    ///
    /// # Errors
    /// See [`Upstream::name_tag`]; `Wrong` if the list cannot be parsed, or it gives no such list.
    pub fn list_tags(&self, repository: &RepositoryName, wanted: &ListPage) -> Result<NamePage, Failure> {
        self.ask_for_names(wanted, |endpoint, deadline| endpoint.list_tags(repository, wanted, deadline))
    }

    /// A page of the registry's repositories.
    ///
    /// # Errors
    /// See [`Upstream::list_tags`].
    pub fn catalog(&self, wanted: &ListPage) -> Result<NamePage, Failure> {
        self.ask_for_names(wanted, |endpoint, deadline| endpoint.catalog_here(wanted, deadline))
    }

    /// The manifests that refer to `digest`, or a page of them. `None`: the registry has no list of referrers, nor the tag
    /// that stands for one.
    ///
    /// # Errors
    /// See [`Upstream::list_tags`].
    pub fn referrers(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        artifact_type: Option<&str>,
        stated: Option<&PageAddress>,
    ) -> Result<Option<ReferrerList>, Failure> {
        let question = |endpoint: &Endpoint, deadline| {
            let list = endpoint.referrers(repository, digest, (artifact_type, stated), deadline)?;
            let place = self.place_of(endpoint);
            Ok(list.map(|list| ReferrerList { rest: list.rest.of_endpoint(place), ..list }))
        };
        match stated {
            // A mirror that knows of none may not know the question; another endpoint may, and that must be asked.
            None => {
                let none = || Failure::Missing { detail: "knows of no referrers".to_owned() };
                match self.ask(|endpoint, deadline| question(endpoint, deadline)?.ok_or_else(none)) {
                    Ok(list) => Ok(Some(list)),
                    Err(Failure::Missing { .. }) => Ok(None),
                    Err(failure) => Err(failure),
                }
            }
            Some(_) => self.ask_for_page(stated, question),
        }
    }

    fn ask_for_names(
        &self,
        wanted: &ListPage,
        question: impl Fn(&Endpoint, Deadline) -> Result<NamePage, Failure>,
    ) -> Result<NamePage, Failure> {
        self.ask_for_page(wanted.stated.as_ref(), |endpoint, deadline| {
            let page = question(endpoint, wanted.allowance.within(deadline))?;
            Ok(NamePage { rest: page.rest.of_endpoint(self.place_of(endpoint)), ..page })
        })
    }

    /// What one endpoint stated is asked of that one alone.
    fn ask_for_page<T>(
        &self,
        stated: Option<&PageAddress>,
        question: impl Fn(&Endpoint, Deadline) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        match stated {
            None => self.ask(question),
            Some(at) => {
                let one = self.endpoints.iter().skip(at.endpoint).take(1);
                self.ask_each(one, Deadline::after(QUESTION_TIME_MAX), question)
            }
        }
    }

    pub(super) fn place_of(&self, endpoint: &Endpoint) -> usize {
        self.endpoints.iter().position(|own| std::ptr::eq(Arc::as_ptr(own), endpoint)).unwrap_or(0)
    }
}

impl Endpoint {
    fn list_tags(
        &self,
        repository: &RepositoryName,
        wanted: &ListPage,
        deadline: Deadline,
    ) -> Result<NamePage, Failure> {
        let ask = |query: &str| Question::repository(repository, &format!("tags/list{query}"), deadline);
        self.page(ask, wanted, |name| name.parse::<Tag>().is_ok())
    }

    /// In the names of the endpoint.
    pub(super) fn catalog(&self, wanted: &ListPage, deadline: Deadline) -> Result<NamePage, Failure> {
        let scope = "registry:catalog:*";
        let ask = |query: &str| Question::new(format!("_catalog{query}"), scope.to_owned(), deadline);
        self.page(ask, wanted, |name| name.parse::<RepositoryName>().is_ok())
    }

    fn page(
        &self,
        ask: impl Fn(&str) -> Question,
        wanted: &ListPage,
        is_name: impl Fn(&str) -> bool,
    ) -> Result<NamePage, Failure> {
        let last = wanted.last.as_deref();
        let stated = wanted.stated.as_ref().map(|at| at.target.clone());
        let (n_refused, too_long) = (Cell::new(false), Cell::new(false));
        let n = wanted.n.filter(|_| stated.is_none()).map(|_| wanted.most());
        let mut question = Question { stated, ..ask(&page_query(n, last)) };
        let judge = |mut reply: EndpointReply, question: &Question| match reply.status() {
            status @ (405 | 501) => {
                let message = reply.error_message();
                Err(reply.wrong(format!("gives no such list ({status}){message}")))
            }
            status => {
                n_refused.set(n.is_some() && matches!(status, 400 | 413));
                reply.found(question)
            }
        };
        wanted.allowance.take(&self.name)?;
        let mut answer = self.list(&question, judge, &too_long);
        let own = too_long.get() && n.is_none() && question.stated.is_none();
        if n_refused.get() || own {
            // Its own size where ours is refused, and ours where its own is too large for us.
            question = ask(&page_query(own.then_some(PAGE_NAMES_MAX), last));
            wanted.allowance.take(&self.name)?;
            answer = self.list(&question, EndpointReply::found, &too_long);
        }
        let (reply, body) = answer?;
        let rest = self.rest(&reply, &question);
        let _turn = DocumentTurn::wait(body.bytes.len() as u64);
        let wrong = |why: &dyn std::fmt::Display| reply.wrong(format!("the list cannot be parsed: {why}"));
        json::check_shape(&body.bytes).map_err(|why| wrong(&why))?;
        let list: NameList<'_> = serde_json::from_slice(&body.bytes).map_err(|why| wrong(&why))?;
        let mut names = list.names().ok_or_else(|| wrong(&"it names neither tags nor repositories"))?;
        names.retain(|name| is_name(name));
        Ok(page_of(names, rest, wanted))
    }

    /// How a list goes on: at the upstream's own origin, or it is not known how.
    fn rest(&self, reply: &EndpointReply, question: &Question) -> Rest {
        let Some(next) = reply.next_page() else { return Rest::End };
        let asked = self.address_of(question);
        let host = &reply.host;
        let unknown = |why: String| Rest::Unknown(format!("{host}: the next page of its list {why}"));
        // A registry behind a proxy may not know its own address. Nobody else is asked.
        let own = |next: Address| Address { origin: self.base.origin.clone(), ..next };
        match asked.join(&next).map(own) {
            Err(why) => unknown(format!("cannot be asked for: {}", quoted(&why))),
            Ok(next) if next == asked => unknown("is the same one again".to_owned()),
            Ok(next) if next.target.len() > NEXT_PAGE_BYTES_MAX => {
                unknown("has an address that is longer than allowed".to_owned())
            }
            Ok(next) => Rest::Stated(PageAddress { endpoint: 0, target: next.target }),
        }
    }

    /// The list of the referrers API; where there is none, of the tag that the specification names instead.
    fn referrers(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        (artifact_type, stated): (Option<&str>, Option<&PageAddress>),
        deadline: Deadline,
    ) -> Result<Option<ReferrerList>, Failure> {
        let filter = artifact_type.map(|t| format!("?artifactType={}", query_value(t))).unwrap_or_default();
        let question = Question {
            accept: Some(media::OCI_INDEX),
            stated: stated.map(|at| at.target.clone()),
            ..Question::repository(repository, &format!("referrers/{digest}{filter}"), deadline)
        };
        // A registry before 1.1 knows no such path, and some call that a bad request.
        let judge = |reply: EndpointReply, question: &Question| match reply.status() {
            status @ (400 | 406) => {
                let detail = format!("{}: answered {status} to a question for referrers", reply.host);
                Err(Failure::Missing { detail })
            }
            _ => reply.found(question),
        };
        let too_long = Cell::new(false);
        match self.list(&question, judge, &too_long) {
            Err(Failure::Missing { .. }) if stated.is_none() => {
                let tag = referrers_tag(digest);
                let question = Question {
                    accept: Some(media::ACCEPT_MANIFESTS),
                    ..Question::repository(repository, &format!("manifests/{tag}"), deadline)
                };
                match self.list(&question, EndpointReply::found, &too_long) {
                    Err(Failure::Missing { .. }) => Ok(None),
                    answer => self.referrer_list(answer?, &question).map(Some),
                }
            }
            answer => self.referrer_list(answer?, &question).map(Some),
        }
    }

    fn referrer_list(
        &self,
        (reply, body): (EndpointReply, LargeBody),
        question: &Question,
    ) -> Result<ReferrerList, Failure> {
        let index = reply.manifest_of(&body.bytes)?;
        if index.kind != Kind::Index {
            return Err(reply.wrong("the list of referrers is not an index"));
        }
        let filtered = reply
            .header("oci-filters-applied")
            .is_some_and(|value| value.split(',').any(|f| f.trim().eq_ignore_ascii_case("artifactType")));
        let rest = self.rest(&reply, question);
        Ok(ReferrerList { bytes: body.bytes, filtered, rest, place: body.place })
    }

    /// Asks for a list, and says whether it came and was too long to be read.
    fn list(
        &self,
        question: &Question,
        judge: impl Fn(EndpointReply, &Question) -> Result<EndpointReply, Failure>,
        too_long: &Cell<bool>,
    ) -> Result<(EndpointReply, LargeBody), Failure> {
        let came = Cell::new(false);
        let judged = |reply: EndpointReply, question: &Question| {
            let judged = judge(reply, question);
            came.set(judged.is_ok());
            judged
        };
        let answer = self.document_if(&self.logins(), question, LIST_BYTES_MAX, judged);
        too_long.set(came.get() && matches!(answer, Err(Failure::Wrong { .. })));
        answer
    }
}

/// The tag under which registries without the API have the referrers of a manifest (distribution-spec, "Referrers Tag
/// Schema").
pub(super) fn referrers_tag(digest: &Digest) -> String {
    let hex = digest.hex();
    format!("{}-{}", digest.algorithm().name(), hex.get(..64).unwrap_or(&hex))
}

fn page_query(n: Option<usize>, last: Option<&str>) -> String {
    match (n, last) {
        (None, None) => String::new(),
        (Some(n), None) => format!("?n={n}"),
        (None, Some(last)) => format!("?last={}", query_value(last)),
        (Some(n), Some(last)) => format!("?n={n}&last={}", query_value(last)),
    }
}
