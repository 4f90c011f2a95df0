//! Where a client is in an upstream's list: it is sent out in a link and comes back with the next request, so that nothing is
//! remembered here. What comes back without a right seal, as after a restart, is worth nothing.
//!
//! Invariant: a list ends. A page that repeats is found however long the circle is (Brent's method: each page is compared with
//! the last one whose count was a power of two), and one that goes on with something new ends after [`LIST_PAGES_MAX`].

use crate::auth::Seal;
use crate::budget::LIST_PAGES_MAX;
use crate::fetch::PageAddress;
use std::hash::{DefaultHasher, Hash, Hasher};

/// How far a client is in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cursor {
    /// Pages so far.
    pages: u32,
    /// The content of one of them.
    mark: u64,
    /// The next one.
    pub(super) at: PageAddress,
}

/// Writes cursors, and reads its own.
pub(super) struct Cursors(Seal);

impl Cursor {
    /// What follows a page with this content.
    ///
    /// # Errors
    /// Why the list ends here.
    pub(super) fn after(
        before: Option<&Cursor>,
        content: &impl Hash,
        at: PageAddress,
    ) -> Result<Cursor, &'static str> {
        let mut hasher = DefaultHasher::new();
        content.hash(&mut hasher);
        let content = hasher.finish();
        // Pages without content before the first one with some leave no mark.
        let before = before.filter(|before| before.pages > 0);
        let pages = before.map_or(0, |before| before.pages) + 1;
        match before {
            Some(before) if before.mark == content => Err("upstream repeats its list, which ends here"),
            _ if pages >= LIST_PAGES_MAX => Err("upstream's list has more pages than are followed"),
            Some(before) if !pages.is_power_of_two() => Ok(Cursor { pages, mark: before.mark, at }),
            _ => Ok(Cursor { pages, mark: content, at }),
        }
    }
}

impl Cursor {
    /// What follows a page without any content, which says nothing of a circle.
    pub(super) fn past_empty(before: Option<&Cursor>, at: PageAddress) -> Cursor {
        let (pages, mark) = before.map_or((0, 0), |before| (before.pages, before.mark));
        Cursor { pages, mark, at }
    }
}

impl Cursors {
    /// # Errors
    /// The system gives no random numbers.
    pub(super) fn new() -> std::io::Result<Cursors> {
        Seal::new().map(Cursors)
    }

    /// A cursor in the list `of` as text for a query.
    pub(super) fn write(&self, of: &str, cursor: &Cursor) -> String {
        let Cursor { pages, mark, at: PageAddress { endpoint, target } } = cursor;
        let text = format!("{pages}.{mark}.{endpoint}.{target}");
        format!("{}.{text}", self.0.on(&format!("{of} {text}")))
    }

    /// The cursor in the list `of` that was written so.
    pub(super) fn read(&self, of: &str, text: &str) -> Option<Cursor> {
        let (seal, text) = text.split_once('.')?;
        if !self.0.is_on(seal, &format!("{of} {text}")) {
            return None;
        }
        let mut parts = text.splitn(4, '.');
        let (pages, mark) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let endpoint = parts.next()?.parse().ok()?;
        let at = PageAddress { endpoint, target: parts.next()?.to_owned() };
        Some(Cursor { pages, mark, at })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(target: &str) -> PageAddress {
        PageAddress { endpoint: 1, target: target.to_owned() }
    }

    #[test]
    fn a_cursor_comes_back_as_it_was_or_not_at_all() {
        let cursors = Cursors::new().unwrap();
        let cursor = Cursor::after(None, &"page", at("/v2/a/tags/list?next_page=x.y%2F&n=5")).unwrap();
        let text = cursors.write("tags a", &cursor);
        assert_eq!(cursors.read("tags a", &text), Some(cursor));
        assert_eq!(cursors.read("tags b", &text), None, "it is for one list");
        assert_eq!(Cursors::new().unwrap().read("tags a", &text), None, "it is of one process");
        for forged in
            [text.replace("a/tags", "b/tags"), text[1..].to_owned(), text.clone() + "0", String::new()]
        {
            assert_eq!(cursors.read("tags a", &forged), None, "{forged}");
        }
    }

    #[test]
    fn every_circle_is_found_and_every_list_ends() {
        for (before, circle) in [(0, 1), (0, 2), (3, 1), (1, 7), (20, 13)] {
            let mut cursor = None;
            let mut pages = 0;
            loop {
                let page = if pages < before { pages } else { before + (pages - before) % circle };
                pages += 1;
                match Cursor::after(cursor.as_ref(), &page, at("/")) {
                    Ok(next) => cursor = Some(next),
                    Err(why) => break assert!(why.contains("repeats"), "{why}"),
                }
            }
            assert!(pages <= 3 * (before + circle) + 2, "{before} {circle}: {pages}");
        }
        let (mut cursor, mut pages) = (None, 0);
        while let Ok(next) = Cursor::after(cursor.as_ref(), &pages, at("/")) {
            (cursor, pages) = (Some(next), pages + 1);
        }
        assert_eq!(pages, LIST_PAGES_MAX - 1);
    }
}
