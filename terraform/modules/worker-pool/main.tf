# A pool of workers: one auto scaling group, whose size is the coordinator's business alone.

data "aws_region" "current" {}

data "aws_partition" "current" {}

data "aws_caller_identity" "current" {}

# Official images of Debian 13. Debian 12 has a git that is too old.
data "aws_ami" "debian" {
  count       = var.ami_id == null ? 1 : 0
  most_recent = true
  owners      = ["136693071363"]

  filter {
    name   = "name"
    values = ["debian-13-${var.architecture == "arm64" ? "arm64" : "amd64"}-*"]
  }
  filter {
    name   = "virtualization-type"
    values = ["hvm"]
  }
}

locals {
  group = "muster-${var.name}"
  role  = "muster-worker-${var.name}"
  tags  = merge(var.tags, { "muster:pool" = var.name })

  options = concat(
    flatten([for label in var.labels : ["--label", label]]),
    flatten([for name, amount in var.resources : ["--resource", "${name}=${amount}"]]),
    var.worker_options,
  )

  user_data = templatefile("${path.module}/user-data.yaml.tftpl", {
    packages  = distinct(concat(["ca-certificates", "curl", "git"], var.packages))
    ca_pem    = trimspace(replace(var.ca_pem, "\r\n", "\n"))
    bootstrap = trimspace(file("${path.module}/bootstrap.sh"))
    unit      = trimspace(file("${path.module}/muster-worker.service"))
    setup     = trimspace(replace(var.setup, "\r\n", "\n"))
    worker_env = join("\n", [
      "MUSTER_COORDINATOR=${var.coordinator}",
      "MUSTER_POOL=${var.name}",
      "SLOTS=${var.slots}",
      "WORKER_OPTIONS=${join(" ", local.options)}",
    ])
    bootstrap_env = join("\n", [
      "COORDINATOR=${var.coordinator}",
      "ARCHITECTURE=${var.architecture == "arm64" ? "aarch64" : "x86_64"}",
      "PROGRAM_URL='${var.program_url}'",
      "PROGRAM_SHA256=${var.program_sha256}",
    ])
  })
}

resource "aws_security_group" "worker" {
  name_prefix = "${local.group}-"
  description = "Workers of the Muster pool ${var.name}: nothing comes in"
  vpc_id      = var.vpc_id
  tags        = merge(local.tags, { Name = local.group })

  # No `ingress`: workers connect to the coordinator, and nobody to them.
  egress {
    description = "coordinator"
    protocol    = "tcp"
    from_port   = tonumber(regex("[0-9]+$", var.coordinator))
    to_port     = tonumber(regex("[0-9]+$", var.coordinator))
    cidr_blocks = var.coordinator_cidrs
  }

  dynamic "egress" {
    for_each = var.egress
    content {
      description = "TCP ${egress.value.port}"
      protocol    = "tcp"
      from_port   = egress.value.port
      to_port     = egress.value.port
      cidr_blocks = egress.value.cidrs
    }
  }

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_launch_template" "worker" {
  name                   = local.group
  description            = "A worker of the Muster pool ${var.name}"
  image_id               = var.ami_id == null ? data.aws_ami.debian[0].id : var.ami_id
  instance_type          = var.instance_types[0]
  vpc_security_group_ids = [aws_security_group.worker.id]
  user_data              = base64encode(local.user_data)
  update_default_version = true
  ebs_optimized          = true
  # What a task does to the machine ends with it.
  instance_initiated_shutdown_behavior = "terminate"

  iam_instance_profile {
    arn = aws_iam_instance_profile.worker.arn
  }

  metadata_options {
    http_endpoint = "enabled"
    http_tokens   = "required"
    # What is behind a bridge, such as a container, does not reach it.
    http_put_response_hop_limit = 1
    instance_metadata_tags      = "disabled"
  }

  block_device_mappings {
    device_name = var.root_device
    ebs {
      volume_type           = "gp3"
      volume_size           = var.volume_gib
      encrypted             = true
      kms_key_id            = var.kms_key_id
      delete_on_termination = true
    }
  }

  monitoring {
    enabled = false
  }

  dynamic "tag_specifications" {
    for_each = ["instance", "volume", "network-interface"]
    content {
      resource_type = tag_specifications.value
      tags          = merge(local.tags, { Name = local.group })
    }
  }

  tags = local.tags

  lifecycle {
    precondition {
      condition     = length(base64encode(local.user_data)) * 3 / 4 <= 16384
      error_message = "The user data is larger than 16 KiB, which EC2 refuses: shorten `setup`."
    }
  }
}

resource "aws_autoscaling_group" "worker" {
  name = local.group
  # The coordinator alone says how many, from none to `max`.
  min_size         = 0
  max_size         = var.ca_pem == "" ? 0 : var.max
  desired_capacity = 0

  vpc_zone_identifier = var.subnet_ids
  capacity_rebalance  = var.capacity_rebalance
  # The group never chooses which instance ends: the coordinator ends those that it has drained.
  protect_from_scale_in = true
  suspended_processes   = ["AZRebalance"]
  # An instance that is broken is found by the coordinator, which knows whether its worker lives.
  health_check_type = "EC2"
  # A destroy ends what still runs, protected or not.
  force_delete              = true
  wait_for_capacity_timeout = "0"

  mixed_instances_policy {
    launch_template {
      launch_template_specification {
        launch_template_id = aws_launch_template.worker.id
        version            = aws_launch_template.worker.latest_version
      }
      dynamic "override" {
        for_each = var.instance_types
        content {
          instance_type = override.value
        }
      }
    }
    instances_distribution {
      on_demand_base_capacity                  = var.on_demand_base
      on_demand_percentage_above_base_capacity = var.on_demand_percentage
      spot_allocation_strategy                 = var.spot_allocation_strategy
    }
  }

  dynamic "tag" {
    for_each = merge(local.tags, { Name = local.group }, var.coordinator_id == "" ? {} : { "muster:coordinator" = var.coordinator_id })
    content {
      key                 = tag.key
      value               = tag.value
      propagate_at_launch = true
    }
  }

  lifecycle {
    ignore_changes = [desired_capacity]
  }
}
