//! Homes that cannot be one.

use std::net::TcpListener;

use rusqlite::Connection;

use super::Scene;

#[test]
fn homes_that_cannot_be_used_are_explained_and_left_as_they_are() {
    let mut scene = Scene::new();
    scene.write("plan.yaml", "tasks: [{name: a, run: echo}]");
    scene.write("file", "x");
    scene.wrong("a file", &["--home", "file", "serve"]);
    scene.wrong("a file, to run", &["--home", "file", "run", "plan.yaml"]);
    scene.wrong("a file, to look", &["--home", "file", "status"]);
    scene.wrong(
        "a file, for a token",
        &["--home", "file", "token", "create", "--role", "worker"],
    );
    scene.wrong("below a file", &["--home", "file/home", "serve"]);
    scene.wrong(
        "where nobody may write",
        &["--home", "/sys/muster", "serve"],
    );
    scene.wrong(
        "where nobody may write, to run",
        &["--home", "/sys/muster", "run", "plan.yaml"],
    );
    scene.wrong(
        "where nobody may write, for a token",
        &[
            "--home",
            "/sys/muster",
            "token",
            "create",
            "--role",
            "worker",
        ],
    );
    scene.wrong(
        "nothing there, to list tokens",
        &["--home", "none", "token", "list"],
    );
    scene.wrong(
        "nothing there, to list workers",
        &["--home", "none", "workers"],
    );
    scene.wrong(
        "nothing there, to save",
        &["--home", "none", "backup", "saved"],
    );
    scene.wrong("nothing there, to check", &["--home", "none", "audit"]);

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let port = address.port().to_string();
    scene
        .stand_ins
        .push((address.to_string(), "127.0.0.1:PORT".to_owned()));
    scene
        .stand_ins
        .push((format!(":{port}'"), ":PORT'".to_owned()));
    scene.wrong_with(
        "an address that is taken",
        &["--home", "new/home", "serve"],
        |command| {
            command.env("MUSTER_LISTEN", address.to_string());
        },
    );
    scene.wrong_with(
        "an address of another machine",
        &["--home", "new/home", "serve"],
        |command| {
            command.env("MUSTER_LISTEN", "192.0.2.1:7733");
        },
    );
    scene.wrong_with(
        "no git",
        &["--home", "new/home", "serve", "--listen", "127.0.0.1:0"],
        |command| {
            command.env("PATH", "/nowhere");
        },
    );

    let serving = scene.serve("used");
    scene.wrong(
        "in use",
        &["--home", "used", "serve", "--listen", "127.0.0.1:0"],
    );
    scene.wrong("in use, to mend", &["--home", "used", "doctor", "--repair"]);
    scene.wrong(
        "in use, to put a backup back",
        &["--home", "used", "restore", "saved"],
    );
    drop(serving);

    let folder = scene.folder.path().to_owned();
    let sql = |file: &str, text: &str| {
        Connection::open(folder.join(file))
            .unwrap()
            .execute_batch(text)
            .unwrap();
    };
    sql("used/journal.db", "PRAGMA user_version = 999");
    scene.wrong(
        "of a newer Muster",
        &["--home", "used", "serve", "--listen", "127.0.0.1:0"],
    );
    scene.wrong(
        "of a newer Muster, to run",
        &["--home", "used", "run", "plan.yaml"],
    );
    sql("used/tokens.db", "PRAGMA user_version = 999");
    scene.wrong(
        "with tokens of a newer Muster",
        &["--home", "used", "token", "list"],
    );
    insta::assert_snapshot!(scene.told);
}

#[test]
fn damaged_homes_are_explained_and_left_as_they_are() {
    let mut scene = Scene::new();
    let serve = ["--home", "home", "serve", "--listen", "127.0.0.1:0"];
    drop(scene.serve("home"));
    drop(scene.serve("other"));
    // What was killed has left its last words in a log; a reader puts them where they belong.
    let listed = scene
        .command(&["--home", "home", "token", "list"])
        .output()
        .unwrap();
    assert!(listed.status.success(), "{listed:?}");
    // What is spoilt is put back after each look.
    let spoilt = |scene: &mut Scene, title: &str, file: &str, bytes: &[u8]| {
        let path = scene.path(file);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, bytes).unwrap();
        scene.wrong(title, &serve);
        std::fs::write(&path, whole).unwrap();
    };
    spoilt(
        &mut scene,
        "a secret key that is cut",
        "home/secret.key",
        b"short",
    );
    spoilt(
        &mut scene,
        "a certificate that is none",
        "home/tls/ca.pem",
        b"hello",
    );
    spoilt(
        &mut scene,
        "a key that is none",
        "home/tls/ca.key",
        b"hello",
    );
    let others = std::fs::read(scene.path("other/tls/ca.key")).unwrap();
    spoilt(
        &mut scene,
        "a key of another authority",
        "home/tls/ca.key",
        &others,
    );
    spoilt(
        &mut scene,
        "tokens that are none",
        "home/tokens.db",
        b"no database, but long enough to be looked at as one by whoever wants to",
    );
    let (certificate, key) = expired_authority();
    let whole = std::fs::read(scene.path("home/tls/ca.key")).unwrap();
    scene.write("home/tls/ca.key", key);
    spoilt(
        &mut scene,
        "an authority that has expired",
        "home/tls/ca.pem",
        certificate.as_bytes(),
    );
    scene.write("home/tls/ca.key", whole);
    std::fs::remove_file(scene.path("home/tls/ca.pem")).unwrap();
    scene.wrong("half an authority", &serve);
    insta::assert_snapshot!(scene.told);
}

/// A certificate authority that was good for one day in 2001, with its key.
fn expired_authority() -> (String, String) {
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    params.not_before = rcgen::date_time_ymd(2001, 1, 1);
    params.not_after = rcgen::date_time_ymd(2001, 1, 2);
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    (certificate.pem(), key.serialize_pem())
}
