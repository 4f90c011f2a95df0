//! The readers of texts: where statements stand in TOML, JSON and YAML, and what of YAML is not read.

use super::json_text;
use super::toml_text::{StatementKind, end_of_root, parse, statements};
use super::yaml_text::{child, lines, list, said};

#[test]
fn toml_statements_are_found_where_they_stand() {
    let text = "\u{feff}# a = 1\na = \"x # y\" # c\n'b.c'.\"d e\" = [ # [t]\n  \"]\", '''\n[u]\n''', ]\n\n# of t\n \
                [ t . 'v w' ] # x\nlong = \"\"\"\n[[no]]\\\"\"\"\" # y\n[[array]]\r\nlast = { q = \"}\" }";
    assert!(parse(text).is_ok(), "{:?}", parse(text));
    let found: Vec<String> = statements(text)
        .iter()
        .map(|statement| match &statement.kind {
            StatementKind::Table(name) => format!("table {name:?}"),
            StatementKind::Array => "array".to_owned(),
            StatementKind::Pair(key, value) => {
                format!("{key:?} is {}", &text[value.clone()].replace('\n', "$"))
            }
        })
        .collect();
    assert_eq!(
        found,
        [
            "[\"a\"] is \"x # y\"",
            "[\"b.c\", \"d e\"] is [ # [t]$  \"]\", '''$[u]$''', ]",
            "table [\"t\", \"v w\"]",
            "[\"long\"] is \"\"\"$[[no]]\\\"\"\"\"",
            "array",
            "[\"last\"] is { q = \"}\" }",
        ]
    );
    let at = end_of_root(text, &statements(text));
    assert!(text[at..].starts_with("# of t\n"), "a comment stays above its header: {:?}", &text[at..]);
    assert_eq!(end_of_root("a = 1\n", &statements("a = 1\n")), 6);
    assert_eq!(end_of_root("# x\n[t]\n", &statements("# x\n[t]\n")), 0);
}

#[test]
fn json_keys_are_found_in_the_outermost_object_alone() {
    let text = r#" {"a": {"k": [1]}, "b": "\"k\": [", "c": ["k", {"k": 2}], "k"  :  [3]}"#;
    let at = json_text::value_of(text, "k").unwrap();
    assert_eq!(&text[at..at + 3], "[3]");
    assert_eq!(json_text::value_of(text, "d"), None);
    assert_eq!(json_text::inside(text), Some(2));
}

#[test]
fn yaml_is_read_as_a_tree() {
    let text = "---\n# x\na:\n  b: 'c # d' # e\n  \"f\":\n  - g\n  - \"h\"\ni:\n    j: [k, \"l\"]\nm:\n";
    let found = lines(text).unwrap();
    let all: Vec<String> =
        said(&found).iter().map(|(keys, value)| format!("{}={value}", keys.join("/"))).collect();
    assert_eq!(all, ["a/b=c # d", "a/f=g", "a/f=h", "i/j=k", "i/j=l"]);
    let a = child(&found, None, "a").unwrap();
    let f = child(&found, Some(a), "f").unwrap();
    assert_eq!(list(&found, f), ["g", "h"]);
    assert_eq!((child(&found, None, "b"), child(&found, Some(a), "m")), (None, None));
}

#[test]
fn yaml_that_is_more_than_a_tree_of_plain_values_is_refused() {
    for text in [
        "\ta: b",
        "a:\n \tb: c",
        "a: &b c",
        "a: *b",
        "a: !!str b",
        "a: |\n  b",
        "a: >-\n  b",
        "a: \"b\n  c\"",
        "a: [b,\n c]",
        "a: b\n  c",
        "a: b\n  c: d",
        "a: b: c",
        "a: b:",
        "a: - b",
        "a: ]",
        "a: ,b",
        "a: 'b' c",
        "a: [b] c",
        "a: \"b\"\"c\"",
        "a: [\"b\"\"c\"]",
        ": b",
        "a: [*b]",
        "? a\n: b",
        "- a",
        "- a: b",
        "a:\n  - b\n  c: d",
        "a:\n  - b: c",
        "a:\n  -",
        "a:\n  b: c\n d: e",
        "a: b\na: c",
        "a: b\n'a': c",
        "a: b\n---\nc: d",
        "a: b\n...\n",
        "%YAML 1.2\n---\na: b",
        "<<: a",
        "\"a\\\"b\": c",
        "a\n",
        "a:b\n",
        "{a: b}",
        "a: b\rc",
    ] {
        assert!(lines(text).is_err(), "{text:?} was read: {:?}", lines(text));
    }
}
