//! Durations as people write them.

use crate::{code::Code, error::Invalid};
use jiff::{SignedDuration, Span, SpanRelativeTo};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{fmt, str::FromStr, time::Duration};

/// A duration written like `30s`, `5m`, `1h 30m` or `7d`; never negative. A day is 24
/// hours, a week seven of them; months and years have no fixed length and are refused.
///
/// The grammar is jiff's "friendly" format plus ISO 8601 (`PT30S`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(value_type = String, example = "30s"))]
pub struct HumanDuration(pub Duration);

impl FromStr for HumanDuration {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        let bad = |problem: String| {
            Invalid::new(
                Code::BAD_VALUE,
                "duration",
                problem,
                "a duration such as 30s, 5m or 1h30m",
            )
        };
        let span: Span = s.trim().parse().map_err(|_| bad(format!("{s:?} is not a duration")))?;
        let d = span
            .to_duration(SpanRelativeTo::days_are_24_hours())
            .map_err(|_| bad(format!("{s:?} has no fixed length")))?;
        Duration::try_from(d).map(Self).map_err(|_| bad(format!("{s:?} is negative")))
    }
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match SignedDuration::try_from(self.0) {
            Ok(d) => write!(f, "{d:#}"),
            Err(_) => write!(f, "{}s", self.0.as_secs()),
        }
    }
}

impl From<HumanDuration> for Duration {
    fn from(d: HumanDuration) -> Self {
        d.0
    }
}

impl Serialize for HumanDuration {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HumanDuration {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_str(Text)
    }
}

/// Reads a duration from a string; of anything else it says what would be right.
struct Text;

impl serde::de::Visitor<'_> for Text {
    type Value = HumanDuration;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text such as \"30s\", \"5m\" or \"1h30m\"")
    }

    fn visit_str<E: serde::de::Error>(self, s: &str) -> Result<HumanDuration, E> {
        s.parse().map_err(|e: Invalid| E::custom(format!("{}; expected {}", e.problem, e.expected)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_human_durations() {
        for (text, secs) in
            [("30s", 30), ("5m", 300), ("1h30m", 5400), ("PT2S", 2), ("7d", 604_800)]
        {
            assert_eq!(text.parse::<HumanDuration>().unwrap().0, Duration::from_secs(secs));
        }
        let d = HumanDuration(Duration::from_millis(1500));
        assert_eq!(d.to_string().parse::<HumanDuration>().unwrap(), d);
        for bad in ["", "5", "-5s", "soon", "1mo", "1y"] {
            assert!(bad.parse::<HumanDuration>().is_err(), "{bad:?}");
        }
    }
}
