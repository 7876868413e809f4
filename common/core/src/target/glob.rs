//! Patterns with `*` and `?`.

/// Whether `text` contains a wildcard.
pub(super) fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?'])
}

/// Whether `text` as a whole matches `pattern`. At worst the product of both lengths.
pub fn matches(pattern: &str, text: &str) -> bool {
    let (mut p, mut t) = (pattern.chars(), text.chars());
    // Where to go on if what follows the last `*` does not fit: the pattern after it,
    // and the text from one character later on.
    let mut retry: Option<(std::str::Chars<'_>, std::str::Chars<'_>)> = None;
    loop {
        match (p.next(), t.clone().next()) {
            (Some('*'), _) => {
                retry = Some((p.clone(), t.clone()));
                continue;
            }
            (None, None) => return true,
            (Some('?'), Some(_)) => {
                t.next();
                continue;
            }
            (Some(a), Some(b)) if a == b => {
                t.next();
                continue;
            }
            _ => {}
        }
        let Some((after_star, from)) = &mut retry else { return false };
        if from.next().is_none() {
            return false;
        }
        (p, t) = (after_star.clone(), from.clone());
    }
}
