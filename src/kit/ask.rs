//! Asking: every question within a bound, and no question to a peer that has just failed.

use super::wire::{Broken, PeerSession, Role};
use super::{Answer, Question};
use crate::budget;
use crate::config;
use crate::documents::{self, LargeAnswer};
use crate::files::Watched;
use crate::oci::{Digest, Platform, Repository, Tag};
use crate::sync::Mutex;
use crate::text::Secret;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, mpsc};

/// The other boards.
#[derive(Debug)]
pub struct Kit {
    peers: Vec<Arc<Peer>>,
}

/// A peer's answer about a tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The peer that claims it: its address, or the name of an upstream that is a Larder itself.
    pub peer: String,
    /// Its upstream's digest of the tag; the image is complete there.
    pub digest: Digest,
    /// When its upstream answered that, in seconds since 1970, if its clock could be trusted.
    pub unix: Option<u64>,
}

/// Media type, bytes, and the place in memory of a large one.
type SentManifest = (String, Vec<u8>, Option<LargeAnswer>);

/// A manifest from a peer, with the digest that was asked for.
#[derive(Debug, PartialEq)]
pub struct PeerManifest {
    /// The peer that sent it.
    pub peer: SocketAddr,
    /// Its media type, as the peer states it.
    pub media_type: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// For as long as the bytes are in memory.
    _place: Option<LargeAnswer>,
}

/// The state of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerState {
    /// Its address.
    pub address: SocketAddr,
    /// It is not left out.
    pub up: bool,
    /// In words.
    pub text: String,
}

#[derive(Debug)]
struct Peer {
    address: SocketAddr,
    secret: Arc<Watched<Secret<Vec<u8>>>>,
    state: Mutex<State>,
    tags: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct State {
    /// Failures since it last answered.
    failures: u32,
    /// It is left out until then.
    until: Option<Instant>,
    /// Its pause is over, and one question tries it while the others still leave it out.
    tried: bool,
    /// What the last failure was.
    cause: String,
    /// It has answered since the start.
    answered: bool,
}

impl State {
    fn is_left_out(&self) -> bool {
        !self.tried && self.until.is_some_and(|until| until > Instant::now())
    }
}

impl Kit {
    /// Gets ready to ask, without asking anybody.
    pub fn new(settings: &config::KitSettings) -> Kit {
        let secret = Arc::new(settings.watched_secret());
        let peer = |address: &SocketAddr| {
            Arc::new(Peer {
                address: *address,
                secret: Arc::clone(&secret),
                state: Mutex::default(),
                tags: Arc::new(Semaphore::new(budget::PEER_TAGS_MAX)),
            })
        };
        Kit { peers: settings.peers.iter().map(peer).collect() }
    }

    /// Whether there is a peer that is not left out just now.
    pub fn has_live_peer(&self) -> bool {
        let now = Instant::now();
        self.peers.iter().any(|peer| peer.state.lock().until.is_none_or(|until| until <= now))
    }

    /// The claims of the peers about a tag. All are asked at once, and a peer that has not answered within
    /// [`budget::PEER_DEADLINE`] is not waited for.
    pub async fn ask_tag(&self, repository: &Repository, tag: &Tag, platforms: &[Platform]) -> Vec<Claim> {
        let until = Instant::now() + budget::PEER_DEADLINE;
        let platforms = platforms.iter().take(budget::KIT_PLATFORMS_MAX).cloned().collect();
        let question =
            Arc::new(Question::Tag { repository: repository.clone(), tag: tag.clone(), platforms });
        // One answer from each.
        let (sender, mut answers) = mpsc::channel(self.peers.len().max(1));
        for peer in self.peers.iter().filter(|peer| peer.may_be_asked()) {
            let (peer, question, sender) = (Arc::clone(peer), Arc::clone(&question), sender.clone());
            tokio::spawn(async move {
                let place = Arc::clone(&peer.tags).acquire_owned();
                let Ok(Ok(place)) = tokio::time::timeout_at(until.into(), place).await else { return };
                let asked = Arc::clone(&peer);
                let begun = std::thread::Builder::new()
                    .name("ask peer".into())
                    .stack_size(budget::SMALL_STACK_BYTES)
                    .spawn(move || {
                        if let Some(claim) = asked.tag(&question, until) {
                            let _ = sender.try_send(claim);
                        }
                        drop(place);
                    });
                if let Err(e) = begun {
                    log::warn!("cannot start a thread to ask peer {}: {e}", peer.address);
                }
            });
        }
        drop(sender);
        let mut claims = Vec::new();
        while let Ok(Some(claim)) = tokio::time::timeout_at(until.into(), answers.recv()).await {
            claims.push(claim);
        }
        claims
    }

    /// A manifest that hashes to `digest`, from the first peer that has one. Blocks.
    pub fn manifest(&self, repository: &Repository, digest: &Digest) -> Option<PeerManifest> {
        let question = Question::Manifest { repository: repository.clone(), digest: digest.clone() };
        self.peers.iter().filter(|peer| peer.may_be_asked()).find_map(|peer| {
            let (media_type, bytes, place) = peer.note(peer.manifest(&question))??;
            let actual = Digest::of(digest.algorithm(), &bytes);
            if actual != *digest {
                peer.lied(&format!("it sent {actual} for manifest {digest}"));
                return None;
            }
            Some(PeerManifest { peer: peer.address, media_type, bytes, _place: place })
        })
    }

    /// A blob from byte `from` on, from the first peer that has it and is not in `without`. The caller has to hash it.
    /// Blocks.
    pub fn blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        from: u64,
        without: &[SocketAddr],
    ) -> Option<PeerBlob> {
        let question = Question::Blob { repository: repository.clone(), digest: digest.clone(), from };
        let asked = |peer: &&Arc<Peer>| !without.contains(&peer.address) && peer.may_be_asked();
        self.peers.iter().filter(asked).find_map(|peer| {
            let (session, total) = peer.note(peer.blob(&question))??;
            Some(PeerBlob { peer: Arc::clone(peer), session, total, left: total.saturating_sub(from) })
        })
    }

    /// The state of each peer.
    pub fn peers(&self) -> Vec<PeerState> {
        self.peers.iter().map(|peer| peer.describe(Instant::now())).collect()
    }
}

impl Peer {
    /// Whether it may be asked. After a pause one question tries it, and the others leave it out until that is answered.
    fn may_be_asked(&self) -> bool {
        let mut state = self.state.lock();
        let now = Instant::now();
        match state.until {
            None => true,
            Some(until) if until > now => false,
            Some(_) => {
                state.until = Some(now + budget::PEER_CONTENT_TIME);
                state.tried = true;
                true
            }
        }
    }

    fn tag(&self, question: &Question, until: Instant) -> Option<Claim> {
        match self.note(self.ask(question, until))? {
            (_, Answer::Tag { digest, unix, complete: true }) => {
                Some(Claim { peer: self.address.to_string(), digest, unix })
            }
            _ => None,
        }
    }

    fn manifest(&self, question: &Question) -> Result<Option<SentManifest>, Broken> {
        let (mut session, answer) = self.ask(question, Instant::now() + budget::PEER_CONTENT_TIME)?;
        let Answer::Manifest { media_type, size } = answer else { return Ok(None) };
        if size > budget::MANIFEST_BYTES_MAX {
            return Err(Broken::Speech(format!("it offers a manifest of {size} bytes")));
        }
        let place = if documents::is_large(size) {
            let place = LargeAnswer::wait("peers", Instant::now() + budget::PEER_CONTENT_TIME);
            // That no place is free is not the peer's fault.
            let Some(place) = place else { return Ok(None) };
            Some(place)
        } else {
            None
        };
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
        let (mut filled, until) = (0, Instant::now() + budget::PEER_STALL_TIME);
        while filled < bytes.len() {
            match session.receive_raw(&mut bytes[filled..], until)? {
                0 => return Err(Broken::Io(std::io::ErrorKind::UnexpectedEof.into())),
                n => filled += n,
            }
        }
        Ok(Some((media_type, bytes, place)))
    }

    fn blob(&self, question: &Question) -> Result<Option<(PeerSession, u64)>, Broken> {
        let (session, answer) = self.ask(question, Instant::now() + budget::PEER_CONTENT_TIME)?;
        let Answer::Blob { size } = answer else { return Ok(None) };
        Ok(Some((session, size)))
    }

    fn ask(&self, question: &Question, until: Instant) -> Result<(PeerSession, Answer), Broken> {
        let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let socket = TcpStream::connect_timeout(&self.address, left)?;
        let mut session = PeerSession::shake(socket, self.secret.current().reveal(), Role::Asker, until)?;
        session.send(question, until)?;
        let answer = session.receive(until)?;
        let answer = answer.ok_or_else(|| Broken::Io(std::io::ErrorKind::UnexpectedEof.into()))?;
        Ok((session, answer))
    }

    /// Remembers how a question ended.
    fn note<T>(&self, outcome: Result<T, Broken>) -> Option<T> {
        match outcome {
            Ok(value) => {
                let mut state = self.state.lock();
                // An answer that was under way when it was left out does not call it back.
                if !state.is_left_out() {
                    if state.failures > 0 {
                        log::info!("peer {} answers again", self.address);
                    }
                    *state = State { answered: true, ..State::default() };
                }
                Some(value)
            }
            Err(why) => {
                self.failed(&why.to_string());
                None
            }
        }
    }

    /// Leaves it out for longer than after the failure before.
    fn failed(&self, cause: &str) {
        let mut state = self.state.lock();
        // Questions that were under way together fail together; that is one failure.
        if state.is_left_out() {
            return;
        }
        let doubled = 2u32.saturating_pow(state.failures.min(16));
        let pause = (budget::PEER_PAUSE_MIN * doubled).min(budget::PEER_PAUSE_MAX);
        state.failures += 1;
        state.until = Some(Instant::now() + pause);
        state.tried = false;
        cause.clone_into(&mut state.cause);
        let level = if state.failures == 1 { log::Level::Warn } else { log::Level::Debug };
        log::log!(level, "peer {} is left out for {} s: {cause}", self.address, pause.as_secs());
    }

    /// Leaves it out for as long as any: it gave what it cannot have had.
    fn lied(&self, what: &str) {
        log::warn!("peer {} sent wrong content and is left out: {what}", self.address);
        let mut state = self.state.lock();
        state.failures = state.failures.saturating_add(1);
        state.until = Some(Instant::now() + budget::PEER_PAUSE_MAX);
        state.tried = false;
        what.clone_into(&mut state.cause);
    }

    fn describe(&self, now: Instant) -> PeerState {
        let state = self.state.lock();
        let paused = state.until.map(|until| until.saturating_duration_since(now));
        let text = match paused {
            Some(pause) if !pause.is_zero() => {
                format!("left out for {} s: {}", pause.as_secs() + 1, state.cause)
            }
            Some(_) => format!("to be tried again: {}", state.cause),
            None if state.answered => "up".to_owned(),
            None => "not asked yet".to_owned(),
        };
        PeerState { address: self.address, up: paused.is_none(), text }
    }
}

/// A blob on its way from a peer.
#[derive(Debug)]
pub struct PeerBlob {
    peer: Arc<Peer>,
    session: PeerSession,
    total: u64,
    left: u64,
}

impl PeerBlob {
    /// The peer that sends it.
    pub fn peer(&self) -> SocketAddr {
        self.peer.address
    }

    /// The size of the blob in bytes, as the peer states it.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Reads what has come, at least a byte; 0 is the end, at which all of [`PeerBlob::total`] has been read.
    ///
    /// # Errors
    /// What went wrong, in words; the peer is then left out for a while.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, String> {
        let most = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        if most == 0 {
            return Ok(0);
        }
        let read = self.session.receive_raw(&mut buffer[..most], Instant::now() + budget::PEER_STALL_TIME);
        let failure = match read {
            Ok(0) => Broken::Io(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                self.left -= n as u64;
                return Ok(n);
            }
            Err(e) => Broken::Io(e),
        };
        let cause = format!("in the middle of a blob: {failure}");
        self.peer.failed(&cause);
        Err(format!("peer {}: {cause}", self.peer.address))
    }

    /// The bytes were not what they should have been.
    pub fn is_wrong(&self, what: &str) {
        self.peer.lied(what);
    }
}
