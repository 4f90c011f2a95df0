//! Every limit larder has, with its unit and its reason (rule 9).
//!
//! What a user may change is in the configuration, where its default stands beside it; everything else is here and
//! nowhere else. Sizes are bytes unless the name says otherwise; times are `Duration`s.

use std::time::Duration;

/// 1 KiB.
pub const KIB: u64 = 1024;
/// 1 MiB.
pub const MIB: u64 = 1024 * KIB;
/// 1 GiB.
pub const GIB: u64 = 1024 * MIB;

/// So many hundredths of `whole`.
pub const fn percent_of(whole: u64, percent: u8) -> u64 {
    (whole as u128 * percent as u128 / 100) as u64
}

// -- Content ---------------------------------------------------------------------------------------------------

/// Largest manifest kept. The specification asks for at least 4 MiB. Of those larger than
/// [`LARGE_DOCUMENT_BYTES`] few are in memory at a time ([`LARGE_ANSWERS_MAX`]).
pub const MANIFEST_BYTES_MAX: u64 = 4 * MIB;
/// Most descriptors of a manifest; real ones have at most a few hundred.
pub const DESCRIPTORS_MAX: usize = 4_096;
/// Longest media type, artifact type and digest taken from a manifest; what is longer is cut.
pub const MANIFEST_TEXT_BYTES_MAX: usize = 255;
/// Longest operating system, architecture and variant taken from a manifest; what is longer is cut.
pub const PLATFORM_TEXT_BYTES_MAX: usize = 64;
/// What a manifest of any size becomes in memory: [`DESCRIPTORS_MAX`] descriptors of 150 bytes, a growing list twice, and
/// platforms of three texts each.
pub const MANIFEST_DECODED_BYTES_MAX: u64 = 3 * MIB;
/// Annotations of a manifest that are repeated in a list of referrers, in bytes together; longer ones are left out.
pub const ANNOTATIONS_BYTES_MAX: usize = 16 * 1024;
/// How deep JSON from outside may nest; manifests nest five levels.
pub const JSON_DEPTH_MAX: usize = 128;
/// Longest text with escapes in JSON from outside: it is unescaped in memory. Real ones are annotations that hold JSON.
pub const JSON_ESCAPED_BYTES_MAX: usize = 256 * 1024;
/// A document larger than this has to wait for its turn: one is in memory at a time to be parsed.
pub const LARGE_DOCUMENT_BYTES: u64 = 64 * KIB;
/// Large documents that are on their way in, or wait to be stored, at a time; of each registry one, and of all peers one.
pub const LARGE_ANSWERS_MAX: usize = 2;
/// By how much the memory for a large answer grows that does not state its length.
pub const LARGE_ANSWER_STEP_BYTES: u64 = 512 * KIB;
/// Largest blob fetched, whatever the disk could hold: beyond any layer known, below what an endless body costs.
pub const BLOB_BYTES_MAX: u64 = 256 * GIB;
/// The end of a blob that clients get only once the whole hash is right (rule 1).
pub const HELD_BACK_BYTES: u64 = 4 * KIB;
/// How deep indexes may nest when a closure is walked; real ones nest once.
pub const INDEX_DEPTH_MAX: usize = 4;
/// Most manifests looked at in one closure, so that a hostile index cannot keep the walk going.
pub const CLOSURE_MANIFESTS_MAX: usize = 1_024;
/// Tags that a refusal names as cached; more would not be read.
pub const CACHED_NAMES_MAX: usize = 4;
/// Tags that are looked at to find them: a refusal must come at once.
pub const CACHED_TAGS_LOOKED_AT: usize = 32;
/// How often content is looked for then, unless one tag needs more: 200 looks take a few milliseconds on a board.
pub const CACHED_LOOKS_MAX: usize = 200;
/// Images whose sums one walk over many tags remembers, at about 150 bytes each.
pub const SUMMARIES_MAX: usize = 4_096;
/// Manifests and their children that one walk over many images remembers, at about 300 bytes each.
pub const NAMED_CHILDREN_MAX: usize = 2_048;

// -- Upstreams -------------------------------------------------------------------------------------------------

/// Wrong blobs whose source an upstream with several endpoints remembers, at about 100 bytes each.
pub const WRONG_SOURCES_MAX: usize = 256;
/// Tags of an upstream of which it is remembered which endpoint was late with them, at about 150 bytes each.
pub const LATE_TAGS_MAX: usize = 64;
/// Larders that a request may have come through: more are a loop that nobody has seen the end of.
pub const VIA_BOARDS_MAX: usize = 8;
/// Shortest time that a Larder waits for its upstream where another one asks it: less would be no question.
pub const CHAIN_WAIT_MIN: Duration = Duration::from_secs(1);
/// How much sooner a Larder is to answer than the one that asks it stops waiting.
pub const CHAIN_WAIT_MARGIN: Duration = Duration::from_secs(1);
/// Most upstreams a configuration may name: each can cost a probe thread and a pool of connections.
pub const UPSTREAMS_MAX: usize = 64;
/// Most endpoints of one upstream: each can cost a probe thread and a pool of connections, and a question that none of them
/// answers well is asked at each.
pub const ENDPOINTS_MAX: usize = 8;
/// Threads for each upstream that ask for tags, manifests and lists, so that layers never delay a tag.
pub const MANIFEST_LANES: usize = 4;
/// Questions that may wait for the lanes of one upstream; one more is answered 503.
pub const MANIFEST_QUEUE_MAX: usize = 64;
/// The turn of a question: after it one whose client has more lanes than another's that waits is called off and asked again.
/// Most upstreams answer sooner.
pub const QUESTION_TURN_TIME: Duration = Duration::from_secs(2);
/// Bytes a second of a body below which a question is called off after its turn if others wait: manifests are small, so that
/// less is a drip and no slow link.
pub const QUESTION_RATE_MIN: u64 = KIB;
/// After this time without an answer a question lets others by; when it was asked again, after [`QUESTION_TURN_TIME`] what is
/// new.
pub const QUESTION_LATE_TIME: Duration = Duration::from_secs(5);
/// How often a question that waits for its upstream looks whether it is called off.
pub const QUESTION_LOOK_PAUSE: Duration = Duration::from_millis(200);
/// Turn of a large answer, after which it is called off if another registry waits and fewer bytes came in a second than
/// [`FILL_TURN_BYTES`] in [`FILL_TURN_TIME`].
pub const LARGE_ANSWER_TURN_TIME: Duration = Duration::from_secs(5);
/// Clients remembered that wait for the same answer; it counts for whom of them holds the fewest places.
pub const ASKERS_MAX: usize = 16;
/// A lane without a question for this long ends.
pub const LANE_IDLE: Duration = Duration::from_secs(30);
/// How often a request for a tag starts a check of an upstream that is down: there are registries whose probes fail
/// while their manifests can be had.
pub const BACKGROUND_CHECK_EVERY: Duration = Duration::from_secs(30);
/// Pause before a rebuild of the index that failed is tried again.
pub const REBUILD_PAUSE: Duration = Duration::from_secs(10);
/// Longest a request for a tag waits while the index is being put back into service; then it is answered 503.
pub const INDEX_WAIT_MAX: Duration = Duration::from_secs(2);
/// Pause between two looks whether the index is ready.
pub const INDEX_WAIT_STEP: Duration = Duration::from_millis(25);
/// How long a client waits for the size of content that another repository of its registry fetches, before its own
/// repository is asked: most upstreams answer sooner, and half of what a client waits for a header is left.
pub const JOIN_WAIT: Duration = Duration::from_secs(5);
/// How often a client that waits for a byte of another repository's download looks whether that still goes on.
pub const JOIN_LOOK_PAUSE: Duration = Duration::from_millis(500);
/// Bytes a second below which the download of another repository is not joined: fetching twice costs nothing there.
pub const JOIN_RATE_MIN: u64 = KIB;
/// Repositories that a fill brings private content to besides its own; one more is confirmed when it is asked for next.
pub const FILL_HOLDERS_MAX: usize = 64;
/// Fills that may be under way or waiting; one more is answered 503.
pub const FILLS_MAX: usize = 1_024;
/// Redirects followed by hand for one request.
pub const REDIRECTS_MAX: usize = 5;
/// Tokens remembered for each upstream.
pub const TOKENS_MAX: usize = 256;
/// Bytes of them, so that long ones are fewer; real ones have 1 to 4 KiB.
pub const TOKENS_BYTES_MAX: usize = 256 * 1024;
/// Longest service and longest scope that a challenge may state, in bytes: some dozen repositories.
pub const CHALLENGE_TEXT_BYTES_MAX: usize = 2 * 1024;
/// Other origins that one upstream redirects to and that ask for tokens of their own; real ones have one.
pub const GUEST_LOGINS_MAX: usize = 8;
/// Largest answer of a token server.
pub const TOKEN_BYTES_MAX: u64 = 64 * KIB;
/// Largest header section an upstream may send.
pub const UPSTREAM_HEADER_BYTES_MAX: usize = 64 * 1024;
/// What a fetch thread reads at a time.
pub const FETCH_CHUNK_BYTES: usize = 128 * 1024;
/// Longest a Retry-After of an upstream is honoured.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);
/// Attempts of one fill in a row that bring no byte; after that it is parked until the upstream is back.
pub const FILL_FRUITLESS_TRIES: u32 = 3;
/// An attempt that brings fewer bytes than this counts as one that brings none while nobody waits for the fill: who drips
/// a byte at each attempt is not asked for ever.
pub const FILL_PROGRESS_BYTES: u64 = 64 * KIB;
/// How often an upstream that ignores Range, or sends wrong bytes, may send the bytes of a fill again within
/// [`REPEAT_WINDOW`] while a client waits: a link that is cut now and then gets large layers through.
pub const REPEATS_AWAITED_MAX: u64 = 4;
/// The same while nobody waits: once, so that a cut download is completed by itself if that goes well.
pub const REPEATS_UNAWAITED_MAX: u64 = 1;
/// The time in which these are counted; what is beyond is asked for again after it.
pub const REPEAT_WINDOW: Duration = Duration::from_secs(600);
/// A fill smaller than this counts as one of this size there: it costs next to nothing.
pub const REPEAT_BYTES_MIN: u64 = MIB;
/// Pause before a fill asks again after a cut; it grows by this much with each attempt that brings no byte.
pub const FILL_RETRY_PAUSE: Duration = Duration::from_millis(250);
/// The turn of a download: if it brings less than [`FILL_TURN_BYTES`] in this time, it gives its slot to a download that a
/// client waits for. Where nobody waits, a link may be as slow as it is.
pub const FILL_TURN_TIME: Duration = Duration::from_secs(30);
/// See [`FILL_TURN_TIME`]; together some 35 KiB/s.
pub const FILL_TURN_BYTES: u64 = MIB;
/// The turn of a download of less than [`JOIN_RATE_MIN`].
pub const FILL_DRIP_TIME: Duration = Duration::from_secs(5);
/// Shortest pause between two looks of a running download at who waits for its slot.
pub const FILL_LOOK_PAUSE: Duration = Duration::from_millis(100);
/// For so long after a request began or joined it a fill counts as waited for, although no reader follows it yet.
pub const DEMAND_GRACE: Duration = Duration::from_secs(1);
/// First pause between probes of an upstream that cannot be reached; it doubles up to [`PROBE_PAUSE_MAX`].
pub const PROBE_PAUSE_MIN: Duration = Duration::from_millis(250);
/// Longest pause between probes, so that with a probe's own time-out an upstream's return is seen within 30 s.
pub const PROBE_PAUSE_MAX: Duration = Duration::from_secs(10);
/// Shortest pause between two probes that failures of single questions lead to: whoever can have a repository fail must
/// not have its registry probed all the time.
pub const SUSPECT_PAUSE: Duration = Duration::from_secs(1);
/// Rate limits remembered for each endpoint, each of one origin, kind of question and repository.
pub const HOLDS_MAX: usize = 256;
/// What is remembered of one endpoint, of each kind, of what it cannot do: some 300 bytes each. What is forgotten costs one
/// request more.
pub const SHORTCUTS_MAX: usize = 64;
/// For so long manifests or blobs of a repository are asked for by GET at once where HEAD has failed and GET has not; then
/// HEAD, which registries do not meter, has another try.
pub const NO_HEAD_TIME: Duration = Duration::from_secs(600);
/// For so long a refusal by HEAD counts that a GET has confirmed: a kubelet asks every five minutes for what does not exist.
pub const CONFIRMED_TIME: Duration = Duration::from_secs(310);
/// Idle connections kept to one upstream, for manifests and for blobs each.
pub const IDLE_CONNECTIONS: usize = 4;
/// Most bytes of extensions and leading zeros in one line of a chunk. Each costs time and no memory.
pub const CHUNK_LINE_BYTES_MAX: u64 = 16 * KIB;
/// How long an idle upstream connection is kept warm.
pub const IDLE_CONNECTION_AGE: Duration = Duration::from_secs(90);
/// Longest one question to an upstream may take with its token, redirects and second tries, so that an answer is
/// left of [`MISS_WAIT_MAX`]. A blob's body is not part of it.
pub const QUESTION_TIME_MAX: Duration = Duration::from_secs(20);
/// Longest a probe waits for the header of its answer, whatever `header_timeout` is.
pub const PROBE_HEADER_TIME_MAX: Duration = Duration::from_secs(10);
/// Name lookups that may be under way: each is a thread, which the C library may hold for half a minute.
pub const NAME_LOOKUPS_MAX: usize = 32;
/// Addresses of one host that a connection is tried to; the last is begun before `fetch.connect_timeout` is over by default.
pub const CONNECT_ATTEMPTS_MAX: usize = 16;
/// Pause after which the next address of a host is tried beside those that have not answered (RFC 8305, section 8).
pub const CONNECT_ATTEMPT_PAUSE: Duration = Duration::from_millis(250);
/// Hosts of which it is remembered which address answered last: some 100 bytes each.
pub const PATHS_MAX: usize = 256;
/// Longest header of a proxy's answer to CONNECT.
pub const PROXY_HEADER_BYTES_MAX: usize = 8 * 1024;
/// Stack of a thread that looks up a name or probes (a TLS handshake in a debug build must fit).
pub const SMALL_STACK_BYTES: usize = 512 * 1024;
/// Buffer for one request to an upstream: the longest token and redirect address must fit.
pub const UPSTREAM_REQUEST_BYTES_MAX: usize = 32 * 1024;
/// Longest token and longest redirect address taken.
pub const UPSTREAM_TEXT_BYTES_MAX: usize = 12 * 1024;
/// How much of an error answer is read, for its message and so that its connection stays usable.
pub const ERROR_BODY_BYTES_MAX: u64 = 16 * KIB;
/// Most names taken from one page of an upstream's list.
pub const UPSTREAM_NAMES_MAX: usize = 65_536;
/// Longest a token is believed, whatever its server says.
pub const TOKEN_AGE_MAX: Duration = Duration::from_secs(24 * 3600);
/// What a downloader may take at once after a pause where `bandwidth` is set.
pub const BANDWIDTH_BURST: Duration = Duration::from_millis(100);
/// Largest bundle of trust roots read.
pub const CA_BYTES_MAX: u64 = 8 * MIB;
/// Networks of `fetch.allow_networks`.
pub const ALLOWED_NETWORKS_MAX: usize = 64;
/// Largest configuration read.
pub const CONFIG_BYTES_MAX: u64 = MIB;
/// Largest password file read: about ten thousand users.
pub const HTPASSWD_BYTES_MAX: u64 = MIB;
/// Largest key, password or other secret read from a file of its own.
pub const SECRET_FILE_BYTES_MAX: u64 = 64 * KIB;

/// Stack of a fetch, lane or probe thread.
pub const THREAD_STACK_BYTES: usize = 512 * 1024;
/// After an unclean shutdown so much is cut off the end of an unfinished download, and the rest is rounded down to a
/// multiple of it.
pub const TORN_BYTES: u64 = 64 * KIB;
/// First pause before a parked fill whose upstream answers is tried again; it doubles up to an hour.
pub const FILL_REVIVAL_PAUSE: Duration = Duration::from_secs(15);
/// Times a parked fill is tried again by itself; after that it waits for a client or a restart.
pub const FILL_REVIVALS_MAX: u32 = 12;
/// What may be kept in memory of tags: what the store says of them, when upstream was asked, what was logged, what peers
/// claim. Beyond that the half that was not used for the longest is forgotten. Part of [`MEMORY_BASE_BYTES`].
pub const TAG_TABLE_BYTES_MAX: usize = 3 * 1024 * 1024;
/// What an entry costs without what the store says: its names, two digests, the table it is in.
pub const TAG_ENTRY_COST_BYTES: usize = 512;
/// What each version costs that a tag has.
pub const TAG_VERSION_COST_BYTES: usize = 128;
/// What may be kept in memory of small manifests; beyond that all are read again. Part of [`MEMORY_BASE_BYTES`].
pub const SMALL_MANIFESTS_BYTES_MAX: usize = 1024 * 1024;
/// What one costs beside its bytes: names, digest, the table it is in.
pub const SMALL_MANIFEST_COST_BYTES: usize = 512;
/// Largest manifest whose bytes are kept: a real one has 1 to 10 KiB.
pub const SMALL_MANIFEST_BYTES_MAX: u64 = 16 * KIB;
/// Content whose media type is remembered as its bytes parse; beyond that all is parsed again. Part of
/// [`MEMORY_BASE_BYTES`].
pub const PARSED_TYPES_MAX: usize = 1_024;
/// How long an answer counts that a registry gave to everybody: a day, in which few images turn private.
pub const PROOF_AGE_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// Answers kept in memory of what registries show to everybody, at about 300 bytes each; beyond that the oldest is asked
/// again. Part of [`MEMORY_BASE_BYTES`].
pub const PROOFS_MAX: usize = 2_048;
/// Manifests of a repository that are looked at for what names some content, the newest first.
pub const NAMING_MANIFESTS_MAX: usize = 256;
/// Of those that name it, so many are asked about.
pub const PROOFS_ASKED_MAX: usize = 3;
/// Classes kept in memory of repositories that 0.1.0 left, where the disk takes no change; beyond that all are found again.
/// Part of [`MEMORY_BASE_BYTES`].
pub const FOUND_CLASSES_MAX: usize = 512;
/// Sizes kept in memory of content that manifests name and the index does not, at about 250 bytes each. Part of
/// [`MEMORY_BASE_BYTES`].
pub const NAMED_BLOBS_MAX: usize = 2_048;
/// Pause between two log lines that a tag has a stale answer, while the answer stays the same.
pub const STALE_REPORT_EVERY: Duration = Duration::from_secs(1);

/// Least memory.max: what the process needs with one client and one download.
pub const MEMORY_MIN: u64 = 16 * MIB;

// -- Clients ---------------------------------------------------------------------------------------------------

/// What the process needs before any client: program, threads, lanes, the pages of the index that it has read, facts
/// about tags, spare buffers, the download slot that is kept for a registry without one.
pub const MEMORY_BASE_BYTES: u64 = 10 * MIB;
/// What a download holds: a chunk, the HTTP client's buffers, its TLS session.
pub const DOWNLOAD_COST_BYTES: u64 = 512 * KIB;
/// What all connections of peers hold: a chunk each, and as much of its thread's stack.
pub const KIT_BYTES: u64 = KIT_CONNECTIONS_MAX as u64 * 2 * SERVE_CHUNK_BYTES as u64;
/// What a client's connection holds while it is idle or asks small questions.
pub const CONNECTION_COST_BYTES: u64 = 24 * KIB;
/// What TLS adds to that.
pub const CONNECTION_TLS_COST_BYTES: u64 = 40 * KIB;
/// What the body of an answer holds: a piece that was read, and one that waits for the client.
pub const BODY_COST_BYTES: u64 = 2 * SERVE_CHUNK_BYTES as u64;
/// Pause between two looks whether a certificate or the password file has changed.
pub const WATCHED_FILES_EVERY: Duration = Duration::from_secs(1);
/// Longest user name taken from a client's certificate.
pub const CERTIFICATE_NAME_BYTES_MAX: usize = 256;
/// What is allocated in one piece of this size or more has pages of its own, which go back to the system when it is freed (only
/// glibc is told): large documents are freed as soon as they have been served, and buffers, which are smaller, are used again.
pub const ALLOCATION_OF_ITS_OWN_BYTES: i32 = 1024 * 1024;
/// Arenas that smaller pieces come from (glibc): each keeps what was freed in it, and a board has few cores.
pub const ARENAS_MAX: i32 = 2;
/// Most client connections at a time, whatever `memory.max` would pay for: file descriptors are limited too.
pub const CONNECTIONS_MAX: u64 = 512;
/// Fewest connections, and bodies, at a time, however small `memory.max` is: a pull has three and a node a few pulls.
pub const CLIENTS_MIN: u64 = 8;
/// How long a connection or a body waits for others to end before it is answered 503.
pub const ADMISSION_WAIT_MAX: Duration = Duration::from_secs(1);
/// Connections that may wait for that, or be on their way out with a 503; one more is closed.
pub const CONNECTIONS_WAITING_MAX: usize = 64;
/// Longest a rejected connection may take for its request and the 503.
pub const REJECTION_TIME: Duration = Duration::from_secs(3);
/// Longest a client may take to send a request's header, and longest a kept connection may idle.
pub const REQUEST_HEADER_TIME: Duration = Duration::from_secs(30);
/// A client that takes no byte for this long is cut; it can resume by Range.
pub const CLIENT_STALL_TIME: Duration = Duration::from_secs(60);
/// What is read from a blob's file at a time for a client; each connection may hold one such piece and what hyper buffers.
pub const SERVE_CHUNK_BYTES: usize = 64 * 1024;
/// Most of a file that is handed to the kernel in one piece for a client. It costs address space once and no memory.
pub const DIRECT_PIECE_BYTES: usize = 4 * 1024 * 1024;
/// What one client may be sent of files before the others on its thread have their turn: milliseconds at memory speed.
pub const DIRECT_TURN_BYTES: usize = 4 * 1024 * 1024;
/// Largest body, or end of one, that is copied to go out together with its header.
pub const COPIED_BYTES_MAX: u64 = 16 * KIB;
/// Distance between the bytes that are probed to see whether a file is in memory. A gap that the probes miss costs the
/// thread one short read; a probe costs as much as sending some 10 KiB.
pub const PAGE_CACHE_PROBE_STEP_BYTES: usize = 1024 * 1024;
/// Bytes of a file that are read into memory at a time for a client: an SD card takes some milliseconds for them.
pub const COLD_PIECE_BYTES: usize = 256 * 1024;
/// Reads at a time that wait for the disk for clients: enough to keep a disk busy, and most of
/// [`BLOCKING_THREADS_MAX`] stay free for short questions.
pub const COLD_READS_MAX: usize = 8;
/// In a control group whose memory limit is below this, the page cache of big bodies is given back: one or two layers
/// would fill it.
pub const SMALL_GROUP_BYTES: u64 = 512 * MIB;
/// On a board with less memory the page cache of big bodies is given back, too: its pods need it.
pub const SMALL_BOARD_BYTES: u64 = 4 * GIB;
/// Smallest file whose page cache is given back.
pub const GIVE_BACK_BYTES_MIN: u64 = 8 * MIB;
/// How much longer than a stall, a connection and an answer may take a reader waits for a download that runs, which has
/// resumed by then.
pub const STALL_LEEWAY: Duration = Duration::from_secs(1);
/// Smallest page that a kernel has.
pub const PAGE_BYTES_MIN: usize = 4096;
/// Buffers for bodies that are kept for the next one; part of [`MEMORY_BASE_BYTES`].
pub const SPARE_BUFFERS_MAX: usize = 16;
/// What hyper may buffer for one connection, request header included. Requests that make sense are a few hundred bytes.
pub const CONNECTION_BUFFER_BYTES: usize = 16 * 1024;
/// Longest a client waits for the first byte of a blob whose download waits for its turn.
pub const QUEUE_WAIT_MAX: Duration = Duration::from_secs(3_600);
/// Passwords that are verified at a time: one for a client, and one for another.
pub const LOGIN_CHECKS_MAX: usize = 2;
/// Longest a login waits while earlier ones are checked.
pub const LOGIN_WAIT_MAX: Duration = Duration::from_secs(10);
/// How long a registry's yes to a client's pull secret counts, in running time.
pub const PULL_SECRET_TIME: Duration = Duration::from_secs(300);
/// Such answers remembered, 200 bytes each: a pull of one image takes about ten.
pub const PULL_SECRETS_MAX: usize = 1_024;
/// How long its no is remembered, so that a client that retries at once is not asked for again.
pub const PULL_SECRET_PAUSE: Duration = Duration::from_secs(5);
/// Such answers remembered: more are asked again, at the pace of [`PULL_SECRET_CHECKS_MAX`].
pub const PULL_SECRETS_REFUSED_MAX: usize = 256;
/// Manifests of a repository that were shown to a login and are searched for what it asks for next.
pub const PULL_SECRET_MANIFESTS_MAX: usize = 16;
/// Pull secrets that registries are asked about at a time; an eighth is kept for clients and registries that have none.
pub const PULL_SECRET_CHECKS_MAX: usize = 32;
/// Of these one client has so many at one registry, so that one that hangs leaves places for the others.
pub const PULL_SECRET_CHECKS_EACH: usize = 8;
/// How long a pull secret that was refused keeps its place among them: a client guesses eight times a second.
pub const PULL_SECRET_REFUSED_PLACE: Duration = Duration::from_secs(1);
/// Threads for each registry that ask about pull secrets, apart from those for tags.
pub const PULL_SECRET_LANES: usize = 4;
/// Longest the question about a pull secret may take, with its token.
pub const PULL_SECRET_TIME_MAX: Duration = Duration::from_secs(8);
/// Longest a client waits for that, with the questions before it: together with [`QUESTION_TIME_MAX`] no longer than
/// containerd waits.
pub const PULL_SECRET_WAIT_MAX: Duration = Duration::from_secs(10);
/// Cost of the slow hash of a kept login: about a tenth of a second of a core of a small board.
pub const KEPT_LOGIN_COST: u32 = 10;
/// Logins kept on the disk for `auth.offline_grace`: one for each repository and user, the newest.
pub const KEPT_LOGINS_MAX: usize = 256;
/// Longest user name of a kept login in bytes; with repository and hash an entry stays below 1 KiB.
pub const KEPT_USER_BYTES_MAX: usize = 256;
/// Longest until kept logins that are over leave the disk, and until it knows when others were accepted last.
pub const KEPT_LOGINS_EVERY: Duration = Duration::from_secs(60);
/// Largest file of kept logins that is read.
pub const KEPT_LOGINS_BYTES_MAX: u64 = 512 * 1024;
/// Longest `auth.offline_grace`.
pub const OFFLINE_GRACE_MAX: Duration = Duration::from_secs(365 * 24 * 3_600);
/// Bytes of corrupt blobs that are kept in quarantine for inspection; of further ones only the names are kept.
pub const QUARANTINE_BYTES_MAX: u64 = 64 * MIB;
/// Names of corrupt blobs that are kept so that the blobs can be refetched.
pub const QUARANTINE_FILES_MAX: usize = 1_024;
/// Interval of the most frequent maintenance chores, all of which run in one wake-up.
pub const MAINTENANCE_TICK: Duration = Duration::from_millis(500);
/// Pause between attempts to refetch corrupt blobs.
pub const REFETCH_PAUSE: Duration = Duration::from_secs(15);
/// Threads that hash content which is served for the first time after an unclean shutdown.
pub const RECHECKS: usize = 2;
/// An unverified blob up to this size is hashed before the answer begins. For a larger one the header goes out first:
/// the hash takes longer than clients wait for a header.
pub const RECHECK_FIRST_BYTES: u64 = 4 * MIB;
/// Time in which the scrub reads every blob once.
pub const SCRUB_PASS: Duration = Duration::from_secs(30 * 24 * 3600);
/// The same while there are blobs that were not verified since an unclean shutdown.
pub const SCRUB_PASS_UNVERIFIED: Duration = Duration::from_secs(24 * 3600);
/// Pause of the scrub after its last blob, so that a small store is not read all the time.
pub const SCRUB_REST: Duration = Duration::from_secs(24 * 3600);
/// Pause of the scrub after a start, and after a step that failed or was interrupted.
pub const SCRUB_PAUSE: Duration = Duration::from_secs(60);
/// How often the position of the scrub is saved.
pub const SCRUB_SAVE_EVERY: Duration = Duration::from_secs(6 * 3600);
/// What the scrub adds to the nice value of its thread; the kernel derives the priority of its reads from it.
pub const SCRUB_NICE: i32 = 19;
/// What a scrub reads at a time.
pub const SCRUB_CHUNK_BYTES: usize = 256 * 1024;
/// Longest a request waits for upstream when there is nothing else to serve; well under containerd's 30 s.
pub const MISS_WAIT_MAX: Duration = Duration::from_secs(25);
/// Repositories or tags read from the index in one step of a walk over all of them.
pub const LISTING_STEP: usize = 256;
/// Least that a `disk.min_free` in hundredths leaves free: a small card needs as much for logs and updates.
pub const MIN_FREE_BYTES: u64 = 512 * MIB;
/// Inodes left free, in hundredths: a kubelet declares disk pressure below 5.
pub const INODES_FREE_PERCENT: u8 = 10;
/// When images give way to others on the file system, so many hundredths of it are freed beyond what is missing, and at
/// most [`FREE_STEP_BYTES_MAX`], so that a neighbour that grows slowly does not cost an image every two seconds.
pub const FREE_STEP_PERCENT: u8 = 2;
/// See [`FREE_STEP_PERCENT`].
pub const FREE_STEP_BYTES_MAX: u64 = 64 * MIB;
/// Room that is looked for at once for bytes of which no manifest says how many will come.
pub const ROOM_STEP_BYTES: u64 = MIB;
/// Bytes of downloads that ended early and wait for their upstream or a client: a few large layers. Where `disk.max` is
/// set, at most half of that. The last one stays.
pub const STAGED_IDLE_BYTES_MAX: u64 = 4 * GIB;
/// Running time after which such a download goes if no byte came: long enough for an uplink that comes once a week.
pub const STAGED_AGE_MAX: Duration = Duration::from_secs(14 * 24 * 3600);
/// Pause after an attempt to make room that freed too little.
pub const ROOM_PAUSE: Duration = Duration::from_secs(5);
/// Longest such pause; it doubles while nothing changes.
pub const ROOM_PAUSE_MAX: Duration = Duration::from_secs(300);
/// Most pages of an endpoint's catalogue that are looked through for a name under its prefix.
pub const CATALOGUE_PAGES_MAX: usize = 16;
/// How often free space is checked, which other programs may use up.
pub const DISK_WATCH_EVERY: Duration = Duration::from_secs(2);
/// Longest a client waits for a place of an uncached stream, so that an answer is left of [`MISS_WAIT_MAX`].
pub const STREAM_WAIT_MAX: Duration = Duration::from_secs(10);
/// First pause before a piece of an uncached stream is offered again to a client that has not taken the one before.
pub const STREAM_LOOK_PAUSE_MIN: Duration = Duration::from_millis(1);
/// Longest such pause; it doubles: a client that takes a piece in less waits for nothing.
pub const STREAM_LOOK_PAUSE_MAX: Duration = Duration::from_millis(16);
/// How far beyond what has come of a download a client's range begins that should not wait for it: what an uplink of 10
/// Mbit/s brings in the time of a request of its own over a satellite (two round trips, 1.2 s), which is not worth less.
pub const FAR_AHEAD_BYTES: u64 = 3 * MIB / 2;
/// Largest range that is asked for beside the download (`fetch.early_ranges`): lazy-pulling clients want a table of
/// contents or a file, and what is larger costs the uplink more than it saves.
pub const EARLY_RANGE_BYTES_MAX: u64 = 4 * MIB;
/// Longest such a range waits for its place and its first byte before it waits for the download after all, so that time
/// is left for that of the 30 s after which clients give up.
pub const EARLY_RANGE_WAIT_MAX: Duration = Duration::from_secs(4);
/// Pieces of an uncached stream that may wait for its client.
pub const STREAM_PIECES: usize = 1;

/// Most names in one page of `tags/list` or `_catalog`.
pub const PAGE_NAMES_MAX: usize = 1_000;
/// Pages of one list that a client is led through: a list without an end does end here.
pub const LIST_PAGES_MAX: u32 = 16_384;
/// Questions for pages that one client's request for a list may cost its upstream, whatever makes them necessary: empty pages,
/// names that are not shown, other endpoints, second tries. Each may take a token or a redirect besides.
pub const LIST_REQUESTS_MAX: usize = 32;
/// Pages without a name to show that are passed over in a row for one answer.
pub const EMPTY_PAGES_MAX: usize = 16;
/// Longest address of a next page that an upstream may state, in bytes; it travels to the client and back.
pub const NEXT_PAGE_BYTES_MAX: usize = 2 * 1024;
/// Largest list of tags or referrers taken from an upstream.
pub const LIST_BYTES_MAX: u64 = 4 * MIB;
/// Largest list of referrers made from what is cached: some thousand descriptors.
pub const REFERRERS_BYTES_MAX: usize = 256 * 1024;
/// Pulls whose outcome is being gathered for the log; the oldest is logged early when one more begins.
pub const PULLS_TRACKED_MAX: usize = 256;
/// A pull with no request for this long is over, and its outcome is logged.
pub const PULL_IDLE: Duration = Duration::from_secs(3);
/// Verified passwords remembered, so that bcrypt is paid once and not per request.
pub const LOGINS_REMEMBERED_MAX: usize = 64;
/// Longest password of a client in bytes: bcrypt ignores what follows.
pub const PASSWORD_BYTES_MAX: usize = 72;
/// How long a command, or a server that starts, waits while another process has the store's lock.
pub const LOCK_WAIT_MAX: Duration = Duration::from_secs(5);
/// Pause between two attempts to take that lock.
pub const LOCK_WAIT_STEP: Duration = Duration::from_millis(50);
/// Control connections (the commands of the same binary) at a time.
pub const CONTROL_CONNECTIONS_MAX: usize = 8;
/// Longest request of a command: an image, a digest.
pub const CONTROL_REQUEST_BYTES_MAX: u64 = 16 * KIB;
/// Longest line of an answer to a command. An answer has as many as it needs: one for each image, for example.
pub const CONTROL_BYTES_MAX: u64 = MIB;
/// Images named in one line; further ones are named in further lines.
pub const CONTROL_NAMES_MAX: usize = 1_024;
/// Images that one request of `larder check` names; further ones are named in further requests. A name has at most some 800
/// bytes.
pub const CHECK_IMAGES_MAX: usize = 16;
/// Files of a runtime's configuration that are looked through for its sandbox image.
pub const SANDBOX_FILES_MAX: usize = 64;
/// Platforms that are named of an image that lacks the wanted one.
pub const CHECK_NAMES_MAX: usize = 8;
/// Longest an image report is reused. Uses of images do not end it earlier.
pub const IMAGE_REPORT_AGE_MAX: Duration = Duration::from_secs(5);

/// How often a long command reports its progress.
pub const CONTROL_PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// Least limit of open files to start with: some 25 are open before the first client comes.
pub const OPEN_FILES_MIN: u64 = 64;
/// Threads for work that waits for the disk; all are made at the start.
pub const BLOCKING_THREADS_MAX: usize = 32;
/// Work that may wait for one of them: two questions of each of [`CONNECTIONS_MAX`] clients.
pub const BLOCKING_QUEUE_MAX: usize = 2 * CONNECTIONS_MAX as usize;
/// How long requests under way may take to end when larder stops.
pub const STOP_GRACE: Duration = Duration::from_secs(2);

// -- Service manager -------------------------------------------------------------------------------------------

/// Signs of life in one watchdog period. With WatchdogSec=2min a beat is due every 30 s, so that a rebuild of the index
/// that fails and is tried again after [`REBUILD_PAUSE`] is no reason to be killed.
pub const WATCHDOG_BEATS: u32 = 4;
/// How often systemd's status line is updated where no watchdog is set.
pub const STATUS_EVERY: Duration = Duration::from_secs(30);
/// Most sockets taken from a socket unit: a few addresses, each IPv4 and IPv6.
pub const INHERITED_SOCKETS_MAX: u32 = 16;

// -- Peers -----------------------------------------------------------------------------------------------------

/// Most peers a configuration may name: a tag is asked of all of them at once, each on a thread of its own.
pub const PEERS_MAX: usize = 16;
/// Longest that all peers together may delay the answer to a tag. They are near: what takes longer is no help.
pub const PEER_DEADLINE: Duration = Duration::from_millis(300);
/// Longest until a peer's answer with content begins; its card may be busy, but the next source waits.
pub const PEER_CONTENT_TIME: Duration = Duration::from_secs(1);
/// A peer that sends no byte of content for this long is given up.
pub const PEER_STALL_TIME: Duration = Duration::from_secs(5);
/// Pause after the first failure of a peer; it doubles up to [`PEER_PAUSE_MAX`].
pub const PEER_PAUSE_MIN: Duration = Duration::from_secs(1);
/// Longest pause of a peer that fails, and the pause of one that sent wrong bytes.
pub const PEER_PAUSE_MAX: Duration = Duration::from_secs(60);
/// Questions for tags that one peer is asked at a time, so that other questions find a place among
/// [`KIT_CONNECTIONS_EACH`].
pub const PEER_TAGS_MAX: usize = 8;
/// How far a peer's claim may be ahead of a clock that is set: as far as the clocks of boards differ.
pub const CLAIM_AHEAD_MAX: Duration = Duration::from_secs(600);
/// Shortest secret of a kit, in bytes: an attacker can try guesses without asking a board each time.
pub const KIT_SECRET_BYTES_MIN: usize = 16;
/// Largest question or answer between peers, content apart: the longest names and 16 platforms fit.
pub const KIT_FRAME_BYTES_MAX: usize = 16 * 1024;
/// Platforms that a peer may ask about in one question; each is a walk over the closure.
pub const KIT_PLATFORMS_MAX: usize = 16;
/// Peers' connections at a time, each a thread with one piece of content; one more is closed at once.
pub const KIT_CONNECTIONS_MAX: usize = 32;
/// Of these, the most from one address, so that one board cannot shut the others out.
pub const KIT_CONNECTIONS_EACH: usize = 16;
/// Longest a peer may take to prove that it knows the secret.
pub const KIT_HANDSHAKE_TIME: Duration = Duration::from_secs(2);
/// Longest a peer's connection may be without a question, and longest a question may take to come in.
pub const KIT_IDLE_TIME: Duration = Duration::from_secs(10);
/// A peer that takes no byte for this long is cut.
pub const KIT_STALL_TIME: Duration = Duration::from_secs(20);

// -- Store -----------------------------------------------------------------------------------------------------

/// Largest size of the index; address space, not disk. 32-bit boards cannot map more than 1 GiB.
pub const INDEX_MAP_BYTES: usize = if cfg!(target_pointer_width = "64") { 8 << 30 } else { 1 << 30 };
/// Repositories of a registry that are remembered; what comes of others is passed on.
pub const REGISTRY_REPOSITORIES_MAX: usize = 4_096;
/// Tags of a registry that are remembered, of some 400 bytes each in the index and in the journal; others are answered while
/// their registry can be reached.
pub const REGISTRY_TAGS_MAX: usize = 16_384;
/// Of these, the most of one repository.
pub const REPOSITORY_TAGS_MAX: usize = 2_048;
/// Readers of the index at a time.
pub const INDEX_READERS: u32 = 256;
/// Size that LMDB's lock file is given before it is mapped: more than [`INDEX_READERS`] need.
pub const INDEX_LOCK_BYTES: u64 = 32 * KIB;
/// Longest wait for readers of an index that is to be replaced; none holds it for longer than a look-up.
pub const INDEX_CLOSE_TIME: Duration = Duration::from_secs(10);
/// Longest that another process may take to read all of an index: with 100,000 blobs a Pi Zero takes seconds from a slow
/// card. One that takes longer is rebuilt; meanwhile nothing is answered.
pub const INDEX_EXAMINE_TIME: Duration = Duration::from_secs(20);
/// Longest answer of that process that is read: a sentence.
pub const INDEX_VERDICT_BYTES_MAX: usize = 4 * 1024;
/// Records of an index that are copied in one transaction, which has their pages in memory: some 1 MiB.
pub const INDEX_COPY_RECORDS: usize = 4_096;
/// What is read of the index at a time for its fingerprint; a multiple of eight bytes.
pub const FINGERPRINT_CHUNK_BYTES: usize = 256 * 1024;
/// Longest file of a fingerprint that is read; one that larder wrote has about 70 bytes.
pub const FINGERPRINT_BYTES_MAX: u64 = KIB;
/// The tag journal is rewritten when it has grown to this and to twice what it needs.
pub const JOURNAL_COMPACT_BYTES: u64 = 4 * MIB;
/// Longest record of the journal.
pub const JOURNAL_RECORD_BYTES_MAX: usize = 64 * 1024;
/// Largest count of an event or a use that is believed where one is read from the disk: more than are ever given out, and
/// far from where counting would begin again at nought.
pub const COUNT_MAX: u64 = 1 << 62;
/// Uses of blobs kept in memory before they are written in one batch.
pub const TOUCHES_MAX: usize = 16_384;
/// Counts that uses of blobs may take before the session file must be written again; a power cut skips at most as many.
pub const COUNTS_AHEAD: u64 = 20_000;
/// Largest note of where staged content comes from; one that larder wrote has a few hundred bytes.
pub const ORIGIN_BYTES_MAX: u64 = 4 * KIB;
/// Largest session file read; one that larder wrote has a few kilobytes.
pub const SESSION_BYTES_MAX: usize = 64 * 1024;
/// Notes of how counts compare with running time, each good for a part of `disk.expire_unused` (see below).
pub const USE_MARKS_MAX: usize = 64;
/// The part of `disk.expire_unused` that passes between two such notes, so that they reach back far enough.
pub const USE_MARKS_EACH: u32 = 32;
/// Longest pause between two searches for images that were not used for `disk.expire_unused`.
pub const EXPIRE_EVERY: Duration = Duration::from_secs(600);
/// How often the batch of [`TOUCHES_MAX`] uses is written.
pub const TOUCH_FLUSH_EVERY: Duration = Duration::from_secs(60);
/// Longest `history` a tag may have.
pub const HISTORY_MAX: usize = 64;
/// Tags whose new version is watched until it is complete, for each repository.
pub const PENDING_TAGS_MAX: usize = 1_024;
/// Pieces of content that versions wait for, in all repositories, at about 300 bytes each. Part of [`MEMORY_BASE_BYTES`].
pub const WAITING_MAX: usize = 4_096;
/// The same in each repository: one version that is an index of a thousand images for one platform.
pub const WAITING_EACH: usize = 1_024;
/// Looks at content in one walk over the tags of a repository: after a start for those that wait for something, for a
/// version that stands in, and for the images that lack a corrupt blob. What is left is looked at when its tag is asked for.
pub const SETTLE_LOOKS_MAX: usize = 8_192;

// -- Clients' files --------------------------------------------------------------------------------------------

/// Largest file of a client that is read: the longest real ones have some hundred lines.
pub const CLIENT_FILE_BYTES_MAX: u64 = MIB;
/// How long containerd (2.1 and later) tries to connect to larder before it asks the origin; 30 s is its own choice.
pub const CLIENT_DIAL_TIME: Duration = Duration::from_secs(2);

// -- Doctor ----------------------------------------------------------------------------------------------------

/// Longest that doctor waits for all upstreams together; each is asked on a thread of its own.
pub const DOCTOR_UPSTREAMS_TIME: Duration = Duration::from_secs(25);
/// Longest that doctor waits for the running server.
pub const DOCTOR_SERVER_TIME: Duration = Duration::from_secs(10);
/// Longest that doctor writes to the disk to measure its speed.
pub const DOCTOR_DISK_TIME: Duration = Duration::from_secs(3);
/// Bytes of one such write, and the most writes: 8 MiB in all.
pub const DOCTOR_DISK_WRITES: (usize, u64) = (MIB as usize, 8);
/// Small writes with a flush each, whose median is the time of a flush.
pub const DOCTOR_FLUSHES: u32 = 16;
/// Blobs of a client's store that doctor examines; it says if there are more.
pub const DOCTOR_BLOBS_MAX: usize = 100_000;
/// Bytes of its manifests that are read to tell layers from the rest.
pub const DOCTOR_MANIFEST_BYTES_MAX: u64 = 64 * MIB;
/// Largest file of /proc and /sys that is read.
pub const DOCTOR_TEXT_BYTES_MAX: u64 = 4 * MIB;
/// Processes whose arguments doctor looks at.
pub const DOCTOR_PROCESSES_MAX: usize = 4_096;
/// Open files of all processes that doctor searches for the owner of a port.
pub const DOCTOR_OPEN_FILES_MAX: usize = 100_000;
/// A card or stick that reports a flush as done sooner than this is lying: its cells take longer.
pub const DOCTOR_FLUSH_TIME_MIN: Duration = Duration::from_micros(150);

// -- Log -------------------------------------------------------------------------------------------------------

/// Longest line of the log; of what is longer the rest is counted.
pub const LOG_LINE_BYTES_MAX: usize = 4 * 1024;
/// Lines of one kind that are written at once: the start of a node with its images fits.
pub const LOG_BURST: u32 = 20;
/// After those one more may be written in this time.
pub const LOG_REFILL: Duration = Duration::from_secs(1);
/// The same of debug lines, which are written for who looks for something.
pub const LOG_DEBUG_BURST: u32 = 1_000;
/// The same of debug lines.
pub const LOG_DEBUG_REFILL: Duration = Duration::from_millis(100);
/// Longest until it is reported how many lines were left out.
pub const LOG_SUMMARY_EVERY: Duration = Duration::from_secs(10);
/// Kinds of lines that are told apart: more than there are places in the source that log.
pub const LOG_KINDS_MAX: usize = 512;
