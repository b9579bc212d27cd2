//! Coordinators that are not there, are no coordinators, or do not know who is asking.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use super::Scene;

#[test]
fn coordinators_that_cannot_be_reached_are_explained() {
    let mut scene = Scene::new();
    drop(scene.serve("home"));
    let made = scene
        .command(&[
            "--home", "home", "token", "create", "--role", "operator", "--out", "op.token",
        ])
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let ask = |address: &str| {
        let words = [
            "--coordinator",
            address,
            "--token-file",
            "op.token",
            "status",
        ];
        words.map(str::to_owned)
    };
    let mut wrong = |title: &str, address: &str| {
        let words = ask(address);
        scene.wrong(title, &words.each_ref().map(String::as_str));
    };
    wrong("an address without a port", "host");
    wrong("an address with a path", "https://host:7733/");
    wrong("nobody listens", "127.0.0.1:1");
    wrong("a name that nobody has", "nobody.invalid:7733");

    let web = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = web.local_addr().unwrap().to_string();
    let speaking = std::thread::spawn(move || {
        let (mut stream, _) = web.accept().unwrap();
        let _ = stream.read(&mut [0; 512]);
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
    });
    scene
        .stand_ins
        .push((address.clone(), "127.0.0.1:WEB".to_owned()));
    let words = ask(&address);
    scene.wrong(
        "a web server without TLS",
        &words.each_ref().map(String::as_str),
    );
    speaking.join().unwrap();

    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = mute.local_addr().unwrap().to_string();
    let closing = std::thread::spawn(move || drop(mute.accept().unwrap()));
    scene
        .stand_ins
        .push((address.clone(), "127.0.0.1:MUTE".to_owned()));
    let words = ask(&address);
    scene.wrong("a line that is cut", &words.each_ref().map(String::as_str));
    closing.join().unwrap();

    let other = scene.serve("other");
    let words = ask(&other.address);
    scene.wrong("another coordinator", &words.each_ref().map(String::as_str));
    insta::assert_snapshot!(scene.told);
}

#[test]
fn people_whom_the_coordinator_does_not_know_are_told_why() {
    let mut scene = Scene::new();
    let serving = scene.serve("home");
    let make = |scene: &Scene, more: &[&str]| {
        let words = ["--home", "home", "token", "create", "--json"];
        let made = scene.command(&[&words, more].concat()).output().unwrap();
        let made: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap();
        made["id"].as_str().unwrap().to_owned()
    };
    for role in ["worker", "viewer", "operator"] {
        let id = make(&scene, &["--role", role, "--out", &format!("{role}.token")]);
        scene.stand_ins.push((id, "TOKEN-ID".to_owned()));
    }
    let expired = make(
        &scene,
        &[
            "--role",
            "viewer",
            "--valid-for",
            "1ms",
            "--out",
            "expired.token",
        ],
    );
    let revoked = make(&scene, &["--role", "viewer", "--out", "revoked.token"]);
    let ended = scene
        .command(&["--home", "home", "token", "revoke", &revoked])
        .output()
        .unwrap();
    assert!(ended.status.success(), "{ended:?}");
    scene.stand_ins.push((expired, "TOKEN-ID".to_owned()));
    scene.stand_ins.push((revoked, "TOKEN-ID".to_owned()));

    let token = std::fs::read_to_string(scene.path("viewer.token")).unwrap();
    scene.write("garbage.token", "swordfish\n");
    scene.write("binary.token", [0xff, 0xfe, 0]);
    scene.write("empty.token", "");
    scene.write("cut.token", &token[..token.len() - 9]);
    scene.write("plan.yaml", "tasks: [{name: a, run: echo}]");
    std::fs::create_dir(scene.path("folder.token")).unwrap();
    let address = serving.address.clone();
    let mut ask = |title: &str, file: &str, words: &[&str]| {
        let place = ["--coordinator", address.as_str(), "--token-file", file];
        scene.wrong(title, &[&place, words].concat());
    };
    ask("no token file", "none.token", &["status"]);
    ask("a folder", "folder.token", &["status"]);
    ask("something else", "garbage.token", &["status"]);
    ask("bytes", "binary.token", &["status"]);
    ask("nothing", "empty.token", &["status"]);
    ask("a token that is cut", "cut.token", &["status"]);
    ask("a token that was revoked", "revoked.token", &["status"]);
    ask("a worker that looks", "worker.token", &["status"]);
    ask(
        "a viewer that submits",
        "viewer.token",
        &["submit", "plan.yaml"],
    );
    ask(
        "an operator that makes tokens",
        "operator.token",
        &["token", "create", "--role", "worker"],
    );
    let words = [
        "--coordinator",
        address.as_str(),
        "--token-file",
        "expired.token",
        "status",
    ];
    let when = scene.command(&words).output().unwrap();
    let when = String::from_utf8(when.stderr).unwrap();
    let when = when
        .split("expired at ")
        .nth(1)
        .and_then(|rest| rest.split(';').next());
    scene
        .stand_ins
        .push((when.unwrap().to_owned(), "THEN".to_owned()));
    scene.wrong("a token that has expired", &words);
    scene.wrong("no such run", &["--home", "home", "status", "nosuchrun"]);
    scene.wrong("no run at all", &["--home", "home", "status", "@last"]);
    scene.wrong(
        "no such task",
        &["--home", "home", "logs", "nosuchrun", "a"],
    );
    scene.wrong("no such worker", &["--home", "home", "drain", "nobody"]);
    scene.wrong(
        "no such token",
        &["--home", "home", "token", "revoke", "0123456789abcdef"],
    );
    insta::assert_snapshot!(scene.told);
}

#[test]
fn a_browser_that_forgets_the_s_of_https_is_answered() {
    let mut scene = Scene::new();
    let serving = scene.serve("home");
    let mut stream = TcpStream::connect(&serving.address).unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    let mut answer = Vec::new();
    // It may be cut off while it is read.
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(
        answer.contains(&format!("https://{}/", serving.address)),
        "{answer}"
    );
}
