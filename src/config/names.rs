//! Names in the configuration, which may be familiar ones. What they stand for is `oci`'s to say.

use super::load::Check;
use super::raw::RawUpstream;
use crate::oci::{RegistryName, familiar_pattern, quoted};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// The registry of a request that names none.
pub(super) fn default_registry(named: Option<String>, check: &mut Check<'_>) -> RegistryName {
    let named = RegistryName::familiar(named.as_deref().unwrap_or("docker.io"));
    named.unwrap_or_else(|e| {
        check.wrong(format!("default_registry: {e}"));
        RegistryName::familiar("docker.io").expect("a well-formed name")
    })
}

/// Patterns over `registry/repository`.
pub(super) fn patterns(written: Vec<String>) -> Vec<String> {
    written.iter().map(|pattern| familiar_pattern(pattern, false)).collect()
}

/// The sections `[upstream."NAME"]` by the registry that each names. Of several for one registry that with its plain name
/// counts, and none that says who may read is left out.
pub(super) fn sections(
    written: BTreeMap<String, RawUpstream>,
    check: &mut Check<'_>,
) -> BTreeMap<RegistryName, RawUpstream> {
    let (mut sections, mut others) = (BTreeMap::new(), Vec::new());
    for (name, section) in written {
        match RegistryName::familiar(&name) {
            Ok(registry) if registry.as_str() == name => drop(sections.insert(registry, (name, section))),
            Ok(registry) => others.push((registry, name, section)),
            Err(e) => check.wrong(format!("[upstream.{}]: {e}", quoted(&name))),
        }
    }
    for (registry, name, section) in others {
        match sections.entry(registry) {
            Entry::Vacant(place) => drop(place.insert((name, section))),
            Entry::Occupied(first) if section.says_who_may_read() => {
                let (registry, other, name) = (first.key(), quoted(&first.get().0), quoted(&name));
                check.wrong(format!(
                    "[upstream.{other}] and [upstream.{name}] are both {registry}, and the login, certificate or access of \
                     the second would have no effect: put all of it into one section"
                ));
            }
            Entry::Occupied(first) => {
                let (name, registry) = (quoted(&name), first.key());
                log::warn!("[upstream.{name}] has no effect: another section names {registry}, too");
            }
        }
    }
    sections.into_iter().map(|(registry, (_, section))| (registry, section)).collect()
}
