//! The session: what has to be known of the times at which larder ran, in one small file.
//!
//! One checksummed line, as in the journal, written in one piece and flushed. It says whether the last server shut down
//! cleanly, up to which count content has not been verified since one did not, how far the scrub is, and how counts
//! compare with the time for which servers have run. A file that is lost or damaged means: nothing is known, so all
//! content is unverified and nothing has gone unused for long.
//!
//! Counts that touches take are kept below a ceiling that is written down before they reach it. So no count is given
//! out twice, and after a power cut every count on a blob is known to be of before.

use super::error::Result;
use super::journal::{line, parse};
use super::layout::write_file;
use crate::budget;
use crate::files;
use crate::oci::Digest;
use crate::sync::Mutex;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The open session file.
pub(super) struct Session {
    path: PathBuf,
    state: Mutex<SessionRecord>,
    /// The counts that touches may take while a server runs, and those that are unverified: read with each request.
    ceiling: AtomicU64,
    unverified: AtomicU64,
    /// When the server began, as far as `served_ms` has been told of it.
    counted: Mutex<Option<Instant>>,
}

/// The text of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct SessionRecord {
    /// A server runs, or its shutdown was unclean.
    serving: bool,
    /// Touches have taken no count above this.
    ceiling: u64,
    /// Content whose last use is not above this count has not been verified since an unclean shutdown ...
    #[serde(rename = "suspect")]
    unverified: u64,
    /// ... but for what the scrub has come past since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scrubbed: Option<Digest>,
    /// Milliseconds for which servers have run.
    served_ms: u64,
    /// Milliseconds as above and the highest count then, oldest first.
    marks: Vec<(u64, u64)>,
}

/// How the session file was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// The last server shut down cleanly, or there was none.
    Clean,
    /// It did not.
    Unclean,
    /// The file is absent or damaged.
    Unknown,
}

impl Session {
    /// Reads the file. A damaged one is as good as none.
    pub(super) fn open(path: PathBuf) -> (Session, Ended) {
        let read = files::read(&path, budget::SESSION_BYTES_MAX as u64).ok();
        let known: Option<SessionRecord> = read.and_then(|bytes| parse(&bytes));
        let ended = match &known {
            None => Ended::Unknown,
            Some(state) if state.serving => Ended::Unclean,
            Some(_) => Ended::Clean,
        };
        let state = known.unwrap_or_default();
        let session = Session {
            path,
            ceiling: AtomicU64::new(u64::MAX),
            unverified: AtomicU64::new(state.unverified),
            state: Mutex::new(state),
            counted: Mutex::default(),
        };
        (session, ended)
    }

    /// Whether a touch may take count `n`.
    pub(super) fn may_touch(&self, n: u64) -> bool {
        n <= self.ceiling.load(Ordering::Relaxed)
    }

    /// The highest count that touches may have taken.
    pub(super) fn ceiling(&self) -> u64 {
        self.state.lock().ceiling
    }

    /// All content used up to count `n` has to be verified before it is served.
    pub(super) fn distrust_all(&self, n: u64) {
        let mut state = self.state.lock();
        (state.serving, state.unverified, state.scrubbed) = (false, n, None);
        state.ceiling = state.ceiling.max(n);
        self.unverified.store(n, Ordering::Relaxed);
    }

    /// Whether content that was used last at count `used` has to be verified before it is served.
    pub(super) fn is_unverified(&self, digest: &Digest, used: u64) -> bool {
        used <= self.unverified.load(Ordering::Relaxed)
            && self.has_unverified()
            && self.state.lock().scrubbed.as_ref().is_none_or(|passed| digest > passed)
    }

    /// Whether any content may have to be verified before it is served.
    pub(super) fn has_unverified(&self) -> bool {
        self.unverified.load(Ordering::Relaxed) > 0
    }

    /// How far the scrub is: everything up to this digest has been verified in this pass.
    pub(super) fn scrubbed(&self) -> Option<Digest> {
        self.state.lock().scrubbed.clone()
    }

    /// The scrub has come past `digest`; `None`: it has come to the end, so that nothing is unverified any more.
    pub(super) fn set_scrubbed(&self, digest: Option<Digest>) {
        let mut state = self.state.lock();
        if digest.is_none() {
            state.unverified = 0;
            self.unverified.store(0, Ordering::Relaxed);
        }
        state.scrubbed = digest;
    }

    /// A server begins.
    pub(super) fn begin(&self, last: u64) -> Result<()> {
        *self.counted.lock() = Some(Instant::now());
        {
            let mut state = self.state.lock();
            state.serving = true;
            // Until that is in the file there is no count for a touch, and it is tried again.
            state.ceiling = last;
            self.ceiling.store(last, Ordering::Relaxed);
        }
        self.keep_ahead(last)
    }

    /// Raises the ceiling before the counts reach it.
    pub(super) fn keep_ahead(&self, last: u64) -> Result<()> {
        let mut state = self.state.lock();
        if !state.serving || last + budget::COUNTS_AHEAD / 2 <= state.ceiling {
            return Ok(());
        }
        let mut raised = state.clone();
        raised.ceiling = last + budget::COUNTS_AHEAD;
        self.write(&raised)?;
        self.ceiling.store(raised.ceiling, Ordering::Relaxed);
        *state = raised;
        Ok(())
    }

    /// Notes that at the present running time the highest count was `last`, at most once in each `every`, and keeps the
    /// newest `budget::USE_MARKS_MAX`.
    pub(super) fn mark(&self, last: u64, every: Duration) -> Result<()> {
        let now = self.count_time();
        let mut state = self.state.lock();
        let due = state.marks.last().is_none_or(|&(at, _)| now.saturating_sub(at) >= millis(every));
        if !due {
            return Ok(());
        }
        state.marks.push((now, last));
        let beyond = state.marks.len().saturating_sub(budget::USE_MARKS_MAX);
        state.marks.drain(..beyond);
        self.write(&state)
    }

    /// The highest count of `age` ago, in time for which servers have run; `None` where so much has not passed.
    pub(super) fn count_before(&self, age: Duration) -> Option<u64> {
        let now = self.count_time();
        let state = self.state.lock();
        let old = state.marks.iter().rev().find(|&&(at, _)| now.saturating_sub(at) >= millis(age));
        old.map(|&(_, count)| count)
    }

    /// Writes down how far things are; `ends`: the server shuts down cleanly.
    pub(super) fn save(&self, last: u64, ends: bool) -> Result<()> {
        self.count_time();
        let mut state = self.state.lock();
        if ends && state.serving {
            state.serving = false;
            self.ceiling.store(u64::MAX, Ordering::Relaxed);
        }
        if !state.serving {
            state.ceiling = last;
        }
        self.write(&state)
    }

    /// For how long servers have run, in milliseconds.
    pub(super) fn served_ms(&self) -> u64 {
        self.count_time()
    }

    /// Adds the time that has passed to the running time; the sum in milliseconds.
    fn count_time(&self) -> u64 {
        let mut counted = self.counted.lock();
        let mut state = self.state.lock();
        if let Some(since) = *counted {
            let now = Instant::now();
            // Whole milliseconds, and the rest next time.
            let passed = millis(now.duration_since(since));
            state.served_ms = state.served_ms.saturating_add(passed);
            *counted = Some(since + Duration::from_millis(passed));
        }
        state.served_ms
    }

    fn write(&self, state: &SessionRecord) -> Result<()> {
        write_file(&self.path, &line(state))
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> PathBuf {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let n = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        std::env::temp_dir().join(format!("larder-session-{}-{n}", std::process::id()))
    }

    fn digest(fill: char) -> Digest {
        format!("sha256:{}", String::from(fill).repeat(64)).parse().unwrap()
    }

    #[test]
    fn an_unclean_shutdown_is_seen_by_the_next_start() {
        let path = file();
        let (session, ended) = Session::open(path.clone());
        assert_eq!(ended, Ended::Unknown);
        session.begin(7).unwrap();
        let (after, ended) = Session::open(path.clone());
        assert_eq!((ended, after.ceiling()), (Ended::Unclean, 7 + budget::COUNTS_AHEAD));
        session.save(9, true).unwrap();
        let (after, ended) = Session::open(path.clone());
        assert_eq!((ended, after.ceiling()), (Ended::Clean, 9));
        std::fs::write(&path, b"0123456789abcdef {}\n").unwrap();
        assert_eq!(Session::open(path.clone()).1, Ended::Unknown);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn what_is_unverified_stays_so_until_it_is_used_or_scrubbed() {
        let path = file();
        let (session, _) = Session::open(path.clone());
        assert!(!session.has_unverified());
        session.distrust_all(100);
        assert!(session.is_unverified(&digest('a'), 100) && !session.is_unverified(&digest('a'), 101));
        session.set_scrubbed(Some(digest('b')));
        assert!(!session.is_unverified(&digest('a'), 5) && session.is_unverified(&digest('c'), 5));
        session.save(100, true).unwrap();
        let (again, _) = Session::open(path.clone());
        assert!(again.is_unverified(&digest('c'), 5), "a clean restart verifies nothing");
        again.set_scrubbed(None);
        assert!(!again.is_unverified(&digest('c'), 5) && !again.has_unverified());
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn the_ceiling_goes_ahead_of_the_counts() {
        let path = file();
        let (session, _) = Session::open(path.clone());
        session.begin(0).unwrap();
        session.keep_ahead(1).unwrap();
        assert_eq!(session.ceiling(), budget::COUNTS_AHEAD);
        let last = budget::COUNTS_AHEAD - 1;
        session.keep_ahead(last).unwrap();
        assert_eq!(session.ceiling(), last + budget::COUNTS_AHEAD);
        assert_eq!(Session::open(path.clone()).0.ceiling(), session.ceiling());
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn age_is_running_time_and_survives_restarts() {
        let path = file();
        let (session, _) = Session::open(path.clone());
        {
            let mut state = session.state.lock();
            state.served_ms = 10_000;
            state.marks = vec![(1_000, 5), (4_000, 8), (9_000, 12)];
        }
        session.save(12, true).unwrap();
        let (again, _) = Session::open(path.clone());
        assert_eq!(again.count_before(Duration::from_secs(6)), Some(8));
        assert_eq!(again.count_before(Duration::from_secs(7)), Some(5));
        assert_eq!(again.count_before(Duration::from_secs(10)), None);
        again.mark(20, Duration::from_secs(2)).unwrap();
        assert_eq!(again.state.lock().marks.len(), 3, "the last is a second old");
        again.mark(20, Duration::from_secs(1)).unwrap();
        assert_eq!(again.state.lock().marks.last(), Some(&(10_000, 20)));
        for n in 0..2 * budget::USE_MARKS_MAX as u64 {
            again.mark(n, Duration::ZERO).unwrap();
        }
        assert_eq!(again.state.lock().marks.len(), budget::USE_MARKS_MAX);
        std::fs::remove_file(path).unwrap();
    }
}
