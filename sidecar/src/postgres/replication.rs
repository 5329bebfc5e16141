//! A replication connection: the few messages that receiving WAL takes.
//!
//! The client library that everything else here uses has no replication mode in its releases. `pg_receivewal` would do the receiving, but it
//! writes uncompressed files into a directory and knows nothing of a repository; the crates for replication that there are speak logical
//! replication, or bring an SQL client of their own. What is needed is small, so it is here, over the library's own protocol crate,
//! which builds the messages and does the authentication. The connection goes where [`Conninfo`] leads, without TLS like all others.
//!
//! ```text
//!   connect ─► identify, slot, history ─► start ─► receive*, status* ─► end of the timeline ─► start …
//! ```
//!
//! [`Replication::receive`] may be dropped before it is done and loses nothing.

use super::PG_EPOCH;
use super::connect::{CONNECT_TIMEOUT, Conninfo};
use crate::error::{Error, ErrorKind, Result};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use postgres_protocol::authentication::{md5_hash, sasl};
use postgres_protocol::message::frontend;
use std::time::Duration;
use strata_catalog::Lsn;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::config::Host;

/// How long a command may take to be answered.
const ANSWER: Duration = Duration::from_secs(30);
/// No message of the server is longer: WAL comes in pieces of 128 kB.
const LONGEST: usize = 64 << 20;

trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

/// An open replication connection.
pub struct Replication {
    stream: Box<dyn Duplex>,
    input: BytesMut,
}

/// What the server says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct System {
    /// PostgreSQL's system identifier.
    pub system_identifier: u64,
    /// The timeline that it writes.
    pub timeline: u32,
    /// Up to where its log is flushed.
    pub flushed: Lsn,
}

/// Where a replication slot stands; both are none before it has reserved anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The oldest position that the server keeps for it.
    pub restart: Option<Lsn>,
    /// The timeline of that.
    pub timeline: Option<u32>,
}

/// How a stream began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Started {
    /// WAL comes.
    Streaming,
    /// The timeline has nothing behind the position.
    Ended(NextTimeline),
}

/// The timeline that follows, and where it left the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextTimeline {
    /// The timeline.
    pub timeline: u32,
    /// Where it begins.
    pub begin: Lsn,
}

/// What came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// Bytes of the log from a position on.
    Wal(Lsn, Bytes),
    /// Nothing new. True: the server wants to know where we are.
    Keepalive(bool),
    /// The timeline has ended.
    TimelineEnd,
}

/// A message of the server.
struct Message {
    tag: u8,
    body: Bytes,
}

fn lost(why: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Connection, format!("the replication connection ended: {why}"))
}

impl Replication {
    /// Connects.
    pub async fn connect(conninfo: &Conninfo) -> Result<Self> {
        let failed = |why: String| {
            Error::new(ErrorKind::Connection, format!("could not connect to the server for replication: {why}"))
                .detail(format!("Tried {}.", conninfo.describe()))
        };
        let opening = async {
            let mut link = Self { stream: open(conninfo).await?, input: BytesMut::new() };
            link.log_in(conninfo).await?;
            Ok::<_, Error>(link)
        };
        match tokio::time::timeout(CONNECT_TIMEOUT * 2, opening).await {
            Ok(Ok(link)) => Ok(link),
            Ok(Err(error)) => Err(failed(error.message.clone()).with_hint(
                "The user of member.conninfo needs the attribute REPLICATION, and pg_hba.conf a line for \"replication\".",
            )),
            Err(_) => Err(failed("no answer in time".to_owned())),
        }
    }

    async fn log_in(&mut self, conninfo: &Conninfo) -> Result<()> {
        let config = conninfo.config();
        let parameters = [
            ("user", conninfo.user()),
            ("replication", "true"),
            ("application_name", config.get_application_name().unwrap_or("strata")),
            ("client_encoding", "UTF8"),
        ];
        let mut out = BytesMut::new();
        frontend::startup_message(parameters, &mut out).map_err(lost)?;
        self.send(&out).await?;
        let password = config.get_password().map(<[u8]>::to_vec);
        let needed = || password.clone().ok_or_else(|| lost("it wants a password, and the conninfo has none"));
        let mut scram: Option<sasl::ScramSha256> = None;
        loop {
            let mut message = self.message().await?;
            match message.tag {
                b'Z' => return Ok(()),
                b'R' if message.body.len() >= 4 => {
                    let mut out = BytesMut::new();
                    match message.body.get_u32() {
                        0 => {}
                        3 => frontend::password_message(&needed()?, &mut out).map_err(lost)?,
                        5 => {
                            let salt = message.body.get(..4).and_then(|salt| <[u8; 4]>::try_from(salt).ok());
                            let salt = salt.ok_or_else(|| lost("its salt is too short"))?;
                            let hash = md5_hash(conninfo.user().as_bytes(), &needed()?, salt);
                            frontend::password_message(hash.as_bytes(), &mut out).map_err(lost)?;
                        }
                        10 => {
                            let client = sasl::ScramSha256::new(&needed()?, sasl::ChannelBinding::unsupported());
                            frontend::sasl_initial_response(sasl::SCRAM_SHA_256, client.message(), &mut out)
                                .map_err(lost)?;
                            scram = Some(client);
                        }
                        11 => {
                            let client = scram.as_mut().ok_or_else(|| lost("it answered what was not asked"))?;
                            client.update(&message.body).map_err(lost)?;
                            frontend::sasl_response(client.message(), &mut out).map_err(lost)?;
                        }
                        12 => {
                            let client = scram.as_mut().ok_or_else(|| lost("it answered what was not asked"))?;
                            client.finish(&message.body).map_err(lost)?;
                        }
                        other => return Err(lost(format_args!("it wants the way of authentication {other}"))),
                    }
                    self.send(&out).await?;
                }
                _ => {}
            }
        }
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).await.map_err(lost)?;
        self.stream.flush().await.map_err(lost)
    }

    /// The next message that is not a notice. An error of the server is an error here.
    async fn message(&mut self) -> Result<Message> {
        loop {
            while let Some(message) = self.parse()? {
                match message.tag {
                    b'E' => return Err(refused(&message.body)),
                    b'N' | b'S' | b'K' | b'A' => {}
                    _ => return Ok(message),
                }
            }
            if self.stream.read_buf(&mut self.input).await.map_err(lost)? == 0 {
                return Err(lost("the server closed it"));
            }
        }
    }

    fn parse(&mut self) -> Result<Option<Message>> {
        let Some((tag, length)) = self.input.first().copied().zip(self.input.get(1..5)) else { return Ok(None) };
        let length = u32::from_be_bytes(length.try_into().unwrap_or_default()) as usize;
        if !(4..=LONGEST).contains(&length) {
            return Err(lost(format_args!("it sent a message of {length} bytes")));
        }
        if self.input.len() < length + 1 {
            self.input.reserve(length + 1 - self.input.len());
            return Ok(None);
        }
        let mut whole = self.input.split_to(length + 1);
        whole.advance(5);
        Ok(Some(Message { tag, body: whole.freeze() }))
    }

    /// Runs a command and collects its rows.
    async fn rows(&mut self, command: &str) -> Result<Vec<Vec<Option<Bytes>>>> {
        let mut out = BytesMut::new();
        frontend::query(command, &mut out).map_err(lost)?;
        self.send(&out).await?;
        tokio::time::timeout(ANSWER, self.rest_of_rows()).await.map_err(|_| lost("no answer in time"))?
    }

    async fn rest_of_rows(&mut self) -> Result<Vec<Vec<Option<Bytes>>>> {
        let mut rows = Vec::new();
        loop {
            let message = self.message().await?;
            match message.tag {
                b'Z' => return Ok(rows),
                b'D' => rows.push(columns(message.body).ok_or_else(|| lost("it sent a row that is cut off"))?),
                _ => {}
            }
        }
    }

    /// What the server is.
    pub async fn identify(&mut self) -> Result<System> {
        let rows = self.rows("IDENTIFY_SYSTEM").await?;
        let system = rows.first().and_then(|row| {
            Some(System {
                system_identifier: text(row, 0)?.parse().ok()?,
                timeline: text(row, 1)?.parse().ok()?,
                flushed: text(row, 2)?.parse().ok()?,
            })
        });
        system.ok_or_else(|| lost("it does not say what it is"))
    }

    /// A replication slot; none when there is none of the name.
    pub async fn slot(&mut self, name: &str) -> Result<Option<Slot>> {
        let rows = self.rows(&format!("READ_REPLICATION_SLOT {name}")).await?;
        let Some(row) = rows.first().filter(|row| text(row, 0).is_some()) else { return Ok(None) };
        Ok(Some(Slot {
            restart: text(row, 1).and_then(|lsn| lsn.parse().ok()),
            timeline: text(row, 2).and_then(|timeline| timeline.parse().ok()),
        }))
    }

    /// Makes a physical replication slot that keeps the WAL from now on.
    pub async fn create_slot(&mut self, name: &str) -> Result<()> {
        self.rows(&format!("CREATE_REPLICATION_SLOT {name} PHYSICAL RESERVE_WAL")).await.map(drop)
    }

    /// The history file of a timeline.
    pub async fn history(&mut self, timeline: u32) -> Result<Bytes> {
        let rows = self.rows(&format!("TIMELINE_HISTORY {timeline}")).await?;
        let content = rows.into_iter().next().and_then(|row| row.into_iter().nth(1).flatten());
        content.ok_or_else(|| lost(format_args!("it has no history of timeline {timeline}")))
    }

    /// Begins to stream a timeline from a position on.
    pub async fn start(&mut self, slot: &str, timeline: u32, from: Lsn) -> Result<Started> {
        let mut out = BytesMut::new();
        let command = format!("START_REPLICATION SLOT {slot} PHYSICAL {from} TIMELINE {timeline}");
        frontend::query(&command, &mut out).map_err(lost)?;
        self.send(&out).await?;
        let answer = async {
            let mut rows = Vec::new();
            loop {
                let message = self.message().await?;
                match message.tag {
                    b'W' => return Ok(Started::Streaming),
                    b'D' => rows.push(columns(message.body).ok_or_else(|| lost("it sent a row that is cut off"))?),
                    b'Z' => return next_timeline(&rows).map(Started::Ended),
                    _ => {}
                }
            }
        };
        tokio::time::timeout(ANSWER, answer).await.map_err(|_| lost("no answer in time"))?
    }

    /// Waits for the next piece of a stream. Dropped before it is done, it loses nothing.
    pub async fn receive(&mut self) -> Result<Received> {
        loop {
            let mut message = self.message().await?;
            match message.tag {
                b'd' => {
                    let kind = message.body.first().copied();
                    match kind {
                        // The position, the server's end, its time.
                        Some(b'w') if message.body.len() >= 25 => {
                            message.body.advance(1);
                            let start = Lsn(message.body.get_u64());
                            message.body.advance(16);
                            return Ok(Received::Wal(start, message.body));
                        }
                        Some(b'k') if message.body.len() >= 18 => {
                            return Ok(Received::Keepalive(message.body.get(17) == Some(&1)));
                        }
                        _ => {}
                    }
                }
                b'c' => return Ok(Received::TimelineEnd),
                b'C' => return Err(lost("the server shuts down")),
                _ => {}
            }
        }
    }

    /// Says up to where everything was received and is stored durably. The server may remove what is before.
    pub async fn status(&mut self, received: Lsn, stored: Lsn) -> Result<()> {
        let now = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_micros() as i64) - PG_EPOCH;
        let mut body = BytesMut::with_capacity(34);
        body.put_u8(b'r');
        body.put_u64(received.0);
        body.put_u64(stored.0);
        // Nothing is applied here.
        body.put_u64(0);
        body.put_i64(now);
        body.put_u8(0);
        let mut out = BytesMut::new();
        frontend::CopyData::new(body.freeze()).map_err(lost)?.write(&mut out);
        self.send(&out).await
    }

    /// Ends the stream of a timeline that has ended. Says which one follows.
    pub async fn finish_timeline(&mut self) -> Result<NextTimeline> {
        let mut out = BytesMut::new();
        frontend::copy_done(&mut out);
        self.send(&out).await?;
        let rows = tokio::time::timeout(ANSWER, self.rest_of_rows()).await.map_err(|_| lost("no answer in time"))??;
        next_timeline(&rows)
    }
}

fn next_timeline(rows: &[Vec<Option<Bytes>>]) -> Result<NextTimeline> {
    let next = rows.first().and_then(|row| {
        Some(NextTimeline { timeline: text(row, 0)?.parse().ok()?, begin: text(row, 1)?.parse().ok()? })
    });
    next.ok_or_else(|| lost("it does not say which timeline follows"))
}

async fn open(conninfo: &Conninfo) -> Result<Box<dyn Duplex>> {
    let config = conninfo.config();
    let port = config.get_ports().first().copied().unwrap_or(5432);
    if let Some(address) = config.get_hostaddrs().first() {
        return TcpStream::connect((*address, port)).await.map(|s| Box::new(s) as Box<dyn Duplex>).map_err(lost);
    }
    match config.get_hosts().first() {
        Some(Host::Unix(dir)) => {
            let socket = dir.join(format!(".s.PGSQL.{port}"));
            UnixStream::connect(socket).await.map(|s| Box::new(s) as Box<dyn Duplex>).map_err(lost)
        }
        Some(Host::Tcp(host)) => {
            TcpStream::connect((host.as_str(), port)).await.map(|s| Box::new(s) as Box<dyn Duplex>).map_err(lost)
        }
        None => Err(lost("the conninfo names no host")),
    }
}

/// The values of a row.
fn columns(mut body: Bytes) -> Option<Vec<Option<Bytes>>> {
    let count = body.try_get_u16().ok()?;
    (0..count)
        .map(|_| match body.try_get_i32().ok()? {
            -1 => Some(None),
            length => {
                let length = usize::try_from(length).ok()?;
                (body.len() >= length).then(|| Some(body.split_to(length)))
            }
        })
        .collect()
}

fn text(row: &[Option<Bytes>], at: usize) -> Option<&str> {
    std::str::from_utf8(row.get(at)?.as_deref()?).ok()
}

/// What the server refused, in its words.
fn refused(body: &[u8]) -> Error {
    let (mut message, mut code, mut detail) = (String::new(), String::new(), None);
    for field in body.split(|byte| *byte == 0) {
        let Some((kind, value)) = field.split_first() else { continue };
        let value = String::from_utf8_lossy(value).into_owned();
        match kind {
            b'M' => message = value,
            b'C' => code = value,
            b'D' => detail = Some(value),
            _ => {}
        }
    }
    let error = Error::new(ErrorKind::Postgres, format!("the server refused replication: {message} ({code})"));
    match detail {
        Some(detail) => error.detail(detail),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_are_cut_off_are_refused() {
        let whole = b"\0\x03\0\0\0\x02ab\xff\xff\xff\xff\0\0\0\x00";
        let row = columns(Bytes::from_static(whole)).unwrap();
        assert_eq!(row, [Some(Bytes::from_static(b"ab")), None, Some(Bytes::new())]);
        for length in 0..whole.len() {
            assert_eq!(columns(Bytes::copy_from_slice(&whole[..length])), None, "{length}");
        }
        assert_eq!(columns(Bytes::from_static(b"\0\x01\x80\0\0\0")), None);
    }

    #[test]
    fn what_the_server_refuses_is_said_in_its_words() {
        let error = refused(b"SERROR\0C42704\0Mslot \"x\" does not exist\0DMore.\0\0");
        assert_eq!(error.message, "the server refused replication: slot \"x\" does not exist (42704)");
        assert_eq!(error.detail.as_deref(), Some("More."));
    }
}
