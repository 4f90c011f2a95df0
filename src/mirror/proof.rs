//! Proofs: what the registry of an upstream whose login only lifts a rate limit shows to everybody.
//!
//! The registry is asked without any login, by HEAD and by digest, which it does not meter. An answer for a root is one for
//! all that the root names. It is remembered for [`PROOF_AGE_MAX`], and counts on for as long as the registry cannot be asked
//! again; a refusal of the registry ends it at once, for what is not here yet, with all that it showed. A refusal counts on in
//! the same way, until the registry shows the root again or the process ends. What could not be asked is no refusal and is
//! not remembered. Several that ask the same at a time wait for one answer; a question that gave way to others has none, and
//! one of those who wait asks again. All of this blocks and runs on lanes.
//!
//! Content of unknown origin becomes public by the same question.

use super::access::View;
use super::context::{Context, outage};
use crate::auth::AccessClass;
use crate::budget::{NAMING_MANIFESTS_MAX, PROOF_AGE_MAX, PROOFS_ASKED_MAX, PROOFS_MAX};
use crate::fetch::{Failure, Upstream};
use crate::image;
use crate::oci::{Digest, Manifest, Repository};
use crate::store::StoreError;
use crate::sync::{Condvar, Mutex, turn};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

type Root = (Repository, Digest);

/// Proofs, and the questions for them that are under way.
pub(super) struct Proofs {
    context: Arc<Context>,
    known: Mutex<KnownProofs>,
    asked: Mutex<HashMap<Root, Arc<Question>>>,
}

/// A question under way, and how it ended.
#[derive(Default)]
struct Question {
    end: Mutex<Option<QuestionEnd>>,
    ended: Condvar,
}

#[derive(Clone)]
enum QuestionEnd {
    Answered(Result<(), Failure>),
    /// It gave way to others: who waits for it asks again.
    GaveWay,
}

/// What the registry said of a root last.
enum Proof {
    /// It is shown, since `at`. `by`: the root that was asked about and names it.
    Shown { at: Instant, by: Option<Digest> },
    /// It is public here, and is not shown any more.
    Refused { at: Instant },
}

/// What was answered to what.
#[derive(Default)]
struct KnownProofs(HashMap<Root, Proof>);

impl KnownProofs {
    fn is_fresh(&self, root: &Root, now: Instant) -> bool {
        self.shown_at(root).is_some_and(|at| now.saturating_duration_since(at) < PROOF_AGE_MAX)
    }

    fn shown_at(&self, root: &Root) -> Option<Instant> {
        match self.0.get(root)? {
            Proof::Shown { at, .. } => Some(*at),
            Proof::Refused { .. } => None,
        }
    }

    fn is_refused(&self, root: &Root) -> bool {
        matches!(self.0.get(root), Some(Proof::Refused { .. }))
    }

    /// Remembers a proof, in the place of another if there are too many: the oldest, a refusal last, since what is shown can
    /// be asked about again.
    fn insert(&mut self, root: Root, proof: Proof) {
        if self.0.len() >= PROOFS_MAX && !self.0.contains_key(&root) {
            let rank = |proof: &Proof| match proof {
                Proof::Shown { at, .. } => (false, *at),
                Proof::Refused { at } => (true, *at),
            };
            let first = self.0.iter().min_by_key(|(_, proof)| rank(proof)).map(|(root, _)| root.clone());
            first.and_then(|first| self.0.remove(&first));
        }
        self.0.insert(root, proof);
    }

    /// Whether one of those that name a root is shown, so that the root is. Its proof is as old as theirs.
    fn inherit(&mut self, root: &Root, parents: &[Digest], now: Instant) -> bool {
        let of = |parent: &Digest| (root.0.clone(), parent.clone());
        let fresh = parents.iter().filter(|parent| self.is_fresh(&of(parent), now));
        let Some(parent) = fresh.max_by_key(|parent| self.shown_at(&of(parent))) else { return false };
        let Some(Proof::Shown { at, by }) = self.0.get(&of(parent)) else { return false };
        let (at, by) = (*at, by.clone().or_else(|| Some(parent.clone())));
        self.insert(root.clone(), Proof::Shown { at, by });
        true
    }

    /// A root is shown no more, and nothing is because of it. `public`: it is public here, so that this is remembered.
    fn refuse(&mut self, root: &Root, public: bool, now: Instant) {
        self.0.retain(|(repository, _), proof| {
            let by_it = matches!(proof, Proof::Shown { by: Some(by), .. } if *by == root.1);
            !by_it || *repository != root.0
        });
        match public {
            true => self.insert(root.clone(), Proof::Refused { at: now }),
            false => drop(self.0.remove(root)),
        }
    }
}

impl Proofs {
    pub(super) fn new(context: Arc<Context>) -> Proofs {
        Proofs { context, known: Mutex::default(), asked: Mutex::default() }
    }

    /// The class of a manifest that is fetched for this view. What everybody is shown and is here already is public from now
    /// on, with all that it names.
    ///
    /// # Errors
    /// Why it is not shown to everybody, for who may see nothing else.
    pub(super) fn manifest_class(
        &self,
        upstream: &Upstream,
        view: &View,
        digest: &Digest,
    ) -> Result<AccessClass, Failure> {
        let Some(anonymous) = upstream.anonymous() else {
            self.ask_about_unproven(upstream, view, digest);
            return Ok(self.context.class_of(upstream.name()));
        };
        match self.manifest_shown(anonymous, view, digest) {
            Ok(()) => Ok(AccessClass::Public),
            // What gave way is asked again, and is nothing until then.
            Err(_) if view.clearance.private && !turn::is_called_off() => Ok(AccessClass::Private),
            Err(failure) => Err(failure),
        }
    }

    /// Whether the registry shows a manifest to everybody, by itself or because it shows what names it.
    ///
    /// # Errors
    /// `Missing` and `Denied`: it does not. Else it could not be asked, and is not known to have shown it before.
    pub(super) fn manifest_shown(
        &self,
        anonymous: &Upstream,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<(), Failure> {
        let root = (repository.clone(), digest.clone());
        let now = Instant::now();
        if !self.known.lock().is_fresh(&root, now) {
            let parents = self.named_by(repository, digest);
            let by_parent = self.known.lock().inherit(&root, &parents, now);
            if !by_parent {
                self.ask(anonymous, root)?;
            }
        }
        self.open(repository, digest, true);
        Ok(())
    }

    /// Whether the registry shows everybody a manifest that names this blob. If the blob is here it is public from now on.
    ///
    /// # Errors
    /// The registry could not be asked, and nothing is known of what names it.
    pub(super) fn blob_shown(
        &self,
        anonymous: &Upstream,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<bool, Failure> {
        let parents = self.named_by(repository, digest);
        let root = |parent: &Digest| (repository.clone(), parent.clone());
        let fresh = {
            let (known, now) = (self.known.lock(), Instant::now());
            parents.iter().find(|parent| known.is_fresh(&root(parent), now)).cloned()
        };
        let (mut shown, mut unasked) = (fresh, None::<Failure>);
        for parent in &parents {
            if shown.is_some() {
                break;
            }
            // Who could not be asked about one is not asked about the next.
            match unasked.clone().map_or_else(|| self.ask(anonymous, root(parent)), Err) {
                Ok(()) => shown = Some(parent.clone()),
                Err(Failure::Missing { .. } | Failure::Denied { .. }) => {}
                Err(failure) if turn::is_called_off() => return Err(failure),
                Err(_) if self.counts_on(repository, parent) => shown = Some(parent.clone()),
                Err(failure) => unasked = Some(failure),
            }
        }
        match (shown, unasked) {
            (Some(parent), _) => {
                self.open(repository, &parent, true);
                Ok(true)
            }
            (None, Some(failure)) => Err(failure),
            (None, None) => Ok(false),
        }
    }

    /// Whether a manifest that is public here counts as shown while the registry cannot be asked: it was shown, maybe before
    /// this process began, and neither it nor what names it was refused since.
    fn counts_on(&self, repository: &Repository, manifest: &Digest) -> bool {
        let root = |digest: &Digest| (repository.clone(), digest.clone());
        let (naming, public) = (self.named_by(repository, manifest), self.is_public(repository));
        let known = self.known.lock();
        let is_shown = |digest: &Digest| known.shown_at(&root(digest)).is_some();
        let was_refused = naming.iter().any(|parent| known.is_refused(&root(parent)))
            && !naming.iter().any(is_shown)
            || known.is_refused(&root(manifest));
        !was_refused && (public || is_shown(manifest))
    }

    /// Asks, or waits for the answer to who asks already.
    fn ask(&self, anonymous: &Upstream, root: Root) -> Result<(), Failure> {
        self.ask_by(root, |(repository, digest)| {
            let down = anonymous.link().is_known_down().then(|| outage(anonymous));
            down.map_or_else(|| anonymous.shows(&repository.name, digest), Err)
        })
    }

    fn ask_by(&self, root: Root, shows: impl FnOnce(&Root) -> Result<(), Failure>) -> Result<(), Failure> {
        let question = loop {
            let others = {
                let mut asked = self.asked.lock();
                match asked.get(&root).cloned() {
                    Some(others) => others,
                    None => {
                        let question = Arc::<Question>::default();
                        asked.insert(root.clone(), Arc::clone(&question));
                        break question;
                    }
                }
            };
            if let QuestionEnd::Answered(answer) = others.wait() {
                return answer;
            }
        };
        let detail = format!("{}: the question failed", root.0.registry);
        let end = QuestionEnd::Answered(Err(Failure::Wrong { detail }));
        let mut asking = Asking { proofs: self, root, question, end };
        let answer = shows(&asking.root);
        let unasked = matches!(answer, Err(Failure::Unreachable { .. } | Failure::Wrong { .. }));
        if unasked && turn::is_called_off() {
            asking.end = QuestionEnd::GaveWay;
            return answer;
        }
        let answer = self.judge(&asking.root, answer);
        asking.end = QuestionEnd::Answered(answer.clone());
        answer
    }

    /// What an answer comes to, by what is known.
    fn judge(&self, root: &Root, answer: Result<(), Failure>) -> Result<(), Failure> {
        let now = Instant::now();
        match &answer {
            Ok(()) => self.known.lock().insert(root.clone(), Proof::Shown { at: now, by: None }),
            Err(Failure::Missing { .. } | Failure::Denied { .. }) => {
                let public = self.is_public_here(root);
                self.known.lock().refuse(root, public, now);
            }
            // The last proof counts.
            Err(Failure::Unreachable { .. } | Failure::Wrong { .. })
                if self.known.lock().shown_at(root).is_some() =>
            {
                return Ok(());
            }
            Err(Failure::Unreachable { .. } | Failure::Wrong { .. }) => {}
        }
        answer
    }

    /// Whether a root is of what would be served to everybody if the registry could not be asked.
    fn is_public_here(&self, (repository, digest): &Root) -> bool {
        let public = self.context.store.open_blob(digest);
        public.is_ok_and(|blob| blob.is_some_and(|blob| blob.is_public()))
            && self.context.known_link(repository, digest).is_ok_and(|link| link.is_some())
    }

    /// The public manifests of a repository that name some content, newest first, so many as are asked about.
    fn named_by(&self, repository: &Repository, digest: &Digest) -> Vec<Digest> {
        let store = &self.context.store;
        let Ok(mut manifests) = store.manifests(repository) else { return Vec::new() };
        manifests.sort_by_key(|manifest| std::cmp::Reverse(manifest.n));
        manifests.truncate(NAMING_MANIFESTS_MAX);
        let names = |bytes: &[u8]| {
            let parsed = Manifest::parse(bytes, None);
            parsed.is_ok_and(|manifest| manifest.children.iter().any(|child| child.digest == *digest))
        };
        let naming = manifests.into_iter().map(|manifest| manifest.digest).filter(|manifest| {
            let public =
                store.open_blob(manifest).is_ok_and(|blob| blob.is_some_and(|blob| blob.is_public()));
            public && store.with_document(manifest, names).is_ok_and(|named| named == Some(true))
        });
        naming.take(PROOFS_ASKED_MAX).collect()
    }

    fn is_public(&self, repository: &Repository) -> bool {
        self.context.store.repository_class(repository).is_ok_and(|class| class == Some(AccessClass::Public))
    }

    /// Asks about a manifest of unknown origin that is here.
    fn ask_about_unproven(&self, upstream: &Upstream, repository: &Repository, digest: &Digest) {
        let public = self.context.class_of(upstream.name()) == AccessClass::Public;
        let here = self.context.store.open_blob(digest);
        let unproven = here.is_ok_and(|blob| blob.is_some_and(|blob| blob.class == AccessClass::Unproven));
        let belongs = || {
            let link = self.context.known_link(repository, digest);
            link.is_ok_and(|link| link.is_some_and(|link| link.held))
        };
        if public && unproven && belongs() && self.ask(upstream, (repository.clone(), digest.clone())).is_ok()
        {
            self.open(repository, digest, false);
        }
    }

    /// Makes public what of a manifest's closure is here and belongs to the repository.
    fn open(&self, repository: &Repository, root: &Digest, private_too: bool) {
        let opened: Result<(), StoreError> = image::open_to_everybody(
            &self.context.store,
            &self.context.config.now(),
            repository,
            root,
            private_too,
        );
        match opened {
            Err(problem) if !problem.is_without_index() => {
                log::warn!("{repository}@{root} is public, which could not be saved: {problem}");
            }
            _ => {}
        }
    }
}

impl Question {
    fn wait(&self) -> QuestionEnd {
        let mut end = self.end.lock();
        loop {
            if let Some(end) = &*end {
                return end.clone();
            }
            end = self.ended.wait(end);
        }
    }
}

/// Stands for a question under way; it ends whatever becomes of the thread that asks.
struct Asking<'a> {
    proofs: &'a Proofs,
    root: Root,
    question: Arc<Question>,
    end: QuestionEnd,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        // Who asks from now on does not find it any more.
        self.proofs.asked.lock().remove(&self.root);
        *self.question.end.lock() = Some(self.end.clone());
        self.question.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::tests::Board;
    use crate::mirror::context::testing::context;
    use crate::sync::turn::in_turn;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::channel;
    use std::time::Duration;

    fn root(n: usize) -> Root {
        let digest = format!("sha256:{n:064x}").parse().unwrap();
        ("docker.io/lab/app".parse().unwrap(), digest)
    }

    fn shown(at: Instant) -> Proof {
        Proof::Shown { at, by: None }
    }

    #[test]
    fn a_proof_is_remembered_for_a_day_and_the_oldest_makes_way() {
        let (mut known, now) = (KnownProofs::default(), Instant::now());
        known.insert(root(0), shown(now));
        assert!(known.is_fresh(&root(0), now + PROOF_AGE_MAX - Duration::from_secs(1)));
        assert!(!known.is_fresh(&root(0), now + PROOF_AGE_MAX) && known.0.contains_key(&root(0)));
        for n in 1..=PROOFS_MAX {
            known.insert(root(n), shown(now + Duration::from_secs(1)));
        }
        assert_eq!(known.0.len(), PROOFS_MAX);
        assert!(!known.0.contains_key(&root(0)) && known.0.contains_key(&root(PROOFS_MAX)));
    }

    #[test]
    fn a_refusal_ends_what_the_root_showed_and_makes_way_last() {
        let (mut known, now) = (KnownProofs::default(), Instant::now());
        let digests = |n: usize| [root(n).1];
        known.insert(root(0), shown(now));
        known.insert(root(9), shown(now));
        for (parent, child) in [(0, 1), (1, 2), (9, 3)] {
            assert!(known.inherit(&root(child), &digests(parent), now));
        }
        assert!(!known.inherit(&root(4), &digests(7), now) && !known.0.contains_key(&root(4)));
        known.refuse(&root(0), true, now);
        for gone in 0..3 {
            assert!(!known.is_fresh(&root(gone), now), "{gone}");
        }
        assert!(known.is_fresh(&root(3), now) && known.is_fresh(&root(9), now));
        assert!(!known.inherit(&root(1), &digests(0), now), "what is refused shows nothing");
        known.refuse(&root(9), false, now);
        assert!(!known.0.contains_key(&root(9)) && !known.0.contains_key(&root(3)));
        for n in 10..10 + 2 * PROOFS_MAX {
            known.insert(root(n), shown(now + Duration::from_secs(1)));
        }
        assert!(known.0.len() == PROOFS_MAX && known.is_refused(&root(0)));
        known.insert(root(0), shown(now));
        assert!(known.is_fresh(&root(0), now) && !known.is_refused(&root(0)));
    }

    /// Proofs where the registry's login only lifts a rate limit.
    fn proofs() -> (Board, Proofs) {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let file = std::env::temp_dir().join(format!("larder-proofs-{}-{n}", std::process::id()));
        std::fs::write(&file, "s3cret").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        let login = format!("username = \"alice\"\npassword_file = {file:?}\naccess = \"public\"\n");
        let section = format!("[upstream.\"docker.io\"]\nurl = \"http://127.0.0.1:9\"\n{login}");
        let (board, context) = context(&section);
        std::fs::remove_file(&file).unwrap();
        (board, Proofs::new(context))
    }

    #[test]
    fn what_a_parent_shows_is_as_old_as_its_proof() {
        let (board, proofs) = proofs();
        let upstream = proofs.context.upstreams.find(&"docker.io".parse().unwrap()).unwrap();
        let child = board.image("app", &[&board.blob("layer", 10)]);
        let parent = board.index("app", &[&child]);
        let repository: Repository = "docker.io/lab/app".parse().unwrap();
        let of = |digest: &Digest| (repository.clone(), digest.clone());
        let at = Instant::now();
        proofs.known.lock().insert(of(&parent), shown(at));
        proofs.manifest_shown(upstream.anonymous().unwrap(), &repository, &child).unwrap();
        let known = proofs.known.lock();
        let (last, end) = (at + PROOF_AGE_MAX - Duration::from_secs(1), at + PROOF_AGE_MAX);
        for root in [of(&parent), of(&child)] {
            assert!(known.is_fresh(&root, last) && !known.is_fresh(&root, end), "{root:?}");
        }
    }

    #[test]
    fn a_question_that_gave_way_is_no_answer_for_who_joined_it() {
        let (_board, proofs) = proofs();
        let (root, long, asked) = (root(1), Duration::from_secs(20), AtomicUsize::new(0));
        let ask = || {
            proofs.ask_by(root.clone(), |_| {
                asked.fetch_add(1, Ordering::Relaxed);
                Ok(())
            })
        };
        std::thread::scope(|scope| {
            let (begins, began) = channel();
            let (give_way, must_end) = channel();
            let (asked_first, question) = (&proofs, root.clone());
            let first = move || {
                asked_first.ask_by(question, |_| {
                    begins.send(()).unwrap();
                    must_end.recv_timeout(long).unwrap();
                    Err(Failure::Wrong { detail: "it gave way".into() })
                })
            };
            let first = scope.spawn(move || in_turn(|_| true, first));
            began.recv_timeout(long).unwrap();
            let joined: Vec<_> = (0..3).map(|_| scope.spawn(ask)).collect();
            // The list, who asks, and who joined.
            let who = || proofs.asked.lock().get(&root).map(Arc::strong_count);
            let since = Instant::now();
            while who() != Some(5) {
                assert!(since.elapsed() < long, "{:?}", who());
                std::thread::yield_now();
            }
            assert_eq!(asked.load(Ordering::Relaxed), 0, "they wait");
            give_way.send(()).unwrap();
            let (answer, called_off) = first.join().unwrap();
            assert!(answer.is_err() && called_off);
            joined.into_iter().for_each(|joined| joined.join().unwrap().unwrap());
        });
        assert!((1..=3).contains(&asked.load(Ordering::Relaxed)), "whoever is first asks again");
        assert!(proofs.asked.lock().is_empty());
    }
}
