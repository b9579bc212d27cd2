//! Clients that ask for a stream and do not take what is sent.

use std::time::Duration;

use tokio::sync::mpsc::Sender;
use tokio::time::timeout;
use tonic::Status;

use super::limits::STALL;
use super::places::Connection;

/// Hands a part of a stream over as soon as the client has taken what came before.
///
/// # Errors
/// The client has gone, or took nothing for too long; `way_out` tells it how to go on.
pub(super) async fn offer<T>(
    part: T,
    out: &Sender<Result<T, Status>>,
    what: &str,
    way_out: &str,
) -> Result<(), Status> {
    match timeout(STALL, out.send(Ok(part))).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Status::cancelled("the client has gone")),
        Err(_) => Err(Status::resource_exhausted(format!(
            "{what}: nothing was read for {} seconds; {way_out}",
            STALL.as_secs()
        ))),
    }
}

/// Ends a stream with a reason, as soon as its client takes it. One that takes nothing at all loses
/// its connection; one that takes other streams keeps them, and finds the reason when it comes back
/// to this one.
pub(super) async fn end<T>(
    status: Status,
    out: &Sender<Result<T, Status>>,
    farewell: Duration,
    connection: Option<&Connection>,
) {
    let mut stalled = None;
    loop {
        if let Ok(room) = timeout(farewell, out.reserve()).await {
            // One that has gone needs no reason.
            if let Ok(room) = room {
                room.send(Err(status));
            }
            return;
        }
        let Some(connection) = connection else {
            return;
        };
        if stalled
            .get_or_insert_with(|| connection.stall())
            .cut_if_deaf()
        {
            tracing::info!("a connection is cut, since its client took nothing");
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::super::places::Places;
    use super::*;

    fn gave_up() -> Status {
        Status::resource_exhausted("nothing was read")
    }

    const SOON: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn a_client_that_does_not_even_take_the_reason_is_cut_and_no_other() {
        let places = Places::new(10, 5);
        let (connection, _) = places.enter().unwrap();
        let _response = connection.respond();
        let (out, mut inbox) = mpsc::channel::<Result<(), Status>>(1);
        end(gave_up(), &out, SOON, Some(&connection)).await;
        assert!(!connection.is_cut());
        end(gave_up(), &out, SOON, Some(&connection)).await;
        assert!(connection.is_cut(), "the first reason still waits");
        assert!(inbox.recv().await.unwrap().is_err());
    }

    #[tokio::test]
    async fn a_client_that_reads_another_stream_keeps_it_and_gets_the_reason_when_it_likes() {
        let places = Places::new(10, 5);
        let (connection, _) = places.enter().unwrap();
        let _others = [connection.respond(), connection.respond()];
        let (out, mut inbox) = mpsc::channel(1);
        out.send(Ok(())).await.unwrap();
        let ending = {
            let connection = connection.clone();
            tokio::spawn(async move { end(gave_up(), &out, SOON, Some(&connection)).await })
        };
        let stalled = || connection.stalled() == 1;
        timeout(Duration::from_secs(30), async {
            while !stalled() {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
        assert!(!connection.is_cut());
        assert!(inbox.recv().await.unwrap().is_ok());
        assert!(inbox.recv().await.unwrap().is_err());
        ending.await.unwrap();
        assert_eq!(connection.stalled(), 0);
    }

    #[tokio::test]
    async fn a_client_that_forgets_too_many_streams_loses_its_connection() {
        let places = Places::new(10, 5);
        let (connection, _) = places.enter().unwrap();
        let _responses: Vec<_> = (0..100).map(|_| connection.respond()).collect();
        let mut forgotten = Vec::new();
        for count in 1..=super::super::limits::STALLED_PER_CONNECTION {
            forgotten.push(connection.stall());
            assert!(!forgotten[0].cut_if_deaf(), "{count} are forgotten");
        }
        assert!(connection.stall().cut_if_deaf());
        assert!(connection.is_cut());
    }
}
