# A coordinator and one pool of spot instances, in the account's default VPC.

terraform {
  required_version = ">= 1.9"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 5.100"
    }
  }
}

provider "aws" {
  region = var.region

  # Empty, except where something stands in for AWS.
  skip_credentials_validation = var.endpoint != null
  skip_metadata_api_check     = var.endpoint != null
  endpoints {
    autoscaling = var.endpoint
    ec2         = var.endpoint
    iam         = var.endpoint
    sts         = var.endpoint
  }
}

data "aws_vpc" "default" {
  default = true
}

data "aws_subnets" "default" {
  filter {
    name   = "vpc-id"
    values = [data.aws_vpc.default.id]
  }
  filter {
    name   = "default-for-az"
    values = ["true"]
  }
}

data "aws_subnet" "default" {
  for_each = toset(data.aws_subnets.default.ids)
  id       = each.value
}

locals {
  # By zone: where the coordinator and its volume are must not change when a zone is added.
  zones   = { for subnet in data.aws_subnet.default : subnet.availability_zone => subnet.id }
  subnets = [for zone in sort(keys(local.zones)) : local.zones[zone]]
}

module "coordinator" {
  source = "../../modules/coordinator"

  vpc_id                  = data.aws_vpc.default.id
  subnet_id               = local.subnets[0]
  allowed_cidrs           = var.people
  allowed_security_groups = { build = module.build.security_group_id }
  ami_id                  = var.ami_id
  programs                = var.programs
  config                  = "${module.build.config}idle-timeout = \"5m\"\n"
  group_arns              = [module.build.group_arn]
  final_snapshot          = var.final_snapshot
  tags                    = var.tags
}

module "build" {
  source = "../../modules/worker-pool"

  name              = "build"
  vpc_id            = data.aws_vpc.default.id
  subnet_ids        = local.subnets
  coordinator       = module.coordinator.private_address
  coordinator_cidrs = [module.coordinator.private_cidr]
  ami_id            = var.ami_id
  # Public: what the coordinator has printed to its console. Before that, the group stays empty.
  ca_pem         = fileexists("${path.root}/ca.pem") ? file("${path.root}/ca.pem") : ""
  coordinator_id = fileexists("${path.root}/coordinator.id") ? trimspace(file("${path.root}/coordinator.id")) : ""
  max            = 4
  slots          = 2
  labels         = ["os=debian"]
  resources      = { cpus = 2 }
  tags           = var.tags
}

output "address" {
  description = "HOST:PORT for people."
  value       = module.coordinator.address
}

output "instance_id" {
  description = "The coordinator's instance."
  value       = module.coordinator.instance_id
}

output "group" {
  description = "The pool's auto scaling group."
  value       = module.build.group_name
}

output "region" {
  description = "Where everything is."
  value       = var.region
}
