//! A whole mirror behind which a registry answers whatever the fuzzer says.

use super::{Folder, HANG, Scripted};
use larder::auth::Identity;
use larder::fetch::Upstreams;
use larder::http::Server;
use larder::mirror::Mirror;
use larder::oci::{Algorithm, Digest};
use larder::store::Store;
use std::sync::{Arc, LazyLock};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const CONTENT: &[u8] = b"content";

/// A client asks for a tag, a manifest, a blob and lists of a board that is new. The first byte says in which order; the rest are
/// the registry's answers, one a connection. Every question ends, no answer is a 500, and what is asked for by digest and
/// given in full has that digest.
pub fn mirror(data: &[u8]) {
    static REGISTRY: LazyLock<Scripted> = LazyLock::new(Scripted::start);
    let Some((first, answers)) = data.split_first() else { return };
    REGISTRY.play(answers);
    let folder = Folder::new();
    let fetch = "connect_timeout = \"1s\"\nheader_timeout = \"1s\"\nstall_timeout = \"1s\"\n";
    let config = Arc::new(folder.config(&format!("http://{}", REGISTRY.address), fetch));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let (store, startup) = Store::open(&config.data_dir, 3).expect("a store");
    // New for each input, so that no breaker that an earlier one opened hides what is behind it.
    let upstreams = Upstreams::new(&config).expect("upstreams");
    let mirror = runtime.block_on(async { Mirror::start(config, Arc::new(store), upstreams, startup) });
    let mirror = mirror.expect("a mirror");
    let server = Server::new(Arc::clone(&mirror)).expect("a server");
    let digest = Digest::of(Algorithm::Sha256, CONTENT);
    let paths = [
        "HEAD manifests/latest".to_owned(),
        "GET manifests/latest".to_owned(),
        format!("GET manifests/{digest}"),
        format!("GET blobs/{digest}"),
        format!("HEAD blobs/{digest}"),
        "GET tags/list?n=3".to_owned(),
        format!("GET referrers/{digest}"),
    ];
    for at in 0..3 {
        let (method, path) =
            paths[(usize::from(*first) + at) % paths.len()].split_once(' ').expect("a method");
        let text = format!("{method} /v2/lab/app/{path} HTTP/1.1\r\nHost: l\r\nConnection: close\r\n\r\n");
        let answer = runtime.block_on(asked(&server, text.as_bytes()));
        checked(method, path, &answer, &digest);
    }
    mirror.stop();
}

async fn asked(server: &Server, text: &[u8]) -> Vec<u8> {
    let (mut client, stream) = tokio::io::duplex(1 << 20);
    let served = server.serve_stream(stream, Identity::anonymous([127, 0, 0, 1].into()));
    let client = async move {
        // A server may close first.
        let _ = client.write_all(text).await;
        let mut answer = Vec::new();
        let _ = client.read_to_end(&mut answer).await;
        answer
    };
    let both = async { tokio::join!(served, client).1 };
    tokio::time::timeout(HANG, both).await.expect("the question ends")
}

fn checked(method: &str, path: &str, answer: &[u8], digest: &Digest) {
    let shown = answer.escape_ascii();
    // A stream that is cut at its first bytes takes the header with it.
    let Some(head) = answer.windows(4).position(|window| window == b"\r\n\r\n") else { return };
    let (head, body) = (String::from_utf8_lossy(&answer[..head]).to_lowercase(), &answer[head + 4..]);
    assert!(head.starts_with("http/1.1 ") && !head.starts_with("http/1.1 500"), "{path}: {shown}");
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let whole = length.is_some_and(|length| length.parse() == Ok(body.len()));
    if method == "GET" && head.starts_with("http/1.1 200") && path.ends_with(&digest.to_string()) {
        let listed = path.starts_with("referrers");
        assert!(listed || !whole || Digest::of(Algorithm::Sha256, body) == *digest, "{path}: {shown}");
    }
}
