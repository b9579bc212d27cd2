variable "name" {
  description = "Name of the pool in the coordinator's configuration. The auto scaling group is called muster-NAME, the instances' role muster-worker-NAME."
  type        = string
  validation {
    condition     = can(regex("^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$", var.name)) && var.name != "local"
    error_message = "name: at most 40 lower case letters, digits and dashes, no dash at the ends, and not \"local\"."
  }
}

variable "vpc_id" {
  description = "VPC of the subnets."
  type        = string
}

variable "subnet_ids" {
  description = "Subnets for instances, best one in each availability zone: more places to find spot capacity. They need a way out to the coordinator and, for packages and the tasks' own needs, to the Internet."
  type        = list(string)
  validation {
    condition     = length(var.subnet_ids) > 0 && length(distinct(var.subnet_ids)) == length(var.subnet_ids)
    error_message = "subnet_ids: at least one, and each only once."
  }
}

variable "coordinator" {
  description = "HOST:PORT of the coordinator as instances dial it. Whatever HOST is, its certificate is checked against ca_pem."
  type        = string
  validation {
    condition     = can(regex("^([A-Za-z0-9.-]+|\\[[0-9A-Fa-f:]+\\]):[1-9][0-9]{0,4}$", var.coordinator)) && try(tonumber(regex("[0-9]+$", var.coordinator)) <= 65535, false)
    error_message = "coordinator: HOST:PORT, such as 10.0.0.10:7733 or head.example.org:7733; an IPv6 address stands in brackets."
  }
}

variable "ca_pem" {
  description = "Certificate of the coordinator's authority, the file tls/ca.pem of its home. It is public. While it is empty, as before the coordinator's first start, the group may have no instance."
  type        = string
  default     = ""
  validation {
    condition = var.ca_pem == "" || (
      can(regex("^-----BEGIN CERTIFICATE-----\n[A-Za-z0-9+/=\n]+-----END CERTIFICATE-----\n?$", replace(var.ca_pem, "\r\n", "\n")))
    )
    error_message = "ca_pem: exactly one certificate in PEM form and nothing else, above all no private key."
  }
}

variable "coordinator_id" {
  description = "The coordinator that may drive the group, as it names itself: eight hexadecimal digits. It touches no group that is not tagged as its own."
  type        = string
  default     = ""
  validation {
    condition     = can(regex("^([0-9a-f]{8})?$", var.coordinator_id))
    error_message = "coordinator_id: eight hexadecimal digits, as `coordinator pool id` prints them."
  }
}

variable "max" {
  description = "Most instances at once; also `max` of the pool."
  type        = number
  validation {
    condition     = var.max >= 1 && var.max <= 1000 && floor(var.max) == var.max
    error_message = "max: a whole number from 1 to 1000."
  }
}

variable "architecture" {
  description = "Architecture of all instance types: x86_64 or arm64."
  type        = string
  default     = "x86_64"
  validation {
    condition     = contains(["x86_64", "arm64"], var.architecture)
    error_message = "architecture: x86_64 or arm64."
  }
}

variable "instance_types" {
  description = "Instance types, all good for the same slots and resources; the more, the better spot works."
  type        = list(string)
  default     = ["m6i.large", "m6a.large", "m5.large", "m5a.large"]
  validation {
    condition     = length(var.instance_types) >= 1 && length(var.instance_types) <= 40 && alltrue([for type in var.instance_types : can(regex("^[a-z0-9-]+\\.[a-z0-9-]+$", type))])
    error_message = "instance_types: 1 to 40 types such as m6i.large."
  }
  validation {
    condition     = alltrue([for type in var.instance_types : can(regex("^(a1|[a-z]+[0-9]+g[a-z]*)[.]", type)) == (var.architecture == "arm64")])
    error_message = "instance_types: one is of another architecture than `architecture` says. Graviton, such as m7g.large, is arm64, all others are x86_64."
  }
}

variable "on_demand_base" {
  description = "The first so many instances are on demand."
  type        = number
  default     = 0
  validation {
    condition     = var.on_demand_base >= 0 && floor(var.on_demand_base) == var.on_demand_base
    error_message = "on_demand_base: a whole number, 0 or more."
  }
}

variable "on_demand_percentage" {
  description = "Of the instances beyond the base, how many in a hundred are on demand; the rest is spot."
  type        = number
  default     = 0
  validation {
    condition     = var.on_demand_percentage >= 0 && var.on_demand_percentage <= 100 && floor(var.on_demand_percentage) == var.on_demand_percentage
    error_message = "on_demand_percentage: a whole number from 0 to 100."
  }
}

variable "spot_allocation_strategy" {
  description = "How spot capacity is chosen."
  type        = string
  default     = "price-capacity-optimized"
  validation {
    condition     = contains(["price-capacity-optimized", "capacity-optimized", "lowest-price"], var.spot_allocation_strategy)
    error_message = "spot_allocation_strategy: price-capacity-optimized, capacity-optimized or lowest-price."
  }
}

variable "capacity_rebalance" {
  description = "Lets the group start a replacement, and end the old instance, when spot capacity is at risk."
  type        = bool
  # Off: a worker hands its tasks over by itself at such a notice, and the coordinator starts another
  # instance only if tasks still wait. Twice the decision would be twice the instances, and the group
  # would end one that the coordinator has not drained.
  default = false
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

variable "root_device" {
  description = "Name of the image's root device, such as /dev/sda1 of Ubuntu's. With another than the image's own its root volume is neither encrypted nor of this size, and a second one is paid for."
  type        = string
  default     = "/dev/xvda"
}

variable "packages" {
  description = "Debian packages that are installed at boot, besides git and curl. Each costs time at every start: for many, make an image."
  type        = list(string)
  default     = []
  validation {
    condition     = alltrue([for name in var.packages : can(regex("^[a-z0-9][a-z0-9+.-]+$", name))])
    error_message = "packages: names of Debian packages."
  }
}

variable "setup" {
  description = "Shell script that runs as root before the worker starts, for instance to install what tasks call. It ends up in user data, which everything on the instance can read: no secrets."
  type        = string
  default     = ""
}

variable "volume_gib" {
  description = "Size of the encrypted root volume."
  type        = number
  default     = 50
  validation {
    condition     = var.volume_gib >= 8 && var.volume_gib <= 16384 && floor(var.volume_gib) == var.volume_gib
    error_message = "volume_gib: a whole number from 8 to 16384."
  }
}

variable "kms_key_id" {
  description = "ARN of the key for the volume; the account's own for EBS unless given. The service-linked role of Auto Scaling must be allowed to use it."
  type        = string
  default     = null
}

variable "slots" {
  description = "Tasks at once on each instance."
  type        = number
  default     = 1
  validation {
    condition     = var.slots >= 1 && var.slots <= 4096 && floor(var.slots) == var.slots
    error_message = "slots: a whole number from 1 to 4096."
  }
}

variable "labels" {
  description = "Labels that tasks can ask for, KEY or KEY=VALUE."
  type        = list(string)
  default     = []
  validation {
    condition     = alltrue([for label in var.labels : can(regex("^[A-Za-z0-9._/-]+(=[A-Za-z0-9._/:-]*)?$", label))])
    error_message = "labels: KEY or KEY=VALUE of letters, digits and . _ / - (and : in values)."
  }
}

variable "resources" {
  description = "Amounts that each instance offers, such as { cpus = 8, memory_mib = 32768 }."
  type        = map(number)
  default     = {}
  validation {
    condition     = alltrue([for name, amount in var.resources : can(regex("^[a-z][a-z0-9_-]*$", name)) && amount >= 0 && floor(amount) == amount])
    error_message = "resources: names of lower case letters, digits, _ and -, with whole amounts."
  }
}

variable "worker_options" {
  description = "Further options of worker-agent, one word each, such as [\"--cache-limit\", \"20GB\"]."
  type        = list(string)
  default     = []
  validation {
    condition     = alltrue([for word in var.worker_options : can(regex("^[A-Za-z0-9._/:=,@%+-]+$", word)) && !startswith(word, "--token")])
    error_message = "worker_options: words without spaces, quotes or dollar signs; a token is not needed and must not stand here."
  }
}

variable "program_url" {
  description = "Where to download worker-agent instead of from the coordinator; https, and readable without credentials."
  type        = string
  default     = ""
  validation {
    condition     = var.program_url == "" || can(regex("^https://[A-Za-z0-9._~:/@!()*+,;=%-]+$", var.program_url))
    error_message = "program_url: an https address without a query: a signed one would be a secret, and user data is none."
  }
}

variable "program_sha256" {
  description = "SHA-256 of worker-agent in hexadecimal; needed with program_url. With it, a coordinator of another version cannot be followed."
  type        = string
  default     = ""
  validation {
    condition     = (var.program_sha256 == "" && var.program_url == "") || can(regex("^[0-9a-f]{64}$", var.program_sha256))
    error_message = "program_sha256: 64 hexadecimal digits, and not empty if program_url is given."
  }
}

variable "egress" {
  description = "Where instances may connect to, besides the coordinator: TCP ports and CIDRs. The usual ones are for packages and https."
  type = list(object({
    port  = number
    cidrs = list(string)
  }))
  default = [
    { port = 80, cidrs = ["0.0.0.0/0"] },
    { port = 443, cidrs = ["0.0.0.0/0"] },
  ]
  validation {
    condition     = alltrue([for rule in var.egress : rule.port >= 1 && rule.port <= 65535 && alltrue([for cidr in rule.cidrs : can(cidrnetmask(cidr))])])
    error_message = "egress: ports from 1 to 65535 and IPv4 CIDRs."
  }
}

variable "coordinator_cidrs" {
  description = "Addresses that the coordinator may have, as seen by instances."
  type        = list(string)
  default     = ["0.0.0.0/0"]
  validation {
    condition     = length(var.coordinator_cidrs) > 0 && alltrue([for cidr in var.coordinator_cidrs : can(cidrnetmask(cidr))])
    error_message = "coordinator_cidrs: at least one IPv4 CIDR."
  }
}

variable "permissions_boundary" {
  description = "ARN of a permissions boundary for the instances' role, where the account asks for one."
  type        = string
  default     = null
}

variable "tags" {
  description = "Tags of everything, also of instances and volumes. Everybody who may describe instances reads them: no secrets."
  type        = map(string)
  default     = {}
}
