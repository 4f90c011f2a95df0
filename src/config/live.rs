//! The configuration that holds now, behind a handle that every part of the server shares.

use super::Config;
use crate::sync::RwLock;
use std::sync::Arc;

/// A configuration that can be replaced while the server runs. Readers take it once for each piece of work, so that one
/// piece never sees two configurations.
#[derive(Debug)]
pub struct LiveConfig(RwLock<Arc<Config>>);

impl LiveConfig {
    /// A handle to `config`.
    pub fn new(config: Arc<Config>) -> LiveConfig {
        LiveConfig(RwLock::new(config))
    }

    /// The configuration that holds now.
    pub fn now(&self) -> Arc<Config> {
        Arc::clone(&self.0.read())
    }

    /// Puts another configuration in its place.
    pub fn replace(&self, config: Arc<Config>) {
        *self.0.write() = config;
    }
}
