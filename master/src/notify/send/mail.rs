//! Mail by SMTP.

use super::{
    Failure, secrets,
    template::{Escape, render},
};
use lettre::{
    AsyncSmtpTransport, AsyncTransport, Tokio1Executor,
    message::{
        Mailbox, Message as Mail,
        header::{ContentType, HeaderName, HeaderValue},
    },
    transport::smtp::{
        authentication::Credentials,
        client::{Certificate, CertificateStore, Tls, TlsParameters},
    },
};
use meepo_core::{
    notify::{Email, Encryption, Message},
    shown,
};
use std::{path::Path, time::Duration};
use tracing::warn;

/// Longest subject, in characters.
const MAX_SUBJECT: usize = 200;

/// Sends a message.
pub(super) async fn send(
    email: &Email,
    message: &Message,
    dir: &Path,
    timeout: Duration,
) -> Result<(), Failure> {
    let mail = mail(email, message)?;
    let mut transport = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(&email.host)
        .port(email.port())
        .timeout(Some(timeout))
        .tls(tls(email).await?);
    if let (Some(user), Some(secret)) = (&email.user, &email.secret) {
        let password = secrets::read(secret, dir).await?;
        transport = transport.credentials(Credentials::new(user.clone(), password));
    }
    let sent = transport.build::<Tokio1Executor>().send(mail).await;
    sent.map(drop).map_err(|e| {
        let mut reason = format!("{}: {e}", email.host);
        if let Some(cause) = std::error::Error::source(&e) {
            reason = format!("{reason}: {cause}");
        }
        // A server that refuses for good may be told better; what else fails may be mended.
        match e.is_permanent() {
            true => Failure::never(reason),
            false => Failure::again(reason),
        }
    })
}

async fn tls(email: &Email) -> Result<Tls, Failure> {
    if email.encryption == Encryption::None {
        return Ok(Tls::None);
    }
    let (host, ca) = (email.host.clone(), email.ca.clone());
    // Reads the authorities of the host, or the file.
    let making = tokio::task::spawn_blocking(move || {
        let mut parameters = TlsParameters::builder(host);
        if let Some(path) = ca {
            let say = |e: &dyn std::fmt::Display| format!("email.ca: cannot use {path}: {e}");
            if !Path::new(&path).metadata().map_err(|e| say(&e))?.is_file() {
                return Err(say(&"it is not a regular file"));
            }
            let pem = std::fs::read(&path).map_err(|e| say(&e))?;
            let certificate = Certificate::from_pem(&pem).map_err(|e| say(&e))?;
            parameters = parameters
                .certificate_store(CertificateStore::None)
                .add_root_certificate(certificate);
        }
        parameters.build_rustls().map_err(|e| format!("cannot use TLS: {e}"))
    });
    let parameters = making.await.map_err(|e| Failure::again(format!("cannot use TLS: {e}")))?;
    let parameters = parameters.map_err(Failure::again)?;
    Ok(match email.encryption {
        Encryption::Tls => Tls::Wrapper(parameters),
        _ => Tls::Required(parameters),
    })
}

fn mail(email: &Email, message: &Message) -> Result<Mail, Failure> {
    let text = |template: &Option<String>, own: &dyn Fn() -> String| match template {
        None => own(),
        Some(template) => render(template, Escape::None, message).unwrap_or_else(|error| {
            // It worked when it was tried; better another text than none.
            warn!(channel = %message.channel, error, "a template failed: sent without it");
            own()
        }),
    };
    let subject = text(&email.subject, &|| message.title());
    // One line; what a job says must not become a header.
    let subject: String = shown::line(&subject).chars().take(MAX_SUBJECT).collect();
    let address = |text: &str| {
        let parsed = text.parse::<Mailbox>();
        parsed.map_err(|e| Failure::never(format!("{text:?} is no address: {e}")))
    };
    let mut mail = Mail::builder()
        .from(address(&email.from)?)
        .subject(subject)
        .message_id(Some(format!("<{}@meepo>", message.id)))
        .header(ContentType::TEXT_PLAIN);
    for (name, value) in [("Auto-Submitted", "auto-generated"), ("Meepo-Notification", &message.id)]
    {
        if let Ok(name) = HeaderName::new_from_ascii(name.to_owned()) {
            mail = mail.raw_header(HeaderValue::new(name, value.to_owned()));
        }
    }
    for to in &email.to {
        mail = mail.to(address(to)?);
    }
    mail.body(shown::lines(&text(&email.body, &|| message.text())))
        .map_err(|e| Failure::never(format!("no mail can be made of it: {e}")))
}
