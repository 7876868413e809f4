//! Enumerations as the stores write them. The words are part of the stored format:
//! the tests hold them against the JSON of `meepo-core`.

use meepo_core::run::{Cause, Stream};

/// The stored word of a cause.
pub(crate) const fn cause(c: Cause) -> &'static str {
    match c {
        Cause::Schedule => "schedule",
        Cause::Misfire => "misfire",
        Cause::Reboot => "reboot",
        Cause::Trigger => "trigger",
        Cause::Exec => "exec",
        Cause::Task => "task",
    }
}

/// The stored number of a stream: its file descriptor.
pub(crate) const fn stream(s: Stream) -> i32 {
    match s {
        Stream::Stdout => 1,
        Stream::Stderr => 2,
    }
}

/// The stream with that number.
pub(crate) const fn stream_of(n: i64) -> Option<Stream> {
    match n {
        1 => Some(Stream::Stdout),
        2 => Some(Stream::Stderr),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAUSES: [Cause; 6] =
        [Cause::Schedule, Cause::Misfire, Cause::Reboot, Cause::Trigger, Cause::Exec, Cause::Task];

    #[test]
    fn stored_words_are_those_of_the_json() {
        for c in CAUSES {
            assert_eq!(serde_json::to_value(c).unwrap(), cause(c));
        }
        for s in [Stream::Stdout, Stream::Stderr] {
            assert_eq!(stream_of(stream(s).into()), Some(s));
        }
    }
}
