//! `docs/reference/permissions.md`: what the code says, as a page. A test holds the page
//! against it; `MEEPO_WRITE_REFERENCE=1` makes the test write it.

use super::operations::{INTERNAL, Need, TABLE};
use meepo_core::auth::{Permission, Scope};
use std::fmt::Write;

const HEAD: &str = "\
# Permissions

Made from the code, which a test holds this page against: do not edit it. How roles are
written, and how somebody gets them, says [operations](../operations.md#who-may-do-what).

## Permissions and the roles that have them

`admin` has all of them. A permission is limited by what stands under *limits*: `fleet` ones by
the address of who asks alone, `nodes` ones also by a target, `commands` ones also by a list of
commands and of users to run as.

| permission | limits | viewer | operator | admin | what it allows |
|---|---|---|---|---|---|
";

const OPERATIONS: &str = "
## Roles and operations

*known*: whoever is known may, and sees and does no more than what is its own without the
permission named in the [API](api.md#users-tokens-and-roles). *open*: nobody is asked. A `*`
stands for what a role allows; of limited roles, for those nodes and commands only.

| HTTP | gRPC | needs | viewer | operator | admin |
|---|---|---|---|---|---|
";

const INTERNALS: &str = "
## Between masters and workers

While masters have certificates, these ask for one by which the other side is known; a node
speaks for itself alone.

| call | needs |
|---|---|
";

fn mark(yes: bool) -> &'static str {
    if yes { "*" } else { "" }
}

/// The page.
pub fn page() -> String {
    let mut page = HEAD.to_owned();
    for p in Permission::ALL {
        let limits = match p.scope() {
            Scope::Fleet => "fleet",
            Scope::Nodes => "nodes",
            Scope::Commands => "commands",
        };
        // Writing to a string does not fail.
        let _ = writeln!(
            page,
            "| `{p}` | {limits} | {} | {} | * | {} |",
            mark(p.of_viewer()),
            mark(p.of_operator()),
            p.meaning()
        );
    }
    page.push_str(OPERATIONS);
    for (http, grpc, need) in TABLE {
        let (needs, viewer, operator) = match need {
            Need::Nothing => ("*open*".to_owned(), true, true),
            Need::Caller => ("*known*".to_owned(), true, true),
            Need::May(p) => (format!("`{p}`"), p.of_viewer(), p.of_operator()),
            Need::Node | Need::Master => ("a certificate".to_owned(), false, false),
        };
        let grpc = if grpc.is_empty() { String::new() } else { format!("`{grpc}`") };
        let (viewer, operator) = (mark(viewer), mark(operator));
        let _ = writeln!(page, "| `{http}` | {grpc} | {needs} | {viewer} | {operator} | * |");
    }
    page.push_str(INTERNALS);
    for (call, need) in INTERNAL {
        let needs = if *need == Need::Master { "a master" } else { "the node it is about" };
        let _ = writeln!(page, "| `{call}` | {needs} |");
    }
    page
}
