# What a coordinator consists of, against a provider that answers without any cloud.

mock_provider "aws" {
  mock_data "aws_region" {
    defaults = { name = "eu-west-1" }
  }
  mock_data "aws_partition" {
    defaults = { partition = "aws", dns_suffix = "amazonaws.com" }
  }
  mock_data "aws_subnet" {
    defaults = { availability_zone = "eu-west-1a" }
  }
  mock_data "aws_ami" {
    defaults = { id = "ami-0a0b0c0d" }
  }
  mock_data "aws_iam_policy_document" {
    defaults = { json = "{\"Version\":\"2012-10-17\",\"Statement\":[]}" }
  }
  mock_resource "aws_ebs_volume" {
    defaults = { id = "vol-0123456789abcdef0" }
  }
  mock_resource "aws_network_interface" {
    defaults = { private_ip = "10.0.0.10" }
  }
  mock_resource "aws_eip" {
    defaults = { public_ip = "203.0.113.10" }
  }
}

variables {
  vpc_id                  = "vpc-0123456789abcdef0"
  subnet_id               = "subnet-0123456789abcdef0"
  allowed_cidrs           = ["203.0.113.7/32"]
  allowed_security_groups = { build = "sg-0123456789abcdef0" }
  config                  = "[pools.build]\nkind = \"ec2\"\n"
  group_arns              = ["arn:aws:autoscaling:eu-west-1:123456789012:autoScalingGroup:*:autoScalingGroupName/muster-build"]
  programs = {
    coordinator = { url = "https://example.org/coordinator", sha256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" }
    worker_agents = {
      x86_64  = { url = "https://example.org/x86_64", sha256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" }
      aarch64 = { url = "https://example.org/aarch64", sha256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" }
    }
  }
}

run "one_port_for_those_who_are_named" {
  assert {
    condition     = [for rule in aws_vpc_security_group_ingress_rule.people : [rule.cidr_ipv4, rule.from_port, rule.to_port, rule.ip_protocol]] == [["203.0.113.7/32", 7733, 7733, "tcp"]]
    error_message = "people come in at one port"
  }
  assert {
    condition     = [for rule in aws_vpc_security_group_ingress_rule.pool : [rule.referenced_security_group_id, rule.from_port, rule.to_port, rule.ip_protocol]] == [["sg-0123456789abcdef0", 7733, 7733, "tcp"]]
    error_message = "and so do workers"
  }
}

run "it_is_closed_and_encrypted" {
  assert {
    condition     = aws_instance.coordinator.metadata_options[0].http_tokens == "required" && aws_instance.coordinator.metadata_options[0].http_put_response_hop_limit == 1
    error_message = "IMDSv2 only, and for the instance itself"
  }
  assert {
    condition     = aws_instance.coordinator.root_block_device[0].encrypted && aws_ebs_volume.home.encrypted
    error_message = "both volumes are encrypted"
  }
}

run "its_home_and_address_outlive_it" {
  assert {
    condition     = aws_volume_attachment.home.volume_id == aws_ebs_volume.home.id && aws_volume_attachment.home.stop_instance_before_detaching
    error_message = "the home is a volume of its own"
  }
  assert {
    condition     = aws_ebs_volume.home.final_snapshot
    error_message = "and a snapshot of it stays"
  }
  assert {
    condition     = aws_instance.coordinator.network_interface != null && output.private_address == "10.0.0.10:7733" && output.address == "203.0.113.10:7733"
    error_message = "the address is an interface of its own"
  }
}

run "it_drives_its_groups_and_nothing_else" {
  assert {
    condition = toset(flatten([for statement in data.aws_iam_policy_document.groups.statement : statement.actions])) == toset([
      "autoscaling:DescribeAutoScalingGroups",
      "autoscaling:DescribeScalingActivities",
      "autoscaling:SetDesiredCapacity",
      "autoscaling:SetInstanceProtection",
      "autoscaling:TerminateInstanceInAutoScalingGroup",
    ])
    error_message = "exactly the calls that it makes"
  }
  assert {
    condition     = alltrue([for statement in data.aws_iam_policy_document.groups.statement : statement.sid == "See" ? alltrue([for action in statement.actions : startswith(action, "autoscaling:Describe")]) : toset(statement.resources) == toset(var.group_arns)])
    error_message = "what changes something names its groups"
  }
  assert {
    condition     = length(aws_iam_role_policy.groups) == 1
    error_message = "the role has that policy"
  }
}

run "sessions_need_no_more_than_this" {
  assert {
    condition = toset(flatten([for statement in data.aws_iam_policy_document.sessions.statement : statement.actions])) == toset([
      "ssm:UpdateInstanceInformation",
      "ssmmessages:CreateControlChannel",
      "ssmmessages:CreateDataChannel",
      "ssmmessages:OpenControlChannel",
      "ssmmessages:OpenDataChannel",
    ])
    error_message = "no parameter of the account can be read"
  }
  assert {
    condition     = length(aws_iam_role_policy.sessions) == 1
    error_message = "the role has that policy"
  }
}

run "nobody_gets_a_shell_unless_asked_for" {
  variables {
    ssm_access = false
    group_arns = []
  }
  assert {
    condition     = length(aws_iam_role_policy.sessions) == 0 && length(aws_iam_role_policy.groups) == 0
    error_message = "the role has no permission then"
  }
  assert {
    condition     = strcontains(output.user_data, "SSM_AGENT=\\n")
    error_message = "nor is the agent installed"
  }
}

run "user_data_holds_what_it_needs_and_no_secret" {
  assert {
    condition     = startswith(output.user_data, "#cloud-config\n") && length(output.user_data) < 16384
    error_message = "cloud-config of less than 16 KiB"
  }
  assert {
    condition     = !can(regex("(?i)token-file|secret_access|aws_access_key|PRIVATE KEY|password|muster_[A-Za-z0-9_-]{20}", output.user_data))
    error_message = "nothing that looks like a secret"
  }
  assert {
    condition = [for file in yamldecode(output.user_data).write_files : file.content if contains(["/usr/local/lib/muster/bootstrap", "/etc/systemd/system/muster-coordinator.service"], file.path)] == [
      file("bootstrap.sh"), file("muster-coordinator.service")
    ]
    error_message = "the files arrive as they are, to the last character"
  }
  assert {
    condition     = [for file in yamldecode(output.user_data).write_files : file.content if file.path == "/etc/muster/config.toml"] == [var.config]
    error_message = "the configuration too"
  }
}

run "there_are_two_architectures" {
  command = plan
  variables {
    architecture = "aarch64"
  }
  expect_failures = [var.architecture]
}

run "graviton_needs_arm64" {
  command = plan
  variables {
    instance_type = "t4g.medium"
  }
  expect_failures = [var.instance_type]
}

run "graviton_with_arm64" {
  variables {
    instance_type = "t4g.medium"
    architecture  = "arm64"
  }
  assert {
    condition     = strcontains(output.user_data, "ARCHITECTURE=aarch64\\n") && strcontains(output.user_data, "/debian_arm64/amazon-ssm-agent.deb")
    error_message = "everything is for that architecture"
  }
}

run "odd_names_sizes_and_types_are_refused" {
  command = plan
  variables {
    name          = "muster/coordinator"
    instance_type = "medium"
    home_gib      = 0.5
    ami_id        = "debian-13"
  }
  expect_failures = [var.name, var.instance_type, var.home_gib, var.ami_id]
}

run "a_signed_address_and_another_architecture_are_refused" {
  command = plan
  variables {
    programs = {
      coordinator   = { url = "https://bucket.s3.amazonaws.com/coordinator?X-Amz-Signature=abc", sha256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" }
      worker_agents = { arm64 = { url = "https://example.org/arm64", sha256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" } }
    }
  }
  expect_failures = [var.programs]
}

run "user_data_has_a_limit" {
  command = plan
  variables {
    config = join("\n", [for line in range(600) : "# this is line ${line} of far too many lines"])
  }
  override_resource {
    target          = aws_ebs_volume.home
    override_during = plan
    values          = { id = "vol-0123456789abcdef0" }
  }
  expect_failures = [aws_instance.coordinator]
}

run "a_low_port_and_odd_programs_are_refused" {
  command = plan
  variables {
    port          = 443
    allowed_cidrs = ["everybody"]
    group_arns    = ["*"]
    programs = {
      coordinator   = { url = "http://example.org/coordinator", sha256 = "abc" }
      worker_agents = {}
    }
  }
  expect_failures = [var.port, var.allowed_cidrs, var.group_arns, var.programs]
}
