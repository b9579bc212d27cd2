variable "region" {
  description = "Where everything is."
  type        = string
  default     = "eu-west-1"
}

variable "people" {
  description = "CIDRs from which people reach the coordinator."
  type        = list(string)
}

variable "programs" {
  description = "Where the coordinator's instance downloads its programs; see the module `coordinator`."
  type = object({
    coordinator   = object({ url = string, sha256 = string })
    worker_agents = map(object({ url = string, sha256 = string }))
  })
  validation {
    condition     = contains(keys(var.programs.worker_agents), "x86_64")
    error_message = "programs: the pool's instances download worker_agents.x86_64."
  }
}

variable "ami_id" {
  description = "Image for all instances; the newest official Debian 13 unless given."
  type        = string
  default     = null
}

variable "final_snapshot" {
  description = "Keeps a snapshot of the coordinator's home when all is destroyed."
  type        = bool
  default     = true
}

variable "tags" {
  description = "Tags of everything."
  type        = map(string)
  default     = { project = "muster" }
}

variable "endpoint" {
  description = "Address of what stands in for AWS, in tests."
  type        = string
  default     = null
}
