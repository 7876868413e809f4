//! Output without the values of secrets.
//!
//! A value is found also where it is cut: output comes in pieces of any size, so bytes that may
//! be the beginning of a value are held back until the next show what they are. Line breaks
//! within a value do not hide it, and each longer line of a value with several is one by itself.
//! What is made of a value (base64, its reverse) is another text, and not found.

/// What stands in the place of a value.
pub const MASK: &str = "***";
/// Shortest secret: in the place of a shorter text, stars would hide everything else and show
/// where it stands.
pub const MIN_SECRET: usize = 4;
/// Shortest line of a secret with several that is masked by itself.
const MIN_LINE: usize = 6;

/// What is to be masked. Its `Debug` shows none of it.
#[derive(Clone, Default)]
pub struct Masks {
    /// Without line breaks; the longer first.
    patterns: Vec<Vec<u8>>,
}

impl std::fmt::Debug for Masks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Masks({})", self.patterns.len())
    }
}

/// Whether a value stands somewhere.
enum Match {
    /// With so many bytes.
    Whole(usize),
    /// The text ends before that is certain.
    Part,
    No,
}

fn is_break(byte: u8) -> bool {
    matches!(byte, b'\n' | b'\r')
}

impl Masks {
    /// Masks for `values`.
    pub fn new<'a>(values: impl IntoIterator<Item = &'a str>) -> Self {
        let mut patterns = Vec::new();
        for value in values {
            let whole: Vec<u8> = value.bytes().filter(|b| !is_break(*b)).collect();
            if whole.len() >= MIN_SECRET {
                patterns.push(whole);
            }
            let lines = value.lines().map(str::trim).filter(|l| l.len() >= MIN_LINE);
            patterns.extend(lines.map(|l| l.as_bytes().to_vec()));
        }
        patterns.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        patterns.dedup();
        Self { patterns }
    }

    /// Whether there is nothing to mask.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// `text` without them.
    pub fn text(&self, text: &str) -> String {
        if self.is_empty() {
            return text.to_owned();
        }
        let mut masked = Vec::with_capacity(text.len());
        self.take(text.as_bytes(), true, &mut masked);
        String::from_utf8_lossy(&masked).into_owned()
    }

    /// Puts what `text` shows into `out`, and answers how many bytes of it were looked at: at
    /// the end of a text that goes on some may be left.
    fn take(&self, text: &[u8], ends: bool, out: &mut Vec<u8>) -> usize {
        let mut at = 0;
        'text: while let Some(byte) = text.get(at) {
            for pattern in self.patterns.iter().filter(|p| p[0] == *byte) {
                match find(pattern, &text[at..]) {
                    Match::Whole(len) => {
                        out.extend_from_slice(MASK.as_bytes());
                        let breaks = text[at..at + len].iter().filter(|b| is_break(**b));
                        out.extend(breaks);
                        at += len;
                        continue 'text;
                    }
                    // A longer one may yet come.
                    Match::Part if !ends => return at,
                    Match::Part | Match::No => {}
                }
            }
            out.push(*byte);
            at += 1;
        }
        at
    }
}

/// Whether `text` begins with `pattern`, with a line break at most before each byte of it.
fn find(pattern: &[u8], text: &[u8]) -> Match {
    let mut at = 0;
    for (n, want) in pattern.iter().enumerate() {
        if n > 0 && text.get(at) == Some(&b'\r') {
            at += 1;
        }
        if n > 0 && text.get(at) == Some(&b'\n') {
            at += 1;
        }
        match text.get(at) {
            None => return Match::Part,
            Some(byte) if byte == want => at += 1,
            Some(_) => return Match::No,
        }
    }
    Match::Whole(at)
}

/// A text that comes in pieces. What it holds back is at most three times the longest value.
/// Its `Debug` shows none of it.
#[derive(Default)]
pub struct Masked {
    held: Vec<u8>,
}

impl std::fmt::Debug for Masked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Masked({})", self.held.len())
    }
}

impl Masked {
    /// What can be shown after `data` has come.
    pub fn push(&mut self, masks: &Masks, data: &[u8]) -> Vec<u8> {
        self.held.extend_from_slice(data);
        let mut out = Vec::with_capacity(self.held.len());
        let seen = masks.take(&self.held, false, &mut out);
        self.held.drain(..seen);
        out
    }

    /// What can be shown when nothing more comes.
    pub fn end(&mut self, masks: &Masks) -> Vec<u8> {
        let mut out = Vec::new();
        masks.take(&std::mem::take(&mut self.held), true, &mut out);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pieces(masks: &Masks, pieces: &[&[u8]]) -> String {
        let mut masked = Masked::default();
        let mut out: Vec<u8> = pieces.iter().flat_map(|p| masked.push(masks, p)).collect();
        out.extend(masked.end(masks));
        String::from_utf8_lossy(&out).into_owned()
    }

    #[test]
    fn a_value_is_masked_also_across_pieces_and_lines() {
        let masks = Masks::new(["hunter22", "other-secret"]);
        for (given, want) in [
            (&[&b"pw=hunter22!"[..]][..], "pw=***!"),
            (&[b"pw=hun", b"ter", b"22!"], "pw=***!"),
            (&[b"h", b"u", b"n", b"t", b"e", b"r", b"2", b"2"], "***"),
            (&[b"hunter22hunter22"], "******"),
            (&[b"hunt\ner22"], "***\n"),
            (&[b"hunt\r", b"\ner22 other", b"-secret"], "***\r\n ***"),
            (&[b"hunter2", b"1"], "hunter21"),
            (&[b"hunter2"], "hunter2"),
            (&[b"hunthunter22"], "hunt***"),
        ] {
            assert_eq!(pieces(&masks, given), want, "{given:?}");
        }
    }

    #[test]
    fn a_value_with_several_lines_is_masked_line_by_line() {
        let key = "-----BEGIN KEY-----\nMIIEvQIBADAN\nab\n-----END KEY-----";
        let masks = Masks::new([key]);
        assert_eq!(pieces(&masks, &[key.as_bytes()]), "***\n\n\n");
        assert_eq!(pieces(&masks, &[b"  MIIEvQIBADAN |"]), "  *** |");
        assert_eq!(pieces(&masks, &[b"about"]), "about", "a short line alone says nothing");
    }

    #[test]
    fn the_longer_of_two_that_begin_alike_wins() {
        let masks = Masks::new(["abcd", "abcdef"]);
        assert_eq!(pieces(&masks, &[b"abcdef abcde"]), "*** ***e");
        assert_eq!(pieces(&masks, &[b"abc", b"de"]), "***e");
    }

    #[test]
    fn what_is_held_back_is_bounded() {
        let masks = Masks::new(["abcd"]);
        let mut masked = Masked::default();
        for _ in 0..1000 {
            masked.push(&masks, b"a\n\n\n");
            assert!(masked.held.len() <= 12, "{}", masked.held.len());
        }
        assert!(!format!("{masks:?}").contains("abcd"));
    }

    proptest! {
        #[test]
        fn it_does_not_matter_where_a_text_is_cut(
            text in "[ab\\n]{0,60}", cuts in proptest::collection::vec(0..60_usize, 0..8),
            secret in "[ab]{4,6}",
        ) {
            let masks = Masks::new([secret.as_str()]);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let parts: Vec<&[u8]> =
                cuts.windows(2).map(|w| &text.as_bytes()[w[0]..w[1]]).collect();
            let masked = pieces(&masks, &parts);
            prop_assert_eq!(&masked, &masks.text(&text));
            prop_assert!(!masked.contains(&secret));
        }
    }
}
