//! The images on the disk: the versions of tags, their content, and which would be removed first.
//!
//! | file | what |
//! |---|---|
//! | [`closure`] | what a manifest needs, and how much of it is on the disk |
//! | [`catalogue`] | everything on the disk, by image |
//! | [`evict`] | which images are removed when room is needed; pure |
//! | [`ready`] | whether an image would start with every link down |
//! | [`needed`] | what an index needs so that it would run, and what may stand in for a version |
//! | [`walk`] | each repository and each tag, a step at a time; the version that is served with every link down |
//!
//! Every answer is read from the store each time, so it cannot be stale; what manifests name, which cannot change, and how
//! much of a version is here are remembered for the length of a command. Failure is the store's.

mod catalogue;
mod closure;
mod evict;
mod needed;
mod ready;
mod walk;

pub use catalogue::{Busy, Catalogue, Gone, Stocked};
pub use closure::{Closure, Closures, Lack, Summary, open_to_everybody};
pub use evict::Otherwise;
pub use ready::{Readiness, WantedImage, offline, wanted_images};
pub use walk::{each_repository, each_tag, first_complete, here, served};

#[cfg(test)]
pub(crate) mod tests;
