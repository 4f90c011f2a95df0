//! Two ends of one wire: who is let in, what is believed, and how long anybody waits.

use super::wire::{Broken, GREETING, NONCE_BYTES, PeerSession, Role};
use super::{Answer, Claim, Kit, Listening, PeerContent, Question, listen};
use crate::budget;
use crate::config;
use crate::files::Watched;
use crate::oci::{Algorithm, Digest, Platform, Repository, Tag};
use crate::text::Secret;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const SECRET: &str = "a secret of the tests";
/// What a busy machine may add.
const LEEWAY: Duration = Duration::from_secs(1);

fn secret(text: &str) -> Secret<Vec<u8>> {
    Secret::new(text.into())
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let asker = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (asker, listener.accept().unwrap().0)
}

fn shake(asker: TcpStream, answerer: TcpStream, secrets: [&str; 2]) -> [Result<PeerSession, Broken>; 2] {
    let other = secrets[1].to_owned();
    let end = std::thread::spawn(move || {
        PeerSession::shake(answerer, secret(&other).reveal(), Role::Answerer, soon())
    });
    let asked = PeerSession::shake(asker, secret(secrets[0]).reveal(), Role::Asker, soon());
    [asked, end.join().unwrap()]
}

/// Two ends that know the same secret, with a relay between them that hands what the asker sends after the handshake
/// to `change` once, and the answer back as it is.
fn through(change: impl FnOnce(&mut Vec<u8>) + Send + 'static) -> (PeerSession, PeerSession) {
    let (near, near_far_end) = pair();
    let (far_near_end, far) = pair();
    let handshake = GREETING.len() + NONCE_BYTES + 32;
    let (mut from, mut to) = (near_far_end.try_clone().unwrap(), far_near_end.try_clone().unwrap());
    std::thread::spawn(move || {
        let mut first = vec![0; handshake];
        from.read_exact(&mut first[..GREETING.len() + NONCE_BYTES]).unwrap();
        to.write_all(&first[..GREETING.len() + NONCE_BYTES]).unwrap();
        from.read_exact(&mut first[GREETING.len() + NONCE_BYTES..]).unwrap();
        to.write_all(&first[GREETING.len() + NONCE_BYTES..]).unwrap();
        let mut sent = vec![0; 64 * 1024];
        let n = from.read(&mut sent).unwrap();
        sent.truncate(n);
        change(&mut sent);
        to.write_all(&sent).unwrap();
        std::io::copy(&mut from, &mut to).unwrap();
    });
    std::thread::spawn(move || std::io::copy(&mut &far_near_end, &mut &near_far_end));
    let [asker, answerer] = shake(near, far, [SECRET, SECRET]);
    (asker.unwrap(), answerer.unwrap())
}

fn repository() -> Repository {
    "docker.io/lab/app".parse().unwrap()
}

fn digest() -> Digest {
    Digest::of(Algorithm::Sha256, b"content")
}

fn question() -> Question {
    Question::Blob { repository: repository(), digest: digest(), from: 7 }
}

#[test]
fn with_the_same_secret_both_ends_understand_each_other() {
    let (asker, answerer) = pair();
    let [asker, answerer] = shake(asker, answerer, [SECRET, SECRET]);
    let (mut asker, mut answerer) = (asker.unwrap(), answerer.unwrap());
    for _ in 0..2 {
        asker.send(&question(), soon()).unwrap();
        assert_eq!(answerer.receive::<Question>(soon()).unwrap(), Some(question()));
        answerer.send(&Answer::Blob { size: 9 }, soon()).unwrap();
        assert_eq!(asker.receive::<Answer>(soon()).unwrap(), Some(Answer::Blob { size: 9 }));
    }
    drop(asker);
    assert!(answerer.receive::<Question>(soon()).unwrap().is_none());
}

#[test]
fn a_wrong_secret_is_turned_away_at_both_ends() {
    let (asker, answerer) = pair();
    let ends = shake(asker, answerer, [SECRET, "another secret of the tests"]);
    for end in ends {
        assert!(matches!(end, Err(Broken::Secret)), "{end:?}");
    }
}

#[test]
fn who_echoes_a_proof_has_proved_nothing() {
    let (asker, mut thief) = pair();
    let end =
        std::thread::spawn(move || PeerSession::shake(asker, secret(SECRET).reveal(), Role::Asker, soon()));
    let mut greeting = [0; GREETING.len() + NONCE_BYTES];
    thief.read_exact(&mut greeting).unwrap();
    thief.write_all(&greeting).unwrap();
    let mut proof = [0; 32];
    thief.read_exact(&mut proof).unwrap();
    thief.write_all(&proof).unwrap();
    assert!(matches!(end.join().unwrap(), Err(Broken::Secret)));
}

#[test]
fn a_frame_that_was_changed_is_not_read() {
    let (mut asker, mut answerer) = through(|sent| {
        let at = sent.windows(6).position(|w| w == b"\"from\"").unwrap() + 7;
        assert_eq!(sent[at], b'7');
        sent[at] = b'8';
    });
    asker.send(&question(), soon()).unwrap();
    let read = answerer.receive::<Question>(soon());
    assert!(matches!(&read, Err(Broken::Speech(why)) if why.contains("not as it was sent")), "{read:?}");
}

#[test]
fn a_frame_that_was_repeated_is_not_read() {
    let (mut asker, mut answerer) = through(|sent| sent.extend_from_within(..));
    asker.send(&question(), soon()).unwrap();
    assert_eq!(answerer.receive::<Question>(soon()).unwrap(), Some(question()));
    assert!(matches!(answerer.receive::<Question>(soon()), Err(Broken::Speech(_))));
}

#[test]
fn a_frame_that_was_sent_back_is_not_read() {
    let (asker, answerer) = pair();
    let mut mirror = answerer.try_clone().unwrap();
    let [asker, answerer] = shake(asker, answerer, [SECRET, SECRET]);
    let (mut asker, _answerer) = (asker.unwrap(), answerer.unwrap());
    asker.send(&Answer::None, soon()).unwrap();
    let mut sent = [0; 4 + 6 + 32];
    mirror.read_exact(&mut sent).unwrap();
    mirror.write_all(&sent).unwrap();
    assert!(matches!(asker.receive::<Answer>(soon()), Err(Broken::Speech(_))));
}

#[test]
fn a_frame_that_is_too_large_is_refused_before_it_is_read() {
    let (asker, answerer) = pair();
    let [asker, answerer] = shake(asker, answerer, [SECRET, SECRET]);
    let (mut asker, mut answerer) = (asker.unwrap(), answerer.unwrap());
    assert!(asker.send(&"x".repeat(budget::KIT_FRAME_BYTES_MAX), soon()).is_err());
    asker.send_raw(&u32::MAX.to_be_bytes(), soon()).unwrap();
    let read = answerer.receive::<Question>(soon());
    assert!(matches!(&read, Err(Broken::Speech(why)) if why.contains("more than 16384")), "{read:?}");
}

#[test]
fn who_deals_out_single_bytes_is_not_waited_for() {
    let (asker, mut slow) = pair();
    let feeder = std::thread::spawn(move || {
        for byte in GREETING {
            if slow.write_all(&[*byte]).is_err() {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    let began = Instant::now();
    let until = began + Duration::from_millis(300);
    let shaken = PeerSession::shake(asker, secret(SECRET).reveal(), Role::Asker, until);
    assert!(matches!(&shaken, Err(Broken::Io(_))), "{shaken:?}");
    assert!(began.elapsed() < Duration::from_millis(300) + LEEWAY, "{:?}", began.elapsed());
    feeder.join().unwrap();
}

/// A content with one blob in a file, one manifest and one tag.
struct Stock {
    manifest: Vec<u8>,
    blob: Vec<u8>,
    asked: AtomicUsize,
}

impl PeerContent for Stock {
    fn tag(&self, _: &Repository, tag: &Tag, platforms: &[Platform]) -> Option<(Digest, Option<u64>)> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        (tag.as_str() == "latest" && !platforms.is_empty()).then(|| (digest(), Some(5)))
    }

    fn manifest(&self, _: &Repository, _: &Digest) -> Option<(String, File, u64)> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        Some(("text/plain".into(), file(&self.manifest), self.manifest.len() as u64))
    }

    fn blob(&self, _: &Repository, _: &Digest) -> Option<(File, u64)> {
        Some((file(&self.blob), self.blob.len() as u64))
    }
}

/// A file without a name.
fn file(bytes: &[u8]) -> File {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let n = COUNT.fetch_add(1, Ordering::SeqCst);
    let path = std::env::temp_dir().join(format!("larder-kit-file-{}-{n}", std::process::id()));
    std::fs::write(&path, bytes).unwrap();
    let file = File::open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    file
}

fn stock(manifest: &[u8]) -> Arc<Stock> {
    let blob = (0..200_000u32).map(|n| (n % 251) as u8).collect();
    Arc::new(Stock { manifest: manifest.to_vec(), blob, asked: AtomicUsize::new(0) })
}

fn open(content: &Arc<Stock>) -> Listening {
    let content: Arc<dyn PeerContent> = Arc::clone(content) as Arc<dyn PeerContent>;
    listen(([127, 0, 0, 1], 0).into(), Watched::fixed(secret(SECRET)), content).unwrap()
}

fn kit(peers: &[SocketAddr], text: &str) -> Kit {
    Kit::new(&config::KitSettings {
        secret_file: "/none".into(),
        secret: secret(text),
        listen: ([127, 0, 0, 1], 0).into(),
        peers: peers.to_vec(),
        mdns: false,
    })
}

async fn ask(kit: &Kit, tag: &str) -> (Vec<Claim>, Duration) {
    let began = Instant::now();
    let platforms = [Platform::of_this_board()];
    let claims = kit.ask_tag(&repository(), &tag.parse().unwrap(), &platforms).await;
    (claims, began.elapsed())
}

/// Accepts connections and says nothing.
fn mute() -> (SocketAddr, JoinHandle<Vec<TcpStream>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (address, std::thread::spawn(move || listener.incoming().map_while(Result::ok).take(2).collect()))
}

#[tokio::test]
async fn a_peer_gives_what_it_has() {
    let content = stock(b"content");
    let open = open(&content);
    let kit = kit(&[open.address()], SECRET);
    let claim = Claim { peer: open.address().to_string(), digest: digest(), unix: Some(5) };
    assert_eq!(kit.peers()[0].text, "not asked yet");
    assert_eq!(ask(&kit, "latest").await.0, [claim]);
    assert_eq!(ask(&kit, "none").await.0, []);
    let manifest = kit.manifest(&repository(), &digest()).unwrap();
    assert_eq!((manifest.media_type.as_str(), &manifest.bytes[..]), ("text/plain", &b"content"[..]));
    for from in [0, 150_000, 200_000, 300_000] {
        let mut blob = kit.blob(&repository(), &digest(), from as u64, &[]).unwrap();
        assert_eq!(blob.total(), 200_000);
        let (mut bytes, mut chunk) = (Vec::new(), [0; 9_999]);
        loop {
            match blob.read(&mut chunk).unwrap() {
                0 => break,
                n => bytes.extend_from_slice(&chunk[..n]),
            }
        }
        assert_eq!(bytes, content.blob[from.min(200_000)..]);
    }
    assert_eq!(kit.peers()[0].text, "up");
}

#[tokio::test]
async fn a_wrong_manifest_costs_a_peer_its_place() {
    let content = stock(b"something else");
    let open = open(&content);
    let kit = kit(&[open.address()], SECRET);
    assert_eq!(kit.manifest(&repository(), &digest()), None);
    assert!(!kit.has_live_peer());
    let state = &kit.peers()[0];
    assert!(!state.up && state.text.contains("left out for 60 s: it sent sha256:"), "{}", state.text);
    let asked = content.asked.load(Ordering::SeqCst);
    assert_eq!(ask(&kit, "latest").await.0, []);
    assert_eq!(content.asked.load(Ordering::SeqCst), asked, "it was asked all the same");
}

#[tokio::test]
async fn another_secret_is_no_peer() {
    let content = stock(b"content");
    let open = open(&content);
    let kit = kit(&[open.address()], "another secret of the tests");
    assert_eq!(ask(&kit, "latest").await.0, []);
    assert!(kit.peers()[0].text.contains("its secret is another"), "{:?}", kit.peers());
    assert_eq!(content.asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_peer_that_hangs_is_waited_for_once_and_hides_nobody() {
    let content = stock(b"content");
    let open = open(&content);
    let (mute, _thread) = mute();
    let kit = kit(&[mute, open.address()], SECRET);
    let (claims, took) = ask(&kit, "latest").await;
    assert_eq!(claims.len(), 1);
    assert!(took >= Duration::from_millis(250), "{took:?}");
    assert!(took < budget::PEER_DEADLINE + LEEWAY, "{took:?}");
    // The deadline of the question and that of its thread are the same; the thread may be a moment behind.
    let asked = Instant::now();
    while kit.peers()[0].up {
        assert!(asked.elapsed() < LEEWAY, "a peer that said nothing is still asked");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (claims, took) = ask(&kit, "latest").await;
    assert_eq!(claims.len(), 1);
    assert!(took < budget::PEER_DEADLINE, "a peer that is left out was waited for: {took:?}");
    assert!(kit.peers()[0].text.contains("no answer in time"), "{:?}", kit.peers());
}

#[tokio::test]
async fn the_pause_of_a_dead_peer_grows_and_ends_with_an_answer() {
    let dead = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = dead.local_addr().unwrap();
    drop(dead);
    let kit = kit(&[address], SECRET);
    ask(&kit, "latest").await;
    let left_out = |seconds: &str| {
        let text = kit.peers()[0].text.clone();
        assert!(text.starts_with(&format!("left out for {seconds} s: connection refused")), "{text}");
    };
    left_out("1");
    assert!(!kit.has_live_peer());
    tokio::time::sleep(budget::PEER_PAUSE_MIN + Duration::from_millis(50)).await;
    assert!(kit.has_live_peer());
    ask(&kit, "latest").await;
    left_out("2");
    tokio::time::sleep(2 * budget::PEER_PAUSE_MIN + Duration::from_millis(50)).await;
    let Ok(_open) = listen(address, Watched::fixed(secret(SECRET)), stock(b"content")) else {
        return; // Another test was given the port.
    };
    assert_eq!(ask(&kit, "latest").await.0.len(), 1);
    assert_eq!(kit.peers()[0].text, "up");
}

#[test]
fn more_connections_than_there_are_places_are_closed() {
    let content = stock(b"content");
    let open = open(&content);
    let mut callers: Vec<TcpStream> =
        (0..=budget::KIT_CONNECTIONS_EACH).map(|_| TcpStream::connect(open.address()).unwrap()).collect();
    let last = callers.last_mut().unwrap();
    last.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    assert_eq!(last.read(&mut [0; 1]).unwrap(), 0, "one more was let in");
    drop(callers);
    let began = Instant::now();
    let kit = kit(&[open.address()], SECRET);
    while kit.manifest(&repository(), &digest()).is_none() {
        assert!(began.elapsed() < Duration::from_secs(20), "places were not given back");
        std::thread::sleep(Duration::from_millis(50));
    }
}
