//! Plots as SVG: series of points over scales by powers of ten, drawn without any help.

use std::fmt::Write;

/// Width and height of a plot, and of the space around its area: left, right, top, bottom.
const SIZE: (f64, f64) = (640.0, 360.0);
const SPACE: (f64, f64, f64, f64) = (70.0, 150.0, 40.0, 45.0);
/// Told apart also by those who see no red or green, and on white as on black.
const COLOURS: [&str; 5] = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9"];

/// Points with a name.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// A plot.
#[derive(Debug, Clone)]
pub(crate) struct Plot {
    pub(crate) title: String,
    pub(crate) x: String,
    pub(crate) y: String,
    pub(crate) lines: Vec<Line>,
}

/// A scale by powers of ten.
struct Scale {
    from: i32,
    to: i32,
    begin: f64,
    end: f64,
}

impl Scale {
    /// Of whole powers around `values`, drawn from `begin` to `end`.
    fn new(values: impl Iterator<Item = f64>, begin: f64, end: f64) -> Self {
        let logs: Vec<f64> = values.filter(|v| *v > 0.0).map(f64::log10).collect();
        let low = logs.iter().copied().fold(f64::INFINITY, f64::min);
        let high = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let (from, to) = match low.is_finite() {
            true => (low.floor() as i32, high.ceil() as i32),
            false => (0, 1),
        };
        Self { from, to: to.max(from + 1), begin, end }
    }

    fn at(&self, value: f64) -> f64 {
        let share = (value.log10() - f64::from(self.from)) / f64::from(self.to - self.from);
        self.begin + share * (self.end - self.begin)
    }

    fn ticks(&self) -> impl Iterator<Item = (i32, f64)> {
        (self.from..=self.to).map(|power| (power, self.at(10f64.powi(power))))
    }
}

/// `100`, `10k`, `0.01`.
fn power(of: i32) -> String {
    match of {
        6.. => format!("{}M", 10f64.powi(of - 6)),
        3..=5 => format!("{}k", 10f64.powi(of - 3)),
        _ => format!("{}", 10f64.powi(of)),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

impl Plot {
    pub(crate) fn svg(&self) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let ((width, height), (left, right, top, bottom)) = (SIZE, SPACE);
        let (x_end, y_end) = (width - right, height - bottom);
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let xs = Scale::new(points().map(|p| p.0), left, x_end);
        let ys = Scale::new(points().map(|p| p.1), y_end, top);
        writeln!(
            out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n\
             <text x=\"{left}\" y=\"22\" font-size=\"15\">{}</text>",
            escaped(&self.title)
        )?;
        for (n, x) in xs.ticks() {
            writeln!(
                out,
                "<path d=\"M{x:.1} {top}V{y_end}\" stroke=\"#ddd\"/>\
                 <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                y_end + 16.0,
                power(n)
            )?;
        }
        for (n, y) in ys.ticks() {
            writeln!(
                out,
                "<path d=\"M{left} {y:.1}H{x_end}\" stroke=\"#ddd\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                left - 6.0,
                y + 4.0,
                power(n)
            )?;
        }
        let (x, y) = ((left + x_end) / 2.0, (top + y_end) / 2.0);
        writeln!(
            out,
            "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n\
             <text transform=\"translate(16 {y:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            height - 10.0,
            escaped(&self.x),
            escaped(&self.y)
        )?;
        for (n, line) in self.lines.iter().enumerate() {
            let colour = COLOURS[n % COLOURS.len()];
            let seen = line.points.iter().filter(|(x, y)| *x > 0.0 && *y > 0.0);
            let seen: Vec<(f64, f64)> = seen.map(|(x, y)| (xs.at(*x), ys.at(*y))).collect();
            let path: Vec<String> = seen.iter().map(|(x, y)| format!("{x:.1} {y:.1}")).collect();
            let path = path.join("L");
            writeln!(
                out,
                "<path d=\"M{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>"
            )?;
            for (x, y) in &seen {
                writeln!(out, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>")?;
            }
            let (x, y) = (x_end + 12.0, top + 14.0 + 18.0 * n as f64);
            writeln!(
                out,
                "<path d=\"M{x} {:.1}h14\" stroke=\"{colour}\" stroke-width=\"2\"/>\
                 <text x=\"{}\" y=\"{y:.1}\">{}</text>",
                y - 4.0,
                x + 18.0,
                escaped(&line.name)
            )?;
        }
        writeln!(out, "</svg>")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_stand_where_their_powers_of_ten_say() {
        let line = Line { name: "a < b".into(), points: vec![(10.0, 1.0), (1000.0, 100.0)] };
        let text = |of: &str| of.to_owned();
        let plot = Plot { title: text("t"), x: text("x"), y: text("y"), lines: vec![line] };
        let svg = plot.svg();
        let (left, top) = (SPACE.0, SPACE.2);
        let (right, bottom) = (SIZE.0 - SPACE.1, SIZE.1 - SPACE.3);
        assert!(svg.contains(&format!("M{left:.1} {bottom:.1}L{right:.1} {top:.1}")), "{svg}");
        assert!(svg.contains("a &lt; b") && svg.contains(">1k<"), "{svg}");
        assert_eq!(svg.matches("<circle").count(), 2);
    }

    #[test]
    fn what_is_nothing_is_left_out() {
        let line = Line { name: "n".into(), points: vec![(1.0, 0.0)] };
        let (title, x, y) = (String::new(), String::new(), String::new());
        let svg = Plot { title, x, y, lines: vec![line] }.svg();
        assert!(!svg.contains("<circle") && !svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }
}
