# What a pool consists of, against a provider that answers without any cloud.

mock_provider "aws" {
  mock_data "aws_region" {
    defaults = { name = "eu-west-1" }
  }
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
  mock_data "aws_caller_identity" {
    defaults = { account_id = "123456789012" }
  }
  mock_data "aws_ami" {
    defaults = { id = "ami-0a0b0c0d" }
  }
  mock_data "aws_iam_policy_document" {
    defaults = { json = "{\"Version\":\"2012-10-17\",\"Statement\":[]}" }
  }
  mock_resource "aws_launch_template" {
    defaults = {
      id             = "lt-0123456789abcdef0"
      latest_version = 1
    }
  }
  mock_resource "aws_iam_instance_profile" {
    defaults = { arn = "arn:aws:iam::123456789012:instance-profile/muster-worker-build" }
  }
}

variables {
  name        = "build"
  vpc_id      = "vpc-0123456789abcdef0"
  subnet_ids  = ["subnet-0123456789abcdef0", "subnet-0123456789abcdef1"]
  coordinator = "10.0.0.10:7733"
  ca_pem      = <<-PEM
    -----BEGIN CERTIFICATE-----
    MIIBdjCCAR2gAwIBAgIUC4ULzUuRmOyK1yxo3IPG31NaCTQwCgYIKoZIzj0EAwIw
    -----END CERTIFICATE-----
  PEM
  max         = 4
  slots       = 2
  labels      = ["gpu", "os=debian"]
  resources   = { cpus = 8 }
}

run "instances_are_closed_and_encrypted" {
  assert {
    condition     = aws_launch_template.worker.metadata_options[0].http_tokens == "required"
    error_message = "IMDSv1 must be refused"
  }
  assert {
    condition     = aws_launch_template.worker.metadata_options[0].http_put_response_hop_limit == 1
    error_message = "the metadata service is for the instance itself"
  }
  assert {
    condition     = alltrue([for mapping in aws_launch_template.worker.block_device_mappings : mapping.ebs[0].encrypted == "true" && mapping.ebs[0].volume_type == "gp3"])
    error_message = "volumes are encrypted gp3"
  }
  assert {
    condition     = length(aws_launch_template.worker.block_device_mappings) == 1
    error_message = "there is one volume"
  }
  assert {
    condition     = length(aws_launch_template.worker.network_interfaces) == 0 && length(aws_launch_template.worker.vpc_security_group_ids) == 1
    error_message = "the one security group is ours"
  }
  assert {
    condition     = toset([for rule in aws_security_group.worker.egress : rule.from_port]) == toset([80, 443, 7733])
    error_message = "what goes out: the coordinator's port, 80 and 443"
  }
  assert {
    condition     = alltrue([for rule in aws_security_group.worker.egress : rule.protocol == "tcp" && rule.from_port == rule.to_port])
    error_message = "single TCP ports only"
  }
}

run "nothing_comes_in" {
  # A plan knows that no ingress is asked for; after an apply the provider computes it.
  command = plan
  override_resource {
    target = aws_security_group.worker
    values = { ingress = [] }
  }
  assert {
    condition     = try(length(aws_security_group.worker.ingress), 0) == 0
    error_message = "nobody connects to a worker"
  }
}

run "the_role_may_nothing" {
  assert {
    condition     = length(aws_iam_role_policies_exclusive.worker.policy_names) == 0
    error_message = "no inline policy"
  }
  assert {
    condition     = length(aws_iam_role_policy_attachments_exclusive.worker.policy_arns) == 0
    error_message = "no attached policy"
  }
  assert {
    condition     = jsondecode(aws_iam_role.worker.assume_role_policy).Statement[0].Principal.Service == "ec2.amazonaws.com" && length(jsondecode(aws_iam_role.worker.assume_role_policy).Statement) == 1
    error_message = "only instances have it"
  }
  assert {
    condition     = aws_iam_role.worker.name == "muster-worker-build" && aws_iam_instance_profile.worker.role == "muster-worker-build"
    error_message = "the role is named after the pool"
  }
}

run "the_group_is_the_coordinators_business" {
  assert {
    condition     = aws_autoscaling_group.worker.name == "muster-build"
    error_message = "the group is named after the pool"
  }
  assert {
    condition     = aws_autoscaling_group.worker.min_size == 0 && aws_autoscaling_group.worker.max_size == 4
    error_message = "from none to max"
  }
  assert {
    condition     = aws_autoscaling_group.worker.protect_from_scale_in
    error_message = "the group ends nothing by itself"
  }
  assert {
    condition     = aws_autoscaling_group.worker.suspended_processes == toset(["AZRebalance"])
    error_message = "nor to move it to another zone"
  }
  assert {
    condition     = aws_autoscaling_group.worker.capacity_rebalance == false
    error_message = "nor because capacity is at risk"
  }
  assert {
    condition     = alltrue([for tag in aws_autoscaling_group.worker.tag : tag.propagate_at_launch])
    error_message = "instances have the group's tags"
  }
  assert {
    condition     = aws_autoscaling_group.worker.mixed_instances_policy[0].instances_distribution[0].on_demand_percentage_above_base_capacity == 0
    error_message = "all spot unless told otherwise"
  }
}

run "user_data_holds_what_a_worker_needs_and_no_secret" {
  assert {
    condition     = base64decode(aws_launch_template.worker.user_data) == output.user_data
    error_message = "the output is what instances get"
  }
  assert {
    condition     = startswith(output.user_data, "#cloud-config\n") && length(output.user_data) < 16384
    error_message = "cloud-config of less than 16 KiB"
  }
  assert {
    condition     = !can(regex("(?i)token-file|secret_access|aws_access_key|PRIVATE KEY|password|muster_[A-Za-z0-9_-]{20}", output.user_data))
    error_message = "nothing that looks like a secret"
  }
  assert {
    condition     = !strcontains(jsonencode(aws_autoscaling_group.worker.tag), "BEGIN")
    error_message = "nor in tags"
  }
  assert {
    condition     = yamldecode(output.user_data).runcmd == [["/usr/local/lib/muster/bootstrap"]]
    error_message = "the script is run"
  }
  assert {
    condition = [for file in yamldecode(output.user_data).write_files : file.content if file.path == "/etc/muster/worker.env"] == [
      "MUSTER_COORDINATOR=10.0.0.10:7733\nMUSTER_POOL=build\nSLOTS=2\nWORKER_OPTIONS=--label gpu --label os=debian --resource cpus=8\n"
    ]
    error_message = "the worker's variables"
  }
  assert {
    condition = [for file in yamldecode(output.user_data).write_files : file.content if file.path == "/usr/local/lib/muster/bootstrap"] == [
      file("bootstrap.sh")
    ]
    error_message = "the script arrives as it is, to the last character"
  }
}

run "the_section_for_the_coordinator" {
  assert {
    condition     = output.config == <<-TOML
      [pools.build]
      kind = "ec2"
      group = "muster-build"
      region = "eu-west-1"
      role = "arn:aws:iam::123456789012:role/muster-worker-build"
      max = 4
      slots = 2
      labels = ["gpu", "os=debian"]
      resources = { cpus = 8 }
    TOML
    error_message = output.config
  }
  assert {
    condition     = output.group_arn == "arn:aws:autoscaling:eu-west-1:123456789012:autoScalingGroup:*:autoScalingGroupName/muster-build"
    error_message = output.group_arn
  }
}

run "without_an_authority_there_are_no_instances" {
  variables {
    ca_pem = ""
  }
  assert {
    condition     = aws_autoscaling_group.worker.max_size == 0
    error_message = "an instance could not join"
  }
  assert {
    condition     = !strcontains(output.user_data, "path: /etc/muster/ca.pem")
    error_message = "no empty certificate"
  }
}

run "a_program_from_elsewhere_and_a_setup" {
  variables {
    program_url    = "https://example.org/worker-agent"
    program_sha256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    setup          = "#!/bin/sh\necho \"it's: $HOME\" | tee /etc/motd\n"
  }
  assert {
    condition = [for file in yamldecode(output.user_data).write_files : file.content if file.path == "/usr/local/lib/muster/setup"] == [
      "#!/bin/sh\necho \"it's: $HOME\" | tee /etc/motd\n"
    ]
    error_message = "the setup arrives as it is"
  }
}

run "a_private_key_is_refused" {
  command = plan
  variables {
    ca_pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"
  }
  expect_failures = [var.ca_pem]
}

run "what_would_be_torn_apart_by_a_shell_is_refused" {
  command = plan
  variables {
    labels         = ["a b"]
    worker_options = ["$(id)"]
    coordinator    = "host"
    name           = "Build_1"
    resources      = { cpus = 1.5 }
  }
  expect_failures = [var.labels, var.worker_options, var.coordinator, var.name, var.resources]
}

run "every_bound_is_checked" {
  command = plan
  variables {
    subnet_ids               = ["subnet-1", "subnet-1"]
    coordinator              = "10.0.0.10:70000"
    coordinator_id           = "6D2BC2CC"
    coordinator_cidrs        = []
    egress                   = [{ port = 0, cidrs = ["0.0.0.0/0"] }]
    max                      = 0
    slots                    = 0
    volume_gib               = 4
    instance_types           = []
    on_demand_base           = -1
    on_demand_percentage     = 101
    spot_allocation_strategy = "cheapest"
    packages                 = ["Build Essential"]
    ami_id                   = "debian-13"
  }
  expect_failures = [
    var.subnet_ids, var.coordinator, var.coordinator_id, var.coordinator_cidrs, var.egress, var.max, var.slots,
    var.volume_gib, var.instance_types, var.on_demand_base, var.on_demand_percentage,
    var.spot_allocation_strategy, var.packages, var.ami_id,
  ]
}

run "there_are_two_architectures" {
  command = plan
  variables {
    architecture = "aarch64"
  }
  expect_failures = [var.architecture]
}

run "an_image_of_another_architecture_than_the_types_is_refused" {
  command = plan
  variables {
    architecture = "arm64"
  }
  expect_failures = [var.instance_types]
}

run "graviton_with_arm64" {
  variables {
    architecture   = "arm64"
    instance_types = ["m7g.large", "c7gn.large", "im4gn.large", "x2gd.large", "a1.large"]
  }
  assert {
    condition     = strcontains(output.user_data, "ARCHITECTURE=aarch64\\n")
    error_message = "the program is asked for by the coordinator's name for it"
  }
}

run "x86_64_with_a_g" {
  variables {
    instance_types = ["g4dn.xlarge", "g6.xlarge", "m7i-flex.large"]
  }
  assert {
    condition     = length(aws_autoscaling_group.worker.mixed_instances_policy[0].launch_template[0].override) == 3
    error_message = "GPUs are no Graviton"
  }
}

run "a_program_needs_its_sum" {
  command = plan
  variables {
    program_url = "https://example.org/worker-agent"
  }
  expect_failures = [var.program_sha256]
}

run "a_signed_address_is_a_secret" {
  command = plan
  variables {
    program_url    = "https://bucket.s3.amazonaws.com/worker-agent?X-Amz-Signature=abc"
    program_sha256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
  }
  expect_failures = [var.program_url]
}

run "user_data_has_a_limit" {
  command = plan
  variables {
    setup = join("\n", [for line in range(600) : "echo this is line ${line} of far too many lines"])
  }
  expect_failures = [aws_launch_template.worker]
}
