//! Larder, a container image mirror for boards whose uplink comes and goes.
//!
//! One process runs next to containerd or K3s, keeps what was pulled on the board's own disk and keeps answering - tags
//! included - when the registry cannot be reached. Read the rooms in the order in which a pull walks through them.
//!
//! A request comes in at [`http`], which parses it once into a typed target and knows nothing of registries. It asks
//! the [`mirror`] one of four things: which digest is this tag, give me this manifest, give me this blob, list these
//! names. For a tag the mirror asks upstream within a bound, and answers from what is complete on the disk when that fails;
//! which version that is, [`decide`] says, from plain values and with nothing asked. For a blob that is not here it begins a
//! fill, or joins one. Who may read what is in [`auth`].
//!
//! Bytes come from [`fetch`], whose calls block and are made on a fixed set of threads, and go to the [`store`], which
//! hashes them as they arrive and makes a blob of them only when they are complete. Clients read the growing file. What
//! the store knows of tags it writes to a journal first and to an index second, so that the index can be rebuilt.
//!
//! While an upstream cannot be reached, the boards of a [`kit`] ask each other. A peer's claim is a hint: content is
//! trusted by its hash, and a tag only where nothing that this board verified itself is newer.
//!
//! The owner of the board uses [`control`]: the same commands over a Unix socket while the server runs and on the store
//! itself while it does not. [`cli`] is the command line, and [`demo`] shows the main job with nothing else installed.
//! [`image`] knows which images are on the disk, which version of a tag is served offline and what is removed first;
//! [`report`] says how larder is doing, to commands, to metrics and, by [`watch`], to the service manager.
//!
//! [`clients`] are the files that make containerd, K3s, podman and Docker use larder, and [`doctor`] finds what is wrong
//! with a board.
//!
//! Underneath lie [`oci`], the vocabulary of registries; [`config`], what a configuration means once it is read;
//! [`clock`], what may be believed of time; [`budget`], every limit in one table; [`documents`], how many large documents are
//! in memory at a time; [`places`], pools that nobody takes all of; [`sync`], locks and threads; [`text`], sizes for
//! people, secrets and what is escaped; and [`via`], the way of a request from one Larder to the next. ARCHITECTURE.md has the map, the rules of the data and the decisions; a test keeps
//! the arrows between the rooms.

pub mod auth;
pub mod budget;
pub mod cli;
pub mod clients;
pub mod clock;
pub mod config;
pub mod control;
pub mod decide;
pub mod demo;
pub mod doctor;
pub mod documents;
pub mod fetch;
pub mod files;
pub mod http;
pub mod image;
pub mod kit;
pub mod mirror;
pub mod oci;
pub mod places;
pub mod report;
pub mod store;
pub mod sync;
pub mod text;
pub mod via;
pub mod watch;
