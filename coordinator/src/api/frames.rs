//! Responses of watches as bytes: an event is encoded once, however many are sent it.
//!
//! What is made ready together lies in one buffer, whose parts are handed to every watcher's
//! connection without being copied: neither the time nor the memory of an event grows with those who
//! watch, but for what their connections add.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use futures::Stream;
use http::{HeaderMap, HeaderValue};
use hyper::body::{Body, Frame};
use muster_proto::v1::WatchRunResponse;
use prost::Message as _;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tonic::Status;

/// Bytes before each message of gRPC: whether it is compressed, and its length.
const HEAD_BYTES: usize = 5;

/// Parts of a watch that wait for its connection, each of one or more whole messages.
pub(super) type Parts = mpsc::Receiver<Result<Bytes, Status>>;

/// Some messages that follow each other in a buffer.
#[derive(Clone, Debug)]
pub(super) struct Stretch {
    made: Bytes,
    from: usize,
    to: usize,
}

impl Stretch {
    /// Names a part of `made`.
    pub(super) fn new(made: Bytes, from: usize, to: usize) -> Self {
        Self { made, from, to }
    }

    pub(super) fn bytes(&self) -> Bytes {
        self.made.slice(self.from..self.to)
    }

    /// Takes in what follows; false if that lies elsewhere, or it would get longer than `bytes_max`.
    pub(super) fn extend(&mut self, next: &Self, bytes_max: usize) -> bool {
        let follows = self.made.as_ptr() == next.made.as_ptr()
            && self.to == next.from
            && next.to - self.from <= bytes_max;
        if follows {
            self.to = next.to;
        }
        follows
    }
}

/// Appends a message.
pub(super) fn put(response: &WatchRunResponse, out: &mut BytesMut) {
    head(response.encoded_len(), out);
    response.encode_raw(out);
}

/// Appends a message that has a cursor of its own and an item that is encoded already.
pub(super) fn put_item(cursor: String, item: &[u8], out: &mut BytesMut) {
    let response = WatchRunResponse { cursor, item: None };
    head(response.encoded_len() + item.len(), out);
    response.encode_raw(out);
    out.put_slice(item);
}

/// Gives where the item of a message with this cursor begins, counted from the message's head.
pub(super) fn item_at(cursor: String) -> usize {
    HEAD_BYTES + WatchRunResponse { cursor, item: None }.encoded_len()
}

fn head(bytes: usize, out: &mut BytesMut) {
    out.reserve(HEAD_BYTES + bytes);
    out.put_u8(0);
    // No message comes near to it.
    out.put_u32(u32::try_from(bytes).unwrap_or(u32::MAX));
}

/// Reads the messages of a part.
fn read(mut part: Bytes) -> Vec<Result<WatchRunResponse, Status>> {
    let mut read = Vec::new();
    while part.len() > HEAD_BYTES {
        part.advance(1);
        let bytes = usize::try_from(part.get_u32()).unwrap_or(usize::MAX);
        let message = part.split_to(bytes.min(part.len()));
        read.push(
            WatchRunResponse::decode(message).map_err(|error| super::status::internal(&error)),
        );
    }
    read
}

/// Gives what a watch sends as messages, for those who ask in this process.
pub(super) fn messages(
    sent: Sent,
) -> impl Stream<Item = Result<WatchRunResponse, Status>> + Send + 'static {
    use futures::{StreamExt as _, stream};
    stream::unfold(sent, |mut sent| async move {
        let part = sent.parts.recv().await?;
        let messages = part.map_or_else(|status| vec![Err(status)], read);
        Some((stream::iter(messages), sent))
    })
    .flatten()
}

/// What a watch sends: the body of its response.
#[derive(Debug)]
pub(super) struct Sent {
    parts: Parts,
    /// A watch has its place until its last part was taken.
    _place: OwnedSemaphorePermit,
    is_ended: bool,
}

impl Sent {
    pub(super) fn new(parts: Parts, place: OwnedSemaphorePermit) -> Self {
        Self {
            parts,
            _place: place,
            is_ended: false,
        }
    }
}

impl Body for Sent {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.is_ended {
            return Poll::Ready(None);
        }
        let status = match self.parts.poll_recv(context) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Some(Ok(part))) => return Poll::Ready(Some(Ok(Frame::data(part)))),
            Poll::Ready(Some(Err(status))) => status,
            Poll::Ready(None) => Status::ok(""),
        };
        self.is_ended = true;
        let mut trailers = HeaderMap::new();
        if status.add_header(&mut trailers).is_err() {
            // Its text cannot be sent.
            trailers.insert("grpc-status", HeaderValue::from(status.code() as i32));
        }
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.is_ended
    }
}

#[cfg(test)]
mod tests {
    use muster_proto::v1::JournalEvent;
    use muster_proto::v1::watch_run_response::Item;

    use super::*;

    fn response(seq: u64, cursor: &str) -> WatchRunResponse {
        let event = JournalEvent {
            seq,
            text: "x".repeat(300),
            ..JournalEvent::default()
        };
        WatchRunResponse {
            cursor: cursor.to_owned(),
            item: Some(Item::Journal(event)),
        }
    }

    #[test]
    fn messages_that_lie_together_are_one_stretch_and_read_back_as_they_were() {
        let mut made = BytesMut::new();
        let mut ends = vec![0];
        for seq in 1..=3 {
            put(&response(seq, &seq.to_string()), &mut made);
            ends.push(made.len());
        }
        let made = made.freeze();
        let of = |from: usize, to: usize| Stretch::new(made.clone(), ends[from], ends[to]);
        let mut stretch = of(0, 1);
        assert!(!stretch.extend(&of(2, 3), usize::MAX), "there is a gap");
        assert!(!stretch.extend(&of(1, 2), ends[2] - 1), "it is too long");
        assert!(stretch.extend(&of(1, 2), usize::MAX));
        assert!(stretch.extend(&of(2, 3), usize::MAX));
        let read: Vec<_> = read(stretch.bytes())
            .into_iter()
            .map(Result::unwrap)
            .collect();
        assert_eq!(read, [response(1, "1"), response(2, "2"), response(3, "3")]);
    }

    #[test]
    fn an_encoded_item_can_be_given_another_cursor() {
        let mut made = BytesMut::new();
        put(&response(1, "1"), &mut made);
        let mut other = BytesMut::new();
        put_item(
            "1;7:9".to_owned(),
            &made[item_at("1".to_owned())..],
            &mut other,
        );
        let read = read(other.freeze()).remove(0).unwrap();
        assert_eq!(read, response(1, "1;7:9"));
    }
}
