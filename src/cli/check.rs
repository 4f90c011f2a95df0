//! `check`: which images are asked about, and what the answer means for the exit status.

use super::look::{self, GatheredAnswer};
use super::print;
use crate::budget;
use crate::clients::files::Root;
use crate::clients::{SandboxImages, sandbox_images};
use crate::config::Config;
use crate::control::AdminRequest;
use crate::oci::Reference;
use std::path::Path;
use std::process::ExitCode;

/// Checks `images`, or what is wanted if there are none.
pub(super) fn run(
    config: &Config,
    images: &[Reference],
    hash: bool,
    from_runtime: bool,
    root: &Path,
    json: bool,
) -> ExitCode {
    let wanted = images.is_empty();
    let found = if wanted || from_runtime { runtime(root) } else { SandboxImages::default() };
    let mut sandbox = Vec::new();
    for name in &found.names {
        match name.parse::<Reference>() {
            Ok(image) => sandbox.push(image),
            Err(problem) => print::note(&format!("the runtime's sandbox image: {problem}\n")),
        }
    }
    found.unknown.iter().for_each(|why| print::note(&format!("{why}; name it, to have it checked\n")));
    if from_runtime && sandbox.is_empty() {
        log::error!("no configuration of containerd, K3s, RKE2 or CRI-O here names a sandbox image");
        return ExitCode::from(1);
    }
    let mut all: Vec<Reference> = Vec::new();
    for image in images.iter().chain(&sandbox) {
        if !all.contains(image) {
            all.push(image.clone());
        }
    }
    let request =
        |images: &[Reference], wanted| AdminRequest::Check { images: images.to_vec(), wanted, hash };
    let mut requests: Vec<_> =
        all.chunks(budget::CHECK_IMAGES_MAX).map(|images| request(images, false)).collect();
    match requests.first_mut() {
        Some(AdminRequest::Check { wanted: first, .. }) => *first = wanted,
        _ => requests.push(request(&[], wanted)),
    }
    let names: Vec<String> = sandbox.iter().map(ToString::to_string).collect();
    look::run_with(config, &requests, json, |answer: &mut GatheredAnswer| answer.mark_sandbox(&names))
}

fn runtime(root: &Path) -> SandboxImages {
    match Root::new(root) {
        Ok(root) => sandbox_images(&root),
        Err(problem) => SandboxImages { names: Vec::new(), unknown: vec![problem] },
    }
}
