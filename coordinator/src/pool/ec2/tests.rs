//! A group against a service that keeps state and speaks as Auto Scaling does, and loses answers.

mod cloud;

use std::sync::Arc;
use std::time::Duration;

use coordinator_core::{AllocationId, Span};

use self::cloud::Cloud;
use super::api::Api;
use super::{GroupProvider, Order, Provider as _};
use crate::pool::provider::{Error, Known, Sighted, Sighting};
use crate::pool::settings::{Ec2Settings, RoleArn};

const HOME: &str = "h";

async fn provider(cloud: &Cloud) -> GroupProvider {
    let settings = Ec2Settings {
        group: cloud::GROUP.to_owned(),
        region: "eu-west-1".to_owned(),
        role: RoleArn::parse("arn:aws:iam::123456789012:role/w").unwrap(),
        poll: Span::from_secs(10),
    };
    let api = Api::at(cloud::GROUP, "eu-west-1", &cloud.endpoint).await;
    GroupProvider {
        api,
        ..GroupProvider::new("build".into(), HOME.into(), settings)
    }
}

fn known(id: u64, external: Option<&str>) -> Known {
    Known {
        id: AllocationId(id),
        first: AllocationId(1),
        external: external.map(Into::into),
        ends: false,
    }
}

fn order(known: Vec<Known>) -> Order {
    Order {
        pool: "build".into(),
        home: Arc::from(HOME),
        first: AllocationId(1),
        count: u32::try_from(known.len()).unwrap(),
        known,
        tokens: vec![],
        exclude: vec![],
    }
}

/// The instances that are seen to run, by allocation.
fn running(sightings: &[Sighting]) -> Vec<(u64, &str)> {
    let runs = sightings.iter();
    let runs = runs.filter(|one| matches!(one.state, Sighted::Running { .. }));
    let of = |one: &Sighting| one.name.first.0 + u64::from(one.index);
    let mut runs: Vec<_> = runs.map(|one| (of(one), &*one.external)).collect();
    runs.sort_unstable();
    runs
}

#[tokio::test]
async fn an_order_whose_answers_are_lost_starts_nothing_twice() {
    let cloud = Cloud::start(0).await;
    let provider = provider(&cloud).await;
    let two = order(vec![known(1, None), known(2, None)]);
    // The library asks again by itself, and none of its answers arrives.
    cloud.lose("SetDesiredCapacity", 3);
    let lost = provider.start(&two).await;
    assert!(matches!(lost, Err(Error::Unclear(_))), "{lost:?}");
    assert_eq!(cloud.asked("SetDesiredCapacity"), 3);
    cloud.pass();
    assert_eq!(cloud.launched(), 2);
    // A coordinator that was killed then places it again, before and after its instances are there.
    provider.start(&two).await.unwrap();
    cloud.pass();
    provider.start(&two).await.unwrap();
    assert_eq!((cloud.launched(), cloud.desired()), (2, 2));
    let listed = provider.list(&two.known).await.unwrap();
    assert_eq!(running(&listed), [(1, "i-0001"), (2, "i-0002")]);
    // EC2 takes one back, and the group replaces it before anybody looks.
    cloud.interrupt("i-0001");
    cloud.pass();
    provider.start(&two).await.unwrap();
    cloud.pass();
    let listed = provider.list(&two.known).await.unwrap();
    assert_eq!(running(&listed), [(1, "i-0002"), (2, "i-0003")]);
    assert_eq!((cloud.launched(), cloud.desired()), (3, 2));
}

#[tokio::test]
async fn an_end_whose_answer_is_lost_ends_one_instance_and_lowers_the_capacity_once() {
    let cloud = Cloud::start(3).await;
    cloud.pass();
    let provider = provider(&cloud).await;
    let ends = [Box::from("i-0002")];
    cloud.lose("TerminateInstanceInAutoScalingGroup", 1);
    let lost = provider.end(&ends).await;
    assert!(matches!(lost, Err(Error::Unclear(_))), "{lost:?}");
    assert_eq!(cloud.asked("TerminateInstanceInAutoScalingGroup"), 1);
    // As the next look does; and what is gone is no error.
    provider.end(&ends).await.unwrap();
    cloud.pass();
    provider.end(&ends).await.unwrap();
    assert_eq!((cloud.desired(), cloud.launched()), (2, 3));
    assert_eq!(cloud.there(), ["i-0001", "i-0003"]);
}

#[tokio::test]
async fn an_end_whose_request_is_lost_is_asked_for_again() {
    let cloud = Cloud::start(1).await;
    cloud.pass();
    let provider = provider(&cloud).await;
    cloud.drop_requests("TerminateInstanceInAutoScalingGroup", 1);
    provider.end(&["i-0001".into()]).await.unwrap_err();
    provider.end(&["i-0001".into()]).await.unwrap();
    cloud.pass();
    assert_eq!((cloud.desired(), cloud.there().len()), (0, 0));
}

#[tokio::test]
async fn when_ends_take_long_the_others_wait_for_the_next_look() {
    let cloud = Cloud::start(3).await;
    cloud.pass();
    let provider = GroupProvider {
        ends: Duration::ZERO,
        ..provider(&cloud).await
    };
    let all = ["i-0001", "i-0002", "i-0003"].map(Box::from);
    for left in [2, 1, 0] {
        provider.end(&all).await.unwrap();
        cloud.pass();
        assert_eq!((cloud.there().len(), cloud.desired()), (left, left));
    }
}

#[tokio::test]
async fn a_list_is_good_although_the_group_refuses_what_follows_from_it() {
    let cloud = Cloud::start(2).await;
    cloud.pass();
    cloud.set(|group| {
        group.min = 1;
        group.refused = vec![
            "SetInstanceProtection",
            "SetDesiredCapacity",
            "DescribeScalingActivities",
        ];
        group.protects = false;
    });
    cloud.interrupt("i-0002");
    let provider = provider(&cloud).await;
    cloud.set(|group| group.instances[0].2 = false);
    let inventory = [known(1, Some("i-0001"))];
    let listed = provider.list(&inventory).await.unwrap();
    assert_eq!(running(&listed), [(1, "i-0001")]);
    let remark = provider.remark().unwrap();
    for part in [
        "could not be protected: SetInstanceProtection failed with AccessDenied",
        "it is to have 1 instances and not 2: SetDesiredCapacity failed with AccessDenied",
    ] {
        assert!(remark.contains(part), "{remark}");
    }
    // Nor does it need to know why something is missing.
    let two = [known(1, Some("i-0001")), known(2, None)];
    let listed = provider.list(&two).await.unwrap();
    assert_eq!(running(&listed), [(1, "i-0001")]);
    let remark = provider.remark().unwrap();
    assert!(
        remark.contains("why launches fail is not known"),
        "{remark}"
    );
    cloud.set(|group| group.refused.clear());
    provider.list(&inventory).await.unwrap();
    assert_eq!((provider.remark(), cloud.desired()), (None, 1));
    // The group's minimum forbids the last end, and people are told of both.
    let refused = provider.end(&["i-0001".into()]).await.unwrap_err();
    assert!(refused.to_string().contains("min size"), "{refused}");
    provider.list(&[]).await.unwrap();
    assert!(provider.remark().unwrap().contains("min_size keeps 1"));
    cloud.pass();
    assert_eq!(cloud.there(), ["i-0001"]);
}

#[tokio::test]
async fn one_that_stands_by_is_not_replaced_and_ends_without_lowering_anything() {
    let cloud = Cloud::start(1).await;
    cloud.pass();
    cloud.set(|group| {
        group.instances[0].1 = "Standby";
        group.desired = 0;
    });
    let provider = provider(&cloud).await;
    let inventory = vec![known(1, Some("i-0001")), known(2, None)];
    provider.start(&order(inventory.clone())).await.unwrap();
    cloud.pass();
    let listed = provider.list(&inventory).await.unwrap();
    assert_eq!(running(&listed), [(1, "i-0001"), (2, "i-0002")]);
    provider.end(&["i-0001".into()]).await.unwrap();
    cloud.pass();
    assert_eq!(cloud.there(), ["i-0002"]);
    assert_eq!((cloud.desired(), cloud.launched()), (1, 2));
}

#[tokio::test]
async fn only_launches_that_failed_speak_against_an_order() {
    let cloud = Cloud::start(1).await;
    cloud.set(|group| {
        group.activities = vec![
            ("Launching a new EC2 instance", "Failed", "no such image"),
            (
                "Terminating EC2 instance: i-0009",
                "Cancelled",
                "called off",
            ),
        ];
    });
    let provider = provider(&cloud).await;
    let listed = provider.list(&[known(1, None)]).await.unwrap();
    let detail = "no such image".into();
    assert_eq!(listed[0].state, Sighted::Ended { detail });
    let listed = provider.list(&[known(2, None)]).await.unwrap();
    assert_eq!(listed[0].state, Sighted::Unknown, "told once");
}

#[tokio::test]
async fn a_group_of_two_hundred_is_listed_and_protected_whole() {
    let cloud = Cloud::start(200).await;
    cloud.pass();
    cloud.set(|group| group.instances.iter_mut().for_each(|one| one.2 = false));
    let provider = provider(&cloud).await;
    let inventory: Vec<Known> = (1..=200).map(|id| known(id, None)).collect();
    let listed = provider.list(&inventory).await.unwrap();
    assert_eq!((running(&listed).len(), provider.remark()), (200, None));
    assert_eq!(cloud.asked("SetInstanceProtection"), 4);
}

#[tokio::test]
async fn what_a_group_has_no_place_for_waits_for_a_larger_one_while_the_rest_runs() {
    let cloud = Cloud::start(0).await;
    cloud.set(|group| group.max = 1);
    let provider = provider(&cloud).await;
    let three = order(vec![known(1, None), known(2, None), known(3, None)]);
    provider.start(&three).await.unwrap();
    cloud.pass();
    let listed = provider.list(&three.known).await.unwrap();
    assert_eq!(running(&listed), [(1, "i-0001")]);
    let held = listed.iter().filter_map(|one| match &one.state {
        Sighted::Held { reason } => Some(&**reason),
        _ => None,
    });
    let told = "the pool wants 3 instances, and the most that its auto scaling group may have is 1: \
                raise its `max_size`, or lower the pool's `max`";
    assert_eq!(held.collect::<Vec<_>>(), [told, told]);
    let inventory = [known(1, Some("i-0001")), known(2, None), known(3, None)];
    cloud.set(|group| group.max = 2);
    provider.list(&inventory).await.unwrap();
    cloud.pass();
    let listed = provider.list(&inventory).await.unwrap();
    assert_eq!(running(&listed), [(1, "i-0001"), (2, "i-0002")]);
    assert_eq!((cloud.desired(), cloud.launched()), (2, 2));
}
