output "config" {
  description = "Section for the coordinator's config.toml."
  value = join("\n", concat(
    [
      "[pools.${var.name}]",
      "kind = \"ec2\"",
      "group = \"${local.group}\"",
      "region = \"${data.aws_region.current.name}\"",
      "role = \"${local.role_arn}\"",
      "max = ${var.max}",
      "slots = ${var.slots}",
    ],
    length(var.labels) == 0 ? [] : ["labels = [${join(", ", [for label in var.labels : "\"${label}\""])}]"],
    length(var.resources) == 0 ? [] : ["resources = { ${join(", ", [for name, amount in var.resources : "${name} = ${amount}"])} }"],
    [""],
  ))
}

output "group_name" {
  description = "Name of the auto scaling group."
  value       = local.group
}

output "group_arn" {
  description = "ARN of the auto scaling group as policies name it: whatever its id, so that it holds for a group made anew."
  value       = local.group_arn
}

output "role_arn" {
  description = "ARN of the instances' role."
  value       = local.role_arn
}

output "role_name" {
  description = "Name of the instances' role."
  value       = local.role
}

output "security_group_id" {
  description = "Security group of the instances, for the coordinator's to let in."
  value       = aws_security_group.worker.id
}

output "coordinator_policy" {
  description = "What the coordinator may do with this group, as a policy for its role or user where it is not made by the module `coordinator`."
  value       = data.aws_iam_policy_document.coordinator.json
}

output "user_data" {
  description = "User data of the instances, as they get it. It holds no secret."
  value       = local.user_data
}
