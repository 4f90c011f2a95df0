//! Larder, a container image mirror for boards whose uplink comes and goes.

pub mod budget;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod fetch;
pub mod http;
pub mod mirror;
pub mod oci;
pub mod store;
