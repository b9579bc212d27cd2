//! A coordinator inside the test's process, a worker that does what the test says, and a client.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use coordinator::app::{App, Mode, Options};
use coordinator::pool::local::Parting;
use coordinator_core::Span;
use coordinator_core::state::LeaseClocks;
use muster_connect::{AuthorizedChannel, Bearer, Endpoint, Token, bootstrap_ca, read_token_file};
use muster_proto::v1;
use muster_proto::v1::coordinator_message::Kind as Heard;
use muster_proto::v1::operator_service_client::OperatorServiceClient;
use muster_proto::v1::worker_message::Kind as Said;
use muster_proto::v1::worker_service_client::WorkerServiceClient;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

/// Longer than anything here takes; a test that reaches it has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) type Operator = OperatorServiceClient<AuthorizedChannel>;

pub(crate) async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("should not have taken so long"))
}

/// A coordinator on a fresh home.
pub(crate) struct World {
    pub(crate) folder: tempfile::TempDir,
    app: Option<App>,
    pub(crate) operator: Operator,
}

impl World {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let app = app(&folder.path().join("home")).await;
        let operator = OperatorServiceClient::new(channel(&app, &admin(&app)).await);
        Self {
            folder,
            app: Some(app),
            operator,
        }
    }

    /// Ends the coordinator and starts it again on the same home.
    pub(crate) async fn restart(&mut self) {
        self.stop().await;
        let app = app(&self.folder.path().join("home")).await;
        self.operator = OperatorServiceClient::new(channel(&app, &admin(&app)).await);
        self.app = Some(app);
    }

    pub(crate) async fn stop(&mut self) {
        if let Some(app) = self.app.take() {
            within(app.stop(Parting::Keep)).await.unwrap();
        }
    }

    pub(crate) fn app(&self) -> &App {
        self.app.as_ref().unwrap()
    }

    /// Makes a token and gives it with its id.
    pub(crate) async fn token(&self, role: &str) -> (Token, String) {
        let request = v1::CreateTokenRequest {
            role: role.to_owned(),
            name: "test".to_owned(),
            ..v1::CreateTokenRequest::default()
        };
        let made = self.operator.clone().create_token(request).await.unwrap();
        let made = made.into_inner();
        (Token::parse(&made.token).unwrap(), made.id)
    }

    pub(crate) async fn channel(&self, token: &Token) -> AuthorizedChannel {
        channel(self.app(), token).await
    }

    pub(crate) async fn submit(&self, plan: &str, key: &str) -> Result<String, Status> {
        let mut operator = self.operator.clone();
        let prepare = v1::PrepareRunRequest {
            plan: "p".to_owned(),
            idempotency_key: key.to_owned(),
            ..v1::PrepareRunRequest::default()
        };
        let run = operator.prepare_run(prepare).await?.into_inner().run;
        let submit = v1::SubmitRunRequest {
            run: run.clone(),
            idempotency_key: key.to_owned(),
            plan: plan.as_bytes().to_vec(),
            ..v1::SubmitRunRequest::default()
        };
        operator.submit_run(submit).await?;
        Ok(run)
    }

    /// Submits a plan over a fresh repository with one commit.
    pub(crate) async fn submit_with_repository(&self, plan: &str, key: &str) -> String {
        let mut operator = self.operator.clone();
        let prepare = v1::PrepareRunRequest {
            plan: "p".to_owned(),
            idempotency_key: key.to_owned(),
            repository_hint: Some("site".to_owned()),
            ..v1::PrepareRunRequest::default()
        };
        let prepared = operator.prepare_run(prepare).await.unwrap().into_inner();
        let work = self.work();
        if !work.exists() {
            std::fs::create_dir(&work).unwrap();
            git(&work, &["init", "-q", "-b", "main"]);
            commit(&work, "first");
        }
        let base = git(&work, &["rev-parse", "main"]);
        self.push(
            &admin(self.app()).credential(),
            &prepared.repository,
            &format!("main:{}", prepared.source_ref),
        )
        .unwrap();
        let submit = v1::SubmitRunRequest {
            run: prepared.run.clone(),
            idempotency_key: key.to_owned(),
            plan: plan.as_bytes().to_vec(),
            repository: Some(prepared.repository),
            base: Some(base),
            ..v1::SubmitRunRequest::default()
        };
        operator.submit_run(submit).await.unwrap();
        prepared.run
    }

    /// The folder that pushes come from.
    pub(crate) fn work(&self) -> PathBuf {
        self.folder.path().join("work")
    }

    /// The hosted repository.
    pub(crate) fn hosted(&self) -> PathBuf {
        self.folder.path().join("home/repos/site.git")
    }

    /// Commits something new on the base and publishes it for a grant.
    pub(crate) fn publish(&self, grant: &v1::Grant) -> String {
        let source = grant.source.as_ref().unwrap();
        let work = self.work();
        git(&work, &["checkout", "-q", "--detach", &source.base]);
        // As workers do, it names the run and the attempt: no two attempts make the same commit.
        let made = commit_as(&work, &grant.task, &source.attempt_ref);
        self.push(
            &grant.credential,
            &source.repository,
            &format!("HEAD:{}", source.attempt_ref),
        )
        .unwrap();
        made
    }

    pub(crate) fn push(
        &self,
        credential: &str,
        repository: &str,
        refspec: &str,
    ) -> Result<(), String> {
        let mut command = self.remote(credential);
        let url = self.url(repository);
        let output = command
            .args(["push", "-q", &url, refspec])
            .output()
            .unwrap();
        if output.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    /// Lists the hosted refs as an operator sees them.
    pub(crate) fn ls_remote(&self) -> Result<String, String> {
        let mut command = self.remote(&admin(self.app()).credential());
        let output = command
            .args(["ls-remote", &self.url("site")])
            .output()
            .unwrap();
        if output.status.success() {
            Ok(String::from_utf8(output.stdout).unwrap())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    fn url(&self, repository: &str) -> String {
        let port = self.app().address().port();
        format!(
            "https://{}:{port}/git/{repository}.git",
            muster_connect::TLS_NAME
        )
    }

    fn remote(&self, credential: &str) -> Command {
        let address = self.app().address();
        let resolve = format!("{}:{}:127.0.0.1", muster_connect::TLS_NAME, address.port());
        let ca = self.folder.path().join("ca.pem");
        let here = muster_connect::AddressFile::read(self.app().home()).unwrap();
        std::fs::copy(here.ca_path, &ca).unwrap();
        let mut command = Command::new("git");
        command
            .current_dir(self.work())
            .arg("-c")
            .arg(format!(
                "http.extraHeader=authorization: Bearer {credential}"
            ))
            .arg("-c")
            .arg(format!("http.curloptResolve={resolve}"))
            .env("GIT_SSL_CAINFO", &ca)
            .env("GIT_TERMINAL_PROMPT", "0");
        command
    }

    pub(crate) async fn get(&self, run: &str) -> v1::Run {
        let request = v1::GetRunRequest {
            run: run.to_owned(),
            ..v1::GetRunRequest::default()
        };
        let response = self.operator.clone().get_run(request).await.unwrap();
        response.into_inner().run.unwrap()
    }

    /// Waits until a run is as wanted.
    pub(crate) async fn until(&self, run: &str, reached: impl Fn(&v1::Run) -> bool) -> v1::Run {
        let poll = async {
            loop {
                let found = self.get(run).await;
                if reached(&found) {
                    return found;
                }
                tokio::task::yield_now().await;
            }
        };
        within(poll).await
    }

    pub(crate) async fn cancel(&self, run: &str) {
        let request = v1::CancelRequest {
            run: run.to_owned(),
            ..v1::CancelRequest::default()
        };
        self.operator.clone().cancel(request).await.unwrap();
    }
}

fn admin(app: &App) -> Token {
    read_token_file(&app.home().join("admin.token")).unwrap()
}

async fn app(home: &Path) -> App {
    App::start(options(home)).await.unwrap()
}

/// What a coordinator on a home is started with here.
pub(crate) fn options(home: &Path) -> Options {
    Options {
        home: home.to_owned(),
        listen: ([127, 0, 0, 1], 0).into(),
        mode: Mode::Serve,
        local_slots: 0,
        clocks: LeaseClocks::default(),
        heartbeat_interval: Span::from_ms(200),
        agents: Default::default(),
        mirrors: Default::default(),
        prices: Default::default(),
        pools: Default::default(),
        executable: env!("CARGO_BIN_EXE_coordinator").into(),
    }
}

async fn channel(app: &App, token: &Token) -> AuthorizedChannel {
    let address = app.address().to_string();
    let ca = bootstrap_ca(&address, token.ca, PATIENCE).await.unwrap();
    let endpoint = Endpoint::new(&address, ca).unwrap();
    endpoint
        .authorized(Bearer::token(token).unwrap())
        .await
        .unwrap()
}

pub(crate) fn git(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new("git")
        .current_dir(folder)
        .args(["-c", "user.name=t", "-c", "user.email=t@t"])
        .args(arguments)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn commit(work: &Path, name: &str) -> String {
    commit_as(work, name, name)
}

fn commit_as(work: &Path, name: &str, message: &str) -> String {
    std::fs::write(work.join(name), name).unwrap();
    git(work, &["add", "."]);
    git(work, &["commit", "-q", "-m", message]);
    git(work, &["rev-parse", "HEAD"])
}

/// One session of a worker.
pub(crate) struct Worker {
    out: mpsc::Sender<v1::WorkerMessage>,
    stream: Streaming<v1::CoordinatorMessage>,
    beats: u64,
    reports: u64,
}

impl Worker {
    pub(crate) fn hello(name: &str) -> v1::Hello {
        v1::Hello {
            version: Some(v1::ProtocolVersion::current("test")),
            worker: name.to_owned(),
            incarnation: 1,
            host: name.to_owned(),
            slots: 16,
            agents: vec![v1::AgentOffer {
                name: "command".to_owned(),
                ..v1::AgentOffer::default()
            }],
            sandbox_levels: vec!["none".to_owned()],
            ..v1::Hello::default()
        }
    }

    /// Joins, and says that all slots are free.
    pub(crate) async fn join(world: &World, name: &str) -> Self {
        let (token, _) = world.token("worker").await;
        let mut worker = Self::open(world.channel(&token).await, Self::hello(name)).await;
        assert!(matches!(worker.hear().await.unwrap(), Heard::Welcome(_)));
        worker.beat(Vec::new()).await;
        worker
    }

    /// Opens a session; the answer to the hello is still to be heard.
    pub(crate) async fn open(channel: AuthorizedChannel, hello: v1::Hello) -> Self {
        let mut client = WorkerServiceClient::new(channel)
            .max_decoding_message_size(muster_proto::MESSAGE_BYTES_MAX);
        let (out, messages) = mpsc::channel(64);
        let kind = Some(Said::Hello(hello));
        out.send(v1::WorkerMessage { kind }).await.unwrap();
        let session = client.session(ReceiverStream::new(messages));
        let stream = within(session).await.unwrap().into_inner();
        Self {
            out,
            stream,
            beats: 0,
            reports: 0,
        }
    }

    /// Says something. A session that has ended says why when it is next heard.
    pub(crate) async fn say(&self, kind: Said) {
        let kind = Some(kind);
        drop(self.out.send(v1::WorkerMessage { kind }).await);
    }

    /// Hears the next message, or why the session ended.
    pub(crate) async fn hear(&mut self) -> Result<Heard, Status> {
        match within(self.stream.message()).await? {
            Some(message) => Ok(message.kind.unwrap()),
            None => Err(Status::ok("the session has ended")),
        }
    }

    pub(crate) async fn beat(&mut self, held_leases: Vec<u64>) {
        self.beats += 1;
        let heartbeat = v1::Heartbeat {
            seq: self.beats,
            free_slots: 16,
            held_leases,
            ..v1::Heartbeat::default()
        };
        self.say(Said::Heartbeat(heartbeat)).await;
    }

    /// Waits for grants.
    pub(crate) async fn grants(&mut self) -> Vec<v1::Grant> {
        loop {
            if let Heard::Grants(batch) = self.hear().await.unwrap() {
                return batch.grants;
            }
        }
    }

    pub(crate) async fn grant(&mut self) -> v1::Grant {
        let mut grants = self.grants().await;
        assert_eq!(grants.len(), 1);
        grants.remove(0)
    }

    /// Reports and waits for the verdicts.
    pub(crate) async fn report(
        &mut self,
        reports: Vec<(u64, Option<v1::report::Kind>)>,
    ) -> Vec<v1::ReportVerdict> {
        let reports = reports
            .into_iter()
            .map(|(lease, kind)| {
                self.reports += 1;
                v1::Report {
                    number: self.reports,
                    lease,
                    kind,
                }
            })
            .collect();
        self.say(Said::Reports(v1::ReportBatch { reports })).await;
        loop {
            if let Heard::ReportAcks(acks) = self.hear().await.unwrap() {
                return acks.acks.iter().map(v1::ReportAck::verdict).collect();
            }
        }
    }

    /// Sends notes as events of a lease and waits until they are stored; gives up to where they are.
    pub(crate) async fn notes(&mut self, of: v1::LeaseEvents, numbers: &[u64]) -> u64 {
        let events = numbers
            .iter()
            .map(|number| v1::AgentEvent {
                number: *number,
                at_ms: 0,
                kind: Some(v1::agent_event::Kind::Note(format!("note {number}"))),
            })
            .collect();
        self.events(v1::LeaseEvents { events, ..of }).await
    }

    /// Sends events of a lease and waits until they are stored; gives up to where they are.
    pub(crate) async fn events(&mut self, of: v1::LeaseEvents) -> u64 {
        let leases = vec![of];
        self.say(Said::Events(v1::EventBatch { leases })).await;
        loop {
            if let Heard::EventAcks(acks) = self.hear().await.unwrap() {
                return acks.acks[0].number;
            }
        }
    }
}

pub(crate) fn made(kind: v1::outcome::Kind) -> Option<v1::report::Kind> {
    Some(v1::report::Kind::Succeeded(v1::Succeeded {
        outcome: Some(v1::Outcome { kind: Some(kind) }),
        ..v1::Succeeded::default()
    }))
}

pub(crate) fn done() -> Option<v1::report::Kind> {
    made(v1::outcome::Kind::NoRepository(v1::Empty {}))
}

pub(crate) fn made_commit(commit: &str) -> Option<v1::report::Kind> {
    made(v1::outcome::Kind::Commit(commit.to_owned()))
}

pub(crate) fn events_of(grant: &v1::Grant) -> v1::LeaseEvents {
    v1::LeaseEvents {
        lease: grant.lease,
        run: grant.run.clone(),
        task: grant.task.clone(),
        work: grant.work,
        events: Vec::new(),
    }
}
