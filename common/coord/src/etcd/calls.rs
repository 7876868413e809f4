//! Reads, writes and transactions.

use super::{Cas, CoordError, Entry, Etcd, MAX_TXN_OPS, PAGE};
use etcd_client::{
    Compare, CompareOp, GetOptions, PutOptions, SortOrder, SortTarget, Txn, TxnOp, TxnOpResponse,
    TxnResponse,
};
use std::{future::Future, pin::Pin, time::Duration};

impl Etcd {
    /// The value of a key.
    pub async fn get(&self, key: &str) -> Result<Option<Entry>, CoordError> {
        let get = || {
            let (mut kv, key) = (self.kv(), key.to_owned());
            Box::pin(async move { kv.get(key, None).await })
        };
        let response = self.call("get", key, get).await?;
        Ok(response.kvs().first().map(Entry::from_kv))
    }

    /// The keys that are there, in no particular order. Read at one revision for each
    /// [`MAX_TXN_OPS`] of them.
    pub async fn get_all(&self, keys: &[String]) -> Result<Vec<Entry>, CoordError> {
        self.get_ranges(keys, None).await
    }

    /// All keys below each of `prefixes`, which are to have few. Read at one revision for each
    /// [`MAX_TXN_OPS`] of the prefixes.
    pub async fn list_all(&self, prefixes: &[String]) -> Result<Vec<Entry>, CoordError> {
        self.get_ranges(prefixes, Some(GetOptions::new().with_prefix())).await
    }

    /// The revision of the newest change below each of `prefixes` among the keys that are
    /// there; 0 if there are none. etcd looks at all of them.
    pub async fn newest(&self, prefixes: &[&str]) -> Result<Vec<i64>, CoordError> {
        let options = GetOptions::new()
            .with_prefix()
            .with_keys_only()
            .with_sort(SortTarget::Mod, SortOrder::Descend)
            .with_limit(1);
        let get = |prefix: &&str| TxnOp::get(*prefix, Some(options.clone()));
        let gets: Vec<TxnOp> = prefixes.iter().map(get).collect();
        let txn = Txn::new().and_then(gets);
        let what = prefixes.first().copied().unwrap_or_default();
        let response = self.call("get", what, transaction(self, &txn)).await?;
        let newest = |r: &TxnOpResponse| match r {
            TxnOpResponse::Get(get) => get.kvs().first().map_or(0, |kv| kv.mod_revision()),
            _ => 0,
        };
        Ok(response.op_responses().iter().map(newest).collect())
    }

    async fn get_ranges(
        &self,
        keys: &[String],
        options: Option<GetOptions>,
    ) -> Result<Vec<Entry>, CoordError> {
        let mut found = Vec::new();
        for some in keys.chunks(MAX_TXN_OPS) {
            let get = |key: &String| TxnOp::get(key.as_str(), options.clone());
            let gets: Vec<TxnOp> = some.iter().map(get).collect();
            let txn = Txn::new().and_then(gets);
            let response = self.call("get", &some[0], transaction(self, &txn)).await?;
            found.extend(response.op_responses().iter().flat_map(|r| match r {
                TxnOpResponse::Get(get) => get.kvs().iter().map(Entry::from_kv).collect(),
                _ => Vec::new(),
            }));
        }
        Ok(found)
    }

    /// Writes unconditionally, bound to a lease if one is given. Answers the revision.
    pub async fn put(
        &self,
        key: &str,
        value: Vec<u8>,
        lease: Option<i64>,
    ) -> Result<i64, CoordError> {
        let options = lease.map(|id| PutOptions::new().with_lease(id));
        let put = || {
            let (mut kv, key) = (self.kv(), key.to_owned());
            let (value, options) = (value.clone(), options.clone());
            Box::pin(async move { kv.put(key, value, options).await })
        };
        let response = self.call("put", key, put).await?;
        Ok(response.header().map_or(0, |h| h.revision()))
    }

    /// Writes some keys in one transaction, all bound to one lease: much cheaper than one
    /// by one. At most [`MAX_TXN_OPS`] different keys and [`MAX_TXN_BYTES`](super::MAX_TXN_BYTES) in all.
    pub async fn put_all(
        &self,
        what: &str,
        entries: impl IntoIterator<Item = (String, Vec<u8>)>,
        lease: i64,
    ) -> Result<(), CoordError> {
        let put = |(key, value)| TxnOp::put(key, value, Some(PutOptions::new().with_lease(lease)));
        let puts: Vec<TxnOp> = entries.into_iter().map(put).collect();
        self.txn(what, Txn::new().and_then(puts)).await.map(drop)
    }

    /// Deletes a key. Answers whether there was one.
    pub async fn delete(&self, key: &str) -> Result<bool, CoordError> {
        let delete = || {
            let (mut kv, key) = (self.kv(), key.to_owned());
            Box::pin(async move { kv.delete(key, None).await })
        };
        let response = self.call("delete", key, delete).await?;
        Ok(response.deleted() > 0)
    }

    /// Writes (or with `None` deletes) provided the key's `mod_revision` is still
    /// `expect` (0: there is no key).
    pub async fn put_if(
        &self,
        key: &str,
        value: Option<Vec<u8>>,
        expect: i64,
        lease: Option<i64>,
    ) -> Result<Cas, CoordError> {
        self.put_if_with(key, value, expect, lease, None).await
    }

    /// As [`Etcd::put_if`], and puts another key in the same transaction.
    pub async fn put_if_with(
        &self,
        key: &str,
        value: Option<Vec<u8>>,
        expect: i64,
        lease: Option<i64>,
        beside: Option<(String, Vec<u8>)>,
    ) -> Result<Cas, CoordError> {
        let op = match value {
            Some(value) => TxnOp::put(key, value, lease.map(|id| PutOptions::new().with_lease(id))),
            None => TxnOp::delete(key, None),
        };
        let beside = beside.map(|(key, value)| TxnOp::put(key, value, None));
        let ops: Vec<_> = [op].into_iter().chain(beside).collect();
        let txn = Txn::new()
            .when([Compare::mod_revision(key, CompareOp::Equal, expect)])
            .and_then(ops)
            .or_else([TxnOp::get(key, None)]);
        let response = self.call("compare and put", key, transaction(self, &txn)).await?;
        if response.succeeded() {
            return Ok(Cas::Done(response.header().map_or(0, |h| h.revision())));
        }
        let there = response.op_responses().into_iter().find_map(|r| match r {
            TxnOpResponse::Get(get) => get.kvs().first().map(Entry::from_kv),
            _ => None,
        });
        Ok(Cas::Conflict(there))
    }

    /// Writes, or with `None` deletes, a key that is there; one that is not stays so.
    /// Answers whether it was there.
    pub async fn put_there(&self, key: &str, value: Option<Vec<u8>>) -> Result<bool, CoordError> {
        let op = match value {
            Some(value) => TxnOp::put(key, value, None),
            None => TxnOp::delete(key, None),
        };
        let there = Compare::version(key, CompareOp::Greater, 0);
        Ok(self.txn(key, Txn::new().when([there]).and_then([op])).await?.is_some())
    }

    /// Performs a transaction as it stands. Answers its revision if the comparison
    /// held.
    pub async fn txn(&self, what: &str, txn: Txn) -> Result<Option<i64>, CoordError> {
        let response = self.call("transaction", what, transaction(self, &txn)).await?;
        Ok(response.succeeded().then(|| response.header().map_or(0, |h| h.revision())))
    }

    /// All keys below `prefix` (or the key of that name, if it does not end with `/`) as of one
    /// revision, in pages, and that revision. With `at` the list is as of that revision.
    pub async fn list(
        &self,
        prefix: &str,
        at: Option<i64>,
    ) -> Result<(Vec<Entry>, i64), CoordError> {
        let end = range_end(prefix);
        let (mut from, mut revision) = (prefix.as_bytes().to_vec(), at.unwrap_or(0));
        let mut entries = Vec::new();
        loop {
            let options =
                GetOptions::new().with_range(end.clone()).with_limit(PAGE).with_revision(revision);
            let get = || {
                let (mut kv, from, options) = (self.kv(), from.clone(), options.clone());
                Box::pin(async move { kv.get(from, Some(options)).await })
            };
            let page = self.call("list", prefix, get).await?;
            if revision == 0 {
                revision = page.header().map_or(0, |h| h.revision());
            }
            entries.extend(page.kvs().iter().map(Entry::from_kv));
            match page.kvs().last() {
                Some(last) if page.more() => {
                    from = last.key().to_vec();
                    from.push(0);
                }
                _ => return Ok((entries, revision)),
            }
        }
    }

    /// Grants a lease that nobody keeps alive: it ends after `ttl`.
    pub async fn grant(&self, ttl: Duration) -> Result<i64, CoordError> {
        // etcd counts whole seconds; a lease must not end before we think it does.
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX).max(1);
        let grant = || {
            let mut lease = self.client().lease_client();
            Box::pin(async move { lease.grant(seconds, None).await })
        };
        Ok(self.call("grant", "lease", grant).await?.id())
    }
}

/// The call that performs a transaction.
fn transaction<'a>(
    etcd: &'a Etcd,
    txn: &'a Txn,
) -> impl Fn() -> Pin<Box<dyn Future<Output = Result<TxnResponse, etcd_client::Error>> + Send>> + 'a
{
    || {
        let (mut kv, txn) = (etcd.kv(), txn.clone());
        Box::pin(async move { kv.txn(txn).await })
    }
}

/// The first key after all keys with `prefix` (etcd's range end of a prefix).
pub fn prefix_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

/// The first key after those meant by `what`: everything below it if it ends with `/` or is
/// empty, else it alone. A user of etcd that may read one key may ask for no more.
pub fn range_end(what: &str) -> Vec<u8> {
    if what.is_empty() || what.ends_with('/') {
        return prefix_end(what);
    }
    [what.as_bytes(), &[0]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_is_no_folder_means_itself() {
        assert_eq!(range_end("/a/"), b"/a0");
        assert_eq!(range_end("/meepo/drain/10.0.0.2"), b"/meepo/drain/10.0.0.2\0");
    }

    #[test]
    fn the_end_of_a_prefix_is_the_next_key() {
        assert_eq!(prefix_end("/a/"), b"/a0");
        assert_eq!(prefix_end(""), [0]);
    }
}
