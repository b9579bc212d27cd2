//! A coordinator in a process of its own, watched from outside, and the ways to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use muster_connect::{
    AuthorizedChannel, Bearer, CaCertificate, Endpoint, TLS_NAME, Token, bootstrap_ca,
    read_token_file,
};
use muster_proto::v1::operator_service_client::OperatorServiceClient;
use muster_proto::{MESSAGE_BYTES_MAX, v1};
use muster_tests::figures::Taken;
use muster_tests::{Cluster, Programs};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Longer than any single step takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) type Operator = OperatorServiceClient<AuthorizedChannel>;

/// A running coordinator and its home.
pub(crate) struct Site {
    cluster: Cluster,
    pub(crate) process: String,
    pub(crate) door: Arc<Door>,
}

/// All that a client needs.
pub(crate) struct Door {
    pub(crate) address: String,
    pub(crate) ca: CaCertificate,
    pub(crate) admin: Token,
    pub(crate) worker: Token,
    pub(crate) viewer: Token,
    keys: AtomicU32,
}

impl Site {
    /// Starts a coordinator on a fresh home.
    pub(crate) async fn start() -> Result<Self> {
        let programs = Programs::beside_this()?;
        let mut cluster = Cluster::new(&programs, None)?;
        cluster.serve()?;
        let process = cluster
            .coordinator()?
            .id()?
            .as_raw_nonzero()
            .get()
            .to_string();
        let admin = read_token_file(&cluster.home().join("admin.token"))?;
        let address = cluster.address();
        let ca = bootstrap_ca(&address, admin.ca, PATIENCE).await?;
        let mut operator = operator(&address, &ca, &admin).await?;
        let mut make = async |role: &str| -> Result<Token> {
            let request = v1::CreateTokenRequest {
                role: role.to_owned(),
                name: "load".to_owned(),
                ..v1::CreateTokenRequest::default()
            };
            let made = operator.create_token(request).await?.into_inner();
            Ok(Token::parse(&made.token)?)
        };
        let (worker, viewer) = (make("worker").await?, make("viewer").await?);
        let door = Door {
            address,
            ca,
            admin,
            worker,
            viewer,
            keys: AtomicU32::new(0),
        };
        Ok(Self {
            cluster,
            process,
            door: Arc::new(door),
        })
    }

    /// Kills the coordinator and starts it again on the same home.
    pub(crate) fn restart(&mut self) -> Result<()> {
        self.cluster.kill_coordinator()?;
        self.cluster.serve()?;
        let id = self.cluster.coordinator()?.id()?;
        self.process = id.as_raw_nonzero().get().to_string();
        Ok(())
    }

    pub(crate) fn taken(&self) -> Result<Taken> {
        Taken::by(&self.process).context("the coordinator has ended")
    }

    /// Fails if the coordinator has ended or has panicked anywhere.
    pub(crate) fn check(&mut self) -> Result<()> {
        let process = self.cluster.coordinator()?;
        let said = process.errors();
        ensure!(
            process.runs()?,
            "the coordinator has ended\n{}",
            last_lines(&said)
        );
        ensure!(
            !said.contains("panicked"),
            "the coordinator panicked\n{}",
            last_lines(&said)
        );
        Ok(())
    }

    /// Bytes that the coordinator has logged.
    pub(crate) fn logged(&mut self) -> Result<usize> {
        Ok(self.cluster.coordinator()?.errors().len())
    }
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(20);
    lines.get(from..).unwrap_or_default().join("\n")
}

async fn operator(address: &str, ca: &CaCertificate, token: &Token) -> Result<Operator> {
    let channel = Endpoint::new(address, ca.clone())?
        .authorized(Bearer::token(token)?)
        .await?;
    Ok(OperatorServiceClient::new(channel)
        .max_encoding_message_size(2 * MESSAGE_BYTES_MAX)
        .max_decoding_message_size(MESSAGE_BYTES_MAX))
}

impl Door {
    /// Opens a connection of its own for a token.
    pub(crate) async fn channel(&self, token: &Token) -> Result<AuthorizedChannel> {
        let endpoint = Endpoint::new(&self.address, self.ca.clone())?;
        Ok(endpoint.authorized(Bearer::token(token)?).await?)
    }

    pub(crate) async fn operator(&self) -> Result<Operator> {
        operator(&self.address, &self.ca, &self.admin).await
    }

    pub(crate) async fn viewer(&self) -> Result<Operator> {
        operator(&self.address, &self.ca, &self.viewer).await
    }

    /// Opens a TLS connection and says nothing more.
    pub(crate) async fn tls(&self, protocol: &[u8]) -> Result<TlsStream<TcpStream>> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.ca.der().clone())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![protocol.to_vec()];
        let stream = TcpStream::connect(&self.address).await?;
        let name = ServerName::try_from(TLS_NAME)?;
        Ok(TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await?)
    }

    /// Gives the number of a run's last event.
    pub(crate) async fn last_seq(&self, run: &str) -> Result<u64> {
        let get = v1::GetRunRequest {
            run: run.to_owned(),
            limit: 1,
            ..v1::GetRunRequest::default()
        };
        let found = self.viewer().await?.get_run(get).await?.into_inner().run;
        Ok(found.map_or(0, |run| run.last_seq))
    }

    /// Submits a plan without a repository and gives the run's name.
    pub(crate) async fn submit(&self, plan: String) -> Result<String, tonic::Status> {
        let mut operator = self
            .operator()
            .await
            .map_err(|error| tonic::Status::unavailable(error.to_string()))?;
        let key = format!("load-{}", self.keys.fetch_add(1, Ordering::Relaxed));
        let prepare = v1::PrepareRunRequest {
            plan: "load".to_owned(),
            idempotency_key: key.clone(),
            ..v1::PrepareRunRequest::default()
        };
        let run = operator.prepare_run(prepare).await?.into_inner().run;
        let submit = v1::SubmitRunRequest {
            run: run.clone(),
            idempotency_key: key,
            plan: plan.into_bytes(),
            plan_name: "load.yaml".to_owned(),
            ..v1::SubmitRunRequest::default()
        };
        operator.submit_run(submit).await?;
        Ok(run)
    }
}

/// A plan named `load` of tasks that wait for nothing.
pub(crate) fn wide_plan(tasks: usize, extra: &str) -> String {
    let mut plan = "name: load\ntasks:\n".to_owned();
    for task in 0..tasks {
        plan.push_str(&format!("  - {{ name: t{task}, {extra}run: 'true' }}\n"));
    }
    plan
}

/// Looks at a process until it is told to stop, and keeps the highest of everything.
pub(crate) struct Sampler {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Taken>,
}

impl Sampler {
    pub(crate) fn start(process: String) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut peak = Taken::default();
            while !seen.load(Ordering::Relaxed) {
                if let Ok(taken) = Taken::by(&process) {
                    peak.resident_kib = peak.resident_kib.max(taken.resident_kib);
                    peak.threads = peak.threads.max(taken.threads);
                    peak.descriptors = peak.descriptors.max(taken.descriptors);
                }
                std::thread::sleep(Duration::from_millis(100));
            }
            peak
        });
        Self { stop, thread }
    }

    pub(crate) fn stop(self) -> Taken {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_default()
    }
}
