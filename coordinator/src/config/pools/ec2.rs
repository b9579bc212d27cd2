//! The keys of pools of EC2 instances.

use std::collections::BTreeMap;
use std::sync::Arc;

use muster_connect::identity_request;

use super::{Keys, PoolFile};
use crate::pool::settings::{Ec2Settings, PoolKind, PoolSettings, RoleArn};

/// Further ones of EC2 pools.
pub(super) const EC2: [&str; 4] = ["group", "region", "role", "poll"];

pub(super) fn read(keys: &mut Keys<'_, '_, '_>, name: &str) -> Option<PoolSettings> {
    let mut policy = keys.scaled(name, true);
    policy.stays = true;
    for (key, hint) in [
        (
            "group",
            "name the auto scaling group, as the Terraform module prints it",
        ),
        (
            "region",
            "name the group's region, such as `region = \"eu-west-1\"`",
        ),
        (
            "role",
            "name the role of its instances, as the Terraform module prints it",
        ),
    ] {
        if keys.get(key).is_none() {
            keys.missing(key, hint);
        }
    }
    let group = keys.text("group", "write the group's name", |text| {
        (1..=255).contains(&text.len()) && !text.contains(':')
    });
    let region = keys.text("region", "write a region such as \"eu-west-1\"", |text| {
        identity_request::host(text).is_some()
    });
    let role = keys.text(
        "role",
        "write its whole name, such as \"arn:aws:iam::123456789012:role/muster-worker\"",
        |text| RoleArn::parse(text).is_some(),
    );
    let poll = keys.poll();
    let settings = Ec2Settings {
        group: group?,
        region: region?,
        role: role.as_deref().and_then(RoleArn::parse)?,
        poll,
    };
    let kind = PoolKind::Ec2(Box::new(settings));
    Some(PoolSettings { policy, kind })
}

/// Names the pool that has the same group as `new`, if there is one.
pub(super) fn same_group<'a>(
    pools: &'a BTreeMap<Arc<str>, PoolFile>,
    new: &PoolFile,
) -> Option<&'a str> {
    let group = |pool: &PoolFile| match &pool.settings.kind {
        PoolKind::Ec2(settings) => Some((settings.region.clone(), settings.group.clone())),
        _ => None,
    };
    let wanted = group(new)?;
    let mut all = pools.iter();
    let found = all.find(|(_, pool)| group(pool).as_ref() == Some(&wanted));
    found.map(|(name, _)| &**name)
}
