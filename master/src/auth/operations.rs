//! Every operation of both APIs with what it needs. What does not stand here is not served to
//! anybody while `auth` is on; a test holds the table against the OpenAPI document, the
//! descriptors of gRPC and the reference.

use meepo_core::auth::Permission::{self, *};
use std::{collections::HashMap, sync::LazyLock};

/// What an operation needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Nothing: it tells nothing, or brings its own proof.
    Nothing,
    /// That who asks is known. What of the answer it may see, the operation looks after.
    Caller,
    /// This permission, for something at least. For what exactly, the operation looks after.
    May(Permission),
    /// The certificate of a node, for what concerns that node.
    Node,
    /// The certificate of a master.
    Master,
}

/// The request over HTTP, the call over gRPC (either may be absent), and what they need.
pub const TABLE: &[(&str, &str, Need)] = &[
    ("GET /healthz", "", Need::Nothing),
    ("GET /readyz", "", Need::Nothing),
    ("GET /readyz/{part}", "", Need::Nothing),
    ("GET /openapi.json", "", Need::Nothing),
    ("GET /metrics", "", Need::May(MetricsRead)),
    ("POST /v1/login", "Access/Login", Need::Nothing),
    ("POST /v1/logout", "Access/Logout", Need::Caller),
    ("GET /v1/whoami", "Access/WhoAmI", Need::Caller),
    ("GET /v1/users", "Access/ListUsers", Need::May(UserRead)),
    ("PUT /v1/users/{name}", "Access/PutUser", Need::May(UserWrite)),
    ("DELETE /v1/users/{name}", "Access/DeleteUser", Need::May(UserWrite)),
    // One's own; that of others with `user.write`.
    ("PUT /v1/users/{name}/password", "Access/SetPassword", Need::Caller),
    // One's own; those of others with `token.read` and `token.write`.
    ("GET /v1/tokens", "Access/ListTokens", Need::Caller),
    ("POST /v1/tokens", "Access/CreateToken", Need::Caller),
    ("DELETE /v1/tokens/{id}", "Access/RevokeToken", Need::Caller),
    ("GET /v1/roles", "Access/ListRoles", Need::May(RoleRead)),
    ("PUT /v1/roles/{name}", "Access/PutRole", Need::May(RoleWrite)),
    ("DELETE /v1/roles/{name}", "Access/DeleteRole", Need::May(RoleWrite)),
    ("GET /v1/jobs", "Jobs/List", Need::May(JobRead)),
    ("POST /v1/jobs", "Jobs/Apply", Need::May(JobWrite)),
    ("PUT /v1/jobs/{name}", "Jobs/Apply", Need::May(JobWrite)),
    ("GET /v1/jobs/{name}", "Jobs/Get", Need::May(JobRead)),
    ("DELETE /v1/jobs/{name}", "Jobs/Delete", Need::May(JobWrite)),
    ("GET /v1/jobs/{name}/explain", "Jobs/Explain", Need::May(JobRead)),
    ("POST /v1/jobs/{name}/pause", "Jobs/Pause", Need::May(JobPause)),
    ("POST /v1/jobs/{name}/resume", "Jobs/Resume", Need::May(JobPause)),
    ("POST /v1/jobs/{name}/trigger", "Jobs/Trigger", Need::May(JobTrigger)),
    ("GET /v1/jobs/{name}/next", "Jobs/Next", Need::May(JobRead)),
    ("GET /v1/jobs/{name}/stats", "Jobs/Stats", Need::May(JobRead)),
    ("GET /v1/jobs/{name}/gaps", "Jobs/Gaps", Need::May(JobRead)),
    ("GET /v1/runs", "Runs/List", Need::May(RunRead)),
    ("GET /v1/runs/search", "Runs/Search", Need::May(RunRead)),
    ("GET /v1/runs/{id}", "Runs/Get", Need::May(RunRead)),
    ("GET /v1/runs/{id}/output", "Runs/Output", Need::May(RunRead)),
    ("POST /v1/runs/{id}/kill", "Runs/Kill", Need::May(RunKill)),
    ("GET /v1/nodes", "Nodes/List", Need::May(NodeRead)),
    ("GET /v1/nodes/{id}", "Nodes/Get", Need::May(NodeRead)),
    ("PATCH /v1/nodes/{id}/labels", "Nodes/Label", Need::May(NodeLabel)),
    ("POST /v1/nodes/{id}/drain", "Nodes/Drain", Need::May(NodeDrain)),
    ("DELETE /v1/nodes/{id}/drain", "Nodes/Undrain", Need::May(NodeDrain)),
    ("GET /v1/join-tokens", "", Need::May(NodeJoin)),
    ("POST /v1/join-tokens", "", Need::May(NodeJoin)),
    ("DELETE /v1/join-tokens/{id}", "", Need::May(NodeJoin)),
    // The token is in the body, and worth something for one node, once.
    ("POST /v1/join", "", Need::Nothing),
    ("POST /v1/renew", "", Need::Node),
    ("POST /v1/exec", "Exec/Run", Need::May(Exec)),
    ("POST /v1/exec/stream", "Exec/Run", Need::May(Exec)),
    ("GET /v1/tasks", "Tasks/List", Need::May(TaskRead)),
    ("POST /v1/tasks", "Tasks/Put", Need::May(TaskWrite)),
    ("GET /v1/tasks/{id}", "Tasks/Get", Need::May(TaskRead)),
    ("GET /v1/tasks/{id}/events", "Tasks/Follow", Need::May(TaskRead)),
    ("POST /v1/tasks/{id}/{verb}", "Tasks/Act", Need::May(TaskWrite)),
    ("GET /v1/doctor", "Doctor/Check", Need::May(DoctorRead)),
    ("GET /v1/audit", "Audit/List", Need::May(AuditRead)),
    ("GET /v1/notify/channels", "Notify/ListChannels", Need::May(NotifyRead)),
    ("GET /v1/notify/channels/{name}", "Notify/GetChannel", Need::May(NotifyRead)),
    ("PUT /v1/notify/channels/{name}", "Notify/PutChannel", Need::May(NotifyWrite)),
    ("DELETE /v1/notify/channels/{name}", "Notify/DeleteChannel", Need::May(NotifyWrite)),
    ("POST /v1/notify/channels/{name}/test", "Notify/TestChannel", Need::May(NotifyWrite)),
    ("GET /v1/notify/rules", "Notify/ListRules", Need::May(NotifyRead)),
    ("GET /v1/notify/rules/{name}", "Notify/GetRule", Need::May(NotifyRead)),
    ("PUT /v1/notify/rules/{name}", "Notify/PutRule", Need::May(NotifyWrite)),
    ("DELETE /v1/notify/rules/{name}", "Notify/DeleteRule", Need::May(NotifyWrite)),
    ("GET /v1/notify/notifications", "Notify/List", Need::May(NotifyRead)),
    // It reckons and tells nothing of the fleet.
    ("GET /v1/cron/next", "Cron/Next", Need::Caller),
    ("GET /v1/events", "Events/Watch", Need::May(EventRead)),
];

/// Calls between masters and workers, with the whole of their names.
pub const INTERNAL: &[(&str, Need)] = &[
    ("meepo.internal.v1.Workers/Session", Need::Node),
    ("meepo.internal.v1.Workers/Deliver", Need::Node),
    ("meepo.internal.v1.Masters/Live", Need::Master),
];

/// Requests over HTTP by method and route.
static HTTP: LazyLock<HashMap<&str, Need>> =
    LazyLock::new(|| TABLE.iter().map(|(http, _, need)| (*http, *need)).collect());
/// Calls over gRPC by path.
static GRPC: LazyLock<HashMap<String, Need>> = LazyLock::new(|| {
    let public = TABLE.iter().filter(|(_, grpc, _)| !grpc.is_empty());
    let public = public.map(|(_, grpc, need)| (format!("/meepo.v1.{grpc}"), *need));
    public.chain(INTERNAL.iter().map(|(call, need)| (format!("/{call}"), *need))).collect()
});

/// What a request over HTTP needs; `None`: nobody has said. `route` is its path as the router
/// has it.
pub(super) fn http(method: &str, route: &str) -> Option<Need> {
    // It is served by who serves GET.
    let method = if method == "HEAD" { "GET" } else { method };
    HTTP.get(format!("{method} {route}").as_str()).copied()
}

/// What a call needs; `None`: nobody has said.
pub(super) fn grpc(path: &str) -> Option<Need> {
    // Health and reflection tell what the reference tells.
    if path.starts_with("/grpc.health.v1.") || path.starts_with("/grpc.reflection.v1") {
        return Some(Need::Nothing);
    }
    GRPC.get(path).copied()
}
