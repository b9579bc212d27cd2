//! Workers that cannot begin.

use super::Scene;

#[test]
fn workers_that_cannot_begin_say_why() {
    let mut scene = Scene::new();
    let serving = scene.serve("home");
    for role in ["worker", "operator"] {
        let file = format!("{role}.token");
        let words = [
            "--home", "home", "token", "create", "--role", role, "--out", &file,
        ];
        let made = scene.command(&words).output().unwrap();
        assert!(made.status.success(), "{made:?}");
    }
    scene.write("garbage.token", "swordfish\n");
    scene.write("file", "x");
    let address = serving.address.clone();
    let mut begin = |title: &str, words: &[&str]| {
        scene.wrong(title, &[&["worker"], words].concat());
    };
    let here = ["--coordinator", address.as_str(), "--token-file"];
    let with = |token: &'static str, more: &[&'static str]| [&here[..], &[token], more].concat();
    begin("nowhere to go", &["--token-file", "worker.token"]);
    begin("no token", &["--coordinator", "h:1"]);
    begin(
        "an address without a port",
        &[
            "--coordinator",
            "host",
            "--token-file",
            "worker.token",
            "--state-dir",
            "s",
        ],
    );
    begin("a token file that is not there", &with("none.token", &[]));
    begin("a token that is none", &with("garbage.token", &[]));
    begin("no slots", &with("worker.token", &["--slots", "0"]));
    begin(
        "slots in words",
        &with("worker.token", &["--slots", "many"]),
    );
    begin(
        "an amount in words",
        &with("worker.token", &["--resource", "cpus=four"]),
    );
    begin(
        "an amount of nothing",
        &with("worker.token", &["--resource", "=4"]),
    );
    begin(
        "an amount twice",
        &with(
            "worker.token",
            &[
                "--resource",
                "gpus=1",
                "--resource",
                "gpus=2",
                "--state-dir",
                "s",
            ],
        ),
    );
    begin(
        "a time without a unit",
        &with("worker.token", &["--idle-exit", "5"]),
    );
    for (title, folder) in [
        ("a state folder that is a file", "file"),
        ("a state folder below a file", "file/state"),
    ] {
        let words = with("worker.token", &["--state-dir", folder]);
        // Without what its log says of this machine.
        scene.wrong_with(title, &[&["worker"], &words[..]].concat(), |command| {
            command.env("MUSTER_LOG", "error");
        });
    }
    drop(serving);
    insta::assert_snapshot!(scene.told);
}
