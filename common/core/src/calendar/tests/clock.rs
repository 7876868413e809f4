//! What happens when the clocks change.

use super::check;

#[test]
fn clocks_go_forward() {
    check(
        r"
        # London skips 01:00-02:00. The gap's slots become one, right after it.
        30 1 * * * | Europe/London | 2026-03-28T12:00:00Z | 2026-03-29T02:00:00+01:00 2026-03-30T01:30:00+01:00
        10,25 1,11,21 * * * | Europe/London | 2026-03-28T22:00:00Z | 2026-03-29T02:00:00+01:00 2026-03-29T11:10:00+01:00 2026-03-29T11:25:00+01:00 2026-03-29T21:10:00+01:00
        # Made up for together with a regular slot at the same instant: one run.
        0 1,2 * * * | Europe/London | 2026-03-28T22:00:00Z | 2026-03-29T02:00:00+01:00 2026-03-30T01:00:00+01:00
        # The last second before it still looks forward to it.
        30 1 * * * | Europe/London | 2026-03-29T00:59:59.9Z | 2026-03-29T02:00:00+01:00
        30 1 * * * | Europe/London | 2026-03-29T01:00:00Z | 2026-03-30T01:30:00+01:00
        # Sundays only, and still made up for.
        15 1 * * 7 | Europe/London | 2026-03-28T22:00:00Z | 2026-03-29T02:00:00+01:00 2026-04-05T01:15:00+01:00
        # A wildcard follows elapsed time.
        */30 * * * * | Europe/London | 2026-03-29T00:29:00Z | 2026-03-29T00:30:00Z 2026-03-29T02:00:00+01:00 2026-03-29T02:30:00+01:00
        */30 1 * * * | Europe/London | 2026-03-28T22:00:00Z | 2026-03-30T01:00:00+01:00
        30 * * * * | Europe/London | 2026-03-29T00:30:00Z | 2026-03-29T02:30:00+01:00
        30 */1 29 3 * | Europe/London | 2026-03-28T22:00:00Z | 2026-03-29T00:30:00Z 2026-03-29T02:30:00+01:00
        # Seconds do not make a wildcard.
        */20 30 1 * * * | Europe/London | 2026-03-28T22:00:00Z | 2026-03-29T02:00:00+01:00 2026-03-30T01:30:00+01:00 2026-03-30T01:30:20+01:00
        # Half an hour: Lord Howe skips 02:00-02:30.
        15 2 * * * | Australia/Lord_Howe | 2026-10-03T10:00:00Z | 2026-10-04T02:30:00+11:00 2026-10-05T02:15:00+11:00
        45 2 * * * | Australia/Lord_Howe | 2026-10-03T10:00:00Z | 2026-10-04T02:45:00+11:00
        */10 * * * * | Australia/Lord_Howe | 2026-10-03T15:20:00Z | 2026-10-04T02:30:00+11:00 2026-10-04T02:40:00+11:00
        # Midnight does not exist: São Paulo, 2018-11-04.
        0 0 * * * | America/Sao_Paulo | 2018-11-03T12:00:00Z | 2018-11-04T01:00:00-02:00 2018-11-05T00:00:00-02:00
        # A whole day does not exist: Apia had no 30 December 2011.
        0 9,17 * * * | Pacific/Apia | 2011-12-30T00:00:00Z | 2011-12-29T17:00:00-10:00 2011-12-31T00:00:00+14:00 2011-12-31T09:00:00+14:00
        0 9 30 12 * | Pacific/Apia | 2011-12-01T00:00:00Z | 2011-12-31T00:00:00+14:00 2012-12-30T09:00:00+14:00
        0 * 30 12 * | Pacific/Apia | 2011-12-01T00:00:00Z | 2012-12-30T00:00:00+14:00
        ",
    );
}

#[test]
fn clocks_go_back() {
    check(
        r"
        # London repeats 01:00-02:00. Fixed times run in the first pass.
        30 1 * * * | Europe/London | 2026-10-24T12:00:00Z | 2026-10-25T01:30:00+01:00 2026-10-26T01:30:00Z
        19 19,20,1,7 * * 7 | Europe/London | 2026-10-24T22:00:00Z | 2026-10-25T01:19:00+01:00 2026-10-25T07:19:00Z 2026-10-25T19:19:00Z 2026-10-25T20:19:00Z 2026-11-01T01:19:00Z
        # Asked in the second pass: it has had its turn.
        30 1 * * * | Europe/London | 2026-10-25T01:10:00Z | 2026-10-26T01:30:00Z
        0,30 1-2 * * * | Europe/London | 2026-10-25T00:45:00Z | 2026-10-25T02:00:00Z 2026-10-25T02:30:00Z
        * 30,31 1 * * * | Europe/London | 2026-10-25T00:31:59Z | 2026-10-26T01:30:00Z
        # A wildcard follows elapsed time, through both passes.
        */30 * * * * | Europe/London | 2026-10-24T23:59:00Z | 2026-10-25T01:00:00+01:00 2026-10-25T01:30:00+01:00 2026-10-25T01:00:00Z 2026-10-25T01:30:00Z 2026-10-25T02:00:00Z
        */30 1 * * * | Europe/London | 2026-10-24T22:00:00Z | 2026-10-25T01:00:00+01:00 2026-10-25T01:30:00+01:00 2026-10-25T01:00:00Z 2026-10-25T01:30:00Z 2026-10-26T01:00:00Z
        15 * 25 10 * | Europe/London | 2026-10-25T00:15:00Z | 2026-10-25T01:15:00Z 2026-10-25T02:15:00Z
        # The next match but for the second pass would be a year away.
        5 1/12 25 10 * | Europe/London | 2026-10-25T00:30:00Z | 2026-10-25T13:05:00Z
        */7 1 25 10 * | Europe/London | 2026-10-25T00:58:00Z | 2026-10-25T01:00:00Z 2026-10-25T01:07:00Z
        0 * * * * | America/New_York | 2026-11-01T04:30:00Z | 2026-11-01T01:00:00-04:00 2026-11-01T01:00:00-05:00 2026-11-01T02:00:00-05:00
        # Half an hour: Lord Howe repeats 01:30-02:00.
        45 1 * * * | Australia/Lord_Howe | 2026-04-04T10:00:00Z | 2026-04-05T01:45:00+11:00 2026-04-06T01:45:00+10:30
        */15 * * * * | Australia/Lord_Howe | 2026-04-04T14:30:00Z | 2026-04-05T01:45:00+11:00 2026-04-05T01:30:00+10:30 2026-04-05T01:45:00+10:30 2026-04-05T02:00:00+10:30
        # Midnight comes twice: São Paulo, 2018-02-18 (23:00-24:00 on the 17th repeats).
        0 0 * * * | America/Sao_Paulo | 2018-02-17T12:00:00Z | 2018-02-18T00:00:00-03:00 2018-02-19T00:00:00-03:00
        30 23 * * * | America/Sao_Paulo | 2018-02-17T12:00:00Z | 2018-02-17T23:30:00-02:00 2018-02-18T23:30:00-03:00
        30 * 17 2 * | America/Sao_Paulo | 2018-02-18T01:30:00Z | 2018-02-17T23:30:00-03:00 2019-02-17T00:30:00-03:00
        ",
    );
}
