//! The OpenAPI document, made from the handlers and the types they use.

use super::{access, handlers as h, nodes, output, tasks as t};
use utoipa::{
    OpenApi,
    openapi::{ContentBuilder, PathItem, Ref, RefOr, ResponseBuilder, path::Operation},
};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "meepo",
        description = "Runs commands, scripts and schedules on fleets of Linux hosts. \
            Times are UTC (RFC 3339), durations are written like 30s or 5m."
    ),
    paths(
        h::healthz,
        super::ready::readyz,
        super::ready::readyz_part,
        h::metrics,
        h::openapi,
        access::login,
        access::logout,
        access::whoami,
        access::list_users,
        access::put_user,
        access::delete_user,
        access::set_password,
        access::list_tokens,
        access::create_token,
        access::revoke_token,
        access::list_roles,
        access::put_role,
        access::delete_role,
        super::jobs::list_jobs,
        h::post_job,
        h::put_job,
        super::jobs::get_job,
        super::jobs::delete_job,
        super::jobs::explain_job,
        h::pause_job,
        h::resume_job,
        h::trigger_job,
        h::next_slots,
        super::history::job_stats,
        super::history::job_gaps,
        super::history::list_runs,
        super::history::search_runs,
        h::get_run,
        output::output,
        h::kill_run,
        nodes::list_nodes,
        h::get_node,
        nodes::label_node,
        h::drain_node,
        h::undrain_node,
        super::join::create_join_token,
        super::join::list_join_tokens,
        super::join::revoke_join_token,
        super::join::join,
        super::join::renew,
        h::exec,
        h::exec_stream,
        h::cron_next,
        t::put_task,
        t::list_tasks,
        t::get_task,
        t::task_events,
        t::act_on_task,
        super::notify::list_channels,
        super::notify::get_channel,
        super::notify::put_channel,
        super::notify::delete_channel,
        super::notify::test_channel,
        super::notify::list_rules,
        super::notify::get_rule,
        super::notify::put_rule,
        super::notify::delete_rule,
        super::notify::list_notifications,
        super::events::events,
        super::audit::list_audit,
        super::doctor::doctor,
    )
)]
struct Document;

/// What every request below `/v1` may be answered, whatever it is for.
const ALWAYS: [(&str, &str); 4] = [
    ("400", "Something in the request is malformed or cannot be; `field` says what"),
    ("403", "Not from a web page of another origin, and by a name of this master only"),
    ("429", "Too many requests at once, or too much of this; try again"),
    ("503", "etcd, the leader or the log store cannot be reached; try again"),
];
/// … one that changes something.
const CHANGING: [(&str, &str); 1] =
    [("504", "etcd did not answer in time: it may have taken effect")];
/// … one with a body.
const WITH_BODY: [(&str, &str); 2] =
    [("413", "The body is larger than 1 MiB"), ("415", "The body is not said to be JSON")];

/// The document.
pub fn document() -> utoipa::openapi::OpenApi {
    let mut document = Document::openapi();
    let paths = document.paths.paths.iter_mut().filter(|(path, _)| path.starts_with("/v1/"));
    for item in paths.map(|(_, item)| item) {
        let PathItem { get, put, post, patch, delete, .. } = item;
        get.iter_mut().for_each(|operation| refusals(operation, false));
        let changing = [put, post, patch, delete].into_iter().flatten();
        changing.for_each(|operation| refusals(operation, true));
    }
    document
}

/// Adds the answers that are not particular to an operation, unless it says more of them.
fn refusals(operation: &mut Operation, changes: bool) {
    let changing = CHANGING.iter().filter(|_| changes);
    let with_body = WITH_BODY.iter().filter(|_| operation.request_body.is_some());
    for (status, description) in ALWAYS.iter().chain(changing).chain(with_body) {
        operation.responses.responses.entry((*status).to_owned()).or_insert_with(|| {
            let schema = Ref::from_schema_name("ErrorBody");
            let content = ContentBuilder::new().schema(Some(schema)).build();
            let response = ResponseBuilder::new().description(*description);
            RefOr::T(response.content("application/json", content).build())
        });
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_names_every_path_of_the_design() {
        let document = super::document();
        let paths: Vec<&String> = document.paths.paths.keys().collect();
        for path in [
            "/v1/jobs",
            "/v1/jobs/{name}",
            "/v1/runs",
            "/v1/runs/{id}/output",
            "/v1/nodes",
            "/v1/exec",
            "/v1/cron/next",
            "/v1/events",
            "/healthz",
            "/readyz",
            "/metrics",
            "/openapi.json",
        ] {
            assert!(paths.iter().any(|p| *p == path), "{path} in {paths:?}");
        }
        // Every route is documented: they stand in the source as `.route("/path", …)`.
        let routes = include_str!("mod.rs").split(".route(\"").skip(1);
        let routes: Vec<&str> = routes.filter_map(|r| r.split('"').next()).collect();
        assert!(routes.len() > 20, "{routes:?}");
        for route in routes {
            assert!(paths.iter().any(|p| *p == route), "{route} in {paths:?}");
        }
        // So is how any of them may be refused.
        let json = serde_json::to_value(&document).unwrap();
        for (path, item) in json["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let said = |status: &str| operation["responses"][status]["content"].is_object();
                let own = path.starts_with("/v1/");
                assert_eq!(said("400") && said("429") && said("503"), own, "{method} {path}");
                let body = operation["requestBody"].is_object();
                assert_eq!(said("413") && said("415"), own && body, "{method} {path}");
            }
        }
        let json = document.to_json().unwrap();
        assert!(json.contains("\"JobSpec\"") && json.contains("\"ErrorBody\""));
    }
}
