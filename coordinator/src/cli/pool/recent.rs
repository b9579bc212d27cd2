//! What happened to a pool lately.

use jiff::Timestamp;
use muster_proto::v1;
use serde_json::{Value, json};

use crate::cli::show;
use crate::output::{Paint, one_line};

pub(super) fn described(event: &v1::PoolEvent) -> Value {
    json!({
        "at": show::machine_time(event.at.as_ref()),
        "event": event.event,
        "allocation": (!event.allocation.is_empty()).then_some(&event.allocation),
        "text": event.text,
    })
}

/// Writes each event on a line, with how long ago it was.
pub(super) fn lines(events: &[v1::PoolEvent], now: Timestamp, paint: Paint) -> Vec<String> {
    let lines = events.iter().map(|event| {
        let since = super::ago(event.at.as_ref(), now);
        let ago = format!("{:>11}", format!("{since} ago"));
        format!("  {}  {}", paint.dim(&ago), one_line(&event.text))
    });
    lines.collect()
}
