//! `coordinator logs`.

use muster_proto::v1;
use muster_proto::v1::agent_event::Kind;

use super::arguments::Logs;
use super::context::{Context, Session};
use super::error::{CliError, Exit, Result};
use super::interrupt::Interrupts;
use super::{find, json};
use crate::output::harmless;

pub(crate) async fn logs(context: &Context, options: Logs) -> Result<Exit> {
    let session = context.session().await?;
    let ended = read(context, &session, &options).await;
    session.close().await;
    ended
}

async fn read(context: &Context, session: &Session, options: &Logs) -> Result<Exit> {
    let mut interrupts = Interrupts::listen()?;
    let run = find::run(&session.client, Some(&options.run)).await?;
    let request = v1::ReadLogRequest {
        run: run.clone(),
        task: options.task.clone().unwrap_or_default(),
        attempt: options.attempt.unwrap_or_default(),
        // What belongs to no task is the verify of the whole.
        verify: options.verify || options.task.is_none(),
        after: 0,
        // Without a coordinator nothing more will come.
        follow: options.follow && !session.is_own(),
    };
    let explained = |status: tonic::Status| {
        let missing = status.code() == tonic::Code::NotFound;
        let error = CliError::from(status);
        if missing {
            error.hint(format!(
                "`{} status {run}` lists its tasks and attempts",
                context.program
            ))
        } else {
            error
        }
    };
    let mut stream = session
        .client
        .operator()
        .read_log(request)
        .await
        .map_err(explained)?
        .into_inner();
    let mut screen = Screen::default();
    loop {
        let next = tokio::select! {
            next = stream.message() => next.map_err(explained)?,
            _ = interrupts.next() => return Ok(Exit::Interrupted),
        };
        let Some(response) = next else { break };
        for event in &response.events {
            if options.json {
                context.output.json(&json::agent_event(event))?;
            } else {
                print(context, &mut screen, event)?;
            }
        }
    }
    screen.end_line(context)?;
    Ok(Exit::Success)
}

/// Bytes that are a character only together with those of the next event.
#[derive(Default)]
struct Screen {
    incomplete: Vec<u8>,
    in_line: bool,
}

impl Screen {
    fn end_line(&mut self, context: &Context) -> Result<()> {
        if std::mem::take(&mut self.in_line) {
            context.output.data("")?;
        }
        Ok(())
    }

    /// Adds output and gives what is whole, harmless for a terminal.
    fn take(&mut self, data: &[u8]) -> String {
        self.incomplete.extend_from_slice(data);
        let whole = match std::str::from_utf8(&self.incomplete) {
            Ok(text) => text.len(),
            // Only an unfinished character at the end is kept back.
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            Err(_) => self.incomplete.len(),
        };
        let rest = self.incomplete.split_off(whole);
        let bytes = std::mem::replace(&mut self.incomplete, rest);
        let text = String::from_utf8_lossy(&bytes);
        let text = console::strip_ansi_codes(&text);
        let text = text.replace("\r\n", "\n").replace('\r', "\n");
        harmless(&text).into_owned()
    }
}

fn print(context: &Context, screen: &mut Screen, event: &v1::AgentEvent) -> Result<()> {
    let talk = |screen: &mut Screen, text: String| {
        screen.end_line(context)?;
        context.output.say(&context.output.talk_paint.dim(&text));
        Ok(())
    };
    match &event.kind {
        Some(Kind::Output(output)) => {
            let text = screen.take(&output.data);
            context.output.bytes(text.as_bytes())?;
            if !text.is_empty() {
                screen.in_line = !text.ends_with('\n');
            }
            Ok(())
        }
        Some(Kind::OutputTruncated(cut)) => {
            let lost = super::watch::lost(cut.bytes);
            talk(screen, format!("[{lost}]"))
        }
        Some(Kind::Phase(phase)) => talk(
            screen,
            format!("[{} {}]", harmless(&phase.name), harmless(&phase.detail)).replace(" ]", "]"),
        ),
        Some(Kind::Note(note)) => talk(screen, format!("[{}]", harmless(note))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_that_comes_in_two_pieces_is_shown_once_it_is_whole() {
        let mut screen = Screen::default();
        let (first, second) = "grün".as_bytes().split_at(3);
        assert_eq!(screen.take(first), "gr");
        assert_eq!(screen.take(second), "ün");
        assert_eq!(screen.take(b"a\xffb\n"), "a\u{fffd}b\n");
    }

    #[test]
    fn output_loses_its_power_over_the_terminal() {
        let mut screen = Screen::default();
        assert_eq!(
            screen.take(b"\x1b[31mred\x1b[0m\r\n10%\r20%\x07\n"),
            "red\n10%\n20%␇\n"
        );
    }
}
