//! What the fuzzers feed: one function for each kind of bytes that come from outside, through the crate's public doors.
//!
//! A target returns for every input, or panics where a promise does not hold. `cargo test --test fuzz` replays the corpus;
//! `tests/fuzz/run` lets cargo-fuzz look for more.

#[path = "targets/index.rs"]
mod index;
#[path = "targets/kit.rs"]
mod kit;
#[path = "targets/mirror.rs"]
mod mirror;

pub use index::index;
pub use kit::kit;
pub use mirror::mirror;

use larder::auth::Identity;
use larder::config::{Config, Options};
use larder::demo::image::SampleImage;
use larder::demo::upstream::FaultyRegistry;
use larder::fetch::{HeadTrust, ListPage, Upstreams};
use larder::http::Server;
use larder::mirror::Mirror;
use larder::oci::{
    Algorithm, Digest, Manifest, ManifestRef, Platform, Reference, RegistryName, Repository, RepositoryName,
    Tag,
};
use larder::store::Store;
use std::fmt::{Debug, Display};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A function that takes whatever bytes there are.
pub type Target = fn(&[u8]);

/// Every target, by the name of its folder in `corpus`.
pub const TARGETS: [(&str, Target); 9] = [
    ("names", names),
    ("manifest", manifest),
    ("config", config),
    ("request", request),
    ("upstream", upstream),
    ("journal", journal),
    ("index", index),
    ("kit", kit),
    ("mirror", mirror),
];

/// Longer than any answer takes: what lasts longer has hung.
const HANG: Duration = Duration::from_secs(60);
/// A place in the corpus that stands for the address of the server that answers.
const HOST: &[u8] = b"@HOST@";
/// What separates the answers of an upstream.
const NEXT_ANSWER: &[u8] = b"\n==\n";

/// References, digests, names and tags: what is taken prints to what is taken again, and to the same.
pub fn names(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    stays::<Reference>(text);
    stays::<Digest>(text);
    stays::<Tag>(text);
    stays::<RegistryName>(text);
    stays::<Platform>(text);
    stays::<ManifestRef>(text);
    if let Some(name) = stays::<RepositoryName>(text) {
        let name = name.to_string();
        assert!(
            !name.starts_with('/') && !name.split('/').any(|part| matches!(part, "" | "." | "..")),
            "{name}"
        );
    }
    if let Some(digest) = stays::<Digest>(text) {
        assert_eq!(Digest::from_key(&digest.key()), Some(digest.clone()));
        assert!(digest.hex().bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)));
    }
}

fn stays<T: FromStr + Display + PartialEq + Debug>(text: &str) -> Option<T> {
    let value = text.parse::<T>().ok()?;
    let printed = value.to_string();
    let Ok(again) = printed.parse::<T>() else { panic!("{text:?} is taken, and {printed:?} is not") };
    assert_eq!(again, value, "{text:?} and {printed:?} are not the same");
    Some(value)
}

/// Manifests and indexes. The first byte chooses the header that they come with.
pub fn manifest(data: &[u8]) {
    const TYPES: [Option<&str>; 5] = [
        None,
        Some("application/vnd.oci.image.index.v1+json"),
        Some("application/vnd.oci.image.manifest.v1+json"),
        Some("application/vnd.docker.distribution.manifest.list.v2+json; charset=utf-8"),
        Some("text/html"),
    ];
    let Some((first, bytes)) = data.split_first() else { return };
    let content_type = TYPES[usize::from(*first) % TYPES.len()];
    if let Ok(manifest) = Manifest::parse(bytes, content_type) {
        // Its own word for its type is enough for the next reader.
        let again = Manifest::parse(bytes, Some(&manifest.media_type)).map(|again| again.children.len());
        assert_eq!(again.ok(), Some(manifest.children.len()));
    }
}

/// Configuration files: an error has a text, and what is read prints to a file that is read, too.
pub fn config(data: &[u8]) {
    static FOLDER: LazyLock<Folder> = LazyLock::new(Folder::new);
    let file = FOLDER.0.join("larder.toml");
    std::fs::write(&file, data).expect("the folder takes a file");
    let options = Options { file: Some(file), ..Options::default() };
    match Config::load(&options) {
        Ok(config) => drop(config.tags.policy(
            &"docker.io/library/busybox".parse::<Repository>().expect("a repository"),
            &Tag::latest(),
        )),
        Err(problem) => assert!(!problem.to_string().is_empty()),
    }
}

/// A client's connection: whatever comes is answered or the connection ends, and no answer is a 500.
pub fn request(data: &[u8]) {
    static SERVED: LazyLock<Served> = LazyLock::new(Served::start);
    let Served { runtime, server, .. } = &*SERVED;
    let answer = runtime.block_on(async {
        let (mut client, stream) = tokio::io::duplex(1 << 20);
        let served = server.serve_stream(stream, Identity::anonymous([127, 0, 0, 1].into()));
        let client = async move {
            // A server may close first.
            let _ = client.write_all(data).await;
            let _ = client.shutdown().await;
            let mut answer = Vec::new();
            let _ = client.read_to_end(&mut answer).await;
            answer
        };
        let both = async { tokio::join!(served, client).1 };
        tokio::time::timeout(HANG, both).await.expect("the connection ends")
    });
    let mut line = answer.split(|byte| *byte == b' ');
    let (version, status) = (line.next().unwrap_or_default(), line.next().unwrap_or_default());
    let known = matches!(version, b"" | b"HTTP/1.0" | b"HTTP/1.1") && status != b"500";
    assert!(known, "{}", answer.escape_ascii());
}

/// A server with one image, whose upstream is gone.
struct Served {
    runtime: tokio::runtime::Runtime,
    server: Server,
    _folder: Folder,
}

impl Served {
    fn start() -> Served {
        let folder = Folder::new();
        let upstream = FaultyRegistry::start().expect("a registry");
        upstream.push("lab/app", "latest", &SampleImage::multi_arch(1, &[5_000, 300]));
        let config = Arc::new(folder.config(&upstream.url(), ""));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let (store, startup) = Store::open(&config.data_dir, 3).expect("a store");
        let upstreams = Upstreams::new(&config).expect("upstreams");
        let mirror = Mirror::start(config, Arc::new(store), upstreams, startup).expect("a mirror");
        let server = Server::new(mirror).expect("a server");
        let listener = runtime.block_on(larder::http::Listener::bind(([127, 0, 0, 1], 0).into()));
        let listener = listener.expect("a listener");
        let address = listener.address().expect("an address");
        let pulled = std::thread::scope(|scope| {
            let platform = Platform::of_this_board().to_string();
            let pull = scope.spawn(move || {
                larder::demo::client::pull(address, Some("docker.io"), "lab/app", "latest", &platform, HANG)
            });
            runtime.block_on(async {
                tokio::select! {
                    () = server.serve(listener) => {}
                    () = async { while !pull.is_finished() { tokio::time::sleep(Duration::from_millis(5)).await } } => {}
                }
            });
            pull.join()
        });
        pulled.expect("a thread").expect("a pull");
        Served { runtime, server, _folder: folder }
    }
}

/// A registry's answers: whatever it sends, a question ends, and content that is believed has its hash.
///
/// The first byte chooses the question; the rest are answers, one a connection, the last one again and again.
pub fn upstream(data: &[u8]) {
    static REGISTRY: LazyLock<Scripted> = LazyLock::new(Scripted::start);
    static FOLDER: LazyLock<Folder> = LazyLock::new(Folder::new);
    let Some((question, answers)) = data.split_first() else { return };
    REGISTRY.play(answers);
    let url = format!("http://{}", REGISTRY.address);
    let config =
        FOLDER.config(&url, "connect_timeout = \"1s\"\nheader_timeout = \"1s\"\nstall_timeout = \"1s\"\n");
    // New for each input, so that no breaker that an earlier one opened hides what is behind it.
    let upstreams = Upstreams::new(&config).expect("upstreams");
    let upstream = upstreams.find(&"docker.io".parse().expect("a name")).expect("docker.io");
    let name: RepositoryName = "lab/app".parse().expect("a name");
    let content = b"content";
    let digest = Digest::of(Algorithm::Sha256, content);
    match question % 7 {
        0 => drop(upstream.name_tag(&name, &Tag::latest(), HeadTrust::None)),
        1 => {
            if let Ok(fetched) = upstream.fetch_manifest(&name, &ManifestRef::Tag(Tag::latest())) {
                assert_eq!(Digest::of(fetched.digest.algorithm(), &fetched.bytes), fetched.digest);
            }
        }
        2 => {
            if let Ok(fetched) = upstream.fetch_manifest(&name, &ManifestRef::Digest(digest.clone())) {
                assert_eq!(fetched.digest, digest);
                assert_eq!(Digest::of(Algorithm::Sha256, &fetched.bytes), digest);
            }
        }
        3 => drop(upstream.head_blob(&name, &digest)),
        4 => {
            if let Ok(mut stream) = upstream.open_blob(&name, &digest, 0) {
                let (mut piece, mut length) = ([0; 4096], 0);
                while let Ok(read @ 1..) = stream.read(&mut piece) {
                    length += read as u64;
                    assert!(stream.total.is_none_or(|total| length <= total), "more than was announced");
                    if length > 1 << 20 {
                        break;
                    }
                }
            }
        }
        5 => drop(upstream.list_tags(&name, &ListPage { n: Some(10), ..ListPage::default() })),
        _ => drop(upstream.referrers(&name, &digest, None, None)),
    }
    upstreams.shutdown();
}

/// A registry that answers each connection with the next bytes it was given.
struct Scripted {
    address: std::net::SocketAddr,
    answers: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Scripted {
    fn start() -> Scripted {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let answers: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
        let script = Arc::clone(&answers);
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let answer = {
                    let mut answers = script.lock().expect("the answers");
                    if answers.len() > 1 {
                        answers.remove(0)
                    } else {
                        answers.first().cloned().unwrap_or_default()
                    }
                };
                let _ = answer_once(socket, &answer);
            }
        });
        Scripted { address, answers }
    }

    fn play(&self, answers: &[u8]) {
        let filled = replaced(answers, HOST, self.address.to_string().as_bytes());
        let mut parts = Vec::new();
        let mut rest = &filled[..];
        while let Some(at) = rest.windows(NEXT_ANSWER.len()).position(|window| window == NEXT_ANSWER) {
            parts.push(rest[..at].to_vec());
            rest = &rest[at + NEXT_ANSWER.len()..];
        }
        parts.push(rest.to_vec());
        *self.answers.lock().expect("the answers") = parts;
    }
}

fn answer_once(mut socket: TcpStream, answer: &[u8]) -> std::io::Result<()> {
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    let (mut asked, mut piece) = (Vec::new(), [0; 1024]);
    while !asked.windows(4).any(|window| window == b"\r\n\r\n") {
        match socket.read(&mut piece)? {
            0 => return Ok(()),
            read => asked.extend_from_slice(&piece[..read]),
        }
    }
    socket.write_all(answer)
}

fn replaced(data: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = data;
    while let Some(at) = rest.windows(from.len()).position(|window| window == from) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(to);
        rest = &rest[at + from.len()..];
    }
    out.extend_from_slice(rest);
    out
}

/// A journal on the disk: the store opens or says why not, and what it understood is there at the second start, too.
///
/// Lines come without their checksums, which no fuzzer would find; what stands behind a `!` is left as it is.
pub fn journal(data: &[u8]) {
    let folder = Folder::new();
    let read = |first: bool| -> Option<Vec<String>> {
        let (store, startup) = Store::open(&folder.0, 3).ok()?;
        if first || startup.needs_rebuild() {
            store.rebuild().ok()?;
        }
        let mut said = Vec::new();
        for repository in store.repositories(None, 1_000).ok()? {
            for (tag, record) in store.tags(&repository, None, 1_000).ok()? {
                said.push(format!("{repository}:{tag} {record:?}"));
            }
        }
        store.shut_down();
        Some(said)
    };
    std::fs::write(folder.0.join("journal"), sealed_lines(data)).expect("the folder takes a file");
    let before = read(true);
    if before.is_some() {
        assert_eq!(read(false), before, "another start finds something else");
    }
}

fn sealed_lines(data: &[u8]) -> Vec<u8> {
    let mut file = Vec::new();
    for line in data.split_inclusive(|byte| *byte == b'\n') {
        if let Some(raw) = line.strip_prefix(b"!") {
            file.extend_from_slice(raw);
            continue;
        }
        let text = line.strip_suffix(b"\n").unwrap_or(line);
        file.extend_from_slice(&Digest::of(Algorithm::Sha256, text).hex().as_bytes()[..16]);
        file.push(b' ');
        file.extend_from_slice(line);
    }
    file
}

/// A folder that is removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        // In memory, where there is such a place: what is flushed here need not last.
        let memory = PathBuf::from("/dev/shm");
        let base = if memory.is_dir() { memory } else { std::env::temp_dir() };
        let path = base.join(format!("larder-fuzz-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder");
        Folder(path)
    }

    /// A configuration with one upstream, and a data folder in here.
    fn config(&self, url: &str, fetch: &str) -> Config {
        let file = self.0.join("larder.toml");
        let data = self.0.join("data");
        let text = format!(
            "data_dir = {data:?}\nlisten = [\"127.0.0.1:0\"]\n[fetch]\n{fetch}[disk]\nmin_free = \"1MiB\"\n[upstream.\"docker.io\"]\nurl = \"{url}\"\n"
        );
        std::fs::write(&file, text).expect("the folder takes a file");
        Config::load(&Options { file: Some(file), ..Options::default() }).expect("a configuration")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
