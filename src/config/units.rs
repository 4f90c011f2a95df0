//! Durations, sizes and bandwidths as people write them, and back.

use serde::de::{self, Deserializer, Visitor};
use std::fmt;
use std::time::Duration;

/// A duration: `1500ms`, `20s`, `5m`, `6h`, `30d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span(pub(super) Duration);

/// A duration or `never`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SpanOrNever(pub(super) Option<Duration>);

/// Bytes: `8GiB`, `512MiB`, `24MB`, or a plain number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size(pub(super) u64);

/// Bits per second: `10Mbit`, `500kbit`, or `unlimited`.
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

written!(Span, "a duration such as \"20s\" or \"1500ms\"", |text| {
    parse(text, &SPANS).map(|millis| Span(Duration::from_millis(millis)))
});
written!(SpanOrNever, "a duration such as \"30d\", or \"never\"", |text| match text {
    "never" => Some(SpanOrNever(None)),
    text => parse(text, &SPANS).map(|millis| SpanOrNever(Some(Duration::from_millis(millis)))),
});
written!(Size, "a size such as \"8GiB\" or \"512MiB\"", |text| {
    parse(text, &SIZES).or_else(|| text.parse().ok()).map(Size)
});
written!(Bandwidth, "bits per second such as \"10Mbit\", or \"unlimited\"", |text| match text {
    "unlimited" => Some(Bandwidth(None)),
    text => parse(text, &BANDWIDTHS).map(|bits| Bandwidth(Some(bits))),
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
    fn nonsense_is_refused() {
        for text in
            ["", "s", "5", "5 minutes", "-5s", "1.5s", "99999999999999999999s", "18446744073709551615d"]
        {
            assert_eq!(parse(text, &SPANS), None, "{text}");
        }
        assert_eq!(parse("8gib", &SIZES), None);
    }
}
