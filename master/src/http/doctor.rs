//! What is wrong, in words.

use super::App;
use axum::{Json, extract::State};
use meepo_core::doctor::Diagnosis;

/// What is wrong with the fleet, as this master sees it, the gravest first, with what to do
/// about it. Answers 200 whatever it finds: `status` says how grave it is.
#[utoipa::path(get, path = "/v1/doctor", tag = "meepo", responses((status = 200, body = Diagnosis)))]
pub(super) async fn doctor(State(app): State<App>) -> Json<Diagnosis> {
    Json(app.ops.doctor().await)
}
