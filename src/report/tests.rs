//! The report on small stores, with a running server and without.

use super::*;
use crate::image::tests::{Board, repository, tag};

/// A server of which one upstream is down.
struct Running;

impl Live for Running {
    fn upstream(&self, name: &RegistryName) -> Option<(UpstreamState, u64)> {
        let since = std::time::Instant::now();
        let link = match name.as_str() {
            "docker.io" => LinkState::Down { since, cause: "refused".into(), restored: false },
            _ => LinkState::Up,
        };
        Some((UpstreamState::Live(link, format!("{name} in words")), 7))
    }

    fn peers(&self) -> Vec<PeerReport> {
        vec![PeerReport { address: "10.0.0.2:5002".into(), up: Some(false), state: Some("left out".into()) }]
    }

    fn fills(&self) -> (u64, u64) {
        (3, 1)
    }

    fn counts(&self) -> CountReport {
        CountReport { evicted_bytes: 9, ..CountReport::default() }
    }

    fn busy(&self) -> Busy {
        Busy::default()
    }
}

#[test]
fn a_snapshot_says_what_the_server_knows_and_without_one_what_is_remembered() {
    let board = Board::new("[disk]\nmax = \"1GiB\"\n");
    board.store.set_note("down/docker.io", Some("no route")).unwrap();
    let running = Snapshot::take(&board.config, &board.store, Some(&Running));
    let names: Vec<&str> = running.upstreams.iter().map(|upstream| upstream.name.as_str()).collect();
    assert!(names.contains(&"docker.io") && names.is_sorted(), "{names:?}");
    for upstream in &running.upstreams {
        assert_eq!((upstream.is_down(), upstream.bytes), (upstream.name.as_str() == "docker.io", 7));
    }
    assert_eq!((running.fills, running.fills_parked, running.counts.evicted_bytes), (3, 1, 9));
    assert_eq!((running.index, running.max_bytes), (IndexReport::Ready, Some(1 << 30)));
    assert_eq!(running.peers[0].up, Some(false));
    let stopped = Snapshot::take(&board.config, &board.store, None);
    for upstream in &stopped.upstreams {
        match (&upstream.state, upstream.name.as_str()) {
            (UpstreamState::WasDown(cause), "docker.io") => assert_eq!(cause, "no route"),
            (UpstreamState::Unknown, name) => assert_ne!(name, "docker.io"),
            other => panic!("{other:?}"),
        }
        assert!(!upstream.is_down() && upstream.bytes == 0);
    }
    assert!(stopped.peers.is_empty() && stopped.fills == 0);
}

#[test]
fn the_look_at_every_image_is_used_again_until_the_store_changes() {
    let board = Board::new("");
    let cache = ImageCache::default();
    let report = |busy: Busy| cache.report(&board.store, &board.config, busy).unwrap();
    assert_eq!(report(Busy::default()).next_to_go, None);
    let image = board.image("app", &[&board.blob("layer", 10)]);
    board.tag("app", "latest", &image, true);
    let missing = board.blob("missing", 10);
    board.tag("app", "next", &board.image("app", &[&missing]), false);
    board.remove_by_hand(&missing);
    let first = report(Busy::default());
    assert_eq!((first.complete, first.partial, first.blobs), (1, 1, 3));
    let (what, bytes) = first.next_to_go.clone().unwrap();
    assert!(what.starts_with("docker.io/lab/app:latest (sha256:") && bytes > 10, "{what}");
    // A use is no change: what is said is at most a few seconds old.
    board.store.touch(&image);
    assert_eq!(report(Busy::default()), first);
    let busy = Busy { fills: [image.clone()].into(), ..Busy::default() };
    let (what, _) = report(busy).next_to_go.unwrap();
    assert!(what.starts_with("docker.io/lab/app:next ("), "what is being fetched stays: {what}");
    board.store.tag_pin(&repository("app"), &tag("latest"), true).unwrap();
    let (what, _) = report(Busy::default()).next_to_go.unwrap();
    assert!(what.starts_with("docker.io/lab/app:next ("), "{what}");
}
