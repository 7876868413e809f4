//! The compiled form of the fields and the search for matching civil times.

use super::{FIRST_YEAR, LAST_YEAR};
use jiff::civil::DateTime;
use std::sync::Arc;

/// Bits for up to 256 values: wide enough for the years.
pub(super) type Bits = [u64; 4];

/// Whether bit `i` is set.
pub(super) fn has(bits: &Bits, i: usize) -> bool {
    bits.get(i / 64).is_some_and(|word| word >> (i % 64) & 1 == 1)
}

/// The fields of an expression. Bit `n` of a mask stands for the value `n`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Masks {
    pub(super) seconds: u64,
    pub(super) minutes: u64,
    /// What few expressions need.
    pub(super) rare: Option<Arc<Rare>>,
    pub(super) hours: u32,
    /// Bits 1 to 31; bit 0 is the last day of the month.
    pub(super) days: u32,
    /// Bits 1 to 12.
    pub(super) months: u16,
    /// Bits 0 (Sunday) to 6.
    pub(super) weekdays: u8,
    /// Whether one day field is enough (neither starts with `*`).
    pub(super) either_day: bool,
    /// Whether minutes or hours start with `*`: such a schedule follows elapsed time.
    pub(super) wildcard: bool,
}

/// The parts of [`Masks`] that few expressions need.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Rare {
    /// Bit `n` is the year `FIRST_YEAR + n`.
    pub(super) years: Bits,
    /// `L-n`: bit `n` is the day `n` days before the last of the month.
    pub(super) before_last: u32,
    /// `nW`: bit `n` is the working day nearest to day `n`; bit 0 is `LW`.
    pub(super) nearest: u32,
    /// `d#k`: the weekdays (bits 0 to 6) of which the `k`th counts, at index `k - 1`.
    pub(super) nth: [u8; 5],
    /// `dL`: the weekdays of which the last of the month counts.
    pub(super) last: u8,
}

impl Rare {
    /// Every year and nothing else.
    pub(super) const NONE: Self =
        Self { years: [u64::MAX; 4], before_last: 0, nearest: 0, nth: [0; 5], last: 0 };
}

/// A civil time to the second. Ordered as times are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Civil {
    pub(super) year: i16,
    pub(super) month: u8,
    pub(super) day: u8,
    pub(super) time: Time,
}

/// A time of day to the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Time {
    pub(super) hour: u8,
    pub(super) minute: u8,
    pub(super) second: u8,
}

impl From<DateTime> for Civil {
    /// Fractions of a second are dropped; jiff's fields are never negative but the year.
    fn from(t: DateTime) -> Self {
        Self {
            year: t.year(),
            month: t.month().unsigned_abs(),
            day: t.day().unsigned_abs(),
            time: Time {
                hour: t.hour().unsigned_abs(),
                minute: t.minute().unsigned_abs(),
                second: t.second().unsigned_abs(),
            },
        }
    }
}

impl Civil {
    const START: Self =
        Self { year: FIRST_YEAR, month: 1, day: 1, time: Time { hour: 0, minute: 0, second: 0 } };

    /// The same for jiff; `None` never happens for times made by [`Masks::first_from`].
    pub(super) fn datetime(self) -> Option<DateTime> {
        let Time { hour, minute, second } = self.time;
        let [month, day, hour, minute, second] =
            [self.month, self.day, hour, minute, second].map(|v| v as i8);
        DateTime::new(self.year, month, day, hour, minute, second, 0).ok()
    }
}

impl Masks {
    /// The first matching civil time from `from` on, including it.
    pub(super) fn first_from(&self, from: Civil) -> Option<Civil> {
        let from = from.max(Civil::START);
        let Civil { mut year, mut month, day, time } = from;
        let mut days = 0;
        if self.has_year(year) && self.months >> month & 1 == 1 {
            days = self.days_of(year, month);
            if days >> day & 1 == 1
                && let Some(time) = self.time_from(time)
            {
                return Some(Civil { time, ..from });
            }
            days &= at_least(u32::from(day) + 1) as u32;
        }
        loop {
            if days != 0 {
                let day = days.trailing_zeros() as u8;
                return Some(Civil { year, month, day, time: self.first_time() });
            }
            let later = u64::from(self.months) & at_least(u32::from(month) + 1);
            if later == 0 {
                year = self.year_from(year + 1)?;
                month = self.months.trailing_zeros() as u8;
            } else if self.has_year(year) {
                month = later.trailing_zeros() as u8;
            } else {
                year = self.year_from(year)?;
                month = self.months.trailing_zeros() as u8;
            }
            days = self.days_of(year, month);
        }
    }

    fn has_year(&self, year: i16) -> bool {
        (FIRST_YEAR..=LAST_YEAR).contains(&year)
            && self.rare.as_ref().is_none_or(|rare| {
                has(&rare.years, usize::from((year - FIRST_YEAR).unsigned_abs()))
            })
    }

    fn year_from(&self, year: i16) -> Option<i16> {
        (year.max(FIRST_YEAR)..=LAST_YEAR).find(|y| self.has_year(*y))
    }

    fn first_time(&self) -> Time {
        Time {
            hour: self.hours.trailing_zeros() as u8,
            minute: self.minutes.trailing_zeros() as u8,
            second: self.seconds.trailing_zeros() as u8,
        }
    }

    /// The first matching time of day from `t` on.
    fn time_from(&self, t: Time) -> Option<Time> {
        let first = self.first_time();
        let mut minute_from = u32::from(t.minute);
        if self.hours >> t.hour & 1 == 1 {
            if self.minutes >> t.minute & 1 == 1 {
                if let Some(second) = next_bit(self.seconds, t.second.into()) {
                    return Some(Time { second, ..t });
                }
                minute_from += 1;
            }
            if let Some(minute) = next_bit(self.minutes, minute_from) {
                return Some(Time { minute, second: first.second, ..t });
            }
        }
        let hour = next_bit(self.hours.into(), u32::from(t.hour) + 1)?;
        Some(Time { hour, ..first })
    }

    /// The matching days of a month as bits 1 to 31.
    fn days_of(&self, year: i16, month: u8) -> u32 {
        let len = month_len(year, month);
        let first = weekday_of_first(year, month);
        let exists = (1u32 << len << 1).wrapping_sub(2);
        let mut by_day = self.days & exists;
        if self.days & 1 == 1 {
            by_day |= 1 << len;
        }
        let mut by_weekday = spread(self.weekdays, first) & exists;
        if let Some(rare) = &self.rare {
            by_day |= rare.days_of(len, first);
            by_weekday |= rare.weekdays_of(len, first) & exists;
        }
        if self.either_day { by_day | by_weekday } else { by_day & by_weekday }
    }
}

impl Rare {
    fn days_of(&self, len: u32, first: u32) -> u32 {
        let mut days = 0;
        for back in bits(self.before_last).take_while(|back| *back < len) {
            days |= 1 << (len - back);
        }
        for wanted in bits(self.nearest).filter(|d| *d <= len) {
            let wanted = if wanted == 0 { len } else { wanted };
            let day = match (first + wanted - 1) % 7 {
                6 if wanted == 1 => 3,
                6 => wanted - 1,
                0 if wanted == len => wanted - 2,
                0 => wanted + 1,
                _ => wanted,
            };
            days |= 1 << day;
        }
        days
    }

    fn weekdays_of(&self, len: u32, first: u32) -> u32 {
        // Bits 1 to 7: the first week.
        const WEEK: u32 = 0xFE;
        let mut days = spread(self.last, first) & (WEEK << (len - 7));
        for (week, weekdays) in self.nth.iter().enumerate() {
            days |= spread(*weekdays, first) & (WEEK << (7 * week));
        }
        days
    }
}

/// The days 1 to 35 (bits; 32 and up are lost) that fall on `weekdays`, if the first
/// falls on `first`.
fn spread(weekdays: u8, first: u32) -> u32 {
    let w = u64::from(weekdays & 0x7F);
    // Bit 0 becomes the weekday of the first.
    let week = (w >> first | w << (7 - first)) & 0x7F;
    let month = week | week << 7 | week << 14 | week << 21 | week << 28;
    (month << 1) as u32
}

/// All bits from `n` on.
fn at_least(n: u32) -> u64 {
    u64::MAX.checked_shl(n).unwrap_or(0)
}

fn next_bit(mask: u64, from: u32) -> Option<u8> {
    let rest = mask & at_least(from);
    (rest != 0).then(|| rest.trailing_zeros() as u8)
}

fn bits(mask: u32) -> impl Iterator<Item = u32> {
    (0..32).filter(move |i| mask >> i & 1 == 1)
}

fn month_len(year: i16, month: u8) -> u32 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// The weekday of the first of a month, 0 for Sunday (Sakamoto's method).
fn weekday_of_first(year: i16, month: u8) -> u32 {
    const SHIFT: [u32; 12] = [0, 3, 2, 5, 0, 3, 5, 1, 4, 6, 2, 4];
    let shift = SHIFT[usize::from(month - 1) % 12];
    // January and February belong to the year before. Years here are never negative.
    let y = u32::from(year.unsigned_abs()) - u32::from(month < 3);
    (y + y / 4 - y / 100 + y / 400 + shift + 1) % 7
}
