//! The log: one line an event on standard error, whatever text from outside is in it.
//!
//! A line is escaped and bounded here, where all lines go through, and not where they are made. Lines of one kind - one
//! place in the source - are rate limited, so that a client that is refused again and again fills no disk: the first
//! [`budget::LOG_BURST`] are written and then one in [`budget::LOG_REFILL`]. What is left out is counted, and a last line
//! says how many there were. Debug lines are for who asked for them, and of those [`budget::LOG_DEBUG_BURST`] are written
//! first and then one in [`budget::LOG_DEBUG_REFILL`]. A line that cannot be written is lost; that is no reason to stop.

use crate::budget;
use crate::sync::Mutex;
use crate::text::escaped;
use log::{Level, LevelFilter, Log, Metadata, Record};
use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

static LOG: LineLog = LineLog {
    limited: AtomicBool::new(false),
    repeats: Mutex::new(Repeats::new()),
    left_out: Notify::const_new(),
};

struct LineLog {
    limited: AtomicBool,
    repeats: Mutex<Repeats>,
    /// Signalled when the first line of a kind is left out.
    left_out: Notify,
}

/// Begins to log. Other crates log only warnings and errors: ureq's debug lines could contain signed addresses.
pub(super) fn set_up(verbose: u8, quiet: u8) {
    let level = match i16::from(verbose) - i16::from(quiet) {
        ..=-2 => LevelFilter::Error,
        -1 => LevelFilter::Warn,
        0 => LevelFilter::Info,
        1 => LevelFilter::Debug,
        2.. => LevelFilter::Trace,
    };
    // This fails only if a logger is set already, and no other place sets one.
    if log::set_logger(&LOG).is_ok() {
        log::set_max_level(level);
    }
}

/// Limits lines that repeat from now on, for a server, and reports what was left out some time after it was. A command says
/// all that it has to say. Ends with the runtime.
pub(super) fn limit() -> impl Future<Output = ()> {
    LOG.limited.store(true, Ordering::Relaxed);
    async {
        loop {
            LOG.left_out.notified().await;
            tokio::time::sleep(budget::LOG_SUMMARY_EVERY).await;
            LOG.flush();
        }
    }
}

impl Log for LineLog {
    fn enabled(&self, metadata: &Metadata) -> bool {
        let target = metadata.target();
        metadata.level() <= Level::Warn || target == "larder" || target.starts_with("larder::")
    }

    fn log(&self, record: &Record) {
        if !self.enabled(record.metadata()) {
            return;
        }
        if self.limited.load(Ordering::Relaxed) {
            let kind = (record.file_static().unwrap_or_default(), record.line().unwrap_or_default());
            let pace = if record.level() <= Level::Info { PACE } else { DEBUG_PACE };
            match self.repeats.lock().take(kind, pace, Instant::now(), || line(record)) {
                Admission::Write => {}
                Admission::LeaveOut { first } => {
                    if first {
                        self.left_out.notify_one();
                    }
                    return;
                }
            }
        }
        write(&line(record));
    }

    fn flush(&self) {
        let summaries = self.repeats.lock().summaries(Instant::now());
        summaries.iter().for_each(|line| write(line));
    }
}

fn write(line: &str) {
    let _ = std::io::stderr().lock().write_all(format!("{line}\n").as_bytes());
}

fn line(record: &Record) -> String {
    let mut line = BoundedLine::default();
    let _ = write!(line, "{:<5} [{}] {}", record.level(), record.target(), record.args());
    line.finish()
}

/// A line in the making, escaped.
#[derive(Default)]
struct BoundedLine {
    text: String,
    /// Bytes that did not fit.
    cut: usize,
}

impl BoundedLine {
    fn finish(mut self) -> String {
        if self.cut > 0 {
            self.text.push_str(&format!("... ({} bytes more)", self.cut));
        }
        self.text
    }
}

impl fmt::Write for BoundedLine {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // What does not fit is not escaped first: an escape is never shorter than its character.
        let room = budget::LOG_LINE_BYTES_MAX - self.text.len();
        let (near, far) = text.split_at(text.floor_char_boundary(room));
        let near = escaped(near, &[]);
        let fits = near.floor_char_boundary(room);
        self.text.push_str(&near[..fits]);
        self.cut += near.len() - fits + far.len();
        Ok(())
    }
}

/// A place in the source: file and line.
type LineKind = (&'static str, u32);

/// How many lines of a kind are written at once, and after which time one more may be.
#[derive(Clone, Copy)]
struct LinePace {
    burst: u32,
    refill: Duration,
}

const PACE: LinePace = LinePace { burst: budget::LOG_BURST, refill: budget::LOG_REFILL };
const DEBUG_PACE: LinePace = LinePace { burst: budget::LOG_DEBUG_BURST, refill: budget::LOG_DEBUG_REFILL };

/// What becomes of a line.
#[derive(Debug, PartialEq, Eq)]
enum Admission {
    Write,
    /// `first`: nothing of its kind has been left out since the last summary.
    LeaveOut {
        first: bool,
    },
}

/// How often each kind of line was written lately. Pure: the caller brings the time.
struct Repeats(BTreeMap<LineKind, LineBucket>);

struct LineBucket {
    /// Lines that may be written at once.
    left: u32,
    /// When a line was last added to that.
    filled: Instant,
    left_out: Option<LeftOut>,
}

struct LeftOut {
    count: u64,
    since: Instant,
    /// The first of them.
    line: String,
}

impl Repeats {
    const fn new() -> Repeats {
        Repeats(BTreeMap::new())
    }

    fn take(
        &mut self,
        kind: LineKind,
        pace: LinePace,
        now: Instant,
        line: impl FnOnce() -> String,
    ) -> Admission {
        // More kinds than there are places that log: what is beyond the table shares an entry.
        let has_place = self.0.len() < budget::LOG_KINDS_MAX || self.0.contains_key(&kind);
        let kind = if has_place { kind } else { LineKind::default() };
        let fresh = || LineBucket { left: pace.burst, filled: now, left_out: None };
        let bucket = self.0.entry(kind).or_insert_with(fresh);
        while bucket.left < pace.burst && now.duration_since(bucket.filled) >= pace.refill {
            bucket.left += 1;
            bucket.filled += pace.refill;
        }
        if bucket.left >= pace.burst {
            bucket.filled = now;
        }
        if bucket.left > 0 {
            bucket.left -= 1;
            return Admission::Write;
        }
        let first = bucket.left_out.is_none();
        let left_out = bucket.left_out.get_or_insert_with(|| LeftOut { count: 0, since: now, line: line() });
        left_out.count += 1;
        Admission::LeaveOut { first }
    }

    /// Says of each kind how many lines were left out since the last time.
    fn summaries(&mut self, now: Instant) -> Vec<String> {
        let left_out = self.0.values_mut().filter_map(|bucket| bucket.left_out.take());
        let text = |LeftOut { count, since, line }| {
            let seconds = now.duration_since(since).as_secs().max(1);
            format!("{line} ({count} like it left out in the last {seconds} s)")
        };
        left_out.map(text).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(repeats: &mut Repeats, kind: LineKind, now: Instant) -> bool {
        repeats.take(kind, PACE, now, || format!("line {}", kind.1)) == Admission::Write
    }

    #[test]
    fn what_repeats_is_counted_and_what_does_not_is_written() {
        let (mut repeats, mut now) = (Repeats::new(), Instant::now());
        let flood = ("a.rs", 1);
        let written = (0..1_000).filter(|_| take(&mut repeats, flood, now)).count();
        assert_eq!(written as u32, budget::LOG_BURST);
        // Another kind is not concerned.
        assert!(take(&mut repeats, ("a.rs", 2), now));
        now += 3 * budget::LOG_REFILL;
        let written = (0..100).filter(|_| take(&mut repeats, flood, now)).count();
        assert_eq!(written, 3);
        let summaries = repeats.summaries(now);
        let seconds = (3 * budget::LOG_REFILL).as_secs();
        let left_out = 1_000 - budget::LOG_BURST + 97;
        assert_eq!(summaries, [format!("line 1 ({left_out} like it left out in the last {seconds} s)")]);
        assert_eq!(repeats.summaries(now), Vec::<String>::new());
        // After a pause all is as in the beginning.
        now += budget::LOG_REFILL * (budget::LOG_BURST + 5);
        let written = (0..100).filter(|_| take(&mut repeats, flood, now)).count();
        assert_eq!(written as u32, budget::LOG_BURST);
    }

    #[test]
    fn the_first_line_left_out_is_the_one_that_calls_for_a_summary() {
        let (mut repeats, now) = (Repeats::new(), Instant::now());
        while take(&mut repeats, ("a.rs", 1), now) {}
        let mut again = || repeats.take(("a.rs", 1), PACE, now, String::new);
        assert_eq!(again(), Admission::LeaveOut { first: false });
        repeats.summaries(now);
        let mut again = || repeats.take(("a.rs", 1), PACE, now, String::new);
        assert_eq!(
            (again(), again()),
            (Admission::LeaveOut { first: true }, Admission::LeaveOut { first: false })
        );
    }

    #[test]
    fn the_table_of_kinds_is_bounded() {
        let (mut repeats, now) = (Repeats::new(), Instant::now());
        let lines = 0..10 * budget::LOG_KINDS_MAX as u32;
        let written = lines.filter(|line| take(&mut repeats, ("a.rs", *line), now)).count();
        assert!(repeats.0.len() <= budget::LOG_KINDS_MAX + 1);
        assert!((budget::LOG_KINDS_MAX..2 * budget::LOG_KINDS_MAX).contains(&written));
    }

    #[test]
    fn a_line_is_one_line_of_bounded_length() {
        let line = |text: &str| {
            let args = format_args!("{text}").to_string();
            line(
                &Record::builder()
                    .level(Level::Warn)
                    .target("larder::http")
                    .args(format_args!("{args}"))
                    .build(),
            )
        };
        assert_eq!(line("a\nERROR [larder] \x1b[2Jb"), "WARN  [larder::http] a\\nERROR [larder] \\u001b[2Jb");
        for text in ["x".repeat(1 << 20), "\x1b".repeat(1 << 20), "日".repeat(1 << 19)] {
            let line = line(&text);
            let most = budget::LOG_LINE_BYTES_MAX + 40;
            assert!(line.len() <= most && line.ends_with(" bytes more)"), "{}", line.len());
        }
    }
}
