output "private_address" {
  description = "HOST:PORT for workers in the same VPC: `coordinator` of the module `worker-pool`. It stays when the instance is made anew."
  value       = "${aws_network_interface.coordinator.private_ip}:${var.port}"
}

output "address" {
  description = "HOST:PORT for people, and for workers elsewhere."
  value = format("%s:%d",
    var.dns != null ? var.dns.name : var.public_address ? aws_eip.coordinator[0].public_ip : aws_network_interface.coordinator.private_ip,
    var.port,
  )
}

output "private_cidr" {
  description = "The coordinator's private address as a CIDR: `coordinator_cidrs` of the module `worker-pool`."
  value       = "${aws_network_interface.coordinator.private_ip}/32"
}

output "instance_id" {
  description = "The instance, for `aws ssm start-session` and `aws ec2 get-console-output`."
  value       = aws_instance.coordinator.id
}

output "home_volume_id" {
  description = "The volume of the coordinator's home."
  value       = aws_ebs_volume.home.id
}

output "role_name" {
  description = "Name of the coordinator's role."
  value       = aws_iam_role.coordinator.name
}

output "security_group_id" {
  description = "Security group of the coordinator."
  value       = aws_security_group.coordinator.id
}

output "user_data" {
  description = "User data of the instance, as it gets it. It holds no secret."
  value       = local.user_data
}
