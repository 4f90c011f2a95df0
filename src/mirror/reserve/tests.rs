//! Room: how much is missing, what goes for it and who waits for whom.

use super::super::context::testing::{context, put};
use super::super::progress::{Demand, Phase};
use super::*;
use crate::image::tests::Board;
use crate::store::{Staged, StagedFrom};
use std::sync::Barrier;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

const KIB: usize = 1024;

/// A reserve over three images of 100 KiB with `disk.max` of so many KiB; the images, oldest first.
fn full(max: usize) -> (Board, Arc<Context>, Reserve, [Digest; 3]) {
    let (scratch, context) = context(&format!("[disk]\nmax = \"{max}KiB\"\nmin_free = \"1MiB\"\n"));
    let images = [1, 2, 3].map(|fill| put(&context, 100 * KIB, fill));
    let reserve = Reserve::new(Arc::clone(&context), Arc::default());
    (scratch, context, reserve, images)
}

/// All that is reserved.
fn reserved(reserve: &Reserve) -> u64 {
    reserve.reserved.lock().by_others(None, For::Nobody)
}

fn here(context: &Context, images: &[Digest]) -> Vec<bool> {
    images.iter().map(|digest| context.store.contains(digest)).collect()
}

/// A client reads from the repository, whose one image this is.
fn read(context: &Context, image: &Digest) {
    let (client, repository) = ("127.0.0.1".parse().unwrap(), "docker.io/library/app".parse().unwrap());
    let named = crate::store::Observation::upstream(image.clone());
    context.store.tag_seen(&repository, &"1".parse().unwrap(), &named).unwrap();
    context.pulls.begin(client, &repository);
}

#[test]
fn what_is_missing_for_a_download() {
    let state = DiskState { free: 500, own: 300 };
    let table = [
        (0, 400, None, (0, 0)),
        (100, 400, None, (0, 0)),
        (101, 400, None, (1, 0)),
        (0, 501, None, (1, 0)),
        (100, 0, Some(400), (0, 0)),
        (101, 0, Some(400), (0, 1)),
        (0, 0, Some(299), (0, 1)),
        (300, 300, Some(400), (100, 200)),
        (u64::MAX, u64::MAX, Some(1), (u64::MAX - 500, u64::MAX - 1)),
    ];
    for (coming, min_free, max, (by_free, by_max)) in table {
        let expected = Shortage { by_free, by_max };
        assert_eq!(shortage(state, coming, min_free, max), expected, "{coming} {min_free} {max:?}");
    }
    assert_eq!(Shortage { by_free: 3, by_max: 2 }.bytes(), 3);
    assert_eq!(Shortage { by_free: 2, by_max: 3 }.bytes(), 3);
}

#[test]
fn a_floor_and_a_ceiling_are_kept_as_far_as_may_be() {
    let remedy = |by_free, by_max| Shortage { by_free, by_max }.remedy(3);
    assert_eq!(remedy(0, 0), None);
    assert_eq!(remedy(5, 0), Some((5, Goal::GiveWay { step: 3, wanted: false })));
    assert_eq!(remedy(5, 4), Some((5, Goal::GiveWay { step: 3, wanted: false })));
    assert_eq!(remedy(5, 5), Some((5, Goal::AsFarAsMayBe)));
    assert_eq!(remedy(0, 5), Some((5, Goal::AsFarAsMayBe)));
}

#[test]
fn an_attempt_that_failed_is_not_made_again_at_once() {
    let at = Instant::now();
    let failed = FailedAttempt { at, needed: 100, stored: 7, wanted: false, pause: budget::ROOM_PAUSE };
    assert!(failed.covers(100, 7, false, at) && failed.covers(200, 7, false, at));
    assert!(!failed.covers(99, 7, false, at), "less may be had");
    assert!(!failed.covers(100, 6, false, at), "something has changed");
    assert!(failed.covers(100, 7, false, at + budget::ROOM_PAUSE - Duration::from_millis(1)));
    assert!(!failed.covers(100, 7, false, at + budget::ROOM_PAUSE));
    assert!(!failed.covers(100, 7, true, at), "the owner's own might be enough");
}

#[test]
fn room_is_made_for_what_comes_and_only_as_much_as_is_needed() {
    let (_board, context, reserve, images) = full(400);
    let mut reservation = Reservation::open(&reserve, None);
    reservation.make(100 * KIB as u64).unwrap();
    assert_eq!(here(&context, &images), [true, true, true], "it fits");
    reservation.make(101 * KIB as u64).unwrap();
    assert_eq!(here(&context, &images), [false, true, true], "the one used longest ago went");
    assert_eq!(context.counters.evicted_bytes(), 100 * KIB as u64);
}

#[test]
fn what_others_reserved_is_not_counted_on_and_comes_back_when_they_end() {
    let (_board, context, reserve, images) = full(400);
    let mut first = Reservation::open(&reserve, None);
    first.make(100 * KIB as u64).unwrap();
    let mut second = Reservation::open(&reserve, None);
    second.make(KIB as u64).unwrap();
    assert_eq!(here(&context, &images), [false, true, true], "the first has the room that was left");
    drop(first);
    assert_eq!(reserved(&reserve), KIB as u64);
    second.set(3);
    assert_eq!(reserved(&reserve), 3);
    drop(second);
    assert_eq!(reserved(&reserve), 0);
    let mut third = Reservation::open(&reserve, None);
    third.make(200 * KIB as u64).unwrap();
    assert_eq!(here(&context, &images), [false, true, true], "room that came back needs no victim");
}

#[test]
fn nothing_goes_for_what_cannot_fit_and_nothing_is_reserved_for_it() {
    let (_board, context, reserve, images) = full(400);
    let mut reservation = Reservation::open(&reserve, None);
    let refused = reservation.make(401 * KIB as u64);
    assert!(matches!(refused, Err(StoreError::NoRoom { .. })), "{refused:?}");
    assert_eq!(here(&context, &images), [true, true, true]);
    assert_eq!(reserved(&reserve), 0);
    assert!(reserve.last_failed.lock().is_some(), "it is remembered");
    reservation.set(3);
    reservation.make(401 * KIB as u64).unwrap_err();
    assert_eq!(reserved(&reserve), 3, "what was reserved before stays");
}

#[test]
fn room_that_just_suffices_is_enough() {
    let (_board, context, reserve, images) = full(400);
    Reservation::open(&reserve, None).make(200 * KIB as u64).unwrap();
    assert_eq!(here(&context, &images), [false, true, true]);
}

#[test]
fn what_failed_is_not_tried_again_and_less_is() {
    let (_board, _context, reserve, _) = full(400);
    let failed = || reserve.last_failed.lock().map(|last| last.at);
    let mut reservation = Reservation::open(&reserve, None);
    reservation.make(401 * KIB as u64).unwrap_err();
    let first = failed();
    reservation.make(401 * KIB as u64).unwrap_err();
    assert_eq!(failed(), first, "it was not tried again");
    reservation.make(100 * KIB as u64).unwrap();
    assert_eq!(failed(), first, "there was room, and none was made");
    reservation.make(400 * KIB as u64).unwrap();
    assert_eq!(failed(), None, "success is not remembered as a failure");
}

#[test]
fn what_is_half_downloaded_counts_for_the_ceiling() {
    let (_board, context, reserve, images) = full(400);
    std::fs::write(context.store.data_dir().join("staging/half"), vec![0; 100 * KIB]).unwrap();
    Reservation::open(&reserve, None).make(KIB as u64).unwrap();
    assert_eq!(here(&context, &images), [false, true, true]);
}

#[test]
fn what_is_being_read_stays() {
    let (_board, context, reserve, images) = full(400);
    read(&context, &images[2]);
    Reservation::open(&reserve, None).make(301 * KIB as u64).unwrap_err();
    assert_eq!(here(&context, &images), [true, true, true], "two are not enough");
    Reservation::open(&reserve, None).make(300 * KIB as u64).unwrap();
    assert_eq!(here(&context, &images), [false, false, true], "the newest is being read");
}

#[test]
fn what_is_beyond_the_ceiling_goes_as_far_as_it_may() {
    let (_board, context, reserve, images) = full(50);
    read(&context, &images[2]);
    reserve.watch();
    assert_eq!(here(&context, &images), [false, false, true]);
    assert!(reserve.last_failed.lock().is_some(), "it was too little");
}

#[test]
fn what_the_index_does_not_know_counts_for_the_ceiling() {
    let (_board, context, reserve, _) = full(400);
    let lost = Digest::of(crate::oci::Algorithm::Sha256, b"lost").hex();
    std::fs::write(context.store.data_dir().join("blobs/sha256").join(lost), vec![0; 100 * KIB]).unwrap();
    Reservation::open(&reserve, None).make(KIB as u64).unwrap();
    assert_eq!(context.counters.evicted_bytes(), 100 * KIB as u64);
}

#[test]
fn a_manifest_does_not_count_on_what_a_download_reserved() {
    let (_board, context, reserve, images) = full(400);
    let mut reservation = Reservation::open(&reserve, None);
    reservation.make(50 * KIB as u64).unwrap();
    let new = Digest::of(crate::oci::Algorithm::Sha256, b"new");
    reserve.with_room_for_manifest(&new, 60 * KIB as u64, || Ok(())).unwrap();
    assert_eq!(here(&context, &images), [false, true, true]);
}

#[test]
fn no_number_of_bytes_is_too_large_to_reserve() {
    let (_board, _context, reserve, _) = full(400);
    let (mut first, mut second) = (Reservation::open(&reserve, None), Reservation::open(&reserve, None));
    first.set(u64::MAX);
    second.set(u64::MAX);
    assert_eq!(reserved(&reserve), u64::MAX);
    drop((first, second));
    assert_eq!(reserved(&reserve), 0);
}

#[test]
fn a_refusal_says_what_is_kept_free_what_the_ceiling_is_and_what_was_to_come() {
    let (_board, _context, reserve, _) = full(400);
    let refused = Reservation::open(&reserve, None).make(401 * KIB as u64).unwrap_err().to_string();
    let expected = ", of which 1.0 MB stay free, and disk.max is 409.6 kB; 410.6 kB are to come, and no image \
                    that may be removed would make room for them";
    assert!(refused.ends_with(expected), "{refused}");
}

// Who meets whom cannot be arranged, so they come often enough that some meet.
#[test]
fn what_comes_at_the_same_time_does_not_count_on_the_same_room() {
    let (_board, context) = context("[disk]\nmax = \"400KiB\"\nmin_free = \"1MiB\"\n");
    let reserve = Reserve::new(context, Arc::default());
    let (barrier, made) = (Barrier::new(4), Mutex::new(0));
    let come = || {
        for _ in 0..1000 {
            barrier.wait();
            let mut reservation = Reservation::open(&reserve, None);
            let fits = reservation.make(201 * KIB as u64).is_ok();
            *made.lock() += u32::from(fits);
            barrier.wait();
        }
    };
    std::thread::scope(|scope| drop([0; 4].map(|_| scope.spawn(come))));
    assert_eq!(*made.lock(), 1000, "each time there is room for one");
    assert_eq!(reserved(&reserve), 0);
}

#[test]
fn manifests_that_come_at_the_same_time_do_not_count_on_the_same_room() {
    let (_board, context, reserve, _) = full(400);
    let start = Barrier::new(4);
    let bring = |fill| {
        let digest = Digest::of(crate::oci::Algorithm::Sha256, &vec![fill; 100 * KIB]);
        start.wait();
        let stored = reserve.with_room_for_manifest(&digest, 100 * KIB as u64, || {
            put(&context, 100 * KIB, fill);
            Ok(())
        });
        stored.unwrap();
    };
    std::thread::scope(|scope| {
        for fill in [4, 5, 6, 7] {
            let bring = &bring;
            scope.spawn(move || bring(fill));
        }
    });
    assert_eq!(context.store.stored_bytes(), 400 * KIB as u64);
}

#[test]
fn what_was_not_used_for_long_expires_and_the_rest_stays() {
    let toml = "[disk]\nmin_free = \"1MiB\"\nexpire_unused = \"1ms\"\n";
    let (_board, context) = context(toml);
    let age = Duration::from_millis(1);
    let images = [1, 2].map(|fill| put(&context, KIB, fill));
    let reserve = Reserve::new(Arc::clone(&context), Arc::default());
    context.store.begin_service();
    reserve.expire();
    assert_eq!(here(&context, &images), [true, true], "so much has not passed");
    context.store.keep_counts(Some(Duration::ZERO)).unwrap();
    let new = put(&context, KIB, 3);
    while context.store.unused_for(age).is_none() {
        std::thread::yield_now();
    }
    reserve.expire();
    // A clock that cannot be believed expires nothing.
    let stay = crate::clock::trusted_unix().is_none();
    assert_eq!(here(&context, &images), [stay, stay]);
    assert!(context.store.contains(&new));
    assert_eq!(context.counters.evicted_bytes(), if stay { 0 } else { 2 * KIB as u64 });
}

#[test]
fn what_is_being_downloaded_stays() {
    let (_board, context, _, images) = full(400);
    let (table, repository) = (Arc::<FillTable>::default(), "docker.io/library/app".parse().unwrap());
    let key = crate::store::ContentKey::shared(
        "docker.io".parse().unwrap(),
        crate::auth::AccessClass::Public,
        images[0].clone(),
    );
    let demand = super::super::progress::Demand::Client;
    let fill = super::super::progress::Fill::download(key.clone(), &repository, None, demand);
    table.lock().insert(key, Arc::new(fill));
    let reserve = Reserve::new(Arc::clone(&context), table);
    Reservation::open(&reserve, None).make(150 * KIB as u64).unwrap();
    assert_eq!(here(&context, &images), [true, false, true]);
}

/// A download of 200 KiB that runs and has written 100 KiB, and its writer.
fn downloading(context: &Context, table: &FillTable, demand: Demand) -> (Arc<Fill>, Staged) {
    let repository = "docker.io/library/app".parse().unwrap();
    let digest = Digest::of(crate::oci::Algorithm::Sha256, b"large");
    let key = ContentKey::shared("docker.io".parse().unwrap(), crate::auth::AccessClass::Public, digest);
    let size = Some(200 * KIB as u64);
    let fill = Arc::new(Fill::download(key.clone(), &repository, size, demand));
    let mut staged = context.store.stage(&key, &StagedFrom { repository, size }).unwrap();
    staged.append(&[7; 100 * KIB]).unwrap();
    fill.file.set(staged.file()).unwrap();
    fill.set_phase(Phase::Running);
    table.lock().insert(key, Arc::clone(&fill));
    (fill, staged)
}

#[test]
fn what_nobody_waits_for_gets_what_is_free_and_gives_way_while_it_runs() {
    let (_board, context, _, images) = full(430);
    let table = Arc::<FillTable>::default();
    let reserve = Reserve::new(Arc::clone(&context), Arc::clone(&table));
    let (fill, mut staged) = downloading(&context, &table, Demand::Background);
    let mut own = reserve.open(&fill);
    // It had reserved all of it while it was waited for; now it has the 30 KiB that are free.
    own.set(100 * KIB as u64);
    own.next(25 * KIB as u64, Some(100 * KIB as u64)).unwrap();
    assert_eq!(reserved(&reserve), 25 * KIB as u64);
    own.next(31 * KIB as u64, Some(100 * KIB as u64)).unwrap_err();
    assert_eq!((here(&context, &images), reserved(&reserve)), (vec![true; 3], 0));
    // Somebody reads it: then it gets its room, and goes for nobody.
    let reader = fill.follow();
    own.next(31 * KIB as u64, Some(100 * KIB as u64)).unwrap();
    assert_eq!(here(&context, &images), [false, true, true]);
    Reservation::open(&reserve, None).make(40 * KIB as u64).unwrap();
    assert_eq!(here(&context, &images), [false, false, true]);
    assert!(fill.file().is_some() && staged.append(b"more").is_ok());
    // Nobody any more: what it wrote and what it reserved makes room before the next image.
    drop(reader);
    Reservation::open(&reserve, None).make(140 * KIB as u64).unwrap();
    assert_eq!(here(&context, &images), [false, false, true]);
    assert!(fill.file().is_none() && staged.append(b"more").is_err() && table.find(&fill.key).is_none());
    assert_eq!(context.store.staged_bytes(), 0);
    assert!(fill.not_stored().is_some(), "who comes just now is served without the disk");
}

#[test]
fn a_manifest_gets_room_or_a_refusal_and_one_that_is_here_needs_none() {
    let (_board, context, reserve, images) = full(400);
    let new = Digest::of(crate::oci::Algorithm::Sha256, b"new");
    let store = |stored: &mut bool| {
        *stored = true;
        Ok(())
    };
    let mut stored = false;
    reserve.with_room_for_manifest(&images[0], 500 * KIB as u64, || store(&mut stored)).unwrap();
    assert!(stored, "it is here already");
    assert_eq!(here(&context, &images), [true, true, true]);
    stored = false;
    reserve.with_room_for_manifest(&new, 150 * KIB as u64, || store(&mut stored)).unwrap();
    assert!(stored);
    assert_eq!(here(&context, &images), [false, true, true]);
    stored = false;
    let refused = reserve.with_room_for_manifest(&new, 500 * KIB as u64, || store(&mut stored));
    assert!(matches!(refused, Err(StoreError::NoRoom { .. })) && !stored);
}

#[test]
fn the_limits_are_kept_whoever_took_the_space() {
    let (_board, context, reserve, images) = full(250);
    reserve.watch();
    assert_eq!(here(&context, &images), [false, true, true]);
    reserve.watch();
    assert_eq!(here(&context, &images), [false, true, true], "no more than is needed goes");
}

/// A card with room for so many KiB, of which others use as many as the second says.
fn shared_card(toml: &str, kib: u64) -> (Board, Arc<Context>, Reserve, Arc<AtomicU64>) {
    let (board, context) = context(toml);
    let others = Arc::new(AtomicU64::new(0));
    let used = Arc::clone(&others);
    let mut reserve = Reserve::new(Arc::clone(&context), Arc::default());
    reserve.look = Box::new(move |store| {
        let used = used.load(Ordering::Relaxed) * KIB as u64 + store.counted_bytes() + store.staged_bytes();
        let total = kib * KIB as u64;
        Ok(Room { free: total.saturating_sub(used), total, free_inodes: 0, inodes: 0 })
    });
    (board, context, reserve, others)
}

/// Stages so many bytes of something as a download that was cut.
fn stage(context: &Context, fill: u8, bytes: usize) -> ContentKey {
    let digest = Digest::of(crate::oci::Algorithm::Sha256, &[fill]);
    let (registry, class) = ("docker.io".parse().unwrap(), crate::auth::AccessClass::Public);
    let key = ContentKey::shared(registry, class, digest);
    let repository = "docker.io/library/app".parse().unwrap();
    let from = crate::store::StagedFrom { repository, size: Some(1 << 20) };
    context.store.stage(&key, &from).unwrap().append(&vec![fill; bytes]).unwrap();
    key
}

#[test]
fn larder_gives_way_to_who_grows_and_removes_no_more_than_that_takes() {
    let (_board, context, reserve, others) = shared_card("[disk]\nmin_free = \"400KiB\"\n", 2_000);
    let images: Vec<Digest> = (1..=6).map(|fill| put(&context, 100 * KIB, fill)).collect();
    let left = |context: &Context| here(context, &images).iter().filter(|here| **here).count();
    // 1,000 KiB may be used by others, and 40 more are freed than are missing.
    for (used, expected) in
        [(0, 6), (1_000, 6), (1_001, 5), (1_060, 5), (1_100, 5), (1_101, 4), (1_350, 2), (1_200, 2), (0, 2)]
    {
        others.store(used, Ordering::Relaxed);
        reserve.watch();
        assert_eq!(left(&context), expected, "others use {used} KiB");
        assert!(!reserve.short.load(Ordering::Relaxed));
    }
    assert_eq!(here(&context, &images), [false, false, false, false, true, true]);
    // What cannot be restored is restored as far as may be, and what runs is told.
    let mut running = Reservation::open(&reserve, None);
    running.make(KIB as u64).unwrap();
    others.store(1_950, Ordering::Relaxed);
    reserve.watch();
    assert_eq!(left(&context), 0);
    assert!(running.holds().unwrap_err().to_string().contains("stay free"));
    others.store(0, Ordering::Relaxed);
    reserve.watch();
    running.holds().unwrap();
}

#[test]
fn what_was_cut_goes_before_any_image_the_oldest_first() {
    let (_board, context, reserve, others) = shared_card("[disk]\nmin_free = \"400KiB\"\n", 2_000);
    let images = [1, 2].map(|fill| put(&context, 100 * KIB, fill));
    let keys = [7, 8].map(|fill| stage(&context, fill, 50 * KIB));
    let staged = || context.store.unfinished().len();
    others.store(1_320, Ordering::Relaxed);
    reserve.watch();
    assert_eq!((staged(), here(&context, &images)), (1, vec![true, true]));
    Reservation::open(&reserve, None).make(60 * KIB as u64).unwrap();
    assert_eq!((staged(), here(&context, &images)), (0, vec![true, true]), "for a download too");
    others.store(1_450, Ordering::Relaxed);
    reserve.watch();
    assert_eq!(here(&context, &images), [false, true]);
    // What somebody writes stays.
    let from = crate::store::StagedFrom { repository: "docker.io/library/app".parse().unwrap(), size: None };
    let mut writer = context.store.stage(&keys[0], &from).unwrap();
    writer.append(&[1; 1000]).unwrap();
    others.store(2_000, Ordering::Relaxed);
    reserve.watch();
    assert_eq!(staged(), 1);
}

#[test]
fn what_is_pinned_gives_way_last_and_only_if_that_mends_it_and_never_silently() {
    let (_board, context, reserve, others) = shared_card("[disk]\nmin_free = \"400KiB\"\n", 2_000);
    let images = [1, 2, 3].map(|fill| put(&context, 100 * KIB, fill));
    let (repository, tag) = ("docker.io/library/app".parse().unwrap(), "1".parse().unwrap());
    let named = crate::store::Observation::upstream(images[0].clone());
    context.store.tag_seen(&repository, &tag, &named).unwrap();
    context.store.tag_pin(&repository, &tag, true).unwrap();
    others.store(1_500, Ordering::Relaxed);
    reserve.watch();
    assert_eq!(here(&context, &images), [true, false, false], "the oldest, but pinned");
    others.store(1_900, Ordering::Relaxed);
    reserve.watch();
    assert!(context.store.contains(&images[0]), "in vain");
    assert_eq!(context.counters.evicted_wanted(), 0);
    others.store(1_600, Ordering::Relaxed);
    *reserve.last_failed.lock() = None;
    reserve.watch();
    assert!(!context.store.contains(&images[0]));
    assert_eq!(context.counters.evicted_wanted(), 1);
    assert!(context.store.tag(&repository, &tag).unwrap().unwrap().pinned, "the wish stays");
    // Nor does it go while a download that runs takes the room.
    let again = put(&context, 100 * KIB, 1);
    context.store.tag_seen(&repository, &tag, &crate::store::Observation::upstream(again.clone())).unwrap();
    others.store(1_400, Ordering::Relaxed);
    let mut running = Reservation::open(&reserve, None);
    running.make(90 * KIB as u64).unwrap();
    others.store(1_450, Ordering::Relaxed);
    reserve.watch();
    assert!(context.store.contains(&again) && running.holds().is_err(), "the download ends first");
    drop(running);
    reserve.watch();
    assert!(context.store.contains(&again) && !reserve.short.load(Ordering::Relaxed));
    // For a download it does not go.
    others.store(1_500, Ordering::Relaxed);
    Reservation::open(&reserve, None).make(100 * KIB as u64).unwrap_err();
    assert!(context.store.contains(&again));
}

#[test]
fn what_an_unreachable_registry_cannot_give_again_goes_after_the_rest() {
    let (_board, context, reserve, others) = shared_card("[disk]\nmin_free = \"400KiB\"\n", 2_000);
    let away = put(&context, 100 * KIB, 1);
    let bytes = vec![2; 100 * KIB];
    let near = Digest::of(crate::oci::Algorithm::Sha256, &bytes);
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let public = crate::auth::AccessClass::Public;
    context
        .store
        .put_manifest(&"quay.io/lab/app".parse().unwrap(), &near, media_type, &bytes, public)
        .unwrap();
    context.store.touch(&near);
    for (name, digest) in [("docker.io/library/app", &away), ("quay.io/lab/app", &near)] {
        let named = crate::store::Observation::upstream(digest.clone());
        context.store.tag_seen(&name.parse().unwrap(), &"1".parse().unwrap(), &named).unwrap();
    }
    for endpoint in context.upstreams.find(&"docker.io".parse().unwrap()).unwrap().endpoints() {
        endpoint.breaker().restore_down("the mast is down");
    }
    others.store(1_450, Ordering::Relaxed);
    reserve.watch();
    assert_eq!(here(&context, &[away.clone(), near]), [true, false], "though it was used longer ago");
    others.store(1_550, Ordering::Relaxed);
    reserve.watch();
    assert!(!context.store.contains(&away));
}

#[test]
fn inodes_are_left_free_too_if_that_helps() {
    let (_board, context, mut reserve, images) = full(400);
    let others = Arc::new(AtomicU64::new(0));
    let used = Arc::clone(&others);
    reserve.look = Box::new(move |store| {
        let files = store.blob_files()?.count() as u64 + used.load(Ordering::Relaxed);
        Ok(Room { free: u64::MAX, total: u64::MAX, free_inodes: 100 - files, inodes: 100 })
    });
    for (used, left) in [(0, 3), (87, 3), (88, 0)] {
        others.store(used, Ordering::Relaxed);
        reserve.watch();
        assert_eq!(here(&context, &images).iter().filter(|here| **here).count(), left, "{used}");
    }
    let again = put(&context, KIB, 9);
    others.store(99, Ordering::Relaxed);
    reserve.watch();
    assert!(context.store.contains(&again), "in vain");
}

#[test]
fn bytes_that_nothing_announced_get_what_is_free_and_remove_nothing() {
    let (_board, context, reserve, images) = full(400);
    let mut reservation = Reservation::open(&reserve, None);
    reservation.next(90 * KIB as u64, None).unwrap();
    reservation.used(80 * KIB as u64);
    assert_eq!(reserved(&reserve), 10 * KIB as u64);
    let key = stage(&context, 7, 80 * KIB);
    reservation.next(19 * KIB as u64, None).unwrap();
    reservation.next(21 * KIB as u64, None).unwrap_err();
    assert_eq!(here(&context, &images), [true, true, true]);
    assert!(context.store.forget_staged(&key).is_ok(), "nor what is staged");
}

#[test]
fn what_is_staged_and_nobody_fetches_is_bounded_and_the_last_of_it_stays() {
    let (_board, context, reserve, _) = full(1400);
    let keys = [1, 2, 3].map(|fill| stage(&context, fill, 300 * KIB));
    reserve.watch();
    assert_eq!(context.store.unfinished().len(), 2);
    keys.iter().for_each(|key| context.store.forget_staged(key).unwrap());
    stage(&context, 4, 900 * KIB);
    reserve.watch();
    assert_eq!(context.store.unfinished().len(), 1, "a large layer is resumed");
}
