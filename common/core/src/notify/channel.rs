//! Where messages go.

use crate::{
    code::Code,
    duration::HumanDuration,
    error::Invalid,
    http_job::{HttpRequest, parse_url},
    id::Name,
    input::{from_text, from_value, unknown_field},
};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;
use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

/// Longest template, in bytes.
const MAX_TEMPLATE: usize = 64 * 1024;
/// Longest time for one try.
const MAX_TIMEOUT: Duration = Duration::from_secs(300);

/// How many messages a channel takes in how long: `30/1h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// So many at once.
    pub count: u32,
    /// So long until all of them may be sent again.
    pub per: Duration,
}

impl Default for Rate {
    fn default() -> Self {
        Self { count: 30, per: Duration::from_secs(3600) }
    }
}

impl FromStr for Rate {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        let expected = "a number and a time such as 30/1h";
        let bad = || Invalid::new(Code::BAD_VALUE, "limit", format!("{s:?} is no limit"), expected);
        let (count, per) = s.split_once('/').ok_or_else(bad)?;
        let count = count.trim().parse().ok().filter(|n| (1..=100_000).contains(n));
        let per = per.parse::<HumanDuration>().ok().map(|d| d.0);
        let per = per.filter(|p| !p.is_zero() && *p <= Duration::from_secs(7 * 24 * 3600));
        Ok(Self { count: count.ok_or_else(bad)?, per: per.ok_or_else(bad)? })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.count, HumanDuration(self.per))
    }
}

impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        from_text(d)
    }
}

/// A request to a server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Webhook {
    /// Where to.
    pub url: String,
    /// Default `POST`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Sent besides meepo's own. They are readable for everybody who may read the channel.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// Headers whose values are secrets, by the names of these.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secret_headers: BTreeMap<String, Name>,
    /// Name of the secret that messages are signed with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Name>,
    /// What is sent. Default: all that is known, as JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// PEM file on the masters with the authorities to trust, in place of the hosts' own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
}

/// How a connection to a mail server is protected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Encryption {
    /// Begun without and then protected; refused where the server cannot.
    #[default]
    Starttls,
    /// Protected from the first byte.
    Tls,
    /// Not at all. Only to loopback addresses.
    None,
}

/// Mail.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Email {
    /// The mail server.
    pub host: String,
    /// Its port. Default 587, with `tls` 465, with `none` 25.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// How the connection is protected.
    #[serde(default)]
    pub encryption: Encryption,
    /// Whom it is from.
    pub from: String,
    /// Whom it goes to.
    pub to: Vec<String>,
    /// Who logs in there. Default: nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Name of the secret that is the password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Name>,
    /// Template of the subject.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Template of the text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// PEM file on the masters with the authorities to trust, in place of the hosts' own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
}

/// A program on the masters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct CommandChannel {
    /// Its name among the `notify_commands` in the settings of the masters.
    pub program: Name,
}

/// Where messages go: the value at `/meepo/notify/channels/<name>`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Channel {
    /// Unique name.
    pub name: Name,
    /// A request to a server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook: Option<Webhook>,
    /// Mail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<Email>,
    /// A program on the masters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<CommandChannel>,
    /// How many messages it takes in how long. Default `30/1h`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>, example = "30/1h"))]
    pub limit: Option<Rate>,
    /// Longest time for one try. Default 10 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<HumanDuration>,
    /// Fields this version does not know.
    #[serde(flatten)]
    #[cfg_attr(feature = "openapi", schema(ignore))]
    pub extra: BTreeMap<String, Value>,
}

fn bad<T>(field: &str, problem: impl Into<String>, expected: &str) -> Result<T, Invalid> {
    Err(Invalid::new(Code::BAD_VALUE, field, problem, expected))
}

impl Channel {
    const FIELDS: &'static [&'static str] =
        &["name", "webhook", "email", "command", "limit", "timeout"];

    /// Reads what a user sent. Templates are only checked for their length.
    ///
    /// # Errors
    /// Unknown fields, and values that cannot be.
    pub fn from_user(value: Value) -> Result<Self, Invalid> {
        let channel: Self = from_value(value)?;
        if let Some(field) = channel.extra.keys().next() {
            return Err(unknown_field(field, Self::FIELDS));
        }
        channel.validate()?;
        Ok(channel)
    }

    /// How many messages it takes in how long.
    pub fn limit(&self) -> Rate {
        self.limit.unwrap_or_default()
    }

    /// Longest time for one try.
    pub fn timeout(&self) -> Duration {
        self.timeout.map_or(Duration::from_secs(10), |d| d.0)
    }

    /// What it is, in a word.
    pub fn kind(&self) -> &'static str {
        match (&self.webhook, &self.email) {
            (Some(_), _) => "webhook",
            (None, Some(_)) => "email",
            (None, None) => "command",
        }
    }

    fn validate(&self) -> Result<(), Invalid> {
        if self.timeout.is_some_and(|t| t.0.is_zero() || t.0 > MAX_TIMEOUT) {
            return bad("timeout", "out of range", "a positive duration of at most 5m");
        }
        match (&self.webhook, &self.email, &self.command) {
            (Some(hook), None, None) => hook.validate(),
            (None, Some(mail), None) => mail.validate(),
            (None, None, Some(_)) => Ok(()),
            _ => bad("(document)", "not one way to go", "one of webhook, email and command"),
        }
    }
}

fn path(field: &str, ca: Option<&String>) -> Result<(), Invalid> {
    if ca.is_some_and(|p| !p.starts_with('/') || p.contains('\0')) {
        return bad(
            field,
            "not an absolute path",
            "the absolute path of a PEM file on the masters",
        );
    }
    Ok(())
}

fn template(field: &str, text: Option<&String>) -> Result<(), Invalid> {
    if text.is_some_and(|t| t.len() > MAX_TEMPLATE) {
        return bad(field, "too long", "a template of at most 64 KiB");
    }
    Ok(())
}

impl Webhook {
    fn validate(&self) -> Result<(), Invalid> {
        parse_url(&self.url).map_err(|e| e.at("webhook.url"))?;
        let secret = self.secret_headers.keys().map(|name| (name.clone(), "x".to_owned()));
        let mut headers = self.headers.clone();
        headers.extend(secret);
        if headers.len() != self.headers.len() + self.secret_headers.len() {
            return bad("webhook.secret_headers", "given twice", "each header once");
        }
        // What holds for the requests of jobs holds for these.
        let request =
            HttpRequest { method: self.method.clone(), headers, ..HttpRequest::default() };
        request.validate().map_err(|e| {
            let field = e.field.replacen("http.", "webhook.", 1);
            e.at(field)
        })?;
        path("webhook.ca", self.ca.as_ref())?;
        template("webhook.body", self.body.as_ref())
    }
}

impl Email {
    /// The port.
    pub fn port(&self) -> u16 {
        self.port.unwrap_or(match self.encryption {
            Encryption::Starttls => 587,
            Encryption::Tls => 465,
            Encryption::None => 25,
        })
    }

    /// Whether it goes no further than this host.
    fn is_loopback(&self) -> bool {
        let ip = self.host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
        self.host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback())
    }

    fn validate(&self) -> Result<(), Invalid> {
        if self.host.is_empty() || self.host.contains(char::is_whitespace) {
            return bad("email.host", "no host", "a name or an address such as mail.example.org");
        }
        if self.encryption == Encryption::None && !self.is_loopback() {
            let problem = "without encryption everybody on the way could read it";
            return bad("email.encryption", problem, "starttls or tls; none to loopback only");
        }
        if self.to.is_empty() || self.to.len() > 50 {
            return bad("email.to", "nobody, or too many", "1 to 50 addresses");
        }
        if let Some(address) = self.to.iter().chain([&self.from]).find(|a| !is_address(a)) {
            let field = if *address == self.from { "email.from" } else { "email.to" };
            let problem = format!("{address:?} is no address");
            return bad(field, problem, "one such as ops@example.org");
        }
        if self.user.is_some() != self.secret.is_some() {
            return bad("email.user", "goes with secret", "both, or none");
        }
        path("email.ca", self.ca.as_ref())?;
        template("email.subject", self.subject.as_ref())?;
        template("email.body", self.body.as_ref())
    }
}

/// A rough look; the mail library has the last word.
fn is_address(text: &str) -> bool {
    let inner = text.rsplit_once('<').map_or(text, |(_, a)| a.trim_end_matches('>'));
    let parts = inner.split_once('@').is_some_and(|(l, d)| !l.is_empty() && !d.is_empty());
    parts && !text.contains(['\r', '\n', '\0']) && text.len() <= 320
}
