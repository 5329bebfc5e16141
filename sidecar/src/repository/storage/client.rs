//! Signed requests to an S3-compatible service, and what it answers. They block, as everything in the sidecar that touches files does.
//!
//! A request that fails for a passing reason (no connection, a lost one, "slow down", a service's own trouble) is tried again with growing
//! pauses, for as long as the configuration says, each time with a new signature. It may have been done although its answer was lost: whoever
//! asks for something that cannot be done twice compares.
//!
//! A request's address holds its signature, and perhaps a session's token, so it is in no message.

use super::credentials::Source;
use crate::config::S3Config;
use crate::error::{Error, ErrorKind, Result};
use rusty_s3::{Bucket as Place, Credentials, UrlStyle};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use ureq::http::{Method, Request};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};

/// How long a signature holds; longer than a request may take.
pub const VALID: Duration = Duration::from_secs(1200);
/// A connection that is silent for so long is given up.
const SILENCE: Duration = Duration::from_secs(60);
/// The longest that a request may take: a part over a line of 100 kbit/s.
const SLOWEST: Duration = Duration::from_secs(900);
/// The pauses between tries begin with this and grow to this.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Asks the service.
pub struct Client {
    agent: ureq::Agent,
    /// The bucket.
    pub place: Place,
    credentials: Source,
    retry: Duration,
}

/// What the service answered.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The object's state.
    pub etag: Option<String>,
    /// When the object was put.
    pub modified: Option<SystemTime>,
    /// Its size, as the header says.
    pub length: Option<u64>,
    /// The body.
    pub body: Vec<u8>,
    /// It was asked more than once, so an earlier asking may have been done.
    pub again: bool,
}

/// What is asked.
pub struct Ask<'a> {
    /// Completes "could not … PATH".
    pub verb: &'static str,
    /// What is asked about.
    pub path: &'a Path,
    /// How.
    pub method: Method,
    /// With which headers, besides those that the client adds.
    pub headers: Vec<(&'static str, String)>,
    /// With which content.
    pub body: Option<&'a [u8]>,
    /// How long one request may take, and how long it is tried again; none for what the configuration says.
    pub limit: Option<Duration>,
}

impl<'a> Ask<'a> {
    /// Without headers, content, or a limit of its own.
    pub fn new(verb: &'static str, path: &'a Path, method: Method) -> Self {
        Self { verb, path, method, headers: Vec::new(), body: None, limit: None }
    }
}

impl Client {
    /// A client for a bucket.
    pub fn new(config: &S3Config) -> Result<Self> {
        let wrong = |why: String| {
            Error::new(ErrorKind::Refused, format!("the bucket \"{}\" cannot be used: {why}", config.bucket))
        };
        let endpoint = match &config.endpoint {
            Some(endpoint) => endpoint.clone(),
            None => format!("https://s3.{}.amazonaws.com", config.region),
        };
        let endpoint = endpoint.parse().map_err(|error| wrong(format!("repository.s3.endpoint: {error}")))?;
        let style = if config.path_style { UrlStyle::Path } else { UrlStyle::VirtualHost };
        let place = Place::new(endpoint, style, config.bucket.clone(), config.region.clone())
            .map_err(|error| wrong(format!("repository.s3.endpoint: {error}")))?;
        let roots = match &config.ca_file {
            None => RootCerts::PlatformVerifier,
            Some(file) => {
                let pem = std::fs::read(file).map_err(|error| Error::io("read", file, error))?;
                let mut certificates = Vec::new();
                for item in parse_pem(&pem) {
                    if let PemItem::Certificate(one) = item.map_err(|error| wrong(format!("ca_file: {error}")))? {
                        certificates.push(one);
                    }
                }
                if certificates.is_empty() {
                    return Err(wrong(format!("\"{}\" holds no certificate", file.display())));
                }
                RootCerts::new_with_certs(&certificates)
            }
        };
        let tls = TlsConfig::builder()
            .root_certs(roots)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let agent = ureq::Agent::config_builder()
            .tls_config(tls)
            .https_only(!config.allow_http)
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("strata/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .timeout_connect(Some(Duration::from_secs(10)))
            .timeout_per_read(Some(SILENCE))
            .timeout_per_write(Some(SILENCE))
            .max_idle_connections_per_host(32)
            .build();
        let credentials = Source::of(config)?;
        Ok(Self { agent: agent.into(), place, credentials, retry: config.retry_timeout })
    }

    /// Asks. The answer may be that something is not there, or is not in the state that was asked for (404, 412); everything else that is not
    /// success is an error.
    pub fn ask(&self, ask: &Ask<'_>, sign: impl Fn(&Place, &Credentials) -> String) -> Result<Answer> {
        let began = Instant::now();
        let retry = ask.limit.map_or(self.retry, |limit| limit.min(self.retry));
        let mut pause = PAUSES.0;
        loop {
            let credentials = self.credentials.get()?;
            let mut tried = self.once(ask, &sign(&self.place, &credentials));
            if let Ok(answer) = &mut tried {
                answer.again = pause > PAUSES.0;
            }
            let again = match &tried {
                Ok(answer) => matches!(answer.status, 408 | 409 | 429 | 500 | 502 | 503 | 504) || is_garbled(answer),
                Err(error) => passing(error),
            };
            if !again || began.elapsed() + pause > retry {
                return judge(ask, tried);
            }
            let why = match &tried {
                Ok(answer) => format!("status {}", answer.status),
                Err(error) => reason(error),
            };
            tracing::debug!("could not {} \"{}\", trying again: {why}", ask.verb, ask.path.display());
            // Those that were cut off together do not come back together.
            let spread = began.elapsed().subsec_nanos() % 500;
            std::thread::sleep(pause * (750 + spread) / 1000);
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    fn once(&self, ask: &Ask<'_>, address: &str) -> Result<Answer, ureq::Error> {
        let mut request = Request::builder().method(ask.method.clone()).uri(address);
        for (name, value) in &ask.headers {
            request = request.header(*name, value);
        }
        let limit = ask.limit.unwrap_or(SLOWEST);
        let mut response = match ask.body {
            Some(body) => {
                let request = self.agent.configure_request(request.body(body)?).timeout_global(Some(limit)).build();
                self.agent.run(request)?
            }
            None => {
                let request = self.agent.configure_request(request.body(())?).timeout_global(Some(limit)).build();
                self.agent.run(request)?
            }
        };
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let modified = header("last-modified").and_then(|text| {
            jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(&text).ok().map(SystemTime::from)
        });
        let (etag, length) = (header("etag"), header("content-length").and_then(|text| text.parse().ok()));
        let status = response.status().as_u16();
        let body = match ask.method {
            Method::HEAD => Vec::new(),
            _ => response.body_mut().with_config().limit(u64::MAX).read_to_vec()?,
        };
        Ok(Answer { status, etag, modified, length, body, again: false })
    }
}

/// May it go otherwise the next time?
fn passing(error: &ureq::Error) -> bool {
    use ureq::Error as E;
    match error {
        // A certificate that is not trusted comes as an error of reading or writing.
        E::Io(error) => !is_tls(error),
        E::Timeout(_) | E::HostNotFound | E::ConnectionFailed | E::BodyStalled | E::Protocol(_) => true,
        _ => false,
    }
}

/// The service says that what it got is not what was sent, or not all of it.
fn is_garbled(answer: &Answer) -> bool {
    let text = String::from_utf8_lossy(&answer.body);
    answer.status == 400
        && ["RequestTimeout", "BadDigest", "IncompleteBody"]
            .iter()
            .any(|code| text.contains(&format!("<Code>{code}</Code>")))
}

fn is_tls(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::InvalidData
        || error.get_ref().is_some_and(|inner| inner.downcast_ref::<rustls::Error>().is_some())
}

/// What an error says, without the address.
fn reason(error: &ureq::Error) -> String {
    match error {
        ureq::Error::BadUri(_) | ureq::Error::RequireHttpsOnly(_) => "its address is wrong".to_owned(),
        other => other.to_string(),
    }
}

fn judge(ask: &Ask<'_>, tried: Result<Answer, ureq::Error>) -> Result<Answer> {
    let message = |why: &str| format!("could not {} \"{}\": {why}", ask.verb, ask.path.display());
    let answer = match tried {
        Ok(answer) => answer,
        Err(error) => {
            let tls = matches!(&error, ureq::Error::Io(inner) if is_tls(inner));
            let hint = match tls {
                true => "Is repository.s3.ca_file the certificate of the authority of the service?",
                false => "Check repository.s3.endpoint, the network, and that the service runs.",
            };
            return Err(Error::new(ErrorKind::Connection, message("the object storage does not answer"))
                .detail(reason(&error))
                .with_hint(hint));
        }
    };
    let text = String::from_utf8_lossy(&answer.body);
    let said = || format!("It answered with status {}{}.", answer.status, brief(&text));
    match answer.status {
        200..=299 | 412 => Ok(answer),
        404 if text.contains("NoSuchBucket") => Err(Error::new(ErrorKind::Refused, message("there is no such bucket"))
            .with_hint("Make the bucket, or correct repository.s3.bucket.")),
        404 => Ok(answer),
        301 | 307 | 308 => Err(Error::new(ErrorKind::Refused, message("the bucket is somewhere else"))
            .detail(said())
            .with_hint("Correct repository.s3.region or repository.s3.endpoint.")),
        401 | 403 => Err(Error::new(ErrorKind::Refused, message("the object storage refused it")).detail(said()).with_hint(
            "Check repository.s3.credentials_file (or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), the clock of this machine, and that the user may read, write, list and delete in the bucket.",
        )),
        501 => Err(Error::new(ErrorKind::Refused, message("the object storage does not know how")).detail(said()).with_hint(
            "Strata needs conditional writes (If-None-Match, If-Match).",
        )),
        507 => Err(Error::new(ErrorKind::DiskFull, message("the object storage has no room left")).detail(said())),
        408 | 409 | 429 | 500 | 502 | 503 | 504 => {
            Err(Error::new(ErrorKind::Connection, message("the object storage is in trouble")).detail(said()))
        }
        _ => Err(Error::new(ErrorKind::Io, message("the object storage refused it")).detail(said())),
    }
}

/// The code and message of an answer in XML.
fn brief(text: &str) -> String {
    let inner = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        rest.split_once("</").map(|(inner, _)| inner.chars().filter(|c| !c.is_control()).take(300).collect::<String>())
    };
    match (inner("Code"), inner("Message")) {
        (Some(code), Some(message)) => format!(", {code}: {}", message.trim_end_matches('.')),
        (Some(code), None) => format!(", {code}"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(status: u16, body: &str) -> Result<Answer> {
        let ask = Ask::new("read", Path::new("s3://b/x"), Method::GET);
        judge(
            &ask,
            Ok(Answer {
                status,
                etag: None,
                modified: None,
                length: None,
                body: body.as_bytes().to_vec(),
                again: false,
            }),
        )
    }

    #[test]
    fn an_answer_is_success_or_a_named_error() {
        assert!(judged(200, "").is_ok() && judged(404, "<Code>NoSuchKey</Code>").is_ok() && judged(412, "").is_ok());
        let error = judged(403, "<Error><Code>InvalidAccessKeyId</Code><Message>No.</Message></Error>").unwrap_err();
        assert_eq!(error.kind, ErrorKind::Refused);
        assert_eq!(error.detail.as_deref(), Some("It answered with status 403, InvalidAccessKeyId: No."));
        assert!(error.message.contains("s3://b/x"));
        assert!(judged(404, "<Code>NoSuchBucket</Code>").unwrap_err().message.contains("no such bucket"));
        assert_eq!(judged(503, "").unwrap_err().kind, ErrorKind::Connection);
        assert_eq!(judged(400, "").unwrap_err().kind, ErrorKind::Io);
    }
}
