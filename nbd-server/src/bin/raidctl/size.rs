//! Sizes as administrators write them: 4096, 64K, 1M, 2G, 1T; all powers of 1024.
//!
//! `64KiB` is accepted as well. `64KB` is not: half of the world reads it as 64000, and a chunk size is the wrong
//! place to guess.

use bytesize::ByteSize;
use std::fmt;
use std::str::FromStr;

/// A number of bytes, parsed strictly and printed in powers of 1024.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let shift = match unit.strip_suffix("iB").unwrap_or(unit) {
            "" if unit.is_empty() => 0,
            "K" | "k" => 10,
            "M" | "m" => 20,
            "G" | "g" => 30,
            "T" | "t" => 40,
            _ => return Err(format!("{text:?} is not a size: write it as 4096, 64K, 1M or 2G")),
        };
        let number: u64 = number.parse().map_err(|_| {
            format!("{text:?} is not a size: write a whole number, with K, M, G or T behind it if you like")
        })?;
        let bytes =
            number.checked_mul(1 << shift).ok_or_else(|| format!("{text:?} is too large for a size"))?;
        Ok(Size(bytes))
    }
}

/// A size, or the largest there is room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SizeOrMax {
    /// `max`
    Max,
    /// A number of bytes.
    Size(Size),
}

impl FromStr for SizeOrMax {
    type Err = String;

    fn from_str(text: &str) -> Result<SizeOrMax, String> {
        if text == "max" { Ok(SizeOrMax::Max) } else { text.parse().map(SizeOrMax::Size) }
    }
}

impl fmt::Display for Size {
    /// Whole units where they are exact and short (`64K`, `1536M`), otherwise one digit behind the point
    /// (`767.9 MiB`).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u32, &str); 4] = [(40, "T"), (30, "G"), (20, "M"), (10, "K")];
        for (shift, unit) in UNITS {
            let count = self.0 >> shift;
            if self.0.is_multiple_of(1 << shift) && (1..10_000).contains(&count) {
                return write!(f, "{count}{unit}");
            }
        }
        write!(f, "{}", ByteSize::b(self.0).display().iec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_powers_of_1024() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("64K", 65536),
            ("64k", 65536),
            ("64KiB", 65536),
            ("1M", 1 << 20),
            ("2G", 2 << 30),
            ("3T", 3 << 40),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_ambiguous_or_no_size_is_refused() {
        for text in ["", "K", "64KB", "64kb", "-1", "1.5M", "64 K", "0x10", "iB", "5iB", "99999999T", "64Ki"]
        {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_size_prints_as_it_is_written() {
        for text in ["64K", "1M", "2G", "3T"] {
            assert_eq!(text.parse::<Size>().unwrap().to_string(), text);
        }
        assert_eq!(Size((768 << 20) - 1024).to_string(), "768.0 MiB");
    }
}
