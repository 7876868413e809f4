//! Paths in the product tree, and patterns for them.

use super::glob;

/// The label that says where in the tree a node stands.
pub const LABEL: &str = "tree";

/// Whether `path` as a whole matches `pattern`, level by level: `**` stands for any number
/// of levels, also none; within a level `*` is any run of characters and `?` is one. Slashes
/// at either end do not count: `shop/cart/**` matches `shop/cart` and all below it.
pub fn matches(pattern: &str, path: &str) -> bool {
    let (mut p, mut t) = (levels(pattern), levels(path));
    // Where to go on if what follows the last `**` does not fit: the pattern after it, and
    // the path from one level later on.
    let mut retry = None;
    loop {
        match (p.next(), t.clone().next()) {
            (Some("**"), _) => {
                retry = Some((p.clone(), t.clone()));
                continue;
            }
            (None, None) => return true,
            (Some(pattern), Some(level)) if glob::matches(pattern, level) => {
                t.next();
                continue;
            }
            _ => {}
        }
        let Some((after, from)) = &mut retry else { return false };
        if from.next().is_none() {
            return false;
        }
        (p, t) = (after.clone(), from.clone());
    }
}

/// The levels of a path, from the top.
pub fn levels(path: &str) -> std::str::Split<'_, char> {
    path.trim_matches('/').split('/')
}
