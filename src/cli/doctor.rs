//! `doctor`: every finding for people or as JSON, and the exit status that a monitor wants.

use super::print::{self, cell};
use crate::config::Config;
use crate::doctor::{self, Finding, Severity, System};
use std::path::Path;
use std::process::ExitCode;

/// Looks at the board and prints what was found. Exit status 1 if there is something to fix.
pub(super) fn run(config: &Config, root: &Path, json: bool) -> ExitCode {
    let this = System::this();
    let system = if root == Path::new("/") { this } else { this.below(root) };
    let findings = doctor::examine(config, &system);
    let text = if json {
        serde_json::to_string_pretty(&findings).map(|text| text + "\n").map_err(|e| e.to_string())
    } else {
        Ok(for_people(&findings))
    };
    match text.and_then(|text| print::out(&text).map_err(|e| format!("cannot print: {e}"))) {
        Ok(()) if findings.iter().any(Finding::is_wrong) => ExitCode::from(1),
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            log::error!("{problem}");
            ExitCode::from(1)
        }
    }
}

fn for_people(findings: &[Finding]) -> String {
    let mut out = String::new();
    for finding in findings {
        let word = match finding.severity {
            Severity::Ok => "ok",
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Bad => "BAD",
        };
        out += &format!("{word:<8} {:<10}  {}\n", finding.area, cell(&finding.what));
        if let Some(mend) = &finding.mend {
            out += &format!("{:<8} {:<10}  -> {}\n", "", "", cell(mend));
        }
    }
    let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    let (bad, warnings) = (count(Severity::Bad), count(Severity::Warning));
    out += &match bad + warnings {
        0 => "no problem found\n".to_owned(),
        _ => format!("{bad} bad, {warnings} warnings; the arrow shows how to fix each\n"),
    };
    out
}
