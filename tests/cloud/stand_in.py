"""Stands in for EC2, Auto Scaling, IAM and STS: moto, and where it differs from AWS in what matters here.

    python stand_in.py HOST PORT FOLDER

While FOLDER/faults holds a file `no-capacity`, launches fail as they do when there is no spot capacity; what
was asked for is launched once the file is gone. A file `api` beside it says what else is wrong: see faults.py.
FOLDER/calls gets a line for each call: who (a role's name, else the access key), the action as policies name
it, and `allowed` or `denied`. FOLDER/machines holds for each instance a folder, whose file `console` is what
it has printed.
"""

import base64
import datetime
import fnmatch
import json
import os
import sys
import urllib.parse
import uuid

# Debian's, which are not among those that moto knows.
os.environ.setdefault("MOTO_AMIS_PATH", os.path.join(os.path.dirname(__file__), "images.json"))

from faults import Faulty
from moto import server
from moto.autoscaling import models, responses
from moto.autoscaling.exceptions import ValidationError
from moto.core.responses import ActionResult, BaseResponse
from moto.ec2.models.instances import Instance
from moto.ec2.models.launch_templates import LaunchTemplateVersion
from moto.ec2.responses.general import General
from moto.ec2.utils import parse_user_data
from moto.iam.models import iam_backends
from moto.sts.models import sts_backends
from werkzeug.exceptions import Forbidden

FAULTS = os.path.join(sys.argv[3], "faults")
CALLS = os.path.join(sys.argv[3], "calls")
MACHINES = os.path.join(sys.argv[3], "machines")
CONSOLE_BYTES_MAX = 64 * 1024
OWN_INTERFACE = "Primary network interface"
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


# A terminated instance gives back the interfaces that are not its own; those that are end with it.
terminate = Instance.terminate


def terminate_and_detach(self):
    was = terminate(self)
    for interface in list(self.nics.values()):
        # Descriptions of the instance still ask for its first interface, so it stays in `nics`.
        if interface.description == OWN_INTERFACE:
            self.ec2_backend.enis.pop(interface.id, None)
        elif not interface.delete_on_termination:
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

# The console of an instance, as the serial line gives it.
def get_console_output(self):
    instance = self.ec2_backend.get_instance(self._get_param("InstanceId"))
    try:
        with open(os.path.join(MACHINES, instance.id, "console"), "rb") as file:
            text = file.read()[-CONSOLE_BYTES_MAX:]
    except FileNotFoundError:
        text = b""
    text = text.replace(b"\n", b"\r\n")
    result = {"InstanceId": instance.id, "Timestamp": now(), "Output": base64.b64encode(text).decode()}
    return ActionResult(result)


General.get_console_output = get_console_output


# The user data of a template's later versions are as good as those of its first.
def user_data(self):
    value = self.data.get("UserData")
    return parse_user_data(value) if isinstance(value, str) else value


LaunchTemplateVersion.user_data = property(user_data)


# Whoever has credentials of a role may do what its policies say and no more. Others, such as whoever runs
# Terraform, may do everything.
def role_of(key):
    for by_partition in sts_backends.values():
        for backend in by_partition.values():
            for assumed in backend.assumed_roles:
                if assumed.access_key_id == key:
                    return assumed.role_arn.rsplit("/", 1)[-1]
    return None


def as_list(value):
    return value if isinstance(value, list) else [value]


def statements(account, role):
    """Gives the statements of the role's own policies; those of AWS are not looked at."""
    backend = iam_backends[account]["aws"]
    for name in backend.list_role_policies(role):
        _, document = backend.get_role_policy(role, name)
        yield from as_list(json.loads(urllib.parse.unquote(document))["Statement"])


def group_named(response):
    """Gives the ARN of the group that a call is about."""
    backend = response.autoscaling_backend
    name, instance = response._get_param("AutoScalingGroupName"), response._get_param("InstanceId")
    for group in backend.autoscaling_groups.values():
        if group.name == name or any(state.instance.id == instance for state in group.instance_states):
            return group.arn
    return "nothing"


def allows(response, role, action):
    if action == "sts:GetCallerIdentity":
        return True
    # IAM knows no resource for descriptions: only a statement about everything allows them.
    changes = action.startswith("autoscaling:") and ":Describe" not in action
    resource = group_named(response) if changes else "*"
    for statement in statements(response.current_account, role):
        actions, resources = as_list(statement["Action"]), as_list(statement["Resource"])
        if (
            statement["Effect"] == "Allow"
            and any(fnmatch.fnmatchcase(action, pattern) for pattern in actions)
            and any(fnmatch.fnmatchcase(resource, pattern) for pattern in resources)
        ):
            return True
    return False


def authorize(self, _resource="*"):
    action = f"{self.service_name}:{self._get_action()}"
    key = self.get_access_key()
    role = role_of(key)
    fine = role is None or allows(self, role, action)
    with open(CALLS, "a") as file:
        file.write(f"{role or key} {action} {'allowed' if fine else 'denied'}\n")
    if not fine:
        refusal = Forbidden()
        refusal.description = (
            "<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code><Message>"
            f"User: {role} is not authorized to perform: {action}"
            "</Message></Error><RequestId>0</RequestId></ErrorResponse>"
        )
        raise refusal


BaseResponse._authenticate_and_authorize_normal_action = authorize

if __name__ == "__main__":
    # Else the policies that belong to AWS are not there to be attached.
    os.environ.setdefault("MOTO_IAM_LOAD_MANAGED_POLICIES", "true")
    run = server.run_simple
    server.run_simple = lambda host, port, app, **more: run(host, port, Faulty(app, FAULTS), **more)
    server.main(["-H", sys.argv[1], "-p", sys.argv[2]])
