//! Agents ask, people answer, and attempts wait, are parked and go on.

use std::sync::Arc;

use super::world::*;
use crate::command::{Report, ReportAnswer, Target};
use crate::event::{EventKind, Usage};
use crate::failure::{Failure, FailureClass};
use crate::ids::{QuestionId, RunId};
use crate::question::{Asking, Choice, ChoiceEffect};
use crate::state::{Attempt, AttemptEnd, Lease, TaskState};
use crate::time::Span;
use crate::{Command, Effect, effects, limits};

const Q1: QuestionId = QuestionId(1);
const Q2: QuestionId = QuestionId(2);

/// A worker `w` with one task `a`, at work.
fn at_work() -> (World, RunId, Lease) {
    let mut world = World::new();
    world.join("w", 1);
    let run = world.submit(plan(&["a"]));
    let lease = world.only();
    world.started(&lease);
    (world, run, lease)
}

fn attempt(world: &World, run: RunId, nth: usize) -> &Attempt {
    &world.state.task(world.key(run, "a")).unwrap().attempts()[nth]
}

fn open(world: &World) -> Vec<QuestionId> {
    let open = world.state.questions();
    open.map(|(_, question)| question.id).collect()
}

#[test]
fn a_question_pauses_the_clock_and_parks_after_a_while() {
    let mut world = World::new();
    world.join("w", 1);
    let run = world.submit(plan(&["a"]).each(|task| task.profile.resumes = true));
    let lease = world.only();
    world.started(&lease);
    world.say(&lease, converses("c1"));
    world.hello("v", 1, elsewhere(4));
    world.beat("v");
    assert_eq!(world.say(&lease, asks(1, "which?")), ReportAnswer::Recorded);
    assert_eq!(
        world.say(&lease, asks(1, "which?")),
        ReportAnswer::AlreadyRecorded
    );
    let almost = Span::from_ms(limits::PARK_AFTER.ms() - 1);
    world.pass_beating(almost, &["w", "v"]);
    assert_eq!(world.states(run), "a=leased");
    assert_eq!(world.only().id, lease.id);
    world.pass_beating(Span::from_ms(1), &["w", "v"]);
    assert_eq!(world.states(run), "a=parked");
    assert!(world.state.lease(lease.id).unwrap().revoked);
    world.say(&lease, Report::Stopped);
    world.pass_beating(Span::from_secs(3600), &["w", "v"]);
    assert_eq!(open(&world), [Q1]);
    world.act(&answers(Q1, "yes"));
    let next = world.only();
    assert_eq!(next.worker, worker("w"));
    let task = world.state.task(world.key(run, "a")).unwrap();
    let history = task.history.as_ref().unwrap();
    assert_eq!((history.counted, history.crashes), (0, 0));
    let end = AttemptEnd::Parked {
        question: Q1,
        answer: Some("yes".into()),
    };
    assert_eq!(history.attempts[0].end, Some(end));
    let past = &history.attempts[0].asked[0];
    assert_eq!((&*past.choice, &*past.by), ("yes", "me"));
    assert_eq!(*past.undelivered.as_ref().unwrap().title, *"which?");
    // The same again is harmless; another answer comes too late.
    assert_eq!(world.act(&answers(Q1, "yes")), []);
    let refused = world.refused(&answers(Q1, "no"));
    assert_eq!(refused.to_string(), "Q1 was answered before: yes by me");
    world.succeed(&next);
    assert_eq!(world.states(run), "a=succeeded");
    world.replayed();
}

#[test]
fn an_attempt_that_has_waited_for_people_all_day_is_parked_by_its_next_question() {
    let (mut world, run, lease) = at_work();
    let almost = Span::from_ms(limits::PARK_AFTER.ms() - 1);
    for number in 1..=25 {
        world.say(&lease, asks(number, "again?"));
        assert_eq!(world.states(run), "a=leased");
        world.pass_beating(almost, &["w"]);
        world.act(&answers(QuestionId(number.into()), "yes"));
        world.say(&lease, closes(number, "yes", ""));
    }
    assert!(attempt(&world, run, 0).paused >= limits::PAUSED_MAX);
    assert_eq!(
        world.say(&lease, asks(26, "again?")),
        ReportAnswer::Recorded
    );
    assert_eq!(world.states(run), "a=parked");
    assert!(world.state.lease(lease.id).unwrap().revoked);
    assert_eq!(open(&world), [QuestionId(26)]);
    world.say(&lease, Report::Stopped);
    world.act(&answers(QuestionId(26), "yes"));
    world.beat("w");
    let next = world.only();
    assert_eq!(attempt(&world, run, 1).paused, Span::ZERO);
    world.succeed(&next);
    assert_eq!(world.states(run), "a=succeeded");
    world.replayed();
}

#[test]
fn an_answer_that_an_agent_did_not_get_is_handed_over_once() {
    let (mut world, run, lease) = at_work();
    world.say(&lease, asks(1, "which?"));
    world.act(&answers(Q1, "yes"));
    world.say(
        &lease,
        Report::Failed {
            failure: Failure::new(FailureClass::RateLimit, "slow down"),
            usage: Usage::default(),
        },
    );
    let waits = |world: &World| attempt(world, run, 0).asked[0].undelivered.is_some();
    world.pass_beating(Span::from_secs(30), &["w"]);
    let next = world.only();
    world.started(&next);
    assert!(waits(&world));
    let given = Report::QuestionClosed {
        number: 1,
        choice: "yes".into(),
        by: "me".into(),
        earlier: Some(Q1),
    };
    assert_eq!(world.say(&next, given.clone()), ReportAnswer::Recorded);
    assert!(!waits(&world));
    assert_eq!(attempt(&world, run, 1).asked, []);
    assert_eq!(world.say(&next, given), ReportAnswer::AlreadyRecorded);
    let unknown = Report::QuestionClosed {
        number: 2,
        choice: "yes".into(),
        by: "me".into(),
        earlier: Some(QuestionId(99)),
    };
    assert_eq!(world.say(&next, unknown), ReportAnswer::AlreadyRecorded);
    world.replayed();
}

#[test]
fn overlapping_questions_make_one_wait() {
    let (mut world, run, lease) = at_work();
    let half = Span::from_ms(limits::PARK_AFTER.ms() / 2);
    world.say(&lease, asks(1, "one"));
    for number in 2..=49 {
        world.pass_beating(half, &["w"]);
        assert_eq!(world.states(run), "a=leased", "{number}");
        world.say(&lease, asks(number, "and?"));
        if number < 49 {
            world.act(&answers(QuestionId(u64::from(number) - 1), "yes"));
            world.say(&lease, closes(number - 1, "yes", ""));
        }
    }
    assert_eq!(world.states(run), "a=parked");
    world.replayed();
}

#[test]
fn an_answer_in_time_lets_the_attempt_go_on_with_its_clock_set_back() {
    let (mut world, run, lease) = at_work();
    world.pass_beating(Span::from_secs(500), &["w"]);
    world.say(&lease, asks(1, "?"));
    world.pass_beating(Span::from_secs(300), &["w"]);
    let events = world.act(&answers(Q1, "yes"));
    let answer = Effect::Answer {
        worker: worker("w"),
        lease: lease.id,
        question: Q1,
    };
    assert_eq!(effects(&world.state, &events), [answer]);
    let answered: Vec<_> = world.state.answered(lease.id).collect();
    assert_eq!(*answered[0].answer.as_ref().unwrap().choice, *"yes");
    world.pass_beating(Span::from_secs(200), &["w"]);
    assert_eq!(world.states(run), "a=leased");
    world.pass_beating(Span::from_secs(25), &["w"]);
    assert_eq!(world.states(run), "a=failed");
}

#[test]
fn the_clock_stands_while_any_question_waits() {
    let (mut world, run, lease) = at_work();
    world.say(&lease, asks(1, "one"));
    world.pass_beating(Span::from_secs(100), &["w"]);
    world.say(&lease, asks(2, "two"));
    world.pass_beating(Span::from_secs(100), &["w"]);
    world.act(&answers(Q1, "yes"));
    world.pass_beating(Span::from_secs(100), &["w"]);
    assert!(attempt(&world, run, 0).waiting_since.is_some());
    assert_eq!(attempt(&world, run, 0).paused, Span::ZERO);
    assert_eq!(
        world.say(&lease, closes(2, "", "agent")),
        ReportAnswer::Recorded
    );
    assert_eq!(attempt(&world, run, 0).waiting_since, None);
    assert_eq!(attempt(&world, run, 0).paused, Span::from_secs(300));
    world.say(&lease, asks(3, "three"));
    world.pass_beating(Span::from_secs(10), &["w"]);
    world.say(&lease, made("c"));
    assert_eq!(attempt(&world, run, 0).paused, Span::from_secs(310));
    world.replayed();
}

#[test]
fn an_answer_is_kept_for_its_worker_until_the_agent_has_it() {
    let (mut world, run, lease) = at_work();
    world.say(&lease, asks(4, "may I?"));
    world.act(&answers(Q1, "no"));
    world.close("w");
    world.hello("w", 1, offer(1));
    assert_eq!(world.state.answered(lease.id).count(), 1);
    assert_eq!(open(&world), []);
    assert_eq!(
        world.say(&lease, closes(4, "no", "")),
        ReportAnswer::Recorded
    );
    assert_eq!(world.state.answered(lease.id).count(), 0);
    assert_eq!(
        world.say(&lease, closes(4, "no", "")),
        ReportAnswer::AlreadyRecorded
    );
    // Its worker does not know who it was.
    let past = &attempt(&world, run, 0).asked[0];
    assert_eq!(
        (&*past.choice, &*past.by, &*past.title),
        ("no", "me", "may I?")
    );
    assert_eq!(past.undelivered, None);
    assert_eq!(world.act(&answers(Q1, "no")), []);
    let refused = world.refused(&answers(Q1, "yes"));
    assert_eq!(refused.to_string(), "Q1 was answered before: no by me");
    assert_eq!(refused.code(), "NOT_NOW");
    world.replayed();
}

#[test]
fn the_second_who_answers_is_told_who_was_first() {
    let (mut world, _, lease) = at_work();
    world.say(&lease, asks(1, "?"));
    world.act(&answers(Q1, "yes"));
    assert_eq!(world.act(&answers(Q1, "yes")), []);
    let refused = world.refused(&answers(Q1, "no"));
    assert_eq!(refused.to_string(), "Q1 was answered before: yes by me");
    let reworded = Command::Answer {
        question: Q1,
        choice: "yes".into(),
        text: "but quickly".into(),
        by: text("ann"),
    };
    assert_eq!(world.refused(&reworded).code(), "NOT_NOW");
}

#[test]
fn only_what_a_question_offers_is_an_answer() {
    let (mut world, _, lease) = at_work();
    world.say(&lease, asks(1, "?"));
    let refused = world.refused(&answers(Q1, "maybe"));
    assert_eq!(
        refused.to_string(),
        "Q1 does not offer \"maybe\": its choices are yes, no, say"
    );
    assert_eq!(refused.code(), "INVALID_ANSWER");
    assert_eq!(
        world.refused(&answers(Q1, "say")).to_string(),
        "Q1 asks for words: give a text"
    );
    let say = |bytes: usize| Command::Answer {
        question: Q1,
        choice: "say".into(),
        text: "a".repeat(bytes).into(),
        by: text("me"),
    };
    let refused = world.refused(&say(limits::ANSWER_BYTES + 1));
    assert_eq!(refused.code(), "INVALID_ANSWER");
    assert_eq!(
        refused.to_string(),
        "the text has 4097 bytes, an answer takes at most 4096"
    );
    world.act(&say(limits::ANSWER_BYTES));
    assert_eq!(
        world.refused(&answers(QuestionId(9), "yes")).code(),
        "UNKNOWN_QUESTION"
    );
}

#[test]
fn one_of_several_answers_in_words_needs_no_text() {
    let (mut world, _, lease) = at_work();
    let mut which = asking("which?");
    for choice in &mut which.choices {
        choice.effect = ChoiceEffect::Text;
    }
    let asking = Arc::new(which);
    world.say(&lease, Report::Asked { number: 1, asking });
    world.act(&answers(Q1, "no"));
    assert_eq!(world.state.answered(lease.id).count(), 1);
}

#[test]
fn a_question_that_its_agent_took_back_takes_no_answer() {
    let (mut world, _, lease) = at_work();
    world.say(&lease, asks(1, "?"));
    world.say(&lease, closes(1, "", "agent"));
    let refused = world.refused(&answers(Q1, "yes"));
    assert_eq!(
        refused.to_string(),
        "Q1 is not open any more: its agent does not wait for an answer"
    );
    // Nobody has ever said nothing.
    assert_eq!(world.refused(&answers(Q1, "")).code(), "NOT_NOW");
}

#[test]
fn what_a_policy_answered_is_told_to_a_person_who_comes_late() {
    let (mut world, _, lease) = at_work();
    world.say(&lease, asks(1, "?"));
    world.say(&lease, closes(1, "no", "policy"));
    let refused = world.refused(&answers(Q1, "yes"));
    assert_eq!(refused.to_string(), "Q1 was answered before: no by policy");
}

#[test]
fn a_question_ends_with_its_attempt() {
    for end in [made("c"), failed(FailureClass::Refusal), Report::Stopped] {
        let (mut world, run, lease) = at_work();
        world.say(&lease, asks(1, "?"));
        world.say(&lease, end);
        assert_eq!(open(&world), []);
        let past = &attempt(&world, run, 0).asked[0];
        assert_eq!((&*past.choice, &*past.by), ("", ""));
        assert_eq!(past.undelivered, None);
        assert_eq!(world.refused(&answers(Q1, "yes")).code(), "NOT_NOW");
        world.replayed();
    }
}

#[test]
fn an_answer_that_did_not_reach_its_agent_is_kept_for_the_next_attempt() {
    let (mut world, run, lease) = at_work();
    world.say(&lease, asks(1, "?"));
    world.act(&answers(Q1, "yes"));
    world.say(&lease, Report::Stopped);
    let past = &attempt(&world, run, 0).asked[0];
    assert_eq!((&*past.choice, &*past.by), ("yes", "me"));
    assert_eq!(past.undelivered, Some(Arc::new(asking("?"))));
}

#[test]
fn a_closing_that_comes_before_its_question_closes_it() {
    let (mut world, run, lease) = at_work();
    assert_eq!(
        world.say(&lease, closes(3, "no", "policy")),
        ReportAnswer::Recorded
    );
    assert_eq!(
        world.say(&lease, asks(3, "?")),
        ReportAnswer::AlreadyRecorded
    );
    assert_eq!(open(&world), []);
    assert_eq!(*attempt(&world, run, 0).asked[0].title, *"");
    world.say(&lease, asks(1, "?"));
    assert_eq!(open(&world), [Q2]);
    world.replayed();
}

#[test]
fn a_parked_task_waits_for_all_its_answers() {
    let (mut world, run, lease) = at_work();
    world.say(&lease, asks(1, "one"));
    world.pass_beating(Span::from_secs(100), &["w"]);
    world.say(&lease, asks(2, "two"));
    world.pass_beating(limits::PARK_AFTER, &["w"]);
    world.say(&lease, Report::Stopped);
    assert_eq!(open(&world), [Q1, Q2]);
    world.act(&answers(Q2, "no"));
    assert_eq!(world.states(run), "a=parked");
    assert_eq!(open(&world), [Q1]);
    let events = world.act(&answers(Q1, "yes"));
    assert!(
        effects(&world.state, &events)
            .iter()
            .all(|effect| !matches!(effect, Effect::Answer { .. }))
    );
    assert_eq!(world.states(run), "a=leased");
    let asked = &attempt(&world, run, 0).asked;
    let told: Vec<_> = asked.iter().map(|past| (past.id, &*past.choice)).collect();
    assert_eq!(told, [(Q1, "yes"), (Q2, "no")]);
    world.replayed();
}

#[test]
fn an_unanswered_question_fails_its_task_in_the_end() {
    let (mut world, run, lease) = at_work();
    world.say(&lease, asks(1, "?"));
    world.say(&lease, asks(2, "?"));
    world.pass_beating(limits::PARK_AFTER, &["w"]);
    world.say(&lease, Report::Stopped);
    world.act(&answers(Q1, "no"));
    world.close("w");
    let almost = limits::QUESTION_DEADLINE.ms() - limits::PARK_AFTER.ms() - 1;
    world.pass(Span::from_ms(almost));
    assert_eq!(world.states(run), "a=parked");
    world.pass(Span::from_ms(1));
    let TaskState::Failed { failure, .. } = world.task_state(run, "a") else {
        panic!("{}", world.states(run));
    };
    assert_eq!(failure.class, FailureClass::TimedOut);
    assert_eq!(&*failure.message, "Q2 was not answered in 7 days");
    assert_eq!(world.refused(&answers(Q2, "yes")).code(), "NOT_NOW");
}

#[test]
fn a_question_that_is_answered_does_not_park_its_task() {
    let (mut world, run, lease) = at_work();
    world.say(&lease, asks(1, "?"));
    world.act(&answers(Q1, "yes"));
    world.say(&lease, asks(2, "?"));
    world.pass_beating(Span::from_secs(100), &["w"]);
    world.say(&lease, closes(2, "no", "policy"));
    world.pass_beating(limits::PARK_AFTER, &["w"]);
    // Its own time limit has passed meanwhile.
    assert_eq!(world.states(run), "a=failed");
}

#[test]
fn a_worker_that_falls_silent_is_lost_though_its_agent_asks() {
    let (mut world, run, lease) = at_work();
    world.say(&lease, asks(1, "?"));
    world.pass(limits::PARK_AFTER);
    assert_eq!(world.states(run), "a=ready");
    let Some(AttemptEnd::Failed(failure)) = &attempt(&world, run, 0).end else {
        panic!("{:?}", attempt(&world, run, 0));
    };
    assert_eq!(failure.class, FailureClass::WorkerLost);
}

#[test]
fn whoever_asks_too_much_at_once_fails() {
    let (mut world, run, lease) = at_work();
    let most = u32::try_from(limits::OPEN_QUESTIONS).unwrap();
    for number in 1..=most {
        assert_eq!(world.say(&lease, asks(number, "?")), ReportAnswer::Recorded);
    }
    assert_eq!(world.states(run), "a=leased");
    assert_eq!(
        world.say(&lease, asks(most, "?")),
        ReportAnswer::AlreadyRecorded
    );
    assert_eq!(
        world.say(&lease, asks(most + 1, "?")),
        ReportAnswer::Recorded
    );
    let TaskState::Failed { failure, .. } = world.task_state(run, "a") else {
        panic!("{}", world.states(run));
    };
    assert_eq!(failure.class, FailureClass::AgentError);
    assert_eq!(
        &*failure.message,
        "its agent asked too much: at most 32 questions may be open, and 1024 asked in all"
    );
    assert!(world.state.lease(lease.id).unwrap().revoked);
}

#[test]
fn whoever_asks_without_end_fails() {
    let (mut world, run, lease) = at_work();
    let most = u32::try_from(limits::QUESTIONS_PER_ATTEMPT).unwrap();
    for number in 1..=most {
        let closing = closes(number, "no", "policy");
        assert_eq!(world.say(&lease, closing), ReportAnswer::Recorded);
    }
    let closing = closes(most + 1, "no", "policy");
    assert_eq!(world.say(&lease, closing), ReportAnswer::Stale);
    assert_eq!(world.states(run), "a=leased");
    world.say(&lease, asks(most + 1, "?"));
    assert_eq!(world.states(run), "a=failed");
}

#[test]
fn what_is_too_long_is_cut_and_what_cannot_be_answered_is_not_taken() {
    let (mut world, _, lease) = at_work();
    let choices = (0..100).map(|nth| Choice {
        id: nth.to_string().into(),
        label: "l".repeat(2_000).into(),
        effect: ChoiceEffect::AllowRule,
        rule: "r".repeat(2_000).into(),
    });
    let long = Asking {
        kind: "k".repeat(2_000).into(),
        title: "t".repeat(2_000).into(),
        detail: "d".repeat(20_000).into(),
        reason: "r".repeat(2_000).into(),
        folder: "f".repeat(2_000).into(),
        choices: choices.collect(),
    };
    let none = Asking {
        choices: [].into(),
        ..long.clone()
    };
    let say = |asking| Report::Asked {
        number: 1,
        asking: Arc::new(asking),
    };
    assert_eq!(world.say(&lease, say(none)), ReportAnswer::Stale);
    assert_eq!(world.say(&lease, say(long)), ReportAnswer::Recorded);
    let (_, question) = world.state.questions().next().unwrap();
    let asking = &question.asking;
    let line = limits::QUESTION_LINE_BYTES;
    for text in [
        &asking.kind,
        &asking.title,
        &asking.reason,
        &asking.folder,
        &asking.choices[0].label,
        &asking.choices[0].rule,
    ] {
        assert_eq!(text.len(), line);
    }
    assert_eq!(asking.detail.len(), limits::QUESTION_DETAIL_BYTES);
    assert_eq!(asking.choices.len(), limits::CHOICES_PER_QUESTION);
    assert_eq!(asking.choice("63").unwrap().effect, ChoiceEffect::AllowRule);
    assert_eq!(asking.choice("64"), None);
    let with = asking.choice_with(ChoiceEffect::AllowRule).unwrap();
    assert_eq!(&*with.id, "0");
    assert_eq!(asking.choice_with(ChoiceEffect::Deny), None);
}

#[test]
fn effects_have_stable_names() {
    for effect in ChoiceEffect::ALL {
        assert_eq!(ChoiceEffect::from_name(effect.name()), Some(effect));
    }
    assert_eq!(ChoiceEffect::from_name("allow"), None);
    let names = ChoiceEffect::ALL.map(ChoiceEffect::name);
    assert_eq!(
        names.join(" "),
        "allow_once allow_session allow_rule deny deny_and_stop text"
    );
}

#[test]
fn what_is_said_of_a_question_of_a_lease_that_has_ended_changes_nothing() {
    let (mut world, run, lease) = at_work();
    world.say(&lease, asks(1, "?"));
    let conversation = Report::ConversationOpened {
        id: "c".into(),
        software: "codex".into(),
    };
    world.cancel(Target::Run(run));
    for late in [asks(2, "?"), closes(1, "yes", ""), conversation.clone()] {
        assert_eq!(world.say(&lease, late), ReportAnswer::Stale);
    }
    world.say(&lease, Report::Stopped);
    for late in [asks(2, "?"), closes(1, "yes", ""), conversation.clone()] {
        assert_eq!(world.say(&lease, late), ReportAnswer::Stale);
    }
    let (mut world, _, lease) = at_work();
    world.say(&lease, made("c"));
    for late in [asks(2, "?"), closes(1, "yes", ""), conversation] {
        assert_eq!(world.say(&lease, late), ReportAnswer::AlreadyRecorded);
    }
}

#[test]
fn a_verify_asks_nothing() {
    let mut world = World::new();
    world.join("w", 1);
    world.submit(plan(&["a"]).verified());
    let lease = world.only();
    world.succeed(&lease);
    let verify = world.only();
    let conversation = Report::ConversationOpened {
        id: "c".into(),
        software: "codex".into(),
    };
    for odd in [asks(2, "?"), closes(1, "yes", ""), conversation] {
        assert_eq!(world.say(&verify, odd), ReportAnswer::Stale);
    }
}

#[test]
fn the_last_conversation_of_an_attempt_is_known_with_its_host() {
    let (mut world, run, lease) = at_work();
    let open = |id: &str| Report::ConversationOpened {
        id: id.into(),
        software: "codex 0.30".into(),
    };
    assert_eq!(world.say(&lease, open("")), ReportAnswer::Stale);
    let long = "c".repeat(limits::QUESTION_LINE_BYTES + 1);
    assert_eq!(world.say(&lease, open(&long)), ReportAnswer::Stale);
    assert_eq!(attempt(&world, run, 0).conversation, None);
    assert_eq!(world.say(&lease, open("c1")), ReportAnswer::Recorded);
    assert_eq!(world.say(&lease, open("c1")), ReportAnswer::AlreadyRecorded);
    let opened = attempt(&world, run, 0).conversation.as_ref().unwrap();
    assert_eq!((&*opened.id, &*opened.host), ("c1", "here"));
    assert_eq!(&*opened.software, "codex 0.30");
    for nth in 2..=limits::CONVERSATIONS_PER_ATTEMPT {
        let opened = open(&format!("c{nth}"));
        assert_eq!(world.say(&lease, opened), ReportAnswer::Recorded);
    }
    assert_eq!(world.say(&lease, open("another")), ReportAnswer::Stale);
    let opened = attempt(&world, run, 0).conversation.as_ref().unwrap();
    assert_eq!(&*opened.id, "c64");
    world.replayed();
}

#[test]
fn the_longest_id_that_a_conversation_may_have_is_kept_whole() {
    let (mut world, run, lease) = at_work();
    let longest = "c".repeat(limits::QUESTION_LINE_BYTES);
    let said = world.say(&lease, converses(&longest));
    assert_eq!(said, ReportAnswer::Recorded);
    let opened = attempt(&world, run, 0).conversation.as_ref().unwrap();
    assert_eq!(*opened.id, *longest);
}

#[test]
fn questions_and_their_answers_outlive_the_coordinator() {
    let (mut world, run, lease) = at_work();
    world.say(&lease, asks(1, "one"));
    world.say(&lease, asks(2, "two"));
    world.say(&lease, asks(3, "three"));
    world.act(&answers(Q1, "yes"));
    world.say(&lease, closes(2, "no", "policy"));
    let image = world.state.image();
    let mut state = crate::State::from_image(image, world.now).unwrap();
    state.start(world.now, crate::Epoch(2));
    world.state = state;
    assert_eq!(world.state.answered(lease.id).count(), 1);
    assert_eq!(open(&world), [QuestionId(3)]);
    assert_eq!(world.refused(&answers(Q2, "yes")).code(), "NOT_NOW");
    assert!(attempt(&world, run, 0).waiting_since.is_some());
    world.act(&answers(QuestionId(3), "no"));
    let numbers = world.state.answered(lease.id).map(|open| open.number);
    assert_eq!(numbers.collect::<Vec<_>>(), [1, 3]);
}

#[test]
fn questions_of_an_archived_run_are_not_known() {
    let (mut world, run, lease) = at_work();
    world.say(&lease, asks(1, "?"));
    world.say(&lease, failed(FailureClass::Refusal));
    let image = Arc::new(world.state.run_image(run).unwrap());
    let last_seq = image.run.last_seq;
    world.act(&Command::Archived { run, last_seq });
    assert_eq!(
        world.refused(&answers(Q1, "yes")).to_string(),
        "no question Q1 is known; it may be of a run that has ended"
    );
    world.act(&Command::Reload { image });
    assert_eq!(world.refused(&answers(Q1, "yes")).code(), "NOT_NOW");
    let asked = world.log.iter();
    let asked = asked.filter(|event| matches!(event.kind, EventKind::QuestionAsked { .. }));
    assert_eq!(asked.count(), 1);
}
