//! Output of nodes as it comes: whole lines, each with its node in front.

use super::{Out, text, time};
use jiff::Timestamp;
use meepo_core::run::Stream;
use std::{
    collections::{BTreeMap, HashMap},
    io::{self, Write},
};

/// Longest line that is held back, in bytes; a longer one is broken here.
const MAX_LINE: usize = 64 * 1024;

/// Colours of nodes, in turn: the readable ones of the basic sixteen.
const COLORS: [&str; 6] = ["36", "33", "32", "35", "34", "31"];

/// What stands in front of each line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lead {
    /// Nothing, and nothing is held back: the bytes of one source.
    Raw,
    /// Nothing, but lines are kept whole because several sources write.
    Lines,
    /// The source's name.
    Source,
    /// The time at which the line began, local.
    Time,
}

/// Writes what several sources print to standard output and standard error.
pub(crate) struct Printer<W, E> {
    lead: Lead,
    out: Dest<W>,
    err: Dest<E>,
    /// Sources as shown, by index.
    sources: Vec<String>,
    /// Their indices by the names given.
    indices: HashMap<String, usize>,
    width: usize,
    pending: BTreeMap<(usize, bool), Line>,
}

struct Dest<W> {
    to: W,
    terminal: bool,
    color: bool,
}

#[derive(Default)]
struct Line {
    lead: Vec<u8>,
    data: Vec<u8>,
}

impl Printer<io::Stdout, io::Stderr> {
    /// A printer for this process's own output.
    pub(crate) fn new(out: &Out, lead: Lead) -> Self {
        Self::with(
            lead,
            Dest { to: io::stdout(), terminal: out.terminal, color: out.color },
            Dest { to: io::stderr(), terminal: out.err_terminal, color: out.err_color },
        )
    }
}

impl<W: Write, E: Write> Printer<W, E> {
    fn with(lead: Lead, out: Dest<W>, err: Dest<E>) -> Self {
        Self {
            lead,
            out,
            err,
            sources: Vec::new(),
            indices: HashMap::new(),
            width: 0,
            pending: BTreeMap::new(),
        }
    }

    /// Names the sources beforehand, so that their lines are aligned.
    pub(crate) fn sources<'a>(&mut self, names: impl IntoIterator<Item = &'a str>) {
        for name in names {
            self.index(name);
        }
    }

    fn index(&mut self, name: &str) -> usize {
        if let Some(i) = self.indices.get(name) {
            return *i;
        }
        let shown = text::one_line(name);
        self.width = self.width.max(shown.chars().count());
        self.sources.push(shown);
        self.indices.insert(name.to_owned(), self.sources.len() - 1);
        self.sources.len() - 1
    }

    /// Prints what `source` wrote at `at`.
    pub(crate) fn chunk(
        &mut self,
        source: &str,
        stream: Stream,
        at: Timestamp,
        data: &[u8],
    ) -> io::Result<()> {
        let i = self.index(source);
        let key = (i, stream == Stream::Stderr);
        let mut line = self.pending.remove(&key).unwrap_or_default();
        if self.lead == Lead::Raw {
            line.data.extend_from_slice(data);
            let terminal = if key.1 { self.err.terminal } else { self.out.terminal };
            let held = if terminal { text::unfinished(&line.data) } else { 0 };
            let rest = line.data.split_off(line.data.len() - held);
            self.put(key.1, &line)?;
            self.pending.insert(key, Line { lead: Vec::new(), data: rest });
            return self.flush(key.1);
        }
        for piece in data.split_inclusive(|b| *b == b'\n') {
            if line.data.is_empty() {
                line.lead = self.lead(i, key.1, at);
            }
            line.data.extend_from_slice(piece);
            if line.data.len() > MAX_LINE && !line.data.ends_with(b"\n") {
                line.data.push(b'\n');
            }
            if line.data.ends_with(b"\n") {
                self.put(key.1, &line)?;
                line.data.clear();
            }
        }
        if !line.data.is_empty() {
            self.pending.insert(key, line);
        }
        self.flush(key.1)
    }

    /// Prints what `source` left unfinished: it writes no more.
    pub(crate) fn finish(&mut self, source: &str) -> io::Result<()> {
        let i = self.index(source);
        self.finish_index(i)
    }

    /// Prints what all sources left unfinished.
    pub(crate) fn finish_all(&mut self) -> io::Result<()> {
        (0..self.sources.len()).try_for_each(|i| self.finish_index(i))
    }

    fn finish_index(&mut self, i: usize) -> io::Result<()> {
        for err in [false, true] {
            if let Some(mut line) = self.pending.remove(&(i, err)) {
                if self.lead != Lead::Raw && !line.data.is_empty() {
                    line.data.push(b'\n');
                }
                self.put(err, &line)?;
                self.flush(err)?;
            }
        }
        Ok(())
    }

    fn lead(&self, source: usize, err: bool, at: Timestamp) -> Vec<u8> {
        match self.lead {
            Lead::Raw | Lead::Lines => Vec::new(),
            Lead::Time => format!("{}  ", time::local_millis(at)).into_bytes(),
            Lead::Source => {
                let name = &self.sources[source];
                let pad = " ".repeat(self.width - name.chars().count());
                let color = if err { self.err.color } else { self.out.color };
                if color {
                    let c = COLORS[source % COLORS.len()];
                    format!("\x1b[{c}m{name}\x1b[0m{pad} | ").into_bytes()
                } else {
                    format!("{name}{pad} | ").into_bytes()
                }
            }
        }
    }

    fn put(&mut self, err: bool, line: &Line) -> io::Result<()> {
        if err { self.err.put(line) } else { self.out.put(line) }
    }

    fn flush(&mut self, err: bool) -> io::Result<()> {
        if err { self.err.to.flush() } else { self.out.to.flush() }
    }
}

impl<W: Write> Dest<W> {
    fn put(&mut self, line: &Line) -> io::Result<()> {
        self.to.write_all(&line.lead)?;
        if self.terminal {
            self.to.write_all(&text::visible(&line.data))
        } else {
            self.to.write_all(&line.data)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Memory = Printer<Vec<u8>, Vec<u8>>;

    fn printer(lead: Lead, terminal: bool) -> Memory {
        let dest = || Dest { to: Vec::new(), terminal, color: false };
        Printer::with(lead, dest(), dest())
    }

    fn put(p: &mut Memory, source: &str, data: &[u8]) {
        p.chunk(source, Stream::Stdout, Timestamp::UNIX_EPOCH, data).unwrap();
    }

    fn text(p: &Memory) -> String {
        String::from_utf8(p.out.to.clone()).unwrap()
    }

    #[test]
    fn lines_are_whole_prefixed_and_aligned() {
        let mut p = printer(Lead::Source, false);
        p.sources(["a", "node-b"]);
        put(&mut p, "a", b"one\ntw");
        put(&mut p, "node-b", b"x\n");
        put(&mut p, "a", b"o\nlast");
        assert_eq!(text(&p), "a      | one\nnode-b | x\na      | two\n");
        p.finish("a").unwrap();
        p.finish_all().unwrap();
        assert!(text(&p).ends_with("a      | last\n"));
    }

    #[test]
    fn streams_stay_apart() {
        let mut p = printer(Lead::Source, false);
        p.chunk("a", Stream::Stderr, Timestamp::UNIX_EPOCH, b"oops").unwrap();
        put(&mut p, "a", b"fine\n");
        p.finish_all().unwrap();
        assert_eq!(text(&p), "a | fine\n");
        assert_eq!(p.err.to, b"a | oops\n");
    }

    #[test]
    fn raw_bytes_pass_a_pipe_untouched() {
        let mut p = printer(Lead::Raw, false);
        put(&mut p, "a", b"\x1b[1m\xff\xc3");
        put(&mut p, "a", b"\xa4 no newline");
        p.finish_all().unwrap();
        assert_eq!(p.out.to, b"\x1b[1m\xff\xc3\xa4 no newline");
    }

    #[test]
    fn on_a_terminal_escapes_are_shown_and_split_characters_joined() {
        let mut p = printer(Lead::Raw, true);
        put(&mut p, "a", b"\x1b[2J\xc3");
        put(&mut p, "a", b"\xa4\xff");
        p.finish_all().unwrap();
        assert_eq!(text(&p), "\\x1b[2Jä\\xff");
        let mut p = printer(Lead::Source, true);
        put(&mut p, "a\x1b[0m", b"x\x1b]0;title\x07\n");
        assert_eq!(text(&p), "a\\x1b[0m | x\\x1b]0;title\\x07\n");
    }

    #[test]
    fn an_endless_line_is_broken_not_kept() {
        let mut p = printer(Lead::Source, false);
        for _ in 0..40 {
            put(&mut p, "a", &[b'x'; 4096]);
        }
        assert!(p.out.to.len() > 2 * MAX_LINE);
        assert!(p.pending.values().all(|l| l.data.len() <= MAX_LINE));
    }
}
