//! Downloads (rules 4 and 5): a fixed set of slots is the download budget.
//!
//! | file | what |
//! |---|---|
//! | `pool` | the queue and the slots: which fill runs, which are parked |
//! | `queue`, `turn` | whose turn it is, and when it is over |
//! | `run` | one run of one fill in a slot |
//!
//! When upstream cannot be reached any more, a fill is parked: its bytes stay, and it resumes when upstream is back.

mod pool;
mod queue;
mod run;
mod sources;
mod turn;

pub(super) use pool::{FillPool, download_failed};
pub(super) use turn::Turn;
