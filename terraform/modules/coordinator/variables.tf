variable "name" {
  description = "Name of the coordinator in tags, and of its role."
  type        = string
  default     = "muster-coordinator"
  validation {
    condition     = can(regex("^[A-Za-z0-9][A-Za-z0-9-]{0,47}$", var.name))
    error_message = "name: at most 48 letters, digits and dashes."
  }
}

variable "vpc_id" {
  description = "VPC of the subnet."
  type        = string
}

variable "subnet_id" {
  description = "Subnet for the coordinator. With public_address its route table must lead to an Internet gateway; otherwise to a NAT, since the first boot installs packages."
  type        = string
}

variable "allowed_cidrs" {
  description = "Who may connect to the coordinator's port: people's networks. Pools come in by allowed_security_groups."
  type        = list(string)
  validation {
    condition     = alltrue([for cidr in var.allowed_cidrs : can(cidrnetmask(cidr))])
    error_message = "allowed_cidrs: IPv4 CIDRs such as 203.0.113.7/32."
  }
}

variable "allowed_security_groups" {
  description = "Security groups that may connect to the coordinator's port, by any name: those of pools in the same VPC."
  type        = map(string)
  default     = {}
}

variable "port" {
  description = "The one port that is open: for workers, people, git and the download of worker-agent."
  type        = number
  default     = 7733
  validation {
    condition     = var.port >= 1024 && var.port <= 65535 && floor(var.port) == var.port
    error_message = "port: from 1024 to 65535; the service may open no lower one."
  }
}

variable "public_address" {
  description = "Gives the coordinator an elastic address, which stays when the instance is made anew. Without it there is only the private one, which stays too."
  type        = bool
  default     = true
}

variable "dns" {
  description = "A name in a hosted zone of Route 53 for the address: { zone_id, name }."
  type = object({
    zone_id = string
    name    = string
  })
  default = null
}

variable "instance_type" {
  description = "Instance type, of the given architecture."
  type        = string
  default     = "t3.medium"
  validation {
    condition     = can(regex("^[a-z0-9-]+\\.[a-z0-9-]+$", var.instance_type))
    error_message = "instance_type: such as t3.medium."
  }
  validation {
    condition     = can(regex("^(a1|[a-z]+[0-9]+g[a-z]*)[.]", var.instance_type)) == (var.architecture == "arm64")
    error_message = "instance_type: of another architecture than `architecture` says. Graviton, such as t4g.medium, is arm64, all others are x86_64."
  }
}

variable "architecture" {
  description = "Architecture of the instance: x86_64 or arm64."
  type        = string
  default     = "x86_64"
  validation {
    condition     = contains(["x86_64", "arm64"], var.architecture)
    error_message = "architecture: x86_64 or arm64."
  }
}

variable "ami_id" {
  description = "Image to start; the newest official Debian 13 unless given. Another needs systemd, cloud-init, bash, curl and git 2.41."
  type        = string
  default     = null
  validation {
    condition     = var.ami_id == null || can(regex("^ami-[0-9a-f]{8,17}$", var.ami_id))
    error_message = "ami_id: such as ami-0123456789abcdef0."
  }
}

variable "programs" {
  description = "Where the instance downloads its programs, each with its SHA-256: `coordinator` of its own architecture, and `worker-agent` for each architecture that pools have (x86_64, aarch64). https addresses that need no credentials."
  type = object({
    coordinator   = object({ url = string, sha256 = string })
    worker_agents = map(object({ url = string, sha256 = string }))
  })
  validation {
    condition = alltrue([
      for program in concat([var.programs.coordinator], values(var.programs.worker_agents)) :
      can(regex("^https://[A-Za-z0-9._~:/@!()*+,;=%-]+$", program.url)) && can(regex("^[0-9a-f]{64}$", program.sha256))
    ])
    error_message = "programs: each with an https address without a query (a signed one would be a secret, and user data is none) and 64 hexadecimal digits."
  }
  validation {
    condition     = length(var.programs.worker_agents) > 0 && length(setsubtract(keys(var.programs.worker_agents), ["x86_64", "aarch64"])) == 0
    error_message = "programs: worker_agents are for x86_64, aarch64 or both."
  }
}

variable "config" {
  description = "The coordinator's config.toml: pools, and whatever else differs from what is usual. The instance is made anew when it changes, which takes some minutes: what runs then is stopped after `lease-ttl` and goes on afterwards. No secrets."
  type        = string
  default     = ""
}

variable "group_arns" {
  description = "ARNs of the auto scaling groups that the coordinator drives: outputs `group_arn` of the module `worker-pool`."
  type        = list(string)
  default     = []
  validation {
    condition     = alltrue([for arn in var.group_arns : can(regex("^arn:[a-z-]+:autoscaling:[a-z0-9-]+:[0-9]{12}:autoScalingGroup:[^:]+:autoScalingGroupName/[^*?]+$", arn))])
    error_message = "group_arns: ARNs of auto scaling groups by name, such as the output group_arn of worker-pool."
  }
}

variable "home_gib" {
  description = "Size of the encrypted volume of the coordinator's home. It can grow later, not shrink."
  type        = number
  default     = 50
  validation {
    condition     = var.home_gib >= 1 && var.home_gib <= 16384 && floor(var.home_gib) == var.home_gib
    error_message = "home_gib: a whole number from 1 to 16384."
  }
}

variable "final_snapshot" {
  description = "Makes a snapshot of the home when its volume is destroyed. It stays, and costs, until you delete it."
  type        = bool
  default     = true
}

variable "kms_key_id" {
  description = "ARN of the key for both volumes; the account's own for EBS unless given."
  type        = string
  default     = null
}

variable "ssm_access" {
  description = "Lets people who may `ssm:StartSession` open a shell through Systems Manager: the way to the first token, without any further open port."
  type        = bool
  default     = true
}

variable "permissions_boundary" {
  description = "ARN of a permissions boundary for the role, where the account asks for one."
  type        = string
  default     = null
}

variable "tags" {
  description = "Tags of everything. No secrets."
  type        = map(string)
  default     = {}
}
