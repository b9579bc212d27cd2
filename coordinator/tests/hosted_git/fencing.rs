//! Who may move which ref, tried with the real client.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_is_published_once() {
    let world = World::start().await;
    let first = world.commit("first");
    let target = "HEAD:refs/muster/attempts/run/api/1";
    world.push("lease-1", &[target]).ok();
    let published = [format!("refs/muster/attempts/run/api/1 {first}")];
    assert_eq!(world.refs(), published);
    world.push("lease-1", &[target]).ok();

    world.commit("second");
    let again = world.push("lease-1", &["--force", target]);
    again.refused("(already published: this ref is created once and never moves)");
    assert_eq!(world.refs(), published);
}

#[tokio::test(flavor = "multi_thread")]
async fn unfinished_work_may_be_replaced() {
    let world = World::start().await;
    let target = "HEAD:refs/muster/wip/run/api/1";
    world.commit("first");
    world.push("lease-1", &[target]).ok();
    world.git(&["reset", "--quiet", "--hard", "HEAD~1"]).ok();
    let second = world.commit("second");
    world.push("lease-1", &["--force", target]).ok();
    assert_eq!(
        world.refs(),
        [format!("refs/muster/wip/run/api/1 {second}")]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn refs_of_others_are_refused_and_the_whole_push_with_them() {
    let world = World::start().await;
    world.commit("first");
    for foreign in [
        "refs/muster/attempts/run/other/1",
        "refs/muster/attempts/run/api/2",
        "refs/muster/wip/run/other/1",
        "refs/muster/base/run/api",
        "refs/muster/source/next",
        "refs/heads/muster/run/tasks/api",
        "refs/heads/muster/run/integration",
        "refs/heads/main",
        "refs/tags/v1",
    ] {
        let own = "HEAD:refs/muster/attempts/run/api/1";
        let push = world.push("lease-1", &["--force", own, &format!("HEAD:{foreign}")]);
        assert!(
            push.err.contains("(another ref of this push was refused)"),
            "{}",
            push.err
        );
        push.refused("(this credential may not write this ref)");
        assert_eq!(world.refs(), [""; 0], "{foreign}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_deletes_nothing() {
    let world = World::start().await;
    world.commit("first");
    world
        .push("lease-1", &["HEAD:refs/muster/wip/run/api/1"])
        .ok();
    let before = world.refs();
    let deletion = world.push("lease-1", &[":refs/muster/wip/run/api/1"]);
    deletion.refused("refs are never deleted by a push");
    assert_eq!(world.refs(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_ended_is_told_so_at_the_first_request() {
    let world = World::start().await;
    world.commit("first");
    world.fence.leases.lock().unwrap().remove(&1);
    let push = world.push("lease-1", &["HEAD:refs/muster/attempts/run/api/1"]);
    push.refused("the lease has ended");
    assert_eq!(world.refs(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_ends_before_the_upload_is_refused_before_git_is_started() {
    let world = World::start().await;
    let commit = world.commit("first");
    *world.fence.scopes_left.lock().unwrap() = Some(1);
    let push = world.push("lease-1", &["HEAD:refs/muster/attempts/run/api/1"]);
    push.refused("the lease has ended");
    assert_eq!(world.refs(), [""; 0]);
    assert!(
        !world.in_bare(&["cat-file", "-e", &commit]).success,
        "objects were stored"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_ends_during_the_upload_moves_no_ref() {
    let world = World::start().await;
    world.commit("first");
    *world.fence.moves_left.lock().unwrap() = Some(0);
    let targets = [
        "HEAD:refs/muster/attempts/run/api/1",
        "HEAD:refs/muster/wip/run/api/1",
    ];
    let push = world.push("lease-1", &targets);
    assert_eq!(
        push.err.matches("(the lease has ended").count(),
        2,
        "{}",
        push.err
    );
    push.refused("[remote rejected]");
    assert_eq!(world.refs(), [""; 0]);

    // Both or none: had git asked for each ref, the second would be refused.
    *world.fence.moves_left.lock().unwrap() = Some(1);
    world.push("lease-1", &targets).ok();
    assert_eq!(world.refs().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unfinished_edit_is_kept_once_by_its_workers_session() {
    let world = World::start().await;
    world.commit("first");
    let target = "HEAD:refs/muster/salvage/run/api/1";
    world
        .push("lease-1", &[target])
        .refused("may not write this ref");
    world
        .push("worker", &["HEAD:refs/muster/salvage/run/other/1"])
        .refused("may not write");
    world.push("worker", &[target]).ok();
    world.commit("second");
    world.push("worker", &[target]).refused("already published");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_brings_the_source_of_a_run_once_and_nothing_else() {
    let world = World::start().await;
    world.commit("first");
    world.operator_pushes("HEAD:refs/muster/source/next").ok();
    world.commit("second");
    world
        .operator_pushes("HEAD:refs/muster/source/next")
        .refused("already published");
    world
        .operator_pushes("HEAD:refs/heads/main")
        .refused("may not write this ref");
    world
        .operator_pushes("HEAD:refs/muster/source/a.lockx/b")
        .refused("may not write this ref");
}

#[tokio::test(flavor = "multi_thread")]
async fn verifiers_and_viewers_write_nothing() {
    let world = World::start().await;
    for user in ["lease-4", "viewer"] {
        let push = world.push(user, &["HEAD:refs/muster/attempts/run/api/1"]);
        push.refused("this credential only reads");
    }
    assert_eq!(world.refs(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_reads_its_base_and_its_own_work_only() {
    let world = World::start().await;
    let base = world.head();
    world.commit("of api");
    world
        .push("lease-1", &["HEAD:refs/muster/attempts/run/api/1"])
        .ok();
    world.git(&["reset", "--quiet", "--hard", &base]).ok();
    let of_other = world.commit("of other");
    world
        .push("lease-3", &["HEAD:refs/muster/attempts/run/other/1"])
        .ok();

    let attempt_of_api = "refs/muster/attempts/run/api/1";
    let base_of_api = "refs/muster/base/run/api";
    assert_eq!(world.seen_by("lease-1"), [attempt_of_api, base_of_api]);
    assert_eq!(world.seen_by("lease-2"), [attempt_of_api, base_of_api]);
    assert_eq!(world.seen_by("lease-4"), [attempt_of_api]);
    assert_eq!(world.seen_by("viewer").len(), 5);

    let reader = world.folder.path().join("reader");
    world
        .git(&["init", "--quiet", reader.to_str().unwrap()])
        .ok();
    for version in ["0", "1", "2"] {
        let version = format!("protocol.version={version}");
        let fetch = |user: &str, what: &str| {
            world.run(
                &reader,
                &["-c", &version, "fetch", "--quiet", &world.url(user), what],
            )
        };
        fetch("lease-1", base_of_api).ok();
        for user in ["lease-1", "lease-2", "lease-4"] {
            assert!(!fetch(user, &of_other).success, "{user} with {version}");
            assert!(
                !fetch(user, "refs/muster/attempts/run/other/1").success,
                "{user}"
            );
        }
    }
    assert!(!world.run(&reader, &["cat-file", "-e", &of_other]).success);
    world
        .run(
            &reader,
            &["fetch", "--quiet", &world.url("viewer"), &of_other],
        )
        .ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_push_arrives_whole_and_a_refused_one_is_told_why() {
    let world = World::start().await;
    let mut state = 1_u64;
    let noise: Vec<u8> = (0..4 << 20)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 56) as u8
        })
        .collect();
    std::fs::write(world.work().join("noise"), noise).unwrap();
    let commit = world.commit("large");
    world
        .push("lease-1", &["HEAD:refs/muster/attempts/run/api/2"])
        .refused("may not write");
    assert!(!world.in_bare(&["cat-file", "-e", &commit]).success);
    world
        .push("lease-1", &["HEAD:refs/muster/attempts/run/api/1"])
        .ok();
    world.in_bare(&["rev-list", "--objects", &commit]).ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_above_the_limit_is_refused_with_the_reason() {
    let world = World::start_in("home", 2_000).await;
    let noise: String = (0..2_000_u32)
        .map(|n| n.wrapping_mul(2_654_435_761).to_string())
        .collect();
    std::fs::write(world.work().join("noise"), noise).unwrap();
    world.commit("large");
    let push = world.push("lease-1", &["HEAD:refs/muster/attempts/run/api/1"]);
    push.refused("maximum allowed size");
    assert_eq!(world.refs(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_with_a_long_path_still_fences() {
    let world = World::start_in(&"long/".repeat(30), PUSH_BYTES_MAX).await;
    assert!(world.home.as_os_str().len() > 108);
    world.commit("first");
    *world.fence.moves_left.lock().unwrap() = Some(0);
    let target = "HEAD:refs/muster/attempts/run/api/1";
    world
        .push("lease-1", &[target])
        .refused("the lease has ended");
    *world.fence.moves_left.lock().unwrap() = None;
    world.push("lease-1", &[target]).ok();
}
