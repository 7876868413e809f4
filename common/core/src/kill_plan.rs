//! How a run is ended: signals with waits between them.

use crate::{code::Code, duration::HumanDuration, error::Invalid};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{fmt, str::FromStr, time::Duration};

/// Most steps a plan may have.
pub const MAX_STEPS: usize = 16;
/// Longest time all waits of a plan may take together.
pub const MAX_WAIT: Duration = Duration::from_secs(3600);

/// Signals that ask a process to end, by their names in signal(7) without `SIG`.
/// SIGKILL is not among them: it follows every plan by itself.
pub const SIGNALS: [&str; 8] = ["HUP", "INT", "QUIT", "USR1", "USR2", "ALRM", "TERM", "CONT"];

/// One step of a [`KillPlan`]; written like `TERM 5s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KillStep {
    /// One of [`SIGNALS`].
    signal: &'static str,
    /// How long the processes have to end before the next step.
    wait: Duration,
}

impl KillStep {
    /// The signal's name in signal(7), e.g. `SIGTERM`.
    pub fn signal(&self) -> String {
        format!("SIG{}", self.signal)
    }

    /// How long the processes have to end before the next step.
    pub fn wait(&self) -> Duration {
        self.wait
    }
}

impl FromStr for KillStep {
    type Err = Invalid;
    fn from_str(s: &str) -> Result<Self, Invalid> {
        let bad = |problem: String, expected: &str| {
            Err(Invalid::new(Code::BAD_VALUE, "kill_plan", problem, expected))
        };
        let example = "a signal and a time to wait, such as \"TERM 5s\"";
        let Some((name, wait)) = s.trim().split_once(char::is_whitespace) else {
            return bad(format!("{s:?} is not a step"), example);
        };
        let upper = name.to_ascii_uppercase();
        let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
        if bare == "KILL" {
            return bad("SIGKILL needs no step".into(), "other signals; SIGKILL always follows");
        }
        let Some(signal) = SIGNALS.into_iter().find(|n| *n == bare) else {
            let expected = format!("one of {}", SIGNALS.join(", "));
            return bad(format!("{name:?} is not a signal that ends a run"), &expected);
        };
        match wait.parse::<HumanDuration>() {
            Ok(wait) => Ok(Self { signal, wait: wait.0 }),
            Err(e) => bad(e.problem, example),
        }
    }
}

impl fmt::Display for KillStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.signal, HumanDuration(self.wait))
    }
}

impl Serialize for KillStep {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for KillStep {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        text.parse().map_err(|e: Invalid| {
            serde::de::Error::custom(format!("{}; expected {}", e.problem, e.expected))
        })
    }
}

/// What a run is sent to end it, in order. SIGKILL follows when the list is through; an
/// empty list is SIGKILL at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(value_type = Vec<String>, example = json!(["INT 1s", "TERM 5s"])))]
#[serde(transparent)]
pub struct KillPlan(pub Vec<KillStep>);

impl Default for KillPlan {
    /// Three times SIGINT with a second after each.
    fn default() -> Self {
        Self(vec![KillStep { signal: "INT", wait: Duration::from_secs(1) }; 3])
    }
}

impl fmt::Display for KillPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|step| write!(f, "{step}, "))?;
        f.write_str("KILL")
    }
}

impl KillPlan {
    /// How long all its waits take together.
    pub fn total(&self) -> Duration {
        self.0.iter().fold(Duration::ZERO, |sum, step| sum.saturating_add(step.wait))
    }

    /// Checks what the type alone does not.
    ///
    /// # Errors
    /// Too many steps, or waits that are too long together.
    pub fn validate(&self) -> Result<(), Invalid> {
        let bad = |problem: String, expected: &str| {
            Err(Invalid::new(Code::BAD_VALUE, "kill_plan", problem, expected))
        };
        if self.0.len() > MAX_STEPS {
            return bad(format!("{} steps", self.0.len()), "at most 16 steps");
        }
        if self.total() > MAX_WAIT {
            return bad("the waits are too long".into(), "an hour in all at most");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_read_and_written() {
        for (text, signal, secs, shown) in [
            ("TERM 5s", "SIGTERM", 5, "TERM 5s"),
            (" sigint  1m ", "SIGINT", 60, "INT 1m"),
            ("HUP 0s", "SIGHUP", 0, "HUP 0s"),
        ] {
            let step: KillStep = text.parse().unwrap();
            assert_eq!((step.signal().as_str(), step.wait()), (signal, Duration::from_secs(secs)));
            assert_eq!(step.to_string(), shown);
            assert_eq!(shown.parse::<KillStep>().unwrap(), step);
        }
        let plan: KillPlan = serde_json::from_str(r#"["INT 1s","INT 1s","INT 1s"]"#).unwrap();
        assert_eq!(plan, KillPlan::default());
        assert_eq!(plan.to_string(), "INT 1s, INT 1s, INT 1s, KILL");
        assert_eq!(serde_json::to_string(&plan).unwrap(), r#"["INT 1s","INT 1s","INT 1s"]"#);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, part) in [
            ("TERM", "not a step"),
            ("KILL 1s", "SIGKILL"),
            ("STOP 1s", "not a signal"),
            ("TERM 5", "not a duration"),
            ("", "not a step"),
        ] {
            let e = text.parse::<KillStep>().unwrap_err();
            assert!(e.to_string().contains(part), "{text:?}: {e}");
        }
        let long = |n, wait: &str| KillPlan(vec![format!("INT {wait}").parse().unwrap(); n]);
        assert!(long(16, "225s").validate().is_ok());
        assert!(long(17, "1s").validate().is_err());
        let e = long(2, "31m").validate().unwrap_err();
        assert_eq!((e.code, e.field.as_str()), (Code::BAD_VALUE, "kill_plan"));
    }
}
