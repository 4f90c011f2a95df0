//! `/v2/`: yes, this is a registry (distribution-spec, "Determining Support").

use super::answer::{self, Answer};
use hyper::StatusCode;

pub(super) fn answer() -> Answer {
    answer::full(StatusCode::OK, "application/json", "{}")
}
