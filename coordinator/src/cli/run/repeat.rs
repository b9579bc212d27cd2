//! What becomes of a plan that was run before and has not changed: followed, or run again, but never
//! begun twice because someone pressed a key twice.
//!
//! The idempotency key of a run is made of what it is: the plan's bytes, the commit it starts from
//! and the agents of the configuration. The first run of an unchanged plan has number 0, the next
//! number 1. So the coordinator itself decides who is first when two begin at once.

use std::io::IsTerminal as _;
use std::time::Duration;

use jiff::Timestamp;
use muster_proto::v1;
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::cli::arguments::Run;
use crate::cli::client::Client;
use crate::cli::context::Context;
use crate::cli::error::{CliError, Result};
use crate::cli::interrupt::Interrupts;
use crate::cli::show;
use crate::cli::submission::Submission;
use crate::output::one_line;

/// A run that has ended so lately is likely what is wanted.
const JUST_ENDED: Duration = Duration::from_secs(600);
/// Answers that mean nothing before we take it for a no.
const ANSWERS_MAX: usize = 3;

/// What a person wants of a plan that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// Follow the run that is there.
    Attach,
    /// Begin another one.
    Again,
    /// Ask whoever sits in front; without anyone, refuse.
    Ask,
}

impl Wish {
    pub(super) fn of(options: &Run) -> Self {
        match (options.attach, options.again) {
            (true, _) => Self::Attach,
            (_, true) => Self::Again,
            _ => Self::Ask,
        }
    }
}

/// What became of a submission.
pub(super) enum Begun {
    /// The run of this name is to be followed.
    Run(String),
    /// The person changed their mind.
    Left,
}

/// Begins a run of a plan, or finds the one that is there.
///
/// Repeating it after a lost answer begins no second run: `ours` remembers under which number.
///
/// # Errors
/// The plan is refused, or a run of it is there and nobody was told what to do about that.
pub(super) async fn begin(
    context: &Context,
    client: &Client,
    submission: &Submission<'_>,
    options: &Run,
    ours: &mut Option<u32>,
    interrupts: &mut Interrupts,
) -> Result<Begun> {
    let wish = Wish::of(options);
    loop {
        let number = submission.next_number(client).await?;
        // It was our answer that got lost.
        if let Some(ours) = ours.filter(|ours| *ours < number) {
            return Ok(Begun::Run(submission.name(client, ours).await?));
        }
        if let Some(last) = number.checked_sub(1) {
            let name = submission.name(client, last).await?;
            if wish != Wish::Again {
                let run = head(client, &name).await?;
                if is_wanted(&run, Timestamp::now()) {
                    match decide(context, &run, wish, options, interrupts).await? {
                        Answer::Attach => {
                            context.output.say(&format!("following run {name}"));
                            return Ok(Begun::Run(name));
                        }
                        Answer::Again => {}
                        Answer::Leave => return Ok(Begun::Left),
                    }
                }
            }
        }
        *ours = Some(number);
        let submitted = submission.submit(client, number).await?;
        if submitted.fresh {
            return Ok(Begun::Run(submitted.run));
        }
        // Someone else has begun it between our look and our word.
        *ours = None;
    }
}

/// Gets what is to be known of a run besides its tasks.
async fn head(client: &Client, name: &str) -> Result<v1::Run> {
    let request = v1::GetRunRequest {
        run: name.to_owned(),
        limit: 1,
        page_token: String::new(),
    };
    let response = client.operator().get_run(request).await?.into_inner();
    Ok(response.run.unwrap_or_default())
}

/// Tells whether who runs a plan again may well want this run of it: it goes on, or has just ended
/// by itself.
fn is_wanted(run: &v1::Run, now: Timestamp) -> bool {
    if !show::has_ended(run) {
        return true;
    }
    let ended = show::time(run.ended_at.as_ref());
    run.state != "cancelled" && ended.is_some_and(|at| show::between(at, now) < JUST_ENDED)
}

/// Says how a run stands, after its name.
fn standing(run: &v1::Run, now: Timestamp) -> String {
    let since = |at: Option<&prost_types::Timestamp>| {
        show::time(at).map(|at| show::duration(show::between(at, now)))
    };
    if show::has_ended(run) {
        let ago = since(run.ended_at.as_ref()).unwrap_or_default();
        match run.state.as_str() {
            "succeeded" => format!("succeeded {ago} ago"),
            state => format!("{} {ago} ago", one_line(state)),
        }
    } else {
        let begun = since(run.submitted_at.as_ref()).unwrap_or_default();
        format!("was submitted {begun} ago and has not ended")
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Attach,
    Again,
    Leave,
}

async fn decide(
    context: &Context,
    run: &v1::Run,
    wish: Wish,
    options: &Run,
    interrupts: &mut Interrupts,
) -> Result<Answer> {
    if wish == Wish::Attach {
        return Ok(Answer::Attach);
    }
    let standing = standing(run, Timestamp::now());
    let name = one_line(&run.run);
    let can_ask =
        !options.json && context.output.talk_is_terminal && std::io::stdin().is_terminal();
    if !can_ask {
        return Err(refusal(context, options, run, &standing));
    }
    context.output.complain(&format!(
        "nothing has changed since run {name}, which {standing}"
    ));
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    for _ in 0..ANSWERS_MAX {
        context
            .output
            .talk("[a]ttach to it, run it a[g]ain, or [q]uit? [a] ");
        let line = tokio::select! {
            line = lines.next_line() => line,
            _ = interrupts.next() => return Ok(Answer::Leave),
        };
        // Nobody can answer any more.
        let Ok(Some(line)) = line else {
            return Ok(Answer::Leave);
        };
        if let Some(answer) = understood(&line) {
            return Ok(answer);
        }
    }
    Ok(Answer::Leave)
}

fn understood(line: &str) -> Option<Answer> {
    match line.trim().to_lowercase().as_str() {
        "" | "a" | "attach" | "y" | "yes" => Some(Answer::Attach),
        "g" | "again" => Some(Answer::Again),
        "q" | "quit" | "n" | "no" => Some(Answer::Leave),
        _ => None,
    }
}

fn refusal(context: &Context, options: &Run, run: &v1::Run, standing: &str) -> CliError {
    let plan = options
        .plan
        .as_deref()
        .map(|plan| crate::cli::summary::quoted(&plan.to_string_lossy()))
        .unwrap_or_default();
    let (program, name) = (&context.program, one_line(&run.run));
    let error = CliError::user(format!(
        "nothing has changed since run {name}, which {standing}, so it is not begun a second time"
    ))
    .hint(format!(
        "`{program} run {plan} --attach` follows it, and ends as it ends"
    ))
    .hint(format!("`{program} run {plan} --again` begins another run"));
    if run.state == "failed" {
        error.hint(format!(
            "`{program} retry {name}` tries again only what did not succeed"
        ))
    } else {
        error
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::canned;

    #[test]
    fn a_run_that_goes_on_or_has_just_ended_is_offered() {
        let soon = canned::at(75 + 599);
        let late = canned::at(75 + 601);
        assert!(is_wanted(&canned::live(), late));
        assert!(is_wanted(&canned::succeeded(), soon));
        assert!(is_wanted(&canned::failed(), soon));
        assert!(!is_wanted(&canned::succeeded(), late));
        let cancelled = v1::Run {
            state: "cancelled".to_owned(),
            ..canned::succeeded()
        };
        assert!(!is_wanted(&cancelled, soon));
    }

    #[test]
    fn how_it_stands_is_said_in_words() {
        let now = canned::at(195);
        assert_eq!(standing(&canned::succeeded(), now), "succeeded 2m00s ago");
        assert_eq!(standing(&canned::failed(), now), "failed 2m00s ago");
        assert_eq!(
            standing(&canned::live(), now),
            "was submitted 3m15s ago and has not ended"
        );
    }

    #[test]
    fn an_answer_is_a_letter_a_word_or_nothing() {
        assert_eq!(understood("\n"), Some(Answer::Attach));
        assert_eq!(understood(" Again \n"), Some(Answer::Again));
        assert_eq!(understood("q"), Some(Answer::Leave));
        assert_eq!(understood("what?"), None);
    }
}
