//! Which endpoints of an upstream the bytes of one run come from, and whether one may go on where another has stopped.
//!
//! What one endpoint has sent is continued by another only if both state the same size; a size that the manifest states is
//! everyone's. Nothing of this concerns an upstream with one endpoint.

use super::super::progress::Fill;
use crate::fetch::BlobStream;

/// The sources of what is staged.
#[derive(Debug, Default)]
pub(super) struct Sources {
    /// The upstream has several endpoints.
    pub(super) several: bool,
    /// The endpoint that has sent all of it, if that is known.
    only: Option<usize>,
}

/// Whether an answer goes on behind what is staged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fit {
    /// It does.
    Continues,
    /// It is of another size than the manifest states: another endpoint may be right.
    Other,
    /// Whether it does is not known: all comes again.
    Restart,
}

impl Sources {
    /// Whether the answer goes on behind `staged` bytes.
    pub(super) fn fit(&self, fill: &Fill, stream: &BlobStream, staged: u64) -> Fit {
        self.fit_sizes((stream.place, stream.total), (fill.stated, fill.progress.borrow().total), staged)
    }

    fn fit_sizes(
        &self,
        (place, total): (usize, Option<u64>),
        (stated, before): (Option<u64>, Option<u64>),
        staged: u64,
    ) -> Fit {
        if stated.is_some_and(|stated| total.is_some_and(|total| total != stated)) {
            return Fit::Other;
        }
        let same_size = total.is_some() && total == stated.or(before);
        if !self.several || staged == 0 || self.only == Some(place) || same_size {
            Fit::Continues
        } else {
            Fit::Restart
        }
    }

    /// The endpoint at `place` sends what follows.
    pub(super) fn take(&mut self, place: usize, from_the_start: bool) {
        self.only = Some(place).filter(|_| from_the_start || self.only == Some(place));
    }

    /// The endpoint that has sent everything.
    pub(super) fn only(&self) -> Option<usize> {
        self.only
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_endpoint_goes_on_only_with_the_same_size() {
        let mut sources = Sources { several: true, only: None };
        sources.take(0, true);
        for (answer, known, fit) in [
            ((0, None), (None, None), Fit::Continues),
            ((1, Some(9)), (Some(9), None), Fit::Continues),
            ((1, Some(9)), (None, Some(9)), Fit::Continues),
            ((1, Some(8)), (Some(9), None), Fit::Other),
            ((0, Some(8)), (Some(9), Some(9)), Fit::Other),
            ((1, Some(8)), (None, Some(9)), Fit::Restart),
            ((1, None), (Some(9), Some(9)), Fit::Restart),
            ((1, None), (None, None), Fit::Restart),
        ] {
            assert_eq!(sources.fit_sizes(answer, known, 5), fit, "{answer:?} {known:?}");
        }
        assert_eq!(sources.fit_sizes((1, None), (None, Some(9)), 0), Fit::Continues, "nothing is there");
        assert_eq!(sources.only(), Some(0));
        sources.take(1, false);
        assert_eq!(sources.only(), None);
        sources.take(1, false);
        assert_eq!(sources.only(), None, "the beginning is still another's");
        sources.take(1, true);
        assert_eq!(sources.only(), Some(1));
        let alone = Sources::default();
        assert_eq!(alone.fit_sizes((0, None), (None, None), 5), Fit::Continues, "it has sent what is there");
    }
}
