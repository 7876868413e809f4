//! systemd's configuration format, as far as the units of this project use it.

/// Sections with their settings, in the order of the file.
#[derive(Debug)]
pub(super) struct Ini(Vec<(String, Vec<(String, String)>)>);

impl Ini {
    /// Reads a unit; panics on a line that is neither section, setting nor comment.
    pub(super) fn parse(text: &str) -> Self {
        let mut sections: Vec<(String, Vec<(String, String)>)> = Vec::new();
        for line in text.lines().map(str::trim) {
            if line.is_empty() || line.starts_with(['#', ';']) {
                continue;
            }
            if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
                sections.push((name.to_owned(), Vec::new()));
                continue;
            }
            let (key, value) = line.split_once('=').unwrap_or_else(|| panic!("no setting: {line}"));
            let section = sections.last_mut().unwrap_or_else(|| panic!("no section yet: {line}"));
            section.1.push((key.to_owned(), value.to_owned()));
        }
        Self(sections)
    }

    /// Names of the sections.
    pub(super) fn sections(&self) -> Vec<&str> {
        self.0.iter().map(|(name, _)| name.as_str()).collect()
    }

    /// Every value of a setting; `None` when it is not set.
    pub(super) fn get(&self, section: &str, key: &str) -> Option<Vec<String>> {
        let all = self.0.iter().filter(|(name, _)| name == section).flat_map(|(_, all)| all);
        let values: Vec<String> = all.filter(|(k, _)| k == key).map(|(_, v)| v.clone()).collect();
        (!values.is_empty()).then_some(values)
    }

    /// The value of a setting that is given exactly once.
    pub(super) fn one(&self, section: &str, key: &str) -> String {
        match self.get(section, key).as_deref() {
            Some([value]) => value.clone(),
            other => panic!("[{section}] {key}: one value expected, found {other:?}"),
        }
    }
}
