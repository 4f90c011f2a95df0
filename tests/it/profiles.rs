//! The profiles beside the canonical configuration: each is right, and changes what it names and nothing else.

use crate::board::{self, Folder};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Each profile's name, and a copy of it with the path of a board's secret turned to that of a test.
fn profiles(folder: &Folder) -> Vec<(String, PathBuf)> {
    let secret = folder.0.join("kit.secret");
    fs::write(&secret, "0123456789abcdef\n").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("firmware-config/profiles");
    let mut found = Vec::new();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let text = fs::read_to_string(&path).unwrap();
        let text = text.replace("/etc/larder/kit.secret", secret.to_str().unwrap());
        fs::write(folder.0.join(&name), text).unwrap();
        found.push((name.clone(), folder.0.join(name)));
    }
    found.sort();
    found
}

fn larder(config: &Path, command: &str) -> String {
    let mut larder = Command::new(env!("CARGO_BIN_EXE_larder"));
    larder.env_clear().arg("--config").arg(config).args(["config", command]);
    let output = board::output(&mut larder);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{}: {said}", config.display());
    assert!(!said.contains("without effect"), "{}: {said}", config.display());
    String::from_utf8(output.stdout).unwrap()
}

/// Every key with its section, and what it is set to.
fn keys(table: &toml::Table) -> Vec<(String, toml::Value)> {
    let mut keys = Vec::new();
    for (section, value) in table {
        match value {
            toml::Value::Table(inner) => {
                keys.extend(inner.iter().map(|(key, value)| (format!("{section}.{key}"), value.clone())));
            }
            value => keys.push((section.clone(), value.clone())),
        }
    }
    keys
}

#[test]
fn each_profile_changes_what_it_names_and_nothing_else() {
    let folder = Folder::new();
    let empty = folder.0.join("empty.toml");
    fs::write(&empty, "").unwrap();
    let default: toml::Table = larder(&empty, "print").parse().unwrap();
    let profiles = profiles(&folder);
    let names: Vec<&str> = profiles.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["jetson.toml", "k3s-kit.toml", "pi-4-sd.toml", "pi-5-nvme.toml", "pi-zero-2.toml"]);
    for (name, path) in profiles {
        larder(&path, "check");
        let printed = keys(&larder(&path, "print").parse().unwrap());
        let said = keys(&fs::read_to_string(&path).unwrap().parse().unwrap());
        let default = keys(&default);
        for (key, value) in &printed {
            let before = default.iter().find(|(known, _)| known == key).map(|(_, value)| value);
            let named = said.iter().any(|(known, _)| known == key);
            // A section that there is none of by default brings its other keys along, and they change nothing.
            if !named && before.is_none() {
                assert_eq!(value, &toml::Value::Boolean(false), "{name}: {key}");
                continue;
            }
            assert_eq!(named, before != Some(value), "{name}: {key} is {value:?}, by default {before:?}");
        }
        for (key, _) in said {
            assert!(printed.iter().any(|(known, _)| *known == key), "{name}: {key} has no effect");
        }
    }
}
