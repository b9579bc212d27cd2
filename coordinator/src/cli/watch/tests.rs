//! The live table as a person sees it, and what keys and news do to it.

use muster_proto::v1;
use muster_proto::v1::agent_event::Kind;
use muster_proto::v1::watch_run_response::Item;
use ratatui_core::backend::TestBackend;
use ratatui_core::terminal::Terminal;

use super::keys::Key;
use super::model::{Event, Focus, Model};
use super::view::{self, Theme};
use crate::cli::canned;

fn model(run: v1::Run, width: u16, height: u16) -> Model {
    Model::new(run, canned::at(20), (width, height))
}

fn says(task: &str, data: &[u8]) -> Event {
    Event::Item(Item::Agent(v1::TaskAgentEvent {
        task: task.to_owned(),
        event: Some(v1::AgentEvent {
            kind: Some(Kind::Output(v1::Output {
                stream: v1::Stream::Stdout.into(),
                data: data.to_vec(),
            })),
            ..v1::AgentEvent::default()
        }),
        ..v1::TaskAgentEvent::default()
    }))
}

fn speaking(width: u16, height: u16) -> Model {
    let mut model = model(canned::live(), width, height);
    for line in 0..30 {
        model.update(says(
            "api",
            format!("editing src/api-{line}.rs\n").as_bytes(),
        ));
    }
    model.update(says("docs", "checking links 日本語\n".as_bytes()));
    model
}

fn press(model: &mut Model, keys: &[Key]) {
    for key in keys {
        model.update(Event::Key(*key));
    }
}

fn typed(model: &mut Model, text: &str) {
    for letter in text.chars() {
        model.update(Event::Key(Key::Char(letter)));
    }
}

/// What a window shows, without its quotes and trailing blanks.
fn seen(model: &Model) -> String {
    let (width, height) = model.size;
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal
        .draw(|frame| {
            let area = frame.area();
            view::draw(model, Theme { colours: false }, area, frame.buffer_mut());
        })
        .unwrap();
    let buffer = terminal.backend().buffer();
    let mut text = String::new();
    for y in 0..height {
        let (mut row, mut x) = (String::new(), 0);
        while x < width {
            let symbol = buffer[(x, y)].symbol();
            row.push_str(symbol);
            // A wide character hides the cell behind it.
            x += u16::try_from(console::measure_text_width(symbol).max(1)).unwrap();
        }
        text.push_str(row.trim_end());
        text.push('\n');
    }
    text
}

fn many(count: usize) -> v1::Run {
    let mut run = canned::live();
    run.tasks = (0..count)
        .map(|number| {
            let name = format!("part-{number:05}");
            match number % 50 {
                0 => v1::Task {
                    attempts: vec![canned::attempt(1, "running", 10, None)],
                    ..canned::task(&name, "leased")
                },
                1..30 => v1::Task {
                    attempts: vec![canned::attempt(1, "succeeded", 1, Some(9))],
                    ..canned::task(&name, "succeeded")
                },
                _ => canned::task(&name, "blocked"),
            }
        })
        .collect();
    run
}

fn explanation(model: &mut Model) {
    let said = v1::ExplainTaskResponse {
        state: "leased".to_owned(),
        reasons: vec!["it runs on laptop-0, and has said something 2 s ago".to_owned()],
        remedies: vec!["wait for it".to_owned()],
        ..v1::ExplainTaskResponse::default()
    };
    model.update(Event::Explained("api".to_owned(), said));
}

#[test]
fn the_table_at_80_columns() {
    insta::assert_snapshot!(seen(&speaking(80, 24)));
}

#[test]
fn the_details_at_80_columns() {
    let mut model = speaking(80, 24);
    press(&mut model, &[Key::Enter]);
    assert_eq!(model.to_explain(), Some("api"));
    explanation(&mut model);
    assert_eq!(model.to_explain(), None);
    insta::assert_snapshot!(seen(&model));
}

#[test]
fn a_tiny_window_shows_what_matters_most() {
    let mut model = speaking(40, 10);
    let list = seen(&model);
    press(&mut model, &[Key::Enter]);
    explanation(&mut model);
    insta::assert_snapshot!(format!("{list}--------\n{}", seen(&model)));
}

#[test]
fn a_large_window_is_used() {
    let mut model = speaking(200, 60);
    press(&mut model, &[Key::Enter]);
    explanation(&mut model);
    insta::assert_snapshot!(seen(&model));
}

#[test]
fn a_failed_run_leads_with_its_failure() {
    let mut model = model(canned::failed(), 80, 24);
    press(&mut model, &[Key::Enter]);
    insta::assert_snapshot!(seen(&model));
}

#[test]
fn the_help_names_keys_and_signs() {
    let mut model = model(canned::live(), 80, 24);
    typed(&mut model, "?");
    insta::assert_snapshot!(seen(&model));
    typed(&mut model, "x");
    assert!(seen(&model).contains("add-auth"));
}

#[test]
fn the_header_says_that_the_coordinator_is_away_and_for_how_long() {
    let mut model = speaking(80, 24);
    model.update(Event::Away);
    model.update(Event::Tick(canned::at(32)));
    model.update(Event::Away);
    let text = seen(&model);
    assert!(
        text.contains("! the coordinator is away for 12.0s; trying again"),
        "{text}"
    );
    model.stale = false;
    model.update(Event::Back);
    assert!(model.stale, "what happened meanwhile is asked for");
    assert!(!seen(&model).contains("away"));
}

#[test]
fn arrows_and_letters_move_within_the_list_and_no_further() {
    let mut model = model(many(100), 80, 24);
    press(&mut model, &[Key::Down, Key::Char('j'), Key::Up]);
    assert_eq!(model.at, 1);
    press(&mut model, &[Key::PageDown]);
    assert_eq!((model.at, model.top), (20, 1));
    press(&mut model, &[Key::End, Key::Down]);
    assert_eq!((model.at, model.top), (99, 80));
    press(&mut model, &[Key::PageUp]);
    assert_eq!((model.at, model.top), (80, 80));
    press(&mut model, &[Key::Home, Key::Char('k')]);
    assert_eq!((model.at, model.top), (0, 0));
}

#[test]
fn a_filter_fits_names_and_states() {
    let mut model = model(many(100), 80, 24);
    typed(&mut model, "/RUNNING");
    assert_eq!(model.focus, Focus::Filter);
    let text = seen(&model);
    assert!(text.contains("2 of 100 fit \"RUNNING\""), "{text}");
    assert!(text.contains("filter: RUNNING"), "{text}");
    press(&mut model, &[Key::Escape]);
    assert_eq!(model.listed.len(), 100);
    typed(&mut model, "/00007q");
    assert!(!model.leaving, "a letter of a filter is no command");
    press(&mut model, &[Key::Backspace, Key::Enter]);
    assert_eq!(
        model.selected().map(|task| task.name.as_str()),
        Some("part-00007")
    );
    typed(&mut model, "/nothing");
    assert!(model.selected().is_none());
    let text = seen(&model);
    assert!(text.contains("no task fits"), "{text}");
    press(
        &mut model,
        &[Key::Enter, Key::Enter, Key::Down, Key::Escape],
    );
    assert_eq!(model.listed.len(), 100);
}

#[test]
fn a_person_stays_on_a_task_that_moves_in_the_list() {
    let mut run = canned::live();
    let mut model = model(run.clone(), 80, 24);
    let at = |model: &Model| model.selected().map(|task| task.name.clone());
    press(&mut model, &[Key::End]);
    let chosen = at(&model);
    assert_eq!(chosen.as_deref(), Some("schema"));
    for task in &mut run.tasks {
        task.state = if task.name == "schema" {
            "failed"
        } else {
            "blocked"
        }
        .to_owned();
    }
    model.update(Event::Run(Box::new(run)));
    assert_eq!(at(&model), chosen);
    assert_eq!(model.at, 0);
    typed(&mut model, "o");
    assert_eq!(at(&model), chosen);
}

#[test]
fn a_window_may_shrink_and_grow_while_details_are_open() {
    let mut model = model(many(300), 80, 24);
    press(&mut model, &[Key::End, Key::Enter]);
    for (width, height) in [
        (1, 1),
        (5, 2),
        (20, 5),
        (40, 10),
        (300, 100),
        (80, 24),
        (0, 0),
    ] {
        model.update(Event::Resized(width, height));
        if width > 0 {
            drop(seen(&model));
        }
        assert!(model.top <= model.at);
        assert_eq!(
            model.selected().map(|task| task.name.as_str()),
            Some("part-00279")
        );
    }
}

#[test]
fn details_scroll_back_and_return() {
    let mut model = speaking(80, 24);
    press(&mut model, &[Key::Enter, Key::Tab, Key::Home]);
    let text = seen(&model);
    assert!(text.contains("editing src/api-0.rs"), "{text}");
    assert!(text.contains("lines below"), "{text}");
    press(&mut model, &[Key::End]);
    assert!(seen(&model).contains("editing src/api-29.rs"));
    press(&mut model, &[Key::Escape]);
    assert!(!model.detail);
    press(&mut model, &[Key::Interrupt]);
    assert!(model.leaving);
}

#[test]
fn hostile_words_stay_in_their_cells() {
    let mut model = model(canned::live(), 80, 24);
    model.update(says(
        "api",
        b"\x1b[2J\x1b[1;1H\x1b]52;c;aGk=\x07\x9b31m\xe2\x80\xae evil \x00\x08 \xff\xfe\n",
    ));
    let zalgo = format!("e{}\n", "\u{301}".repeat(3000));
    model.update(says("docs", zalgo.as_bytes()));
    let wide = format!("{}\n", "日本".repeat(200));
    model.update(says("docs", wide.as_bytes()));
    press(&mut model, &[Key::Enter]);
    let text = seen(&model);
    assert!(
        !text.contains(|letter: char| letter.is_control() && letter != '\n'),
        "{text:?}"
    );
    assert!(!text.contains('\u{202e}'), "{text:?}");
    assert!(text.contains("evil"), "{text}");
    assert!(
        text.lines()
            .all(|line| console::measure_text_width(line) <= 80)
    );
}

#[test]
fn ten_thousand_tasks_cost_only_what_is_seen() {
    let run = many(10_000);
    let mut model = model(run.clone(), 120, 40);
    let began = std::time::Instant::now();
    for _ in 0..20 {
        press(&mut model, &[Key::PageDown]);
        drop(seen(&model));
    }
    model.update(Event::Run(Box::new(run)));
    // Unoptimised, on a machine that does other things as well.
    let took = began.elapsed();
    assert!(took < std::time::Duration::from_secs(5), "{took:?}");
    assert_eq!(model.listed.len(), 10_000);
}
