//! `meepo node …`.

use clap::Subcommand;
use meepo_core::{duration::HumanDuration, id::Name};

/// `meepo node …`.
#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// List nodes.
    List {
        /// Only these: `group=web`, `disk.free > 1TB and load1 < 2`.
        #[arg(short, long, value_name = "TARGET")]
        target: Option<String>,
    },
    /// Show a node, its facts, labels and problems.
    Get {
        /// The node.
        name: Name,
    },
    /// Show how busy the nodes are at the moment: processors, memory, disk, runs.
    Facts {
        /// Only these: `group=web`, `all prefer least-loaded limit 3`.
        #[arg(short, long, value_name = "TARGET")]
        target: Option<String>,
    },
    /// Set labels of a node and take them away; without any, show them and their origin.
    Label {
        /// The node.
        name: Name,
        /// `zone=a` sets a label, `zone-` takes it away.
        #[arg(value_name = "KEY=VALUE|KEY-", value_parser = change)]
        changes: Vec<(String, Option<String>)>,
    },
    /// Make a token with which a host may join the fleet, once.
    JoinToken {
        /// The node that may join with it, also one that has joined before [default: any that
        /// has not].
        #[arg(long, value_name = "ID")]
        node: Option<Name>,
        /// Good for so long.
        #[arg(long, default_value = "1h", value_name = "DURATION")]
        ttl: HumanDuration,
        /// A host name or an address of the node for its certificate, may be given several times
        /// [default: its id].
        #[arg(long = "host", value_name = "HOST", requires = "node")]
        hosts: Vec<String>,
        /// List the tokens that are neither spent nor expired instead.
        #[arg(long, conflicts_with_all = ["node", "hosts", "revoke"])]
        list: bool,
        /// Take the token of this id back instead.
        #[arg(long, value_name = "TOKEN-ID", conflicts_with_all = ["node", "hosts"])]
        revoke: Option<Name>,
    },
    /// Let a node finish what it runs and take nothing new, also after restarts.
    Drain {
        /// The node.
        name: Name,
        /// Kill what runs still after this time [default: let it run to its end].
        #[arg(long, value_name = "DURATION")]
        deadline: Option<HumanDuration>,
        /// Return when nothing runs on it any more.
        #[arg(long)]
        wait: bool,
    },
    /// Let a node take work again.
    Undrain {
        /// The node.
        name: Name,
    },
}

fn change(s: &str) -> Result<(String, Option<String>), String> {
    match (s.split_once('='), s.strip_suffix('-')) {
        (Some((key, value)), _) if !key.is_empty() => Ok((key.to_owned(), Some(value.to_owned()))),
        (None, Some(key)) if !key.is_empty() => Ok((key.to_owned(), None)),
        _ => Err("expected KEY=VALUE to set a label, or KEY- to take it away".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::change;

    #[test]
    fn labels_are_set_and_taken_away() {
        let set = |key: &str, value: &str| Ok((key.to_owned(), Some(value.to_owned())));
        assert_eq!(change("zone=a"), set("zone", "a"));
        assert_eq!(change("zone=a=b-"), set("zone", "a=b-"));
        assert_eq!(change("zone="), set("zone", ""));
        assert_eq!(change("zone-"), Ok(("zone".to_owned(), None)));
        for bad in ["zone", "=a", "-", ""] {
            assert!(change(bad).is_err(), "{bad}");
        }
    }
}
