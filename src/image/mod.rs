//! What images are on the disk: which versions of which tags, what belongs to them, what would go first.
//!
//! | file | what |
//! |---|---|
//! | [`closure`] | what a manifest needs, and how much of it is here |
//! | [`catalogue`] | everything on the disk, by image |
//! | [`evict`] | which images go when room is needed; pure |
//! | [`walk`] | each repository and each tag, a step at a time; the version that is served with every link down |
//!
//! Every answer is read from the store when it is asked for, so it cannot be stale; only what manifests name, which their
//! digests fix, is remembered for the length of a command. Failure is the store's.

mod catalogue;
mod closure;
mod evict;
mod walk;

pub use catalogue::{Busy, Catalogue, Gone, Stocked};
pub use closure::{Closure, Closures, closure};
pub use evict::Otherwise;
pub use walk::{each_repository, each_tag, first_complete, here, served};

#[cfg(test)]
pub(crate) mod tests;
