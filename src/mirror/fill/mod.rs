//! Downloads (rules 4 and 5): a fixed set of slots is the download budget.
//!
//! | file | what |
//! |---|---|
//! | `pool` | the queue and the slots: which fill runs, which are parked |
//! | `run` | one run of one fill in a slot |
//!
//! A fill that upstream goes away from is parked, its bytes stay, and it is taken up when upstream is back.

mod pool;
mod queue;
mod run;

pub(super) use pool::{FillPool, download_failed};
