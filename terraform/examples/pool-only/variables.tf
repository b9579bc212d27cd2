variable "region" {
  description = "Where the instances are."
  type        = string
  default     = "eu-west-1"
}

variable "name" {
  description = "Name of the pool."
  type        = string
  default     = "build"
}

variable "coordinator" {
  description = "HOST:PORT of the coordinator as instances dial it."
  type        = string
}

variable "ca_pem_file" {
  description = "Copy of the file tls/ca.pem of the coordinator's home."
  type        = string
}

variable "max" {
  description = "Most instances at once."
  type        = number
  default     = 4
}

variable "slots" {
  description = "Tasks at once on each."
  type        = number
  default     = 2
}

variable "labels" {
  description = "Labels that tasks can ask for."
  type        = list(string)
  default     = []
}

variable "worker_options" {
  description = "Further options of worker-agent."
  type        = list(string)
  default     = []
}

variable "ami_id" {
  description = "Image to start; the newest official Debian 13 unless given."
  type        = string
  default     = null
}

variable "endpoint" {
  description = "Address of what stands in for AWS, in tests."
  type        = string
  default     = null
}

variable "coordinator_id" {
  description = "The coordinator that may drive the group: eight hexadecimal digits, which it names while they are missing."
  type        = string
  default     = ""
}
