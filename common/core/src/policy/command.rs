//! Commands as lists of words.

use super::has_parent;

/// What allows commands: words, the last of which may be open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern<'a> {
    words: Vec<&'a str>,
    /// Any further arguments may follow.
    rest: bool,
}

impl<'a> Pattern<'a> {
    /// Reads the words of a pattern, which blanks separate.
    pub(super) fn new(text: &'a str) -> Result<Self, &'static str> {
        let mut words: Vec<&str> = text.split_whitespace().collect();
        let rest = words.len() > 1 && words.last() == Some(&"*");
        if rest {
            words.pop();
        }
        match words.first() {
            None => Err("names no command; expected words such as `systemctl restart nginx`"),
            Some(&"*") => {
                Err("lets everything through; expected a command, or the list to be left out")
            }
            Some(_) => Ok(Self { words, rest }),
        }
    }

    pub(super) fn fits(&self, words: &[&str]) -> bool {
        let enough = match self.rest {
            true => words.len() >= self.words.len(),
            false => words.len() == self.words.len(),
        };
        enough && self.words.iter().zip(words).all(|(pattern, word)| fits(pattern, word))
    }
}

fn fits(pattern: &str, word: &str) -> bool {
    match pattern.strip_suffix('*') {
        // `/opt/tools/*` must not lead out of that directory.
        Some(prefix) => word.starts_with(prefix) && !has_parent(word),
        None => word == pattern,
    }
}

/// The words of a shell's script that is one plain command: nothing in it means anything to
/// a shell. `None` if anything may.
pub(super) fn plain_words(script: &str) -> Option<Vec<&str>> {
    // What is not listed may be special to some shell.
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:=@%+,".contains(c);
    let words: Vec<&str> = script.trim_matches(' ').split(' ').filter(|w| !w.is_empty()).collect();
    let first = words.first()?;
    // `A=b` before a command is a variable, `%1` a job.
    let command = !first.contains('=') && !first.starts_with(['%', '-', '+']);
    (command && words.iter().all(|w| w.chars().all(plain))).then_some(words)
}
