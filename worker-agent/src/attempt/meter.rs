//! Tells what an agent consumed, of which each event is told once whoever is killed.

use muster_proto::v1::{Activity, ModelUsage, Usage, activity};

use super::scribe::Scribe;
use crate::agent::Meter;
use crate::agent::lines::{Line, Lines};

/// Counts events of usage in the order in which an agent's output has them.
///
/// Output can be read again from its beginning, and has the same events then: the first ones were told.
#[derive(Debug)]
pub(super) struct Count {
    seen: u64,
    /// So many were told before.
    told: u64,
}

impl Count {
    pub(super) fn new(told: u64) -> Self {
        Self { seen: 0, told }
    }

    /// Takes the next one, of a turn; tells it if it was not.
    pub(super) async fn take(&mut self, turn: u32, usage: ModelUsage, scribe: &Scribe) {
        self.seen += 1;
        if self.seen > self.told {
            let kind = Some(activity::Kind::Usage(usage));
            scribe.activity(Activity { turn, kind }).await;
        }
    }
}

/// What a program consumes that is only started and judged, read off its output.
#[derive(Debug)]
pub(crate) struct Metering {
    meter: Box<dyn Meter>,
    lines: Lines,
    count: Count,
    usage: Usage,
}

impl Metering {
    /// Begins at the beginning of the output; so many events of usage were told before.
    pub(super) fn new(meter: Box<dyn Meter>, told: u64) -> Self {
        Self {
            meter,
            lines: Lines::default(),
            count: Count::new(told),
            usage: Usage::default(),
        }
    }

    /// Takes output of the program.
    pub(super) async fn heard(&mut self, bytes: &[u8], scribe: &Scribe) {
        for line in self.lines.push(bytes) {
            let (Line::Whole(line) | Line::Overlong(line)) = line;
            if let Some(usage) = self.meter.line(&line) {
                self.take(usage, scribe).await;
            }
        }
    }

    /// Hears that there is no more of it; gives the sums.
    pub(super) async fn ended(mut self, scribe: &Scribe) -> Usage {
        if let Some(usage) = self.meter.ended() {
            self.take(usage, scribe).await;
        }
        self.usage
    }

    async fn take(&mut self, usage: ModelUsage, scribe: &Scribe) {
        add(&mut self.usage, &usage);
        // Such a program has one prompt.
        self.count.take(1, usage, scribe).await;
    }
}

/// Adds what was consumed to a sum.
pub(super) fn add(sum: &mut Usage, usage: &ModelUsage) {
    for (sum, more) in [
        (&mut sum.input_tokens, usage.input_tokens),
        (&mut sum.output_tokens, usage.output_tokens),
        (&mut sum.cached_input_tokens, usage.cached_input_tokens),
        (&mut sum.reasoning_tokens, usage.reasoning_tokens),
        (&mut sum.cost_micros, usage.cost_micros.unwrap_or_default()),
    ] {
        *sum = sum.saturating_add(more);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use muster_proto::v1::agent_event;
    use tokio::sync::{Notify, mpsc};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::attempt::launch::{Readers, pump};
    use crate::disk::Disk;
    use crate::mask::Hidden;
    use crate::spool::{OUTPUT_BYTES_MAX, Spool, SpoolReader, Taken};
    use crate::supervisor::{SpoolWriter, Stream};

    /// Takes every line as a number of tokens; at the end there is one more.
    #[derive(Debug)]
    struct Numbers;

    impl Meter for Numbers {
        fn line(&mut self, line: &[u8]) -> Option<ModelUsage> {
            let input_tokens = std::str::from_utf8(line).ok()?.parse().ok()?;
            Some(ModelUsage {
                input_tokens,
                ..ModelUsage::default()
            })
        }

        fn ended(&mut self) -> Option<ModelUsage> {
            self.line(b"100")
        }
    }

    /// What is told of a launch whose output was told up to there, with so many events of usage before:
    /// output, tokens, and the sum.
    async fn told_after(folder: &Path, position: u64, told: u64) -> (String, Vec<u64>, u64) {
        let events = folder.join("events");
        let _ = std::fs::remove_file(&events);
        let spool = Spool::open(&events, OUTPUT_BYTES_MAX).unwrap();
        let (news, _heard) = mpsc::channel(64);
        let disk = Disk::new(folder.to_owned(), folder.to_owned());
        let (scribe, writing) = Scribe::start(7, spool, news, disk, Hidden::default());
        let gone = CancellationToken::new();
        gone.cancel();
        let from = Taken {
            launch: 1,
            position,
        };
        let readers = Readers {
            heard: None,
            meter: Some(Metering::new(Box::new(Numbers), told)),
        };
        let more = Arc::new(Notify::new());
        let (_, sum) = pump(folder.to_owned(), from, more, gone, scribe, readers).await;
        writing.await.unwrap();
        let (mut output, mut tokens) = (String::new(), Vec::new());
        let mut reader = SpoolReader::new(&events);
        for event in reader.read(0, u64::MAX, usize::MAX).unwrap() {
            match event.kind {
                Some(agent_event::Kind::Output(told)) => {
                    output.push_str(std::str::from_utf8(&told.data).unwrap());
                }
                Some(agent_event::Kind::Activity(Activity {
                    turn: 1,
                    kind: Some(activity::Kind::Usage(usage)),
                })) => tokens.push(usage.input_tokens),
                other => panic!("{other:?}"),
            }
        }
        (output, tokens, sum.input_tokens)
    }

    #[tokio::test]
    async fn whoever_reads_the_output_again_tells_the_rest_of_it_and_of_what_was_consumed() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let mut writer = SpoolWriter::create(folder, u64::MAX).unwrap();
        for (stream, bytes) in [
            (Stream::Stdout, &b"1\n2"[..]),
            (Stream::Stderr, b"4\n"),
            (Stream::Stdout, b"0\nx\n"),
        ] {
            writer.append(stream, bytes);
        }
        let mut reader = crate::supervisor::OutputReader::open(folder, 0).unwrap();
        reader.next_record().unwrap();
        let first = reader.offset();
        for (position, told, output, tokens) in [
            (0, 0, "1\n24\n0\nx\n", vec![1, 20, 100]),
            (first, 1, "4\n0\nx\n", vec![20, 100]),
            (first, 0, "4\n0\nx\n", vec![1, 20, 100]),
            (first, 3, "4\n0\nx\n", vec![]),
        ] {
            let found = told_after(folder, position, told).await;
            assert_eq!(found, (output.to_owned(), tokens, 121));
        }
    }
}
