//! Answers in plain text that say why not.

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};

use crate::limits;
use crate::service::Busy;

/// Plain text that says what went wrong.
pub(crate) fn refuse(status: StatusCode, text: impl Into<String>) -> Response {
    let mut response = (status, text.into()).into_response();
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// 429: nodes honour it and come back.
pub(crate) fn later(after: Duration) -> Response {
    let mut response = refuse(StatusCode::TOO_MANY_REQUESTS, "the coordinator is busy, try again later");
    let seconds = after.as_secs().saturating_add(1);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    response
}

impl IntoResponse for Busy {
    fn into_response(self) -> Response {
        later(limits::RETRY_AFTER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_too_often_is_told_when_to_come_again() {
        for response in [Busy.into_response(), later(limits::RETRY_AFTER)] {
            assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
            assert_eq!(response.headers()[header::RETRY_AFTER], "11");
        }
    }
}
