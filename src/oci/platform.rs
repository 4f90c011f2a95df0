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

    /// Whether a board of this platform can run an image of `offered`.
    pub fn runs(&self, offered: &Platform) -> bool {
        self.preference(offered).is_some()
    }

    /// How well `offered` suits: greater is better, `None` when it does not run here. As in containerd, a processor runs
    /// older variants of its own line, one of arm64 also images for arm, and one of amd64 those for 386.
    pub fn preference(&self, offered: &Platform) -> Option<u8> {
        const OWN_LINE: u8 = 100;
        if self == offered {
            return Some(u8::MAX);
        }
        if self.os != offered.os {
            return None;
        }
        match (&*self.architecture, &*offered.architecture) {
            (own, other) if own == other => match (self.level(), offered.level()) {
                (Some(own), Some(other)) if other <= own => Some(OWN_LINE + other),
                _ => offered.variant.is_empty().then_some(OWN_LINE),
            },
            ("arm64", "arm") => offered.level().filter(|level| *level <= 8),
            ("amd64", "386") => Some(1),
            _ => None,
        }
    }

    /// Whether it says that nothing runs it.
    pub(super) fn is_unknown(&self) -> bool {
        &*self.os == "unknown" && &*self.architecture == "unknown"
    }

    /// The number of the variant.
    fn level(&self) -> Option<u8> {
        match (&*self.architecture, &*self.variant) {
            ("arm64", "") => Some(8),
            ("amd64", "") => Some(1),
            (_, variant) => variant.strip_prefix('v')?.parse().ok().filter(|level| *level < 100),
        }
    }
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

    #[test]
    fn what_containerd_would_take_runs_here_and_the_best_comes_first() {
        let of = |text: &str| text.parse::<Platform>().unwrap();
        for (board, best_first, never) in [
            (
                "linux/arm64",
                &["linux/arm64", "linux/arm/v8", "linux/arm/v7", "linux/arm/v6"][..],
                "linux/arm64/v9",
            ),
            ("linux/arm64/v9", &["linux/arm64/v9", "linux/arm64/v8", "linux/arm/v7"], "linux/amd64"),
            ("linux/amd64", &["linux/amd64", "linux/386"], "linux/amd64/v3"),
            (
                "linux/amd64/v3",
                &["linux/amd64/v3", "linux/amd64/v2", "linux/amd64", "linux/386"],
                "linux/arm64",
            ),
            ("linux/arm/v6", &["linux/arm/v6", "linux/arm/v5"], "linux/arm/v7"),
        ] {
            let preferences: Vec<_> = best_first.iter().map(|text| of(board).preference(&of(text))).collect();
            assert!(
                preferences.is_sorted_by(|a, b| a > b) && preferences.iter().all(Option::is_some),
                "{board}"
            );
            assert!(
                !of(board).runs(&of(never)) && !of(board).runs(&of("windows/amd64")),
                "{board} and {never}"
            );
        }
    }
}
