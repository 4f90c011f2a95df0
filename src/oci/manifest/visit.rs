//! How the fields of a manifest are read: each once, each of its own type, none longer than it needs to be.
//!
//! Every key that is known here must be spelled exactly and stand once. Go's parser, which clients use, takes `Layers` for
//! `layers` and the last of two; others take the first. A value of a wrong type ends the reading with a message that does
//! not repeat it, for it may be as long as the document.

use super::annotations::IsAttestation;
use super::{Descriptor, Invalid, Kind, budget, json, media};
use crate::budget::{MANIFEST_TEXT_BYTES_MAX, PLATFORM_TEXT_BYTES_MAX};
use crate::oci::{Digest, Platform};
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::fmt;

/// The fields of a manifest that larder needs.
#[derive(Default)]
pub(super) struct RawManifest {
    pub(super) schema_version: Option<i64>,
    pub(super) media_type: Option<String>,
    pub(super) manifests: Option<Vec<Descriptor>>,
    /// With its media type.
    pub(super) config: Option<(Descriptor, String)>,
    pub(super) layers: Option<Vec<Descriptor>>,
    pub(super) blobs: Option<Vec<Descriptor>>,
    pub(super) subject: Option<Digest>,
    pub(super) artifact_type: Option<String>,
    /// It has the layers of schema version 1.
    pub(super) has_fs_layers: bool,
}

impl RawManifest {
    pub(super) fn read(bytes: &[u8]) -> Result<RawManifest, Invalid> {
        read(bytes, Map(ManifestFields { raw: RawManifest::default(), left: budget::DESCRIPTORS_MAX }))?
            .ok_or_else(|| Invalid::new("manifest is not a JSON object"))
    }
}

/// Reads all of a document.
pub(super) fn read<'de, S: DeserializeSeed<'de>>(bytes: &'de [u8], seed: S) -> Result<S::Value, Invalid> {
    let wrong = |why: &dyn fmt::Display| Invalid::new(format!("manifest is not valid JSON: {why}"));
    json::check_shape(bytes).map_err(|why| wrong(&why))?;
    let mut document = serde_json::Deserializer::from_slice(bytes);
    let value = seed.deserialize(&mut document).map_err(|why| wrong(&why))?;
    document.end().map_err(|why| wrong(&why))?;
    Ok(value)
}

/// What takes the fields of an object, one by one.
pub(super) trait Fields<'de> {
    const KEYS: &'static [&'static str];
    type Output;

    /// Takes the value of `KEYS[at]`.
    fn take<A: MapAccess<'de>>(&mut self, at: usize, from: &mut A) -> Result<(), A::Error>;

    fn finish<E: Error>(self) -> Result<Self::Output, E>;
}

/// An object with these fields, or `null`.
pub(super) struct Map<F>(pub(super) F);

impl<'de, F: Fields<'de>> DeserializeSeed<'de> for Map<F> {
    type Value = Option<F::Output>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de, F: Fields<'de>> Visitor<'de> for Map<F> {
    type Value = Option<F::Output>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<Self::Value, E> {
        Err(E::custom("a text stands where an object should"))
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut from: A) -> Result<Self::Value, A::Error> {
        let mut met = 0u32;
        while let Some(known) = from.next_key_seed(Key(F::KEYS))? {
            let Some(at) = known else {
                from.next_value::<IgnoredAny>()?;
                continue;
            };
            if met & (1 << at) != 0 {
                return Err(A::Error::custom(format_args!("{} stands in it twice", F::KEYS[at])));
            }
            met |= 1 << at;
            self.0.take(at, &mut from)?;
        }
        self.0.finish().map(Some)
    }
}

/// A key: its place among those that are known.
struct Key(&'static [&'static str]);

impl<'de> DeserializeSeed<'de> for Key {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_str(self)
    }
}

impl Visitor<'_> for Key {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<Self::Value, E> {
        match self.0.iter().position(|known| is_read_as(key, known)) {
            Some(at) if self.0[at] != key => {
                Err(E::custom(format_args!("a key may be read as {} and is not written so", self.0[at])))
            }
            known => Ok(known),
        }
    }
}

/// Whether Go's parser takes `key` for `known`: letters are the same whatever their case, and two from outside of ASCII
/// count as `s` and `k`.
fn is_read_as(key: &str, known: &str) -> bool {
    let fold = |c: char| match c {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        other => other.to_ascii_lowercase(),
    };
    // Neither of the two is longer than three bytes.
    key.len() <= 3 * known.len() && key.chars().map(fold).eq(known.chars().map(fold))
}

struct ManifestFields {
    raw: RawManifest,
    /// How many descriptors may still come.
    left: usize,
}

impl<'de> Fields<'de> for ManifestFields {
    const KEYS: &'static [&'static str] = &[
        "schemaVersion",
        "mediaType",
        "manifests",
        "config",
        "layers",
        "blobs",
        "subject",
        "artifactType",
        "fsLayers",
        "annotations",
    ];
    type Output = RawManifest;

    fn take<A: MapAccess<'de>>(&mut self, at: usize, from: &mut A) -> Result<(), A::Error> {
        let raw = &mut self.raw;
        match at {
            0 => raw.schema_version = from.next_value_seed(Number)?,
            1 => raw.media_type = from.next_value_seed(Text(MANIFEST_TEXT_BYTES_MAX))?,
            2 => raw.manifests = from.next_value_seed(Descriptors(&mut self.left))?,
            3 => raw.config = from.next_value_seed(Map(DescriptorFields::default()))?,
            4 => raw.layers = from.next_value_seed(Descriptors(&mut self.left))?,
            5 => raw.blobs = from.next_value_seed(Descriptors(&mut self.left))?,
            6 => {
                let subject = from.next_value_seed(Map(DescriptorFields::default()))?;
                raw.subject = subject.map(|(subject, _)| subject.digest);
            }
            7 => raw.artifact_type = from.next_value_seed(Text(MANIFEST_TEXT_BYTES_MAX))?,
            8 => raw.has_fs_layers = from.next_value_seed(IsFilled)?,
            // Nothing of them is needed here, but they may not stand twice either.
            _ => drop(from.next_value::<IgnoredAny>()?),
        }
        Ok(())
    }

    fn finish<E: Error>(self) -> Result<RawManifest, E> {
        Ok(self.raw)
    }
}

#[derive(Default)]
struct DescriptorFields {
    media_type: Option<String>,
    digest: Option<Digest>,
    size: Option<i64>,
    platform: Option<Platform>,
    has_urls: bool,
    artifact_type: Option<String>,
    is_attestation: bool,
}

impl<'de> Fields<'de> for DescriptorFields {
    const KEYS: &'static [&'static str] =
        &["mediaType", "digest", "size", "platform", "urls", "artifactType", "annotations"];
    /// With its media type.
    type Output = (Descriptor, String);

    fn take<A: MapAccess<'de>>(&mut self, at: usize, from: &mut A) -> Result<(), A::Error> {
        match at {
            0 => self.media_type = from.next_value_seed(Text(MANIFEST_TEXT_BYTES_MAX))?,
            1 => {
                let text = from.next_value_seed(Text(MANIFEST_TEXT_BYTES_MAX))?;
                let digest = text.map(|text| text.parse().map_err(A::Error::custom));
                self.digest = digest.transpose()?;
            }
            2 => self.size = from.next_value_seed(Number)?,
            3 => self.platform = from.next_value_seed(Map(PlatformFields::default()))?.flatten(),
            4 => self.has_urls = from.next_value_seed(IsFilled)?,
            5 => self.artifact_type = from.next_value_seed(Text(MANIFEST_TEXT_BYTES_MAX))?,
            _ => self.is_attestation = from.next_value_seed(IsAttestation)?,
        }
        Ok(())
    }

    fn finish<E: Error>(self) -> Result<Self::Output, E> {
        let media_type = self.media_type.unwrap_or_default();
        let is_artifact = self
            .artifact_type
            .is_some_and(|kind| !kind.is_empty() && !media::IMAGE_CONFIGS.contains(&&*kind));
        let runs_nowhere = self.platform.as_ref().is_some_and(Platform::is_unknown);
        let size = self.size.unwrap_or(0);
        let descriptor = Descriptor {
            manifest_type: Kind::type_of(&media_type),
            is_layer: media_type.contains(".layer.") || media_type.contains(".rootfs."),
            digest: self.digest.ok_or_else(|| E::custom("a descriptor has no digest"))?,
            size: u64::try_from(size).map_err(|_| E::custom("a descriptor's size is negative"))?,
            platform: self.platform,
            aside: self.is_attestation || is_artifact || runs_nowhere,
            optional: media_type.contains("nondistributable")
                || media_type.contains(".foreign.")
                || self.has_urls,
        };
        Ok((descriptor, media_type))
    }
}

#[derive(Default)]
struct PlatformFields([Option<String>; 3]);

impl<'de> Fields<'de> for PlatformFields {
    const KEYS: &'static [&'static str] = &["os", "architecture", "variant"];
    /// `None`: it says nothing.
    type Output = Option<Platform>;

    fn take<A: MapAccess<'de>>(&mut self, at: usize, from: &mut A) -> Result<(), A::Error> {
        self.0[at] = from.next_value_seed(Text(PLATFORM_TEXT_BYTES_MAX))?;
        Ok(())
    }

    fn finish<E: Error>(self) -> Result<Option<Platform>, E> {
        let [os, architecture, variant] = self.0.map(Option::unwrap_or_default);
        let says = !os.is_empty() || !architecture.is_empty();
        Ok(says.then(|| Platform::new(&os, &architecture, &variant)))
    }
}

impl Kind {
    /// The media type of a manifest that a text is.
    fn type_of(text: &str) -> Option<&'static str> {
        media::MANIFESTS.into_iter().find(|known| *known == text)
    }
}

/// A list of descriptors, or `null`; how many may still come.
struct Descriptors<'a>(&'a mut usize);

impl<'de> DeserializeSeed<'de> for Descriptors<'_> {
    type Value = Option<Vec<Descriptor>>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Descriptors<'_> {
    type Value = Option<Vec<Descriptor>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of descriptors")
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<Self::Value, E> {
        Err(E::custom("a text stands where a list should"))
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Self::Value, A::Error> {
        let mut descriptors = Vec::new();
        while let Some(found) = from.next_element_seed(Map(DescriptorFields::default()))? {
            let (descriptor, _) = found.ok_or_else(|| A::Error::custom("a descriptor is null"))?;
            let more =
                || A::Error::custom(format_args!("it has more than {} descriptors", budget::DESCRIPTORS_MAX));
            *self.0 = self.0.checked_sub(1).ok_or_else(more)?;
            descriptors.push(descriptor);
        }
        Ok(Some(descriptors))
    }
}

/// A text, or `null`. What is longer than this is cut: no such name means anything.
pub(super) struct Text(pub(super) usize);

impl<'de> DeserializeSeed<'de> for Text {
    type Value = Option<String>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl Visitor<'_> for Text {
    type Value = Option<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        let end = text.floor_char_boundary(self.0);
        Ok(Some(text[..end].to_owned()))
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
}

/// A whole number.
struct Number;

impl<'de> DeserializeSeed<'de> for Number {
    type Value = Option<i64>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl Visitor<'_> for Number {
    type Value = Option<i64>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number of 63 bits")
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<Self::Value, E> {
        Err(E::custom("a text stands where a number should"))
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Self::Value, E> {
        Ok(Some(number))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
        i64::try_from(number).map(Some).map_err(|_| E::custom("a number is beyond 63 bits"))
    }
}

/// Whether a list has anything in it; `null` has not.
struct IsFilled;

impl<'de> DeserializeSeed<'de> for IsFilled {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for IsFilled {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<bool, E> {
        Err(E::custom("a text stands where a list should"))
    }

    fn visit_unit<E: Error>(self) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<bool, A::Error> {
        let mut any = false;
        while from.next_element::<IgnoredAny>()?.is_some() {
            any = true;
        }
        Ok(any)
    }
}
