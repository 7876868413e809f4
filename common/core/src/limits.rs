//! What a run may use of its host: resource limits of its processes (getrlimit(2)) and
//! limits of all of them together (cgroups(7), version 2).

use crate::{code::Code, duration::HumanDuration, error::Invalid};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{fmt, str::FromStr};

/// Bytes written like `512M` or as a number; K, M, G and T are powers of 1024, with or
/// without `B` or `iB` after them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(value_type = serde_json::Value, example = "512M"))]
pub struct ByteSize(pub u64);

/// The units, largest first.
const UNITS: [(char, u32); 4] = [('T', 40), ('G', 30), ('M', 20), ('K', 10)];

impl FromStr for ByteSize {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        let bad = || {
            let problem = format!("{s:?} is not a size");
            Invalid::new(Code::BAD_VALUE, "size", problem, "bytes such as 512M, 2G or 65536")
        };
        let text = s.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let number: u64 = text[..digits].parse().map_err(|_| bad())?;
        let unit = text[digits..].trim().to_ascii_uppercase();
        let factor = match unit.as_str() {
            "" | "B" => 1,
            _ => {
                let fits = |(c, _): &&(char, u32)| {
                    unit.strip_prefix(*c).is_some_and(|rest| ["", "B", "IB"].contains(&rest))
                };
                1 << UNITS.iter().find(fits).ok_or_else(bad)?.1
            }
        };
        number.checked_mul(factor).map(Self).ok_or_else(bad)
    }
}

impl fmt::Display for ByteSize {
    /// In the largest unit that leaves no rest.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UNITS.iter().find(|(_, shift)| self.0 != 0 && self.0.is_multiple_of(1 << shift)) {
            Some((unit, shift)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let expected = "bytes such as \"512M\" or 65536";
        d.deserialize_any(Number { expected, parse: |s| s.parse::<ByteSize>().map(|b| b.0) })
            .map(Self)
    }
}

/// A limit of one resource, soft and hard alike, in the unit of the resource: pieces,
/// bytes or seconds. `None`: no limit, written `unlimited`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(value_type = serde_json::Value, example = "1G"))]
pub struct Limit(pub Option<u64>);

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("unlimited"),
            Some(n) => n.fmt(f),
        }
    }
}

impl Serialize for Limit {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            None => s.serialize_str("unlimited"),
            Some(n) => s.serialize_u64(n),
        }
    }
}

/// Reads a number, or text by means of `parse`.
struct Number {
    expected: &'static str,
    parse: fn(&str) -> Result<u64, Invalid>,
}

impl de::Visitor<'_> for Number {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_u64<E: de::Error>(self, n: u64) -> Result<u64, E> {
        Ok(n)
    }

    fn visit_str<E: de::Error>(self, s: &str) -> Result<u64, E> {
        (self.parse)(s)
            .map_err(|_| E::custom(format!("{s:?} is not valid; expected {}", self.expected)))
    }
}

/// [`Number`], or `unlimited`.
struct LimitOf(Number);

impl de::Visitor<'_> for LimitOf {
    type Value = Limit;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.expecting(f)
    }

    fn visit_u64<E: de::Error>(self, n: u64) -> Result<Limit, E> {
        Ok(Limit(Some(n)))
    }

    fn visit_str<E: de::Error>(self, s: &str) -> Result<Limit, E> {
        if s == "unlimited" { Ok(Limit(None)) } else { self.0.visit_str(s).map(|n| Limit(Some(n))) }
    }
}

fn count<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Limit>, D::Error> {
    let parse = |s: &str| {
        s.trim().parse().map_err(|_| Invalid::new(Code::BAD_VALUE, "limit", s, "a number"))
    };
    let expected = "a number or \"unlimited\"";
    d.deserialize_any(LimitOf(Number { expected, parse })).map(Some)
}

fn bytes<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Limit>, D::Error> {
    let parse = |s: &str| s.parse::<ByteSize>().map(|b| b.0);
    let expected = "bytes such as \"512M\" or 65536, or \"unlimited\"";
    d.deserialize_any(LimitOf(Number { expected, parse })).map(Some)
}

/// Rounded up: the kernel counts whole seconds.
fn seconds<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Limit>, D::Error> {
    let parse = |s: &str| {
        let d = s.parse::<HumanDuration>()?.0;
        Ok(d.as_secs() + u64::from(d.subsec_nanos() > 0))
    };
    let expected = "seconds as a number, a duration such as \"90s\", or \"unlimited\"";
    d.deserialize_any(LimitOf(Number { expected, parse })).map(Some)
}

/// Defines [`Rlimits`] with one field a resource.
macro_rules! rlimits {
    ($($(#[doc = $doc:literal])+ $name:ident: $unit:literal,)+) => {
        /// Limits of each process of a run, of which each process inherits its own; see
        /// getrlimit(2). What is absent stays as the worker has it.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        #[serde(deny_unknown_fields)]
        pub struct Rlimits {
            $(
                $(#[doc = $doc])+
                #[serde(default, deserialize_with = $unit, skip_serializing_if = "Option::is_none")]
                pub $name: Option<Limit>,
            )+
        }

        impl Rlimits {
            /// The limits that are given, by the names of their fields.
            pub fn given(&self) -> impl Iterator<Item = (&'static str, Limit)> {
                [$((stringify!($name).trim_start_matches("r#"), self.$name)),+]
                    .into_iter()
                    .filter_map(|(name, limit)| limit.map(|l| (name, l)))
            }
        }
    };
}

rlimits! {
    /// Open files.
    nofile: "count",
    /// Processes of the user the run runs as, those of others included.
    nproc: "count",
    /// Bytes of a core dump.
    core: "bytes",
    /// Bytes of a file that is written.
    fsize: "bytes",
    /// Bytes of address space.
    r#as: "bytes",
    /// Seconds of processor time, after which the process gets SIGKILL.
    cpu: "seconds",
    /// Bytes of the stack.
    stack: "bytes",
    /// Bytes locked in memory.
    memlock: "bytes",
    /// Bytes of data: heap and private mappings.
    data: "bytes",
}

/// The least memory a control group may be given: less does not hold a shell.
const LEAST_MEMORY: ByteSize = ByteSize(1 << 20);

/// Limits of all processes of a run together, by a control group (cgroups(7), version 2)
/// of its own. Without any of them the run still gets the group, which nothing that it
/// starts can leave unseen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct CgroupLimits {
    /// Memory in bytes, at least 1M; the kernel ends all of the run that goes beyond.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<ByteSize>,
    /// Processor time, in cores: 1.5 is one and a half.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<f64>,
    /// Processes and threads at the same time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tasks: Option<u64>,
}

impl fmt::Display for CgroupLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let given = [
            self.memory.map(|m| format!("memory={m}")),
            self.cpu.map(|c| format!("cpu={c}")),
            self.tasks.map(|t| format!("tasks={t}")),
        ];
        let given: Vec<_> = given.into_iter().flatten().collect();
        f.write_str(if given.is_empty() { "no limits" } else { "" })?;
        f.write_str(&given.join(" "))
    }
}

impl CgroupLimits {
    /// Checks what the types alone do not.
    ///
    /// # Errors
    /// A limit out of range.
    pub fn validate(&self) -> Result<(), Invalid> {
        let bad = |field: &str, expected: &str| {
            let field = format!("cgroup.{field}");
            Err(Invalid::new(Code::BAD_VALUE, field, "out of range", expected))
        };
        if self.memory.is_some_and(|m| m < LEAST_MEMORY) {
            return bad("memory", "bytes such as 512M, at least 1M");
        }
        if self.cpu.is_some_and(|c| !(0.01..=10_000.0).contains(&c)) {
            return bad("cpu", "cores from 0.01 to 10000");
        }
        if self.tasks.is_some_and(|t| !(1..=4_194_304).contains(&t)) {
            return bad("tasks", "1 to 4194304");
        }
        Ok(())
    }
}

/// Permissions taken from files a run creates; octal text such as `0027`. A number is
/// refused, as its base is not the same everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(value_type = String, example = "0027"))]
pub struct Umask(u16);

impl Umask {
    /// The bits, at most `0o777`.
    pub fn bits(self) -> u16 {
        self.0
    }
}

impl FromStr for Umask {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        let digits = !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        match u16::from_str_radix(s, 8) {
            Ok(bits) if digits && bits <= 0o777 => Ok(Self(bits)),
            _ => Err(Invalid::new(
                Code::BAD_VALUE,
                "umask",
                format!("{s:?} is not a mask"),
                "octal text from \"0000\" to \"0777\"",
            )),
        }
    }
}

impl fmt::Display for Umask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

impl Serialize for Umask {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Umask {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Octal;
        impl de::Visitor<'_> for Octal {
            type Value = Umask;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("octal text such as \"0027\"")
            }
            fn visit_str<E: de::Error>(self, s: &str) -> Result<Umask, E> {
                s.parse().map_err(|e: Invalid| {
                    E::custom(format!("{}; expected {}", e.problem, e.expected))
                })
            }
        }
        d.deserialize_str(Octal)
    }
}

#[cfg(test)]
mod tests;
