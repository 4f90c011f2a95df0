//! Annotations: those of a document, and the one by which an index says that a child is an attestation.

use super::budget;
use super::visit::{Fields, Map, Text, read};
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;

struct AnnotationFields(Option<BTreeMap<String, String>>);

impl<'de> Fields<'de> for AnnotationFields {
    const KEYS: &'static [&'static str] = &["annotations"];
    type Output = Option<BTreeMap<String, String>>;

    fn take<A: MapAccess<'de>>(&mut self, _: usize, from: &mut A) -> Result<(), A::Error> {
        self.0 = from.next_value_seed(Annotations)?;
        Ok(())
    }

    fn finish<E: Error>(self) -> Result<Self::Output, E> {
        Ok(self.0)
    }
}

/// The annotations of a document, if they are not too long.
pub(super) fn annotations(bytes: &[u8]) -> Option<BTreeMap<String, String>> {
    read(bytes, Map(AnnotationFields(None))).ok()??
}

struct Annotations;

impl<'de> DeserializeSeed<'de> for Annotations {
    type Value = Option<BTreeMap<String, String>>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Annotations {
    type Value = Option<BTreeMap<String, String>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("texts by name")
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Self::Value, A::Error> {
        let (mut all, mut left) = (BTreeMap::new(), budget::ANNOTATIONS_BYTES_MAX);
        while let Some(key) = from.next_key_seed(Text(budget::ANNOTATIONS_BYTES_MAX))? {
            let (key, value) = (key.unwrap_or_default(), from.next_value_seed(Whole(left))?);
            let cost = key.len() + value.len();
            left = left.checked_sub(cost).ok_or_else(|| A::Error::custom("they are too long"))?;
            all.insert(key, value);
        }
        Ok(Some(all))
    }
}

/// A text that is no longer than this.
struct Whole(usize);

impl<'de> DeserializeSeed<'de> for Whole {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl Visitor<'_> for Whole {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<String, E> {
        if text.len() > self.0 { Err(E::custom("it is too long")) } else { Ok(text.to_owned()) }
    }
}

/// Whether the annotations of a descriptor say that it is an attestation of an image beside it (BuildKit,
/// attestation-storage.md). Whatever else they are is left alone.
pub(super) struct IsAttestation;

impl<'de> DeserializeSeed<'de> for IsAttestation {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<bool, D::Error> {
        from.deserialize_any(OneAnnotation { at_top: true })
    }
}

/// All annotations, or the value of one.
struct OneAnnotation {
    at_top: bool,
}

impl OneAnnotation {
    const KEY: &'static str = "vnd.docker.reference.type";
    const VALUE: &'static str = "attestation-manifest";
}

impl<'de> DeserializeSeed<'de> for OneAnnotation {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<bool, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for OneAnnotation {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("texts by name")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<bool, E> {
        Ok(!self.at_top && text == Self::VALUE)
    }

    fn visit_unit<E: Error>(self) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<bool, A::Error> {
        while from.next_element::<IgnoredAny>()?.is_some() {}
        Ok(false)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<bool, A::Error> {
        let mut found = false;
        while let Some(is_it) = from.next_key_seed(IsKey(Self::KEY))? {
            if self.at_top && is_it {
                found |= from.next_value_seed(OneAnnotation { at_top: false })?;
            } else {
                from.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

/// Whether a key is this one.
struct IsKey(&'static str);

impl<'de> DeserializeSeed<'de> for IsKey {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<bool, D::Error> {
        from.deserialize_str(self)
    }
}

impl Visitor<'_> for IsKey {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<bool, E> {
        Ok(key == self.0)
    }
}
