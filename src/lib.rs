//! Larder, a container image mirror for boards whose uplink comes and goes.

pub mod budget;
pub mod clock;
pub mod config;
pub mod fetch;
pub mod oci;
pub mod store;
