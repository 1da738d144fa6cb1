//! One request, one answer.

use std::sync::Arc;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue};
use hyper::header::{REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};
use hyper::{Method, Request, Response, StatusCode};

use super::events::{Answer, Connection};
use super::{Asked, Explain, page};
use crate::config::percent_decoded;
use crate::reload::Reloads;

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
const HTML: &str = "text/html; charset=utf-8";
const EVENTS: &str = "text/event-stream";

pub(super) async fn answer<B>(
    request: &Request<B>,
    asked: &Asked,
    connection: &Arc<Connection>,
) -> Response<Answer> {
    let source = asked.source.as_ref();
    if request.uri().path() == "/reload" {
        return reload(request, source.reloads()).await;
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = respond(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/" => respond(StatusCode::OK, HTML, page::PAGE.text.as_str()),
        "/events" if request.method() == Method::HEAD => respond(StatusCode::OK, EVENTS, ""),
        "/events" => reply(StatusCode::OK, EVENTS, asked.streams.open(source, connection)),
        "/livez" => respond(StatusCode::OK, TEXT, "alive\n"),
        "/readyz" => match source.ready() {
            Ok(troubles) => {
                let lines: String = troubles.iter().map(|trouble| format!("{trouble}\n")).collect();
                respond(StatusCode::OK, TEXT, format!("ready\n{lines}"))
            }
            Err(reasons) => {
                let text = format!("not ready\n{}\n", reasons.join("\n"));
                respond(StatusCode::SERVICE_UNAVAILABLE, TEXT, text)
            }
        },
        "/metrics" => respond(StatusCode::OK, PROMETHEUS, source.metrics()),
        "/status" => respond(StatusCode::OK, JSON, format!("{:#}\n", source.status())),
        "/explain" => explain(request.uri().query(), asked.keys.as_ref()),
        _ => {
            let text = "not found; there are / /events /metrics /livez /readyz /status /explain?key= and, by POST, /reload\n";
            respond(StatusCode::NOT_FOUND, TEXT, text)
        }
    }
}

/// For who must not ask.
pub(super) fn forbid(why: &'static str) -> Response<Answer> {
    respond(StatusCode::FORBIDDEN, TEXT, why)
}

async fn reload<B>(request: &Request<B>, reloads: Option<&Reloads>) -> Response<Answer> {
    if request.method() != Method::POST {
        let mut response = respond(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only POST\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
        return response;
    }
    let Some(reloads) = reloads else { return respond(StatusCode::NOT_FOUND, TEXT, "nothing to reload\n") };
    match reloads.ask().await {
        Ok(changes) if changes.is_empty() => respond(StatusCode::OK, TEXT, "reloaded; nothing has changed\n"),
        Ok(changes) => respond(StatusCode::OK, TEXT, format!("reloaded\n{}\n", changes.join("\n"))),
        Err(error) => {
            let text = format!("not reloaded; the old settings go on\n{error}\n");
            respond(StatusCode::BAD_REQUEST, TEXT, text)
        }
    }
}

/// Keys that are told of, in bytes: far more than a template makes. The request's own length is bounded already.
const MAX_KEY: usize = 8 * 1024;

fn explain(query: Option<&str>, keys: &dyn Explain) -> Response<Answer> {
    let field = |name: &str| {
        let fields = query.unwrap_or_default().split('&');
        fields.filter_map(|field| field.strip_prefix(name)?.strip_prefix('=')).next()
    };
    let wrong = |text: &'static str| respond(StatusCode::BAD_REQUEST, TEXT, text);
    // As forms encode it: a plus is a space. Keys need not be UTF-8.
    let key = field("key").and_then(|key| percent_decoded(&key.replace('+', " ")));
    let Some(key) = key.filter(|key| !key.is_empty() && key.len() <= MAX_KEY) else {
        return wrong("name a key, percent-encoded, of at most 8192 bytes: /explain?key=user%3A1\n");
    };
    let db = match field("db").map(str::parse) {
        None => None,
        Some(Ok(db)) => Some(db),
        Some(Err(_)) => return wrong("db is the number of a Redis db: /explain?key=user%3A1&db=0\n"),
    };
    respond(StatusCode::OK, JSON, format!("{:#}\n", keys.explain(db, &key)))
}

fn respond(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Answer> {
    reply(status, kind, Answer::Whole(Full::new(body.into())))
}

fn reply(status: StatusCode, kind: &'static str, answer: Answer) -> Response<Answer> {
    let mut response = Response::new(answer);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(CONTENT_SECURITY_POLICY, page::PAGE.policy.clone());
    response
}
