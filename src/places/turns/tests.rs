//! Tests of turns: the kept places, who is first, what gives way; and a model of what comes and goes.

use super::*;
use std::rc::Rc;

/// A card of the model: it is awaited unless its client is none.
#[derive(Debug, Clone)]
struct Card(Rc<Asking>);

/// One that had a turn.
struct Again(Card);

impl Waits for Again {
    fn asking(&self) -> &Asking {
        self.0.asking()
    }

    fn is_awaited(&self) -> bool {
        self.0.is_awaited()
    }

    fn had_turn(&self) -> bool {
        true
    }
}

impl Waits for Card {
    fn asking(&self) -> &Asking {
        &self.0
    }

    fn is_awaited(&self) -> bool {
        !self.0.clients.lock().waiting.is_empty()
    }
}

impl PartialEq for Card {
    fn eq(&self, other: &Card) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }
}

/// `registry/repository@client`, the client a number; without one nobody waits.
fn card(text: &str) -> Card {
    let (name, by) = text.split_once('@').map_or((text, None), |(name, by)| (name, by.parse().ok()));
    let (registry, repository) = name.split_once('/').unwrap();
    let by = by.map(|by: u8| IpAddr::from([10, 0, 0, by]));
    Card(Rc::new(Asking::new(registry, repository, by)))
}

/// How many places each of these takes that takes all it can, in their order.
fn greedy(mut allotment: Allotment, texts: &[&str]) -> Vec<usize> {
    let all = |text: &&str| {
        let mut count = 0;
        while allotment.may_take(&card(text).0) {
            allotment.take(&card(text).0);
            count += 1;
        }
        count
    };
    texts.iter().map(all).collect()
}

#[test]
fn nobody_takes_the_last_place_but_who_has_none() {
    for (places, kept) in [(1, 0), (2, 1), (4, 1), (15, 1), (16, 2), (64, 8), (1_024, 128)] {
        assert_eq!(eighth(places), kept, "{places}");
        assert_eq!(greedy(Allotment::of_registry(places), &["x/a@1"]), [places - kept], "{places}");
    }
    let all = ["evil/one@1", "evil/two@1", "evil/three@1", "good/b@1", "third/c@1"];
    assert_eq!(greedy(Allotment::new(4), &all), [2, 1, 0, 1, 0]);
    assert_eq!(greedy(Allotment::of_streams(4), &all), [3, 1, 0, 1, 0]);
    assert_eq!(greedy(Allotment::of_streams(1), &all), [1, 0, 0, 1, 0]);
    assert_eq!(greedy(Allotment::of_streams(2), &all), [1, 1, 0, 1, 0]);
    assert_eq!(greedy(Allotment::new(1), &all), [1, 0, 0, 0, 0]);
    assert_eq!(greedy(Allotment::of_streams(63), &all), [49, 1, 1, 1, 1]);
    assert_eq!(greedy(Allotment::unshared(3), &["x/a"]), [3]);
}

#[test]
fn of_a_table_a_client_leaves_places_to_other_clients_and_a_repository_too() {
    let clients = ["x/a@1", "x/b@1", "x/c@1", "x/a@2", "x/d@2", "x/a@3", "x/d@4"];
    let taken = greedy(Allotment::of_table_of_registry(64), &clients);
    assert_eq!(taken, [47, 1, 1, 1, 1, 1, 1], "as long as there are many each new one finds some");
    // Each that can takes one.
    let each = |texts: Vec<String>| {
        let mut allotment = Allotment::of_table_of_registry(64);
        for asking in texts.iter().map(|text| card(text).0) {
            if allotment.may_take(&asking) {
                allotment.take(&asking);
            }
        }
        allotment
    };
    let one = each((0..100).map(|n| format!("x/{n}@1")).collect());
    assert_eq!(one.taken, 55, "whatever it asks for");
    assert!(one.may_take(&card("x/0@2").0), "another client, though the repository has one");
    let other = each((0..100).map(|n| format!("x/a@{n}")).collect());
    assert_eq!(other.taken, 56, "whoever asks for it");
    assert!(other.may_take(&card("x/b@200").0) && !other.may_take(&card("x/a@200").0));
    assert_eq!(greedy(Allotment::of_table(1_024), &["x/a@1", "y/a@1"]), [658, 1]);
}

#[test]
fn who_joins_counts_if_it_has_less() {
    let mut turns = Turns::new(Allotment::of_registry(4));
    for n in 0..6 {
        turns.push(card(&format!("x/{n}@1")));
    }
    let shared = card("x/shared@1");
    turns.push(shared.clone());
    let running: Vec<Card> = std::iter::from_fn(|| turns.take_next()).collect();
    assert_eq!(running.len(), 4);
    shared.0.join(Some([10, 0, 0, 2].into()));
    turns.done(running[0].asking());
    assert!(turns.is_turn_of(|first| *first == shared), "the other client has none");
}

#[test]
fn what_runs_gives_way_as_it_must() {
    let mut turns = Turns::new(Allotment::of_registry(3));
    let running = ["x/a@1", "x/b@1", "x/c@1"].map(card);
    running.iter().for_each(|item| turns.push(item.clone()));
    assert!((0..3).all(|_| turns.take_next().is_some()));
    assert!(!turns.must_make_way(&running[0], true, true), "nobody waits");
    turns.push(card("x/d"));
    assert!(!turns.must_make_way(&running[0], true, true), "nobody waits for that");
    turns.push(card("x/d@1"));
    assert!(!turns.must_make_way(&running[0], true, false), "its client has as many");
    assert!(turns.must_make_way(&running[0], true, true), "it is slow, and the repository has none");
    assert!(!turns.must_make_way(&running[1], true, true), "one is enough");
    turns.done(running[0].asking());
    assert!(turns.take_next().is_some());
    turns.push(card("x/e@2"));
    assert!(turns.must_make_way(&running[1], true, false), "another client has none");
    turns.done(running[1].asking());
    assert!(turns.is_turn_of(|first| first.0.repository == "e"));
    assert!(turns.take_next().is_some());
    turns.push(card("x/f@2"));
    assert!(!turns.must_make_way(&running[2], true, false), "that has one now");
    // Where all are slow they end in their second turn, and what is new is let by.
    let mut turns = Turns::new(Allotment::of_registry(1));
    turns.push(Again(card("x/a@1")));
    let again = turns.take_next().unwrap();
    turns.push(Again(card("x/b@1")));
    assert!(!turns.must_make_way(&again, true, true));
    assert!(!turns.must_make_way(&again.0, true, true), "nor in its first: the other has had one");
    let mut turns = Turns::new(Allotment::of_registry(2));
    let idle = card("x/a");
    turns.push(idle.clone());
    assert!(turns.take_next().is_some());
    turns.push(card("x/a@1"));
    assert!(turns.must_make_way(&idle, false, false), "nobody waits for what runs");
    assert!(!turns.take_at_once(&card("x/b@2").0) || !turns.must_make_way(&idle, false, false));
}

/// Numbers that are the same in each run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % most
    }

    fn card(&mut self) -> Card {
        let (registry, repository, by) = (self.below(3), self.below(5), self.below(4));
        if by == 0 {
            card(&format!("r{registry}/{repository}"))
        } else {
            card(&format!("r{registry}/{repository}@{by}"))
        }
    }
}

/// What of the kept places is left for others after a take, by what the taker held before.
fn check_kept(turns: &Turns<Card>, before: HeldPlaces) {
    let slots = &turns.slots;
    let held =
        [(before.0, slots.kept.registry), (before.1, slots.kept.client), (before.2, slots.kept.repository)];
    let left: usize = held.into_iter().filter(|(held, _)| *held > 0).map(|(_, kept)| kept).sum();
    assert!(slots.taken <= slots.places && slots.free() >= left, "{before:?} left {}", slots.free());
}

#[test]
fn whatever_comes_and_goes_the_rules_hold() {
    for seed in 0..24 {
        let mut dice = Dice(seed);
        let places = 1 + usize::try_from(dice.below(24)).unwrap();
        let slots = match seed % 4 {
            0 => Allotment::new(places),
            1 => Allotment::of_registry(places),
            2 => Allotment::of_table(places),
            _ => Allotment::unshared(places),
        };
        let (mut turns, mut running) = (Turns::new(slots), Vec::<Card>::new());
        assert!(turns.slots.may_take(&dice.card().0), "an idle pool refuses nobody");
        for _ in 0..200 {
            match dice.below(4) {
                0 | 1 if turns.waiting.len() < 30 => turns.push(dice.card()),
                2 if !running.is_empty() => {
                    let at = usize::try_from(dice.below(running.len() as u64)).unwrap();
                    turns.done(running.swap_remove(at).asking());
                }
                _ => {
                    let slow: Vec<_> = running
                        .iter()
                        .filter(|item| turns.must_make_way(*item, true, true))
                        .cloned()
                        .collect();
                    assert!(slow.len() <= 1);
                    for item in slow {
                        running.retain(|other| *other != item);
                        turns.done(item.asking());
                        assert!(
                            turns.first().is_some_and(|(_, (unawaited, ..))| !unawaited),
                            "for one that waits"
                        );
                        turns.push(item);
                    }
                }
            }
            while let Some((at, (_, (registry, client), _, repository))) = turns.first() {
                let before = (registry, client, repository);
                let item = turns.waiting[at].clone();
                assert!(turns.take_next() == Some(item.clone()));
                check_kept(&turns, before);
                running.push(item);
            }
            assert_eq!(turns.slots.taken, running.len());
        }
        running.drain(..).for_each(|item| turns.done(item.asking()));
        assert!(turns.slots.taken == 0 && turns.slots.registries.is_empty(), "what was taken is given back");
    }
}

#[test]
fn nobody_that_waits_starves_among_those_that_never_end() {
    for seed in 0..10 {
        let mut dice = Dice(seed);
        let mut turns =
            Turns::new(if seed % 2 == 0 { Allotment::of_registry(4) } else { Allotment::of_streams(4) });
        // One client, one registry, many repositories that drip; and new ones come all the time.
        (0..40).for_each(|n| turns.push(card(&format!("x/drip{n}@9"))));
        let mut running: Vec<Card> = std::iter::from_fn(|| turns.take_next()).collect();
        let (same, other) = (card("x/honest@9"), card("x/honest@1"));
        turns.push(same.clone());
        turns.push(other.clone());
        let (mut rounds, mut came) = (0, Vec::new());
        while came.len() < 2 {
            rounds += 1;
            assert!(rounds < 45, "{came:?}");
            turns.push(card(&format!("x/late{}@9", dice.below(1_000))));
            // Each that runs has its turn.
            let mut over = std::mem::take(&mut running);
            while let Some(item) = over.pop() {
                if turns.must_make_way(&item, true, true) {
                    turns.done(item.asking());
                    turns.push(item);
                    running.extend(turns.take_next());
                } else {
                    running.push(item);
                }
            }
            for (name, honest) in [("same", &same), ("other", &other)] {
                if running.contains(honest) {
                    came.push((name, rounds));
                    running.retain(|item| item != honest);
                    turns.done(honest.asking());
                    running.extend(turns.take_next());
                }
            }
        }
        assert_eq!(came[0], ("other", 1), "another client waits for no turn but one");
        assert!(came[1].1 <= 14, "the same client waits until each had a turn: {came:?}");
    }
}
