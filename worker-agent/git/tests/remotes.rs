use muster_git::{
    Expected, GitError, ObjectId, PushOutcome, PushRef, RefName, Refspec, Remote, Repository,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::world::World;

fn name(text: &str) -> RefName {
    RefName::parse(text).unwrap()
}

fn wanted(target: &str, new: Option<ObjectId>, expected: Expected) -> PushRef {
    PushRef {
        name: name(target),
        new,
        expected,
    }
}

#[tokio::test]
async fn each_pushed_ref_is_created_moved_or_rejected_on_its_own() {
    let world = World::new().await;
    let one = world.commit(&[], &[("a", "1")]).await;
    let two = world.commit(&[], &[("a", "2")]).await;
    let target = world.path("target.git");
    let format = muster_git::ObjectFormat::Sha1;
    let target = Repository::init_bare(&world.git, &target, format)
        .await
        .unwrap();
    let remote = Remote::new(target.folder().to_str().unwrap()).unwrap();
    let push = async |refs: &[PushRef]| {
        let pushed = remote.push(&world.origin, refs).await.unwrap();
        pushed
            .into_iter()
            .map(|push| push.outcome)
            .collect::<Vec<_>>()
    };
    let create = wanted("refs/muster/attempts/r/t/1", Some(one), Expected::Absent);
    assert_eq!(
        push(std::slice::from_ref(&create)).await,
        [PushOutcome::Created]
    );
    assert_eq!(
        push(std::slice::from_ref(&create)).await,
        [PushOutcome::UpToDate]
    );

    let stale = PushOutcome::Rejected {
        reason: "stale info".into(),
        remote_says: String::new(),
    };
    let second = wanted("refs/muster/attempts/r/t/1", Some(two), Expected::Absent);
    let wip = wanted("refs/muster/wip/r/t/1", Some(one), Expected::Any);
    assert_eq!(
        push(&[second, wip]).await,
        [stale.clone(), PushOutcome::Created]
    );

    let wip = |expected| wanted("refs/muster/wip/r/t/1", Some(two), expected);
    assert_eq!(push(&[wip(Expected::Is(two))]).await, [stale]);
    assert_eq!(push(&[wip(Expected::Is(one))]).await, [PushOutcome::Moved]);
    let back = wanted("refs/muster/wip/r/t/1", Some(one), Expected::Any);
    assert_eq!(push(&[back]).await, [PushOutcome::Moved]);
    let gone = wanted("refs/muster/wip/r/t/1", None, Expected::Is(one));
    assert_eq!(push(&[gone]).await, [PushOutcome::Moved]);
    let refs = target.list_refs("refs/muster").await.unwrap();
    assert_eq!(refs, [(name("refs/muster/attempts/r/t/1"), one)]);
}

#[tokio::test]
async fn the_reason_of_a_remote_reaches_the_caller() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new().await;
    let one = world.commit(&[], &[("a", "1")]).await;
    let target = world.path("target.git");
    let format = muster_git::ObjectFormat::Sha1;
    Repository::init_bare(&world.git, &target, format)
        .await
        .unwrap();
    let hook = target.join("hooks/pre-receive");
    std::fs::create_dir_all(target.join("hooks")).unwrap();
    std::fs::write(&hook, "#!/bin/sh\necho lease 7 has ended >&2\nexit 1\n").unwrap();
    std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755)).unwrap();
    let remote = Remote::new(target.to_str().unwrap()).unwrap();
    let create = wanted("refs/heads/x", Some(one), Expected::Absent);
    let pushed = remote.push(&world.origin, &[create]).await.unwrap();
    let rejected = PushOutcome::Rejected {
        reason: "pre-receive hook declined".to_owned(),
        remote_says: "lease 7 has ended".to_owned(),
    };
    assert_eq!(pushed[0].outcome, rejected);
}

#[tokio::test]
async fn listing_and_fetching_give_refs_and_objects() {
    let world = World::new().await;
    let one = world.commit(&[], &[("a", "1")]).await;
    let two = world.commit(&[one], &[("a", "2")]).await;
    world.set("refs/heads/main", two).await;
    world.set("refs/muster/x", one).await;
    let remote = world.remote();
    let listed = remote.ls_remote(&world.git, &[]).await.unwrap();
    assert_eq!(listed.head, Some(name("refs/heads/main")));
    assert_eq!(
        listed.refs,
        [(name("refs/heads/main"), two), (name("refs/muster/x"), one)]
    );
    let listed = remote
        .ls_remote(&world.git, &["refs/muster/*"])
        .await
        .unwrap();
    assert_eq!(listed.refs, [(name("refs/muster/x"), one)]);

    let format = muster_git::ObjectFormat::Sha1;
    let here = Repository::init_bare(&world.git, &world.path("here.git"), format)
        .await
        .unwrap();
    let mine = name("refs/imported/main");
    remote
        .fetch(&here, &[Refspec::to_ref(&name("refs/heads/main"), &mine)])
        .await
        .unwrap();
    assert_eq!(here.read_ref(&mine).await.unwrap(), Some(two));
    assert_eq!(here.list_refs("refs").await.unwrap().len(), 1);
    let missing = Refspec::objects_of(&name("refs/heads/nope"));
    let error = remote.fetch(&here, &[missing]).await.unwrap_err();
    assert!(matches!(error, GitError::Failed { .. }), "{error}");
}

#[tokio::test]
async fn the_token_is_sent_as_a_header_and_shown_nowhere() {
    let world = World::new().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/git/x.git", listener.local_addr().unwrap());
    let auth = muster_git::Auth {
        token: "t0p-s3cret".to_owned(),
        ca_file: None,
    };
    let remote = Remote::new(&url).unwrap().with_auth(auth);
    let serve = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 4096];
        let length = stream.read(&mut request).await.unwrap();
        let body = "no: t0p-s3cret";
        let head = "HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Type: text/plain\r\n";
        let answer = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all(answer.as_bytes()).await.unwrap();
        String::from_utf8_lossy(&request[..length]).into_owned()
    };
    let (request, listed) = tokio::join!(serve, remote.ls_remote(&world.git, &[]));
    assert!(
        request.contains("Authorization: Bearer t0p-s3cret\r\n"),
        "{request}"
    );
    let error = listed.unwrap_err().to_string();
    assert!(
        error.contains("403") && !error.contains("t0p-s3cret"),
        "{error}"
    );
}

#[tokio::test]
async fn a_redirect_does_not_carry_the_token_away() {
    let world = World::new().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let elsewhere = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/git/x.git", listener.local_addr().unwrap());
    let auth = muster_git::Auth {
        token: "t0p-s3cret".to_owned(),
        ca_file: None,
    };
    let remote = Remote::new(&url).unwrap().with_auth(auth);
    let target = elsewhere.local_addr().unwrap();
    let serve = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 4096];
        let _ = stream.read(&mut request).await.unwrap();
        let head = format!("HTTP/1.1 302 Found\r\nLocation: http://{target}/x.git/info/refs\r\n");
        let answer = format!("{head}Connection: close\r\nContent-Length: 0\r\n\r\n");
        stream.write_all(answer.as_bytes()).await.unwrap();
    };
    let ask = async { tokio::join!(serve, remote.ls_remote(&world.git, &[])).1 };
    tokio::select! {
        listed = ask => assert!(listed.is_err()),
        _ = elsewhere.accept() => panic!("the redirect was followed"),
    }
}

#[tokio::test]
async fn a_coordinator_is_dialled_where_it_is_but_asked_for_by_its_name() {
    let world = World::new().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    for host in ["127.0.0.1", "localhost"] {
        let auth = muster_git::Auth {
            token: "t0p-s3cret".to_owned(),
            ca_file: None,
        };
        let remote = Remote::coordinator(&format!("{host}:{port}"), "git/x.git", auth).unwrap();
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut hello = vec![0; 4096];
            let length = stream.read(&mut hello).await.unwrap();
            String::from_utf8_lossy(&hello[..length]).into_owned()
        };
        let (hello, listed) = tokio::join!(serve, remote.ls_remote(&world.git, &[]));
        assert!(hello.contains("coordinator.muster"), "{host}: {hello:?}");
        assert!(listed.is_err());
    }
}

#[tokio::test]
async fn the_same_objects_can_be_pushed_to_several_refs_at_the_same_time() {
    let world = World::new().await;
    let one = world.commit(&[], &[("a", "1")]).await;
    let format = muster_git::ObjectFormat::Sha1;
    let target = Repository::init_bare(&world.git, &world.path("target.git"), format)
        .await
        .unwrap();
    // Each push is kept as a pack, and all of them are the same one.
    target.set_config("receive.unpackLimit", "1").await.unwrap();
    let remote = Remote::new(target.folder().to_str().unwrap()).unwrap();
    let mut pushes = tokio::task::JoinSet::new();
    for number in 0..12 {
        let name = format!("refs/muster/source/{number}");
        let refs = [wanted(&name, Some(one), Expected::Absent)];
        let (remote, origin) = (remote.clone(), world.origin.clone());
        pushes.spawn(async move { remote.push(&origin, &refs).await });
    }
    while let Some(pushed) = pushes.join_next().await {
        let pushed = pushed.unwrap().unwrap();
        assert_eq!(pushed[0].outcome, PushOutcome::Created);
    }
}
