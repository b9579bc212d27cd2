//! What a plan tells the real Codex: images, folders, profiles, reviews, schemas; and a provider that
//! wants to be left alone for a while.

use anyhow::{Context as _, Result, ensure};
use muster_tests::Programs;
use serde_json::Value;

use crate::codex::Stage;
use crate::{Scenario, with_cluster};

pub(crate) const SCENARIOS: &[(&str, Scenario)] = &[
    (
        "codex_gets_the_images_folders_profile_and_schema_of_its_task",
        settings,
    ),
    ("codex_reviews_what_a_plan_names", reviews),
    (
        "codex_is_tried_again_after_its_provider_has_taken_no_more_calls",
        limited,
    ),
];

/// A picture of two red dots on two.
const PICTURE: &[u8] = b"\x89PNG\x0d\x0a\x1a\x0a\x00\x00\x00\x0dIHDR\x00\x00\x00\x02\x00\x00\x00\x02\x08\x02\x00\x00\x00\xfd\xd4\x9as\x00\x00\x00\x10IDATx\x9cc\xf8\xcf\xc0\x00D\x0c\x10\x0a\x00\x1f\xee\x03\xfd\x8b_\x14\xd4\x00\x00\x00\x00IEND\xaeB`\x82";

fn settings(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let stage = Stage::set(cluster, programs)?;
        std::fs::write(stage.mine.path().join("picture.png"), PICTURE)?;
        stage.mine.git(["add", "."])?;
        stage.mine.git(["commit", "-qm", "a picture"])?;
        std::fs::write(
            stage.home.join("careful.config.toml"),
            "model_reasoning_effort = \"low\"\n",
        )?;
        let shared = cluster.folder().join("shared");
        let other = cluster.folder().join("other");
        std::fs::create_dir_all(&shared)?;
        std::fs::create_dir_all(&other)?;
        let tasks = format!(
            "  - {{ name: looks, prompt: '[[say:a picture]]', images: [picture.png], change: optional }}\n\
             \x20 - {{ name: shares, prompt: '[[sh:touch {shared}/made {other}/made]]', \
             add_dirs: [{shared}], change: optional }}\n\
             \x20 - {{ name: careful, prompt: '[[say:careful]]', codex: {{ profile: careful }}, \
             change: optional }}\n\
             \x20 - name: answers\n    prompt: '[[json:{{\"verdict\": \"fine\"}}]]'\n    output_schema: {{ type: \
             object, properties: {{ verdict: {{ type: string }} }}, required: [verdict], \
             additionalProperties: false }}\n",
            shared = shared.display(),
            other = other.display(),
        );
        let last = stage.run(cluster, &tasks, 0)?;
        ensure!(last["state"] == "succeeded", "{last}");
        let bodies = stage.provider.bodies();
        let asked = |scenario: &str| -> Result<&Value> {
            let mut asked = bodies.iter();
            asked
                .find(|body| body["input"].to_string().contains(scenario))
                .with_context(|| format!("nothing was asked with {scenario}"))
        };
        let looks = asked("[[say:a picture]]")?["input"].to_string();
        ensure!(
            looks.contains("input_image") && looks.contains("data:image/png;base64,"),
            "{looks}"
        );
        ensure!(
            shared.join("made").exists(),
            "a shared folder is not written"
        );
        ensure!(!other.join("made").exists(), "another folder is written");
        let effort = |body: &Value| body["reasoning"]["effort"].clone();
        let careful = effort(asked("[[say:careful]]")?);
        ensure!(careful == "low", "{careful}");
        ensure!(effort(asked("[[say:a picture]]")?) != "low");
        let answers = asked("[[json:")?;
        let schema = &answers["text"]["format"]["schema"];
        ensure!(schema["required"][0] == "verdict", "{answers}");
        let run = last["run"].as_str().context("no run")?;
        let said = cluster.ask(["logs", run, "answers", "--json"])?.success()?;
        ensure!(said.out.contains("structured"), "{}", said.out);
        Ok(())
    })
}

fn reviews(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let stage = Stage::set(cluster, programs)?;
        let commit = stage.mine.git(["rev-parse", "HEAD~1"])?;
        let tasks = format!(
            "  - {{ name: edits, change: optional, codex: {{ review: {{ uncommitted: true }} }} }}\n\
             \x20 - {{ name: since, change: optional, codex: {{ review: {{ base: '{commit}' }} }} }}\n\
             \x20 - {{ name: one, change: optional, codex: {{ review: {{ commit: '{commit}', \
             title: A title }} }} }}\n",
            commit = commit.trim(),
        );
        let last = stage.run(cluster, &tasks, 0)?;
        ensure!(last["state"] == "succeeded", "{last}");
        let bodies = stage.provider.bodies();
        let asked: Vec<String> = bodies
            .iter()
            .map(|body| body["input"].to_string())
            .collect();
        for (what, words) in [
            ("uncommitted", "staged, unstaged, and untracked".to_owned()),
            (
                "base",
                format!("against the base branch '{}'", commit.trim()),
            ),
            ("commit", format!("introduced by commit {}", commit.trim())),
        ] {
            ensure!(
                asked.iter().any(|asked| asked.contains(&words)),
                "{what}: {words:?} is not in {asked:#?}"
            );
        }
        Ok(())
    })
}

fn limited(programs: &Programs) -> Result<()> {
    with_cluster(programs, None, |cluster| {
        let stage = Stage::set(cluster, programs)?;
        let tasks =
            "  - { name: waits, prompt: '[[fault:429 2 then write:a.txt b]]', retries: 0 }\n";
        let last = stage.run(cluster, tasks, 0)?;
        let run = last["run"].as_str().context("no run")?;
        let status = cluster.status(run)?;
        let attempts = status.attempts("waits")?;
        let (last, failed) = attempts.split_last().context("no attempt")?;
        ensure!(last["state"] == "succeeded", "{}", status.json);
        ensure!(!failed.is_empty(), "{}", status.json);
        for attempt in failed {
            ensure!(attempt["failure"]["class"] == "rate_limit", "{attempt}");
        }
        // Each begins later than its provider has asked for.
        let time = |value: &Value| -> Result<jiff::Timestamp> {
            Ok(value.as_str().context("no time")?.parse()?)
        };
        for pair in attempts.windows(2) {
            let waited = time(&pair[1]["granted_at"])? - time(&pair[0]["ended_at"])?;
            ensure!(
                waited.get_seconds() >= 1 || waited.get_minutes() >= 1,
                "{waited}"
            );
        }
        // It goes on in the conversation that it had.
        ensure!(last["continues"] == 1 && last["anew"] == false, "{last}");
        Ok(())
    })
}
