# A pool for a coordinator that runs elsewhere: on premises, or in another network.

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
  # Others may lead nowhere.
  filter {
    name   = "default-for-az"
    values = ["true"]
  }
}

module "pool" {
  source = "../../modules/worker-pool"

  name        = var.name
  vpc_id      = data.aws_vpc.default.id
  subnet_ids  = sort(data.aws_subnets.default.ids)
  coordinator = var.coordinator
  ca_pem      = file(var.ca_pem_file)
  ami_id      = var.ami_id

  coordinator_id = var.coordinator_id

  max    = var.max
  slots  = var.slots
  labels = var.labels

  worker_options = var.worker_options
}

# For the coordinator, which is no instance here: make an access key for it, or let its own identity
# assume a role with this policy.
resource "aws_iam_policy" "coordinator" {
  name        = "muster-pool-${var.name}"
  description = "Lets a Muster coordinator drive the pool ${var.name}"
  policy      = module.pool.coordinator_policy
}

output "config" {
  description = "Section for the coordinator's config.toml."
  value       = module.pool.config
}

output "policy_arn" {
  description = "What the coordinator's identity needs."
  value       = aws_iam_policy.coordinator.arn
}

output "group" {
  description = "The pool's auto scaling group."
  value       = module.pool.group_name
}
