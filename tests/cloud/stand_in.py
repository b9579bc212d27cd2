"""Stands in for EC2, Auto Scaling, IAM and STS: moto, and where it differs from AWS in what matters here.

    python stand_in.py HOST PORT FAULTS

FAULTS is a folder. While it holds a file `no-capacity`, launches fail as they do when there is no spot
capacity; what was asked for is launched once the file is gone.
"""

import datetime
import os
import sys
import uuid

from moto.autoscaling import models, responses
from moto.autoscaling.exceptions import ValidationError
from moto.core.responses import ActionResult
from moto.ec2.models.instances import Instance
from moto.server import main

FAULTS = sys.argv[3]
ACTIVITIES_MAX = 100
activities = {}

Backend = models.AutoScalingBackend
Group = models.FakeAutoScalingGroup


def now():
    return datetime.datetime.now(datetime.timezone.utc)


def group_of(backend, name):
    group = backend.autoscaling_groups.get(name)
    if group is None:
        raise ValidationError(f"AutoScalingGroup name not found - AutoScalingGroup '{name}' not found")
    return group


def note(group, description, status, message):
    """Keeps an activity, newest first, as DescribeScalingActivities gives them."""
    kept = activities.setdefault(group.name, [])
    if kept and kept[0]["StatusCode"] == "Failed" == status:
        return
    kept.insert(
        0,
        {
            "ActivityId": str(uuid.uuid4()),
            "AutoScalingGroupName": group.name,
            "Description": description,
            "Cause": f"At {now():%Y-%m-%dT%H:%M:%SZ} a user request changed the desired capacity.",
            "StartTime": now(),
            "EndTime": now(),
            "StatusCode": status,
            "StatusMessage": message,
            "Progress": 100,
        },
    )
    del kept[ACTIVITIES_MAX:]


def without_capacity():
    return os.path.exists(os.path.join(FAULTS, "no-capacity"))


# A terminated instance gives back the interfaces that are not its own.
terminate = Instance.terminate


def terminate_and_detach(self):
    was = terminate(self)
    for interface in list(self.nics.values()):
        if not interface.delete_on_termination:
            # Not `detach_eni`: descriptions of the instance still ask for its first interface.
            interface.instance = None
            interface.attachment_id = None
            interface.attach_time = None
            interface.status = "available"
    return was


Instance.terminate = terminate_and_detach


# Launches fail, and are tried again, by the group itself.
launch = Group.replace_autoscaling_group_instances


def launch_or_fail(self, count_needed, propagated_tags):
    if without_capacity():
        note(
            self,
            "Launching a new EC2 instance.  Status Reason: Could not launch Spot Instances. "
            "UnfulfillableCapacity - Unable to fulfill capacity due to your request configuration. "
            "Please adjust your request and try again. Launching EC2 instance failed.",
            "Failed",
            "Could not launch Spot Instances. UnfulfillableCapacity - Unable to fulfill capacity due to "
            "your request configuration. Please adjust your request and try again. Launching EC2 instance failed.",
        )
        return
    before = {state.instance.id for state in self.instance_states}
    launch(self, count_needed, propagated_tags)
    for state in self.instance_states:
        if state.instance.id not in before:
            note(self, f"Launching a new EC2 instance: {state.instance.id}", "Successful", "")


Group.replace_autoscaling_group_instances = launch_or_fail

describe = Backend.describe_auto_scaling_groups


def retry_and_describe(self, names, filters=None):
    for group in self.autoscaling_groups.values():
        if group.desired_capacity and len(group.active_instances()) < group.desired_capacity:
            group.set_desired_capacity(group.desired_capacity)
    return describe(self, names, filters)


Backend.describe_auto_scaling_groups = retry_and_describe


# What AWS refuses is refused, not answered with an error of the server.
set_desired = Backend.set_desired_capacity


def set_desired_within_bounds(self, group_name, desired_capacity):
    group = group_of(self, group_name)
    if desired_capacity is not None and desired_capacity > group.max_size:
        raise ValidationError(
            f"New SetDesiredCapacity value {desired_capacity} is above max value {group.max_size} for the AutoScalingGroup."
        )
    if desired_capacity is not None and desired_capacity < group.min_size:
        raise ValidationError(
            f"New SetDesiredCapacity value {desired_capacity} is below min value {group.min_size} for the AutoScalingGroup."
        )
    return set_desired(self, group_name, desired_capacity)


Backend.set_desired_capacity = set_desired_within_bounds

# A group that is deleted by force takes its instances along, protected or not.
delete = Backend.delete_auto_scaling_group


def delete_with_instances(self, group_name, *others, **more):
    group = group_of(self, group_name)
    running = [state.instance.id for state in group.instance_states]
    delete(self, group_name, *others, **more)
    for instance_id in running:
        if self.ec2_backend.get_instance(instance_id).state == "running":
            self.ec2_backend.terminate_instances([instance_id])


Backend.delete_auto_scaling_group = delete_with_instances

terminate_in_group = Backend.terminate_instance


def terminate_known(self, instance_id, should_decrement):
    for group in self.autoscaling_groups.values():
        if any(state.instance.id == instance_id for state in group.instance_states):
            return terminate_in_group(self, instance_id, should_decrement)
    raise ValidationError(f"Instance Id not found - No managed instance found for instance ID: {instance_id}")


Backend.terminate_instance = terminate_known

protect = Backend.set_instance_protection


def protect_known(self, group_name, instance_ids, protected_from_scale_in):
    known = {state.instance.id for state in group_of(self, group_name).instance_states}
    for instance_id in instance_ids:
        if instance_id not in known:
            raise ValidationError(f"The instance {instance_id} is not part of Auto Scaling group {group_name}.")
    return protect(self, group_name, instance_ids, protected_from_scale_in)


Backend.set_instance_protection = protect_known


def describe_scaling_activities(self):
    name = self._get_param("AutoScalingGroupName")
    if name is not None:
        group_of(self.autoscaling_backend, name)
    found = [activity for group, kept in activities.items() if name in (None, group) for activity in kept]
    return ActionResult({"Activities": found})


responses.AutoScalingResponse.describe_scaling_activities = describe_scaling_activities

if __name__ == "__main__":
    # Else the policies that belong to AWS are not there to be attached.
    os.environ.setdefault("MOTO_IAM_LOAD_MANAGED_POLICIES", "true")
    main(["-H", sys.argv[1], "-p", sys.argv[2]])
