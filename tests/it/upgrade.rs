//! The folder that 0.1.0 left, and a disk that fails while it is upgraded: all that was in it is there, wherever that
//! is cut short.

use crate::board::{self, Folder, io_faults};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

const EIO: i32 = 5;
/// Digest, state and note of each image, as `larder ls` has them.
const IMAGES: [&str; 4] = [
    "docker.io/lab/app:1.0 complete 216 B 46ef5d362b88 pinned",
    "docker.io/lab/app:broken partial 208 B cad86318e3fc 10 B missing",
    "docker.io/lab/app:latest complete 216 B 46ef5d362b88 would free 651 B",
    "registry.example:5000/team/secret:latest complete 220 B ee4bc8af6fc1",
];

/// A copy of the folder, with what git does not keep of it.
fn folder_of_0_1_0() -> Folder {
    let folder = Folder::new();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/0.1.0");
    for line in std::fs::read_to_string(from.join("files")).unwrap().lines().filter(|l| !l.starts_with('#')) {
        let [mode, time, name] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let path = folder.0.join("data").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::copy(from.join(name), &path).unwrap();
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(time.parse().unwrap());
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        let mode = u32::from_str_radix(mode, 8).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    folder
}

fn larder(folder: &Folder, arguments: &[&str], environment: board::Environment) -> Output {
    Command::new(env!("CARGO_BIN_EXE_larder"))
        .arg("--data-dir")
        .arg(folder.0.join("data"))
        .args(arguments)
        .envs(environment)
        .output()
        .unwrap()
}

/// What a command prints that must succeed, without the spaces between columns.
fn said(folder: &Folder, arguments: &[&str]) -> Vec<String> {
    let output = larder(folder, arguments, Vec::new());
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

fn is_upgraded(folder: &Folder) -> bool {
    let journal = std::fs::read_to_string(folder.0.join("data/journal")).unwrap();
    journal.lines().next().unwrap().contains("{\"format\":2,")
}

#[test]
fn nothing_of_0_1_0_is_lost_whatever_change_of_an_upgrade_fails() {
    let (mut upgraded, mut refused) = (0, 0);
    for at in 1.. {
        let folder = folder_of_0_1_0();
        let (data, log) = (folder.0.join("data"), folder.0.join("changes"));
        let more =
            [("LARDER_DISK_LOG", log.display().to_string()), ("LARDER_DISK_FAIL", format!("{at}:{EIO}:on"))];
        let name = "registry.example:5000/team/secret:latest";
        let cut_short = larder(&folder, &["pin", name], io_faults::environment(&data, &more));
        assert!(!String::from_utf8_lossy(&cut_short.stderr).contains("panicked"), "change {at}");
        let failed = io_faults::changes(&log).iter().any(|change| change.what.is_ascii_lowercase());
        upgraded += u32::from(is_upgraded(&folder));
        refused += u32::from(!cut_short.status.success());
        let before = is_upgraded(&folder);
        let images = said(&folder, &["ls"]);
        assert_eq!(images[1..4], IMAGES[..3], "change {at}");
        assert!(images[4].starts_with(IMAGES[3]), "change {at}: {images:?}");
        assert!(
            !cut_short.status.success() || images[4].ends_with("pinned"),
            "change {at}: what was told stays"
        );
        assert!(is_upgraded(&folder) || !before, "change {at}");
        said(&folder, &["pin", name]);
        assert!(is_upgraded(&folder), "change {at}");
        assert_eq!(said(&folder, &["ls"])[4], format!("{} pinned", IMAGES[3]), "change {at}");
        if !failed {
            println!("{at} changes; {refused} times refused, {upgraded} times upgraded all the same");
            break;
        }
    }
    assert!(upgraded > 1 && refused > 1, "upgraded {upgraded}, refused {refused}");
}

#[test]
fn who_may_read_a_repository_of_0_1_0_is_found_once_and_written_down() {
    let section = "[upstream.\"registry.example:5000\"]\nurl = \"http://127.0.0.1:1\"\n";
    let config = board::Board::config("http://127.0.0.1:1", section);
    let mut board = board::Board::in_folder(folder_of_0_1_0(), &config, Vec::new())
        .unwrap_or_else(|(log, _)| panic!("the server did not start:\n{log}"));
    let status = |board: &board::Board, repository: &str, registry: &str| {
        board.get(&format!("/v2/{repository}/manifests/latest?ns={registry}")).status
    };
    for _ in 0..3 {
        // Its credentials are not in this configuration.
        assert_eq!(status(&board, "team/secret", "registry.example:5000"), 502);
        assert_eq!(status(&board, "lab/app", "docker.io"), 200);
        let journal = std::fs::read_to_string(board.data().join("journal")).unwrap();
        let noted = |repository: &str| {
            let start = format!("\"class\":{{\"repository\":\"{repository}\"");
            journal.lines().filter(|line| line.contains(&start)).map(str::to_owned).collect::<Vec<_>>()
        };
        for (repository, class) in
            [("docker.io/lab/app", "public"), ("registry.example:5000/team/secret", "private")]
        {
            let lines = noted(repository);
            assert!(lines.len() == 1 && lines[0].contains(&format!("\"class\":\"{class}\"")), "{lines:?}");
        }
        board.stop();
        board.start_again();
    }
}
