//! The function `strftime_now`.

use std::fmt::Write;

use super::Failure;

/// Returns the current local time in the given format.
pub fn now(format: &str) -> Result<String, Failure> {
    written(chrono::Local::now().naive_local(), format)
}

fn written(time: chrono::NaiveDateTime, format: &str) -> Result<String, Failure> {
    let mut text = String::new();
    let bad = || Failure::new(format!("strftime_now: the format {format:?} is not supported"));
    write!(text, "{}", time.format(format)).map_err(|_| bad())?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_formatted_like_python() {
        let time = chrono::NaiveDate::from_ymd_opt(2025, 3, 9).unwrap().and_hms_opt(7, 5, 6).unwrap();
        for (format, expected) in [
            ("%d %b %Y", "09 Mar 2025"),
            ("%Y-%m-%d", "2025-03-09"),
            ("%B %d, %Y", "March 09, 2025"),
            ("%A, %-d %B %y at %I:%M %p (%H:%M:%S), day %j", "Sunday, 9 March 25 at 07:05 AM (07:05:06), day 068"),
            ("%x %X %c|%%", "03/09/25 07:05:06 Sun Mar  9 07:05:06 2025|%"),
        ] {
            assert_eq!(written(time, format).unwrap(), expected, "{format}");
        }
        assert!(written(time, "%!").is_err());
    }
}
