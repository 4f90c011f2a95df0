//! Which images are removed when room is needed. Pure: it takes sizes, uses and what must stay, and returns victims. It
//! cannot fail.
//!
//! What is worth least goes first ([`Worth`]), and of that the least recently used image, with all its parts. This frees
//! the parts that no remaining image
//! needs: a layer is removed with its last image. An image that would free nothing stays, however old, and so does one
//! that is not needed to free enough. If not enough can be freed, nothing is removed, or everything: see [`Otherwise`].

/// What an image is worth, least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Worth {
    /// No image needs it.
    Unnamed,
    /// Its registry can be reached and gives it again.
    Replaceable,
    /// Its registry cannot be reached.
    Irreplaceable,
    /// The owner pinned it or lists it in `[warm]`.
    Wanted,
}

/// An image, which is removed or stays with all its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// What it is worth.
    pub worth: Worth,
    /// The count of its last use.
    pub used: u64,
    /// It must stay.
    pub keep: bool,
    /// Its content, each piece by its place in the list of sizes, once.
    pub parts: Vec<usize>,
}

/// What to do if not enough can be freed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Otherwise {
    /// Nothing is removed: part of the room is of no use.
    Nothing,
    /// Everything that may be removed is removed: each byte counts.
    Everything,
}

/// Chooses victims, in the order of their removal, that free at least `needed` bytes.
pub fn choose(candidates: &[Candidate], sizes: &[u64], needed: u64, otherwise: Otherwise) -> Vec<usize> {
    if needed == 0 {
        return Vec::new();
    }
    let mut owners = vec![0u32; sizes.len()];
    let mut kept = vec![false; sizes.len()];
    for candidate in candidates {
        for &part in &candidate.parts {
            owners[part] += 1;
            kept[part] |= candidate.keep;
        }
    }
    let can_free =
        |candidate: &&usize| candidates[**candidate].parts.iter().any(|&part| !kept[part] && sizes[part] > 0);
    let mut order: Vec<usize> = (0..candidates.len()).filter(|&at| !candidates[at].keep).collect();
    order.sort_by_key(|&at| (candidates[at].worth, candidates[at].used, at));
    let mut freed = 0u64;
    let mut victims = Vec::new();
    for &at in order.iter().filter(can_free) {
        if freed >= needed {
            break;
        }
        for &part in &candidates[at].parts {
            owners[part] -= 1;
            if owners[part] == 0 {
                freed = freed.saturating_add(sizes[part]);
            }
        }
        victims.push(at);
    }
    if freed < needed {
        return if otherwise == Otherwise::Everything { victims } else { Vec::new() };
    }
    // What is worth most is spared first, and of that the most recently used.
    let mut spared = Vec::new();
    for &at in victims.iter().rev() {
        let parts = &candidates[at].parts;
        let lost = parts.iter().filter(|&&part| owners[part] == 0).map(|&part| sizes[part]);
        let left = freed.saturating_sub(lost.fold(0, u64::saturating_add));
        if left >= needed {
            freed = left;
            parts.iter().for_each(|&part| owners[part] += 1);
            spared.push(at);
        }
    }
    victims.retain(|at| !spared.contains(at));
    victims
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn choose(candidates: &[Candidate], sizes: &[u64], needed: u64) -> Vec<usize> {
        super::choose(candidates, sizes, needed, Otherwise::Nothing)
    }

    fn image(used: u64, parts: &[usize]) -> Candidate {
        Candidate { worth: Worth::Replaceable, used, keep: false, parts: parts.to_vec() }
    }

    fn kept(used: u64, parts: &[usize]) -> Candidate {
        Candidate { keep: true, ..image(used, parts) }
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let images = [image(3, &[0]), image(1, &[1]), image(2, &[2])];
        assert_eq!(choose(&images, &[10, 10, 10], 5), [1]);
        assert_eq!(choose(&images, &[10, 10, 10], 15), [1, 2]);
        assert!(choose(&images, &[10, 10, 10], 0).is_empty());
    }

    #[test]
    fn a_shared_layer_goes_with_its_last_image() {
        let images = [image(1, &[0, 1]), image(2, &[0, 2])];
        assert_eq!(choose(&images, &[100, 1, 1], 50), [0, 1]);
        assert_eq!(choose(&images, &[100, 1, 1], 1), [0]);
    }

    #[test]
    fn what_shares_all_with_an_image_that_stays_is_left_alone() {
        let images = [kept(9, &[0, 1]), image(1, &[0]), image(2, &[1, 2])];
        assert_eq!(choose(&images, &[100, 100, 7], 5), [2]);
        assert!(choose(&images, &[100, 100, 7], 8).is_empty(), "nothing goes for nothing");
    }

    #[test]
    fn where_each_byte_counts_all_that_may_go_does() {
        let images = [kept(9, &[0]), image(2, &[0, 1]), image(1, &[2])];
        let everything = |needed| super::choose(&images, &[100, 7, 5], needed, Otherwise::Everything);
        assert_eq!(everything(50), [2, 1]);
        assert_eq!(everything(5), [2]);
    }

    #[test]
    fn a_small_one_is_spared_where_a_large_one_has_to_go_anyway() {
        let images = [image(1, &[0]), image(2, &[1])];
        assert_eq!(choose(&images, &[1, 100], 50), [1]);
    }

    #[test]
    fn what_is_worth_least_goes_first_however_recently_it_was_used() {
        let of = |worth, used, part| Candidate { worth, ..image(used, &[part]) };
        let images = [
            of(Worth::Wanted, 1, 0),
            of(Worth::Irreplaceable, 2, 1),
            of(Worth::Replaceable, 8, 2),
            of(Worth::Unnamed, 9, 3),
            of(Worth::Replaceable, 7, 4),
        ];
        assert_eq!(choose(&images, &[10; 5], 50), [3, 4, 2, 1, 0]);
        assert_eq!(choose(&images, &[10; 5], 11), [3, 4]);
        assert_eq!(
            choose(&images, &[10, 100, 10, 10, 10], 100),
            [1],
            "what is worth less is spared if that does"
        );
    }

    /// What is on the disk and belongs to nobody who is left.
    fn freed(images: &[Candidate], sizes: &[u64], victims: &[usize]) -> u64 {
        let left: BTreeSet<usize> = (0..images.len())
            .filter(|at| !victims.contains(at))
            .flat_map(|at| images[at].parts.clone())
            .collect();
        let gone: BTreeSet<usize> = victims
            .iter()
            .flat_map(|&at| images[at].parts.clone())
            .filter(|part| !left.contains(part))
            .collect();
        gone.into_iter().map(|part| sizes[part]).sum()
    }

    #[test]
    fn generated_workloads_agree_with_the_definition() {
        let mut state = 1u64;
        let mut random = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) % below as u64) as usize
        };
        for _ in 0..5_000 {
            let sizes: Vec<u64> = (0..1 + random(12)).map(|_| random(100) as u64).collect();
            let images: Vec<Candidate> = (0..1 + random(8))
                .map(|at| {
                    let parts: BTreeSet<usize> = (0..random(6)).map(|_| random(sizes.len())).collect();
                    let keep = random(4) == 0;
                    Candidate {
                        keep,
                        ..image((random(5) * 10 + at) as u64, &parts.into_iter().collect::<Vec<_>>())
                    }
                })
                .collect();
            let needed = random(300) as u64;
            let victims = choose(&images, &sizes, needed);
            assert!(victims.iter().all(|&at| !images[at].keep));
            let all: Vec<usize> = (0..images.len()).filter(|&at| !images[at].keep).collect();
            if needed == 0 || freed(&images, &sizes, &all) < needed {
                assert!(victims.is_empty());
                continue;
            }
            assert!(freed(&images, &sizes, &victims) >= needed);
            for spare in 0..victims.len() {
                let mut fewer = victims.clone();
                fewer.remove(spare);
                assert!(freed(&images, &sizes, &fewer) < needed, "nobody goes without need");
            }
            // Whoever is older than the last victim and stays could not have gone in its place.
            let newest = victims.iter().map(|&at| images[at].used).max().unwrap_or(0);
            let older: Vec<usize> = all.iter().copied().filter(|&at| images[at].used < newest).collect();
            assert!(freed(&images, &sizes, &older) < needed, "an older choice would have done");
        }
    }
}
