//! What a client of the HTTP API needs, and what its failures mean.

use super::{
    files,
    live::PROVIDER,
    verify::{Expect, Pinned, Verifier},
};
use anyhow::Context;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, Error as TlsError, RootCertStore,
    client::WebPkiServerVerifier,
    pki_types::{PrivateKeyDer, pem::PemObject},
};
use std::{error::Error, io, path::Path, sync::Arc};

/// For requests to a master: it must be of the authority in `ca`, else of one that the host
/// trusts, and is shown the certificate of `pair` if it asks for one.
///
/// # Errors
/// When a file cannot be used.
pub fn client_config(
    ca: Option<&Path>,
    pair: Option<(&Path, &Path)>,
) -> anyhow::Result<ClientConfig> {
    let roots = match ca {
        Some(ca) => {
            files::roots(&files::certificates(ca)?).with_context(|| ca.display().to_string())?
        }
        None => {
            let mut roots = RootCertStore::empty();
            // One that cannot be used is no reason to do without the others.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            roots
        }
    };
    let builder = ClientConfig::builder_with_provider(PROVIDER.clone())
        .with_safe_default_protocol_versions()?;
    // A host that trusts nobody has no use for a verifier; rustls' own says so when asked.
    let builder = match roots.is_empty() {
        true => builder.with_root_certificates(roots),
        false => {
            let inner =
                WebPkiServerVerifier::builder_with_provider(Arc::new(roots), PROVIDER.clone())
                    .build()?;
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Verifier::new(inner, Expect::NoNode)))
        }
    };
    // Without ALPN: clients add what they speak, and some insist on doing it themselves.
    Ok(match pair {
        Some((cert, key)) => {
            let private = PrivateKeyDer::from_pem_slice(&files::read(key)?)
                .map_err(|e| anyhow::anyhow!("{}: no private key in PEM: {e}", key.display()))?;
            builder.with_client_auth_cert(files::certificates(cert)?, private).with_context(
                || format!("{} is not the key of {}", key.display(), cert.display()),
            )?
        }
        None => builder.with_no_client_auth(),
    })
}

/// For requests that are not encrypted: nobody is trusted.
///
/// # Errors
/// Never, with the provider there is.
pub fn plain_config() -> anyhow::Result<ClientConfig> {
    Ok(ClientConfig::builder_with_provider(PROVIDER.clone())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth())
}

/// For the first contact with a master: of its authority one knows the fingerprint, SHA-256 in
/// hexadecimal.
///
/// # Errors
/// Never, with the provider there is.
pub fn pinned_config(fingerprint: &str) -> anyhow::Result<ClientConfig> {
    Ok(ClientConfig::builder_with_provider(PROVIDER.clone())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned::new(fingerprint)))
        .with_no_client_auth())
}

/// What a failure of TLS somewhere below `error` means, in the words of whoever is to do
/// something about it. None: it was something else.
pub fn explain(error: &(dyn Error + 'static)) -> Option<String> {
    let mut cause = Some(error);
    while let Some(e) = cause {
        if let Some(tls) = e.downcast_ref::<TlsError>() {
            return Some(meaning(tls));
        }
        // Its source is that of what it holds.
        let held = e.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if let Some(tls) = held.and_then(|held| held.downcast_ref::<TlsError>()) {
            return Some(meaning(tls));
        }
        cause = match held {
            Some(held) => Some(held as &(dyn Error + 'static)),
            None => e.source(),
        };
    }
    None
}

fn meaning(error: &TlsError) -> String {
    use CertificateError as C;
    match error {
        // The latter: there is one of the same name, with another key.
        TlsError::InvalidCertificate(C::UnknownIssuer | C::BadSignature) => {
            "its certificate is of an authority that is not trusted here".to_owned()
        }
        TlsError::InvalidCertificate(C::Expired | C::ExpiredContext { .. }) => {
            "its certificate has expired".to_owned()
        }
        TlsError::InvalidCertificate(C::NotValidYet | C::NotValidYetContext { .. }) => {
            "its certificate is not valid yet; do the clocks agree?".to_owned()
        }
        TlsError::InvalidCertificate(C::NotValidForName | C::NotValidForNameContext { .. }) => {
            format!("its certificate is for another host ({error})")
        }
        TlsError::InvalidMessage(_) => "it does not speak TLS".to_owned(),
        TlsError::AlertReceived(alert) => {
            let of_client = matches!(
                alert,
                AlertDescription::BadCertificate
                    | AlertDescription::UnsupportedCertificate
                    | AlertDescription::CertificateRevoked
                    | AlertDescription::CertificateExpired
                    | AlertDescription::CertificateUnknown
                    | AlertDescription::CertificateRequired
                    | AlertDescription::UnknownCA
                    | AlertDescription::AccessDenied
                    | AlertDescription::DecryptError
            );
            match of_client {
                true => format!("it does not accept the certificate shown to it ({alert:?})"),
                false => error.to_string(),
            }
        }
        TlsError::General(why) => why.clone(),
        _ => error.to_string(),
    }
}
