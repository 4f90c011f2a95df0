//! K3s: `registries.yaml` lists for each registry the endpoints that are asked before its own (K3s, "Private Registry
//! Configuration").
//!
//! Registries are named one by one: the wildcard `"*"` has broken the fallback in some versions. Sealed needs a
//! setting of K3s itself too, in a file of its own, so that the owner's `config.yaml` stays as it is.

use super::yaml_text::{Line, YamlContent, child, child_indent, children_end, lines, list, said};
use super::{MirrorAddress, Present, Profile, Wanted, with_lines};
use std::path::Path;

/// Where endpoints are listed.
pub(super) const REGISTRIES: &str = "/etc/rancher/k3s/registries.yaml";
/// A part of K3s' own configuration.
const PART: &str = "/etc/rancher/k3s/config.yaml.d/larder.yaml";
/// The setting without which K3s asks the origin last.
const SEAL: &str = "disable-default-registry-endpoint";

pub(super) fn wanted(
    mirror: &MirrorAddress,
    profile: Profile,
    present: &dyn Present,
) -> Result<Vec<Wanted>, String> {
    let path = Path::new(REGISTRIES);
    let text = merged(present.read(path)?.as_deref().unwrap_or_default(), mirror, profile)?;
    let mut files = vec![Wanted { path: path.to_owned(), text }];
    if profile == Profile::Sealed {
        let path = Path::new(PART);
        let text = present.read(path)?.unwrap_or_default();
        files.push(Wanted { path: path.to_owned(), text: sealed_part(&text)? });
    }
    Ok(files)
}

fn sealed_part(text: &str) -> Result<String, String> {
    let by_hand = format!("set {SEAL}: true there by hand");
    let found = lines(text).map_err(|e| format!("{PART}: {e}: {by_hand}"))?;
    match child(&found, None, SEAL).map(|n| &found[n].content) {
        None => Ok(with_lines(text, text.len(), &format!("# Larder has the last word.\n{SEAL}: true\n"))),
        Some(YamlContent::Pair { value, .. }) if value == "true" => Ok(text.to_owned()),
        Some(_) => Err(format!("{PART} sets {SEAL} to something else: {by_hand}, or use --profile fallback")),
    }
}

/// A text with something put in, and what it says more than before.
struct Merge<'a> {
    text: String,
    mirror: &'a MirrorAddress,
    added: Vec<(Vec<String>, String)>,
}

fn merged(text: &str, mirror: &MirrorAddress, profile: Profile) -> Result<String, String> {
    let before = lines(text).map_err(|e| {
        format!("{REGISTRIES}: {e}; larder changes no such file: add these lines by hand\n{}", fresh(mirror))
    })?;
    let mut merge = Merge { text: text.to_owned(), mirror, added: Vec::new() };
    let mut refused = Vec::new();
    // Backwards, because each goes in at the top: they end up in order.
    for origin in mirror.origins.iter().rev() {
        if let Err(problem) = merge.endpoint(origin.name.as_str(), profile) {
            refused.push(problem);
        }
    }
    if !refused.is_empty() {
        refused.reverse();
        return Err(refused.join("\n"));
    }
    if let Some(certificate) = &mirror.certificate {
        merge.trust(&certificate.display().to_string())?;
    }
    // Nothing else may have changed.
    let sorted = |mut all: Vec<(Vec<String>, String)>| {
        all.sort();
        all
    };
    let expected = sorted(said(&before).into_iter().chain(merge.added).collect());
    match lines(&merge.text) {
        Ok(after) if sorted(said(&after)) == expected => Ok(merge.text),
        _ => Err(format!(
            "{REGISTRIES} is written in a way that larder cannot add to: add these lines by hand\n{}",
            fresh(mirror)
        )),
    }
}

/// What a board without the file gets.
fn fresh(mirror: &MirrorAddress) -> String {
    let each =
        |origin: &super::Origin| format!("  {}:\n    endpoint:\n      - \"{}\"\n", origin.name, mirror.url);
    format!("mirrors:\n{}", mirror.origins.iter().map(each).collect::<String>())
}

impl Merge<'_> {
    /// The lines as they are now. They have been read before, and what was put in is of the same kind.
    fn lines(&self) -> Result<Vec<Line>, String> {
        lines(&self.text).map_err(|e| format!("{REGISTRIES}: {e}"))
    }

    fn put(&mut self, at: usize, added: &str) {
        self.text = with_lines(&self.text, at, added);
    }

    fn endpoint(&mut self, registry: &str, profile: Profile) -> Result<(), String> {
        let url = self.mirror.url.clone();
        let (found, section) = self.section("mirrors")?;
        let by_hand = format!("put \"{url}\" first in the endpoints of {registry} by hand");
        let said = (vec!["mirrors".to_owned(), registry.to_owned(), "endpoint".to_owned()], url.clone());
        let Some(entry) = child(&found, Some(section), registry) else {
            let [one, two, three] = indents(&found, section);
            self.put(found[section].end, &format!("{one}{registry}:\n{two}endpoint:\n{three}- \"{url}\"\n"));
            self.added.push(said);
            return Ok(());
        };
        if !is_open(&found[entry]) {
            return Err(format!("{REGISTRIES} has {registry} in one line: {by_hand}"));
        }
        if child(&found, Some(entry), "rewrite").is_some() {
            return Err(format!(
                "{REGISTRIES} rewrites the names of {registry}, which larder would be asked for too: {by_hand}, \
                 without the rewrite"
            ));
        }
        let Some(endpoints) = child(&found, Some(entry), "endpoint") else {
            let indent = child_indent(&found, entry).unwrap_or(2 * found[entry].indent.max(1));
            let (one, two) = (" ".repeat(indent), " ".repeat(indent + 2));
            self.put(found[entry].end, &format!("{one}endpoint:\n{two}- \"{url}\"\n"));
            self.added.push(said);
            return Ok(());
        };
        let listed = list(&found, endpoints);
        if profile == Profile::Sealed
            && let Some(other) = listed.iter().find(|one| !self.mirror.is_at(one))
        {
            return Err(format!(
                "{REGISTRIES} sends {registry} to {other} too, which would be asked beside larder: remove it, or use \
                 --profile fallback"
            ));
        }
        if listed.iter().any(|one| self.mirror.is_at(one)) {
            return Ok(());
        }
        let YamlContent::Pair { value, at, .. } = &found[endpoints].content else { return Ok(()) };
        if value.is_empty() {
            let indent = child_indent(&found, endpoints).unwrap_or(found[endpoints].indent + 2);
            let after = children_end(&found, endpoints);
            let first = if after > endpoints + 1 { found[endpoints + 1].start } else { found[endpoints].end };
            self.put(first, &format!("{}- \"{url}\"\n", " ".repeat(indent)));
        } else if value.starts_with('[') {
            let rest = if listed.is_empty() { "" } else { ", " };
            self.text.insert_str(at + 1, &format!("\"{url}\"{rest}"));
        } else {
            return Err(format!("{REGISTRIES} has no list of endpoints for {registry}: {by_hand}"));
        }
        self.added.push(said);
        Ok(())
    }

    /// The certificate that larder shows is trusted.
    fn trust(&mut self, certificate: &str) -> Result<(), String> {
        let authority = self.mirror.authority().to_owned();
        let (found, section) = self.section("configs")?;
        let by_hand = format!("set tls.ca_file to {certificate} for \"{authority}\" in its configs by hand");
        if let Some(entry) = child(&found, Some(section), &authority) {
            return match child(&found, Some(entry), "tls") {
                Some(_) => Ok(()),
                None => Err(format!("{REGISTRIES} has configs for {authority} without tls: {by_hand}")),
            };
        }
        let quoted = super::toml_text::quoted(certificate);
        let [one, two, three] = indents(&found, section);
        self.put(
            found[section].end,
            &format!("{one}\"{authority}\":\n{two}tls:\n{three}ca_file: {quoted}\n"),
        );
        let keys = ["configs", &authority, "tls", "ca_file"].map(str::to_owned);
        self.added.push((keys.to_vec(), certificate.to_owned()));
        Ok(())
    }

    /// The lines, and which is that of a top-level key whose children can be added to; made if there is none.
    fn section(&mut self, key: &str) -> Result<(Vec<Line>, usize), String> {
        let mut found = self.lines()?;
        if child(&found, None, key).is_none() {
            let indent = " ".repeat(found.first().map_or(0, |line| line.indent));
            self.put(self.text.len(), &format!("{indent}{key}:\n"));
            found = self.lines()?;
        }
        let section = child(&found, None, key).filter(|&n| is_open(&found[n]));
        let list = section
            .and_then(|n| found.get(n + 1))
            .is_some_and(|line| matches!(line.content, YamlContent::Item { .. }));
        match section {
            Some(section) if !list => Ok((found, section)),
            _ => Err(format!(
                "{REGISTRIES} has {key} in one line or as a list: write it over several lines, or remove it, and run \
                 this again"
            )),
        }
    }
}

/// What stands before the children of a line, theirs and theirs.
fn indents(found: &[Line], parent: usize) -> [String; 3] {
    let own = found[parent].indent;
    let step = child_indent(found, parent).map_or(2, |indent| indent - own);
    [1, 2, 3].map(|depth| " ".repeat(own + depth * step))
}

fn is_open(line: &Line) -> bool {
    matches!(&line.content, YamlContent::Pair { value, .. } if value.is_empty())
}

/// The endpoints of a registry, `"*"` included where it has none of its own.
pub(super) fn endpoints(text: &str, registry: &str) -> Result<Vec<String>, String> {
    let found = lines(text).map_err(|e| format!("{REGISTRIES}: {e}"))?;
    let Some(section) = child(&found, None, "mirrors") else { return Ok(Vec::new()) };
    let entry = child(&found, Some(section), registry).or_else(|| child(&found, Some(section), "*"));
    let endpoints = entry.and_then(|entry| child(&found, Some(entry), "endpoint"));
    Ok(endpoints.map_or_else(Vec::new, |n| list(&found, n)))
}
