//! Tags: which digest one stands for, and which of its versions are complete.
//!
//! | file | what |
//! |---|---|
//! | `table` | everything that is kept in memory about tags |
//! | `resolve` | asks and waits, then calls `decide` |
//! | `cached` | what a refusal says: why, what is lacking, what is cached instead |
//! | `check` | asks upstream for a tag and moves the pointers |
//! | `waiting` | what versions wait for |
//! | `settle` | listens for new content, and moves *complete* |
//! | `claims` | claims of peers about tags |

mod cached;
mod check;
mod claims;
mod local;
mod resolve;
mod settle;
mod table;
mod waiting;

pub use resolve::{TagAnswer, TagContent};

pub(super) use claims::offer;
pub(super) use resolve::Tags;
pub(super) use settle::Settler;
pub(super) use table::TagTable;
