//! One number for everything a node holds, so that two who keep the same things can tell
//! cheaply whether they do.
//!
//! Worker and leader both compute it from the values that etcd has: the worker from those
//! it has taken in, the leader from its watch. Each adds and removes pairs one by one, in
//! whatever order it hears of them.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use std::{fmt, str::FromStr};

/// A digest of a set of (key, value) pairs: how many there are, and the sum of their
/// [hashes](pair). Written as `12-00ff00ff00ff00ff`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Digest {
    count: u64,
    sum: u64,
}

/// The hash of an assignment: `rest` is what follows `/cron/jobs/<ip>/` in its key (empty
/// for the oldest form), `value` what etcd has there, byte by byte.
pub fn pair(rest: &str, value: &[u8]) -> u64 {
    // The length keeps ("ab", "c") and ("a", "bc") apart.
    let start = mix(0x9e37_79b9_7f4a_7c15, rest.len() as u64);
    absorb(absorb(start, rest.as_bytes()), value)
}

/// Eight bytes at a time; stable over versions and machines, as both sides must agree.
fn absorb(mut h: u64, bytes: &[u8]) -> u64 {
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        h = mix(h, u64::from_le_bytes(word));
    }
    mix(h, bytes.len() as u64)
}

fn mix(h: u64, word: u64) -> u64 {
    let h = (h ^ word).wrapping_mul(0xff51_afd7_ed55_8ccd);
    (h ^ (h >> 32)).wrapping_mul(0xc4ce_b9fe_1a85_ec53) ^ (h >> 29)
}

impl Digest {
    /// Takes a pair in, by its [hash](pair).
    pub fn add(&mut self, pair: u64) {
        self.count = self.count.wrapping_add(1);
        self.sum = self.sum.wrapping_add(pair);
    }

    /// Lets a pair go that was taken in.
    pub fn remove(&mut self, pair: u64) {
        self.count = self.count.wrapping_sub(1);
        self.sum = self.sum.wrapping_sub(pair);
    }

    /// How many pairs there are.
    pub fn count(&self) -> u64 {
        self.count
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:016x}", self.count, self.sum)
    }
}

impl FromStr for Digest {
    type Err = ();

    fn from_str(s: &str) -> Result<Self, ()> {
        let (count, sum) = s.split_once('-').ok_or(())?;
        let count = count.parse().map_err(|_| ())?;
        Ok(Self { count, sum: u64::from_str_radix(sum, 16).map_err(|_| ())? })
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bad = |()| D::Error::custom(format!("{text:?} is no digest, as 12-00ff00ff00ff00ff"));
        text.parse().map_err(bad)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn of<'a>(pairs: impl IntoIterator<Item = (&'a String, &'a Vec<u8>)>) -> Digest {
        let mut digest = Digest::default();
        pairs.into_iter().for_each(|(rest, value)| digest.add(pair(rest, value)));
        digest
    }

    #[test]
    fn it_stays_the_same_over_versions() {
        let mut digest = Digest::default();
        assert_eq!(digest.to_string(), "0-0000000000000000");
        digest.add(pair("hello", br#"{"cmd":"date"}"#));
        assert_eq!(digest.to_string(), "1-52108a2e79d8bea7");
        assert_ne!(pair("a", b"bc"), pair("ab", b"c"));
        assert_ne!(pair("a", b"b"), pair("a", b"b\0"));
        assert!("1".parse::<Digest>().is_err() && "1-x".parse::<Digest>().is_err());
    }

    proptest! {
        #[test]
        fn only_what_is_held_counts_not_how_it_came_about(
            pairs in prop::collection::btree_map("[a-c]{0,3}", prop::collection::vec(0u8..4, 0..12), 0..8),
            gone in prop::collection::btree_map("[d-f]{1,3}", prop::collection::vec(0u8..4, 0..12), 0..8),
        ) {
            let want = of(&pairs);
            let mut digest = of(pairs.iter().chain(&gone).collect::<BTreeMap<_, _>>().into_iter().rev());
            gone.iter().for_each(|(rest, value)| digest.remove(pair(rest, value)));
            prop_assert_eq!(digest, want);
            prop_assert_eq!(digest.count(), pairs.len() as u64);
            prop_assert_eq!(digest.to_string().parse::<Digest>(), Ok(digest));
            if let Some((rest, value)) = pairs.iter().next() {
                digest.remove(pair(rest, value));
                digest.add(pair(rest, &[&value[..], &[1]].concat()));
                prop_assert_ne!(digest, want);
            }
        }
    }
}
