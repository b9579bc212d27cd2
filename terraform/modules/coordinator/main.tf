# A coordinator: an instance that can be made anew at any time. What must stay is not in it: its home is
# a volume, its address a network interface.

data "aws_region" "current" {}

data "aws_partition" "current" {}

data "aws_subnet" "home" {
  id = var.subnet_id
}

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
  tags = merge(var.tags, { Name = var.name })
  ssm_agent = join("/", [
    "https://s3.${data.aws_region.current.name}.${data.aws_partition.current.dns_suffix}/amazon-ssm-${data.aws_region.current.name}/latest",
    "debian_${var.architecture == "arm64" ? "arm64" : "amd64"}/amazon-ssm-agent.deb",
  ])

  # One line a program: its place, its SHA-256, where it comes from.
  programs = join("\n", concat(
    ["coordinator ${var.programs.coordinator.sha256} ${var.programs.coordinator.url}"],
    [for architecture, program in var.programs.worker_agents : "worker-agent-${architecture} ${program.sha256} ${program.url}"],
  ))

  user_data = templatefile("${path.module}/user-data.yaml.tftpl", {
    bootstrap = trimspace(file("${path.module}/bootstrap.sh"))
    unit      = trimspace(file("${path.module}/muster-coordinator.service"))
    config    = trimspace(replace(var.config, "\r\n", "\n"))
    programs  = local.programs
    coordinator_env = join("\n", [
      "MUSTER_HOME=/var/lib/muster/home",
      "LISTEN=0.0.0.0:${var.port}",
    ])
    bootstrap_env = join("\n", [
      "VOLUME=${aws_ebs_volume.home.id}",
      "ARCHITECTURE=${var.architecture == "arm64" ? "aarch64" : "x86_64"}",
      "SSM_AGENT=${var.ssm_access ? local.ssm_agent : ""}",
    ])
  })
}

resource "aws_security_group" "coordinator" {
  name_prefix = "${var.name}-"
  description = "Muster coordinator: one port"
  vpc_id      = var.vpc_id
  tags        = local.tags

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_vpc_security_group_ingress_rule" "people" {
  for_each          = toset(var.allowed_cidrs)
  security_group_id = aws_security_group.coordinator.id
  description       = "people"
  ip_protocol       = "tcp"
  from_port         = var.port
  to_port           = var.port
  cidr_ipv4         = each.value
  tags              = local.tags
}

resource "aws_vpc_security_group_ingress_rule" "pool" {
  for_each                     = var.allowed_security_groups
  security_group_id            = aws_security_group.coordinator.id
  description                  = "workers of ${each.key}"
  ip_protocol                  = "tcp"
  from_port                    = var.port
  to_port                      = var.port
  referenced_security_group_id = each.value
  tags                         = local.tags
}

# Packages and AWS itself: nothing else is dialled, unless `mirror` pushes elsewhere by https.
resource "aws_vpc_security_group_egress_rule" "web" {
  for_each          = toset(["80", "443"])
  security_group_id = aws_security_group.coordinator.id
  description       = "packages and the interfaces of AWS"
  ip_protocol       = "tcp"
  from_port         = tonumber(each.value)
  to_port           = tonumber(each.value)
  cidr_ipv4         = "0.0.0.0/0"
  tags              = local.tags
}

# The address outlives the instance.
resource "aws_network_interface" "coordinator" {
  subnet_id       = var.subnet_id
  security_groups = [aws_security_group.coordinator.id]
  description     = var.name
  tags            = local.tags
}

resource "aws_eip" "coordinator" {
  count  = var.public_address ? 1 : 0
  domain = "vpc"
  tags   = local.tags
}

resource "aws_eip_association" "coordinator" {
  count                = var.public_address ? 1 : 0
  allocation_id        = aws_eip.coordinator[0].id
  network_interface_id = aws_network_interface.coordinator.id
}

resource "aws_route53_record" "coordinator" {
  count   = var.dns == null ? 0 : 1
  zone_id = var.dns.zone_id
  name    = var.dns.name
  type    = "A"
  ttl     = 60
  records = [var.public_address ? aws_eip.coordinator[0].public_ip : aws_network_interface.coordinator.private_ip]
}

# The home outlives the instance too.
resource "aws_ebs_volume" "home" {
  availability_zone = data.aws_subnet.home.availability_zone
  type              = "gp3"
  size              = var.home_gib
  encrypted         = true
  kms_key_id        = var.kms_key_id
  final_snapshot    = var.final_snapshot
  tags              = merge(local.tags, { Name = "${var.name}-home" })
}

resource "aws_volume_attachment" "home" {
  device_name = "/dev/sdf"
  volume_id   = aws_ebs_volume.home.id
  instance_id = aws_instance.coordinator.id
  # A file system is not taken from under a coordinator that writes.
  stop_instance_before_detaching = true
}

resource "aws_instance" "coordinator" {
  ami                         = var.ami_id == null ? data.aws_ami.debian[0].id : var.ami_id
  instance_type               = var.instance_type
  iam_instance_profile        = aws_iam_instance_profile.coordinator.name
  user_data                   = local.user_data
  user_data_replace_on_change = true
  ebs_optimized               = true
  tags                        = local.tags
  volume_tags                 = null

  network_interface {
    device_index         = 0
    network_interface_id = aws_network_interface.coordinator.id
  }

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
    instance_metadata_tags      = "disabled"
  }

  root_block_device {
    volume_type           = "gp3"
    volume_size           = 10
    encrypted             = true
    kms_key_id            = var.kms_key_id
    delete_on_termination = true
    tags                  = merge(local.tags, { Name = "${var.name}-root" })
  }

  lifecycle {
    # A newer image is no reason to make it anew; a change of anything else is.
    ignore_changes = [ami]
    precondition {
      condition     = length(local.user_data) <= 16384
      error_message = "The user data is larger than 16 KiB, which EC2 refuses: shorten `config`."
    }
  }

  # Else the first boot may find no way out.
  depends_on = [aws_eip_association.coordinator, aws_vpc_security_group_egress_rule.web]
}
