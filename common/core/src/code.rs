//! The 16-bit code of every outcome: the type in the high byte, the code in the low.
//!
//! `docs/reference/codes.md` is checked against [`TABLE`] by a test.

use crate::error::Invalid;
use serde::{Deserialize, Serialize};
use std::fmt;

/// An outcome: type in the high byte, code in the low byte. `0x0000` is success.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(transparent)]
pub struct Code(pub u16);

/// Type 01: the command ran (or was about to) and did not succeed.
pub const RUN: u8 = 0x01;
/// Type 02: the work never reached a process, or its end is not known.
pub const DISPATCH: u8 = 0x02;
/// Type 03: the request cannot be accepted as it stands.
pub const VALIDATION: u8 = 0x03;
/// Type 04: something meepo needs is away; the same request may succeed later.
pub const UNAVAILABLE: u8 = 0x04;
/// Type 05: a defect in meepo.
pub const INTERNAL: u8 = 0x05;

macro_rules! codes {
    ($($name:ident = $value:literal, $text:literal;)*) => {
        impl Code {
            $(#[doc = $text] pub const $name: Code = Code($value);)*
        }
        /// Every code with its constant's name and its meaning, ascending.
        pub const TABLE: &[(Code, &str, &str)] = &[$((Code($value), stringify!($name), $text),)*];
    };
}

codes! {
    OK = 0x0000, "success";
    TIMED_OUT = 0x0100, "the command ran longer than its timeout and was killed";
    EXIT_STATUS = 0x0101, "the command ended with a non-zero exit status";
    SIGNALED = 0x0102, "the command was ended by a signal that meepo did not send";
    KILLED = 0x0103, "the run was killed on request";
    REPLACED = 0x0104, "the run was killed to make room for a newer one (concurrency: replace)";
    CANNOT_START = 0x0105, "the process could not be started, or the request not be sent";
    SHUTDOWN = 0x0106, "the run was killed because its worker shut down";
    HTTP_STATUS = 0x0107, "the server answered with a status that was not expected";
    NO_RESPONSE = 0x0108, "no complete answer came; whether the server has acted on the request is not known";
    NO_SUCH_HOST = 0x0200, "no such host";
    HOST_OFFLINE = 0x0201, "the host is known but not connected";
    NO_ANSWER = 0x0202, "the host did not answer in time";
    LOST = 0x0203, "the worker died or vanished while the command ran; its end is not known";
    MISSED = 0x0204, "the slot passed while nobody could run it";
    OVERLAP = 0x0205, "the slot was skipped because an earlier run was still active";
    EXPIRED = 0x0206, "the request was not started within its validity";
    NO_TARGET = 0x0207, "the target matches no node";
    LOCK_TAKEN = 0x0208, "the lock that the run needs stayed taken for too long";
    CANCELLED = 0x0209, "the work was withdrawn before it began";
    UNTRUSTED = 0x020A, "its signature does not hold, and the node runs nothing without one";
    NOT_ALLOWED = 0x020B, "the node's own lists of what it runs do not allow it";
    MALFORMED = 0x0300, "the request is not valid JSON or YAML of the right shape";
    UNKNOWN_FIELD = 0x0301, "the request has a field that does not exist";
    BAD_VALUE = 0x0302, "a field has a wrong type or an impossible value";
    BAD_SCHEDULE = 0x0303, "the cron expression or time zone is not valid";
    UNKNOWN_EXECUTOR = 0x0304, "the executor does not exist";
    EMPTY_COMMAND = 0x0305, "the command is empty";
    BAD_NAME = 0x0306, "a name has characters that are not allowed or is too long";
    BAD_TARGET = 0x0307, "the target expression is not valid";
    TOO_LARGE = 0x0308, "the request body is over the limit";
    NOT_FOUND = 0x0309, "no such job, run, task or node";
    CONFLICT = 0x030A, "the object has changed or already exists";
    METHOD = 0x030B, "the path exists but not with this method or content type";
    FORBIDDEN = 0x030C, "the request may not be made this way";
    UNAUTHENTICATED = 0x030D, "who asks is not known: there is no token, or it is worth nothing";
    DENIED = 0x030E, "who asks may not do this";
    ETCD = 0x0400, "etcd cannot be reached or has no leader";
    LOG_STORE = 0x0401, "the log store cannot be reached";
    NO_LEADER = 0x0402, "no master leads at the moment";
    BUSY = 0x0403, "a limit on work in progress is reached";
    UNKNOWN_OUTCOME = 0x0404, "it is not known whether the request took effect; look before you repeat it";
    DRAINED = 0x0405, "the node is drained: it takes nothing new";
    BUG = 0x0500, "internal error; please report it with the log";
}

impl Code {
    /// The type: the high byte.
    pub const fn kind(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// Whether the outcome is success.
    pub const fn is_ok(self) -> bool {
        self.0 == 0
    }

    /// Whether sending the same request again later can help.
    pub const fn retryable(self) -> bool {
        let away = self.kind() == UNAVAILABLE && self.0 != Code::UNKNOWN_OUTCOME.0;
        away || self.0 == Code::HOST_OFFLINE.0 || self.0 == Code::NO_ANSWER.0
    }

    /// What the code means, in a sentence without a full stop.
    pub fn meaning(self) -> &'static str {
        TABLE.iter().find(|(c, _, _)| *c == self).map_or("unknown code", |(_, _, m)| m)
    }

    /// The constant's name in lower case, stable enough for scripts: `timed_out`.
    pub fn name(self) -> String {
        TABLE.iter().find(|(c, _, _)| *c == self).map_or("unknown", |(_, n, _)| n).to_lowercase()
    }
}

/// The types by the names that filters take.
const KINDS: [(&str, u8); 5] = [
    ("run", RUN),
    ("dispatch", DISPATCH),
    ("validation", VALIDATION),
    ("unavailable", UNAVAILABLE),
    ("internal", INTERNAL),
];

/// The codes that `text` means: one by its number (`0x0101`, `257`) or name (`exit_status`),
/// or all that are known of a type (`run`, `dispatch`, …, or `0x01`).
///
/// # Errors
/// When it is none of these.
pub fn matching(text: &str) -> Result<Vec<Code>, Invalid> {
    let text = text.trim();
    let bad = || {
        let problem = format!("{text:?} is no outcome code");
        let expected = "a number such as 0x0101, a name such as exit_status, or a type: run, \
                        dispatch, validation, unavailable, internal";
        Invalid::new(Code::BAD_VALUE, "code", problem, expected)
    };
    let of_kind = |kind: u8| TABLE.iter().map(|t| t.0).filter(|c| c.kind() == kind).collect();
    if let Some((_, kind)) = KINDS.iter().find(|(name, _)| *name == text) {
        return Ok(of_kind(*kind));
    }
    let named = |(_, name, _): &&(Code, &str, &str)| name.eq_ignore_ascii_case(text);
    if let Some((code, ..)) = TABLE.iter().find(named) {
        return Ok(vec![*code]);
    }
    if !text.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return Err(bad()); // Numbers are read with a sign, too.
    }
    match text.strip_prefix("0x") {
        // Two digits are the high byte.
        Some(hex) if hex.len() == 2 => {
            let kind = u8::from_str_radix(hex, 16).map_err(|_| bad())?;
            Some(of_kind(kind)).filter(|codes: &Vec<Code>| !codes.is_empty()).ok_or_else(bad)
        }
        Some(hex) => Ok(vec![Code(u16::from_str_radix(hex, 16).map_err(|_| bad())?)]),
        None => Ok(vec![Code(text.parse().map_err(|_| bad())?)]),
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{:04X}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_found_by_number_name_and_type() {
        for text in ["0x0101", "257", "exit_status", "EXIT_STATUS", " 257 "] {
            assert_eq!(matching(text).unwrap(), [Code::EXIT_STATUS], "{text}");
        }
        // A newer version may know more.
        assert_eq!(matching("0x01FF").unwrap(), [Code(0x01FF)]);
        assert_eq!(matching("0").unwrap(), [Code::OK]);
        for text in ["run", "0x01"] {
            let codes = matching(text).unwrap();
            assert!(codes.contains(&Code::TIMED_OUT) && codes.iter().all(|c| c.kind() == RUN));
        }
        for bad in ["", "0x", "0x77", "65536", "nope", "-1", "0x+1"] {
            assert!(matching(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn codes_are_distinct_and_ascending() {
        assert!(TABLE.windows(2).all(|w| w[0].0 < w[1].0));
    }

    #[test]
    fn the_codes_of_a_run_that_failed_are_fixed() {
        assert_eq!(Code::TIMED_OUT, Code(0x0100));
        assert_eq!(Code::EXIT_STATUS, Code(0x0101));
        assert_eq!(Code::EXIT_STATUS.kind(), RUN);
        assert_eq!(Code::EXIT_STATUS.to_string(), "0x0101");
    }
}
