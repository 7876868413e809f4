//! What commands print: tables for people, JSON and YAML for programs.

pub(crate) mod stream;
pub(crate) mod table;
pub(crate) mod text;
pub(crate) mod time;

use crate::error::{CliError, CliResult, exit};
use clap::ValueEnum;
use serde::Serialize;
use std::io::{self, IsTerminal, Write};

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Format {
    /// Columns and sentences; times in the local zone.
    #[default]
    Table,
    /// JSON; streams as one object a line. Times in UTC.
    Json,
    /// YAML; streams as one document an event. Times in UTC.
    Yaml,
}

/// Where and how to print.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Out {
    /// The format asked for.
    pub(crate) format: Format,
    /// Whether standard output is a terminal.
    pub(crate) terminal: bool,
    /// Whether standard output takes colours.
    pub(crate) color: bool,
    /// Whether standard error is a terminal.
    pub(crate) err_terminal: bool,
    /// Whether standard error takes colours.
    pub(crate) err_color: bool,
}

impl Out {
    /// Looks at the terminal and at `NO_COLOR` (<https://no-color.org>).
    pub(crate) fn detect(format: Format) -> Self {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty())
            || std::env::var_os("TERM").is_some_and(|v| v == "dumb");
        let (terminal, err_terminal) = (io::stdout().is_terminal(), io::stderr().is_terminal());
        Self {
            format,
            terminal,
            color: terminal && !no_color,
            err_terminal,
            err_color: err_terminal && !no_color,
        }
    }

    /// Whether people read it.
    pub(crate) fn is_table(&self) -> bool {
        self.format == Format::Table
    }

    /// Prints text as it is.
    pub(crate) fn text(&self, text: &str) -> CliResult<()> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        Ok(out.flush()?)
    }

    /// Prints a value as JSON or YAML, or what `table` makes of it.
    pub(crate) fn value<T: Serialize>(
        &self,
        value: &T,
        table: impl FnOnce(&Self) -> String,
    ) -> CliResult<()> {
        let text = match self.format {
            Format::Table => table(self),
            Format::Json => json(value, true)? + "\n",
            Format::Yaml => self.yaml(value)?,
        };
        self.text(&text)
    }

    /// `value` as a YAML document that may be shown: on a terminal nothing in it does anything.
    pub(crate) fn yaml<T: Serialize>(&self, value: &T) -> CliResult<String> {
        let yaml = yaml(value)?;
        Ok(if self.terminal { text::lines(&yaml) } else { yaml })
    }

    /// Prints one of a stream of values: a line of JSON or a YAML document.
    pub(crate) fn event<T: Serialize>(&self, value: &T) -> CliResult<()> {
        let text = match self.format {
            Format::Table | Format::Json => json(value, false)? + "\n",
            Format::Yaml => format!("---\n{}", self.yaml(value)?),
        };
        self.text(&text)
    }

    /// Prints a line for people on standard error. Failing to is no error.
    pub(crate) fn note(&self, line: &str) {
        let _ = writeln!(io::stderr(), "{}", text::one_line(line));
    }
}

fn json<T: Serialize>(value: &T, pretty: bool) -> CliResult<String> {
    if pretty { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) }
        .map(|json| text::in_json(&json))
        .map_err(|e| CliError::new(exit::INTERNAL, format!("cannot write JSON: {e}")))
}

/// `value` as a YAML document that ends with a newline.
pub(crate) fn yaml<T: Serialize>(value: &T) -> CliResult<String> {
    let mut text = serde_saphyr::to_string(value)
        .map_err(|e| CliError::new(exit::INTERNAL, format!("cannot write YAML: {e}")))?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn yaml_that_is_written_is_read_back_the_same() {
        let tricky = json!({
            "cmd": "echo 'a: b' # no comment\nsecond line\n\ttabbed \u{1b}[0m\n",
            "schedule": "*/5 * * * *",
            "list": ["yes", "no", "null", "~", "1e3", "0x1F", "012", "1:30", "", " lead", "- x", "%", "@daily"],
            "env": {"A": "true", "B=": "*x", "N": "1.0", "O": "off"},
            "at": "2026-03-29T01:00:00Z",
            "nothing": null,
            "number": 3,
            "empty": {},
            "none": [],
            "long": "word ".repeat(100),
        });
        let text = yaml(&tricky).unwrap();
        let back: Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(back, tricky, "{text}");
        assert!(!text.starts_with('%'), "{text}");
    }
}
