//! From where somebody may ask.

use crate::{code::Code, error::Invalid};
use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{fmt, net::IpAddr, str::FromStr};

/// A range of addresses, as `10.0.0.0/8`, or a single one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range(IpNet);

impl Range {
    /// Whether an address is one of them. One of IPv4 that is written as IPv6 is the same.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address.to_canonical())
    }
}

impl FromStr for Range {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        let single = s.parse::<IpAddr>().map(IpNet::from);
        let range = single.or_else(|_| s.parse::<IpNet>()).map_err(|_| {
            let expected = "an address or a range such as 10.0.0.0/8 or 2001:db8::/32";
            Invalid::new(Code::BAD_VALUE, "from", format!("{s:?} is no range"), expected)
        })?;
        Ok(Self(range.trunc()))
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.prefix_len() == self.0.max_prefix_len() {
            true => self.0.addr().fmt(f),
            false => self.0.fmt(f),
        }
    }
}

impl Serialize for Range {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Range {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        crate::input::from_text(d)
    }
}
