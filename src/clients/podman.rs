//! podman, CRI-O, buildah and skopeo: a file of its own next to `registries.conf` (containers-registries.conf.d).
//!
//! The file names every registry that larder stands before. An entry there would take the place of one with the same
//! prefix in the owner's files, so where there is one nothing is written.

use super::toml_text::{parse, quoted};
use super::{MirrorAddress, Origin, Present, Profile, Wanted};
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// The owner's file.
pub(super) const MAIN: &str = "/etc/containers/registries.conf";
/// Files that are read after it.
const PARTS: &str = "/etc/containers/registries.conf.d";
/// Larder's.
pub(super) const OURS: &str = "/etc/containers/registries.conf.d/50-larder.conf";

pub(super) fn wanted(
    mirror: &MirrorAddress,
    profile: Profile,
    present: &dyn Present,
) -> Result<Vec<Wanted>, String> {
    let text = fresh(mirror, profile);
    let ours = Path::new(OURS);
    if present.read(ours)?.is_some_and(|there| there != text) {
        return Err(format!(
            "{OURS} has been changed by hand: move the changes to another file of {PARTS}, remove it and run this again"
        ));
    }
    let mut refused = Vec::new();
    for (path, entries) in entries(present)?.into_iter().filter(|(path, _)| path != ours) {
        for entry in entries {
            let prefix = prefix_of(&entry);
            if mirror.origins.iter().any(|origin| origin.name.as_str() == prefix) {
                refused.push(format!(
                    "{} has an entry for {prefix}, whose place larder's would take: add this to it by hand, as its \
                     first mirror, and name no {prefix} here\n{}",
                    path.display(),
                    mirror_block(mirror, prefix)
                ));
            }
        }
    }
    if refused.is_empty() {
        Ok(vec![Wanted { path: ours.to_owned(), text }])
    } else {
        Err(refused.join("\n"))
    }
}

fn fresh(mirror: &MirrorAddress, profile: Profile) -> String {
    let mut text = match profile {
        Profile::Fallback => "# Larder is asked first, the origin when larder cannot answer.\n".to_owned(),
        Profile::Sealed => "# Larder alone is asked.\n".to_owned(),
    };
    for origin in &mirror.origins {
        let name = origin.name.as_str();
        text += &format!("\n[[registry]]\nprefix = {}\n", quoted(name));
        match profile {
            Profile::Fallback => {
                text += &format!("{}\n{}", origin_place(origin), mirror_block(mirror, name));
            }
            Profile::Sealed => text += &place(mirror, name),
        }
    }
    text
}

fn mirror_block(mirror: &MirrorAddress, registry: &str) -> String {
    format!("[[registry.mirror]]\n{}", place(mirror, registry))
}

/// Clients of this kind name the registry in the path.
fn place(mirror: &MirrorAddress, registry: &str) -> String {
    location(&format!("{}/{registry}", mirror.authority()), mirror.is_https())
}

/// The origin is where larder's configuration says that the registry is.
fn origin_place(origin: &Origin) -> String {
    let name = origin.name.as_str();
    match origin.url.split_once("://") {
        Some((scheme, place)) if origin.url_configured => location(place, scheme == "https"),
        // podman knows better than an address that is built in: what is `docker.io` to it has other names too.
        _ => location(name, true),
    }
}

/// "insecure" means plain HTTP too, which on this board is what larder speaks.
fn location(place: &str, https: bool) -> String {
    format!("location = {}\n{}", quoted(place), if https { "" } else { "insecure = true\n" })
}

fn prefix_of(entry: &Table) -> &str {
    let text = |key| entry.get(key).and_then(Value::as_str);
    text("prefix").or_else(|| text("location")).unwrap_or_default()
}

/// The entries of every file, by file.
fn entries(present: &dyn Present) -> Result<Vec<(PathBuf, Vec<Table>)>, String> {
    let mut files = vec![PathBuf::from(MAIN)];
    let parts = present.list(Path::new(PARTS))?;
    files.extend(
        parts.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "conf")),
    );
    let mut all = Vec::new();
    for path in files {
        let Some(text) = present.read(&path)? else { continue };
        let table = parse(&text)
            .map_err(|e| format!("{} is not TOML ({e}): mend it and run this again", path.display()))?;
        let entries = table.get("registry").and_then(Value::as_array);
        let tables = entries.into_iter().flatten().filter_map(Value::as_table).cloned().collect();
        all.push((path, tables));
    }
    Ok(all)
}

/// Whether pulls of `registry` are sent to the mirror.
pub(super) fn leads(registry: &str, mirror: &MirrorAddress, present: &dyn Present) -> Result<bool, String> {
    // A later file takes the place of an earlier one.
    let all: Vec<Table> = entries(present)?.into_iter().flat_map(|(_, entries)| entries).collect();
    let Some(entry) = all.iter().rev().find(|entry| prefix_of(entry) == registry) else { return Ok(false) };
    let to = |table: &Table| {
        let location = table.get("location").and_then(Value::as_str).unwrap_or_default();
        let authority = location.split('/').next().unwrap_or_default();
        mirror.is_at(&format!("{}{authority}", if mirror.is_https() { "https://" } else { "http://" }))
    };
    let mirrors = entry.get("mirror").and_then(Value::as_array);
    Ok(to(entry) || mirrors.into_iter().flatten().filter_map(Value::as_table).any(to))
}
