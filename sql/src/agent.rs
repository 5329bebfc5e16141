//! The messages on the agent's socket (`docs/design/contract.md`, section 3): lines of JSON, one request a connection,
//! any number of [`Event::Progress`], then exactly one [`Event::Result`] or [`Event::Error`].

use serde::{Deserialize, Serialize};

/// What the extension, or the command line, asks of the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Is an agent there? Answered with its version and what it serves.
    Ping,
    /// Bring a fragment from the repository into the store.
    FetchFragment {
        /// The database in whose catalog the fragment is.
        database_oid: u32,
        /// The fragment's content hash.
        hash: String,
    },
    /// Take a backup of the member.
    Backup {
        /// A free text that the backup carries.
        #[serde(default)]
        label: Option<String>,
    },
    /// Say what a recovery to `target` needs, and what is missing.
    RecoveryPlan {
        /// `latest`, a log sequence number, a time, or a backup's id.
        target: String,
    },
    /// Say from when to when every moment can be recovered.
    RecoveryWindow,
    /// Recover into a new directory and open the server there.
    Recover {
        /// As in [`Request::RecoveryPlan`].
        target: String,
        /// The new data directory.
        into: String,
        /// The port of the new server; none means the port that the backup had.
        #[serde(default)]
        port: Option<u16>,
        /// Wait until every fragment is in the new store.
        #[serde(default)]
        full: bool,
    },
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The request goes on.
    Progress {
        /// What is being done, in a word or two.
        phase: String,
        /// How much of it is done.
        done: u64,
        /// Of how much; 0 when that is not known.
        total: u64,
        /// A sentence for people.
        message: String,
    },
    /// The request is done. Last event.
    Result {
        /// What came out; its members depend on the request.
        result: serde_json::Value,
    },
    /// The request failed. Last event.
    Error {
        /// One of the sidecar's error kinds.
        kind: String,
        /// What happened.
        message: String,
        /// Facts about it.
        detail: Option<String>,
        /// What to do about it.
        hint: Option<String>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_documented_text() {
        let parse = |text: &str| serde_json::from_str::<Request>(text).unwrap();
        assert_eq!(parse(r#"{"op":"ping"}"#), Request::Ping);
        assert_eq!(
            parse(r#"{"op":"fetch_fragment","database_oid":16384,"hash":"ab"}"#),
            Request::FetchFragment { database_oid: 16384, hash: "ab".into() }
        );
        assert_eq!(parse(r#"{"op":"recovery_window"}"#), Request::RecoveryWindow);
        assert_eq!(parse(r#"{"op":"backup","label":null}"#), Request::Backup { label: None });
        assert_eq!(
            parse(r#"{"op":"recover","target":"latest","into":"/d","port":5433,"full":true}"#),
            Request::Recover { target: "latest".into(), into: "/d".into(), port: Some(5433), full: true }
        );
    }

    #[test]
    fn unknown_requests_and_members_are_refused() {
        for bad in [r#"{"op":"drop_everything"}"#, r#"{"op":"backup","lable":"x"}"#, r#"{}"#] {
            assert!(serde_json::from_str::<Request>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn events_have_the_documented_text() {
        let event = Event::Error { kind: "locked".into(), message: "m".into(), detail: None, hint: None };
        assert_eq!(
            serde_json::to_string(&event).unwrap(),
            r#"{"event":"error","kind":"locked","message":"m","detail":null,"hint":null}"#
        );
    }
}
