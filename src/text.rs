//! Text for people: sizes. Nothing in here can fail.

/// A number of bytes for people, in powers of ten.
pub fn bytes_text(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 1000.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1000.0;
    }
    format!("{value:.1} TB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_for_people() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1.0 kB"),
            (37_200_000, "37.2 MB"),
            (2_500_000_000_000, "2.5 TB"),
        ] {
            assert_eq!(bytes_text(bytes), text);
        }
    }
}
