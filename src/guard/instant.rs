//! Timestamps as texts: what Postgres prints, and what programs make of it (ISO 8601, RFC 3339).

/// A timestamp that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instant {
    /// Microseconds since 1970, of the time as it is written, less its offset.
    pub micros: i64,
    /// What the last digit stands for, in microseconds; digits beyond these are cut off.
    pub step: i64,
    /// Whether it names its offset from UTC.
    pub has_offset: bool,
}

const SECOND: i64 = 1_000_000;

impl Instant {
    /// Reads `2026-11-23T07:31:00.123456Z` and its like: a `T` or a blank, a fraction of up to nine digits after a dot or a
    /// comma or none, an offset (`Z`, `+00`, `+0000`, `+00:00`) or none. Years of four digits; no `infinity`, no `BC`,
    /// no leap second.
    pub fn read(text: &[u8]) -> Option<Self> {
        let (date, rest) = text.split_at_checked(10)?;
        let [y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2] = date else { return None };
        let (year, month) = (number(&[*y1, *y2, *y3, *y4])?, number(&[*m1, *m2])?);
        let day = number(&[*d1, *d2])?;
        if year == 0 || !(1..=12).contains(&month) || !(1..=days(year, month)).contains(&day) {
            return None;
        }
        let [b'T' | b't' | b' ', rest @ ..] = rest else { return None };
        let (time, rest) = rest.split_at_checked(8)?;
        let [h1, h2, b':', n1, n2, b':', s1, s2] = time else { return None };
        let (hour, minute) = (number(&[*h1, *h2])?, number(&[*n1, *n2])?);
        let second = number(&[*s1, *s2])?;
        if hour > 23 || minute > 59 || second > 59 {
            return None;
        }
        let (fraction, step, rest) = fraction(rest)?;
        let offset = offset(rest)?;
        let seconds = days_since_1970(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second;
        let micros = (seconds - offset.unwrap_or(0)) * SECOND + fraction;
        Some(Self { micros, step, has_offset: offset.is_some() })
    }
}

/// Digits, and nothing else.
fn number(digits: &[u8]) -> Option<i64> {
    let digit = |n: i64, digit: &u8| digit.is_ascii_digit().then(|| n * 10 + i64::from(digit - b'0'));
    digits.iter().try_fold(0, digit)
}

/// Microseconds, what the last digit stands for, and what follows.
fn fraction(text: &[u8]) -> Option<(i64, i64, &[u8])> {
    let [b'.' | b',', rest @ ..] = text else { return Some((0, SECOND, text)) };
    let count = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (digits, rest) = rest.split_at_checked(count).filter(|_| (1..=9).contains(&count))?;
    let kept = digits.get(..count.min(6))?;
    let step = 10i64.pow(6 - kept.len() as u32);
    Some((number(kept)? * step, step, rest))
}

/// The offset from UTC in seconds, if there is one.
fn offset(text: &[u8]) -> Option<Option<i64>> {
    let (sign, rest) = match text {
        [] => return Some(None),
        [b'Z' | b'z'] => return Some(Some(0)),
        [b'+', rest @ ..] => (1, rest),
        [b'-', rest @ ..] => (-1, rest),
        _ => return None,
    };
    let (hours, minutes) = match rest {
        [h1, h2] => (number(&[*h1, *h2])?, 0),
        [h1, h2, m1, m2] | [h1, h2, b':', m1, m2] => (number(&[*h1, *h2])?, number(&[*m1, *m2])?),
        _ => return None,
    };
    (hours <= 23 && minutes <= 59).then_some(Some(sign * (hours * 3600 + minutes * 60)))
}

fn days(year: i64, month: i64) -> i64 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        _ => 31,
    }
}

/// By the proleptic Gregorian calendar, as Postgres counts. Years begin in March, so that a leap day comes last.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month > 2 { year } else { year - 1 };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let month_from_march = (month + 9) % 12;
    let of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let days = of_era * 365 + of_era / 4 - of_era / 100 + of_year;
    era * 146_097 + days - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn micros(text: &str) -> Option<i64> {
        Instant::read(text.as_bytes()).map(|instant| instant.micros)
    }

    #[test]
    fn every_form_of_one_instant_is_the_same() {
        for text in [
            "2026-11-23 07:31:05.25+00",
            "2026-11-23T07:31:05.25Z",
            "2026-11-23t07:31:05.250z",
            "2026-11-23T07:31:05,250000Z",
            "2026-11-23T07:31:05.250000999Z",
            "2026-11-23T07:31:05.25",
            "2026-11-23 09:31:05.25+02",
            "2026-11-23 13:01:05.25+0530",
            "2026-11-23T13:01:05.25+05:30",
            "2026-11-22T23:31:05.25-08:00",
        ] {
            assert_eq!(micros(text), Some(1_795_419_065_250_000), "{text}");
        }
        assert_eq!(micros("1970-01-01 00:00:00"), Some(0));
        assert_eq!(micros("2000-02-29 00:00:00"), Some(951_782_400_000_000));
        assert_eq!(micros("1969-12-31 23:59:59.999999"), Some(-1));
        assert_eq!(micros("0001-01-01 00:00:00"), Some(-62_135_596_800_000_000));
        assert_eq!(micros("9999-12-31 23:59:59.999999"), Some(253_402_300_799_999_999));
    }

    #[test]
    fn it_tells_how_exact_it_is_and_whether_it_names_its_offset() {
        let read = |text: &str| Instant::read(text.as_bytes()).map(|i| (i.step, i.has_offset));
        assert_eq!(read("2026-11-23 07:31:05"), Some((1_000_000, false)));
        assert_eq!(read("2026-11-23 07:31:05.123Z"), Some((1_000, true)));
        assert_eq!(read("2026-11-23 07:31:05.123456-00:00"), Some((1, true)));
        assert_eq!(read("2026-11-23 07:31:05.123456789"), Some((1, false)));
    }

    #[test]
    fn what_is_no_instant_is_none() {
        for text in [
            "",
            "2026-11-23",
            "infinity",
            "-infinity",
            "2026-11-23 07:31",
            "2026-11-23 07:31:05 BC",
            "0044-03-15 00:00:00 BC",
            "12026-11-23 07:31:05",
            "2026-13-01 00:00:00",
            "2026-02-29 00:00:00",
            "1900-02-29 00:00:00",
            "2026-04-31 00:00:00",
            "2026-00-01 00:00:00",
            "2026-01-00 00:00:00",
            "0000-01-01 00:00:00",
            "2026-11-23 24:00:00",
            "2026-11-23 07:60:00",
            "2026-11-23 07:31:60",
            "2026-11-23 07:31:05.",
            "2026-11-23 07:31:05.1234567890",
            "2026-11-23 07:31:05 +00",
            "2026-11-23 07:31:05+",
            "2026-11-23 07:31:05+0",
            "2026-11-23 07:31:05+00:0",
            "2026-11-23 07:31:05+24",
            "2026-11-23 07:31:05Zz",
            "2026/11/23 07:31:05",
            "+026-11-23 07:31:05",
            "2026-11-23 07:31:05+00:00:30",
            "2026-11-23_07:31:05",
            "2026-11-23 07:31:05Europe/Paris",
        ] {
            assert_eq!(Instant::read(text.as_bytes()), None, "{text}");
        }
        assert_eq!(Instant::read("2026-11-23 07:31:0٥".as_bytes()), None);
    }

    proptest! {
        #[test]
        fn days_follow_each_other(day in -700_000i64..2_900_000) {
            // Walks the calendar from a day whose number is known, by whole cycles and then day by day.
            let (mut year, mut rest) = (1970 + 400 * day.div_euclid(146_097), day.rem_euclid(146_097));
            let length = |year| (1..=12).map(|month| days(year, month)).sum::<i64>();
            while rest >= length(year) {
                rest -= length(year);
                year += 1;
            }
            let mut month = 1;
            while rest >= days(year, month) {
                rest -= days(year, month);
                month += 1;
            }
            prop_assert_eq!(days_since_1970(year, month, rest + 1), day);
        }

        #[test]
        fn no_text_is_too_odd(text in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = Instant::read(&text);
        }
    }
}
