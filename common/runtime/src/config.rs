//! Configuration in three layers: file, then environment, then flags; the later
//! wins. The last two are clap's; this is the file.

use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};

/// Why a configuration file cannot be used. Retrying never helps.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read configuration file {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not TOML, or a field does not fit.
    #[error("configuration file {path}: {field}{problem}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The field and a colon, or nothing.
        field: String,
        /// What is wrong, with line and column where they are known.
        problem: String,
    },
}

/// Reads `path`. Without `required` a missing file is an empty one.
pub fn load<T: DeserializeOwned>(path: &Path, required: bool) -> Result<T, ConfigError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && !required => String::new(),
        Err(source) => return Err(ConfigError::Read { path: path.into(), source }),
    };
    parse(&text).map_err(|(field, problem)| ConfigError::Invalid {
        path: path.into(),
        field,
        problem,
    })
}

fn parse<T: DeserializeOwned>(text: &str) -> Result<T, (String, String)> {
    let de = toml::Deserializer::parse(text)
        .map_err(|e| (String::new(), e.to_string().trim().to_owned()))?;
    serde_path_to_error::deserialize(de).map_err(|e| {
        let problem = e.inner().to_string().trim().to_owned();
        let field = match e.path().to_string().as_str() {
            "." => String::new(),
            // The line that is shown names it, unless a table above does in part.
            path if problem.starts_with("TOML parse error") && !path.contains('.') => String::new(),
            path => format!("{path}: "),
        };
        (field, problem)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        #[serde(default)]
        port: Option<u16>,
    }

    #[test]
    fn a_missing_file_is_empty_unless_required() {
        let nowhere = Path::new("/nonexistent/meepo.toml");
        assert_eq!(load::<Sample>(nowhere, false).unwrap().port, None);
        assert!(load::<Sample>(nowhere, true).unwrap_err().to_string().contains("nonexistent"));
    }

    #[test]
    fn errors_name_the_field() {
        let (field, problem) = parse::<Sample>("port = \"x\"").unwrap_err();
        assert!(field.contains("port") || problem.contains("port"), "{field} {problem}");
        let (_, problem) = parse::<Sample>("prot = 1").unwrap_err();
        assert!(problem.contains("prot"), "{problem}");
        assert!(parse::<Sample>("port = ").is_err());
    }
}
