//! `larder doctor`: each finding shown by a board that has the fault, with the command that mends it; and the command
//! itself on this machine, with the server running and stopped.

use crate::board::{self, Board, Folder, PATIENCE, image, tls_settings, upstream_with};
use larder::clients::files::{Root, write};
use larder::clients::{Client, MirrorAddress, Profile};
use larder::config::{Config, Options};
use larder::demo::upstream::{Behaviour, FaultyRegistry as Upstream, LoginDemand as Login};
use larder::doctor::{Finding, Severity, System, examine};
use larder::oci::{Algorithm, Digest};
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// 2026-06-01.
const NOW: u64 = 1_780_272_000;

/// A board that is made up of files, on which all is well until a test takes something away.
struct MadeUp {
    folder: Folder,
    upstream: Upstream,
    now: SystemTime,
    page_bytes: u64,
    config: String,
}

impl MadeUp {
    fn new() -> MadeUp {
        let folder = Folder::new();
        let upstream = upstream_with(&image(1));
        let mut board = MadeUp {
            now: UNIX_EPOCH + Duration::from_secs(NOW),
            page_bytes: 4096,
            config: String::new(),
            folder,
            upstream,
        };
        std::fs::create_dir(board.data()).unwrap();
        board.config = elsewhere(&board.upstream);
        board.put("proc/meminfo", "MemTotal: 948304 kB\nMemAvailable: 512000 kB\n");
        board.mounted("ext4", "/dev/nvme0n1p2", "rw");
        board.put("proc/cgroups", "#subsys_name hierarchy num_cgroups enabled\nmemory 0 90 1\n");
        board.put("sys/class/rtc/rtc0/name", "rtc");
        board
    }

    fn root(&self) -> PathBuf {
        self.folder.0.join("root")
    }

    fn data(&self) -> PathBuf {
        self.folder.0.join("data")
    }

    fn put(&self, path: &str, text: &str) {
        let file = self.root().join(path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, text).unwrap();
    }

    fn mounted(&self, kind: &str, source: &str, options: &str) {
        let line = format!("22 1 259:2 / / rw,noatime shared:1 - {kind} {source} {options}\n");
        self.put("proc/self/mountinfo", &line);
    }

    fn config(&self) -> Config {
        let file = self.folder.0.join("larder.toml");
        let listen = if self.config.contains("listen = [") { "" } else { "listen = [\"127.0.0.1:0\"]\n" };
        std::fs::write(&file, format!("{listen}{}", self.config)).unwrap();
        let options = Options { file: Some(file), data_dir: Some(self.data()), ..Options::default() };
        Config::load(&options).unwrap()
    }

    fn findings(&self) -> Vec<Finding> {
        examine(&self.config(), &System::made_up(&self.root(), self.now, self.page_bytes))
    }

    /// The one finding of an area whose text has `words`.
    fn find(&self, area: &str, words: &str) -> Finding {
        let findings = self.findings();
        let found: Vec<&Finding> =
            findings.iter().filter(|f| f.area == area && f.what.contains(words)).collect();
        assert_eq!(found.len(), 1, "{area}, {words:?}: {findings:#?}");
        found[0].clone()
    }

    fn is(&self, area: &str, words: &str, severity: Severity, mend: &str) {
        let found = self.find(area, words);
        assert_eq!(found.severity, severity, "{found:?}");
        assert!(found.mend.as_deref().unwrap_or_default().contains(mend), "{found:?}");
    }

    fn mirror(&self) -> MirrorAddress {
        MirrorAddress::of(&self.config(), None).unwrap()
    }
}

/// Every registry at one upstream on this machine.
fn elsewhere(upstream: &Upstream) -> String {
    let names = [
        "docker.io",
        "ghcr.io",
        "quay.io",
        "registry.k8s.io",
        "gcr.io",
        "mcr.microsoft.com",
        "public.ecr.aws",
        "nvcr.io",
        "lscr.io",
    ];
    let section = |name: &&str| format!("[upstream.\"{name}\"]\nurl = \"{}\"\n", upstream.url());
    format!("[disk]\nmin_free = \"1MiB\"\n{}", names.iter().map(section).collect::<String>())
}

#[test]
fn a_board_on_which_all_is_well_but_that_no_server_runs() {
    let board = MadeUp::new();
    let findings = board.findings();
    let wrong: Vec<&Finding> = findings.iter().filter(|finding| finding.is_wrong()).collect();
    // The machine that tests run on may have a slow disk.
    let others: Vec<&&Finding> =
        wrong.iter().filter(|f| f.area != "server" && !f.what.contains("slow")).collect();
    assert!(others.is_empty(), "{others:#?}");
    board.is("server", "no server runs", Severity::Warning, "larder serve");
    board.put("usr/lib/systemd/system/larder.service", "");
    board.is("server", "no server runs", Severity::Warning, "systemctl start larder");
    assert_eq!(findings.iter().filter(|f| f.area == "upstream" && f.severity == Severity::Ok).count(), 9);
    assert_eq!(std::fs::read_dir(board.data()).unwrap().count(), 0, "something is left of the measurement");
    let lock = std::fs::File::create(board.data().join("lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    board.is("server", "has locked the store", Severity::Note, "");
    for finding in &findings {
        assert!(!finding.what.ends_with('.') && finding.is_wrong() <= finding.mend.is_some(), "{finding:?}");
    }
}

#[test]
fn clocks() {
    let mut board = MadeUp::new();
    board.is("clock", "the clock is set: 2026-06-01", Severity::Ok, "");
    board.put("run/systemd/timesync/other", "");
    board.is("clock", "has not set it since", Severity::Warning, "timedatectl");
    board.put("run/systemd/timesync/synchronized", "");
    board.is("clock", "is set", Severity::Ok, "");
    std::fs::remove_dir_all(board.root().join("sys/class/rtc")).unwrap();
    board.is("clock", "no battery-backed clock", Severity::Note, "");
    board.now = UNIX_EPOCH + Duration::from_secs(90);
    board.is("clock", "1970-01-01T00:01:30Z", Severity::Bad, "timedatectl set-ntp true");
}

#[test]
fn memory() {
    let mut board = MadeUp::new();
    board.is("memory", "memory.max is", Severity::Ok, "");
    board.put("proc/meminfo", "MemTotal: 948304 kB\nMemAvailable: 50000 kB\n");
    board.is("memory", "run out of memory", Severity::Warning, "memory.max = \"24MiB\"");
    board.put("proc/meminfo", "MemTotal: 40000 kB\nMemAvailable: 30000 kB\n");
    board.is("memory", "does not have that much", Severity::Bad, "memory.max = \"19MiB\"");
    board.put("sys/fs/cgroup/system.slice/larder.service/memory.max", "max\n");
    assert!(!board.findings().iter().any(|finding| finding.what.contains("limits larder")));
    board.put("sys/fs/cgroup/system.slice/larder.service/memory.max", "33554432\n");
    board.is("memory", "limits larder to", Severity::Bad, "MemoryMax=96M");
    board.put("proc/self/cgroup", "0::/box\n");
    board.put("sys/fs/cgroup/box/memory.max", "20000000\n");
    board.is("memory", "/sys/fs/cgroup/box/memory.max limits", Severity::Bad, "MemoryMax");
    board.page_bytes = 16384;
    board.is("memory", "16384 bytes", Severity::Ok, "");
    board.page_bytes = 12288;
    board.is("memory", "index cannot", Severity::Bad, "kernel");
}

#[test]
fn the_memory_cgroup_of_raspberry_pi_os() {
    let board = MadeUp::new();
    board.is("memory", "cgroup is on", Severity::Ok, "");
    board.put("proc/cgroups", "#subsys_name hierarchy num_cgroups enabled\nmemory 0 90 0\n");
    board.is("memory", "cgroup is off", Severity::Warning, "kernel's command line");
    board.put("boot/firmware/cmdline.txt", "console=tty1 root=PARTUUID=1-02 rootwait\n");
    let mend = "sed -i '1s/$/ cgroup_enable=memory cgroup_memory=1/' /boot/firmware/cmdline.txt";
    board.is("memory", "cgroup is off", Severity::Warning, mend);
    board.put("etc/rancher/k3s/config.yaml", "");
    board.is("memory", "K3s does not start", Severity::Bad, mend);
    board.put("boot/firmware/cmdline.txt", "rootwait cgroup_enable=memory cgroup_memory=1\n");
    board.is("memory", "cgroup is off", Severity::Bad, "already: reboot");
    // Newer kernels list nothing there.
    std::fs::remove_file(board.root().join("proc/cgroups")).unwrap();
    board.put("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io pids\n");
    board.is("memory", "cgroup is off", Severity::Bad, "reboot");
    board.put("sys/fs/cgroup/cgroup.controllers", "cpu memory pids\n");
    board.is("memory", "cgroup is on", Severity::Ok, "");
}

#[test]
fn file_systems_and_their_options() {
    let board = MadeUp::new();
    for (kind, words, severity) in [
        ("ext4", "is on ext4", Severity::Ok),
        ("overlay", "upper layer may be in memory", Severity::Bad),
        ("tmpfs", "which is in memory", Severity::Bad),
        ("vfat", "no file modes", Severity::Bad),
        ("nfs4", "is a network file system", Severity::Bad),
        ("bcachefs", "was not tested", Severity::Note),
    ] {
        board.mounted(kind, "/dev/nvme0n1p2", "rw");
        board.is("disk", words, severity, if severity == Severity::Bad { "data_dir" } else { "" });
    }
    for (options, words, severity, mend) in [
        ("ro", "read-only", Severity::Bad, "mount -o remount,rw /"),
        ("rw,nobarrier", "nobarrier", Severity::Bad, "/etc/fstab"),
        ("rw,barrier=0", "barrier=0", Severity::Bad, "/etc/fstab"),
        ("rw,data=writeback", "data=writeback", Severity::Note, ""),
    ] {
        board.mounted("ext4", "/dev/nvme0n1p2", options);
        board.is("disk", words, severity, mend);
    }
    board.mounted("ext4", "/dev/mmcblk0p2", "rw");
    board.is("disk", "is an SD card", Severity::Note, "USB or NVMe");
    board.put("sys/block/mmcblk0/device/type", "MMC\n");
    assert!(!board.findings().iter().any(|finding| finding.what.contains("SD card")), "eMMC is none");
    board.mounted("ext4", "/dev/sda1", "rw");
    std::fs::create_dir_all(board.root().join("sys/dev/block")).unwrap();
    let way = "../../devices/platform/scb/fd500000.pcie/usb2/2-1/host0/block/sda/sda1";
    symlink(way, board.root().join("sys/dev/block/259:2")).unwrap();
    board.is("disk", "USB device", Severity::Note, "");
    board.mounted("overlay", "overlay", "rw");
    board.put(".dockerenv", "");
    board.is("disk", "is deleted with the container", Severity::Bad, "mount a volume");
}

#[test]
fn room_and_speed() {
    let mut board = MadeUp::new();
    board.is("disk", "free of", Severity::Ok, "");
    board.is("disk", "a flush takes", board.find("disk", "a flush takes").severity, "");
    let config = board.config.clone();
    board.config = config.replace("\"1MiB\"", "\"900TiB\"");
    board.is("disk", "less than disk.min_free", Severity::Warning, "larder ls");
    board.config = config.replace("min_free", "max = \"900TiB\"\nmin_free");
    board.is("disk", "do not fit together", Severity::Warning, "disk.max = ");
    std::fs::remove_dir(board.data()).unwrap();
    board.is("disk", "does not exist yet", Severity::Note, "");
}

#[test]
fn ports() {
    let mut board = MadeUp::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let address = taken.local_addr().unwrap();
    let config = board.config.clone();
    board.config = format!("listen = [\"{address}\", \"{free}\", \"203.0.113.7:5000\"]\n{config}");
    board.is("port", &format!("{free} is free"), Severity::Ok, "");
    board.is("port", "not an address of this board", Severity::Bad, "ip address");
    board.is("port", &format!("{address} is in use by another program"), Severity::Bad, "set listen");
    // Where the boards of a kit ask.
    let secret = board.folder.0.join("secret");
    std::fs::write(&secret, "0123456789abcdef").unwrap();
    let private: std::fs::Permissions = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&secret, private).unwrap();
    let kit_port = TcpListener::bind("127.0.0.1:0").unwrap();
    let kit = kit_port.local_addr().unwrap();
    board.config += &format!("[kit]\nsecret_file = \"{}\"\nlisten = \"{kit}\"\n", secret.display());
    board.is("port", &format!("{kit} is in use by"), Severity::Bad, "set kit.listen");
    // Whose it is, by the process that has the socket open.
    let line = format!("0: 0100007F:{:04X} 00000000:0000 0A 0:0 00:0 0 0 0 4711 1\n", address.port());
    board.put("proc/net/tcp", &format!("sl\n{line}"));
    board.put("proc/321/comm", "docker-registry\n");
    std::fs::create_dir_all(board.root().join("proc/321/fd")).unwrap();
    symlink("socket:[4711]", board.root().join("proc/321/fd/3")).unwrap();
    board.is("port", "in use by docker-registry (process 321)", Severity::Bad, "set listen");
}

#[test]
fn upstreams() {
    let mut board = MadeUp::new();
    let config = board.config.clone();
    let limits = |left: &str| {
        vec![
            ("ratelimit-remaining".to_owned(), format!("{left};w=21600")),
            ("ratelimit-limit".to_owned(), "100;w=21600".to_owned()),
        ]
    };
    board.upstream.on(None, "/v2/", Behaviour::Status(200, limits("76")));
    board.is("upstream", "docker.io answers; 76 of 100", Severity::Ok, "");
    board.upstream.clear();
    board.upstream.on(None, "/v2/", Behaviour::Status(200, limits("3")));
    board.is("upstream", "quay.io answers; 3 of 100", Severity::Warning, "username and password_file");
    board.upstream.clear();
    // Docker Hub says it of one repository, whose HEAD costs nothing.
    board.upstream.on(
        Some("HEAD"),
        "/ratelimitpreview/test/manifests/latest",
        Behaviour::Status(200, limits("50")),
    );
    board.is("upstream", "docker.io answers; 50 of 100", Severity::Ok, "");
    assert_eq!(board.find("upstream", "quay.io").what, "quay.io answers");
    assert_eq!(board.upstream.count("GET", "/manifests/"), 0, "a pull was paid for");
    board.upstream.clear();
    board.upstream.on(None, "/v2/", Behaviour::Status(503, vec![]));
    let failing = format!("ghcr.io: {}: answered 503", board.upstream.addr());
    board.is("upstream", &failing, Severity::Warning, "wait");
    board.upstream.clear();
    board.upstream.on(None, "/v2/", Behaviour::Status(429, vec![]));
    board.is("upstream", "gcr.io: 127.0.0.1", Severity::Warning, "password_file");
    board.upstream.clear();
    // Credentials that are not taken, and that are.
    let secret = board.folder.0.join("password");
    std::fs::write(&secret, "wrong").unwrap();
    let private: std::fs::Permissions = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&secret, private).unwrap();
    std::fs::write(board.folder.0.join("htpasswd"), "").unwrap();
    let login = format!("[auth]\nhtpasswd_file = \"{}\"\n", board.folder.0.join("htpasswd").display());
    let docker =
        format!("[upstream.\"docker.io\"]\nusername = \"me\"\npassword_file = \"{}\"\n", secret.display());
    board.config = login + &config.replace("[upstream.\"docker.io\"]\n", &docker);
    for scheme in
        [Login::Basic("me".into(), "right".into()), Login::Token(Some(("me".into(), "right".into())))]
    {
        board.upstream.login(scheme);
        std::fs::write(&secret, "wrong").unwrap();
        board.is(
            "upstream",
            "docker.io: 127.0.0.1",
            Severity::Bad,
            "check username and password_file in [upstream.\"docker.io\"]",
        );
        std::fs::write(&secret, "right").unwrap();
        board.is("upstream", "docker.io answers, the login is accepted", Severity::Ok, "");
    }
    // Not there; no such name; a name that is no registry's.
    board.config = config.replacen(&board.upstream.url(), "http://127.0.0.1:9", 1);
    board.is("upstream", "docker.io: 127.0.0.1:9: connection refused", Severity::Warning, "ip route");
}

#[test]
fn an_upstream_whose_certificate_is_not_trusted() {
    let mut board = MadeUp::new();
    let (settings, pem, _) = tls_settings();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let settings = std::sync::Arc::new(settings);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut tls = rustls::ServerConnection::new(std::sync::Arc::clone(&settings)).unwrap();
            let mut stream = stream;
            while tls.is_handshaking() && tls.complete_io(&mut stream).is_ok() {}
            let mut tls = rustls::Stream::new(&mut tls, &mut stream);
            let mut asked = [0; 1024];
            let _ = std::io::Read::read(&mut tls, &mut asked);
            let _ = std::io::Write::write_all(
                &mut tls,
                b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            );
        }
    });
    let config = board.config.clone();
    let url = format!("https://{address}");
    board.config = config.replacen(&board.upstream.url(), &url, 1);
    board.is(
        "upstream",
        &format!("docker.io: {address}: the certificate"),
        Severity::Bad,
        "set ca_file in [upstream.\"docker.io\"]",
    );
    let ca = board.folder.0.join("ca.pem");
    std::fs::write(&ca, pem).unwrap();
    board.config = config.replacen(
        &format!("url = \"{}\"", board.upstream.url()),
        &format!("url = \"{url}\"\nca_file = \"{}\"", ca.display()),
        1,
    );
    board.is("upstream", "docker.io answers", Severity::Ok, "");
}

#[test]
fn clients_that_are_sent_here_and_that_are_not() {
    let mut board = MadeUp::new();
    board.config = format!("listen = [\"127.0.0.1:5999\"]\n{}", board.config);
    board.is("client", "neither containerd nor K3s", Severity::Note, "");
    let signs = [
        (Client::Containerd, "usr/bin/containerd", "there is no /etc/containerd/config.toml"),
        (Client::K3s, "usr/local/bin/k3s", "registries.yaml does not name it"),
        (Client::Podman, "usr/bin/podman", "registries.conf does not name it"),
    ];
    let root = Root::new(&board.root()).unwrap();
    for (client, sign, why) in signs {
        board.put(sign, "");
        let mend = format!("larder config {client} --write");
        board.is(
            "client",
            &format!("{client} is not sent to http://127.0.0.1:5999: "),
            Severity::Warning,
            &mend,
        );
        assert!(board.find("client", &format!("{client} is not sent")).what.contains(why));
        board::without_spawning(|| write(&root, client, &board.mirror(), Profile::Fallback)).unwrap();
        board.is(
            "client",
            &format!("{client} asks http://127.0.0.1:5999 for 9 registries"),
            Severity::Ok,
            "",
        );
    }
    // One more registry is configured since.
    board.config = format!("{}[upstream.\"r.example\"]\nurl = \"{}\"\n", board.config, board.upstream.url());
    for (client, ..) in signs {
        board.is(
            "client",
            &format!("{client} is not sent to http://127.0.0.1:5999 for r.example"),
            Severity::Warning,
            "--write",
        );
    }
    // K3s has not been restarted since it was told.
    board.put(
        "var/lib/rancher/k3s/agent/etc/containerd/certs.d/docker.io/hosts.toml",
        "server = \"https://a\"\n",
    );
    board.is("client", "k3s has not been restarted", Severity::Warning, "systemctl restart k3s");
    // With Docker on the board its containerd may have nothing to pull.
    std::fs::remove_file(board.root().join("etc/containerd/config.toml")).unwrap();
    board.put("usr/sbin/dockerd", "");
    board.is("client", "containerd is not sent", Severity::Note, "larder config containerd");
    board.is("client", "docker is not sent", Severity::Warning, "larder config docker --write");
    board.put("etc/docker/daemon.json", "{\"registry-mirrors\": [\"http://localhost:5999/\"]}");
    board.is("client", "docker asks", Severity::Ok, "");
    board.put("etc/docker/daemon.json", "{");
    board.is("client", "docker is not sent", Severity::Warning, "larder config docker");
}

#[test]
fn what_containerd_keeps_twice() {
    let board = MadeUp::new();
    for store in ["var/lib/containerd", "var/lib/rancher/k3s/agent/containerd"] {
        let content = format!("{store}/io.containerd.content.v1.content/blobs/sha256");
        let put = |bytes: &[u8]| {
            let digest = Digest::of(Algorithm::Sha256, bytes);
            let text = text_of(bytes);
            board.put(&format!("{content}/{}", digest.hex()), &text);
            digest
        };
        let layer = put(&[b'l'; 70_000]);
        let own = put(&[b'm'; 30_000]);
        let config = put(b"{\"architecture\":\"arm64\"}");
        put(format!(
            "{{\"schemaVersion\":2,\"mediaType\":\"application/vnd.oci.image.manifest.v1+json\",\"config\":{{\"mediaType\":\"application/vnd.oci.image.config.v1+json\",\"digest\":\"{config}\",\"size\":24}},\"layers\":[{{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar+gzip\",\"digest\":\"{layer}\",\"size\":70000}},{{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar+gzip\",\"digest\":\"{own}\",\"size\":30000}}]}}"
        ).as_bytes());
        let blobs = board.data().join("blobs/sha256");
        std::fs::create_dir_all(&blobs).unwrap();
        std::fs::write(blobs.join(layer.hex()), [b'l'; 70_000]).unwrap();
    }
    for client in ["containerd", "k3s"] {
        let found =
            board.find("duplicates", &format!("{client} keeps 4 blobs, of which larder has 70.0 kB too"));
        assert!(found.what.contains("would save 100.0 kB (100000 bytes)"), "{found:?}");
        assert!(found.mend.unwrap().contains("discard_unpacked_layers = true"));
    }
    board.put("etc/containerd/config.toml", "version = 2\n[plugins.x]\n  discard_unpacked_layers = true\n");
    board.is("duplicates", "it discards unpacked layers", Severity::Ok, "");
}

/// Test content is text.
fn text_of(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn parsed(output: &std::process::Output) -> Vec<serde_json::Value> {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)))
}

#[test]
fn the_command_on_this_machine_with_the_server_running_and_stopped() {
    let upstream = upstream_with(&image(1));
    let more = elsewhere(&upstream)
        .split("[upstream.\"ghcr.io\"]")
        .nth(1)
        .map(|rest| format!("[upstream.\"ghcr.io\"]{rest}"));
    let mut board = Board::new(&upstream, &more.unwrap());
    let address = board.addr.to_string();
    board.wait_until("the control socket", || board.data().join("control.sock").exists());
    let running = board.command(&["--listen", &address, "doctor", "--json"]);
    let findings = parsed(&running);
    let has = |findings: &[serde_json::Value], area: &str, severity: &str, words: &str| {
        let found = findings.iter().any(|finding| {
            finding["area"] == area
                && finding["severity"] == severity
                && finding["what"].as_str().unwrap().contains(words)
        });
        assert!(found, "{area} {severity} {words:?}: {findings:#?}");
    };
    has(&findings, "server", "ok", "the server is running for");
    has(&findings, "port", "ok", &format!("larder listens on {address}"));
    has(&findings, "upstream", "ok", "docker.io answers");
    for area in ["clock", "disk", "memory", "client"] {
        assert!(findings.iter().any(|finding| finding["area"] == area), "{area}");
    }
    let wrong = findings.iter().any(|f| f["severity"] == "warning" || f["severity"] == "bad");
    assert_eq!(running.status.code(), Some(i32::from(wrong)));
    // Where the server does not listen any more.
    let other = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    has(
        &parsed(&board.command(&["--listen", &other, "doctor", "--json"])),
        "port",
        "warning",
        "was changed since",
    );
    board.stop();
    let stopped = board.command(&["--listen", &address, "doctor", "--json"]);
    has(&parsed(&stopped), "server", "warning", "no server runs");
    has(&parsed(&stopped), "port", "ok", &format!("{address} is free"));
    assert_eq!(stopped.status.code(), Some(1));
    let text = board.command(&["--listen", &address, "doctor"]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(
        text.contains("warning  server") && text.contains("-> larder serve")
            || text.contains("-> systemctl start larder"),
        "{text}"
    );
    println!("{text}");
}

#[test]
fn a_server_and_upstreams_that_hang_end_within_the_bound() {
    let upstream = upstream_with(&image(1));
    let more = elsewhere(&upstream)
        .split("[upstream.\"ghcr.io\"]")
        .nth(1)
        .map(|rest| format!("[upstream.\"ghcr.io\"]{rest}"));
    let board = Board::new(&upstream, &more.unwrap());
    // It answers, which it may not yet do when its file appears.
    board.wait_until("the control socket", || UnixStream::connect(board.data().join("control.sock")).is_ok());
    upstream.on(None, "/v2/", Behaviour::HangBeforeHeader);
    let id = rustix::process::Pid::from_raw(board.id() as i32).unwrap();
    rustix::process::kill_process(id, rustix::process::Signal::STOP).unwrap();
    let began = Instant::now();
    let address = board.addr.to_string();
    let output = board.command(&["--listen", &address, "doctor", "--json"]);
    let took = began.elapsed();
    rustix::process::kill_process(id, rustix::process::Signal::CONT).unwrap();
    upstream.release();
    let findings = parsed(&output);
    let said = |words: &str| findings.iter().any(|finding| finding["what"].as_str().unwrap().contains(words));
    assert!(said("the server hangs") && said("no answer in time"), "{findings:#?}");
    assert!(took < PATIENCE, "{took:?}");
    assert_eq!(output.status.code(), Some(1));
}
