//! Tags: which digest one stands for, and which of its versions are complete.
//!
//! | file | what |
//! |---|---|
//! | `table` | all that is kept in memory of a tag |
//! | `resolve` | asks and waits, then has `decide` choose |
//! | `check` | asks upstream for a tag and moves the pointers |
//! | `settle` | listens for what arrives, and moves *complete* |
//! | `claims` | what peers say of a tag |

mod check;
mod claims;
mod local;
mod resolve;
mod settle;
mod table;

pub use resolve::{TagAnswer, TagContent};

pub(super) use claims::offer;
pub(super) use resolve::Tags;
pub(super) use settle::Settler;
pub(super) use table::TagTable;
