//! Training curves as SVG: the loss of each stage, and beside it what was measured, by step.

use std::fmt::Write;

use crate::mam::train::{Figures, TrainReport};

/// A panel's size and the room for its numbers, in pixels.
const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 34.0;

/// Reports of a run, to be drawn.
#[derive(Clone, Debug, Default)]
pub struct Curve {
    reports: Vec<TrainReport>,
}

/// One panel: its title and its points (step, value).
struct Panel {
    title: String,
    points: Vec<(f64, f64)>,
    /// A value to be reached, as a dashed line.
    goal: Option<f64>,
}

impl Curve {
    /// Adds a report.
    pub fn add(&mut self, report: &TrainReport) {
        self.reports.push(*report);
    }

    /// The drawing: a row of panels for each stage that was reported.
    pub fn to_svg(&self) -> String {
        let mut stages: Vec<usize> = self.reports.iter().map(|r| r.stage).collect();
        stages.dedup();
        let rows: Vec<Vec<Panel>> = stages.iter().map(|&stage| self.panels(stage)).collect();
        let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
        let (width, height) = (WIDTH * columns as f64, HEIGHT * rows.len() as f64);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
        );
        for (r, row) in rows.iter().enumerate() {
            for (c, panel) in row.iter().enumerate() {
                panel.draw(WIDTH * c as f64, HEIGHT * r as f64, &mut svg);
            }
        }
        svg.push_str("</svg>\n");
        svg
    }

    fn panels(&self, stage: usize) -> Vec<Panel> {
        let of_stage: Vec<&TrainReport> =
            self.reports.iter().filter(|r| r.stage == stage).collect();
        let panel = |title: &str, goal, value: &dyn Fn(&TrainReport) -> f64| Panel {
            title: title.into(),
            points: of_stage.iter().map(|r| (r.step as f64, value(r))).collect(),
            goal,
        };
        let Some(first) = of_stage.first() else { return Vec::new() };
        let mut panels = vec![panel("loss", None, &|r| r.loss)];
        match first.figures {
            Figures::Bits(_) => {
                panels.push(panel("held-out bits per site of φ", None, &|r| r.figures.value()))
            }
            Figures::ThetaError(_) => {
                panels.push(panel("held-out rms of log p_θ − log p_φ, nats", None, &|r| {
                    r.figures.value()
                }))
            }
            Figures::Energy(f) => {
                let of = |value: fn(&crate::mam::train::EnergyFigures) -> f64| {
                    move |r: &TrainReport| match &r.figures {
                        Figures::Energy(f) => value(f),
                        _ => f64::NAN,
                    }
                };
                let log_z = of(|f| f.log_z);
                panels.push(panel("learnt log Z, nats", f.exact, &log_z));
                let gap = of(|f| f.gap.unwrap_or(f.free_energy));
                let title =
                    if f.gap.is_some() { "KL gap, nats" } else { "E[log q − log f], nats" };
                panels.push(panel(title, f.gap.map(|_| 0.0), &gap));
            }
        }
        panels
    }
}

impl Panel {
    fn draw(&self, x: f64, y: f64, svg: &mut String) {
        let finite = || self.points.iter().filter(|(_, v)| v.is_finite());
        let values = || finite().map(|(_, v)| *v).chain(self.goal);
        let (mut low, mut high) = values()
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v: f64| (l.min(v), h.max(v)));
        if low > high {
            return;
        }
        let margin = if high > low { 0.05 * (high - low) } else { 0.5 * high.abs().max(1.0) };
        (low, high) = (low - margin, high + margin);
        let last = self.points.last().map_or(1.0, |p| p.0).max(1.0);
        let at_x = |step: f64| x + LEFT + (WIDTH - LEFT - RIGHT) * step / last;
        let at_y = |v: f64| y + TOP + (HEIGHT - TOP - BOTTOM) * (high - v) / (high - low);
        let (left, right) = (at_x(0.0), at_x(last));
        let mut put = |line: String| writeln!(svg, "{line}").expect("a text takes everything");
        put(format!(
            "<text x=\"{left}\" y=\"{}\" font-size=\"13\">{}</text>",
            y + 20.0,
            self.title
        ));
        for i in 0..=4 {
            let v = low + (high - low) * f64::from(i) / 4.0;
            let h = at_y(v);
            put(format!("<path d=\"M{left} {h:.1}H{right}\" stroke=\"#ddd\"/>"));
            let (tx, ty) = (left - 6.0, h + 4.0);
            put(format!(
                "<text x=\"{tx}\" y=\"{ty:.1}\" text-anchor=\"end\">{}</text>",
                number(v, high - low)
            ));
            let step = last * f64::from(i) / 4.0;
            let (tx, ty) = (at_x(step), y + HEIGHT - BOTTOM + 16.0);
            put(format!(
                "<text x=\"{tx:.1}\" y=\"{ty}\" text-anchor=\"middle\">{}</text>",
                step.round()
            ));
        }
        if let Some(goal) = self.goal {
            let h = at_y(goal);
            put(format!(
                "<path d=\"M{left} {h:.1}H{right}\" stroke=\"#888\" stroke-dasharray=\"4 3\"/>"
            ));
        }
        let line: Vec<String> =
            finite().map(|&(s, v)| format!("{:.1},{:.1}", at_x(s), at_y(v))).collect();
        put(format!(
            "<polyline fill=\"none\" stroke=\"#1f5fa8\" stroke-width=\"1.5\" points=\"{}\"/>",
            line.join(" ")
        ));
    }
}

/// A value with as many places as a panel of this span needs.
fn number(value: f64, span: f64) -> String {
    let places = (2.0 - span.max(1e-6).log10()).ceil().clamp(0.0, 6.0) as usize;
    format!("{value:.places$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stage_has_its_panels_and_odd_values_do_no_harm() {
        let mut curve = Curve::default();
        let report = |stage, step, loss, figures| TrainReport {
            stage,
            step,
            steps: 20,
            loss,
            figures,
            seconds: 1.0,
        };
        curve.add(&report(1, 10, 2.0, Figures::Bits(0.5)));
        curve.add(&report(1, 20, 1.0, Figures::Bits(0.25)));
        curve.add(&report(2, 10, f64::NAN, Figures::ThetaError(1.5)));
        curve.add(&report(2, 20, 3.0, Figures::ThetaError(1.5)));
        let svg = curve.to_svg();
        assert_eq!(svg.matches("<polyline").count(), 4);
        assert!(svg.contains("bits per site") && svg.contains("log p_θ"), "{svg}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        // The first stage's loss falls from near the top to near the bottom, at half and at full
        // width.
        assert!(svg.contains("points=\"234.0,42.7 404.0,217.3\""), "{svg}");
        assert_eq!(Curve::default().to_svg().matches("<polyline").count(), 0);
    }
}
