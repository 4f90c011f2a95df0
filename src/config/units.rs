//! Durations, sizes and bandwidths as people write them, and back.
//!
//! The tables here are read first, so that what was once written keeps its value; what they do not know is left to a
//! parser that takes what people write elsewhere. A value that could not be printed and read back is refused.

use super::MinFree;
use serde::de::{self, Deserializer, Visitor};
use std::fmt;
use std::time::Duration;

/// A duration: `1500ms`, `20s`, `5m`, `6h`, `30d`; also `1h30m`, `30 days`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span(pub(super) Duration);

/// A duration or `never`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SpanOrNever(pub(super) Option<Duration>);

/// Bytes: `8GiB`, `512MiB`, `24MB`, or a plain number; also `8G`, which is `8GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size(pub(super) u64);

/// Bytes, or a part of a file system: `20%`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kept(pub(super) MinFree);

/// Bits per second: `10Mbit`, `500kbit`, or `unlimited`; also `10Mbps`, `10Mbit/s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bandwidth(pub(super) Option<u64>);

const SPANS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
const SIZES: [(&str, u64); 8] = [
    ("B", 1),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];
const BANDWIDTHS: [(&str, u64); 4] =
    [("bit", 1), ("kbit", 1_000), ("Mbit", 1_000_000), ("Gbit", 1_000_000_000)];

/// A whole number and one of `units`, as a multiple of the smallest.
fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let unit = text[digits..].trim_start();
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    number.checked_mul(*factor)
}

fn parse_span(text: &str) -> Option<Duration> {
    let known = parse(text, &SPANS).map(Duration::from_millis);
    // `M` would be a month, where a minute may have been meant.
    let other = || humantime::parse_duration(text).ok().filter(|_| !text.contains('M'));
    let printable = |span: &Duration| {
        span.subsec_nanos().is_multiple_of(1_000_000) && u64::try_from(span.as_millis()).is_ok()
    };
    known.or_else(other).filter(printable)
}

fn parse_size(text: &str) -> Option<u64> {
    // `24MB` is decimal. `24M` is binary, as it is to most who write it so.
    let units = parse_size::Config::new();
    let units = if text.ends_with(['b', 'B']) { units.with_decimal() } else { units.with_binary() };
    parse(text, &SIZES).or_else(|| text.parse().ok()).or_else(|| units.parse_size(text).ok())
}

fn parse_kept(text: &str) -> Option<MinFree> {
    match text.strip_suffix('%') {
        Some(number) => number.parse().ok().filter(|percent| *percent <= 90).map(MinFree::Percent),
        None => parse_size(text).map(MinFree::Bytes),
    }
}

fn parse_bandwidth(text: &str) -> Option<u64> {
    let text = match text.strip_suffix("bps") {
        Some(number) => format!("{number}bit"),
        None => text.strip_suffix("/s").unwrap_or(text).to_owned(),
    };
    parse(&text, &BANDWIDTHS)
}

/// The shortest exact way to write `value`.
fn write(value: u64, units: &[(&str, u64)]) -> String {
    let best =
        units.iter().filter(|(_, factor)| value.is_multiple_of(*factor)).max_by_key(|(_, factor)| *factor);
    best.map_or(value.to_string(), |(name, factor)| format!("{}{name}", value / factor))
}

/// A duration as the configuration writes it.
pub(super) fn span_text(span: Duration) -> String {
    match u64::try_from(span.as_millis()) {
        Ok(0) => "0s".to_owned(),
        Ok(millis) => write(millis, &SPANS),
        Err(_) => "never".to_owned(),
    }
}

/// A size as the configuration writes it.
pub(super) fn size_text(bytes: u64) -> String {
    let binary: Vec<(&str, u64)> =
        SIZES.iter().filter(|(name, _)| name.contains('i') || *name == "B").copied().collect();
    write(bytes, &binary)
}

/// What is left free, as the configuration writes it.
pub(super) fn kept_text(kept: MinFree) -> String {
    match kept {
        MinFree::Bytes(bytes) => size_text(bytes),
        MinFree::Percent(percent) => format!("{percent}%"),
    }
}

/// A bandwidth as the configuration writes it.
pub(super) fn bandwidth_text(bits: Option<u64>) -> String {
    bits.map_or("unlimited".to_owned(), |bits| write(bits, &BANDWIDTHS))
}

/// Deserializes a value from text (and a size from a number too), with a message that shows how it is written.
macro_rules! written {
    ($type:ident, $expected:literal, $parse:expr) => {
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Written;
                impl Visitor<'_> for Written {
                    type Value = $type;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expected)
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$type, E> {
                        let parse: fn(&str) -> Option<$type> = $parse;
                        parse(text.trim()).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
                    }
                    fn visit_i64<E: de::Error>(self, number: i64) -> Result<$type, E> {
                        self.visit_str(&number.to_string())
                    }
                }
                deserializer.deserialize_any(Written)
            }
        }
    };
}

written!(Span, "a duration such as \"20s\" or \"1500ms\"", |text| parse_span(text).map(Span));
written!(SpanOrNever, "a duration such as \"30d\", or \"never\"", |text| match text {
    "never" => Some(SpanOrNever(None)),
    text => parse_span(text).map(|span| SpanOrNever(Some(span))),
});
written!(Size, "a size such as \"8GiB\" or \"512MiB\"", |text| parse_size(text).map(Size));
written!(
    Kept,
    "a size such as \"8GiB\" or \"512MiB\", or a part of the file system such as \"20%\"",
    |text| parse_kept(text).map(Kept)
);
written!(Bandwidth, "bits per second such as \"10Mbit\", or \"unlimited\"", |text| match text {
    "unlimited" => Some(Bandwidth(None)),
    text => parse_bandwidth(text).map(|bits| Bandwidth(Some(bits))),
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_and_written() {
        for (text, millis) in [("1500ms", 1500), ("20s", 20_000), ("5m", 300_000), ("30d", 2_592_000_000)] {
            assert_eq!(parse(text, &SPANS), Some(millis));
            assert_eq!(span_text(Duration::from_millis(millis)), text);
        }
        for (text, bytes) in [("8GiB", 8 << 30), ("512MiB", 512 << 20), ("1000B", 1000)] {
            assert_eq!(parse(text, &SIZES), Some(bytes));
            assert_eq!(size_text(bytes), text);
        }
        assert_eq!(parse("24MB", &SIZES), Some(24_000_000));
        assert_eq!(parse("10Mbit", &BANDWIDTHS), Some(10_000_000));
        assert_eq!(bandwidth_text(Some(500_000)), "500kbit");
        assert_eq!((bandwidth_text(None).as_str(), span_text(Duration::ZERO).as_str()), ("unlimited", "0s"));
    }

    #[test]
    fn what_is_left_free_is_a_size_or_a_part() {
        for (text, kept) in [
            ("20%", MinFree::Percent(20)),
            ("0%", MinFree::Percent(0)),
            ("90%", MinFree::Percent(90)),
            ("512MiB", MinFree::Bytes(512 << 20)),
        ] {
            assert_eq!(parse_kept(text), Some(kept), "{text}");
            assert_eq!(kept_text(kept), text);
        }
        for text in ["91%", "-1%", "%", "1.5%", "20 percent", "300%"] {
            assert_eq!(parse_kept(text), None, "{text}");
        }
        assert_eq!(MinFree::Percent(20).of(10 << 30), 2 << 30);
        assert_eq!(MinFree::Percent(20).of(1 << 30), 512 << 20, "never less than that");
        assert_eq!(MinFree::Bytes(7).of(10 << 30), 7, "what is written stays");
        assert!(MinFree::Percent(90).of(u64::MAX) > u64::MAX / 10 * 8);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in
            ["", "s", "5", "5 minutes", "-5s", "1.5s", "99999999999999999999s", "18446744073709551615d"]
        {
            assert_eq!(parse(text, &SPANS), None, "{text}");
        }
        assert_eq!(parse("8gib", &SIZES), None);
    }

    /// The tables of 0.1.0.
    const OLD_SPANS: [(&str, u64); 5] =
        [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
    const OLD_SIZES: [(&str, u64); 8] = [
        ("B", 1),
        ("kB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("KiB", 1_024),
        ("MiB", 1_048_576),
        ("GiB", 1_073_741_824),
        ("TiB", 1_099_511_627_776),
    ];
    const OLD_BANDWIDTHS: [(&str, u64); 4] =
        [("bit", 1), ("kbit", 1_000), ("Mbit", 1_000_000), ("Gbit", 1_000_000_000)];

    /// Numbers of every length, the edges, and between number and unit what 0.1.0 let pass.
    fn old_spellings(units: &[(&'static str, u64)]) -> Vec<(String, u64)> {
        let mut numbers = vec![0, 1, u64::MAX];
        let mut state = 1u64;
        for shift in 0..64 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            numbers.push(state >> shift);
        }
        let mut all = Vec::new();
        for number in numbers {
            for (unit, factor) in units {
                let Some(value) = number.checked_mul(*factor) else { continue };
                all.extend(["", " ", "\t", "  "].map(|gap| (format!("{number}{gap}{unit}"), value)));
                all.push((format!("00{number}{unit}"), value));
            }
        }
        all
    }

    #[test]
    fn every_spelling_of_0_1_0_keeps_its_value_and_prints_to_it() {
        for (text, millis) in old_spellings(&OLD_SPANS) {
            let span = Duration::from_millis(millis);
            assert_eq!(parse_span(&text), Some(span), "{text}");
            assert_eq!(parse_span(&span_text(span)), Some(span), "{text}");
        }
        for (text, bytes) in old_spellings(&OLD_SIZES) {
            assert_eq!(parse_size(&text), Some(bytes), "{text}");
            assert_eq!(parse_size(&size_text(bytes)), Some(bytes), "{text}");
            assert_eq!(parse_size(&bytes.to_string()), Some(bytes));
            assert_eq!(parse_size(&format!("+{bytes}")), Some(bytes));
        }
        for (text, bits) in old_spellings(&OLD_BANDWIDTHS) {
            assert_eq!(parse_bandwidth(&text), Some(bits), "{text}");
            assert_eq!(parse_bandwidth(&bandwidth_text(Some(bits))), Some(bits), "{text}");
        }
    }

    #[test]
    fn what_people_write_elsewhere_is_read_too() {
        for (text, seconds) in
            [("1h30m", 5_400), ("1h 30m", 5_400), ("30 days", 2_592_000), ("5 minutes", 300), ("1.5h", 5_400)]
        {
            let span = Duration::from_secs(seconds);
            assert_eq!(parse_span(text), Some(span), "{text}");
            assert_eq!(parse_span(&span_text(span)), Some(span), "{text}");
        }
        for text in
            ["", "5", "5M", "1us", "1h, 30m", "-5s", "soon", "99999999999999999999s", "600000000 years"]
        {
            assert_eq!(parse_span(text), None, "{text}");
        }
        for (text, bytes) in [
            ("8G", 8 << 30),
            ("512M", 512 << 20),
            ("64k", 64 << 10),
            ("2T", 2 << 40),
            ("8Gi", 8 << 30),
            ("8gib", 8 << 30),
            ("24mb", 24_000_000),
            ("1.5G", 3 << 29),
        ] {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
            assert_eq!(parse_size(&size_text(bytes)), Some(bytes), "{text}");
        }
        for text in ["", "8 gigs", "-1", "16EiB", "G"] {
            assert_eq!(parse_size(text), None, "{text}");
        }
        for text in ["10Mbps", "10Mbit/s", "10 Mbps", "10000 kbps"] {
            assert_eq!(parse_bandwidth(text), Some(10_000_000), "{text}");
        }
        for text in ["10MBps", "10MB/s", "10", "10M", "bps"] {
            assert_eq!(parse_bandwidth(text), None, "{text}");
        }
    }
}
