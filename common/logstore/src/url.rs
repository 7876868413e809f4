//! Which store a URL names.

use crate::StoreError;
use std::path::PathBuf;

/// Where a store is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Location {
    /// A SQLite file.
    Sqlite(PathBuf),
    /// A MongoDB URL, not yet checked further than its scheme.
    Mongo(String),
}

const SQLITE_FORMS: &str = "sqlite:///absolute/path.db or sqlite:relative/path.db";
const FORMS: &str =
    "mongodb://host:port/database, sqlite:///absolute/path.db or sqlite:relative/path.db";

impl Location {
    /// Reads `url`.
    pub(crate) fn parse(url: &str) -> Result<Self, StoreError> {
        let Some((scheme, rest)) = url.split_once(':') else {
            return Err(bad(url, "it has no scheme", FORMS));
        };
        match scheme {
            "sqlite" => sqlite(url, rest),
            "mongodb" => Ok(Self::Mongo(url.to_owned())),
            "mongodb+srv" => Err(bad(
                url,
                "seed lists from DNS (mongodb+srv) are not built in",
                "mongodb:// with the hosts listed, e.g. mongodb://db1,db2,db3/meepo?replicaSet=rs0&tls=true",
            )),
            _ => Err(bad(url, format!("unknown scheme {scheme:?}"), FORMS)),
        }
    }
}

fn sqlite(url: &str, rest: &str) -> Result<Location, StoreError> {
    let path = match rest.strip_prefix("//") {
        // `//host/path` names another machine; with an absolute path the host is empty.
        Some(path) if path.starts_with('/') => path,
        Some(_) => return Err(bad(url, "two slashes introduce a host", SQLITE_FORMS)),
        None => rest,
    };
    if path.is_empty() || path.ends_with('/') {
        return Err(bad(url, "it names no file", SQLITE_FORMS));
    }
    if path.starts_with(':') {
        return Err(bad(url, "a database in memory would lose every run", SQLITE_FORMS));
    }
    Ok(Location::Sqlite(path.into()))
}

/// The error for a URL nothing can be opened with.
pub(crate) fn bad(url: &str, problem: impl Into<String>, expected: &str) -> StoreError {
    StoreError::BadUrl {
        url: redacted(url),
        problem: problem.into(),
        expected: expected.to_owned(),
    }
}

/// The URL without user, password and options: fit for messages and logs.
pub(crate) fn redacted(url: &str) -> String {
    let (scheme, rest) = match url.split_once("://") {
        Some((scheme, rest)) => (format!("{scheme}://"), rest),
        None => (String::new(), url),
    };
    // A password may hold an unescaped '@', '/' or '?' by mistake: the last '@' counts.
    let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
    format!("{scheme}{}", rest.split('?').next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_stores() {
        let file = |p: &str| Location::Sqlite(p.into());
        for (url, want) in [
            ("sqlite:///var/lib/meepo/logs.db", file("/var/lib/meepo/logs.db")),
            ("sqlite:/var/lib/logs.db", file("/var/lib/logs.db")),
            ("sqlite:logs.db", file("logs.db")),
            ("sqlite:./a/logs.db", file("./a/logs.db")),
            ("mongodb://h/db", Location::Mongo("mongodb://h/db".into())),
        ] {
            assert_eq!(Location::parse(url).unwrap(), want, "{url}");
        }
    }

    #[test]
    fn a_bad_url_says_what_would_be_right_and_keeps_secrets() {
        for (url, expected) in [
            ("logs.db", "sqlite:"),
            ("", "sqlite:"),
            ("postgres://u:geheim@h/db", "mongodb://"),
            ("postgres://u:pa@ss?geheim@h/db?password=geheim", "mongodb://"),
            ("sqlite:", "sqlite:"),
            ("sqlite://logs.db", "sqlite:"),
            ("sqlite::memory:", "sqlite:"),
            ("sqlite:///dir/", "sqlite:"),
            ("mongodb+srv://u:geheim@h/db", "mongodb://"),
        ] {
            let e = Location::parse(url).unwrap_err();
            let StoreError::BadUrl { expected: said, .. } = &e else { panic!("{url}: {e}") };
            assert!(said.contains(expected) && !e.retryable(), "{url}: {e}");
            assert!(!e.to_string().contains("geheim"), "{url}: {e}");
        }
    }
}
