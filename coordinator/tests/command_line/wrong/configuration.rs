//! Configurations that make no sense.

use super::Scene;

#[test]
fn wrong_configurations_are_explained() {
    let mut scene = Scene::new();
    std::fs::create_dir(scene.path("home")).unwrap();
    for (title, file) in [
        ("a misspelt key", "# mine\nslot = 3\n"),
        (
            "several mistakes",
            "listen = 7733\nlease_ttl = \"1m\"\nslots = \"four\"\n",
        ),
        ("an address that is none", "listen = \"here\"\n"),
        ("too many slots", "slots = 5000\n"),
        ("a filter that is none", "log = \"a=b=c\"\n"),
        ("a time without a unit", "lease-ttl = \"60\"\n"),
        (
            "heartbeats too far apart",
            "lease-ttl = \"10s\"\nheartbeat-interval = \"5s\"\n",
        ),
        (
            "an agent of no kind",
            "[agents.big]\ncommand = [\"codex\"]\n",
        ),
        (
            "a name that is taken",
            "[agents.codex]\nkind = \"command\"\ncommand = \"x\"\n",
        ),
        ("another language", "listen: here\n"),
    ] {
        scene.write("home/config.toml", file);
        scene.wrong(title, &["--home", "home", "config", "check"]);
    }
    std::fs::remove_file(scene.path("home/config.toml")).unwrap();
    scene.wrong_with(
        "a variable",
        &["--home", "home", "config", "check"],
        |command| {
            command.env("MUSTER_SLOTS", "many");
        },
    );
    std::fs::create_dir(scene.path("home/config.toml")).unwrap();
    scene.wrong("a folder", &["--home", "home", "serve"]);
    insta::assert_snapshot!(scene.told);
}

#[test]
fn each_value_is_shown_with_where_it_came_from() {
    let scene = Scene::new();
    std::fs::create_dir(scene.path("home")).unwrap();
    scene.write(
        "home/config.toml",
        "log = \"warn\"\n\nlease-ttl = \"2m\"\n\n[agents.big]\nkind = \"codex\"\ncommand = [\"codex\", \"--big\"]\n",
    );
    let check = |more: &[&str]| {
        let arguments = [&["--home", "home", "config", "check", "--slots", "3"], more].concat();
        let output = scene
            .command(&arguments)
            .env("MUSTER_LISTEN", "127.0.0.1:9000")
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let text =
            String::from_utf8(output.stderr).unwrap() + &String::from_utf8(output.stdout).unwrap();
        scene.same_everywhere(&text)
    };
    // How wide its columns are hangs on the folder's name.
    let words = |line: &str| {
        line.split("  ")
            .filter(|word| !word.is_empty())
            .map(str::trim)
            .collect::<Vec<_>>()
            .join("  ")
    };
    insta::assert_snapshot!(check(&[]).lines().map(words).collect::<Vec<_>>().join("\n"));
    let json: serde_json::Value =
        serde_json::from_str(check(&["--json"]).lines().last().unwrap()).unwrap();
    let origin = |key: &str| {
        let values = json["values"].as_array().unwrap();
        let found = values.iter().find(|value| value["key"] == key).unwrap();
        (
            found["from"].as_str().unwrap().to_owned(),
            found["line"].as_u64(),
        )
    };
    for (key, from, line) in [
        ("home", "flag", None),
        ("listen", "environment", None),
        ("slots", "flag", None),
        ("lease-ttl", "file", Some(3)),
        ("lease-grace", "default", None),
        ("agents.big", "file", Some(5)),
    ] {
        assert_eq!(origin(key), (from.to_owned(), line), "{key}");
    }
}
