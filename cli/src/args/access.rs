//! `meepo login`, `logout`, `whoami`, `user`, `token`, `role`.

use clap::{Args, Subcommand, ValueHint};
use meepo_core::{auth::Range, duration::HumanDuration, id::Name};
use std::path::PathBuf;

/// `meepo login`.
#[derive(Debug, Clone, Args)]
pub(crate) struct LoginArgs {
    /// Who [default: the user of this shell].
    #[arg(short, long, value_name = "NAME")]
    pub(crate) user: Option<Name>,
    /// Read the password from standard input instead of asking for it.
    #[arg(long, conflicts_with = "token_stdin")]
    pub(crate) password_stdin: bool,
    /// Keep a token that is read from standard input; no password is asked for.
    #[arg(long)]
    pub(crate) token_stdin: bool,
    /// How long the login lasts, at most 30 days [default: 12h].
    #[arg(long, value_name = "DURATION")]
    pub(crate) ttl: Option<HumanDuration>,
}

/// `meepo user …`.
#[derive(Debug, Subcommand)]
pub(crate) enum UserCommand {
    /// Create or change a user: what is not given is taken away.
    Put {
        /// The user.
        name: Name,
        /// Its roles; may be given several times.
        #[arg(long = "role", value_name = "ROLE")]
        roles: Vec<Name>,
        /// For people.
        #[arg(long)]
        description: Option<String>,
        /// It may do nothing, whatever its roles.
        #[arg(long)]
        disabled: bool,
    },
    /// List users.
    List,
    /// Delete users with all of their tokens.
    Delete {
        /// The users.
        #[arg(required = true)]
        names: Vec<Name>,
    },
    /// Set a password; asks for it, and for the old one where it is one's own.
    Passwd {
        /// The user [default: who is logged in].
        name: Option<Name>,
        /// Read the new password from standard input, from its first line; the old one, where
        /// needed, from the second.
        #[arg(long)]
        password_stdin: bool,
        /// Take the password away: there is no login any more, tokens go on.
        #[arg(long, conflicts_with = "password_stdin")]
        remove: bool,
    },
}

/// `meepo token …`.
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token and print it, this once.
    Create {
        /// For whom [default: for oneself].
        #[arg(short, long, value_name = "NAME")]
        user: Option<Name>,
        /// What it is for.
        #[arg(long)]
        description: Option<String>,
        /// Only these of the user's roles; may be given several times [default: all].
        #[arg(long = "role", value_name = "ROLE")]
        roles: Vec<Name>,
        /// Only from this address or range; may be given several times [default: from anywhere].
        #[arg(long = "from", value_name = "RANGE")]
        from: Vec<Range>,
        /// How long it is worth something [default: 90d].
        #[arg(long, value_name = "DURATION")]
        ttl: Option<HumanDuration>,
    },
    /// List tokens: all, or one's own.
    List,
    /// Revoke tokens; they are worth nothing from then on.
    Revoke {
        /// Their ids.
        #[arg(required = true)]
        ids: Vec<String>,
    },
}

/// `meepo role …`.
#[derive(Debug, Subcommand)]
pub(crate) enum RoleCommand {
    /// Create or replace roles from YAML or JSON files.
    Put {
        /// A file, a directory (its *.yaml, *.yml and *.json), or `-` for standard input.
        #[arg(short, long = "file", required = true, num_args = 1.., value_name = "FILE", value_hint = ValueHint::AnyPath)]
        files: Vec<PathBuf>,
    },
    /// List roles and what they allow.
    List,
    /// Delete roles that nobody has.
    Delete {
        /// The roles.
        #[arg(required = true)]
        names: Vec<Name>,
    },
}
