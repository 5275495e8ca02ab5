//! Calendar dates of Unix times, in UTC: the standard library knows seconds alone.

use std::fmt;

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// The first day of 1970 was a Thursday.
const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// A day of the Gregorian calendar and a time of that day; shown as `YYYY-MM-DD`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Date {
    unix_s: u64,
    year: u64,
    /// 1 to 12.
    month: u64,
    /// 1 to 31.
    day: u64,
}

impl Date {
    /// The date `unix_s` seconds after 1970, by Howard Hinnant's civil-from-days algorithm.
    pub fn of_unix(unix_s: u64) -> Self {
        let days = unix_s / 86_400 + 719_468;
        let (era, day_of_era) = (days / 146_097, days % 146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        // Months count from March, so that the leap day is the last of a year.
        let month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month + 2) / 5 + 1;
        let month = if month < 10 { month + 3 } else { month - 9 };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        Self { unix_s, year, month, day }
    }

    /// As C's `strftime` writes it, with the conversions that templates use; `Err` names another one.
    pub fn strftime(self, format: &str) -> Result<String, String> {
        let (seconds, month) = (self.unix_s % 86_400, MONTHS[(self.month - 1) as usize]);
        let weekday = DAYS[(self.unix_s / 86_400 % 7) as usize];
        let mut out = String::new();
        let mut rest = format.chars();
        while let Some(c) = rest.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            match rest.next() {
                Some('Y') => out += &format!("{:04}", self.year),
                Some('y') => out += &format!("{:02}", self.year % 100),
                Some('m') => out += &format!("{:02}", self.month),
                Some('d') => out += &format!("{:02}", self.day),
                Some('e') => out += &format!("{:2}", self.day),
                Some('B') => out += month,
                Some('b') => out += &month[..3],
                Some('A') => out += weekday,
                Some('a') => out += &weekday[..3],
                Some('H') => out += &format!("{:02}", seconds / 3600),
                Some('M') => out += &format!("{:02}", seconds / 60 % 60),
                Some('S') => out += &format!("{:02}", seconds % 60),
                Some('%') => out.push('%'),
                other => return Err(format!("%{}", other.map_or_else(String::new, String::from))),
            }
        }
        Ok(out)
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}-{:02}", self.year, self.month, self.day)
    }
}

#[cfg(test)]
mod tests {
    use super::Date;

    #[test]
    fn days_have_their_dates() {
        let known = [
            (0, "1970-01-01"),
            (951_782_400, "2000-02-29"),
            (1_709_251_199, "2024-02-29"),
            (1_709_251_200, "2024-03-01"),
            (4_102_444_799, "2099-12-31"),
        ];
        for (unix_s, text) in known {
            assert_eq!(Date::of_unix(unix_s).to_string(), text);
        }
    }

    #[test]
    fn formats_are_those_of_strftime() {
        let date = Date::of_unix(1_700_000_000);
        let all = "%a %A|%d %e|%b %B|%m|%y %Y|%H:%M:%S|%%é";
        assert_eq!(date.strftime(all).unwrap(), "Tue Tuesday|14 14|Nov November|11|23 2023|22:13:20|%é");
        assert_eq!(Date::of_unix(0).strftime("%e %a").unwrap(), " 1 Thu");
        assert_eq!(date.strftime("%d %Q").unwrap_err(), "%Q");
        assert_eq!(date.strftime("%").unwrap_err(), "%");
    }
}
