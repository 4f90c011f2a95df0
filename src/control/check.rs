//! `check`: would the images start with every link down? A row for each image and platform. Failure is the store's.

use super::{Admin, AdminRecord, AnswerSink, CheckRow, CheckState, PartRow, Problem};
use crate::budget;
use crate::image::{Closures, Readiness, WantedImage, wanted_images};
use crate::oci::{Platform, Reference};
use crate::text::bytes_text;
use std::collections::BTreeMap;

impl Admin {
    pub(super) fn check(
        &self,
        images: &[Reference],
        wanted: bool,
        hash: bool,
        answer: &mut AnswerSink<'_>,
    ) -> Result<(), Problem> {
        let asked =
            images.iter().map(|image| WantedImage { image: image.clone(), warm: false, pinned: false });
        let mut all: Vec<WantedImage> = asked.collect();
        for more in if wanted { wanted_images(&self.store, &self.config)? } else { Vec::new() } {
            match all.iter_mut().find(|known| known.image == more.image) {
                Some(known) => *known = more,
                None => all.push(more),
            }
        }
        if hash {
            // This thread runs only this command. If its priority cannot be lowered, it continues as it is.
            let _ = rustix::process::nice(budget::SCRUB_NICE);
        }
        let any = self.closures();
        // What was hashed, and what was wrong with it.
        let mut hashed = BTreeMap::new();
        for platform in &self.config.platforms {
            let own = Closures::for_platforms(&self.store, &self.config, std::slice::from_ref(platform));
            for image in &all {
                let found = Readiness::of(&any, &own, &self.config, &image.image, platform)?;
                let corrupt = if hash { self.corrupt(&found, &mut hashed)? } else { None };
                answer(AdminRecord::Checked(Box::new(row(image, platform, &found, corrupt))))?;
                let missing = found.closure.absent.into_iter();
                for (digest, bytes) in missing {
                    answer(AdminRecord::Missing(PartRow { digest, bytes, here: false }))?;
                }
            }
        }
        Ok(())
    }

    /// What is wrong with the first piece of a version that does not hash to its name.
    fn corrupt(
        &self,
        found: &Readiness,
        hashed: &mut BTreeMap<crate::oci::Digest, Option<String>>,
    ) -> Result<Option<String>, Problem> {
        for digest in found.closure.present.keys() {
            if !hashed.contains_key(digest) {
                let problem = match self.store.verify(digest) {
                    Ok(()) => None,
                    Err(lack) if lack.is_exhaustion() => return Err(lack.into()),
                    Err(problem) => Some(problem.to_string()),
                };
                hashed.insert(digest.clone(), problem);
            }
            if let Some(Some(problem)) = hashed.get(digest) {
                return Ok(Some(format!("{problem}; larder verify --repair has it fetched again")));
            }
        }
        Ok(None)
    }
}

fn row(image: &WantedImage, platform: &Platform, found: &Readiness, corrupt: Option<String>) -> CheckRow {
    let (state, problem) = match (corrupt, &found.looked_at) {
        (Some(corrupt), _) => (CheckState::Corrupt, Some(corrupt)),
        _ if found.would_start() => (CheckState::Ready, None),
        (None, None) => (CheckState::Absent, Some("nothing of it is here: pull it once".to_owned())),
        _ if !found.others.is_empty() => {
            let others: Vec<String> =
                found.others.iter().take(budget::CHECK_NAMES_MAX).map(ToString::to_string).collect();
            (CheckState::OtherPlatform, Some(format!("it has {} and not {platform}", others.join(", "))))
        }
        _ if found.closure.unknown => {
            (CheckState::Incomplete, Some("a manifest of it cannot be read".to_owned()))
        }
        _ => {
            let missing = bytes_text(found.closure.absent_bytes());
            (CheckState::Incomplete, Some(format!("{missing} missing: pull it again")))
        }
    };
    CheckRow {
        image: image.image.to_string(),
        platform: platform.clone(),
        state,
        warm: image.warm,
        pinned: image.pinned,
        sandbox: false,
        digest: found.looked_at.clone(),
        rule: found.offline.as_ref().map(|(_, rule)| (*rule).to_owned()),
        bytes: found.closure.present_bytes(),
        missing_bytes: found.closure.absent_bytes(),
        problem,
        missing: Vec::new(),
    }
}
