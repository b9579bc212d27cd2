//! The executable as people and pools start it.

use std::io::Read as _;
use std::process::{Child, Command, Stdio};

use tonic::Status;

use super::bench::{Bench, until};

fn start(bench: &Bench) -> Child {
    let token = bench.folder.path().join("token");
    std::fs::write(&token, bench.fake.token.reveal()).unwrap();
    Command::new(env!("CARGO_BIN_EXE_worker-agent"))
        .args([
            "--coordinator",
            &bench.fake.address,
            "--slots",
            "3",
            "--label",
            "gpu",
        ])
        .arg("--token-file")
        .arg(token)
        .arg("--state-dir")
        .arg(bench.state())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

async fn ended(mut child: Child) -> (Option<i32>, String) {
    let status = until("the worker to end", || child.try_wait().unwrap()).await;
    let mut text = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    (status.code(), text)
}

#[tokio::test(flavor = "multi_thread")]
async fn it_joins_with_a_token_alone_and_ends_on_term() {
    let bench = Bench::new().await;
    let child = start(&bench);
    let hello = bench
        .fake
        .until("a hello", |state| state.hellos.first().cloned())
        .await;
    assert_eq!(
        (hello.slots, hello.labels.as_slice()),
        (3, &["gpu".to_owned()][..])
    );
    bench
        .fake
        .until("a heartbeat", |state| (state.heartbeat > 0).then_some(()))
        .await;
    Command::new("kill")
        .arg(child.id().to_string())
        .status()
        .unwrap();
    let (code, text) = ended(child).await;
    assert_eq!(code, Some(0), "{text}");
    assert!(bench.fake.with(|state| state.goodbye.is_some()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_has_its_own_exit_code_and_says_why() {
    let bench = Bench::new().await;
    bench
        .fake
        .with(|state| state.refusal = Some(Status::unauthenticated("it was revoked")));
    let (code, text) = ended(start(&bench)).await;
    assert_eq!(code, Some(3), "{text}");
    assert!(text.contains("it was revoked"), "{text}");
}
