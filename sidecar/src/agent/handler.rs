//! Answers to the requests on the socket.

use super::Shared;
use crate::backup::record::Job;
use crate::backup::{self, blocking};
use crate::error::{Error, ErrorKind, Result};
use crate::progress::Progress;
use crate::recovery::plan::{self, PlanRequest};
use crate::recovery::{self, RecoverRequest, fragments};
use crate::repository::Repository;
use crate::socket::{Answer, EventSender, Handler};
use serde_json::{Value, json};
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use strata_catalog::{JobKind, Request};

/// How often progress is passed on.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
/// How long a fragment of the primary may be on its way to the repository.
const ON_ITS_WAY: Duration = Duration::from_secs(15);

pub(super) struct AgentHandler {
    shared: Arc<Shared>,
}

impl AgentHandler {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Does work as a job: its progress goes to the client and to its row.
    async fn job<F>(
        &self,
        kind: JobKind,
        object: Option<String>,
        events: EventSender,
        work: impl FnOnce(Progress) -> F,
    ) -> Result<Value>
    where
        F: Future<Output = Result<Value>>,
    {
        let job = Job::start(&self.shared.conninfo, kind, object.as_deref()).await;
        let mut sinks: Vec<Box<dyn crate::progress::Sink>> = vec![Box::new(events)];
        sinks.extend(job.as_ref().map(Job::sink));
        let outcome = work(Progress::new(sinks, PROGRESS_INTERVAL)).await;
        match job {
            Some(job) => {
                let id = job.id();
                job.finish(outcome.as_ref()).await;
                outcome.map(|mut result| {
                    if let Some(members) = result.as_object_mut() {
                        members.insert("job_id".to_owned(), json!(id));
                    }
                    result
                })
            }
            None => outcome,
        }
    }

    /// Brings a fragment into the store. A standby may hear of it before the primary's agent has copied it to the repository.
    async fn fetch(&self, database_oid: u32, hash: String) -> Result<Value> {
        let begin = Instant::now();
        loop {
            let repository = self.shared.repository().await?;
            let store = self.shared.store.clone();
            match fragments::fetch_one(repository, store, database_oid, hash.clone()).await {
                Err(error)
                    if error.kind == ErrorKind::Missing && self.shared.is_standby() && begin.elapsed() < ON_ITS_WAY =>
                {
                    tokio::time::sleep(PROGRESS_INTERVAL).await;
                }
                other => return other,
            }
        }
    }

    async fn backup(&self, label: Option<String>, events: EventSender) -> Result<Value> {
        let config = self.shared.config.clone();
        let object = label.clone();
        self.job(JobKind::Backup, object, events, |progress| async move {
            let report = backup::run(&config, label.as_deref(), &progress).await?;
            if let Some(first) = report.damage.first() {
                tracing::error!("the backup {} is complete, but the server has damage: {first}", report.entry.id);
            }
            Ok(json!(report))
        })
        .await
    }

    async fn plan(&self, target: String, events: EventSender) -> Result<Value> {
        // Wrong targets are no jobs.
        let parsed = target.parse()?;
        let config = self.shared.config.clone();
        self.job(JobKind::RecoveryPlan, Some(target), events, |_| async move {
            blocking(move || {
                let request = PlanRequest { target: parsed, timeline: None, backup: None, exclusive: false };
                Ok(json!(plan::plan(&Repository::open(&config)?, &request)?))
            })
            .await
        })
        .await
    }

    async fn recover(
        &self,
        target: String,
        into: String,
        port: Option<u16>,
        full: bool,
        events: EventSender,
    ) -> Result<Value> {
        let request = RecoverRequest {
            plan: PlanRequest { target: target.parse()?, timeline: None, backup: None, exclusive: false },
            into: PathBuf::from(&into),
            store: None,
            port,
            full,
            start: true,
            keep_serving: false,
            allow_tablespaces: false,
            tablespaces: Vec::new(),
            jobs: None,
            action: crate::recovery::ending::Action::Promote,
            delta: false,
            server_options: Vec::new(),
        };
        if !request.into.is_absolute() {
            return Err(Error::new(ErrorKind::Usage, format!("\"{into}\" is not an absolute path")));
        }
        let config = self.shared.config.clone();
        self.job(JobKind::Recover, Some(format!("{target} into {into}")), events, |progress| async move {
            let outcome = recovery::recover(&config, &request, &progress).await?;
            if let Some(fetched) = &outcome.fetched {
                fetched.require_complete()?;
            }
            Ok(json!(outcome))
        })
        .await
    }
}

impl Handler for AgentHandler {
    fn handle(self: Arc<Self>, request: Request, events: EventSender) -> Answer {
        Box::pin(async move {
            match request {
                Request::Ping => Ok(json!({
                    "version": env!("CARGO_PKG_VERSION"),
                    "system": self.shared.config.system,
                    "member": self.shared.config.member.name,
                    "repository": self.shared.config.repository.root(),
                    "read_only": self.shared.config.repository.read_only,
                    "store": self.shared.store,
                    "pid": std::process::id(),
                    "backlog": self.shared.backlog(),
                    "stream": self.shared.stream(),
                })),
                Request::FetchFragment { database_oid, hash } => self.fetch(database_oid, hash).await,
                Request::Backup { label } => self.backup(label, events).await,
                Request::RecoveryWindow => {
                    let repository = self.shared.repository().await?;
                    blocking(move || Ok(json!({"timelines": recovery::window::windows(&repository)?}))).await
                }
                Request::RecoveryPlan { target } => self.plan(target, events).await,
                Request::Recover { target, into, port, full } => self.recover(target, into, port, full, events).await,
            }
        })
    }
}
