//! Following a run through broken connections: every item once, in order.

use std::time::Duration;

use muster_proto::v1;
use muster_proto::v1::watch_run_response::Item;
use tokio::sync::mpsc;
use tonic::Code;

use super::client::{Client, Whereabouts};
use super::error::{CliError, Kind, Result};

/// Items that wait for a slow terminal; the coordinator waits behind them.
const ITEMS_WAITING_MAX: usize = 256;
/// How long a coordinator that restarts may be away before a follower gives up.
const AWAY_MAX: Duration = Duration::from_secs(120);
const PAUSE_FIRST: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// What to follow.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    pub(crate) run: String,
    /// Start after this journal event.
    pub(crate) after_seq: u64,
    /// Start here instead, unless empty.
    pub(crate) cursor: String,
    pub(crate) agent_events: bool,
    pub(crate) follow_after_end: bool,
}

impl Wish {
    /// Follows a run from its first event to its end.
    pub(crate) fn whole(run: &str, agent_events: bool) -> Self {
        Self {
            run: run.to_owned(),
            after_seq: 0,
            cursor: String::new(),
            agent_events,
            follow_after_end: false,
        }
    }
}

/// Something that has happened, or that stands between us and the coordinator.
pub(crate) enum News {
    Item {
        /// Sequence number of the last journal event.
        seq: u64,
        cursor: String,
        item: Box<Item>,
    },
    /// The connection broke; it is being taken up again.
    Away,
    /// The coordinator is back, perhaps elsewhere; older connections are of no use.
    Back(Box<Client>),
}

/// Starts to follow. The receiver ends with the run, or after an error that will not pass.
///
/// A coordinator that restarts is waited for; `whereabouts` is looked at anew each time, since it
/// may come back elsewhere.
pub(crate) fn start(
    client: Client,
    whereabouts: Whereabouts,
    wish: Wish,
) -> mpsc::Receiver<Result<News>> {
    let (sender, receiver) = mpsc::channel(ITEMS_WAITING_MAX);
    // It ends by itself once the receiver is dropped.
    tokio::spawn(async move {
        if let Err(error) = follow(client, &whereabouts, wish, &sender).await {
            drop(sender.send(Err(error)).await);
        }
    });
    receiver
}

async fn follow(
    mut client: Client,
    whereabouts: &Whereabouts,
    mut wish: Wish,
    sender: &mpsc::Sender<Result<News>>,
) -> Result<()> {
    let mut seq = wish.after_seq;
    let mut patience = Patience::new();
    loop {
        let before = wish.cursor.clone();
        let error = match once(&mut client, &mut wish, &mut seq, sender).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if sender.is_closed() {
            return Ok(());
        }
        if wish.cursor != before {
            patience.restore();
        }
        if may_pass(&error) && patience.is_first() && sender.send(Ok(News::Away)).await.is_err() {
            return Ok(());
        }
        client = patience.reconnect(error, whereabouts).await?;
        let again = Box::new(client.clone());
        if sender.send(Ok(News::Back(again))).await.is_err() {
            return Ok(());
        }
    }
}

/// How long a coordinator that is away is waited for, and how often it is asked for.
#[derive(Debug)]
pub(crate) struct Patience {
    away_since: Option<tokio::time::Instant>,
    pause: Duration,
}

impl Patience {
    pub(crate) const fn new() -> Self {
        Self {
            away_since: None,
            pause: PAUSE_FIRST,
        }
    }

    /// Takes note that the coordinator has said something.
    pub(crate) const fn restore(&mut self) {
        *self = Self::new();
    }

    /// Tells whether the coordinator has only now been found to be away.
    pub(crate) const fn is_first(&self) -> bool {
        self.away_since.is_none()
    }

    /// Connects anew once that may help.
    ///
    /// # Errors
    /// The given one, if trying again cannot help or has not helped for too long.
    pub(crate) async fn reconnect(
        &mut self,
        error: CliError,
        whereabouts: &Whereabouts,
    ) -> Result<Client> {
        if !may_pass(&error) {
            return Err(error);
        }
        let since = *self
            .away_since
            .get_or_insert_with(tokio::time::Instant::now);
        loop {
            if since.elapsed() > AWAY_MAX {
                return Err(error);
            }
            tokio::time::sleep(self.pause).await;
            self.pause = (self.pause * 2).min(PAUSE_MAX);
            if let Ok(client) = Client::connect(whereabouts).await {
                return Ok(client);
            }
        }
    }
}

async fn once(
    client: &mut Client,
    wish: &mut Wish,
    seq: &mut u64,
    sender: &mpsc::Sender<Result<News>>,
) -> Result<()> {
    let request = v1::WatchRunRequest {
        run: wish.run.clone(),
        cursor: wish.cursor.clone(),
        agent_events: wish.agent_events,
        follow_after_end: wish.follow_after_end,
        after_seq: if wish.cursor.is_empty() { *seq } else { 0 },
    };
    let mut stream = client.operator().watch_run(request).await?.into_inner();
    while let Some(response) = stream.message().await? {
        let Some(item) = response.item else { continue };
        if let Item::Journal(event) = &item {
            *seq = event.seq;
        }
        wish.cursor.clone_from(&response.cursor);
        let news = News::Item {
            seq: *seq,
            cursor: response.cursor,
            item: Box::new(item),
        };
        if sender.send(Ok(news)).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Tells whether trying again may help: the coordinator is away, or the stream was cut.
pub(crate) fn may_pass(error: &CliError) -> bool {
    error.kind() == Kind::Connection && error.status() != Some(Code::Unauthenticated)
        || matches!(
            error.status(),
            Some(Code::Unknown | Code::Cancelled | Code::Internal)
        )
}
