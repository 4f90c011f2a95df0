//! The image that a runtime runs beside each pod and pulls by itself ("pause"). Without it no pod starts, and no manifest
//! names it; it stands in the runtime's configuration.
//!
//! Pure: texts in, names out. What a configuration leaves out is built into the runtime, and then the name is not known
//! here.

use super::toml_text::{parse, value_at};
use super::{Present, containerd};
use crate::budget;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// Configurations of containerd: its own, and those that K3s and RKE2 write for theirs.
const CONTAINERD: [&str; 3] = [
    containerd::CONFIG,
    "/var/lib/rancher/k3s/agent/etc/containerd/config.toml",
    "/var/lib/rancher/rke2/agent/etc/containerd/config.toml",
];
/// CRI-O's configuration; parts of it lie in a folder and win.
const CRIO: &str = "/etc/crio/crio.conf";
const CRIO_PARTS: &str = "/etc/crio/crio.conf.d";

/// What is known of sandbox images.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SandboxImages {
    /// Their names, as the configurations write them, each once.
    pub names: Vec<String>,
    /// Why the name of one that is in use is not known: sentences.
    pub unknown: Vec<String>,
}

/// The sandbox images of the runtimes that are set up for Kubernetes here.
pub fn sandbox_images(present: &dyn Present) -> SandboxImages {
    let mut found = SandboxImages::default();
    for path in CONTAINERD {
        found.containerd(present, path);
    }
    let mut parts = vec![PathBuf::from(CRIO)];
    parts.extend(found.list(present, Path::new(CRIO_PARTS)));
    // The last one counts.
    let named = parts.iter().rev().find_map(|part| of_crio(&found.table(present, part)?));
    found.add(named);
    found
}

impl SandboxImages {
    fn containerd(&mut self, present: &dyn Present, path: &str) {
        let Some(main) = self.table(present, Path::new(path)) else { return };
        let mut named = of_containerd(&main);
        for part in self.imports(present, &main) {
            let more = self.table(present, &part).map(|table| of_containerd(&table));
            // What is imported counts after the file that imports it.
            match more {
                Some(Named::As(name)) if !matches!(named, Named::None) => named = Named::As(name),
                _ => {}
            }
        }
        match named {
            Named::As(name) => self.add(Some(name)),
            Named::ByItself => self.unknown.push(format!(
                "{path} does not name the sandbox image, so it is the one built into containerd; `crictl info` shows it"
            )),
            Named::None => {}
        }
    }

    /// The files that a configuration of containerd imports: paths, and `*.toml` of a folder.
    fn imports(&mut self, present: &dyn Present, table: &Table) -> Vec<PathBuf> {
        let listed = table.get("imports").and_then(Value::as_array).into_iter().flatten();
        let mut files = Vec::new();
        for path in listed.filter_map(Value::as_str).map(Path::new) {
            match path.file_name().and_then(|name| name.to_str()) {
                Some("*.toml") => {
                    let folder = path.parent().unwrap_or(Path::new("/"));
                    let is_toml = |file: &PathBuf| file.extension().is_some_and(|end| end == "toml");
                    files.extend(self.list(present, folder).into_iter().filter(is_toml));
                }
                _ => files.push(path.to_owned()),
            }
        }
        files.truncate(budget::SANDBOX_FILES_MAX);
        files
    }

    fn list(&mut self, present: &dyn Present, folder: &Path) -> Vec<PathBuf> {
        present.list(folder).unwrap_or_else(|problem| {
            self.unknown.push(problem);
            Vec::new()
        })
    }

    /// A configuration, if it is there; why it cannot be read is noted.
    fn table(&mut self, present: &dyn Present, path: &Path) -> Option<Table> {
        let text = present.read(path).transpose()?;
        match text.and_then(|text| parse(&text).map_err(|why| format!("{}: {why}", path.display()))) {
            Ok(table) => Some(table),
            Err(problem) => {
                self.unknown.push(problem);
                None
            }
        }
    }

    fn add(&mut self, name: Option<String>) {
        self.names.extend(name.filter(|name| !self.names.contains(name)));
    }
}

/// What a configuration says.
enum Named {
    As(String),
    /// Nothing, so that the program's own holds.
    ByItself,
    /// It runs no pods.
    None,
}

fn of_containerd(table: &Table) -> Named {
    let disabled = table.get("disabled_plugins").and_then(Value::as_array);
    let is_cri = |name: &Value| name.as_str().is_some_and(|name| name == "cri" || name.ends_with(".cri"));
    if disabled.is_some_and(|names| names.iter().any(is_cri)) {
        return Named::None;
    }
    let places: [&[&str]; 3] = [
        &["plugins", "io.containerd.cri.v1.images", "pinned_images", "sandbox"],
        &["plugins", "io.containerd.grpc.v1.cri", "sandbox_image"],
        &["plugins", "cri", "sandbox_image"],
    ];
    let named = places.iter().find_map(|place| value_at(table, place)?.as_str());
    named.map_or(Named::ByItself, |name| Named::As(name.to_owned()))
}

fn of_crio(table: &Table) -> Option<String> {
    value_at(table, &["crio", "image", "pause_image"])?.as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Files(Vec<(&'static str, &'static str)>);

    impl Present for Files {
        fn read(&self, path: &Path) -> Result<Option<String>, String> {
            let found = self.0.iter().find(|(name, _)| Path::new(name) == path);
            Ok(found.map(|(_, text)| (*text).to_owned()))
        }

        fn list(&self, folder: &Path) -> Result<Vec<PathBuf>, String> {
            let within = self.0.iter().filter(|(name, _)| Path::new(name).parent() == Some(folder));
            Ok(within.map(|(name, _)| PathBuf::from(name)).collect())
        }
    }

    fn of(files: &[(&'static str, &'static str)]) -> SandboxImages {
        sandbox_images(&Files(files.to_vec()))
    }

    #[test]
    fn each_runtimes_own_words_are_understood() {
        let k3s = "/var/lib/rancher/k3s/agent/etc/containerd/config.toml";
        for (path, text, name) in [
            (
                containerd::CONFIG,
                "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"registry.k8s.io/pause:3.8\"\n",
                "registry.k8s.io/pause:3.8",
            ),
            (
                containerd::CONFIG,
                "version = 3\n[plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = 'registry.k8s.io/pause:3.10'\n",
                "registry.k8s.io/pause:3.10",
            ),
            (
                k3s,
                "[plugins.\"io.containerd.grpc.v1.cri\"]\n  sandbox_image = \"rancher/mirrored-pause:3.6\"\n",
                "rancher/mirrored-pause:3.6",
            ),
            (
                CRIO,
                "[crio.image]\npause_image = \"registry.k8s.io/pause:3.9\"\n",
                "registry.k8s.io/pause:3.9",
            ),
        ] {
            assert_eq!(
                of(&[(path, text)]),
                SandboxImages { names: vec![name.into()], unknown: Vec::new() },
                "{path}"
            );
        }
        let parts = [
            (CRIO, "[crio.image]\npause_image = \"a/b:1\"\n"),
            ("/etc/crio/crio.conf.d/10.conf", "[crio.image]\npause_image = \"c/d:2\"\n"),
        ];
        assert_eq!(of(&parts).names, ["c/d:2"], "a part wins");
    }

    #[test]
    fn what_containerd_imports_counts_after_what_imports_it() {
        let sandbox = |image: &str| {
            format!("[plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = '{image}'\n")
        };
        let part: &'static str = sandbox("a/part:1").leak();
        for own in ["", sandbox("a/own:1").leak()] {
            let main: &'static str =
                format!("version = 3\nimports = ['/etc/containerd/conf.d/*.toml']\n{own}").leak();
            let found = of(&[
                (containerd::CONFIG, main),
                ("/etc/containerd/conf.d/10.toml", part),
                ("/etc/containerd/conf.d/note.txt", "no toml"),
            ]);
            assert_eq!(found, SandboxImages { names: vec!["a/part:1".into()], unknown: Vec::new() });
        }
    }

    #[test]
    fn what_is_not_written_is_said_to_be_unknown() {
        assert_eq!(of(&[]), SandboxImages::default());
        let docker = [(containerd::CONFIG, "disabled_plugins = [\"cri\"]\n")];
        assert_eq!(of(&docker), SandboxImages::default(), "Docker's own containerd runs no pods");
        for text in ["version = 2\n", "not toml"] {
            let found = of(&[(containerd::CONFIG, text)]);
            assert!(found.names.is_empty() && found.unknown[0].contains(containerd::CONFIG), "{found:?}");
        }
        let broken = of(&[
            (CRIO, "[crio.image]\npause_image = \"a/b:1\"\n"),
            ("/etc/crio/crio.conf.d/10.conf", "not toml"),
        ]);
        assert_eq!((broken.names, broken.unknown.len()), (vec!["a/b:1".to_owned()], 1));
    }
}
