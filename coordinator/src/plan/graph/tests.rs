use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use proptest::prelude::*;

use super::*;

fn read(name: &str) -> Plan {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/plans")
        .join(name);
    let bytes = std::fs::read(&path).unwrap();
    crate::plan::parse(name, &bytes, &BTreeMap::new()).unwrap()
}

/// Makes tasks `t0`, `t1`, … of what they depend on.
fn tasks(depends_on: &[Vec<usize>]) -> Vec<(String, Vec<String>)> {
    depends_on
        .iter()
        .enumerate()
        .map(|(task, on)| {
            let on = on.iter().map(|on| format!("t{on}")).collect();
            (format!("t{task}"), on)
        })
        .collect()
}

fn graph(tasks: &[(String, Vec<String>)]) -> Graph<'_> {
    let nodes = tasks
        .iter()
        .map(|(name, on)| Node {
            name,
            depends_on: on.iter().map(String::as_str).collect(),
            state: None,
        })
        .collect();
    Graph::new("p", nodes)
}

/// Eighteen features, each designed, built by three and reviewed; six are integrated at a time.
fn hundred() -> Vec<(String, Vec<String>)> {
    let mut tasks = vec![("plan-release".to_owned(), vec![])];
    let mut add = |name: String, on: &[String]| {
        tasks.push((name.clone(), on.to_vec()));
        name
    };
    let mut integrated = Vec::new();
    for group in 0..3 {
        let mut reviewed = Vec::new();
        for feature in 0..6 {
            let feature = format!("feature-{}", group * 6 + feature + 1);
            let design = add(format!("{feature}-design"), &["plan-release".to_owned()]);
            let parts = ["api", "ui", "docs"]
                .map(|part| add(format!("{feature}-{part}"), std::slice::from_ref(&design)));
            reviewed.push(add(format!("{feature}-review"), &parts));
        }
        reviewed.extend(integrated.last().cloned());
        integrated.push(add(format!("integrate-{}", group + 1), &reviewed));
    }
    for check in ["load-test", "security", "packages", "translations"] {
        add(check.to_owned(), &integrated[2..]);
    }
    let checks = ["load-test", "security", "packages", "translations"].map(str::to_owned);
    add("announce".to_owned(), &checks);
    add("clean-up".to_owned(), &["plan-release".to_owned()]);
    tasks
}

/// Five layers of twenty tasks, each after some of the layer before and one after all of it.
fn tangle() -> Vec<Vec<usize>> {
    (0..100_usize)
        .map(|task| match (task / 20, task % 20) {
            (0, _) => vec![],
            (_, 19) => (task / 20 * 20 - 20..task / 20 * 20).collect(),
            (layer, place) => {
                let below = (layer - 1) * 20;
                let next = below + (place + 1) % 20;
                [below + place]
                    .into_iter()
                    .chain((place % 3 == 0).then_some(next))
                    .collect()
            }
        })
        .collect()
}

#[test]
fn graphs_are_drawn_as_text_dot_mermaid_and_svg() {
    let plan = read("first.yaml");
    let graph = Graph::of(&plan);
    insta::assert_snapshot!(format!(
        "{}\n{}\n{}\n{}",
        graph.text(WIDTH_DEFAULT),
        graph.dot(),
        graph.mermaid(),
        graph.svg().unwrap()
    ));
}

#[test]
fn a_hundred_tasks_are_readable_at_80_columns() {
    let usual = hundred();
    assert_eq!(usual.len(), 100);
    let text = graph(&usual).text(80);
    // What no drawing makes simple has its edges in words and keeps to its columns.
    let tangled = tasks(&tangle());
    let tangled = graph(&tangled).text(80);
    for line in text.lines().chain(tangled.lines()) {
        assert!(console::measure_text_width(line) <= 80, "{line}");
    }
    insta::assert_snapshot!(text);
    let words = "t39  after t5, t6, t7, t8 and 16 more";
    assert!(
        tangled.contains(words) || tangled.contains("t39  after"),
        "{tangled}"
    );
}

#[test]
fn a_run_is_drawn_with_its_states() {
    let mut nodes = vec![
        Node {
            name: "schema",
            depends_on: vec![],
            state: None,
        },
        Node {
            name: "api",
            depends_on: vec!["schema"],
            state: None,
        },
        Node {
            name: "docs",
            depends_on: vec!["schema"],
            state: None,
        },
        Node {
            name: "report",
            depends_on: vec!["api", "docs"],
            state: None,
        },
    ];
    let states = [
        ("succeeded", "✓"),
        ("failed", "✗"),
        ("running", "▸"),
        ("skipped", "↷"),
    ];
    for (node, (word, sign)) in nodes.iter_mut().zip(states) {
        node.state = Some(NodeState { word, sign });
    }
    let graph = Graph::new("run-1", nodes);
    insta::assert_snapshot!(format!(
        "{}\n{}\n{}",
        graph.text(80),
        graph.dot(),
        graph.svg().unwrap()
    ));
}

#[test]
fn names_that_mean_something_to_a_language_are_only_names() {
    let nodes = vec![Node {
        name: "a\"]; x -> y <script>",
        depends_on: vec![],
        state: None,
    }];
    let graph = Graph::new("<&>", nodes);
    assert!(
        graph.dot().contains(r#"label="a\"]; x -> y <script>""#),
        "{}",
        graph.dot()
    );
    assert!(graph.mermaid().contains("a#quot;]"), "{}", graph.mermaid());
    let svg = graph.svg().unwrap();
    assert!(!svg.contains("<script>"), "{svg}");
    assert!(svg.contains("&lt;&amp;&gt;: 1 task"), "{svg}");
}

#[test]
fn a_long_chain_is_shortened_in_its_middle() {
    let depends_on: Vec<Vec<usize>> = (0..60_usize)
        .map(|task| task.checked_sub(1).into_iter().collect())
        .collect();
    let chain = tasks(&depends_on);
    let text = graph(&chain).text(80);
    let line = text.lines().nth(1).unwrap();
    assert!(line.starts_with("longest chain (◆): t0 → t1"), "{line}");
    assert!(
        line.ends_with("→ t59") && line.contains(" more) → "),
        "{line}"
    );
    assert!(console::measure_text_width(line) <= 80, "{line}");
}

#[test]
fn of_thousands_of_tasks_the_levels_are_listed() {
    let depends_on: Vec<Vec<usize>> = (0..3_000_usize)
        .map(|task| {
            if task < 1_500 {
                vec![]
            } else {
                vec![task - 1_500]
            }
        })
        .collect();
    let wide = tasks(&depends_on);
    let text = graph(&wide).text(80);
    assert!(text.contains("\n2 ◆ t1500  after t0\n"), "{text}");
    assert_eq!(text.lines().count(), 3_003);
}

#[test]
fn a_graph_that_is_too_large_for_a_picture_is_refused() {
    let depends_on = vec![vec![]; 20_001];
    let many = tasks(&depends_on);
    assert_eq!(graph(&many).svg(), Err(TooLarge));
}

fn any_graph() -> impl Strategy<Value = Vec<Vec<usize>>> {
    (1_usize..60).prop_flat_map(|tasks| {
        prop::collection::vec(
            prop::collection::vec(any::<prop::sample::Index>(), 0..4),
            tasks,
        )
        .prop_map(|picks| {
            picks
                .into_iter()
                .enumerate()
                .map(|(task, picks)| {
                    let on: BTreeSet<usize> = picks
                        .into_iter()
                        .filter(|_| task > 0)
                        .map(|pick| pick.index(task))
                        .collect();
                    on.into_iter().collect()
                })
                .collect()
        })
    })
}

proptest! {
    #[test]
    fn each_task_has_one_row_below_all_that_it_depends_on(depends_on in any_graph()) {
        let named = tasks(&depends_on);
        let graph = graph(&named);
        let text = graph.text(80);
        let mut row_of = BTreeMap::new();
        for (row, line) in text.lines().skip(3).enumerate() {
            prop_assert!(console::measure_text_width(line) <= 80, "{}", line);
            let name = line.split_whitespace().find(|word| word.starts_with('t'));
            row_of.insert(name.unwrap_or_default().to_owned(), row);
        }
        prop_assert_eq!(row_of.len(), depends_on.len());
        for (name, on) in &named {
            for on in on {
                prop_assert!(row_of[on] < row_of[name], "{} is not below {}:\n{}", name, on, text);
            }
        }
    }

    #[test]
    fn whoever_follows_the_lanes_finds_the_edges_and_no_others(depends_on in any_graph()) {
        let named = tasks(&depends_on);
        let graph = graph(&named);
        let text = graph.text(400);
        // What each column carries down, read as a person does.
        let mut carried: BTreeMap<usize, BTreeSet<String>> = BTreeMap::new();
        for line in text.lines().skip(3) {
            let signs: Vec<char> = line.chars().collect();
            let node = signs.iter().position(|sign| "●◆○◇".contains(*sign)).unwrap();
            let name = line.split_whitespace().find(|word| word.starts_with('t')).unwrap();
            // A lane that does not go on below its task is none.
            carried.retain(|at, _| signs.get(*at).is_some_and(|sign| "│├┼╰┴┤●◆".contains(*sign)));
            let mut from = carried.remove(&node).unwrap_or_default();
            let row = signs[..node].iter().rposition(|sign| *sign == ' ' ).map_or(0, |at| at + 1);
            for (at, sign) in signs.iter().enumerate().take(node).skip(row) {
                if matches!(sign, '├' | '┼' | '╰' | '┴') {
                    from.extend(carried.get(&at).cloned().unwrap_or_default());
                }
                if matches!(sign, '╰' | '┴') {
                    carried.remove(&at);
                }
            }
            let turn = signs.iter().skip(node + 1).take_while(|sign| "─│╮┤".contains(**sign));
            let turn = turn.enumerate().find(|(_, sign)| matches!(sign, '╮' | '┤'));
            let column = turn.map_or(node, |(at, _)| node + 1 + at);
            carried.entry(column).or_default().insert(name.to_owned());
            let on = &named.iter().find(|(task, _)| task == name).unwrap().1;
            let on: BTreeSet<String> = on.iter().cloned().collect();
            prop_assert!(from.is_subset(&on), "{} after {:?}:\n{}", name, from, text);
            // So few tasks always find lanes.
            if depends_on.len() <= 10 {
                prop_assert_eq!(&from, &on, "{}:\n{}", name, text);
            }
        }
    }

    #[test]
    fn a_picture_is_the_same_each_time(depends_on in any_graph()) {
        let named = tasks(&depends_on);
        let first = graph(&named).svg().unwrap();
        prop_assert_eq!(&first, &graph(&named).svg().unwrap());
        let mut boxes = String::new();
        let _ = write!(boxes, "{}", first.matches("rx=\"5\"").count());
        prop_assert_eq!(boxes, depends_on.len().to_string());
        prop_assert!(!first.contains("NaN") && !first.contains("inf"));
    }
}
