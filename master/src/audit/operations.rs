//! What requests are called in the audit.

/// Calls over gRPC that only read. Every other one of the public interface is recorded.
pub const READS: &[&str] = &[
    "Access/ListRoles",
    "Access/ListTokens",
    "Access/ListUsers",
    "Access/WhoAmI",
    "Audit/List",
    "Cron/Next",
    "Doctor/Check",
    "Events/Watch",
    "Jobs/Explain",
    "Jobs/Gaps",
    "Jobs/Get",
    "Jobs/List",
    "Jobs/Next",
    "Jobs/Stats",
    "Nodes/Get",
    "Nodes/List",
    "Notify/GetChannel",
    "Notify/GetRule",
    "Notify/List",
    "Notify/ListChannels",
    "Notify/ListRules",
    "Runs/Get",
    "Runs/List",
    "Runs/Output",
    "Runs/Search",
    "Tasks/Follow",
    "Tasks/Get",
    "Tasks/List",
];

/// The name of an operation, its request over HTTP, and its call over gRPC, if there is one.
pub const TABLE: &[(&str, &str, &str)] = &[
    ("job.apply", "POST /v1/jobs", "Jobs/Apply"),
    ("job.apply", "PUT /v1/jobs/{name}", "Jobs/Apply"),
    ("job.delete", "DELETE /v1/jobs/{name}", "Jobs/Delete"),
    ("job.pause", "POST /v1/jobs/{name}/pause", "Jobs/Pause"),
    ("job.resume", "POST /v1/jobs/{name}/resume", "Jobs/Resume"),
    ("job.trigger", "POST /v1/jobs/{name}/trigger", "Jobs/Trigger"),
    ("run.kill", "POST /v1/runs/{id}/kill", "Runs/Kill"),
    ("node.label", "PATCH /v1/nodes/{id}/labels", "Nodes/Label"),
    ("node.drain", "POST /v1/nodes/{id}/drain", "Nodes/Drain"),
    ("node.undrain", "DELETE /v1/nodes/{id}/drain", "Nodes/Undrain"),
    ("join-token.create", "POST /v1/join-tokens", ""),
    ("join-token.revoke", "DELETE /v1/join-tokens/{id}", ""),
    ("node.join", "POST /v1/join", ""),
    ("node.renew", "POST /v1/renew", ""),
    ("exec.run", "POST /v1/exec", "Exec/Run"),
    ("exec.run", "POST /v1/exec/stream", "Exec/Run"),
    ("task.put", "POST /v1/tasks", "Tasks/Put"),
    // What is done to a task it notes itself: `task.cancel`, …
    ("task.act", "POST /v1/tasks/{id}/{verb}", "Tasks/Act"),
    ("login", "POST /v1/login", "Access/Login"),
    ("logout", "POST /v1/logout", "Access/Logout"),
    ("user.put", "PUT /v1/users/{name}", "Access/PutUser"),
    ("user.delete", "DELETE /v1/users/{name}", "Access/DeleteUser"),
    ("user.password", "PUT /v1/users/{name}/password", "Access/SetPassword"),
    ("token.create", "POST /v1/tokens", "Access/CreateToken"),
    ("token.revoke", "DELETE /v1/tokens/{id}", "Access/RevokeToken"),
    ("role.put", "PUT /v1/roles/{name}", "Access/PutRole"),
    ("role.delete", "DELETE /v1/roles/{name}", "Access/DeleteRole"),
    ("notify.channel.put", "PUT /v1/notify/channels/{name}", "Notify/PutChannel"),
    ("notify.channel.delete", "DELETE /v1/notify/channels/{name}", "Notify/DeleteChannel"),
    ("notify.channel.test", "POST /v1/notify/channels/{name}/test", "Notify/TestChannel"),
    ("notify.rule.put", "PUT /v1/notify/rules/{name}", "Notify/PutRule"),
    ("notify.rule.delete", "DELETE /v1/notify/rules/{name}", "Notify/DeleteRule"),
];

/// What a request over HTTP is called. `route` is its path as the router has it.
pub(super) fn http(method: &str, route: &str) -> String {
    let request = format!("{method} {route}");
    let known = TABLE.iter().find(|(_, http, _)| *http == request);
    known.map_or(request, |(name, ..)| (*name).to_owned())
}

/// What a call of the public interface is called, if it is to be recorded. `call` is
/// `Jobs/Apply`.
pub(super) fn grpc(call: &str) -> Option<String> {
    if READS.contains(&call) {
        return None;
    }
    let known = TABLE.iter().find(|(.., grpc)| *grpc == call);
    Some(known.map_or_else(|| call.to_owned(), |(name, ..)| (*name).to_owned()))
}
