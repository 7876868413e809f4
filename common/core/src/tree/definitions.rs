//! All definitions of one job, and what they come to at a place.

use super::{TreePath, above};
use crate::{
    code::Code,
    error::Invalid,
    input::{from_value, unknown_field},
    job::JobSpec,
    signing::FIELD,
};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// What is defined at one path: only the fields that were given.
#[derive(Debug, Clone, PartialEq)]
pub struct Definition {
    /// The fields as they were given, `name` and `tree` among them.
    pub fields: Map<String, Value>,
    /// etcd's revision of the definition.
    pub revision: i64,
}

/// All definitions of one job, by path.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Definitions(pub BTreeMap<TreePath, Definition>);

/// What the definitions on the way from the root to a place come to.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    /// The job there.
    pub spec: JobSpec,
    /// Each field that was given, with the path of the definition that decided.
    pub origins: BTreeMap<String, TreePath>,
    /// The definitions that took part, root first, with their revisions.
    pub made_from: Vec<(TreePath, i64)>,
}

impl Resolved {
    /// The greatest revision among the definitions: it names this state of them.
    pub fn revision(&self) -> i64 {
        self.made_from.iter().map(|(_, revision)| *revision).max().unwrap_or_default()
    }
}

impl Definitions {
    /// The path of the deepest definition at or above `place`, a node's label or the empty
    /// text; `None` if there is none.
    pub fn deepest(&self, place: &str) -> Option<&TreePath> {
        above(place).find_map(|p| self.0.get_key_value(p)).map(|(path, _)| path)
    }

    /// What holds at a path.
    ///
    /// # Errors
    /// When the definitions there do not make a job: `cmd` may be missing, or fields of
    /// different definitions do not go together.
    pub fn resolve(&self, path: &TreePath) -> Result<Resolved, Invalid> {
        let mut chain: Vec<_> =
            above(path.as_str()).filter_map(|p| self.0.get_key_value(p)).collect();
        chain.reverse();
        let (mut fields, mut origins) = (Map::new(), BTreeMap::new());
        let mut made_from = Vec::with_capacity(chain.len());
        for (path, definition) in chain {
            made_from.push((path.clone(), definition.revision));
            for (field, value) in &definition.fields {
                if field == "tree" || field == FIELD {
                    continue;
                }
                origins.insert(field.clone(), path.clone());
                match value {
                    Value::Null => fields.remove(field),
                    value => fields.insert(field.clone(), value.clone()),
                };
            }
        }
        let spec: JobSpec = match from_value(Value::Object(fields.clone())) {
            Ok(spec) => spec,
            // A job that is switched off needs no command.
            Err(e) if e.field == "cmd" && fields.get("disabled") == Some(&Value::Bool(true)) => {
                fields.insert("cmd".into(), "true".into());
                from_value(Value::Object(fields))?
            }
            Err(e) => return Err(e),
        };
        Ok(Resolved { spec, origins, made_from })
    }

    /// Checks that every definition, together with those above it, makes a job.
    ///
    /// # Errors
    /// The first that does not, with its path in the problem unless it is `at`.
    pub fn check(&self, at: &TreePath) -> Result<(), Invalid> {
        for path in self.0.keys() {
            let valid = self.resolve(path).and_then(|r| match r.spec.disabled {
                true => Ok(()),
                false => r.spec.validate(),
            });
            valid.map_err(|mut e| {
                if path != at {
                    e.problem = format!("at {path} of the tree, which inherits: {}", e.problem);
                }
                e
            })?;
        }
        Ok(())
    }
}

/// Checks what a user sent as the definition at a path: its fields must exist and each fit
/// its type. Whether they make a job depends on those above.
///
/// # Errors
/// The first field that is wrong.
pub(super) fn check_partial(value: &Value) -> Result<(), Invalid> {
    let Value::Object(fields) = value else {
        return from_value::<JobSpec>(value.clone()).map(drop);
    };
    let known = |f: &str| f == "tree" || JobSpec::FIELDS.contains(&f);
    if let Some(field) = fields.keys().find(|f| !known(f)) {
        return Err(unknown_field(field, JobSpec::FIELDS));
    }
    if fields.get("name").is_some_and(Value::is_null) {
        return Err(Invalid::new(Code::BAD_NAME, "name", "missing", "the job's name"));
    }
    let mut whole = fields.clone();
    whole.retain(|field, value| field != "tree" && !value.is_null());
    whole.entry("cmd").or_insert_with(|| "true".into());
    from_value::<JobSpec>(Value::Object(whole)).map(drop)
}
