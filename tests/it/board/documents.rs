//! Documents of 4 MB that are cheap to send and dear to read.

use larder::oci::media;
use std::fmt::Write;

/// What an upstream may send at most.
pub const BYTES: usize = 4 * 1024 * 1024;

/// A text of pieces, as many as fit, between a beginning and an end.
pub fn filled(begin: &str, piece: impl Fn(usize) -> String, end: &str) -> Vec<u8> {
    let mut text = String::with_capacity(BYTES);
    text.push_str(begin);
    for n in 0.. {
        let piece = piece(n);
        if text.len() + piece.len() + 1 + end.len() > BYTES {
            break;
        }
        if n > 0 {
            text.push(',');
        }
        text.push_str(&piece);
    }
    text.push_str(end);
    text.into_bytes()
}

/// The digest of nothing that exists.
pub fn digest(n: usize) -> String {
    let mut text = String::from("sha256:");
    let _ = write!(text, "{n:064x}");
    text
}

/// An index that has `inner` beside its one child.
fn index_with(key: &str, open: &str, piece: impl Fn(usize) -> String, close: &str) -> Vec<u8> {
    let child = format!(r#"{{"mediaType":"{}","digest":"{}","size":7}}"#, media::OCI_MANIFEST, digest(1));
    let begin = format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[{child}],"{key}":{open}"#,
        media::OCI_INDEX
    );
    filled(&begin, piece, &format!("{close}}}"))
}

/// An index of descriptors.
pub fn index_of(descriptor: impl Fn(usize) -> String) -> Vec<u8> {
    let begin = format!(r#"{{"schemaVersion":2,"mediaType":"{}","manifests":["#, media::OCI_INDEX);
    filled(&begin, descriptor, "]}")
}

/// Every kind of bomb, by name.
pub fn bombs() -> Vec<(&'static str, Vec<u8>)> {
    let manifest = media::OCI_MANIFEST;
    let minimal = |n: usize| format!(r#"{{"digest":"{}"}}"#, digest(n));
    let long = "\\u0061".repeat(600_000);
    let plain = "x".repeat(3_900_000);
    let pad = "y".repeat(900);
    let names = move |n: usize| {
        let name = |what| format!("{what}{n}{}", "z".repeat(250));
        format!(
            r#"{{"mediaType":"{manifest}","digest":"{}","size":7,"platform":{{"os":"{}","architecture":"{}","variant":"{}"}}}}"#,
            digest(n),
            name("o"),
            name("a"),
            name("v")
        )
    };
    let few = |n: usize| {
        if n < 4_000 {
            format!(r#"{{"mediaType":"{pad}","digest":"{}","size":1}}"#, digest(n))
        } else {
            "{".repeat(BYTES)
        }
    };
    vec![
        ("numbers in annotations", index_with("annotations", "{\"a\":[", |_| "1".into(), "]}")),
        ("numbers by name", index_with("annotations", "{", |n| format!("\"{n:x}\":1"), "}")),
        ("texts by name", index_with("annotations", "{", |n| format!("\"{n:x}\":\"\""), "}")),
        ("keys that nobody knows", index_with("x", "1,", |n| format!("\"{n:x}\":{{}}"), "")),
        ("descriptors", index_of(minimal)),
        ("few descriptors", index_of(few)),
        ("layers", {
            let begin = format!(r#"{{"schemaVersion":2,"mediaType":"{manifest}","layers":["#);
            filled(&begin, minimal, "]}")
        }),
        (
            "urls",
            index_of(|n| {
                let urls = vec!["\"\""; 1_000_000].join(",");
                format!(r#"{{"mediaType":"{manifest}","digest":"{}","size":7,"urls":[{urls}]}}"#, digest(n))
            }),
        ),
        (
            "numbers for urls",
            index_of(|n| {
                let urls = vec!["1"; 1_900_000].join(",");
                format!(r#"{{"mediaType":"{manifest}","digest":"{}","size":7,"urls":[{urls}]}}"#, digest(n))
            }),
        ),
        (
            "features of platforms",
            index_of(|n| {
                let features = vec!["\"a\""; 900_000].join(",");
                format!(
                    r#"{{"mediaType":"{manifest}","digest":"{}","size":7,"platform":{{"os":"linux","architecture":"arm64","os.features":[{features}]}}}}"#,
                    digest(n)
                )
            }),
        ),
        ("long names of platforms", index_of(names)),
        (
            "lists in lists",
            index_with(
                "x",
                "",
                |n| if n == 0 { "[".repeat(2_000_000) + &"]".repeat(2_000_000) } else { "{".repeat(BYTES) },
                "",
            ),
        ),
        (
            "objects in objects",
            index_with(
                "x",
                "",
                |n| {
                    if n == 0 {
                        "{\"\":".repeat(700_000) + "1" + &"}".repeat(700_000)
                    } else {
                        "{".repeat(BYTES)
                    }
                },
                "",
            ),
        ),
        (
            "a text with escapes",
            index_with(
                "artifactType",
                "",
                |n| if n == 0 { format!("\"{long}\"") } else { "{".repeat(BYTES) },
                "",
            ),
        ),
        (
            "a key with escapes",
            index_with("x", "1,", |n| if n == 0 { format!("\"{long}\":1") } else { "{".repeat(BYTES) }, ""),
        ),
        ("a text for a list", format!(r#"{{"schemaVersion":2,"layers":"{plain}"}}"#).into_bytes()),
        ("a text for a number", format!(r#"{{"schemaVersion":"{plain}","layers":[]}}"#).into_bytes()),
        ("a text for a document", format!("\"{plain}\"").into_bytes()),
        ("a text for a media type", format!(r#"{{"mediaType":"{plain}","layers":[]}}"#).into_bytes()),
        ("a text for a digest", format!(r#"{{"layers":[{{"digest":"{plain}"}}]}}"#).into_bytes()),
        ("the same key again", index_with("x", "1,", |_| "\"annotations\":{\"a\":1}".into(), "")),
        (
            "a number without end",
            index_with("size", "", |n| if n == 0 { "1".repeat(3_900_000) } else { "{".repeat(BYTES) }, ""),
        ),
    ]
}
