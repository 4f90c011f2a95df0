//! What boards of a kit say to each other: one end is Larder's, the other is the fuzzer's, which knows the secret or not.

use super::{HANG, NEXT_ANSWER};
use larder::config::KitSettings;
use larder::files::Watched;
use larder::kit::{Kit, Listening, PeerContent, listen};
use larder::oci::{Algorithm, Digest, Platform, Repository, Tag};
use larder::text::Secret;
use ring::hmac;
use std::fs::File;
use std::io::{Read, Result, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, LazyLock};

const SECRET: &[u8] = b"a secret of the fuzzers";
const GREETING: &[u8] = b"larder-kit-1\n";
const NONCE: [u8; 32] = [7; 32];
const CONTENT: &[u8] = b"content";
/// Longest frame by the protocol.
const FRAME_BYTES_MAX: usize = 16 * 1024;

/// The first byte says which end Larder's is, and whether the fuzzer's end proves that it knows the secret and seals its
/// frames, which `==` divides.
pub fn kit(data: &[u8]) {
    let Some((first, data)) = data.split_first() else { return };
    let how = match (first / 2) % 3 {
        0 => How::Sealed,
        1 => How::Proved,
        _ => How::Raw,
    };
    if first % 2 == 0 { asks(data, how) } else { answers(data, how, first / 6) }
}

/// How much of the protocol the fuzzer's end keeps to.
#[derive(Clone, Copy, PartialEq)]
enum How {
    Sealed,
    Proved,
    Raw,
}

/// A board asks Larder: whatever it says, the connection ends, and what it is told are frames with a seal.
fn asks(data: &[u8], how: How) {
    static BOARD: LazyLock<Listening> = LazyLock::new(|| {
        listen(
            ([127, 0, 0, 1], 0).into(),
            Watched::fixed(Secret::new(SECRET.to_vec())),
            Arc::new(Shelf::new()),
        )
        .expect("a listener")
    });
    let socket = TcpStream::connect(BOARD.address()).expect("a connection");
    socket.set_read_timeout(Some(HANG)).expect("a time-out");
    let said = talk(&socket, data, how, false);
    // A board that hangs up early has had enough.
    if let (Ok(Some(key)), How::Sealed) = (said, how) {
        let mut count = 0u64;
        while let Some(answer) = frame(&socket, &key, b"b", count) {
            count += 1;
            if !answer.starts_with("\"none\"") && !answer.contains("\"tag\"") {
                // Its content follows, and then the next frame; the length is not known here without reading the answer.
                break;
            }
        }
    }
    let mut left = Vec::new();
    if let Err(e) = (&socket).read_to_end(&mut left) {
        assert_ne!(e.kind(), std::io::ErrorKind::WouldBlock, "the connection does not end");
    }
}

/// Larder asks a board: whatever that answers, the question ends, and content has its hash.
fn answers(data: &[u8], how: How, question: u8) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    // New for each input, so that no peer is left out for what an earlier one said.
    let kit = Kit::new(&KitSettings {
        secret_file: "/nowhere".into(),
        secret: Secret::new(SECRET.to_vec()),
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        peers: vec![address],
        mdns: false,
    });
    let repository: Repository = "docker.io/lab/app".parse().expect("a repository");
    let digest = Digest::of(Algorithm::Sha256, CONTENT);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let Ok((socket, _)) = listener.accept() else { return };
            let _ = socket.set_read_timeout(Some(HANG));
            let _ = talk(&socket, data, how, true);
        });
        match question % 3 {
            0 => {
                let platforms = [Platform::of_this_board()];
                RUNTIME.block_on(kit.ask_tag(&repository, &Tag::latest(), &platforms));
            }
            1 => {
                if let Some(manifest) = kit.manifest(&repository, &digest) {
                    assert_eq!(manifest.bytes, CONTENT);
                }
            }
            _ => read_blob(&kit, &repository, &digest, u64::from(question / 3)),
        }
        assert!(kit.peers().iter().all(|peer| !peer.text.chars().any(char::is_control)));
    });
}

static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
});

fn read_blob(kit: &Kit, repository: &Repository, digest: &Digest, from: u64) {
    let Some(mut blob) = kit.blob(repository, digest, from, &[]) else { return };
    let (mut piece, mut length) = ([0; 4096], from);
    while let Ok(read @ 1..) = blob.read(&mut piece) {
        length += read as u64;
        assert!(length <= blob.total(), "more than was announced");
    }
}

/// The fuzzer's end of a connection, which then sends no more. The key of the session, if there is one.
fn talk(mut socket: &TcpStream, data: &[u8], how: How, answers: bool) -> Result<Option<hmac::Key>> {
    if how == How::Raw {
        socket.write_all(data)?;
        return socket.shutdown(Shutdown::Write).map(|()| None);
    }
    let mut theirs = [0; GREETING.len() + NONCE.len()];
    let nonce_at = GREETING.len()..;
    if answers {
        socket.read_exact(&mut theirs)?;
    }
    socket.write_all(&[GREETING, &NONCE].concat())?;
    let secret = hmac::Key::new(hmac::HMAC_SHA256, SECRET);
    let proof =
        |letter: &[u8], nonces: &[u8]| hmac::sign(&secret, &[b"larder kit 1 proof", letter, nonces].concat());
    let (mut proved, nonces) = ([0; 32], |theirs: &[u8]| match answers {
        true => [theirs, &NONCE].concat(),
        false => [&NONCE, theirs].concat(),
    });
    if answers {
        socket.read_exact(&mut proved)?;
        socket.write_all(proof(b"b", &nonces(&theirs[nonce_at])).as_ref())?;
    } else {
        socket.read_exact(&mut theirs)?;
        socket.write_all(proof(b"a", &nonces(&theirs[nonce_at.clone()])).as_ref())?;
        socket.read_exact(&mut proved)?;
    }
    let nonces = nonces(&theirs[GREETING.len()..]);
    let key = hmac::sign(&secret, &[b"larder kit 1 session", &nonces[..]].concat());
    let key = hmac::Key::new(hmac::HMAC_SHA256, key.as_ref());
    match how {
        How::Sealed => socket.write_all(&sealed(data, &key, answers))?,
        _ => socket.write_all(data)?,
    }
    if answers {
        // The question has to be taken, or the kernel cuts the connection before the answer is read.
        socket.shutdown(Shutdown::Write)?;
        std::io::copy(&mut socket, &mut std::io::sink())?;
    } else {
        socket.shutdown(Shutdown::Write)?;
    }
    Ok(Some(key))
}

/// The parts as frames. Of an answer only the first part is one; what follows is content.
fn sealed(data: &[u8], key: &hmac::Key, answers: bool) -> Vec<u8> {
    let (mut out, mut rest, mut count) = (Vec::new(), Some(data), 0u64);
    while let Some(data) = rest {
        let at = data.windows(NEXT_ANSWER.len()).position(|window| window == NEXT_ANSWER);
        let part = at.map_or(data, |at| &data[..at]);
        rest = at.map(|at| &data[at + NEXT_ANSWER.len()..]);
        let letter: &[u8] = if answers { b"b" } else { b"a" };
        let seal = hmac::sign(key, &[letter, &count.to_be_bytes(), part].concat());
        out.extend((part.len() as u32).to_be_bytes());
        out.extend(part);
        out.extend(seal.as_ref());
        count += 1;
        if let (true, Some(content)) = (answers, rest) {
            out.extend(content);
            break;
        }
    }
    out
}

/// The next frame from Larder, which is not too long, sealed, and text.
fn frame(mut socket: &TcpStream, key: &hmac::Key, letter: &[u8], count: u64) -> Option<String> {
    let mut length = [0; 4];
    socket.read_exact(&mut length).ok()?;
    let length = u32::from_be_bytes(length) as usize;
    assert!(length <= FRAME_BYTES_MAX, "a frame of {length} bytes");
    let mut frame = vec![0; length + 32];
    socket.read_exact(&mut frame).ok()?;
    let (text, seal) = frame.split_at(length);
    let expected = [letter, &count.to_be_bytes(), text].concat();
    hmac::verify(key, &expected, seal).expect("a frame has its seal");
    Some(String::from_utf8(text.to_vec()).expect("a frame is text"))
}

/// What the board has: the same for every question.
struct Shelf(File);

impl Shelf {
    fn new() -> Shelf {
        let path = std::env::temp_dir().join(format!("larder-fuzz-shelf-{}", std::process::id()));
        std::fs::write(&path, CONTENT).expect("a file");
        let file = File::open(&path).expect("a file");
        std::fs::remove_file(&path).expect("a file");
        Shelf(file)
    }

    fn file(&self) -> Option<File> {
        self.0.try_clone().ok()
    }
}

impl PeerContent for Shelf {
    fn tag(&self, _: &Repository, _: &Tag, platforms: &[Platform]) -> Option<(Digest, Option<u64>)> {
        (!platforms.is_empty()).then(|| (Digest::of(Algorithm::Sha256, CONTENT), Some(1)))
    }

    fn manifest(&self, _: &Repository, digest: &Digest) -> Option<(String, File, u64)> {
        let known = *digest == Digest::of(Algorithm::Sha256, CONTENT);
        known.then(|| self.file().map(|file| ("text/plain".to_owned(), file, CONTENT.len() as u64))).flatten()
    }

    fn blob(&self, _: &Repository, _: &Digest) -> Option<(File, u64)> {
        self.file().map(|file| (file, CONTENT.len() as u64))
    }
}
