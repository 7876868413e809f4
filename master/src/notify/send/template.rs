//! Texts of messages: a template of the channel, or meepo's own.

use jiff::Timestamp;
use meepo_core::{
    code::Code,
    error::Invalid,
    id::{Name, RunId},
    notify::{Channel, Digest, Happening, Kind, Message},
    run::RunState,
    shown,
};
use minijinja::{AutoEscape, Environment, ErrorKind, UndefinedBehavior};
use serde_json::{Map, Value, json};

/// Steps that a template may take.
const FUEL: u64 = 200_000;

/// For whom a text is escaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Escape {
    /// Values become JSON: a text comes with its quotation marks.
    Json,
    /// Not at all: plain text.
    None,
}

/// What templates see, and what a webhook without one is sent. Every field of an event is
/// there, `null` where it is not known.
pub(super) fn context(message: &Message) -> Value {
    let mut value = serde_json::to_value(message).unwrap_or_default();
    let whole = serde_json::to_value(full(Timestamp::UNIX_EPOCH)).unwrap_or_default();
    let events = value.get_mut("events").and_then(Value::as_array_mut);
    for event in events.into_iter().flatten().filter_map(Value::as_object_mut) {
        for key in whole.as_object().into_iter().flat_map(Map::keys) {
            event.entry(key.as_str()).or_insert(Value::Null);
        }
        if event.get("times").is_none_or(Value::is_null) {
            event.insert("times".into(), json!(1));
        }
    }
    if let Some(object) = value.as_object_mut() {
        for key in ["state", "attempts", "due", "error"] {
            object.remove(key);
        }
        object.entry("rule").or_insert(Value::Null);
        object.entry("held").or_insert(json!(0));
        object.insert("count".into(), json!(message.digest.count()));
        object.insert("title".into(), message.title().into());
        object.insert("text".into(), message.text().into());
    }
    readable(&mut value);
    value
}

/// Makes texts such that they are only to be read: jobs may have said anything.
fn readable(value: &mut Value) {
    match value {
        Value::String(text) => *text = shown::lines(text),
        Value::Array(all) => all.iter_mut().for_each(readable),
        Value::Object(all) => all.values_mut().for_each(readable),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Filters for receivers that take what jobs say for more than text: `slack` for its `<!channel>`
/// and links, `html`, and `markdown`.
fn filters(environment: &mut Environment<'_>) {
    let replaced = |pairs: &'static [(char, &'static str)]| {
        move |text: String| -> String {
            let one = |c: char| pairs.iter().find(|(from, _)| *from == c).map(|(_, to)| *to);
            text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
                match one(c) {
                    Some(to) => out.push_str(to),
                    None => out.push(c),
                }
                out
            })
        }
    };
    const SLACK: &[(char, &str)] = &[('&', "&amp;"), ('<', "&lt;"), ('>', "&gt;")];
    const HTML: &[(char, &str)] =
        &[('&', "&amp;"), ('<', "&lt;"), ('>', "&gt;"), ('"', "&quot;"), ('\'', "&#39;")];
    environment.add_filter("slack", replaced(SLACK));
    environment.add_filter("html", replaced(HTML));
    environment.add_filter("markdown", |text: String| -> String {
        // Any punctuation may be escaped, and an @ or a link is made of some.
        text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
            if c.is_ascii_punctuation() {
                out.push('\\');
            }
            out.push(c);
            out
        })
    });
}

/// Renders `template` for `message`.
pub(super) fn render(template: &str, escape: Escape, message: &Message) -> Result<String, String> {
    rendered(template, escape, message).map_err(|e| explain(&e))
}

fn rendered(template: &str, escape: Escape, message: &Message) -> Result<String, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_fuel(Some(FUEL));
    filters(&mut environment);
    environment.set_auto_escape_callback(move |_| match escape {
        Escape::Json => AutoEscape::Json,
        Escape::None => AutoEscape::None,
    });
    environment.add_template("template", template)?;
    environment.get_template("template")?.render(context(message))
}

/// What is wrong, and where.
fn explain(e: &minijinja::Error) -> String {
    let what = match (e.kind(), e.detail()) {
        (ErrorKind::UndefinedError, _) => {
            "something that does not exist is used; see the fields in notifications.md".to_owned()
        }
        (kind, None) => kind.to_string(),
        (kind, Some(detail)) => format!("{kind}: {detail}"),
    };
    match e.line() {
        Some(line) => format!("line {line}: {what}"),
        None => what,
    }
}

/// One with all that can be known.
fn full(at: Timestamp) -> Happening {
    Happening {
        job: Name::new("backup").ok(),
        node: Name::new("10.0.0.7").ok(),
        task: Some("01a1fa8b-5e02-724c-9dcc-8bfdf3ee4f9d".into()),
        run_id: Some(RunId(uuid::Uuid::nil())),
        state: Some(RunState::Failed),
        code: Some(Code(0x0101)),
        exit_code: Some(2),
        signal: Some(9),
        attempt: Some(1),
        slot: Some(at),
        since: Some(at),
        message: Some("it said \"no\"\nand left".into()),
        tail: Some("last \"words\"\n".into()),
        times: 2,
        ..Happening::new(Kind::Failure, at)
    }
}

/// Messages as they come: one that knows everything, one that knows as little as can be.
fn samples() -> Option<[Message; 2]> {
    let at = Timestamp::UNIX_EPOCH;
    let name = Name::new("channel").ok()?;
    let mut known = Message::test("0-0".into(), name, at);
    let mut bare = known.clone();
    known.digest = Digest::default();
    [full(at), bare.digest.events.first()?.clone()].into_iter().for_each(|e| known.digest.add(e));
    bare.rule = None;
    bare.digest.events = vec![Happening::new(Kind::NodeLost, at)];
    bare.digest.kinds = [(Kind::NodeLost, 1)].into();
    Some([known, bare])
}

/// Tries the templates of a channel.
///
/// # Errors
/// One that does not work, or that makes no JSON where JSON is promised.
pub fn check(channel: &Channel) -> Result<(), Invalid> {
    let mut templates = Vec::new();
    if let Some(hook) = &channel.webhook {
        templates.push(("webhook.body", &hook.body, Escape::Json));
    }
    if let Some(mail) = &channel.email {
        templates.push(("email.subject", &mail.subject, Escape::None));
        templates.push(("email.body", &mail.body, Escape::None));
    }
    let json = channel.webhook.as_ref().is_some_and(|hook| {
        let kind = hook.headers.iter().find(|(k, _)| k.eq_ignore_ascii_case("content-type"));
        kind.is_none_or(|(_, value)| value.to_ascii_lowercase().contains("json"))
    });
    for (field, template, escape) in templates {
        let Some(template) = template else { continue };
        for message in samples().iter().flatten() {
            let bad = |problem: String, expected: &str| {
                Invalid::new(Code::BAD_VALUE, field, problem, expected)
            };
            let text = render(template, escape, message)
                .map_err(|e| bad(e, "a template such as {{ title }}"))?;
            if escape == Escape::Json && json {
                serde_json::from_str::<Value>(&text).map_err(|e| {
                    let problem = format!("what it makes is no JSON: {e}");
                    bad(problem, "JSON with {{ values }}, which bring their own quotation marks")
                })?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(body: &str) -> Result<(), Invalid> {
        let value = json!({"name": "c", "webhook": {"url": "http://127.0.0.1:1/", "body": body}});
        check(&Channel::from_user(value).unwrap())
    }

    #[test]
    fn values_are_json_and_what_does_not_work_is_refused_with_its_line() {
        let [known, _] = samples().unwrap();
        let template = r#"{"text": {{ title }}, "said": {{ events[0].message }}}"#;
        hook(template).unwrap();
        let text = render(template, Escape::Json, &known).unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["said"], "it said \"no\"\nand left");
        for (bad, want) in [
            ("{\n\"a\": {{ nothing }}}", "line 2"),
            ("{\n\n{% if %}", "line 3"),
            ("{\"a\": {{ events[0].nothing }}}", "does not exist"),
            ("{\"a\": \"{{ title }}\"}", "no JSON"),
            (
                "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}",
                "line 1",
            ),
        ] {
            let e = hook(bad).unwrap_err();
            assert_eq!(e.field, "webhook.body");
            assert!(e.problem.contains(want), "{bad}: {e}");
        }
    }

    #[test]
    fn what_jobs_say_is_only_to_be_read() {
        let [mut known, _] = samples().unwrap();
        let event = &mut known.digest.events[0];
        event.message = Some("\u{1b}[2J<!channel> <b>*hi*</b> & \u{202e}\nSubject: x".into());
        event.tail = Some("\u{9b}31m".into());
        let render = |template: &str| render(template, Escape::Json, &known).unwrap();
        let text = |template: &str| serde_json::from_str::<String>(&render(template)).unwrap();
        let plain = text("{{ events[0].message }}");
        assert!(plain.starts_with(r"\x1b[2J<!channel>") && plain.contains(r"\u{202e}"), "{plain}");
        assert_eq!(text("{{ events[0].tail }}"), r"\x9b31m");
        assert!(text("{{ events[0].message | slack }}").contains("&lt;!channel&gt; &lt;b&gt;"));
        assert!(text("{{ events[0].message | html }}").contains("&lt;b&gt;*hi*&lt;/b&gt; &amp;"));
        assert!(text("{{ events[0].message | markdown }}").contains(r"\<\!channel\> \<b\>\*hi\*"));
        // Neither a line of a mail nor one of a text can be forged.
        assert_eq!(known.title().lines().count(), 1);
        assert!(!known.text().lines().any(|l| l.starts_with("Subject")), "{}", known.text());
    }

    #[test]
    fn mail_is_plain_text() {
        let [known, _] = samples().unwrap();
        let text = render("{{ count }}: {{ events[0].message }}", Escape::None, &known).unwrap();
        assert_eq!(text, "3: it said \"no\"\nand left");
    }
}
