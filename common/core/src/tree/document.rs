//! What a user sends to define a job, at the root or at a path of the tree.

use super::{Definition, TreePath, check_partial};
use crate::{code::Code, error::Invalid, id::Name, input::from_value, job::JobSpec};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A definition as it is sent and kept: at the root a whole job, at a path only the fields
/// that are given there.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(transparent)]
pub struct JobDocument {
    /// Whose definition.
    #[serde(skip)]
    pub name: Name,
    /// Where it stands; the root unless the field `tree` says otherwise.
    #[serde(skip)]
    pub tree: TreePath,
    /// The fields.
    pub fields: Map<String, Value>,
}

impl JobDocument {
    /// Reads what a user sent: unknown fields are refused, and everything is validated that
    /// can be without the definitions above.
    ///
    /// # Errors
    /// The first field that is wrong.
    pub fn from_user(mut value: Value) -> Result<Self, Invalid> {
        let tree = match value.get("tree") {
            None | Some(Value::Null) => TreePath::ROOT,
            Some(Value::String(text)) => TreePath::new(text)?,
            Some(other) => {
                let (problem, expected) = (format!("{other} is no text"), "a path as shop/cart");
                return Err(Invalid::new(Code::BAD_VALUE, "tree", problem, expected));
            }
        };
        if tree.is_root() {
            if let Some(fields) = value.as_object_mut() {
                fields.remove("tree");
            }
            return Ok(JobSpec::from_user(value)?.into());
        }
        check_partial(&value)?;
        let Named { name } = from_value(value.clone())?;
        let fields = match value {
            Value::Object(fields) => fields,
            _ => Map::new(),
        };
        Ok(Self { name, tree, fields })
    }

    /// The job, where it stands at the root.
    pub fn spec(&self) -> Option<JobSpec> {
        let root = self.tree.is_root();
        root.then(|| from_value(Value::Object(self.fields.clone())).ok()).flatten()
    }

    /// As one of the definitions of its job.
    pub fn definition(&self) -> Definition {
        Definition { fields: self.fields.clone(), revision: 0 }
    }
}

/// A definition of a job at a path, as the API shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TreeDefinition {
    /// The path.
    pub tree: TreePath,
    /// etcd's revision of it.
    pub revision: i64,
    /// The fields given there, in the form `job apply` takes.
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    pub definition: Map<String, Value>,
}

#[derive(Deserialize)]
struct Named {
    name: Name,
}

impl From<JobSpec> for JobDocument {
    fn from(spec: JobSpec) -> Self {
        // A job is an object and has no keys but text.
        let fields = match serde_json::to_value(&spec) {
            Ok(Value::Object(fields)) => fields,
            _ => Map::new(),
        };
        Self { name: spec.name, tree: TreePath::ROOT, fields }
    }
}
