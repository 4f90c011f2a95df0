//! `/healthz`: the process answers. `/readyz`: it answers for tags too. Nothing in here waits or fails.

use super::answer::{self, Answer};
use crate::mirror::Mirror;
use crate::report::IndexReport;
use hyper::StatusCode;

pub(super) fn alive() -> Answer {
    answer::full(StatusCode::OK, "text/plain; charset=utf-8", "ok\n")
}

pub(super) fn ready(mirror: &Mirror) -> Answer {
    if mirror.snapshot().index == IndexReport::Ready {
        answer::full(StatusCode::OK, "text/plain; charset=utf-8", "ready\n")
    } else {
        let text = "the index is being rebuilt; content by digest is served\n";
        answer::full(StatusCode::SERVICE_UNAVAILABLE, "text/plain; charset=utf-8", text)
    }
}
