//! Clients' files: written into boards of every kind, written again, taken back byte for byte, refused where a merge
//! could lose something.

use crate::board::{self, Folder, Random, from_environment};
use larder::clients::files::{self, Root, Undone, Written};
use larder::clients::routing;
use larder::clients::{Client, MirrorAddress, Profile};
use larder::config::{Config, Options};
use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const HOSTS: &str = "etc/containerd/certs.d/docker.io/hosts.toml";
const CONFIG: &str = "etc/containerd/config.toml";
const REGISTRIES: &str = "etc/rancher/k3s/registries.yaml";
const DAEMON: &str = "etc/docker/daemon.json";
const PODMAN: &str = "etc/containers/registries.conf.d/50-larder.conf";

/// A folder in which a board's image is made, and a configuration beside it.
struct Board {
    folder: Folder,
}

impl Board {
    fn new() -> Board {
        let board = Board { folder: Folder::new() };
        std::fs::create_dir(board.root()).unwrap();
        board
    }

    fn root(&self) -> PathBuf {
        self.folder.0.join("root")
    }

    fn with(self, path: &str, text: &str) -> Board {
        self.put(path, text.as_bytes());
        self
    }

    fn put(&self, path: &str, bytes: &[u8]) {
        let file = self.root().join(path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, bytes).unwrap();
    }

    fn text(&self, path: &str) -> String {
        std::fs::read_to_string(self.root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    fn mirror(&self, config: &str) -> MirrorAddress {
        let file = self.folder.0.join("larder.toml");
        std::fs::write(&file, config).unwrap();
        let config = Config::load(&Options { file: Some(file), ..Options::default() }).unwrap();
        MirrorAddress::of(&config, None).unwrap()
    }

    fn write(&self, client: Client, profile: Profile) -> Result<Vec<PathBuf>, String> {
        let root = Root::new(&self.root()).unwrap();
        write(&root, client, &self.mirror(""), profile).map(|written| written.changed)
    }

    fn undo(&self, client: Client) -> Result<(), String> {
        undo(&Root::new(&self.root()).unwrap(), client).map(drop)
    }

    /// Every file and folder: mode, and bytes or the link's target.
    fn everything(&self) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
        fn walk(folder: &Path, all: &mut BTreeMap<PathBuf, (u32, Vec<u8>)>) {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let meta = std::fs::symlink_metadata(&path).unwrap();
                let content = if meta.is_dir() {
                    walk(&path, all);
                    Vec::new()
                } else if meta.is_symlink() {
                    std::fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
                } else {
                    std::fs::read(&path).unwrap()
                };
                all.insert(path, (meta.mode(), content));
            }
        }
        let mut all = BTreeMap::new();
        walk(&self.root(), &mut all);
        all
    }

    /// The command itself.
    fn larder(&self, arguments: &[&str]) -> Output {
        let config = self.folder.0.join("larder.toml");
        if !config.exists() {
            std::fs::write(&config, "").unwrap();
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
        command.env_clear().arg("--config").arg(config).args(arguments);
        board::output(&mut command)
    }
}

/// Both take a lock in this process.
fn write(root: &Root, client: Client, mirror: &MirrorAddress, profile: Profile) -> Result<Written, String> {
    board::without_spawning(|| files::write(root, client, mirror, profile))
}

fn undo(root: &Root, client: Client) -> Result<Undone, String> {
    board::without_spawning(|| files::undo(root, client))
}

fn refusal(outcome: Result<Vec<PathBuf>, String>) -> String {
    outcome.expect_err("it should have been refused")
}

#[test]
fn a_bare_board_gets_every_file_and_is_bare_again_after_undo() {
    for client in Client::ALL {
        for profile in [Profile::Fallback, Profile::Sealed] {
            if (client, profile) == (Client::Docker, Profile::Sealed) {
                continue;
            }
            let board = Board::new();
            assert!(!board.write(client, profile).unwrap().is_empty());
            let written = board.everything();
            assert_eq!(board.write(client, profile), Ok(vec![]), "{client}: not idempotent");
            assert_eq!(board.everything(), written, "{client}");
            board.undo(client).unwrap();
            assert_eq!(board.everything(), BTreeMap::new(), "{client}: something is left");
            assert!(board.undo(client).unwrap_err().contains("nothing to undo"));
        }
    }
}

#[test]
fn what_a_bare_board_gets_is_what_is_shown() {
    for client in ["containerd", "k3s", "podman", "docker"] {
        let board = Board::new();
        let root = board.root().display().to_string();
        let shown = board.larder(&["config", client, "--root", &root]);
        assert!(shown.status.success());
        assert_eq!(board.everything(), BTreeMap::new(), "showing must not write");
        let shown = String::from_utf8(shown.stdout).unwrap();
        let written = board.larder(&["config", client, "--write", "--root", &root]);
        assert!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
        for line in String::from_utf8(written.stdout).unwrap().lines() {
            let path = line.strip_prefix("wrote /").unwrap();
            assert!(shown.contains(&board.text(path)), "{path} is not shown");
            assert!(client == "docker" || shown.contains(&format!("# /{path}\n")), "{path} is not named");
        }
    }
}

#[test]
fn addresses_come_from_the_configuration() {
    let board = Board::new();
    for (config, url) in [
        ("", "http://127.0.0.1:5000"),
        ("listen = [\"0.0.0.0:5001\"]", "http://127.0.0.1:5001"),
        ("listen = [\"[::]:5001\"]", "http://[::1]:5001"),
        ("listen = [\"10.0.0.2:5000\", \"127.0.0.1:80\"]", "http://127.0.0.1:80"),
        ("listen = [\"10.0.0.2:5000\"]", "http://10.0.0.2:5000"),
        ("[tls]\ncert_file = \"/c.pem\"\nkey_file = \"/k.pem\"", "https://127.0.0.1:5000"),
    ] {
        assert_eq!(board.mirror(config).url(), url, "{config}");
    }
    let said = board.larder(&["config", "k3s", "--address", "http://larder.local:80/"]);
    assert!(String::from_utf8_lossy(&said.stdout).contains("- \"http://larder.local:80\""));
    for bad in ["larder.local:80", "ftp://x", "http://x/path", "http://a b"] {
        let said = board.larder(&["config", "k3s", "--address", bad]);
        assert_eq!(said.status.code(), Some(1), "{bad}");
    }
    let said = board.larder(&["config", "k3s", "--profile", "open"]);
    assert_eq!(said.status.code(), Some(2));
}

#[test]
fn https_is_trusted_by_the_files() {
    let board = Board::new();
    let mirror =
        board.mirror("[tls]\ncert_file = \"/etc/larder/cert.pem\"\nkey_file = \"/etc/larder/key.pem\"");
    let root = Root::new(&board.root()).unwrap();
    for client in Client::ALL {
        write(&root, client, &mirror, Profile::Fallback).unwrap();
    }
    assert!(board.text(HOSTS).contains("[host.\"https://127.0.0.1:5000\"]"));
    assert!(board.text(HOSTS).contains("ca = \"/etc/larder/cert.pem\""));
    assert!(
        board
            .text(REGISTRIES)
            .contains("configs:\n  \"127.0.0.1:5000\":\n    tls:\n      ca_file: \"/etc/larder/cert.pem\"\n")
    );
    assert!(!board.text(PODMAN).contains("insecure"));
    assert!(board.text(DAEMON).contains("\"https://127.0.0.1:5000\""));
}

/// Pieces of real files, put together at random.
struct Kind {
    client: Client,
    path: &'static str,
    /// What may stand first, and what after it; each is whole lines.
    heads: &'static [&'static str],
    parts: &'static [&'static str],
}

const KINDS: [Kind; 4] = [
    Kind {
        client: Client::Containerd,
        path: CONFIG,
        heads: &[
            "version = 2\n",
            "# mine\nversion = 3 # keep\n",
            "  version=2\nroot = \"/data\"\nimports = [\n  \"/etc/x.toml\", # one\n]\n",
            "disabled_plugins = []\nversion = 2\n",
            "# only a comment\n",
            "",
        ],
        parts: &[
            "[grpc]\n  address = \"/run/x.sock\"\n",
            "\n[plugins.'io.containerd.gc.v1.scheduler']\n  pause_threshold = 0.02\n",
            "# about debug\n[debug]\n  level = \"\"\"\n[plugins]\n\"\"\"\n",
            "\t[metrics]\n\taddress = ''\n",
            "[plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = 'overlayfs'\n",
            "[plugins.\"io.containerd.cri.v1.images\".registry]\n\n# empty so far\n",
            "  [plugins.\"io.containerd.grpc.v1.cri\".registry]\n    config_path = \"\" # none\n    [plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors]\n",
        ],
    },
    Kind {
        client: Client::Containerd,
        path: HOSTS,
        heads: &[
            "server = \"https://registry-1.docker.io\"\n",
            "# mine\n\nserver = 'https://x' # y\nca = \"/a\"\n",
            "",
        ],
        parts: &[
            "\n# the company's\n[host.\"https://mirror.corp\"]\n  capabilities = [\"pull\", # no push\n    \"resolve\"]\n",
            "[host.'https://b'.header]\n  x-y = [\"z # ]\"]\n",
            "# the end\n",
            "[host.\"http://127.0.0.1:5000\"]\n",
        ],
    },
    Kind {
        client: Client::K3s,
        path: REGISTRIES,
        heads: &[
            "mirrors:\n",
            "# mine\n---\nmirrors:   # these\n",
            "configs:\n  \"r.corp:5000\":\n    auth:\n      password: 'a''b # c'\nmirrors:\n",
            "",
        ],
        parts: &[
            "  docker.io:\n    endpoint:\n      - \"https://mirror.corp\" # first\n",
            "  'ghcr.io':\n    endpoint: [\"https://a\", 'https://b']\n",
            "  quay.io:\n",
            "  registry.k8s.io:\n    endpoint: []\n",
            "  \"r.corp:5000\":\n    endpoint:\n    - http://r.corp:5000\n    rewrite:\n      \"^a/(.*)\": \"b/$1\"\n",
            "  # a comment\n\n",
            "  gcr.io:\n    endpoint:\n",
            "  \"*\":\n    endpoint:\n      - \"https://all\"\n",
        ],
    },
    Kind {
        client: Client::Docker,
        path: DAEMON,
        heads: &[
            "{",
            "{ \"log-driver\": \"local\",",
            "{\n\t\"dns\": [\"1.1.1.1\", \"{\\\"registry-mirrors\\\"\"],\n",
        ],
        parts: &[
            "\"x\": {\"registry-mirrors\": [1]},",
            "\n  \"registry-mirrors\": [\n    \"https://mirror.corp\"\n  ],",
            "\"registry-mirrors\" : [ ],",
            "\n\n",
            "\"y\": \"\\\\\",",
        ],
    },
];

impl Kind {
    fn make(&self, random: &mut Random) -> Vec<u8> {
        let mut text = self.heads[random.below(self.heads.len())].to_owned();
        let mut left: Vec<&str> = self.parts.to_vec();
        for _ in 0..random.below(self.parts.len() + 1) {
            text += left.remove(random.below(left.len()));
        }
        if self.client == Client::Docker {
            text = format!("{}}}", text.trim_end().trim_end_matches(','));
        }
        match random.below(6) {
            0 => text = text.replace('\n', "\r\n"),
            1 => text = text.trim_end().to_owned(),
            2 => text = format!("\u{feff}{text}"),
            3 => text += "\n\n",
            _ => {}
        }
        let mut bytes = text.into_bytes();
        if random.below(8) == 0 && !bytes.is_empty() {
            // Damage: whatever it is then, nothing of it may be lost.
            let at = random.below(bytes.len());
            bytes[at] = b"\"[]{}:\n#=\\\xff -"[random.below(13)];
        }
        bytes
    }
}

#[test]
fn whatever_was_there_is_there_again_after_undo() {
    let mut random = Random::seeded();
    let (mut merged, mut refused) = (0, 0);
    for _ in 0..from_environment("LARDER_ROUNDS", 60) {
        let kind = &KINDS[random.below(KINDS.len())];
        let board = Board::new();
        let bytes = kind.make(&mut random);
        board.put(kind.path, &bytes);
        let mode = [0o600, 0o640, 0o644][random.below(3)];
        std::fs::set_permissions(board.root().join(kind.path), std::fs::Permissions::from_mode(mode))
            .unwrap();
        let before = board.everything();
        let shown = String::from_utf8_lossy(&bytes).into_owned();
        let profile = if random.below(4) == 0 { Profile::Sealed } else { Profile::Fallback };
        match board.write(kind.client, profile) {
            Err(problem) => {
                refused += 1;
                assert!(!problem.is_empty());
                assert_eq!(board.everything(), before, "refused ({problem}) and yet changed:\n{shown}");
            }
            Ok(changed) => {
                merged += 1;
                let after = board.everything();
                assert!(!changed.is_empty() || after == before);
                // Every line that was there is there still, in order: only sealed changes one, the server.
                if profile == Profile::Fallback && kind.client != Client::Docker {
                    kept_lines(&shown, &board.text(kind.path));
                }
                assert_eq!(board.write(kind.client, profile), Ok(vec![]), "not idempotent:\n{shown}");
                assert_eq!(board.everything(), after, "written again:\n{shown}");
                let look = Root::new(&board.root()).unwrap();
                let routing = routing::look(kind.client, &board.mirror(""), &look);
                assert_eq!((routing.passed_by, routing.problem), (vec![], None), "not sent here:\n{shown}");
                if !changed.is_empty() {
                    board.undo(kind.client).unwrap();
                }
                assert_eq!(board.everything(), before, "not as before:\n{shown}");
            }
        }
    }
    println!("{merged} merged, {refused} refused");
    assert!(merged > 0 && refused > 0, "{merged} merged, {refused} refused: the generator is poor");
}

/// The lines of `before` are in `after`, in order, but for those that a value was put into.
fn kept_lines(before: &str, after: &str) {
    let mut after = after.lines();
    // A byte order mark alone is no line.
    for line in before.trim_start_matches('\u{feff}').lines() {
        if line.contains("config_path = \"\"") || line.contains("endpoint: [") {
            continue;
        }
        assert!(
            after.any(|other| other.trim_start_matches('\u{feff}') == line),
            "{line:?} is lost or out of order:\n{before}"
        );
    }
}

#[test]
fn comments_and_order_stay_in_a_merge() {
    let board = Board::new()
        .with(CONFIG, "# board 7\nversion = 2\n\n[grpc]\n  gid = 5 # group\n")
        .with(HOSTS, "server = \"https://registry-1.docker.io\"\n\n# the company's\n[host.\"https://mirror.corp\"]\n  capabilities = [\"pull\"]\n")
        .with(REGISTRIES, "# mine\nmirrors:\n    docker.io:\n        endpoint:\n            - \"https://mirror.corp\" # theirs\nconfigs:\n    mirror.corp:\n        auth: {username: a, password: b}\n")
        .with(DAEMON, "{\n  \"log-driver\": \"local\"\n}\n");
    for client in [Client::Containerd, Client::K3s, Client::Docker] {
        board.write(client, Profile::Fallback).unwrap();
    }
    assert_eq!(
        board.text(CONFIG),
        "# board 7\nversion = 2\n\n[grpc]\n  gid = 5 # group\n\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\n  \
         config_path = \"/etc/containerd/certs.d\"\n"
    );
    assert_eq!(
        board.text(HOSTS),
        "server = \"https://registry-1.docker.io\"\n\n[host.\"http://127.0.0.1:5000\"]\n  capabilities = [\"pull\", \
         \"resolve\"]\n  dial_timeout = \"2s\"\n\n# the company's\n[host.\"https://mirror.corp\"]\n  capabilities = \
         [\"pull\"]\n"
    );
    let registries = board.text(REGISTRIES);
    assert!(registries.starts_with(
        "# mine\nmirrors:\n    gcr.io:\n        endpoint:\n            - \"http://127.0.0.1:5000\"\n"
    ));
    assert!(registries.ends_with(
        "    docker.io:\n        endpoint:\n            - \"http://127.0.0.1:5000\"\n            - \"https://mirror.corp\" # theirs\nconfigs:\n    \
         mirror.corp:\n        auth: {username: a, password: b}\n"
    ));
    assert_eq!(
        board.text(DAEMON),
        "{\n  \"registry-mirrors\": [\"http://127.0.0.1:5000\"],\n  \"log-driver\": \"local\"\n}\n"
    );
}

#[test]
fn what_cannot_be_merged_is_refused_with_what_to_do() {
    let cri = "io.containerd.grpc.v1.cri";
    let older = format!(
        "version = 2\n[plugins.\"{cri}\".registry.mirrors.\"docker.io\"]\nendpoint = [\"https://a\"]\n"
    );
    let inline = format!("version = 2\nplugins = {{ \"{cri}\" = {{ }} }}\n");
    let large = format!("# {}\n", "x".repeat(2 << 20));
    let cases: &[(Client, Profile, &str, &str, &str)] = &[
        (Client::Containerd, Profile::Fallback, CONFIG, "disabled_plugins = [\"cri\"]\n", "config migrate"),
        (Client::Containerd, Profile::Fallback, CONFIG, "version = 9\n", "version 9"),
        (Client::Containerd, Profile::Fallback, CONFIG, "version = \n", "line 1"),
        (Client::Containerd, Profile::Fallback, CONFIG, &older, "hosts.toml"),
        (Client::Containerd, Profile::Fallback, CONFIG, &inline, "by hand"),
        (
            Client::Containerd,
            Profile::Fallback,
            HOSTS,
            "server = \"http://127.0.0.1:5000/\"\n",
            "--profile sealed",
        ),
        (
            Client::Containerd,
            Profile::Fallback,
            HOSTS,
            "[host.\"http://127.0.0.1:5000\"]\ncapabilities = [\"push\"]\n",
            "capabilities",
        ),
        (Client::Containerd, Profile::Sealed, HOSTS, "[host.\"https://a\"]\n", "https://a"),
        (Client::Containerd, Profile::Sealed, HOSTS, "client = \"/x\"\n", "sets client"),
        (Client::Containerd, Profile::Fallback, HOSTS, &large, "larger than"),
        (Client::K3s, Profile::Fallback, REGISTRIES, "mirrors: {}\n", "one line"),
        (Client::K3s, Profile::Fallback, REGISTRIES, "mirrors:\n\tdocker.io:\n", "tab"),
        (Client::K3s, Profile::Fallback, REGISTRIES, "mirrors: &m\n  docker.io:\n", "line 1"),
        (Client::K3s, Profile::Fallback, REGISTRIES, "configs:\n  x: |\n    mirrors:\n", "line 2"),
        (Client::K3s, Profile::Fallback, REGISTRIES, "configs:\n  x: \"a\n    b\"\n", "next line"),
        (
            Client::K3s,
            Profile::Fallback,
            REGISTRIES,
            "mirrors:\n  docker.io:\n    rewrite:\n      a: b\n",
            "rewrite",
        ),
        (Client::K3s, Profile::Fallback, REGISTRIES, "mirrors:\n  docker.io: {endpoint: [a]}\n", "one line"),
        (Client::K3s, Profile::Fallback, REGISTRIES, "a: b\n---\nc: d\n", "document"),
        (
            Client::K3s,
            Profile::Sealed,
            REGISTRIES,
            "mirrors:\n  docker.io:\n    endpoint: [\"https://a\"]\n",
            "https://a",
        ),
        (
            Client::Podman,
            Profile::Fallback,
            "etc/containers/registries.conf",
            "[[registry]]\nlocation = \"quay.io\"\n",
            "quay.io",
        ),
        (Client::Podman, Profile::Fallback, PODMAN, "# mine\n", "by hand"),
        (Client::Docker, Profile::Sealed, DAEMON, "{}", "always asks the origin"),
        (Client::Docker, Profile::Fallback, DAEMON, "[]", "not a JSON object"),
        (Client::Docker, Profile::Fallback, DAEMON, "{\"registry-mirrors\": \"x\"}", "no list"),
    ];
    for (client, profile, path, text, word) in cases {
        let board = Board::new().with(path, text);
        let before = board.everything();
        let problem = refusal(board.write(*client, *profile));
        assert!(problem.contains(word), "{path} {text:.60?}: {problem}");
        assert_eq!(board.everything(), before, "{path} {text:.60?}");
    }
}

#[test]
fn folders_that_the_configuration_names_are_used() {
    let section = "[plugins.\"io.containerd.cri.v1.images\".registry]\nconfig_path = \"/opt/certs:/etc/docker/certs.d\"\n";
    let board = Board::new().with(CONFIG, &format!("version = 3\n{section}"));
    let changed = board.write(Client::Containerd, Profile::Fallback).unwrap();
    assert!(changed.contains(&"/opt/certs/docker.io/hosts.toml".into()));
    assert!(!changed.contains(&"/etc/containerd/config.toml".into()), "there was nothing to change in it");
}

#[test]
fn what_was_changed_since_is_not_lost() {
    let board = Board::new().with(REGISTRIES, "configs:\n  a.corp:\n    auth:\n      username: x\n");
    let original = board.everything();
    board.write(Client::K3s, Profile::Fallback).unwrap();
    let mine = board.text(REGISTRIES) + "# and this\n";
    board.put(REGISTRIES, mine.as_bytes());
    let problem = board.undo(Client::K3s).unwrap_err();
    assert!(
        problem.contains("was changed since") && problem.contains("/etc/larder/clients/k3s/1/0"),
        "{problem}"
    );
    assert_eq!(board.text(REGISTRIES), mine);
    // Nothing is to be done, so that nothing is written.
    assert_eq!(board.write(Client::K3s, Profile::Fallback), Ok(vec![]));
    // Something is: then each of the two writes is taken back by itself.
    let root = Root::new(&board.root()).unwrap();
    let more = board.mirror("[upstream.\"r.example\"]\n");
    assert_eq!(write(&root, Client::K3s, &more, Profile::Fallback).unwrap().changed.len(), 1);
    assert!(board.text(REGISTRIES).contains("r.example") && board.text(REGISTRIES).contains("# and this"));
    board.undo(Client::K3s).unwrap();
    assert_eq!(board.text(REGISTRIES), mine);
    assert!(board.undo(Client::K3s).unwrap_err().contains("was changed since"));
    board.put(REGISTRIES, mine.replace("# and this\n", "").as_bytes());
    board.undo(Client::K3s).unwrap();
    assert_eq!(board.everything(), original);
}

#[test]
fn another_profile_and_other_upstreams_start_from_what_was_there_first() {
    let board = Board::new().with(HOSTS, "server = \"https://registry-1.docker.io\" # mine\n");
    let original = board.everything();
    let root = Root::new(&board.root()).unwrap();
    let (few, many) = (board.mirror(""), board.mirror("[upstream.\"r.example\"]\n"));
    write(&root, Client::Containerd, &many, Profile::Sealed).unwrap();
    assert!(board.text(HOSTS).starts_with("server = \"http://127.0.0.1:5000\" # mine\n"));
    let default = "etc/containerd/certs.d/_default/hosts.toml";
    assert!(board.root().join(default).exists());
    write(&root, Client::Containerd, &few, Profile::Fallback).unwrap();
    assert!(board.text(HOSTS).starts_with("server = \"https://registry-1.docker.io\" # mine\n"));
    for gone in ["_default", "r.example"] {
        assert!(!board.root().join("etc/containerd/certs.d").join(gone).exists(), "{gone}");
    }
    board.undo(Client::Containerd).unwrap();
    assert_eq!(board.everything(), original);
}

#[test]
fn a_power_cut_in_a_second_write_leaves_a_way_back_and_on() {
    for back in [true, false] {
        let board = Board::new().with(REGISTRIES, "mirrors:\n").with(HOSTS, "# mine\n");
        let original = board.everything();
        let root = Root::new(&board.root()).unwrap();
        let (old, new) = (board.mirror(""), board.mirror("listen = [\"127.0.0.1:6000\"]\n"));
        write(&root, Client::Containerd, &old, Profile::Fallback).unwrap();
        let half = board.text(HOSTS);
        write(&root, Client::Containerd, &new, Profile::Fallback).unwrap();
        let whole = board.everything();
        // The cut came before this one of the files was written anew.
        board.put(HOSTS, half.as_bytes());
        if back {
            board.undo(Client::Containerd).unwrap();
            assert_eq!(board.everything(), original);
        } else {
            let written = write(&root, Client::Containerd, &new, Profile::Fallback).unwrap();
            assert_eq!(written.changed, [Path::new("/").join(HOSTS)]);
            assert_eq!(board.text(HOSTS).as_bytes(), whole[&board.root().join(HOSTS)].1);
            board.undo(Client::Containerd).unwrap();
            assert_eq!(board.everything(), original);
        }
    }
}

#[test]
fn one_writer_at_a_time() {
    let board = Board::new();
    board.write(Client::K3s, Profile::Fallback).unwrap();
    let lock = std::fs::File::open(board.root().join("etc/larder/clients/lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    assert!(refusal(board.write(Client::Podman, Profile::Fallback)).contains("is running"));
    assert!(board.undo(Client::K3s).unwrap_err().contains("is running"));
    // Said and not left to the closing of the descriptor, of which a process that begins may have a copy.
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::Unlock).unwrap();
    board.undo(Client::K3s).unwrap();
}

#[test]
fn clients_are_taken_back_in_any_order() {
    let board = Board::new();
    for client in Client::ALL {
        board.write(client, Profile::Fallback).unwrap();
    }
    for client in [Client::Podman, Client::Containerd, Client::Docker, Client::K3s] {
        board.undo(client).unwrap();
    }
    assert_eq!(board.everything(), BTreeMap::new());
}

#[test]
fn what_others_put_into_new_folders_stays() {
    let board = Board::new();
    board.write(Client::Podman, Profile::Fallback).unwrap();
    board.put("etc/containers/policy.json", b"{}");
    board.undo(Client::Podman).unwrap();
    let left: Vec<PathBuf> = board.everything().into_keys().collect();
    let etc = board.root().join("etc");
    assert_eq!(left, [etc.clone(), etc.join("containers"), etc.join("containers/policy.json")]);
}

#[test]
fn links_are_refused_and_what_they_lead_to_stays() {
    let board = Board::new().with("usr/share/k3s.yaml", "mirrors:\n");
    std::fs::create_dir_all(board.root().join("etc/rancher/k3s")).unwrap();
    symlink("/usr/share/k3s.yaml", board.root().join(REGISTRIES)).unwrap();
    let before = board.everything();
    let problem = refusal(board.write(Client::K3s, Profile::Fallback));
    assert!(problem.contains("symbolic link to /usr/share/k3s.yaml"), "{problem}");
    assert_eq!(board.everything(), before);
    // A folder that leads out of the image.
    let outside = Folder::new();
    let board = Board::new();
    std::fs::create_dir(board.root().join("etc")).unwrap();
    symlink(&outside.0, board.root().join("etc/docker")).unwrap();
    assert!(refusal(board.write(Client::Docker, Profile::Fallback)).contains("symbolic link"));
    assert_eq!(std::fs::read_dir(&outside.0).unwrap().count(), 0);
    // Neither a pipe nor a folder is waited for or replaced.
    let board = Board::new();
    std::fs::create_dir_all(board.root().join(DAEMON)).unwrap();
    assert!(refusal(board.write(Client::Docker, Profile::Fallback)).contains("is not a file"));
    let board = Board::new();
    std::fs::create_dir_all(board.root().join("etc/docker")).unwrap();
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, board.root().join(DAEMON), rustix::fs::FileType::Fifo, mode, 0)
        .unwrap();
    assert!(refusal(board.write(Client::Docker, Profile::Fallback)).contains("is not a file"));
}

#[test]
fn a_write_that_fails_half_way_is_put_back() {
    // A folder stands where the last of the files is to be.
    let board = Board::new().with(CONFIG, "version = 2\n");
    let last = "etc/containerd/certs.d/registry.k8s.io";
    std::fs::create_dir_all(board.root().join("etc/containerd/certs.d")).unwrap();
    board.put(last, b"a file where a folder is to be");
    let before = board.everything();
    let problem = refusal(board.write(Client::Containerd, Profile::Fallback));
    assert!(problem.contains("nothing was changed"), "{problem}");
    assert_eq!(board.everything(), before);
}

#[test]
fn a_power_cut_at_any_step_leaves_a_way_back() {
    let original = "version = 2\n";
    let done = Board::new().with(CONFIG, original);
    let before = done.everything();
    done.write(Client::Containerd, Profile::Fallback).unwrap();
    let record = "etc/larder/clients/containerd/1";
    let files: Vec<String> = done
        .everything()
        .into_keys()
        .filter(|path| path.is_file())
        .map(|path| path.strip_prefix(done.root()).unwrap().display().to_string())
        .filter(|path| !path.starts_with("etc/larder"))
        .collect();
    assert!(files.len() > 5);
    // The record is whole before the first file changes; then they change one by one.
    for cut in 0..=files.len() {
        let board = Board::new().with(CONFIG, original);
        board.write(Client::Containerd, Profile::Fallback).unwrap();
        for path in &files[cut..] {
            if path == CONFIG {
                board.put(path, original.as_bytes());
            } else {
                std::fs::remove_file(board.root().join(path)).unwrap();
            }
        }
        board.put("etc/containerd/.config.toml.larder-new", b"half a fi");
        if cut % 2 == 0 {
            // Going on is possible too.
            let changed = board.write(Client::Containerd, Profile::Fallback).unwrap();
            assert_eq!(changed.len(), files.len() - cut);
        }
        board.undo(Client::Containerd).unwrap();
        let mut after = board.everything();
        after.remove(&board.root().join("etc/containerd/.config.toml.larder-new"));
        let relative = |all: BTreeMap<PathBuf, (u32, Vec<u8>)>, board: &Board| {
            let root = board.root();
            all.into_iter().map(|(p, v)| (p.strip_prefix(&root).unwrap().to_owned(), v)).collect::<Vec<_>>()
        };
        assert_eq!(relative(after, &board), relative(before.clone(), &done), "cut {cut}");
    }
    // A cut while the record is made: nothing has changed, and the next write is not confused.
    let board = Board::new().with(CONFIG, original);
    board.put(&format!("{record}.new/0"), b"half");
    assert!(board.undo(Client::Containerd).unwrap_err().contains("nothing to undo"));
    board.put(&format!("{record}.new/0"), b"half");
    board.write(Client::Containerd, Profile::Fallback).unwrap();
    board.undo(Client::Containerd).unwrap();
    assert_eq!(board.text(CONFIG), original);
}

#[test]
fn a_damaged_record_or_backup_changes_nothing() {
    let board = Board::new().with(CONFIG, "version = 2\n");
    board.write(Client::Containerd, Profile::Fallback).unwrap();
    let written = board.text(CONFIG);
    let backup = "etc/larder/clients/containerd/1/0";
    assert_eq!(board.text(backup), "version = 2\n");
    board.put(backup, b"version = 3\n");
    assert!(board.undo(Client::Containerd).unwrap_err().contains("missing or corrupt"));
    board.put("etc/larder/clients/containerd/1/record", b"{}");
    assert!(board.undo(Client::Containerd).unwrap_err().contains("cannot be read"));
    assert!(refusal(board.write(Client::Containerd, Profile::Sealed)).contains("cannot be read"));
    assert_eq!(board.text(CONFIG), written);
}

#[test]
fn mode_and_owner_are_kept_and_backups_are_no_more_readable() {
    let board = Board::new().with(REGISTRIES, "configs:\n  a:\n    auth:\n      password: secret\n");
    let file = board.root().join(REGISTRIES);
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let root = rustix::process::geteuid().is_root();
    if root {
        std::os::unix::fs::chown(&file, Some(1234), Some(567)).unwrap();
    }
    board.write(Client::K3s, Profile::Fallback).unwrap();
    let owner =
        if root { (1234, 567) } else { (file.metadata().unwrap().uid(), file.metadata().unwrap().gid()) };
    let is = |path: &Path| {
        let meta = path.metadata().unwrap();
        (meta.mode() & 0o7777, (meta.uid(), meta.gid()))
    };
    assert_eq!(is(&file), (0o600, owner));
    assert_eq!(is(&board.root().join("etc/larder/clients/k3s/1/0")).0, 0o600);
    assert_eq!(is(&board.root().join("etc/larder/clients/k3s/1")).0, 0o700);
    board.undo(Client::K3s).unwrap();
    assert_eq!(is(&file), (0o600, owner));
}
