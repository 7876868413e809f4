//! What is wrong, in words.

use super::{
    convert,
    public::{Answer, Public},
};
use meepo_proto::v1::{self as pb, doctor_server::Doctor};
use tonic::{Request, Response};

#[tonic::async_trait]
impl Doctor for Public {
    async fn check(&self, _: Request<pb::CheckRequest>) -> Answer<pb::Diagnosis> {
        let d = self.ops.doctor().await;
        let findings = d.findings.into_iter().map(|f| pb::Finding {
            severity: f.severity.as_str().to_owned(),
            subject: f.subject,
            message: f.message,
            remedy: f.remedy.unwrap_or_default(),
        });
        Ok(Response::new(pb::Diagnosis {
            status: d.status.as_str().to_owned(),
            at: Some(convert::time(d.at)),
            by: d.by,
            findings: findings.collect(),
            more: d.more,
        }))
    }
}
