//! Which endpoint is asked for a tag now, and which was late with it, so that what is waited for is known by its endpoint.
//!
//! Invariant: what is under way is noted until the question ends; of what was late no more is remembered than its bound, and
//! what is forgotten costs a wait.

use crate::budget::LATE_TAGS_MAX;
use crate::oci::{RepositoryName, Tag};
use crate::sync::Mutex;
use std::collections::VecDeque;

type TagOf = (RepositoryName, Tag);

/// The questions for tags of one upstream, each with the place of an endpoint.
#[derive(Debug, Default)]
pub(super) struct TagTries {
    under_way: Mutex<Vec<(TagOf, usize)>>,
    late: Mutex<VecDeque<(TagOf, usize)>>,
}

/// A question that is under way until this is dropped.
pub(super) struct TagTry<'a> {
    tries: &'a TagTries,
    of: TagOf,
}

impl TagTries {
    pub fn begin(&self, repository: &RepositoryName, tag: &Tag) -> TagTry<'_> {
        TagTry { tries: self, of: (repository.clone(), tag.clone()) }
    }

    /// The place of the endpoint that is asked for a tag just now. It counts as late with it from now on.
    pub fn is_late(&self, repository: &RepositoryName, tag: &Tag) -> Option<usize> {
        let of = (repository.clone(), tag.clone());
        let place = self.under_way.lock().iter().find(|(asked, _)| *asked == of).map(|(_, place)| *place)?;
        let mut late = self.late.lock();
        late.retain(|(known, _)| *known != of);
        if late.len() >= LATE_TAGS_MAX {
            late.pop_front();
        }
        late.push_back((of, place));
        Some(place)
    }

    /// The place of the endpoint that was late with a tag last.
    pub fn was_late(&self, repository: &RepositoryName, tag: &Tag) -> Option<usize> {
        let late = self.late.lock();
        late.iter().find(|(of, _)| of.0 == *repository && of.1 == *tag).map(|(_, place)| *place)
    }
}

impl TagTry<'_> {
    /// The endpoint at `place` is asked now.
    pub fn at(&self, place: usize) {
        let mut under_way = self.tries.under_way.lock();
        under_way.retain(|(of, _)| *of != self.of);
        under_way.push((self.of.clone(), place));
    }
}

impl Drop for TagTry<'_> {
    fn drop(&mut self) {
        self.tries.under_way.lock().retain(|(of, _)| *of != self.of);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_late_is_who_is_asked() {
        let tries = TagTries::default();
        let (app, tag): (RepositoryName, Tag) = ("lab/app".parse().unwrap(), "v1".parse().unwrap());
        let other: RepositoryName = "lab/other".parse().unwrap();
        assert_eq!(tries.is_late(&app, &tag), None, "nobody is asked");
        let (one, beside) = (tries.begin(&app, &tag), tries.begin(&other, &tag));
        one.at(0);
        beside.at(0);
        one.at(1);
        assert_eq!((tries.is_late(&app, &tag), tries.is_late(&other, &tag)), (Some(1), Some(0)));
        drop(one);
        assert_eq!((tries.is_late(&app, &tag), tries.was_late(&app, &tag)), (None, Some(1)));
        for n in 0..LATE_TAGS_MAX {
            let tag = format!("t{n}").parse().unwrap();
            let next = tries.begin(&app, &tag);
            next.at(2);
            assert_eq!(tries.is_late(&app, &tag), Some(2));
        }
        assert_eq!(tries.was_late(&app, &tag), None, "it is forgotten");
        assert!(tries.late.lock().len() == LATE_TAGS_MAX && tries.under_way.lock().len() == 1);
    }
}
