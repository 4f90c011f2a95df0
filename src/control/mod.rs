//! The administration commands: looking at the store and changing it.
//!
//! A command is an [`AdminRequest`], its answer a sequence of [`AdminRecord`]s. While the server runs they cross a Unix
//! socket ([`socket`]) that only root and larder's group may open; while it is stopped the same code works on the store
//! itself, under its lock. So a command gives the same answer either way. A failure is the last record of an answer.

mod change;
mod check;
mod look;
mod record;
pub mod socket;
mod verify;

pub use record::{
    AdminRecord, AdminRequest, CheckRow, CheckState, Completeness, CorruptBlob, HistoryReport, ImageRow,
    PartRow, StatusReport, UpstreamRow, VerifyReport, VersionRow, WhyReport,
};

use crate::config::Config;
use crate::image::{Busy, Catalogue, Closures};
use crate::oci::{Reference, Repository, Tag};
use crate::report::{ImageCache, Live, Snapshot};
use crate::store::{Store, StoreError, TagRecord};
use std::io;
use std::sync::Arc;
use std::time::Instant;

/// Takes the records of an answer. An error means that the client has left.
pub type AnswerSink<'a> = dyn FnMut(AdminRecord) -> io::Result<()> + 'a;

/// Executes commands.
pub struct Admin {
    config: Arc<Config>,
    store: Arc<Store>,
    /// There while the server runs.
    live: Option<Arc<dyn Live>>,
    opened: Instant,
    images: ImageCache,
}

impl Admin {
    /// For the running server whose store it is.
    pub fn of(config: &Arc<Config>, store: &Arc<Store>, live: Arc<dyn Live>) -> Admin {
        Admin::new(Arc::clone(config), Arc::clone(store), Some(live))
    }

    /// For a store whose server is stopped. Takes the store's lock.
    ///
    /// # Errors
    /// [`StoreError::Locked`] if a server or a command has the store; else it cannot be opened or its index not rebuilt.
    pub fn open(config: &Config) -> Result<Admin, StoreError> {
        let (store, startup) = Store::open(&config.data_dir, config.tags.history)?;
        startup.finish_briefly(&store)?;
        Ok(Admin::new(Arc::new(config.clone()), Arc::new(store), None))
    }

    fn new(config: Arc<Config>, store: Arc<Store>, live: Option<Arc<dyn Live>>) -> Admin {
        Admin { config, store, live, opened: Instant::now(), images: ImageCache::default() }
    }

    /// Executes a command. The answer is complete when this returns.
    pub fn execute(&self, request: &AdminRequest, answer: &mut AnswerSink<'_>) {
        if let Err(problem) = self.run(request, answer) {
            // The client may have left.
            let _ = answer(AdminRecord::Failed(problem.0));
        }
    }

    fn run(&self, request: &AdminRequest, answer: &mut AnswerSink<'_>) -> Result<(), Problem> {
        let last = match request {
            AdminRequest::Ls => return self.ls(answer),
            AdminRequest::Why { image } => return self.why(image, answer),
            AdminRequest::History { image } => return self.history(image, answer),
            AdminRequest::Verify { repair } => return self.verify(*repair, answer),
            AdminRequest::Check { images, wanted, hash } => {
                return self.check(images, *wanted, *hash, answer);
            }
            AdminRequest::Status => AdminRecord::Status(Box::new(self.status()?)),
            AdminRequest::Rollback { image, to } => AdminRecord::Done(self.rollback(image, to.as_ref())?),
            AdminRequest::Pin { image, pinned } => AdminRecord::Done(self.pin(image, *pinned)?),
            AdminRequest::Rm { image } => AdminRecord::Done(self.rm(image)?),
        };
        Ok(answer(last)?)
    }

    /// What manifests need, each read once for a command.
    fn closures(&self) -> Closures<'_> {
        Closures::new(&self.store, &self.config)
    }

    /// Everything on the disk, by image.
    fn catalogue(&self) -> Result<Catalogue, StoreError> {
        Catalogue::take(&self.store, &self.config, &self.busy())
    }

    fn busy(&self) -> Busy {
        self.live.as_ref().map(|live| live.busy()).unwrap_or_default()
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot::take(&self.config, &self.store, self.live.as_deref())
    }

    /// The tag that an image names, and its record.
    fn tag<'a>(&self, image: &'a Reference) -> Result<(&'a Repository, &'a Tag, TagRecord), Problem> {
        let tag = image
            .tag
            .as_ref()
            .ok_or_else(|| Problem(format!("{image} names a digest and no tag; a digest has one version")))?;
        let record = self.store.tag(&image.repository, tag)?.ok_or_else(|| unknown(image))?;
        Ok((&image.repository, tag, record))
    }
}

/// Why a command could not be executed, as a message.
struct Problem(String);

impl From<StoreError> for Problem {
    fn from(e: StoreError) -> Self {
        Problem(e.to_string())
    }
}

impl From<io::Error> for Problem {
    fn from(e: io::Error) -> Self {
        Problem(format!("the answer was not taken: {e}"))
    }
}

fn unknown(image: &Reference) -> Problem {
    Problem(format!("{image} is not known here; larder ls shows what is"))
}

#[cfg(test)]
mod tests;
