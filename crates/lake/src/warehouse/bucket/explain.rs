//! What a store's answer means, in words that say what to do. The store's own body is not repeated: it may hold the
//! access key.

use object_store::Error as StoreError;

/// Whether the store says that it does not know such a request.
pub(super) fn is_not_implemented(error: &StoreError) -> bool {
    matches!(error, StoreError::NotImplemented { .. }) || code_in(&whole(error)) == Some("NotImplemented")
}

/// The error and what caused it.
fn whole(error: &StoreError) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// The code in an error document of the S3 protocol.
fn code_in(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("<Code>")?;
    rest.split_once("</Code>").map(|(code, _)| code).filter(|code| code.bytes().all(|b| b.is_ascii_alphanumeric()))
}

/// One line for people.
pub(super) fn explain(error: &StoreError, bucket: &str, endpoint: &str) -> String {
    let text = whole(error);
    match code_in(&text) {
        Some("NoSuchBucket") => {
            format!("{endpoint} has no bucket {bucket:?} (NoSuchBucket); make it, or correct storage.warehouse")
        }
        Some("InvalidAccessKeyId") => {
            format!("{endpoint} does not know the access key (InvalidAccessKeyId); correct storage.s3.access_key")
        }
        Some("SignatureDoesNotMatch") => format!(
            "{endpoint} says that the signature is wrong (SignatureDoesNotMatch); correct storage.s3.secret_key or storage.s3.region"
        ),
        Some("ExpiredToken") => {
            format!("the credentials for {endpoint} have expired (ExpiredToken); renew them and start again")
        }
        Some("RequestTimeTooSkewed") => {
            format!("the clocks of this machine and of {endpoint} differ too much (RequestTimeTooSkewed); set them")
        }
        Some("AccessDenied" | "AllAccessDisabled") => format!(
            "{endpoint} denies it (AccessDenied); the access key needs the rights to read, write, list and delete in the bucket {bucket:?}"
        ),
        Some("QuotaExceeded" | "XMinioStorageFull" | "XMinioAdminBucketQuotaExceeded") => {
            format!("the bucket {bucket:?} at {endpoint} is full; make room there")
        }
        Some(code) => format!("{endpoint} answered {code}{}", repeated(&text)),
        None => match error {
            StoreError::NotFound { .. } => "there is no such object".to_owned(),
            StoreError::PermissionDenied { .. } | StoreError::Unauthenticated { .. } => format!(
                "{endpoint} denies it; look at storage.s3.access_key and the rights of that key in the bucket {bucket:?}"
            ),
            _ => format!("the store at {endpoint} cannot be used now: {}", cause(error)),
        },
    }
}

/// The innermost cause: the outer ones repeat it, with the request's address.
fn cause(error: &StoreError) -> String {
    let mut last = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(inner) = next {
        last = inner.to_string();
        next = inner.source();
    }
    let line = last.lines().next().unwrap_or_default();
    line.chars().take(300).collect()
}

fn repeated(text: &str) -> &'static str {
    if text.contains(" retries") { " each time it was asked" } else { "" }
}
