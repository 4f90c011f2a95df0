//! `Via`: the way of a request from one Larder to the next (RFC 9110, section 7.6.3). By it a loop of boards ends, and a board
//! that another one asks waits less long for its own upstream than the other does for it.
//!
//! A board's name is a pseudonym that is new with each start, and made of nothing that is known of the board. The way goes
//! with the work that is done for a request: by its task, then by the thread that asks upstream.

use crate::budget;
use std::cell::RefCell;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

tokio::task_local! {
    static OF_TASK: Way;
}

thread_local! {
    static OF_THREAD: RefCell<Way> = const { RefCell::new(Way::NONE) };
}

/// What all names of boards begin with.
const NAME: &str = "larder-";

/// The name of this board for as long as it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoardName(Arc<str>);

impl BoardName {
    /// A name that no other board has.
    pub fn random() -> BoardName {
        let number = RandomState::new().build_hasher().finish() >> 16;
        BoardName(format!("{NAME}{number:012x}").into())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What this board adds to `Via`.
    pub fn hop(&self) -> String {
        format!("1.1 {}", self.0)
    }
}

/// The boards that a request has come through, and how long the last of them waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    boards: Option<Arc<[String]>>,
    wait: Option<Duration>,
}

impl Way {
    /// No board has asked for it.
    pub const NONE: Way = Way { boards: None, wait: None };

    /// The way that `Via` tells, and the wait that `Prefer` does (RFC 7240, section 4.3). What is said of others than Larders
    /// is left out.
    pub fn parse<'v>(via: impl Iterator<Item = &'v str>, prefer: impl Iterator<Item = &'v str>) -> Way {
        let members = via.flat_map(|value| value.split(',')).filter_map(board);
        let boards: Vec<String> = members.take(budget::VIA_BOARDS_MAX + 1).map(str::to_owned).collect();
        if boards.is_empty() {
            return Way::NONE;
        }
        let wait = |member: &str| member.trim().strip_prefix("wait=")?.parse().ok();
        let wait = prefer.flat_map(|value| value.split([',', ';'])).find_map(wait).map(Duration::from_secs);
        Way { boards: Some(boards.into()), wait }
    }

    fn boards(&self) -> &[String] {
        self.boards.as_deref().unwrap_or_default()
    }

    /// Whether another board asks.
    pub fn is_from_board(&self) -> bool {
        self.boards.is_some()
    }

    /// Whether it has come through this board before, or through more than can be meant.
    pub fn is_loop(&self, own: &BoardName) -> bool {
        let boards = self.boards();
        boards.len() > budget::VIA_BOARDS_MAX || boards.iter().any(|board| board == own.as_str())
    }

    /// `Via` for what this board asks in turn.
    pub fn onward(&self, own: &BoardName) -> String {
        let hops = self.boards().iter().map(|board| format!("1.1 {board}")).chain([own.hop()]);
        hops.collect::<Vec<_>>().join(", ")
    }

    /// How long a request waits for upstream where something else can be served, if it would wait `most` for a client.
    pub fn short(&self, most: Duration) -> Duration {
        most / u32::try_from(self.boards().len() + 1).unwrap_or(u32::MAX)
    }

    /// How long it waits where there is nothing else. The board that asks may have said how long it does.
    pub fn long(&self, most: Duration) -> Duration {
        match (self.is_from_board(), self.wait) {
            (false, _) => most,
            (true, Some(wait)) => wait.max(budget::CHAIN_WAIT_MIN).min(most),
            (true, None) => self.short(most) / 2,
        }
    }

    /// What the board that is asked in turn is told to wait, in seconds, of the `most` that it is waited for.
    pub fn onward_wait(&self, most: Duration) -> u64 {
        let wait = self.long(most).saturating_sub(budget::CHAIN_WAIT_MARGIN);
        wait.max(budget::CHAIN_WAIT_MIN).as_secs()
    }
}

/// The name in a member of `Via` such as `1.1 larder-0123456789ab (comment)`, if it is a board's.
fn board(member: &str) -> Option<&str> {
    let name = member.split_ascii_whitespace().nth(1)?;
    let number = name.strip_prefix(NAME)?;
    (number.len() <= 16 && number.bytes().all(|c| c.is_ascii_hexdigit())).then_some(name)
}

/// Whether an answer with this `Via` came from a Larder, or through one.
pub fn names_board(via: &str) -> bool {
    via.split(',').any(|member| board(member).is_some())
}

/// Does work for a request that came so; see [`way`].
pub async fn coming<T>(way: Way, work: impl Future<Output = T>) -> T {
    OF_TASK.scope(way, work).await
}

/// How the request came for which this task or this thread works.
pub fn way() -> Way {
    OF_TASK.try_with(Way::clone).unwrap_or_else(|_| OF_THREAD.with_borrow(Way::clone))
}

/// Does the work of a thread for a request that came so.
pub fn on_thread<T>(way: &Way, work: impl FnOnce() -> T) -> T {
    struct Before(Way);
    impl Drop for Before {
        fn drop(&mut self) {
            OF_THREAD.set(std::mem::replace(&mut self.0, Way::NONE));
        }
    }
    let _before = Before(OF_THREAD.replace(way.clone()));
    work()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(via: &str, prefer: &str) -> Way {
        Way::parse([via].into_iter(), [prefer].into_iter())
    }

    #[test]
    fn a_way_has_the_boards_of_via_and_nobody_else() {
        let (a, b) = (BoardName::random(), BoardName::random());
        assert_ne!(a, b);
        assert_eq!(way("1.1 varnish, 1.0 fred (larder-00)", "wait=3"), Way::NONE);
        assert_eq!(way("1.1 larder-xyz, 1.1 larder-00000000000000000", ""), Way::NONE);
        let first = way(&format!("1.1 varnish (x), {} (c)", a.hop()), "");
        assert!(first.is_loop(&a) && !first.is_loop(&b) && !Way::NONE.is_loop(&a));
        let second = way(&first.onward(&b), "");
        assert!(second.is_loop(&a) && second.is_loop(&b));
        assert_eq!(Way::NONE.onward(&a), a.hop());
        let many = vec!["1.1 larder-00"; budget::VIA_BOARDS_MAX + 5].join(",");
        assert!(way(&many, "").is_loop(&a), "so many are a loop, too");
        assert!(names_board(&first.onward(&b)) && !names_board("1.1 varnish"));
    }

    #[test]
    fn each_board_of_a_chain_waits_less_than_the_one_before() {
        let most = Duration::from_secs(25);
        let mut last = Way::NONE;
        assert_eq!((last.short(most), last.long(most)), (most, most));
        for hop in ["larder-01", "larder-02", "larder-03"] {
            let stated = format!("respond-async, wait={}", last.onward_wait(Duration::from_secs(10)));
            let next = way(&format!("{}, 1.1 {hop}", last.onward(&BoardName("larder-00".into()))), &stated);
            assert!(next.short(most) < last.short(most) && next.long(most) < last.long(most), "{next:?}");
            assert!(next.long(most) < Duration::from_secs(10));
            let unstated = Way { wait: None, ..next.clone() };
            assert!(unstated.long(most) < Duration::from_secs(10), "{unstated:?}");
            last = next;
        }
        assert_eq!(way("1.1 larder-01", "wait=0").long(most), budget::CHAIN_WAIT_MIN);
        assert_eq!(way("1.1 larder-01", "wait=900").long(most), most);
        let brief = Duration::from_millis(200);
        assert_eq!(way("1.1 larder-01", "wait=5").long(brief), brief, "whoever asks to wait for longer");
    }

    #[test]
    fn work_knows_its_way_until_it_ends() {
        let (one, other) = (way("1.1 larder-01", ""), way("1.1 larder-02", ""));
        on_thread(&one, || {
            assert_eq!(super::way(), one);
            on_thread(&other, || assert_eq!(super::way(), other));
            assert_eq!(super::way(), one);
        });
        assert_eq!(super::way(), Way::NONE);
    }
}
