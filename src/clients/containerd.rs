//! containerd: `config.toml` names a folder, and in it each registry has a `hosts.toml` (containerd, "Registry
//! Configuration").
//!
//! Both layouts of `config.toml` are known: version 2 (containerd 1.x, and 2.x reads it too) and version 3 (2.x). A
//! folder that the file names already is used as it is. Hosts are asked in the order of the file, so larder's comes
//! first; what a user put there stays behind it.

use super::toml_text::{self, StatementKind, parse, quoted, statements, table_at, value_at};
use super::{MirrorAddress, Origin, Present, Profile, Wanted, with_lines};
use crate::budget;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// Its configuration.
pub(super) const CONFIG: &str = "/etc/containerd/config.toml";
/// Where the registries' folders go if the configuration names no other place.
const CERTS: &str = "/etc/containerd/certs.d";
/// The folder that holds for registries without one of their own.
const DEFAULT: &str = "_default";
/// The plugin that pulls for Kubernetes, by the version of the configuration's layout.
const PLUGINS: [(i64, &str); 2] = [(2, "io.containerd.grpc.v1.cri"), (3, "io.containerd.cri.v1.images")];

pub(super) fn wanted(
    mirror: &MirrorAddress,
    profile: Profile,
    present: &dyn Present,
) -> Result<Vec<Wanted>, String> {
    let mut refused = Vec::new();
    let mut files = Vec::new();
    let config = Path::new(CONFIG);
    let certs = match present.read(config).and_then(|text| merged_config(text.as_deref())) {
        Ok((text, certs)) => {
            files.push(Wanted { path: config.to_owned(), text });
            certs
        }
        Err(problem) => {
            refused.push(problem);
            PathBuf::from(CERTS)
        }
    };
    for origin in &mirror.origins {
        let path = certs.join(origin.name.as_str()).join("hosts.toml");
        match present
            .read(&path)
            .and_then(|text| merged_hosts(&path, text.as_deref(), mirror, profile, Some(origin)))
        {
            Ok(text) => files.push(Wanted { path, text }),
            Err(problem) => refused.push(problem),
        }
    }
    if profile == Profile::Sealed {
        // A registry that larder does not know is then refused by larder, and not asked past it.
        let path = certs.join(DEFAULT).join("hosts.toml");
        match present.read(&path).and_then(|text| merged_hosts(&path, text.as_deref(), mirror, profile, None))
        {
            Ok(text) => files.push(Wanted { path, text }),
            Err(problem) => refused.push(problem),
        }
    }
    if refused.is_empty() { Ok(files) } else { Err(refused.join("\n")) }
}

/// The plugin's name in a configuration, or what is wrong with its version.
fn plugin(table: &Table) -> Result<&'static str, String> {
    let version = table.get("version").and_then(Value::as_integer);
    match (version, PLUGINS.iter().find(|(known, _)| Some(*known) == version)) {
        (_, Some((_, plugin))) => Ok(plugin),
        (None | Some(1), _) => Err(format!(
            "{CONFIG} is of version 1, which larder does not change: start it with version = 2 and write plugins by \
             their full names (containerd 2.x prints it so: containerd config migrate), and run this again"
        )),
        (Some(version), _) => Err(format!(
            "{CONFIG} is of version {version}, which larder does not know: set config_path = \"{CERTS}\" in the \
             registry section of the plugin that pulls images"
        )),
    }
}

fn section(plugin: &str) -> String {
    format!("[plugins.\"{plugin}\".registry]")
}

/// The configuration with a folder for registries, and that folder.
fn merged_config(text: Option<&str>) -> Result<(String, PathBuf), String> {
    let text = text.unwrap_or_default();
    let table =
        parse(text).map_err(|e| format!("{CONFIG} is not TOML ({e}): correct it and run this again"))?;
    let certs = PathBuf::from(CERTS);
    if table.is_empty() {
        let (version, plugin) = PLUGINS[0];
        let lines = format!(
            "# containerd 1.x and 2.x read this version.\nversion = {version}\n\n{}\n  config_path = {}\n",
            section(plugin),
            quoted(CERTS)
        );
        return Ok((with_lines(text, text.len(), &lines), certs));
    }
    let plugin = plugin(&table)?;
    let header = section(plugin);
    let registry = value_at(&table, &["plugins", plugin, "registry"]).and_then(Value::as_table);
    let by_hand = format!("set config_path = \"{CERTS}\" in {header} by hand and run this again");
    if let Some(registry) = registry {
        // containerd refuses to start its plugin when both ways are used at once.
        let older = ["mirrors", "configs"].into_iter().find(|key| {
            registry.get(*key).is_some_and(|value| value.as_table().is_none_or(|table| !table.is_empty()))
        });
        match registry.get("config_path").and_then(Value::as_str) {
            Some("") | None => {
                if let Some(key) = older {
                    return Err(format!(
                        "{CONFIG} has registries in {}, which containerd accepts only without config_path: move them \
                         to {CERTS}/REGISTRY/hosts.toml, remove them there and run this again",
                        header.replace(']', &format!(".{key}]"))
                    ));
                }
            }
            Some(path) => {
                let first = PathBuf::from(path.split(':').next().unwrap_or_default());
                return if first.is_absolute() {
                    Ok((text.to_owned(), first))
                } else {
                    Err(format!(
                        "{CONFIG} names {path} as config_path, which is not an absolute path: {by_hand}"
                    ))
                };
            }
        }
    }
    let changed = with_config_path(text, plugin);
    let mut expected = table.clone();
    table_at(&mut expected, &["plugins", plugin, "registry"])
        .map(|registry| registry.insert("config_path".into(), CERTS.into()));
    if parse(&changed).as_ref() != Ok(&expected) {
        return Err(format!("{CONFIG} is written in a way that larder cannot add a line to: {by_hand}"));
    }
    Ok((changed, certs))
}

fn with_config_path(text: &str, plugin: &str) -> String {
    let path = ["plugins", plugin, "registry"];
    let statements = statements(text);
    let mut inside = false;
    for statement in &statements {
        match &statement.kind {
            StatementKind::Table(name) => {
                inside = *name == path;
                if inside && value_at_is_unset(text, plugin) {
                    let indent = indent_of(text, statement.start);
                    return with_lines(
                        text,
                        statement.end,
                        &format!("{indent}  config_path = {}\n", quoted(CERTS)),
                    );
                }
            }
            StatementKind::Array => inside = false,
            StatementKind::Pair(key, value) if inside && *key == ["config_path"] => {
                return format!("{}{}{}", &text[..value.start], quoted(CERTS), &text[value.end..]);
            }
            StatementKind::Pair(..) => {}
        }
    }
    let lines = format!("\n{}\n  config_path = {}\n", section(plugin), quoted(CERTS));
    with_lines(text, text.len(), &lines)
}

fn value_at_is_unset(text: &str, plugin: &str) -> bool {
    parse(text).is_ok_and(|table| value_at(&table, &["plugins", plugin, "registry", "config_path"]).is_none())
}

fn indent_of(text: &str, line: usize) -> &str {
    let rest = &text[line..];
    &rest[..rest.len() - rest.trim_start_matches([' ', '\t']).len()]
}

/// The block that sends a registry's pulls to larder.
fn host_block(mirror: &MirrorAddress) -> String {
    let mut block = format!(
        "[host.{}]\n  capabilities = [\"pull\", \"resolve\"]\n  dial_timeout = \"{}s\"\n",
        quoted(&mirror.url),
        budget::CLIENT_DIAL_TIME.as_secs()
    );
    if let Some(certificate) = &mirror.certificate {
        block += &format!("  ca = {}\n", quoted(&certificate.display().to_string()));
    }
    block
}

/// What the block says.
fn host_table(mirror: &MirrorAddress) -> Table {
    let block = parse(&host_block(mirror)).unwrap_or_default();
    let table = value_at(&block, &["host", &mirror.url]).and_then(Value::as_table).cloned();
    table.unwrap_or_default()
}

/// A `hosts.toml` of a board that has none.
fn fresh_hosts(mirror: &MirrorAddress, profile: Profile, origin: Option<&Origin>) -> String {
    let block = host_block(mirror);
    match (profile, origin) {
        (Profile::Fallback, Some(origin)) => {
            let ca = origin
                .ca_file
                .as_ref()
                .map_or(String::new(), |file| format!("ca = {}\n", quoted(&file.display().to_string())));
            format!(
                "# Larder is asked first, the origin when larder cannot answer.\nserver = {}\n{ca}\n{block}",
                quoted(&origin.url)
            )
        }
        _ => format!(
            "# Larder alone is asked.\nserver = {}\n{}\n{block}",
            quoted(&mirror.url),
            server_ca(mirror)
        ),
    }
}

/// The certificate for the `server` line where that is larder.
fn server_ca(mirror: &MirrorAddress) -> String {
    let certificate = mirror.certificate.as_ref();
    certificate.map_or(String::new(), |file| format!("ca = {}\n", quoted(&file.display().to_string())))
}

fn merged_hosts(
    path: &Path,
    text: Option<&str>,
    mirror: &MirrorAddress,
    profile: Profile,
    origin: Option<&Origin>,
) -> Result<String, String> {
    let shown = path.display();
    let text = text.unwrap_or_default();
    let table =
        parse(text).map_err(|e| format!("{shown} is not TOML ({e}): correct it and run this again"))?;
    if table.is_empty() {
        return Ok(with_lines(text, text.len(), &fresh_hosts(mirror, profile, origin)));
    }
    let empty = Table::new();
    let hosts = match table.get("host") {
        None => &empty,
        Some(hosts) => {
            hosts.as_table().ok_or_else(|| format!("{shown} has a host that is not a table: correct it"))?
        }
    };
    let ours = hosts.iter().find(|(url, _)| mirror.is_at(url));
    let server = table.get("server").and_then(Value::as_str);
    let by_hand = format!("put these lines before its first [host...] by hand:\n{}", host_block(mirror));
    let mut changed = text.to_owned();
    let mut expected = table.clone();
    match profile {
        Profile::Fallback if server.is_some_and(|server| mirror.is_at(server)) => {
            return Err(format!(
                "{shown} has larder as its server, so that the origin is never asked: remove that line, or use \
                 --profile sealed"
            ));
        }
        Profile::Fallback => {}
        Profile::Sealed => {
            may_be_sealed(path, &table, hosts, mirror)?;
            if server.is_none_or(|server| !mirror.is_at(server)) {
                changed = with_server(text, mirror);
                expected.insert("server".into(), mirror.url.as_str().into());
                if let Some(certificate) = &mirror.certificate {
                    expected.insert("ca".into(), certificate.display().to_string().into());
                }
            }
        }
    }
    match ours {
        Some((url, host)) if !can_pull(host) => {
            return Err(format!(
                "{shown} does not let {url} pull and resolve: set capabilities = [\"pull\", \"resolve\"] there"
            ));
        }
        Some(_) => {}
        None => {
            let at = toml_text::end_of_root(&changed, &statements(&changed));
            let gap = if at == changed.len() { "\n" } else { "" };
            let after = if at == changed.len() { "" } else { "\n" };
            changed = with_lines(&changed, at, &format!("{gap}{}{after}", host_block(mirror)));
            table_at(&mut expected, &["host"])
                .map(|hosts| hosts.insert(mirror.url.clone(), Value::Table(host_table(mirror))));
        }
    }
    if parse(&changed).as_ref() != Ok(&expected) {
        return Err(format!("{shown} is written in a way that larder cannot add to: {by_hand}"));
    }
    Ok(changed)
}

/// `Err` says what in a `hosts.toml` would not hold where larder alone is asked.
fn may_be_sealed(path: &Path, table: &Table, hosts: &Table, mirror: &MirrorAddress) -> Result<(), String> {
    let shown = path.display();
    if let Some((other, _)) = hosts.iter().find(|(url, _)| !mirror.is_at(url)) {
        return Err(format!(
            "{shown} names {other} too, which would be asked besides larder: remove it, or use --profile fallback"
        ));
    }
    if let Some(key) = table.keys().find(|key| !["server", "host", "ca"].contains(&key.as_str())) {
        return Err(format!(
            "{shown} sets {key} for its server, which larder would get: remove it, or use --profile fallback"
        ));
    }
    let server = table.get("server").and_then(Value::as_str);
    if server.is_none_or(|server| !mirror.is_at(server)) && table.contains_key("ca") {
        return Err(format!(
            "{shown} sets ca for its server, which is to be larder: remove it, or use --profile fallback"
        ));
    }
    Ok(())
}

fn can_pull(host: &Value) -> bool {
    let allowed = host.get("capabilities").and_then(Value::as_array);
    let can = |what: &str| allowed.is_none_or(|list| list.iter().any(|one| one.as_str() == Some(what)));
    can("pull") && can("resolve")
}

/// The text with larder as its server.
fn with_server(text: &str, mirror: &MirrorAddress) -> String {
    let statements = statements(text);
    let ca = server_ca(mirror);
    for statement in &statements {
        match &statement.kind {
            StatementKind::Pair(key, value) if *key == ["server"] => {
                let with = format!("{}{}{}", &text[..value.start], quoted(&mirror.url), &text[value.end..]);
                let end = statement.end + with.len() - text.len();
                return with_lines(&with, end, &ca);
            }
            StatementKind::Pair(..) => {}
            StatementKind::Table(_) | StatementKind::Array => break,
        }
    }
    let at = toml_text::end_of_root(text, &statements);
    with_lines(text, at, &format!("server = {}\n{ca}", quoted(&mirror.url)))
}

/// Where pulls of each registry go: what [`super::routing`] asks.
pub(super) struct Routes {
    certs: PathBuf,
}

impl Routes {
    /// Reads the configuration. `Err` says why containerd does not look at any hosts.toml.
    pub(super) fn read(present: &dyn Present) -> Result<Routes, String> {
        let Some(text) = present.read(Path::new(CONFIG))? else {
            return Err(format!("there is no {CONFIG}, so that containerd reads no hosts.toml"));
        };
        let table = parse(&text).map_err(|e| format!("{CONFIG} is not TOML ({e})"))?;
        let paths = PLUGINS.iter().find_map(|(_, plugin)| {
            value_at(&table, &["plugins", plugin, "registry", "config_path"])?
                .as_str()
                .filter(|path| !path.is_empty())
        });
        let first = paths.and_then(|paths| paths.split(':').next()).map(PathBuf::from);
        match first {
            Some(first) => Ok(Routes { certs: first }),
            None => Err(format!("{CONFIG} sets no config_path, so that containerd reads no hosts.toml")),
        }
    }

    /// The routes of a folder like `certs.d`.
    pub(super) fn of(certs: PathBuf) -> Routes {
        Routes { certs }
    }

    /// Whether pulls of `registry` are sent to the mirror.
    pub(super) fn leads(
        &self,
        registry: &str,
        mirror: &MirrorAddress,
        present: &dyn Present,
    ) -> Result<bool, String> {
        for folder in [registry, DEFAULT] {
            let path = self.certs.join(folder).join("hosts.toml");
            let Some(text) = present.read(&path)? else { continue };
            let table = parse(&text).map_err(|e| format!("{} is not TOML ({e})", path.display()))?;
            let server =
                table.get("server").and_then(Value::as_str).is_some_and(|server| mirror.is_at(server));
            let hosts = table.get("host").and_then(Value::as_table);
            return Ok(server || hosts.is_some_and(|hosts| hosts.keys().any(|url| mirror.is_at(url))));
        }
        Ok(false)
    }

    /// The folder of containerd's own data, if its configuration names one.
    pub(super) fn data(present: &dyn Present) -> Option<PathBuf> {
        let text = present.read(Path::new(CONFIG)).ok()??;
        let root = parse(&text).ok()?.get("root")?.as_str().map(PathBuf::from)?;
        root.is_absolute().then_some(root)
    }
}
