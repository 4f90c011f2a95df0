//! Platforms: which of an index's images a board can run (image-spec, image-index.md, "platform").

use super::{Invalid, quoted, textual};
use std::fmt;
use std::str::FromStr;

/// An operating system and processor, such as `linux/arm64` or `linux/arm/v7`, in containerd's normal form.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Platform {
    os: Box<str>,
    architecture: Box<str>,
    variant: Box<str>,
}

impl Platform {
    /// Builds a platform in normal form: `aarch64` is `arm64`, `arm64/v8` has no variant, `arm` means `arm/v7`.
    pub fn new(os: &str, architecture: &str, variant: &str) -> Self {
        let architecture = match architecture {
            "aarch64" => "arm64",
            "x86_64" | "x86-64" => "amd64",
            "armhf" => "arm",
            other => other,
        };
        let variant = match (architecture, variant) {
            ("arm64", "v8" | "8") | ("amd64", "v1") => "",
            ("arm", "" | "7") => "v7",
            ("arm", "6") => "v6",
            ("arm", "5") => "v5",
            (_, other) => other,
        };
        Platform { os: os.into(), architecture: architecture.into(), variant: variant.into() }
    }

    /// The platform this binary was built for.
    pub fn of_this_board() -> Self {
        match std::env::consts::ARCH {
            "arm" if cfg!(target_feature = "v7") => Platform::new("linux", "arm", "v7"),
            "arm" => Platform::new("linux", "arm", "v6"),
            "x86" => Platform::new("linux", "386", ""),
            other => Platform::new("linux", other, ""),
        }
    }

    /// Whether a board of this platform can run an image of `offered`. ARM runs older variants of its own line.
    pub fn runs(&self, offered: &Platform) -> bool {
        if self.os != offered.os || self.architecture != offered.architecture {
            return false;
        }
        if self.variant == offered.variant || offered.variant.is_empty() {
            return true;
        }
        &*self.architecture == "arm"
            && matches!((rank(&self.variant), rank(&offered.variant)), (Some(a), Some(b)) if b <= a)
    }

    /// How well `offered` suits: greater is better, `None` when it does not run here.
    pub fn preference(&self, offered: &Platform) -> Option<u8> {
        self.runs(offered)
            .then(|| if self == offered { u8::MAX } else { rank(&offered.variant).unwrap_or(0) })
    }
}

fn rank(variant: &str) -> Option<u8> {
    variant.strip_prefix('v')?.parse().ok()
}

impl FromStr for Platform {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let parts: Vec<&str> = text.split('/').collect();
        let word = |p: &&str| {
            !p.is_empty()
                && p.len() <= 32
                && p.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-'))
        };
        if !(2..=3).contains(&parts.len()) || !parts.iter().all(word) {
            return Err(Invalid::new(format!(
                "platform {} is not of the form linux/arm64 or linux/arm/v7",
                quoted(text)
            )));
        }
        Ok(Platform::new(parts[0], parts[1], parts.get(2).copied().unwrap_or("")))
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if !self.variant.is_empty() {
            write!(f, "/{}", self.variant)?;
        }
        Ok(())
    }
}

textual!(Platform);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_forms() {
        for (text, normal) in [
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/x86_64", "linux/amd64"),
        ] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), normal);
        }
        assert!("linux".parse::<Platform>().is_err());
        assert!("linux/arm64/v8/x".parse::<Platform>().is_err());
    }

    #[test]
    fn older_arm_variants_run() {
        let v7: Platform = "linux/arm/v7".parse().unwrap();
        let v6: Platform = "linux/arm/v6".parse().unwrap();
        assert!(v7.runs(&v6) && !v6.runs(&v7));
        assert!(v7.preference(&v7) > v7.preference(&v6));
        assert!(!v7.runs(&"linux/arm64".parse().unwrap()));
    }
}
