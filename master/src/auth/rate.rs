//! How often each client may ask. Clients are told apart by their addresses; of IPv6 by the
//! network, as whoever has one address there has all of it.

use meepo_core::auth::{Bucket, Rate};
use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Clients that are remembered, at some fifty bytes each. Those beyond share one bucket.
const MAX_CLIENTS: usize = 10_000;

/// A bucket for each client.
pub(super) struct Rates {
    rate: Rate,
    since: Instant,
    clients: Mutex<HashMap<IpAddr, Bucket>>,
}

impl Rates {
    pub(super) fn new(rate: Rate) -> Self {
        Self { rate, since: Instant::now(), clients: Mutex::default() }
    }

    /// Counts a request. `Err`: it is one too many, and after so long there is room.
    pub(super) fn take(&self, client: IpAddr) -> Result<(), Duration> {
        self.with(client, |bucket, now| bucket.take(self.rate, now))
    }

    /// Whether there is room for one, without counting it.
    pub(super) fn has(&self, client: IpAddr) -> bool {
        self.with(client, |bucket, now| bucket.has(self.rate, now))
    }

    fn with<T>(&self, client: IpAddr, ask: impl FnOnce(&mut Bucket, Duration) -> T) -> T {
        let now = self.since.elapsed();
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let mut client = network(client);
        if clients.len() >= MAX_CLIENTS && !clients.contains_key(&client) {
            // Whoever has not asked for a while has a full one again.
            clients.retain(|_, bucket| !bucket.is_full(self.rate, now));
            if clients.len() >= MAX_CLIENTS {
                client = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
            }
        }
        let bucket = clients.entry(client).or_insert_with(|| Bucket::full(self.rate, now));
        ask(bucket, now)
    }
}

/// The address, or of IPv6 the first 64 bits.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_client_has_a_bucket_and_their_number_is_bounded() {
        let rates = Rates::new(Rate { per_second: 0.001, burst: 2.0 });
        let v4 = |n: u32| IpAddr::V4(n.into());
        assert!(rates.take(v4(1)).is_ok() && rates.take(v4(1)).is_ok());
        assert!(rates.take(v4(1)).is_err() && !rates.has(v4(1)));
        assert!(rates.has(v4(2)) && rates.take(v4(2)).is_ok());
        let [one, same, other] =
            ["2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"].map(|a| a.parse().unwrap());
        assert!(rates.take(one).is_ok() && rates.take(same).is_ok() && rates.take(one).is_err());
        assert!(rates.take(other).is_ok());
        assert!(rates.take("::ffff:0.0.0.1".parse().unwrap()).is_err(), "the same as 0.0.0.1");
        for n in 0..MAX_CLIENTS as u32 + 500 {
            let _ = rates.take(v4(n));
            let _ = rates.take(v4(n));
        }
        assert!(rates.clients.lock().unwrap().len() <= MAX_CLIENTS + 1);
        // One more than that, and the shared bucket is empty long since.
        assert!(rates.take(v4(u32::MAX)).is_err());
        assert!(rates.take(v4(3)).is_err(), "who had a bucket keeps it");
    }
}
