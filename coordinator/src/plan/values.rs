//! Durations and sizes as people write them.

use std::borrow::Cow;

use coordinator_core::Span;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

/// A length of time, written as `90s`, `45m`, `1h30m`; units `ms`, `s`, `m`, `h`, `d`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Duration(pub Span);

/// An amount of memory or disk in bytes, written as `64 MiB`; units `B`, `KiB` to `TiB`, `KB` to `TB`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Size(pub u64);

const DURATION_PATTERN: &str = "^([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?$";
const SIZE_PATTERN: &str = "^[0-9]+ ?(B|[KMGT]i?B)$";

impl Duration {
    /// Reads a duration; `None` if the text is none or does not fit 64 bits of milliseconds.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        const UNITS: [(&str, u64); 5] = [
            ("d", 86_400_000),
            ("h", 3_600_000),
            ("m", 60_000),
            ("s", 1_000),
            ("ms", 1),
        ];
        let mut units = UNITS.iter();
        let mut rest = text;
        let mut total: u64 = 0;
        while !rest.is_empty() {
            let (number, behind) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?);
            let unit = behind.split(|c: char| c.is_ascii_digit()).next()?;
            // Units come in falling order, each once.
            let (_, factor) = units.find(|(name, _)| *name == unit)?;
            let part = number.parse::<u64>().ok()?.checked_mul(*factor)?;
            total = total.checked_add(part)?;
            rest = behind.get(unit.len()..)?;
        }
        (!text.is_empty()).then_some(Self(Span::from_ms(total)))
    }
}

impl Size {
    /// Reads a size; `None` if the text is none or does not fit 64 bits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
        let unit = unit.strip_prefix(' ').unwrap_or(unit);
        let factor: u64 = match unit {
            "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "TiB" => 1 << 40,
            "KB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "TB" => 1_000_000_000_000,
            _ => return None,
        };
        number.parse::<u64>().ok()?.checked_mul(factor).map(Self)
    }

    /// Gives whole MiB, rounded up.
    #[must_use]
    pub const fn mib(self) -> u64 {
        self.0.div_ceil(1 << 20)
    }
}

impl JsonSchema for Duration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "A length of time such as `90s`, `45m`, `1h30m`.",
            "minLength": 2,
            "pattern": DURATION_PATTERN,
        })
    }
}

impl JsonSchema for Size {
    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "An amount of memory or disk such as `512 MiB` or `4 GiB`.",
            "pattern": SIZE_PATTERN,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(text: &str) -> Option<u64> {
        Duration::parse(text).map(|d| d.0.ms())
    }

    #[test]
    fn durations_are_read_unit_by_unit() {
        assert_eq!(ms("90s"), Some(90_000));
        assert_eq!(ms("45m"), Some(2_700_000));
        assert_eq!(ms("1d2h3m4s5ms"), Some(93_784_005));
        assert_eq!(ms("0s"), Some(0));
        for wrong in [
            "",
            "5",
            "m",
            "5 m",
            "5m5m",
            "5s5m",
            "-5s",
            "1.5h",
            "5M",
            "5ß",
            "99999999999999999999d",
            "1d99999999999999h",
        ] {
            assert_eq!(ms(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn sizes_are_read_in_binary_and_decimal_units() {
        assert_eq!(Size::parse("64 MiB"), Some(Size(64 << 20)));
        assert_eq!(Size::parse("1GB"), Some(Size(1_000_000_000)));
        assert_eq!(Size(1).mib(), 1);
        for wrong in [
            "",
            "64",
            "MiB",
            "64  MiB",
            "64 mib",
            "1.5 GiB",
            "99999999 TiB",
            "é",
        ] {
            assert_eq!(Size::parse(wrong), None, "{wrong}");
        }
    }
}
