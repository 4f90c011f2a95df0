//! The real binary against an upstream that fails on command: one module per topic, linked once.
//!
//! The tests of all modules run in one process and side by side, so none changes what the process has only once: its
//! environment, its working directory, its panic hook. Each has folders and ports of its own. `numbers`, `model` and
//! `crash`, which measure, take long or do have to change such a thing, are binaries of their own.

// Where a test cannot go on, it stops.
#![allow(clippy::unwrap_used)]

mod api;
mod board;
mod bombs;
mod broken_disk;
mod cannot_know;
mod chain;
mod check;
mod clients;
mod complete;
mod conditions;
mod crowd;
mod damaged_index;
mod destruction;
mod doctor;
mod domains;
mod early_ranges;
mod endpoints;
mod exhaustion;
mod facts;
mod fairness;
mod faults;
mod fills;
mod integrity;
mod joiners;
mod kill;
mod kit;
mod labels;
mod limits;
mod link;
mod loglines;
mod names;
mod neighbours;
mod not_a_registry;
mod private;
mod profiles;
mod proof;
mod pull_secrets;
mod rate_limit_login;
mod reasons;
mod reload;
mod rights;
mod room;
mod secrets;
mod servers_word;
mod serving;
mod shortcuts;
mod socks;
mod special_files;
mod systemd;
mod tags;
mod unproven;
mod unwaited;
mod upgrade;
mod within_registry;
