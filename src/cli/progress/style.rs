//! Styles of progress bars.

use std::{fmt, time::Duration};

use indicatif::{HumanDuration, ProgressState, ProgressStyle};

/// The unit of a bar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Bytes,
    /// Steps without a meaning for the user.
    Steps,
    /// Items that the message names.
    Items,
}

/// Minimum terminal width for the full template.
const WIDE: usize = 72;

fn template(unit: Unit, width: usize) -> &'static str {
    match (unit, width < WIDE) {
        (Unit::Bytes, false) => "{bar:20} {percent:>3} % {remaining:>5} left  {decimal_bytes_per_sec:>11}  {wide_msg}",
        (Unit::Steps, false) => "{bar:20} {percent:>3} % {remaining:>5} left  {wide_msg}",
        (Unit::Items, false) => "{bar:20} {remaining:>5} left  {pos} of {len} {wide_msg}",
        (Unit::Bytes | Unit::Steps, true) => "{bar:10} {percent} % {remaining} left {wide_msg}",
        (Unit::Items, true) => "{bar:10} {pos} of {len} {wide_msg}",
    }
}

/// Returns the style for a terminal of this `width`; `before` is the fraction of the work that was already done at the
/// start.
pub fn style(unit: Unit, width: Option<usize>, before: f64) -> ProgressStyle {
    let show_remaining = move |state: &ProgressState, to: &mut dyn fmt::Write| {
        let remaining = remaining(state.elapsed(), before, state.fraction().into());
        let remaining = remaining.map_or("?".into(), |remaining| format!("{:#}", HumanDuration(remaining)));
        let _ = to.write_str(&remaining); // writing to a string cannot fail
    };
    ProgressStyle::with_template(template(unit, width.unwrap_or(WIDE)))
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .with_key("left", show_remaining)
}

/// Estimates the remaining time from the average speed since the start, since the parts of a phase differ in speed;
/// `None` if too little is done for an estimate.
pub fn remaining(elapsed: Duration, before: f64, now: f64) -> Option<Duration> {
    const ENOUGH: f64 = 2e-3;
    let (done, remaining) = (now - before, 1.0 - now);
    (done > ENOUGH * (1.0 - before)).then(|| elapsed.mul_f64(remaining.max(0.0) / done))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_valid() {
        for unit in [Unit::Bytes, Unit::Steps, Unit::Items] {
            let [narrow, wide] = [40, 100].map(|width| template(unit, width));
            assert!(narrow != wide);
            assert!([narrow, wide].iter().all(|template| ProgressStyle::with_template(template).is_ok()));
        }
    }

    #[test]
    fn remaining_time_excludes_work_done_before_the_start() {
        let second = Duration::from_secs(1);
        assert_eq!(remaining(second, 0.0, 0.25), Some(3 * second));
        assert_eq!(remaining(second, 0.5, 0.75), Some(second));
        assert_eq!(remaining(second, 0.0, 1.0), Some(Duration::ZERO));
        for (before, now) in [(0.0, 0.0), (0.0, 1e-3), (1.0, 1.0), (0.5, 0.4)] {
            assert_eq!(remaining(second, before, now), None);
        }
    }
}
