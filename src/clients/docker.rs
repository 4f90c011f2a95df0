//! Docker: `registry-mirrors` in `daemon.json`, which holds for docker.io alone and is always followed by the origin.

use super::json_text;
use super::{BOM, MirrorAddress, Present, Profile, Wanted, line_end};
use serde_json::{Map, Value};
use std::path::Path;

/// Docker's configuration.
pub(super) const CONFIG: &str = "/etc/docker/daemon.json";
/// The one registry that Docker asks a mirror for.
pub(super) const REGISTRY: &str = "docker.io";
const MIRRORS: &str = "registry-mirrors";
const INSECURE: &str = "insecure-registries";

pub(super) fn wanted(
    mirror: &MirrorAddress,
    profile: Profile,
    present: &dyn Present,
) -> Result<Vec<Wanted>, String> {
    if profile == Profile::Sealed {
        return Err("Docker always asks the origin after a mirror, so that there is no sealed profile for it: use \
                    --profile fallback, or name larder in the image, as in 127.0.0.1:5000/docker.io/library/nginx"
            .to_owned());
    }
    if !mirror.origins.iter().any(|origin| origin.name.as_str() == REGISTRY) {
        return Err("Docker asks a mirror for docker.io alone, which is not among the upstreams".to_owned());
    }
    if mirror.default_registry.as_str() != REGISTRY {
        return Err(format!(
            "Docker does not say which registry it asks for, and default_registry is {}: set it to docker.io",
            mirror.default_registry
        ));
    }
    let path = Path::new(CONFIG);
    let text = present.read(path)?.unwrap_or_default();
    let mut changed = with_entry(&text, MIRRORS, &mirror.url, |one| mirror.is_at(one))?;
    if !mirror.is_https() && !mirror.is_loopback() {
        changed = with_entry(&changed, INSECURE, mirror.authority(), |one| one == mirror.authority())?;
    }
    Ok(vec![Wanted { path: path.to_owned(), text: changed }])
}

fn object(text: &str) -> Result<Map<String, Value>, String> {
    let plain = text.strip_prefix(BOM).unwrap_or(text);
    if plain.trim().is_empty() {
        return Ok(Map::new());
    }
    serde_json::from_str(plain)
        .map_err(|e| format!("{CONFIG} is not a JSON object ({e}): mend it and run this again"))
}

/// The text with `entry` first in the list `key`, unless something in it `is_it` already.
fn with_entry(text: &str, key: &str, entry: &str, is_it: impl Fn(&str) -> bool) -> Result<String, String> {
    let before = object(text)?;
    let by_hand = || format!("{CONFIG}: put \"{entry}\" first in {key} by hand");
    let listed = match before.get(key) {
        None => &Vec::new(),
        Some(Value::Array(listed)) => listed,
        Some(_) => return Err(format!("{}, which is no list now", by_hand())),
    };
    if listed.iter().any(|one| one.as_str().is_some_and(&is_it)) {
        return Ok(text.to_owned());
    }
    let quoted = Value::from(entry).to_string();
    let end = line_end(text);
    let changed = if text.trim_start_matches(BOM).trim().is_empty() {
        format!("{text}{{{end}  \"{key}\": [{quoted}]{end}}}{end}")
    } else if before.contains_key(key) {
        let at = json_text::value_of(text, key).ok_or_else(by_hand)? + 1;
        let rest = if listed.is_empty() { "" } else { ", " };
        format!("{}{quoted}{rest}{}", &text[..at], &text[at..])
    } else {
        let at = json_text::inside(text).ok_or_else(by_hand)?;
        let rest = if before.is_empty() { end } else { "," };
        format!("{}{end}  \"{key}\": [{quoted}]{rest}{}", &text[..at], &text[at..])
    };
    let mut expected = before.clone();
    let mut all = vec![Value::from(entry)];
    all.extend(listed.iter().cloned());
    expected.insert(key.to_owned(), Value::Array(all));
    if object(&changed).as_ref() != Ok(&expected) {
        return Err(format!("{} (it is written in a way that larder cannot add to)", by_hand()));
    }
    Ok(changed)
}

/// Whether pulls of docker.io are sent to the mirror.
pub(super) fn leads(mirror: &MirrorAddress, present: &dyn Present) -> Result<bool, String> {
    let Some(text) = present.read(Path::new(CONFIG))? else { return Ok(false) };
    let mirrors = object(&text)?;
    let mirrors = mirrors.get(MIRRORS).and_then(Value::as_array);
    Ok(mirrors.into_iter().flatten().filter_map(Value::as_str).any(|url| mirror.is_at(url)))
}
