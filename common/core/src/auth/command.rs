//! Which commands a grant allows.

use crate::job::{Assignment, Executor};

/// What is to be run, as far as it matters for whether it may be.
#[derive(Debug, Clone, PartialEq)]
pub struct Command {
    /// The whole line, if the command is one that a pattern can be held against.
    line: Option<String>,
    /// The user to run as; `None`: the worker's own.
    user: Option<String>,
    /// Whether a group is asked for.
    group: bool,
}

impl Command {
    /// What an assignment runs. Jobs, tasks and synchronous commands all have one.
    pub fn of(a: &Assignment) -> Self {
        Self { line: line(a), user: a.user.clone(), group: a.group.is_some() }
    }

    /// Whether one of the patterns allows the line.
    pub(super) fn fits(&self, patterns: &[String]) -> bool {
        let Some(line) = &self.line else { return false };
        patterns.iter().any(|pattern| matches(pattern, line))
    }

    /// Whether it runs as one of these users.
    pub(super) fn runs_as(&self, users: &[String]) -> bool {
        // A group would give what the user alone has not.
        let Some(user) = self.user.as_ref().filter(|_| !self.group) else { return false };
        users.contains(user)
    }
}

/// The line of a command that does what it says: nothing beside it decides what runs. A
/// variable can name what a shell reads first, standard input can be a script, and a relative
/// path means another program elsewhere.
fn line(a: &Assignment) -> Option<String> {
    if !a.env.is_empty() || a.stdin.is_some() || a.cwd.is_some() || a.http.is_some() {
        return None;
    }
    match a.executor {
        Executor::Bash | Executor::Sh if a.args.is_empty() => Some(a.cmd.clone()),
        Executor::Exec => {
            let words: Vec<&str> =
                std::iter::once(&a.cmd).chain(&a.args).map(String::as_str).collect();
            // Joined, `a b` would look like two words.
            let plain = words.iter().all(|w| !w.is_empty() && !w.contains(char::is_whitespace));
            plain.then(|| words.join(" "))
        }
        _ => None,
    }
}

/// What `*` may stand for: characters that mean nothing to a shell. Also not a blank, so that
/// the number of words stays the pattern's.
fn harmless(c: char) -> bool {
    c.is_ascii_alphanumeric() || "._-/:=@%+,".contains(c)
}

/// Whether `line` as a whole matches `pattern`: `*` stands for any number of harmless
/// characters within a word; at the beginning of a word it is no option, so neither empty nor
/// with a `-` in front. Everything else stands for itself.
pub(super) fn matches(pattern: &str, line: &str) -> bool {
    let (p, t): (Vec<char>, Vec<char>) = (pattern.chars().collect(), line.chars().collect());
    // Where in the line one can be after so much of the pattern: at worst the product of both
    // lengths, whatever the pattern.
    let mut at = vec![false; t.len() + 1];
    at[0] = true;
    for (i, c) in p.iter().enumerate() {
        let mut next = vec![false; t.len() + 1];
        if *c == '*' {
            let begins = i == 0 || p[i - 1] == ' ';
            for from in (0..=t.len()).filter(|from| at[*from]) {
                if !begins {
                    next[from] = true;
                } else if t.get(from) == Some(&'-') {
                    continue;
                }
                // What is set was reached from further left, and so is what follows.
                for to in from..t.len() {
                    if next[to + 1] || !harmless(t[to]) {
                        break;
                    }
                    next[to + 1] = true;
                }
            }
        } else {
            for from in (0..t.len()).filter(|from| at[*from]) {
                next[from + 1] |= t[from] == *c;
            }
        }
        at = next;
    }
    at[t.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_is_a_part_of_a_word_that_a_shell_takes_as_it_is() {
        for (pattern, line, want) in [
            ("uptime", "uptime", true),
            ("uptime", "uptime ", false),
            ("systemctl restart *", "systemctl restart nginx.service", true),
            ("systemctl restart *", "systemctl restart", false),
            ("systemctl restart *", "systemctl restart ", false),
            ("systemctl restart *", "systemctl restart a b", false),
            ("systemctl restart *", "systemctl restart --root=/x", false),
            ("systemctl restart *", "systemctl restart nginx;reboot", false),
            ("systemctl restart *", "systemctl restart $(reboot)", false),
            ("systemctl restart *", "systemctl restart nginx\nreboot", false),
            ("systemctl restart *", "systemctl restart `reboot`", false),
            ("systemctl restart *", "systemctl restart a&reboot", false),
            ("systemctl restart *", "systemctl restart a|sh", false),
            ("systemctl restart *", "systemctl restart a>b", false),
            ("cat /var/log/*.log", "cat /var/log/x/y.log", true),
            ("cat /var/log/*.log", "cat /var/log/.log", true),
            ("cat /var/log/*", "cat /var/log/*", false),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("ls | wc -l", "ls | wc -l", true),
            ("", "", true),
        ] {
            assert_eq!(matches(pattern, line), want, "{pattern:?} on {line:?}");
        }
        let (many, long) = ("*a".repeat(200), "a".repeat(2000));
        assert!(!matches(&many, &format!("{long};")));
    }

    #[test]
    fn what_stands_beside_a_command_takes_it_out_of_every_list() {
        let plain = Assignment::new("uptime");
        let patterns = ["uptime".to_owned(), "uptime *".to_owned()];
        assert!(Command::of(&plain).fits(&patterns));
        let env = [("BASH_ENV".to_owned(), "/tmp/x".to_owned())].into();
        for bad in [
            Assignment { env, ..plain.clone() },
            Assignment { stdin: Some("reboot".into()), ..plain.clone() },
            Assignment { cwd: Some("/tmp".into()), ..plain.clone() },
            Assignment { args: vec!["x".into()], ..plain.clone() },
            Assignment { executor: Executor::Python, ..plain.clone() },
            Assignment { executor: Executor::Http, ..plain.clone() },
        ] {
            assert!(!Command::of(&bad).fits(&patterns), "{bad:?}");
        }
        let exec = |args: &[&str]| Assignment {
            executor: Executor::Exec,
            args: args.iter().map(|a| (*a).to_owned()).collect(),
            ..plain.clone()
        };
        assert!(Command::of(&exec(&["x"])).fits(&patterns));
        assert!(!Command::of(&exec(&["x y"])).fits(&["uptime x y".to_owned()]));
    }

    #[test]
    fn a_list_of_users_wants_one_of_them_and_no_group() {
        let users = ["www".to_owned()];
        let run = |user: Option<&str>, group: Option<&str>| {
            let user = user.map(str::to_owned);
            let group = group.map(str::to_owned);
            Command::of(&Assignment { user, group, ..Assignment::new("x") }).runs_as(&users)
        };
        assert!(run(Some("www"), None));
        assert!(!run(None, None), "the worker's own, mostly root");
        assert!(!run(Some("root"), None) && !run(Some("www"), Some("root")));
    }
}
